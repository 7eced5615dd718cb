"""`python -m inco.paper.features`: look into the models of a finished run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.errors import ConfigError, InCoError
from inco.records.arrays import write_npz

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES = """\
examples:
  python -m inco.paper.features tsne outputs/RUN --class 3
  python -m inco.paper.features landscape outputs/RUN --capacity resnet26
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m inco.paper.features",
        description="Look into the models of a finished run, as its last checkpoint has them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True)
    tsne = commands.add_parser("tsne", help="features of one class, of every capacity, by t-SNE")
    label = "name or number of the class (default: 0)"
    tsne.add_argument("--class", dest="label", default="0", help=label)
    images = "test images of the class at most (default: 200)"
    tsne.add_argument("--images", type=int, default=200, help=images)
    landscape = commands.add_parser(
        "landscape", help="loss around the weights, over two random directions"
    )
    steps = "points in each direction, an odd number (default: 21)"
    landscape.add_argument("--steps", type=int, default=21, help=steps)
    span = "how far to go, in lengths of the filters (default: 1)"
    landscape.add_argument("--span", type=float, default=1.0, help=span)
    images = "test images at most (default: 512)"
    landscape.add_argument("--images", type=int, default=512, help=images)
    capacity = "name of the capacity, as resnet26 (default: the largest)"
    landscape.add_argument("--capacity", help=capacity)
    for command, name in ((tsne, "features"), (landscape, "landscape")):
        command.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
        out = f"FILE.png and FILE.npz (default: {name} in the run's folder)"
        command.add_argument("--out", type=Path, metavar="FILE", help=out)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (0, or the error's)."""
    args = parser().parse_args(arguments)
    try:
        _check(args)
        _tsne(args) if args.command == "tsne" else _landscape(args)
    except InCoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _check(args: argparse.Namespace) -> None:
    """Report all that is wrong with the arguments before anything is read."""
    wrong = [f"--images {args.images}: must be 2 or more"] if args.images < 2 else []
    if args.command == "landscape":
        if args.steps < 3 or args.steps % 2 == 0:
            wrong.append(
                f"--steps {args.steps}: must be odd, 3 or more, so that the weights themselves are"
                " among the points"
            )
        if not 0 < args.span < float("inf"):
            wrong.append(f"--span {args.span:g}: must be above 0")
    if args.out and args.out.suffix not in ("", ".png", ".npz"):
        wrong.append(f"--out {args.out}: a .png and a .npz are written; leave the suffix out")
    if wrong:
        raise ConfigError(wrong)


def _tsne(args: argparse.Namespace) -> None:
    from inco.paper.features.rebuild import rebuild
    from inco.paper.features.tsne import manifold, tsne
    from inco.paper.figures.points import draw_points
    from inco.paper.figures.style import SINGLE, page, paper_style

    manifold()  # reported before the run is rebuilt
    arrays = tsne(rebuild(args.run), args.label, args.images)
    with paper_style():
        figure = page(SINGLE, 3.0)
        axes = figure.subplots()
        draw_points(axes, arrays)
        axes.set_title(f"{arrays['title']}: features of class {arrays['class']}", loc="left")
        _write(args.out or args.run / "features", figure, arrays)
    separation = f"within / between capacities: {float(arrays['separation']):.4f}"
    print(f"{separation} (about 1: mixed; towards 0: apart)")


def _landscape(args: argparse.Namespace) -> None:
    from inco.paper.features.landscape import landscape, rings
    from inco.paper.features.rebuild import rebuild
    from inco.paper.figures.points import draw_surface
    from inco.paper.figures.style import SINGLE, markdown, page, paper_style

    arrays = landscape(rebuild(args.run), args.steps, args.span, args.images, args.capacity)
    with paper_style():
        figure = page(SINGLE, 2.7)
        axes = figure.subplots()
        draw_surface(figure, axes, arrays["at"], arrays["loss"])
        title = f"{arrays['title']}: {arrays['capacity']}, round {int(arrays['round'])}"
        axes.set_title(title, loc="left")
        _write(args.out or args.run / "landscape", figure, arrays)
    centre = float(arrays["loss"][args.steps // 2, args.steps // 2])
    rows = [(0.0, centre, centre), *rings(arrays["loss"], arrays["at"])]
    cells = [[f"{d:g}", f"{mean:.4f}", f"{most:.4f}"] for d, mean, most in rows]
    print(markdown(["distance", "mean loss", "largest loss"], cells))


def _write(out: Path, figure: Figure, arrays: dict[str, Any]) -> None:
    from inco.paper.figures.style import save

    print(*save(figure, out.with_suffix(".png")))
    write_npz(out.with_suffix(".npz"), arrays)
    print(out.with_suffix(".npz"))


if __name__ == "__main__":
    sys.exit(main())

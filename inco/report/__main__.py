"""`python -m inco.report`: the page of a run, or a comparison of several."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from inco.errors import InCoError

EXAMPLES = """examples:
  python -m inco.report outputs/RUN --open                      the page of one run, in the browser
  python -m inco.report outputs                                 compare all runs below a folder
  python -m inco.report outputs --filter algorithm=fedprox partition.alpha=0.5
  python -m inco.report outputs/A outputs/B --out comparisons/ab

One run: its report.html is written again. More: comparison.html, .csv, .md and .tex are written
into --out.
Values of one key in --filter are alternatives; several keys must all hold."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (0, or the error's)."""
    parser = argparse.ArgumentParser(
        prog="python -m inco.report",
        description="Write the page of a run, or compare runs: tables and curves, means over"
        " seeds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="a run's folder, or a folder above some")
    out = "folder of a comparison (default: the one above all runs)"
    add("--out", type=Path, metavar="DIR", help=out)
    add("--open", action="store_true", help="open the page in the browser")
    kept = "keep runs with this choice or setting"
    add("--filter", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=kept)
    options = parser.parse_args(arguments)
    try:
        return _report(options)
    except InCoError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _report(options: argparse.Namespace) -> int:
    from inco.errors import ConfigError
    from inco.records.runs import find
    from inco.report.comparison import write_comparison
    from inco.report.filters import kept
    from inco.report.run_page import NAME, run_markdown, write_run

    runs = kept(find(options.paths), options.filter)
    if len(runs) == 1:
        if options.out:
            raise ConfigError(
                f"--out {options.out}: one run's report.html is written into the run's folder;"
                " leave --out out, or give more runs"
            )
        page = write_run(runs[0].folder)
        paths = [page]
        text = run_markdown(runs[0])
    else:
        parents = [run.folder.resolve().parent for run in runs]
        out = options.out or Path(os.path.commonpath(parents))
        # the comparison links to them
        new = [write_run(run.folder) for run in runs if not (run.folder / NAME).exists()]
        page, *more = write_comparison(runs, out, f"Comparison of {len(runs)} runs")
        paths = [*new, page, *more]
        text = (out / "comparison.md").read_text(encoding="utf-8")
    print(*map(_short, paths), "", text, sep="\n", end="")
    if options.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def _short(path: Path) -> str:
    """Write a path as seen from the working folder where it is below."""
    whole = path.resolve()
    here = Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m inco.data`: fetch a dataset, or check what is there."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inco.errors import InCoError

if TYPE_CHECKING:
    from inco.data.dataset import Source

NAMES = ("cifar10", "cinic10", "digits", "fashion_mnist", "svhn")


def source(name: str, root: str, download: bool) -> "Source":
    """Return the dataset `name` below `root`."""
    from inco.data import folders, sources  # imports torch: not before the arguments are understood

    if name == "digits":
        return sources.Digits()
    if name == "cinic10":
        return folders.CINIC10(root)
    downloadable = (sources.CIFAR10, sources.FashionMNIST, sources.SVHN)
    return {kind.name: kind for kind in downloadable}[name](root, download=download)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (0, or the error's)."""
    parser = argparse.ArgumentParser(
        prog="python -m inco.data", description="Fetch and check datasets."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("fetch", "download a dataset unless it is there, then check its content"),
        ("check", "check the content of a dataset that is there"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("dataset", choices=NAMES)
        command.add_argument(
            "--root", default="data", help="folder of the datasets, as dataset.root (default: data)"
        )
    options = parser.parse_args(arguments)
    try:
        dataset = source(options.dataset, options.root, options.command == "fetch").load()
    except InCoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(
        f"{dataset.name}: {len(dataset.train.images):,} training and {len(dataset.test.images):,}"
        f" test images of {list(dataset.train.images.shape[1:])}, {len(dataset.classes)}"
        f" classes\nsha256 {dataset.digest}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

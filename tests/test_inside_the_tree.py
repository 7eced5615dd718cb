"""A new method, split, transform, dataset and model inside the tree: one file and one YAML each.

The classes are those of docs/add_your_own.md, put where a contributor would put them, in a copy of
the tree; nothing else of it is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PAGE = (ROOT / "docs" / "add_your_own.md").read_text()
BLOCKS = re.findall(r"^```\w+\n(.*?)^```$", PAGE, re.M | re.S)
FILES = {text.splitlines()[0].removeprefix("# "): text for text in BLOCKS}
PACKAGES = {
    "algorithm": "algorithms",
    "split": "splits",
    "transform": "server",
    "dataset": "data",
    "model": "models",
}
SMALL = (
    "debug=tiny",
    "dataset=synthetic",
    "dataset.shape=[1,8,8]",
    "dataset.num_train=60",
    "dataset.num_test=40",
    "dataset.num_classes=3",
    "local.batch_size=8",
)
NARROW = ("model.widths=[2,4,4,8]",)
CASES = {
    "algorithm=sign": NARROW,
    "split=spread": NARROW,
    "transform=top_k": NARROW,
    "model=small_cnn": ("model.width=4", "split.levels=[[1,1],[2,2],[3,3]]"),
    "dataset=scans": NARROW,
}


def place(tree: Path, choice: str) -> list[str]:
    """Put an option's YAML and its module into the tree; return the files that are new."""
    group, option = choice.split("=")
    package = PACKAGES[group]
    new = [f"conf/{group}/{option}.yaml"]
    text = FILES[new[0]]
    for module in set(re.findall(r"\bmine\.(\w+)", text)) | _imports(text):
        new.append(f"inco/{package}/{module}.py")
        code = FILES[f"mine/{module}.py"].replace("from mine.", f"from inco.{package}.")
        (tree / new[-1]).write_text(code)
    (tree / new[0]).write_text(text.replace("mine.", f"inco.{package}."))
    return new


def _imports(yaml: str) -> set[str]:
    """Return the modules of the page that the YAML's own module imports."""
    (module,) = re.findall(r"_target_: mine\.(\w+)", yaml)
    return set(re.findall(r"^from mine\.(\w+) import", FILES[f"mine/{module}.py"], re.M))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a run needs."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("inco", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", folder)
    return folder


@pytest.mark.parametrize(
    "choice",
    [next(iter(CASES)), *(pytest.param(c, marks=pytest.mark.full) for c in list(CASES)[1:])],
)
def test_one_file_and_one_yaml_make_an_option(tree: Path, tmp_path: Path, choice: str) -> None:
    new = place(tree, choice)
    assert len(new) == (3 if choice == "model=small_cnn" else 2), "the model has a file of layers"
    if choice == "dataset=scans":  # its images
        subprocess.run([sys.executable, "-c", FILES["make_scans.py"]], cwd=tmp_path, check=True)
    own = [o for o in SMALL if not (choice == "dataset=scans" and o.startswith("dataset"))]
    command = [sys.executable, str(tree / "run.py"), *own, choice, *CASES[choice]]
    env = os.environ | {"PYTHONPATH": str(tree)}
    env.pop("INCO_ALLOW_TARGETS", None)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = subprocess.run(
        [*command[:2], choice, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    group, option = choice.split("=")
    listed = next(line for line in told.stdout.splitlines() if line.startswith(f"{group}: "))
    assert option in listed.removeprefix(f"{group}: ").split(", ")

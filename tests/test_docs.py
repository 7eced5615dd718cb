"""The documentation: paths, modules and names in it exist; the code in docs/library.md runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest
from support import ROOT, TINY, simulate

import inco
from inco.config.validate import GROUPS, OVERLAYS

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PATH = re.compile(
    r"(?<![\w./~-])(?:(?:inco|tests|benchmarks|examples)/[\w./-]+\.py|conf/[\w./-]*\w|docs/[\w./-]+\.md)"
)
FILE = re.compile(r"`([\w/]+\.py)`")
MODULE = re.compile(r"python -m ((?:inco|benchmarks|tests)[\w.]*\w)")
PLACES = ("inco", "tests", "benchmarks", "examples", "conf", "multirun_scripts")
FEW = ("diagnostics.images=32", "diagnostics.batch=16")
SMALL = TINY[2:]  # beside debug=tiny and dataset=synthetic


def made_by(text: str) -> set[str]:
    """Files that a page's own code blocks are, by their first lines."""
    return set(re.findall(r"^```\w*\n# ([\w/]+\.\w+)$", text, re.M))


def missing(text: str) -> Iterator[str]:
    """Paths of a page that are not there. A file may be named by the end of its path."""
    own = made_by(text)
    for path in PATH.findall(text):
        if path not in own and not (ROOT / path).exists():
            yield path
    for name in FILE.findall(text):
        if not any(path.match(name) for path in files()) and name not in own:
            yield name


def files() -> list[Path]:
    return [ROOT / "run.py", *(p for place in PLACES for p in (ROOT / place).rglob("*.py"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_path_exists(page: Path) -> None:
    assert list(missing(page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_module_that_is_run_exists(page: Path) -> None:
    modules = set(MODULE.findall(page.read_text()))
    assert [m for m in modules if not runs(m)] == []


def runs(module: str) -> bool:
    """Whether `python -m` finds a program: a module, or a package with `__main__`."""
    place = ROOT.joinpath(*module.split("."))
    return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


# docs/library.md


@pytest.mark.full
def test_a_run_from_python(tmp_path: Path) -> None:
    """The code block, as it stands; its configuration folder and tiny data are put in."""
    section = (ROOT / "docs" / "library.md").read_text().split("## A run from Python")[1]
    code = section.split("```python\n")[1].split("```")[0]
    settings = "".join(f', "{override}"' for override in SMALL)
    script = tmp_path / "script.py"
    script.write_text(
        f"CONF = {str(ROOT / 'conf')!r}\n" + code.replace(', "transform=inco"', settings)
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rounds = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rounds] == ["1", "2"]
    assert all(0 <= float(accuracy) <= 100 for _, _, accuracy in rounds)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py"], "nothing is recorded"


# docs/api.md

API = (ROOT / "docs" / "api.md").read_text()
HOOKS = re.findall(r"^### [\w ]+: `([\w.]+)`\n(.*?)(?=^##)", API, re.M | re.S)
CALLS = re.findall(r"`(inco[\w.]+)`", API.split("## A run from Python")[1].split("\n## ")[0])


def listed(table: str) -> list[str]:
    """The names in the first cells of a table: `name` or `name(arguments)`."""
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`(\w+)[`(]", cell)]


def test_the_names_of_the_package_are_listed_and_exist() -> None:
    table = API.split("## The library")[1].split("\n## ")[0]
    assert set(listed(table)) == set(inco.__all__)
    assert all(hasattr(inco, name) for name in inco.__all__)


@pytest.mark.parametrize("path", CALLS)
def test_every_call_exists(path: str) -> None:
    assert callable(resolve_name(path))


@pytest.mark.parametrize(("path", "table"), HOOKS, ids=[path for path, _ in HOOKS])
def test_every_hook_exists(path: str, table: str) -> None:
    subject = resolve_name(path)
    annotated = {name for base in subject.__mro__ for name in vars(base).get("__annotations__", ())}
    names = listed(table)
    assert names and [n for n in names if not hasattr(subject, n) and n not in annotated] == []


def test_the_groups_are_all_named() -> None:
    section = API.split("## The command line")[1].split("- **Settings**")[0]
    assert {*GROUPS, *OVERLAYS} <= set(re.findall(r"`(\w+)`", section))


def test_the_metrics_of_a_run_are_listed() -> None:
    keys = re.findall(r"`([\w/<>]+)`", API.split("Keys of `metrics.jsonl`")[1].split("\n## ")[0])
    stems = {key.partition("<")[0] for key in keys}
    _, rows, _ = simulate(*TINY, "transform=inco", "diagnostics=all", *FEW, rounds=1)
    unknown = [
        k for k in rows[0] if not any(k == s or k.startswith(s.rstrip("/") + "/") for s in stems)
    ]
    assert unknown == []

"""The shape of the house: imports point one way, each third-party package has one home, the command
line starts without torch, and no file or function outgrows its limit. Read from the source (imports
inside functions and under TYPE_CHECKING count as well).
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "inco").rglob("*.py"))

# From top to bottom. A part imports from lower rows, and from its own package.
ROWS = (
    ("run",),
    ("inco.paper", "inco.plan", "inco.doctor"),
    ("inco.run",),
    ("inco.assembly",),
    ("inco.parts",),
    ("inco.simulator", "inco.config"),
    ("inco.engine", "inco.report", "inco.tracker"),
    ("inco.evaluation", "inco.records"),
    ("inco.clients",),
    ("inco.splits",),
    ("inco.models",),
    ("inco.fast",),
    ("inco.algorithms", "inco.server", "inco.diagnostics", "inco.data"),
    ("inco.callbacks",),
    ("inco.types",),
    ("inco.flat", "inco.seeding", "inco.settings", "inco.machine", "inco.spans"),
    ("inco.errors",),
)
MOST_LOOSE = 12  # files beside the packages: they tell the round
ROW = {part: row for row, parts in enumerate(ROWS) for part in parts}
GROUND = {"inco.types", "inco.flat", "inco.seeding", "inco.settings", "inco.errors", "inco.spans"}

# The rule above lets these see more than they should: what each may import beside its own package.
# The longest name that fits a module counts.
KNOWS = {
    "inco.algorithms": {"inco.types", "inco.settings", "inco.errors"},
    "inco.splits": {"inco.models", "inco.fast"} | GROUND,
    "inco.models": {"inco.fast"} | GROUND,
    "inco.data": {"inco.seeding", "inco.settings", "inco.errors"},
    "inco.server": {"inco.types", "inco.flat", "inco.settings", "inco.errors"},
    "inco.diagnostics": {"inco.types", "inco.flat", "inco.settings", "inco.errors"},
    "inco.records": {"inco.errors"},
    "inco.report": {"inco.errors", "inco.records"},
    "inco.tracker": {"inco.settings", "inco.errors", "inco.records"},
    "inco.paper.figures": {"inco.errors", "inco.records"},
    "inco.engine.workers": {"inco.errors"},
}

HOMES = {
    "hydra": ("run", "inco.config", "inco.run"),
    "omegaconf": ("run", "inco.config", "inco.run"),
    "wandb": ("inco.tracker",),
    "wandb_workspaces": ("inco.tracker",),
    "torch.distributed": ("inco.engine",),
    "timm": ("inco.models",),
    "rich": ("inco.run", "inco.plan"),
    "safetensors": ("inco.models", "inco.records", "inco.clients"),
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """`inco.data.sources` -> `inco.data`: a package or a file of the top level."""
    return ".".join(module.split(".")[:2])


def imported(path: Path) -> Iterator[str]:
    """Every module and every name taken from one, dotted; a name that is no module does no harm."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, (
                f"{path}:{node.lineno}: write the whole path of an import"
            )
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> list[tuple[str, str]]:
    """(importing module, imported name) within the house; the package itself gives its version to
    anyone.
    """
    found = [
        (module_of(p), name)
        for p in [*FILES, ROOT / "run.py"]
        for name in imported(p)
        if name.split(".")[0] == "inco"
    ]
    return [
        (module, name) for module, name in found if module != "inco" and name != "inco.__version__"
    ]


def test_every_part_has_its_row() -> None:
    homeless = {part_of(module_of(p)) for p in FILES} - {"inco"} - set(ROW)
    assert not homeless, f"say in ROWS of this file where {sorted(homeless)} stands"


def test_imports_point_down() -> None:
    upward = []
    for module, name in edges():
        part, other = part_of(module), part_of(name)
        assert other in ROW, f"{module} imports {name}: import from the module that defines it"
        if part != other and ROW[part] >= ROW[other]:
            upward.append(f"{module} (row {ROW[part]}) imports {name} (row {ROW[other]})")
    assert not upward, "\n".join(upward)


def test_few_files_lie_loose() -> None:
    loose = sorted(p.name for p in (ROOT / "inco").glob("*.py"))
    assert len(loose) <= MOST_LOOSE, loose


def test_no_file_imports_itself_by_way_of_another() -> None:
    """Imports inside functions and for types count as well; a package's `__init__` is a file."""
    known = {module_of(path) for path in FILES}
    graph: dict[str, set[str]] = {module: set() for module in known}
    for module, name in edges():
        target = name if name in known else name.rpartition(".")[0]
        if module in known and target in known - {module}:
            graph[module].add(target)
    while leaves := {module for module, targets in graph.items() if not targets}:
        graph = {m: targets - leaves for m, targets in graph.items() if m not in leaves}
    assert not graph, f"these import one another: {sorted(graph)}"


def test_neighbours_do_not_know_each_other() -> None:
    told = []
    for module, name in edges():
        lines = [line for line in KNOWS if module == line or module.startswith(line + ".")]
        line = max(lines, key=len, default=None)
        known = KNOWS[line] | {line} if line else {"inco"}
        if not any(name == k or name.startswith(k + ".") for k in known):
            told.append(f"{module} imports {name}")
    assert not told, "\n".join(told)


def test_library_calls_are_all_that_the_package_itself_imports() -> None:
    """`import inco` names its two functions for type checkers and fetches them on first use."""
    taken = {name for name in imported(ROOT / "inco" / "__init__.py") if name.startswith("inco")}
    assert {part_of(name) for name in taken} <= {"inco.server"}


@pytest.mark.parametrize("package", HOMES)
def test_third_parties_have_one_home(package: str) -> None:
    guests = {
        module_of(path)
        for path in [*FILES, ROOT / "run.py"]
        if any(name == package or name.startswith(package + ".") for name in imported(path))
    }
    assert {part_of(g) for g in guests} <= set(HOMES[package]), guests
    assert guests, "the rule still speaks of something"


def test_algorithms_need_types_and_torch_alone() -> None:
    for path in sorted((ROOT / "inco" / "algorithms").glob("*.py")):
        tops = {name.split(".")[0] for name in imported(path)}
        assert tops <= {
            "torch",
            "inco",
            "math",
            "collections",
            "dataclasses",
            "typing",
            "__future__",
        }, path


LIGHT = [
    "run",
    "inco",
    "inco.run.cli",
    "inco.run.gpus",
    "inco.config.naming",
    "inco.config.signatures",
    "inco.config.validate",
    "inco.engine.workers",
    "inco.run.console",
]


@pytest.mark.parametrize("module", LIGHT)
def test_the_command_line_starts_without_torch(module: str) -> None:
    """Help, completion and error messages come at once."""
    heavy = "('torch', 'torchvision', 'timm', 'numpy', 'scipy', 'matplotlib', 'wandb', 'pandas')"
    code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    """At most 400 lines a file and 75 a function."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 75, (
                f"{path}:{node.lineno} {node.name}"
            )


def test_run_py_is_short() -> None:
    assert len((ROOT / "run.py").read_text().splitlines()) <= 40


@pytest.mark.full
def test_a_run_imports_no_compiler() -> None:
    """torch imports sympy, dynamo and Triton to follow shapes, to count operations and to step an
    optimizer: 1 s and 130 MB a process.
    """
    code = (
        "import sys; sys.path.insert(0, 'tests'); from support import TINY, simulate;"
        " simulate(*TINY, 'transform=inco')\nprint(sorted({'sympy', 'torch._dynamo', 'triton'} &"
        " set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.full
def test_workers_are_on_their_way_before_torch_is_imported(tmp_path: Path) -> None:
    """Importing it takes a second here and in each worker, at the same time."""
    code = (
        "import sys, inco.run.launch as launch\n"
        "def spy(settings, world):\n"
        "    print('torch' in sys.modules, world)\n"
        "    raise KeyboardInterrupt\n"
        "launch.local_workers = spy\n"
        f"sys.argv = ['run.py', 'debug=tiny', 'engine.workers=2', 'hydra.run.dir={tmp_path}']\n"
        "import runpy; runpy.run_path('run.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[:1] == ["False 2"], done.stdout + done.stderr

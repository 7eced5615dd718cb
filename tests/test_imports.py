"""The shape of the house: imports point one way, each third-party package has one home, the command line starts without torch, and no
file or function outgrows its limit. Read from the source (imports inside functions and under TYPE_CHECKING count as well)."""

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
    ("inco.features", "inco.plan", "inco.doctor"),
    ("inco.config",),
    ("inco.simulator", "inco.workers", "inco.report", "inco.figures", "inco.profile"),
    ("inco.engine", "inco.population", "inco.progress", "inco.tracker", "inco.checkpoint", "inco.runs"),
    ("inco.arrays",),
    ("inco.record", "inco.evaluate"),
    ("inco.static_norm",),
    ("inco.client", "inco.server", "inco.diagnostics", "inco.faults"),
    ("inco.captured",),
    ("inco.pool", "inco.client_store", "inco.accounting", "inco.nested"),
    ("inco.algorithms", "inco.splits", "inco.capacity", "inco.data", "inco.uplink", "inco.local"),
    ("inco.models", "inco.objectives"),
    ("inco.failure",),
    ("inco.types",),
    (
        "inco.flat",
        "inco.seeding",
        "inco.errors",
        "inco.machine",
        "inco.processes",
        "inco.names",
        "inco.allocator",
        "inco.schedule",
        "inco.shapes",
        "inco.spans",
    ),
)
# Those of the algorithms that complain about their settings; each builds on the protocol and FedAvg, and on no other algorithm.
ALGORITHMS = tuple(f"inco.algorithms.{name}" for name in ("feddyn", "fedprox", "moon"))
ROW = {part: row for row, parts in enumerate(ROWS) for part in parts}

# The rule above lets these see more than they should: what each may import at most. A module's own line wins over that of its package,
# and then names the modules of the package as well.
KNOWS = {
    "inco.algorithms": {"inco.types"},
    "inco.algorithms.fedavg": {"inco.types", "inco.errors"},
    **{module: {"inco.algorithms.fedavg", "inco.types", "inco.errors"} for module in ALGORITHMS},
    "inco.splits": {"inco.models", "inco.objectives", "inco.types", "inco.flat", "inco.shapes", "inco.seeding", "inco.errors"},
    "inco.models": {"inco.types", "inco.flat", "inco.seeding", "inco.errors"},
    "inco.data": {"inco.seeding", "inco.errors"},
    "inco.capacity": {"inco.seeding", "inco.errors"},
    "inco.server": {"inco.types", "inco.flat", "inco.errors"},
    "inco.server.noise": {"inco.server.pairs", "inco.server.transforms", "inco.types", "inco.flat", "inco.errors", "inco.uplink"},
    "inco.uplink": {"inco.flat", "inco.errors"},
    "inco.client_store": {"inco.types", "inco.flat", "inco.errors"},
    "inco.record": {"inco.errors", "inco.processes"},
    "inco.arrays": {"inco.record"},
    "inco.runs": {"inco.arrays", "inco.errors", "inco.record"},
    "inco.report": {"inco.report", "inco.errors", "inco.record", "inco.runs", "inco.names"},
    "inco.figures": {"inco.arrays", "inco.errors", "inco.record", "inco.runs", "inco.names"},
    "inco.tracker": {"inco.errors", "inco.record", "inco.tracker"},
    "inco.checkpoint": {"inco.errors", "inco.record"},
    "inco.workers": {"inco.errors", "inco.config"},
    "inco.objectives": {"inco.types", "inco.errors"},
    "inco.accounting": {"inco.algorithms.fedavg", "inco.types", "inco.shapes"},
    "inco.failure": {"inco.types", "inco.errors"},
    "inco.types": {"inco.flat"},
}

# One import goes up: the worker process is a program of its own, and `main` hands over to config as run.py does.
EXCEPTIONS = {("inco.workers", "inco.config.launch")}

HOMES = {
    "hydra": ("run", "inco.config"),
    "omegaconf": ("run", "inco.config"),
    "wandb": ("inco.tracker",),
    "wandb_workspaces": ("inco.tracker",),
    "torch.distributed": ("inco.engine",),
    "timm": ("inco.models",),
    "safetensors": ("inco.models", "inco.checkpoint", "inco.client_store"),
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
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: write the whole path of an import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> list[tuple[str, str]]:
    """(importing module, imported name) within the house; the package itself gives its version to anyone."""
    found = [(module_of(p), name) for p in [*FILES, ROOT / "run.py"] for name in imported(p) if name.split(".")[0] == "inco"]
    return [(module, name) for module, name in found if module != "inco" and name != "inco.__version__"]


def test_every_part_has_its_row() -> None:
    homeless = {part_of(module_of(p)) for p in FILES} - {"inco"} - set(ROW)
    assert not homeless, f"say in ROWS of this file where {sorted(homeless)} stands"


def test_imports_point_down() -> None:
    upward = []
    for module, name in edges():
        part, other = part_of(module), part_of(name)
        assert other in ROW, f"{module} imports {name}: import from the module that defines it"
        allowed = part == other or ROW[part] < ROW[other]
        if not allowed and not any(module == a and name.startswith(b + ".") for a, b in EXCEPTIONS):
            upward.append(f"{module} (row {ROW[part]}) imports {name} (row {ROW[other]})")
    assert not upward, "\n".join(upward)


def test_neighbours_do_not_know_each_other() -> None:
    told = []
    for module, name in edges():
        known = KNOWS.get(module) or KNOWS.get(part_of(module), set(ROW)) | {part_of(module)}
        if not any(name == k or name.startswith(k + ".") for k in known):
            told.append(f"{module} imports {name}")
    assert not told, "\n".join(told)


def test_lines_of_their_own_are_still_needed() -> None:
    """A module that is gone, or that would do with its package's line, has none; and no line names what its module does not import."""
    everything = edges()
    for module in (m for m in KNOWS if m != part_of(m)):
        names = [name for m, name in everything if m == module]
        allowed = KNOWS[part_of(module)] | {part_of(module)}
        assert any(part_of(name) not in allowed for name in names), f"{module} no longer needs its line: shorten KNOWS"
        idle = [k for k in KNOWS[module] if not any(n == k or n.startswith(k + ".") for n in names)]
        assert not idle, f"{module} does not import {idle}: shorten its line of KNOWS"


def test_exceptions_are_still_needed() -> None:
    for module, name in EXCEPTIONS:
        assert any(m == module and n.startswith(name + ".") for m, n in edges()), f"{module} no longer imports {name}: shorten EXCEPTIONS"


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
        assert tops <= {"torch", "inco", "math", "collections", "dataclasses", "typing", "__future__"}, path


LIGHT = [
    "run",
    "inco",
    "inco.config.cli",
    "inco.config.gpus",
    "inco.config.naming",
    "inco.config.schema",
    "inco.config.validate",
    "inco.workers",
    "inco.progress",
]


@pytest.mark.parametrize("module", LIGHT)
def test_the_command_line_starts_without_torch(module: str) -> None:
    """Help, completion and error messages come at once."""
    heavy = "('torch', 'torchvision', 'timm', 'numpy', 'scipy', 'matplotlib', 'wandb', 'pandas')"
    code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    """At most 300 lines a file and 60 a function."""
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


def test_run_py_is_short() -> None:
    assert len((ROOT / "run.py").read_text().splitlines()) <= 40


@pytest.mark.full
def test_a_run_imports_no_compiler() -> None:
    """torch imports sympy, dynamo and Triton to follow shapes, to count operations and to step an optimizer: 1 s and 130 MB a process."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from support import TINY, simulate; simulate(*TINY, 'transform=inco')\n"
        "print(sorted({'sympy', 'torch._dynamo', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.full
def test_workers_are_on_their_way_before_torch_is_imported(tmp_path: Path) -> None:
    """Importing it takes a second here and in each worker, at the same time."""
    code = (
        "import sys, inco.config.launch as launch\n"
        "def spy(settings, world):\n"
        "    print('torch' in sys.modules, world)\n"
        "    raise KeyboardInterrupt\n"
        "launch.local_workers = spy\n"
        f"sys.argv = ['run.py', 'debug=tiny', 'engine.workers=2', 'hydra.run.dir={tmp_path}']\n"
        "import runpy; runpy.run_path('run.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[:1] == ["False 2"], done.stdout + done.stderr

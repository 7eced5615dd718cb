"""Every built-in model under every instruction set: glibc's heap checker, and every product beside
float64.

python tests/machines/sweep.py [--sets AVX2,AVX512_CORE] [--short]

Each set has a process of its own, in which oneDNN may use no better one (ONEDNN_MAX_CPU_ISA).
glibc's `libc_malloc_debug.so` ends the process where something was written past the end of an
allocation; it is then started again behind the case that it died of. Convolutions, matrix products
and attention, forward and backward, are computed a second time in float64 without oneDNN, from the
same inputs. The exit code is 1 where a case died, or a product is further away than rounding takes
it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402

from inco.doctor.products import FARTHEST, step_distance  # noqa: E402
from inco.fast.bound import BoundModel  # noqa: E402
from inco.machine import INSTRUCTION_SETS, instruction_set  # noqa: E402
from inco.seeding import generator  # noqa: E402
from inco.types import SubModel  # noqa: E402

# and what the processor must have
SETS = {
    "SSE41": "SSE41",
    "AVX": "AVX",
    "AVX2": "AVX2",
    "AVX512_CORE": "AVX512",
    "DEFAULT": "AVX512",
}
SPLITS = ("none", "isolated", "stage", "width", "rolling", "scalefl", "inclusive")


@dataclass(frozen=True)
class Case:
    """One level of a split of a model, and a batch: `model` are overrides, `shape` [C, S, S] of an
    image.
    """

    model: tuple[str, ...]
    split: str
    shape: tuple[int, int, int]
    batch: int
    precision: str


def resnet(widths: str, stem: str = "small", blocks: str = "[1,1,2,2]") -> tuple[str, ...]:
    return (
        "model=resnet_tiny",
        f"model.widths={widths}",
        f"model.stem={stem}",
        f"model.blocks={blocks}",
    )


LEVELS = "split.levels=[[1,1,1,1],[1,1,2,2]]"
VIT = ("model=vit_tiny", "model.dim=24", "model.heads=3", "model.depth=3")
VIT_LEVELS = "split.levels=[[1],[3]]"


def cases(short: bool) -> Iterator[Case]:
    """Yield all cases: widths below and above a register, maps of one pixel to thousands, batches
    of two and of odd sizes.
    """
    widths = (
        ("[2,4,4,8]", "[12,16,20,24]")
        if short
        else ("[1,2,2,2]", "[2,4,4,8]", "[3,5,7,9]", "[12,16,20,24]", "[16,32,64,128]")
    )
    for precision in ("fp32", "bf16"):
        for width in widths:
            for split in SPLITS:
                yield Case(resnet(width), split, (1, 8, 8), 8, precision)
            yield Case(resnet(width, "imagenet"), "stage", (3, 32, 32), 7, precision)
            yield Case(resnet(width), "none", (3, 64, 64), 2, precision)
        for split in ("none", "layer", "width", "inclusive"):
            yield Case(VIT, split, (3, 16, 16), 4, precision)
        for split in ("none", "width", "rolling"):
            yield Case(("model=cnn",), split, (1, 28, 28), 4, precision)
        if short:
            continue
        for batch in (2, 3, 64):
            yield Case(resnet("[2,4,4,8]"), "width", (1, 16, 16), batch, precision)
            yield Case(("model=cnn",), "none", (1, 28, 28), batch, precision)
            yield Case(VIT, "layer", (1, 32, 32), batch, precision)
        yield Case(resnet("[2,4,4,8]", "imagenet"), "width", (3, 224, 224), 2, precision)
        yield Case((*VIT, "model.patch=16"), "none", (3, 16, 16), 4, precision)
        for split in ("stage", "width"):
            yield Case(("model=resnet26",), split, (3, 32, 32), 4, precision)


def levels(case: Case) -> list[SubModel]:
    """Build what the levels of a case's split hold."""
    from support import settings_of

    from inco.config.targets import build

    vit = case.model[0].startswith("model=vit")
    side = [f"model.image_size={case.shape[1]}"] if vit else []
    by_depth = (
        case.split in ("stage", "layer", "isolated", "inclusive")
        and "resnet26" not in case.model[0]
    )
    chosen = [VIT_LEVELS if vit else LEVELS] if by_depth else []
    settings = settings_of(*case.model, f"split={case.split}", *side, *chosen)
    family = build("model", settings["model"], shape=case.shape, num_classes=5)
    split = build("split", settings["split"], family=family)
    return [split.submodel(level, 1) for level in range(len(split.names))]


def distance(sub: SubModel, case: Case) -> float:
    """Return how far the products of a training step are from float64."""
    torch.manual_seed(0)
    bound = BoundModel(sub.build().train(), sub.params.layout, sub.buffers.layout)
    stream = generator(0, "sweep")
    x = torch.randn(case.batch, *case.shape, generator=stream).contiguous(
        memory_format=torch.channels_last
    )
    y = torch.randint(5, (case.batch,), generator=stream)
    return step_distance(
        bound, x, y, case.precision, sub.objective, torch.ones(5, dtype=torch.bool)
    )


def work(first: int, short: bool) -> None:
    """Be the process of one instruction set: take all cases from the `first` on, and print a line
    before and after each.
    """
    torch.set_num_threads(1)
    for number, case in enumerate(cases(short)):
        if number >= first:
            print(json.dumps({"at": number, "case": asdict(case)}), flush=True)
            found = [distance(sub, case) for sub in levels(case)]
            print(
                json.dumps({"done": number, "levels": len(found), case.precision: max(found)}),
                flush=True,
            )


def checked(limit: str) -> dict[str, str]:
    """Return the environment of a process with an instruction set and the heap checker."""
    env = {
        k: v for k, v in os.environ.items() if k not in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    }
    env |= {} if limit == "DEFAULT" else {"ONEDNN_MAX_CPU_ISA": limit}
    return env | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "LD_PRELOAD": "libc_malloc_debug.so.0",
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
    }


@dataclass
class Found:
    """What one instruction set has shown: models tried, cases that the process died of, the
    farthest product by precision.
    """

    limit: str
    tried: int
    died: list[Mapping[str, Any]]
    farthest: dict[str, float]

    def fine(self) -> bool:
        return (
            bool(self.tried)
            and not self.died
            and all(self.farthest[what] < most for what, most in FARTHEST.items())
        )


def look(limit: str, short: bool) -> Found:
    """Run all cases under an instruction set."""
    found, first = Found(limit, 0, [], {}), 0
    command = [sys.executable, str(Path(__file__).resolve()), "--work"]
    while True:
        flags = ["--first", str(first), *(["--short"] if short else [])]
        ended = subprocess.run(
            [*command, *flags], env=checked(limit), capture_output=True, text=True
        )
        lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        for line in (line for line in lines if "done" in line):
            found.tried += line["levels"]
            for precision in FARTHEST.keys() & line.keys():
                found.farthest[precision] = max(found.farthest.get(precision, 0.0), line[precision])
        if ended.returncode == 0:
            return found
        last = lines[-1] if lines else {}
        if "at" not in last or ended.returncode > 0:
            raise RuntimeError(f"the process of {limit} failed at {last}: {ended.stderr[-2000:]}")
        found.died.append(
            {
                **last["case"],
                "signal": -ended.returncode,
                "said": ended.stderr.strip().splitlines()[-1:],
            }
        )
        first = last["at"] + 1


def usable() -> list[str]:
    """Return those of `SETS` that this processor has."""
    best = INSTRUCTION_SETS.index(instruction_set())
    return [
        name
        for name, needed in SETS.items()
        if INSTRUCTION_SETS.index(needed) >= best or name == "DEFAULT"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets", help=f"of {','.join(SETS)}; all that the processor has if not given"
    )
    parser.add_argument("--short", action="store_true", help="the few cases that CI takes")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.first, options.short)
        return 0
    every = [
        look(limit, options.short)
        for limit in (options.sets.split(",") if options.sets else usable())
    ]
    print("instruction set   models   died   farthest product: fp32      bf16")
    for found in every:
        fp32, bf16 = (f"{found.farthest.get(precision, nan):.1e}" for precision in FARTHEST)
        print(f"{found.limit:<15} {found.tried:>8} {len(found.died):>6} {fp32:>24} {bf16:>9}")
        for case in found.died:
            print(f"    died: {case}")
    return 0 if all(found.fine() for found in every) else 1


if __name__ == "__main__":
    sys.exit(main())

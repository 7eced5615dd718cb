"""Random command lines: overrides of every group, right and wrong, drawn from conf/ and the
schemas.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from support import ROOT

from inco.config.signatures import settings_of
from inco.config.validate import GROUPS, OVERLAYS
from inco.config.validate import ROOT as ROOT_SETTINGS

CONF = ROOT / "conf"
NASTY = (
    "", "null", "nan", "inf", "-inf", "-1", "0", "-0.0", "1e309", "1e-400", "9" * 30, "true", "no", "on", "[]", "{}", "[[]]",
    "[1,[2,[3]]]", "{a:1}", "{1:2,3:[4]}", "'quoted'", '"', "'", "${seed}", "${nope}", "${oc.env:HOME}", "${oc.env:NO_SUCH_VARIABLE}",
    "${run_name:}", "${name}", "${split.levels}", "${", "$", "???", "..", "/", "/etc/passwd", "a/b", "a\\b", "a b", " ", "é",
    "\U0001f4a5", "x" * 300, "0x10", "1_000", "1:30", "2024-01-01", "!!python/object/apply:os.system", "1,2", "choice(1,2)", "choice(a)",
    "range(3)", "range(0,1,0)", "interval(0,1)", "glob(*)", "glob(s*)", "shuffle(1,2)", "sort(3,1)", "int(3.5)", "int(x)", "str(3)",
    "json_str({a:1})", "extend_list(1)", "tag(a,1)", "1.5", "[nan]", "[null]", "[true]", "[-1,0]", "[1,1]", "[a,b]", "-", "~", "a=b",
    "a:b", "#", "%", "*", "\t", "\n", "1e3", "+1", "auto", "[0.1,0.2]", "[[1,1,1,1]]", "[[1,2,3,2],[2,2,2,2]]", "[[0.5,1],[1.0,2]]",
    "[1000000000000]", "[0,0,0,0]", "[[a,b]]", "os.system", "inco.errors.InCoError", "inco.config.naming.register", "inco..x", "inco.",
    ".", "torch.nn.Linear", "[layer1]", "False", "None", "(1,2)", "1;2", "1e", "--help",
)  # fmt: skip
HYDRA = (
    "hydra.run.dir=some/where", "hydra.run.dir=/dev/null/x", "hydra.run.dir=", "hydra.run.dir=${seed}", "hydra.run.dir=${nope}",
    "hydra.run.dir=null", "hydra.run.dir=[1]", "hydra.sweep.dir=else", "hydra.sweep.dir=null", "hydra.sweep.subdir=x",
    "hydra.job.chdir=true", "hydra.job.chdir=maybe", "hydra.verbose=true", "hydra.nope=1", "+hydra.nope=1", "hydra=1", "hydra=null",
    "~hydra", "hydra.mode=MULTIRUN", "hydra.mode=x", "hydra/launcher=basic", "hydra/launcher=nope", "hydra/sweeper=nope",
    "hydra/job_logging=default", "hydra/help=nope", "hydra.output_subdir=x", "hydra.searchpath=[file:///nope]",
    "hydra.searchpath=[pkg://nope.nope]", "hydra.searchpath=5", "hydra.job.name=x", "hydra.job.config.x=1", "hydra.run=null",
    "hydra.sweep=5", "hydra.job.env_set.X=1", "hydra.callbacks.a=1", "hydra.job_logging=null",
)  # fmt: skip
FLAGS = (
    ["-m"],
    ["--multirun"],
    ["--nope"],
    ["-cn", "nope"],
    ["--config-dir", "nope"],
    ["--config-dir", "/"],
    ["-c"],
    ["--cfg", "nope"],
    ["-h"],
)


@dataclass(frozen=True)
class Space:
    """What there is to write: options of each group, and each setting with one default of it."""

    options: dict[str, list[str]]
    # by the setting's whole name: what the options that have it set it to
    defaults: dict[str, list[Any]]
    choices: dict[str, list[str]]  # of settings that are one of a few words


@cache
def space() -> Space:
    """Read conf/ and the schemas."""
    options = {
        group: sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        for group in (*GROUPS, *OVERLAYS)
    }
    defaults: dict[str, list[Any]] = {}
    for group in GROUPS:
        for option in options[group]:
            node: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
            for key, value in node.items():
                defaults.setdefault(f"{group}.{key}", []).append(value)
    top: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    defaults |= {key: [top[key]] for key in settings_of(ROOT_SETTINGS) or {} if key != "name"}
    choices: dict[str, list[str]] = {}
    for group in GROUPS:
        for target in targets(group):
            for name, setting in (settings_of(target) or {}).items():
                if setting.rule is not None and setting.rule.text.startswith("one of "):
                    words = setting.rule.text[7:].split(", ")
                    choices.setdefault(f"{group}.{name}", []).extend(words)
    return Space(options, defaults, choices)


def targets(group: str) -> list[str]:
    """Return the classes of a group's options."""
    nodes = map(OmegaConf.load, sorted((CONF / group).glob("*.yaml")))
    return [str(node._target_) for node in nodes if "_target_" in node]


def line(rng: random.Random) -> list[str]:
    """Draw a command line: a few overrides, some of them wrong, and now and then an option of the
    command itself.
    """
    words = [override(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 6)))]
    if rng.random() < 0.08:
        words += rng.choice(FLAGS)
    elif rng.random() < 0.06:
        words.append("-m")
    rng.shuffle(words)
    return words


def override(rng: random.Random) -> str:
    """Draw one override."""
    at = rng.random()
    if at < 0.30:
        return _choice(rng)
    if at < 0.70:
        return _value(rng)
    if at < 0.76:
        return _typo(rng)
    if at < 0.80:
        return rng.choice(HYDRA)
    if at < 0.84:
        return f"{rng.choice(GROUPS)}._target_={rng.choice((*targets(rng.choice(GROUPS)), *NASTY))}"
    if at < 0.94:
        return f"{rng.choice(('+', '++', '~', '~', ''))}{rng.choice((_value, _choice))(rng)}"
    return _broken(rng)


def _choice(rng: random.Random) -> str:
    group = rng.choice((*GROUPS, *OVERLAYS))
    option = rng.choice(space().options[group]) if rng.random() < 0.85 else rng.choice(NASTY)
    return f"{group}={option}"


def _value(rng: random.Random) -> str:
    key = rng.choice(sorted(space().defaults))
    return f"{key}={near(rng, key) if rng.random() < 0.5 else rng.choice(NASTY)}"


def near(rng: random.Random, key: str) -> str:
    """Draw a value of the kind that a setting has: another of its words, a number of about the
    size.
    """
    words = [
        w
        for name, of in space().choices.items()
        if name.split(".")[-1] == key.split(".")[-1]
        for w in of
    ]
    return (
        rng.choice(words)
        if words and rng.random() < 0.9
        else written(_moved(rng, rng.choice(space().defaults[key])))
    )


def _moved(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return rng.random() < 0.5
    if isinstance(value, int):
        return rng.choice(
            (value, value + 1, max(value - 1, 0), value * 2, value // 2, rng.randint(1, 12))
        )
    if isinstance(value, float):
        return rng.choice((value, value * 2, value / 2, rng.random(), 1.0, 0.0, rng.randint(0, 4)))
    if isinstance(value, list):
        moved = [_moved(rng, v) for v in value]
        return rng.choice(
            (
                value,
                moved,
                moved[:-1],
                [*moved, *moved[-1:]],
                sorted(map(str, moved)) if rng.random() < 0.1 else moved,
            )
        )
    return value if value is not None else rng.choice((None, 1, 0.5, "x", [1], [2, 2]))


def written(value: Any) -> str:
    """Write a value as it is typed."""
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _typo(rng: random.Random) -> str:
    key = list(rng.choice([*space().defaults, *GROUPS]))
    at = rng.randrange(len(key))
    key[at : at + 1] = rng.choice(("", key[at] * 2, rng.choice("xyz._/@:0"), "."))
    return f"{''.join(key)}={rng.choice(('1', 'true', 'x', *NASTY))}"


def _broken(rng: random.Random) -> str:
    """Draw something that is hardly an override."""
    whole = _value(rng)
    cut = rng.randrange(len(whole) + 1)
    strange = rng.choice("=,[]{}()'\"$~+@:/.\\ \t#!*%&;|\u00e9\u2028\x00")
    tail = rng.choice((whole[cut:], ""))
    return rng.choice(
        (
            whole[:cut] + strange + tail,
            whole[:cut],
            f"={whole}",
            f"{whole}={whole}",
            rng.choice(NASTY),
            f"{whole}@x",
            f"{whole}\n",
        )
    )

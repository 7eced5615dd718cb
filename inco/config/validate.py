"""One pass over a composed configuration that tells every problem at once: types, ranges, unknown keys, impossible combinations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from inco.config.schema import SCHEMAS, Root
from inco.config.targets import target_problem

GROUPS = (
    "dataset",
    "partition",
    "capacity",
    "model",
    "split",
    "algorithm",
    "transform",
    "local",
    "server",
    "uplink",
    "diagnostics",
    "tracker",
    "engine",
)
OVERLAYS = ("experiment", "debug")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean x?" for the closest known word, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def validate(settings: Mapping[str, Any]) -> list[str]:
    """Return every problem of a configuration (plain Python), in the order of the groups. Empty: it can be built."""
    top = {key: value for key, value in settings.items() if key not in (*GROUPS, *OVERLAYS)}
    problems = _check("", Root, top)
    sound = not problems
    for group in GROUPS:
        node = settings.get(group)
        if not isinstance(node, Mapping) or "_target_" not in node:
            problems.append(f"{group}={node!r}: choose an option of conf/{group}/")
            continue
        found = target_problem(group, node["_target_"])
        schema = SCHEMAS.get(node["_target_"])
        new = [found] if found else _check(group, schema, node) if schema else []
        problems += new
    if sound and not problems:  # rules across groups read checked values
        problems += [text for rule in CROSS_RULES for text in rule(settings)]
    return problems


def _check(group: str, schema: type, node: Mapping[str, Any]) -> list[str]:
    typed = OmegaConf.structured(schema)
    rules = {f.name: f.metadata.get("rule") for f in fields(schema)}
    problems = []
    for key, value in node.items():
        if key == "_target_":
            continue
        place = f"{group}.{key}" if group else str(key)
        if key not in rules:
            known = [f"{group}.{name}" if group else name for name in (*rules, *(() if group else (*GROUPS, *OVERLAYS)))]
            problems.append(f"{place}: no such setting{did_you_mean(place, known)}")
        elif value == "???":
            problems.append(f"{place}: it has no default; give it a value")
        else:
            problems += _check_value(place, typed, key, value, rules[key])
    problems += [f"{group}.{key}: missing" if group else f"{key}: missing" for key in rules if key not in node and key != "name"]
    return problems


def _check_value(place: str, typed: Any, key: str, value: Any, rule: Any) -> list[str]:
    try:
        typed[key] = value
    except OmegaConfBaseException as error:
        expected = f"; use {rule.text}" if rule else ""
        return [f"{place}={value}: {str(error).splitlines()[0]}{expected}"]
    converted = OmegaConf.to_container(typed)[key]  # type: ignore[index, call-overload]
    if rule and not rule.holds(converted):
        return [f"{place}={value}: must be {rule.text}"]
    return []


def _blocks(model: Mapping[str, Any]) -> list[int] | None:
    """Blocks in each group of the global model, where its settings tell."""
    if "blocks" in model:
        return list(model["blocks"])
    return [model["depth"]] if "depth" in model else None


def _split_fits_model(settings: Mapping[str, Any]) -> Iterable[str]:
    levels, most = settings["split"].get("levels"), _blocks(settings["model"])
    if levels is None or most is None:
        return
    groups = "one number of blocks (split=layer)" if len(most) == 1 else f"{len(most)} numbers of blocks, one a stage (split=stage)"
    for level in levels:
        kept = [level] if isinstance(level, int) else list(level)
        if len(kept) != len(most):
            yield f"split.levels has {level}, but the model takes {groups}"
            return
        if any(k > m for k, m in zip(kept, most, strict=True)):
            yield f"split.levels has {level}, but the model has only {most} blocks; list fewer, or use a deeper model"
            return


def _clients_for_each_level(settings: Mapping[str, Any]) -> Iterable[str]:
    levels, clients = settings["split"].get("levels"), settings["num_clients"]
    if levels and settings["capacity"]["_target_"] == "inco.capacity.FiveLevels" and clients < len(levels):
        yield (
            f"num_clients={clients}: the split has {len(levels)} sizes and capacity=five_levels gives each a group of clients; "
            f"use num_clients={len(levels)} or more, or fewer split.levels"
        )


def _vit_patches(settings: Mapping[str, Any]) -> Iterable[str]:
    model = settings["model"]
    size, patch = model.get("image_size"), model.get("patch")
    if size and patch and size % patch:
        fit = max(size // patch, 1) * patch
        yield f"model.image_size={size} with model.patch={patch}: a ViT cuts images into whole patches; use model.image_size={fit}"
    if "heads" in model and model["dim"] % model["heads"]:
        yield f"model.heads={model['heads']} with model.dim={model['dim']}: each head takes dim/heads channels; use a divisor of dim"


def _widths_per_stage(settings: Mapping[str, Any]) -> Iterable[str]:
    model = settings["model"]
    if "widths" in model and len(model["widths"]) != len(model["blocks"]):
        yield f"model.widths={model['widths']} with model.blocks={model['blocks']}: give one of each a stage"


def _weights_to_fetch(settings: Mapping[str, Any]) -> Iterable[str]:
    model = settings["model"]
    if model.get("pretrained") is True and not model.get("timm_name"):
        yield "model.pretrained=true: no weights are published for this model; use false, the path of a file, or model=vit_small"


def _batch_norm_batches(settings: Mapping[str, Any]) -> Iterable[str]:
    if "widths" in settings["model"] and settings["local"].get("batch_size") == 1:
        yield "local.batch_size=1: BatchNorm cannot train on one example; use local.batch_size=2 or more"


def _ablations(settings: Mapping[str, Any]) -> Iterable[str]:
    transform = settings["transform"]
    if transform.get("rule") == "theorem" and not (transform["normalize"] and transform["optimize"]):
        yield "transform.rule=theorem: the ablations change norms and theta, which the theorem has not; use rule=official or algorithm1"
    if transform.get("theta_max") is not None and not transform["optimize"]:
        yield f"transform.theta_max={transform['theta_max']} with transform.optimize=false: theta is 1; leave theta_max=null"


CROSS_RULES: tuple[Callable[[Mapping[str, Any]], Iterable[str]], ...] = (
    _widths_per_stage,
    _split_fits_model,
    _clients_for_each_level,
    _vit_patches,
    _weights_to_fetch,
    _batch_norm_batches,
    _ablations,
)

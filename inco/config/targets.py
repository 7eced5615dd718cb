"""The one place that turns a `_target_` into an object, from an allow-list of modules."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from inco.errors import ConfigError

ALLOWED = ("inco.",)
_EXTRA = "INCO_ALLOW_TARGETS"


def allowed_prefixes() -> tuple[str, ...]:
    """Return the prefixes that a `_target_` may have: ours, and those that the user lists in
    INCO_ALLOW_TARGETS (comma-separated).
    """
    own = (prefix.strip().removesuffix(".") for prefix in os.environ.get(_EXTRA, "").split(","))
    return ALLOWED + tuple(f"{prefix}." for prefix in own if prefix)


def target_problem(group: str, target: Any) -> str | None:
    """Return what is wrong with a `_target_`, or None."""
    allowed = allowed_prefixes()
    if isinstance(target, str) and target.startswith(allowed):
        return None
    package = str(target).split(".")[0]
    return (
        f"{group}._target_={target}: only classes below {', '.join(allowed)} are built; for code of"
        f" your own set the environment variable {_EXTRA}={package}"
    )


def ours(settings: Mapping[str, Any]) -> set[str]:
    """Return the groups whose class is this project's own."""
    return {group for group, node in settings.items() if is_ours(node)}


def is_ours(node: Any) -> bool:
    """Whether a group's settings name a class of this project's own."""
    return isinstance(node, Mapping) and str(node.get("_target_")).startswith(ALLOWED)


def locate(group: str, target: str) -> Any:
    """Return the class that `_target_` names.

    Raises ConfigError where it is not allowed or not there.
    """
    problem = target_problem(group, target)
    if problem:
        raise ConfigError(problem)
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{group}._target_={target}: cannot import it ({error})") from error


def build(group: str, node: Mapping[str, Any], **wiring: Any) -> Any:
    """Build the object of a group from its settings; `wiring` is what other groups give it."""
    made = locate(group, node["_target_"])
    settings = {key: value for key, value in node.items() if key != "_target_"}
    try:
        inspect.signature(made).bind(**settings, **wiring)
    except TypeError as error:
        raise ConfigError(
            f"{group}: {made.__name__} does not take these settings ({error}); see conf/{group}/"
        ) from error
    try:
        return made(**settings, **wiring)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except (RuntimeError, OverflowError, MemoryError) as error:  # a size beyond all bounds
        what = str(error).split("\n")[0]
        raise ConfigError(f"{group}: {made.__name__} cannot be built of these ({what})") from error

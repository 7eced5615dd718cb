"""What `--help` lists of the settings of the chosen options: value, rule and meaning of each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from inco.config.signatures import settings_of
from inco.config.validate import GROUPS, ROOT

_WORDS = {None: "null", True: "true", False: "false"}
_INDENT = " " * 8


def settings_help(*, _root_: DictConfig) -> str:
    """Return a paragraph for each group. `$` is doubled: it goes into a template of Hydra's."""
    parts = ["\n".join(_lines("", _root_, ROOT))]
    for group in GROUPS:
        node = _root_[group]
        parts.append("\n".join(_lines(f"{group}.", node, str(node["_target_"]))))
    return "\n\n".join(part for part in parts if part).replace("$", "$$")


def _lines(prefix: str, node: DictConfig, target: str) -> Iterator[str]:
    for name, setting in (settings_of(target) or {}).items():
        yield f"  {prefix}{name}={_shown(node, name)}"
        rule = f"({setting.rule.text})" if setting.rule else ""
        text = f"{setting.meaning} {rule}".strip()
        yield from textwrap.wrap(text, 100, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _shown(node: DictConfig, name: str) -> Any:
    if OmegaConf.is_interpolation(node, name):
        return OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[index, call-overload]
    value = node.get(name)
    return _WORDS[value] if value is None or isinstance(value, bool) else value

"""What `--help` says of the settings of the chosen options: value, rule and meaning of each."""

from __future__ import annotations

import textwrap
from typing import Any

from omegaconf import DictConfig, OmegaConf

from inco.config.signatures import Settings, settings_of
from inco.config.validate import GROUPS, ROOT

_WIDTH = 100


def settings_help(*, _root_: DictConfig) -> str:
    """Return a paragraph for each group. `$` is doubled: it goes into a template of Hydra's."""
    parts = [_paragraph("", _root_, settings_of(ROOT) or {})]
    for group in GROUPS:
        node = _root_[group]
        parts.append(_paragraph(f"{group}.", node, settings_of(str(node["_target_"])) or {}))
    return "\n\n".join(part for part in parts if part).replace("$", "$$")


def _paragraph(prefix: str, node: DictConfig, settings: Settings) -> str:
    lines = []
    for name, setting in settings.items():
        rule = setting.rule.text if setting.rule else ""
        said = " ".join(part for part in (setting.meaning, f"({rule})" if rule else "") if part)
        lines += [f"  {prefix}{name}={_shown(node, name)}", *_indented(said)]
    return "\n".join(lines)


def _shown(node: DictConfig, name: str) -> Any:
    if OmegaConf.is_interpolation(node, name):
        return OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[index, call-overload]
    value = node.get(name)
    return {None: "null", True: "true", False: "false"}.get(value, value) if _word(value) else value


def _word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)

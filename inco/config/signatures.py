"""The settings of a class, read from its source: nothing is imported for it, torch least of all."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from inco.settings import Setting, read

Settings = Mapping[str, Setting]


@lru_cache(maxsize=256)
def settings_of(target: str) -> Settings | None:
    """Return the settings that the class of a `_target_` takes, by name, in their order.

    None where its source is not found: then its constructor alone knows.
    """
    module, _, name = target.rpartition(".")
    source = _source(module)
    return _of_class(source, name) if source else None


def attribute(target: str, name: str) -> Any:
    """Return a constant that the body of a class assigns; None where it does not."""
    module, _, owner = target.rpartition(".")
    source = _source(module)
    body = _parsed(source).body if source else []
    found = next((n for n in body if isinstance(n, ast.ClassDef) and n.name == owner), None)
    for node in found.body if found else []:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


def _of_class(source: Path, name: str) -> Settings | None:
    tree = _parsed(source)
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if found is None:
        return None
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _of_arguments(node.args)
    if any("dataclass" in ast.unparse(d) for d in found.decorator_list):
        fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
        return {ast.unparse(f.target): _setting(f.annotation, not f.value) for f in fields}
    return _of_base(source, tree, found)


def _setting(annotation: ast.expr | None, required: bool) -> Setting:
    text = ast.unparse(annotation) if annotation else "Any"
    return replace(read(text), required=required)


def _of_arguments(arguments: ast.arguments) -> Settings | None:
    if arguments.kwarg or arguments.vararg:
        return None  # any name will do, as far as can be read
    positional = [*arguments.posonlyargs, *arguments.args][1:]  # without self
    optional = positional[len(positional) - len(arguments.defaults) :]
    return {a.arg: _setting(a.annotation, a not in optional) for a in positional}


def _of_base(source: Path, tree: ast.Module, found: ast.ClassDef) -> Settings | None:
    """Return the settings of the first base that has any: the class has no constructor itself."""
    if not found.bases:
        return {}
    for base in map(ast.unparse, found.bases):
        module, name = _origin(tree, base)
        place = _source(module) if module else source
        settings = _of_class(place, name) if place else None
        if settings is not None:
            return settings
    return None


def _origin(tree: ast.Module, name: str) -> tuple[str, str]:
    """Return the module that a name is imported from, and its name there; "" for this module."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return node.module or "", alias.name
    return "", name


def _source(module: str) -> Path | None:
    """Return the file of a module, found without importing the packages that it lies in."""
    first, *rest = module.split(".")
    spec = PathFinder.find_spec(first)
    for part in rest:
        places = list(spec.submodule_search_locations or ()) if spec else []
        spec = PathFinder.find_spec(part, places)
    place = Path(spec.origin) if spec and spec.origin else None
    return place if place and place.suffix == ".py" else None


@lru_cache(maxsize=64)
def _parsed(source: Path) -> ast.Module:
    return ast.parse(source.read_text())


def forget() -> None:
    """Read sources again: a class of the user's own may have changed since."""
    for cache in (settings_of, structured, _parsed):
        cache.cache_clear()


@lru_cache(maxsize=256)
def structured(target: str) -> type | None:
    """Return the settings of a class as a structured config, for OmegaConf to read values with."""
    settings = settings_of(target)
    if settings is None:
        return None
    fields = []
    for name, setting in settings.items():
        kind = setting.type if _simple(setting.type) else Any  # then its rule alone is checked
        fields.append((name, kind, dataclasses.field(default="???")))
    return dataclasses.make_dataclass(target.rpartition(".")[2], fields)


def _simple(kind: Any) -> bool:
    """Whether OmegaConf can check a type."""
    if kind in (int, float, bool, str, Any):
        return True
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return all(map(_simple, arguments))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = [a for a in arguments if a is not type(None)]
        return len(inner) == 1 < len(arguments) and _simple(inner[0])
    return False

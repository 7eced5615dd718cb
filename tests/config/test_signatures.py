"""Settings read from the source of a class: its own, inherited, a data class's; nothing is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inco.config import signatures
from inco.config.validate import validate
from inco.errors import ConfigError
from inco.settings import above, at_least, many, one_of, satisfied

MINE = """
from __future__ import annotations
raise ImportError("nobody may import this")
from dataclasses import dataclass
from typing import Annotated, Literal
from mine_base import Base as Other
from inco.settings import COUNT, above, checked

class Own(Other):
    @checked("algorithm")
    def __init__(
        self, rate: Annotated[float, above(0), "how fast"], steps: Annotated[int, COUNT] = 2,
        how: Literal["a", "b"] = "a", free=None, strange: Strange = 0, *, family,
    ): ...

class Heir(Own):
    pass

class FarHeir(Other):
    pass

class Anything:
    def __init__(self, **settings): ...

@dataclass
class Data:
    size: Annotated[int, COUNT, "how large"]
    name: str = "x"
"""
BASE = "class Base:\n    def __init__(self, depth: int = 1): ...\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "mine_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('nor this')")
    (package / "own.py").write_text(MINE)
    (tmp_path / "mine_base.py").write_text(BASE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("INCO_ALLOW_TARGETS", "mine_package")
    signatures.forget()
    yield
    signatures.forget()


def told(name: str) -> Any:
    return signatures.settings_of(f"mine_package.own.{name}")


def test_types_rules_meanings_and_what_must_be_given(mine: None) -> None:
    own = told("Own")
    assert list(own) == ["rate", "steps", "how", "free", "strange"]
    assert (own["rate"].type, own["rate"].rule.text, own["rate"].meaning) == (
        float,
        "above 0",
        "how fast",
    )
    assert [name for name, setting in own.items() if setting.required] == ["rate"]
    assert (own["how"].type, own["how"].rule.text) == (str, "one of a, b")
    assert own["free"].type is own["strange"].type is Any
    assert "mine_package" not in sys.modules


def test_inheritance_data_classes_and_what_cannot_be_read(mine: None) -> None:
    assert list(told("Heir")) == list(told("Own"))
    assert list(told("FarHeir")) == ["depth"]
    assert told("Anything") is None and told("Nothing") is None
    assert signatures.settings_of("nowhere.at.All") is None
    assert [(n, s.required) for n, s in told("Data").items()] == [("size", True), ("name", False)]


def test_a_users_class_is_checked_like_any_other(mine: None) -> None:
    from support import settings_of

    settings = settings_of()
    settings["algorithm"] = {"_target_": "mine_package.own.Own", "rate": -1, "stepz": 3}
    assert validate(settings) == [
        "algorithm.rate=-1: must be above 0",
        "algorithm.stepz: no such setting; did you mean algorithm.steps?",
    ]
    settings["algorithm"] = {"_target_": "mine_package.own.Own", "steps": 1.5, "how": "c"}
    first, second, third = validate(settings)
    assert first.startswith("algorithm.steps=1.5: ") and "a whole number of at least 1" in first
    assert second == "algorithm.how=c: must be one of a, b"
    assert third == "algorithm.rate: missing"


def test_a_constructor_tells_all_its_problems() -> None:
    namespace: dict[str, Any] = {}
    code = (
        "from __future__ import annotations\n"
        "from typing import Annotated\n"
        "from inco.settings import above, checked, many\n"
        "class Own:\n"
        "    @checked('group')\n"
        "    def __init__(self, a: Annotated[float, above(0)], b: Annotated[list[int], many(above(1))]):\n"
        "        self.a = a\n"
    )
    exec(code, namespace)
    assert namespace["Own"](0.5, b=[2]).a == 0.5
    with pytest.raises(ConfigError) as error:
        namespace["Own"](0, [1])
    assert error.value.problems == [
        "group.a=0: must be above 0",
        "group.b=[1]: must be a list, each above 1",
    ]
    with pytest.raises(TypeError):
        namespace["Own"](0.5)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (at_least(1), [1, 1.5], [0.9, True, float("nan"), float("inf"), None, "1", []]),
        (many(above(0), 2), [[1, 2], (1, 2)], [[], [1], [1, 0], 5, None]),
        (one_of("a"), ["a"], ["b", None, ["a"]]),
    ],
)
def test_rules_take_anything(rule: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(satisfied(rule, value) for value in good)
    assert not any(satisfied(rule, value) for value in bad)

"""HTML that is safe by construction: text is escaped unless it was made by `tag` or `assets`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

_VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


class Html(str):
    """Text that is HTML already. Every other text is escaped when it comes into a page."""

    __slots__ = ()


Child = Html | str | int | float | None | Iterable[Any]


def html(*children: Child) -> Html:
    """Return children one after the other: text escaped, HTML as it is, None left out."""
    return Html("".join(_one(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """Return an element.

    `class_` and `for_` lose their underscore, others become dashes; None and False leave an
    attribute out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{escape(str(value))}"')
    return Html(
        f"<{' '.join(words)}>"
        if name in _VOID
        else f"<{' '.join(words)}>{html(*children)}</{name}>"
    )


def _one(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return escape(child)
    return "".join(map(_one, child)) if isinstance(child, Iterable) else escape(str(child))

"""HTML that is safe by construction: text is escaped unless `tag` made it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

_VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


class Html(str):
    """Text that is HTML already; any other text is escaped when it comes into a page."""

    __slots__ = ()


def html(*children: Any) -> Html:
    """Join children (nested iterables too): text escaped, HTML as it is, None left out."""
    return Html("".join(_one(child) for child in children))


def tag(name: str, /, *children: Any, **attributes: object) -> Html:
    """Return an element.

    `class_` and `for_` lose their underscore, others become dashes; None and False leave an
    attribute out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in _VOID else f"{start}{html(*children)}</{name}>")


def _one(child: Any) -> str:
    if child is None or isinstance(child, Html):
        return child or ""
    if isinstance(child, Iterable) and not isinstance(child, str):
        return html(*child)
    return escape(str(child))

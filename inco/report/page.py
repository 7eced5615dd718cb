"""The frame of a page: one self-contained file whose policy forbids every request and every script
but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from inco.report.markup import Html, html, tag
from inco.report.text import setting

_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("uPlot.min.css", "page.css", "figures.css")
_SCRIPTS = (
    "uPlot.iife.min.js",
    "base.js",
    "curves.js",
    "maps.js",
    "histograms.js",
    "tables.js",
    "start.js",
)
HINT = "Hover over a curve for its values; drag to zoom, double-click to reset."
_WITHOUT = (
    "This page draws its curves and maps with JavaScript, which is off. The tables below have the"
    " final numbers."
)


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8").strip()


@cache
def _joined(names: tuple[str, ...]) -> tuple[Html, str]:
    """Return files as one text, and the hash by which a policy allows it."""
    text = "\n".join(map(_asset, names))
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Html(text), f"'sha256-{digest}'"


def as_json(data: Any) -> Html:
    """Return data as JSON that cannot end the element it stands in."""
    return Html(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def document(title: str, body: Iterable[Html], data: Mapping[str, Any], live: bool = False) -> str:
    """Return a whole page. `data`: what its figures are drawn from; `live`: it reloads itself."""
    (style, style_hash) = _joined(_STYLES)
    (script, script_hash) = _joined(_SCRIPTS)
    policy = (
        f"default-src 'none'; script-src {script_hash}; style-src {style_hash}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("noscript", tag("meta", http_equiv="refresh", content="15")) if live else None,
        tag("style", style),
    )
    notice = Html(
        "<!-- The curves are drawn by uPlot 1.6.32, which is included"
        f" below.\n{_asset('uPlot.LICENSE.txt')}\n-->"
    )
    ends = (
        tag("script", as_json({**data, "live": live}), type="application/json", id="data"),
        notice,
        tag("script", script),
    )
    page = tag("body", tag("noscript", tag("p", _WITHOUT, class_="notice")), *body, *ends)
    return html(Html("<!doctype html>\n"), tag("html", head, "\n", page, lang="en"), "\n")


class Section(NamedTuple):
    """A part of a page that its contents name."""

    name: str
    title: str
    html: Html


def section(name: str, title: str, *content: Any, lead: str = "") -> Section | None:
    """Return a section with a heading and a sentence about what it shows; None where it has no
    content.
    """
    inside = html(*content)
    if not inside:
        return None
    head = tag("h2", title, id=f"{name}-title")
    told = tag("p", lead, class_="lead") if lead else None
    whole = tag("section", head, told, inside, id=name, aria_labelledby=f"{name}-title")
    return Section(name, title, whole)


def sections(parts: Iterable[Section | None]) -> Html:
    """Return the sections that there are, after links to them."""
    there = [part for part in parts if part]
    links = tag("nav", (tag("a", p.title, href=f"#{p.name}") for p in there), aria_label="Sections")
    return html(links, tag("main", (part.html for part in there)))


def table(
    caption: str,
    heads: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    sortable: bool = False,
    name: str = "",
    words: Container[int] = (0,),
    foot: bool = False,
) -> Html:
    """Return a table in a box that scrolls sideways by itself. A cell is text, HTML, or (text,
    number to sort by).

    The first column heads its row; those of `words` are set left, others right, as numbers. `foot`:
    the last row sums up the others.
    """
    top = []
    order = "none" if sortable else None
    for k, head in enumerate(heads):
        inside = tag("button", head, type="button") if sortable else head
        kind = "n" if k not in words else None
        top.append(tag("th", inside, scope="col", class_=kind, aria_sort=order))
    lines = [
        tag("tr", *(_cell(k, cell, k not in words) for k, cell in enumerate(row))) for row in rows
    ]
    ends = tag("tfoot", lines.pop()) if foot else None
    parts = (
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", top)),
        tag("tbody", lines),
        ends,
    )
    inside = tag("table", *parts, data_sortable=sortable, id=name or None)
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def folded(
    name: str, summary: str, caption: str, told: Mapping[str, Any], head: str = "setting"
) -> Html | None:
    """Return settings, or other named values, as a table that opens on a click; None for none."""
    rows = [[key, tag("code", setting(value))] for key, value in told.items()]
    whole = table(caption, (head, "value"), rows, words=range(2))
    return tag("details", tag("summary", summary), whole, id=name) if rows else None


def _cell(column: int, cell: Any, number: bool) -> Html:
    text, value = cell if isinstance(cell, tuple) else (cell, None)
    name, scope = ("td", None) if column else ("th", "row")
    return tag(name, text, scope=scope, class_="n" if number else None, data_value=value)

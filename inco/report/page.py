"""The frame of a page: one file that requests nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from inco.report.markup import Html, html, tag
from inco.report.text import setting

_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("uPlot.min.css", "page.css", "figures.css")
_FIGURES = ("curves.js", "maps.js", "histograms.js")
_SCRIPTS = ("uPlot.iife.min.js", "base.js", *_FIGURES, "tables.js", "start.js")
HINT = "Hover over a curve for its values; drag to zoom, double-click to reset."
_REFRESH = '<noscript><meta http-equiv="refresh" content="15"></noscript>'


@cache
def _assets(*names: str) -> tuple[str, str]:
    """Return files as one text, and the hash by which a policy allows it."""
    text = "\n".join((_ASSETS / name).read_text(encoding="utf-8").strip() for name in names)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return text, f"'sha256-{digest}'"


def document(title: str, body: Iterable[Html], data: Mapping[str, Any], live: bool = False) -> str:
    """Return a whole page. `data`: what its figures are drawn from; `live`: it reloads itself."""
    style, style_hash = _assets(*_STYLES)
    script, script_hash = _assets(*_SCRIPTS)
    values = json.dumps({**data, "live": live}, separators=(",", ":"), allow_nan=False)
    return Template(_assets("page.html")[0]).substitute(
        title=html(title),
        body=html(body),
        data=values.replace("<", "\\u003c"),  # a text in it cannot end the element
        refresh=_REFRESH if live else "",
        license=_assets("uPlot.LICENSE.txt")[0],
        style=style,
        style_hash=style_hash,
        script=script,
        script_hash=script_hash,
    )


class Section(NamedTuple):
    name: str
    title: str
    html: Html


def section(name: str, title: str, *content: Any, lead: str = "") -> Section | None:
    """Return a section with a heading and a `lead` about what it shows; None without content."""
    inside = html(*content)
    if not inside:
        return None
    head = tag("h2", title, id=f"{name}-title")
    above = tag("p", lead, class_="lead") if lead else None
    whole = tag("section", head, above, inside, id=name, aria_labelledby=f"{name}-title")
    return Section(name, title, whole)


def sections(parts: Iterable[Section | None]) -> Html:
    """Return the sections that have content, after links to them."""
    there = [part for part in parts if part]
    links = tag("nav", (tag("a", p.title, href=f"#{p.name}") for p in there), aria_label="Sections")
    return html(links, tag("main", (part.html for part in there)))


def table(
    caption: str,
    heads: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    name: str = "",
    words: Container[int] = (0,),
    foot: bool = False,
) -> Html:
    """Return a table; a cell is text, HTML, or a tuple of either and the number to sort by.

    `name`: the id of a table that sorts; columns of `words` are aligned left, others right; `foot`:
    the last row sums up the others.
    """
    top = []
    order = "none" if name else None
    for k, head in enumerate(heads):
        inside = tag("button", head, type="button") if name else head
        kind = None if k in words else "n"
        top.append(tag("th", inside, scope="col", class_=kind, aria_sort=order))
    lines = [tag("tr", (_cell(k, cell, k in words) for k, cell in enumerate(row))) for row in rows]
    ends = tag("tfoot", lines.pop()) if foot else None
    above = (tag("caption", tag("span", caption)), tag("thead", tag("tr", top)))
    body = tag("tbody", lines)
    inside = tag("table", above, body, ends, data_sortable=bool(name), id=name or None)
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def folded(
    name: str, summary: str, caption: str, values: Mapping[str, Any], head: str = "setting"
) -> Html | None:
    """Return named values as a table that opens on a click; None where there are none."""
    rows = [[key, tag("code", setting(value))] for key, value in values.items()]
    whole = table(caption, (head, "value"), rows, words=range(2))
    return tag("details", tag("summary", summary), whole, id=name) if rows else None


def _cell(column: int, cell: Any, words: bool) -> Html:
    text, value = cell if isinstance(cell, tuple) else (cell, None)
    kind = None if words else "n"
    if column:
        return tag("td", text, class_=kind, data_value=value)
    return tag("th", text, scope="row", class_=kind, data_value=value)

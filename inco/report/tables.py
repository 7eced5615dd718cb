"""One table, four ways to write it: HTML, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from inco.records.groups import Spread
from inco.report import page
from inco.report.markup import Html, tag
from inco.report.text import MISSING

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_LATEX_NAMES = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum"}
_LATEX_NAMES |= {"<": "textless", ">": "textgreater"}
LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "{}$&%#_"}
    | {sign: rf"\{name}{{}}" for sign, name in _LATEX_NAMES.items()}
    | {MISSING: "--", PLUS_MINUS: r"$\pm$"}
)
MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\|*_`"} | {"<": "&lt;", ">": "&gt;"})


class Number(NamedTuple):
    """A number as text, and what to sort by."""

    text: str
    value: float | None

    @classmethod
    def of(cls, value: float | None, write: Callable[[Any], str] = str) -> Number:
        return cls(MISSING if value is None else write(value), value)


@dataclass
class Table:
    """Rows of text, spreads and numbers.

    `signed`: the spreads are gains; `best`: columns whose largest mean is bold.
    """

    caption: str
    heads: list[str]
    rows: list[list[Any]]
    signed: bool = False
    best: range = range(0)

    @property
    def words(self) -> set[int]:
        """Return the columns without numbers, which are aligned left."""
        columns = enumerate(zip(*self.rows, strict=True)) if self.rows else ()
        numeric = {k for k, c in columns if any(isinstance(x, Spread | Number) for x in c)}
        return set(range(len(self.heads))) - numeric

    def _is_best(self, row: int, column: int) -> bool:
        if column not in self.best or len(self.rows) < 2:
            return False
        means = [line[column].mean for line in self.rows]
        return means[row] is not None and means[row] == max(m for m in means if m is not None)

    def _written(self, write: Callable[[Any, bool, bool], Any]) -> list[list[Any]]:
        return [
            [write(cell, self.signed, self._is_best(i, j)) for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]

    def html(self, name: str) -> Html:
        """Return it as a table that sorts."""
        rows = self._written(_html)
        return page.table(self.caption, self.heads, rows, name=name, words=self.words)

    def markdown(self) -> str:
        head = [_markdown(text, False, False) for text in self.heads]
        rule = ["---" if k in self.words else "---:" for k in range(len(self.heads))]
        lines = [head, rule, *self._written(_markdown)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def latex(self) -> str:
        """Return it as a tabular with the rules of booktabs."""
        kinds = "".join("l" if k in self.words else "r" for k in range(len(self.heads)))
        lines = [
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            " & ".join(h.translate(LATEX) for h in self.heads) + r" \\",
            r"\midrule",
            *(" & ".join(cells) + r" \\" for cells in self._written(_latex)),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV with all digits; a missing number is an empty field."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plus_minus(cell: Spread, sign: str = PLUS_MINUS, digits: int = 2, signed: bool = False) -> str:
    """Write a mean and its standard deviation, if it has one."""
    if cell.mean is None:
        return MISSING
    mean = f"{cell.mean:{'+' if signed else ''}.{digits}f}"
    return mean if cell.sd is None else f"{mean} {sign} {cell.sd:.{digits}f}"


def _html(cell: Any, signed: bool, best: bool) -> Any:
    if not isinstance(cell, Spread):
        return cell
    text = plus_minus(cell, signed=signed)
    return Number(tag("b", text) if best else text, cell.mean)


def _markdown(cell: Any, signed: bool, best: bool) -> str:
    if isinstance(cell, Spread):
        text = plus_minus(cell, signed=signed)
        return f"**{text}**" if best else text
    return _text(cell).translate(MARKDOWN).replace("\n", " ")


def _latex(cell: Any, signed: bool, best: bool) -> str:
    if isinstance(cell, Spread) and cell.mean is not None:
        text = plus_minus(cell, r"\pm", 1, signed)
        return rf"$\mathbf{{{text}}}$" if best else f"${text}$"
    return _text(cell).translate(LATEX)


def _text(cell: Any) -> str:
    if isinstance(cell, Spread):
        return plus_minus(cell)
    return cell.text if isinstance(cell, Number) else str(cell)

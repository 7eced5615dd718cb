"""One table, four ways to write it: HTML, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from inco.records.groups import Spread
from inco.report import page
from inco.report.markup import Html, tag
from inco.report.text import MISSING

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    MISSING: "--",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
}
_MARKDOWN = {
    "\\": "\\\\",
    "|": "\\|",
    "*": "\\*",
    "_": "\\_",
    "`": "\\`",
    "<": "&lt;",
    ">": "&gt;",
    "\n": " ",
}


class Number(NamedTuple):
    """A number as text, and what to sort by."""

    value: float | None
    text: str

    @classmethod
    def of(cls, value: int) -> Number:
        return cls(value, str(value))


@dataclass
class Table:
    """Rows of text, spreads and numbers.

    `signed`: the spreads are gains; `best`: columns whose largest mean is bold.
    """

    caption: str
    heads: list[str]
    rows: list[list[Any]]
    signed: bool = False
    best: set[int] = field(default_factory=set)

    @property
    def words(self) -> set[int]:
        """The columns that hold words; numbers stand right."""
        return {
            k
            for k in range(len(self.heads))
            if not any(isinstance(row[k], Spread | Number) for row in self.rows)
        }

    def is_best(self, row: int, column: int) -> bool:
        """Say whether a mean is the largest of its column, where the column is one to be large
        in.
        """
        if column not in self.best or len(self.rows) < 2:
            return False
        means = [line[column].mean for line in self.rows]
        return means[row] is not None and means[row] == max(m for m in means if m is not None)

    def _written(self, write: Callable[[Any, bool, bool], Any]) -> list[list[Any]]:
        """Return the cells as a format writes them."""
        return [
            [write(cell, self.signed, self.is_best(i, j)) for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]

    def html(self, name: str) -> Html:
        """Return it as a table that sorts."""
        rows = self._written(_html)
        return page.table(
            self.caption, self.heads, rows, sortable=True, name=name, words=self.words
        )

    def markdown(self) -> str:
        """Return it for a README or a comment."""
        head = [translated(h, _MARKDOWN) for h in self.heads]
        marks = ["---" if k in self.words else "---:" for k in range(len(self.heads))]
        lines = [head, marks, *self._written(_markdown)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def latex(self) -> str:
        """Return it as a tabular with the rules of booktabs."""
        head = " & ".join(translated(h, _LATEX) for h in self.heads)
        body = [" & ".join(cells) + r" \\" for cells in self._written(_latex)]
        kinds = "".join("l" if k in self.words else "r" for k in range(len(self.heads)))
        rules = [
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(rules) + "\n"


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV with all digits; a missing number is an empty field."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def translated(text: str, signs: dict[str, str]) -> str:
    """Return a text with the signs that a format gives a meaning to written so that they have
    none.
    """
    return "".join(signs.get(sign, sign) for sign in text)


def as_markdown(text: str) -> str:
    """Return a text with the signs that Markdown gives a meaning to written so that they have none,
    but line ends.
    """
    return "\n".join(translated(line, _MARKDOWN) for line in text.split("\n"))


def plus_minus(cell: Spread, sign: str, digits: int = 2, signed: bool = False) -> str:
    """Write a mean and its standard deviation, if it has one."""
    if cell.mean is None:
        return MISSING
    mean = f"{cell.mean:{'+' if signed else ''}.{digits}f}"
    return mean if cell.sd is None else f"{mean} {sign} {cell.sd:.{digits}f}"


def _html(cell: Any, signed: bool, best: bool) -> Any:
    if isinstance(cell, Spread):
        text = plus_minus(cell, "\N{PLUS-MINUS SIGN}", signed=signed)
        return (tag("b", text) if best else text, cell.mean)
    return (cell.text, cell.value) if isinstance(cell, Number) else cell


def _markdown(cell: Any, signed: bool, best: bool) -> str:
    if isinstance(cell, Spread):
        text = plus_minus(cell, "\N{PLUS-MINUS SIGN}", signed=signed)
        return f"**{text}**" if best else text
    return translated(cell.text if isinstance(cell, Number) else str(cell), _MARKDOWN)


def _latex(cell: Any, signed: bool, best: bool) -> str:
    if isinstance(cell, Spread) and cell.mean is not None:
        text = plus_minus(cell, r"\pm", 1, signed)
        return rf"$\mathbf{{{text}}}$" if best else f"${text}$"
    if isinstance(cell, Spread):
        return _LATEX[MISSING]
    return translated(cell.text if isinstance(cell, Number) else str(cell), _LATEX)


def joined(parts: Iterable[Any]) -> str:
    """Return parts with commas between them."""
    return ", ".join(map(str, parts))

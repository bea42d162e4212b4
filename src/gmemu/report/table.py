# SPDX-License-Identifier: GPL-2.0-or-later
"""Text in columns that stays readable in a narrow terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import wrap

from .style import Style

__all__ = ["paragraph", "table"]

_GAP = "  "
_LEAST = 30
"""Columns that the last cell must have; with less it goes on a line of its own."""
_INDENT = "    "

Painter = Callable[[str], str]


def table(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str] = (),
    *,
    style: Style,
    right: Sequence[int] = (),
    paint: dict[int, Painter] | None = None,
) -> str:
    """`rows` under `headings`, one line each where that fits `style.width`; else the last cell is wrapped.

    Columns in `right` are aligned to the right.  `paint` colours a column's cells.  The result ends with a newline, unless
    there are no rows.
    """
    if not rows:
        return ""
    lines = [tuple(headings), *(tuple(row) for row in rows)] if headings else [tuple(row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    used = sum(widths) + len(_GAP) * len(widths)
    room = style.width - used
    stacked = bool(widths) and room < min(_LEAST, max(len(line[-1]) for line in lines))
    out: list[str] = []
    if stacked and headings:
        del lines[0]
        headings = ()
    for number, line in enumerate(lines):
        painters = dict.fromkeys(range(len(line)), style.bold) if headings and not number else paint or {}
        cells = [
            _cell(text, width, i in right, painters.get(i))
            for i, (text, width) in enumerate(zip(line, widths, strict=False))
        ]
        last = painters.get(len(line) - 1, str)
        if stacked:
            out.append(_GAP.join(cells).rstrip())
            out += [_INDENT + last(part) for part in wrap(line[-1], max(style.width - len(_INDENT), 10))]
        else:
            first, *more = wrap(line[-1], max(room, 1)) or [""]
            if len(line) - 1 in right and not more:
                first = first.rjust(max(len(other[-1]) for other in lines))
            out.append((_GAP.join([*cells, last(first)])).rstrip())
            out += [" " * used + last(part) for part in more]
    return "\n".join(out) + "\n"


def paragraph(text: str, style: Style, indent: str = "") -> str:
    """`text` wrapped to the width, each line after `indent`.  Ends with a newline."""
    lines = wrap(text, max(style.width - len(indent), 10), break_long_words=False, break_on_hyphens=False)
    return "".join(f"{indent}{line}\n" for line in lines)


def _cell(text: str, width: int, right: bool, painter: Painter | None) -> str:
    padded = text.rjust(width) if right else text.ljust(width)
    return painter(padded) if painter else padded

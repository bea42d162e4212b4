# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables at several widths."""

from __future__ import annotations

from gmemu.report.style import Style
from gmemu.report.table import paragraph, table

ROWS = [("one", "1", "a short cell"), ("a longer name", "23", "a cell that has quite a number of words in it, and more")]


def test_wide() -> None:
    assert table(ROWS, ("name", "n", "what"), style=Style(), right=(1,)) == (
        "name            n  what\n"
        "one             1  a short cell\n"
        "a longer name  23  a cell that has quite a number of words in it, and more\n"
    )


def test_the_last_cell_is_wrapped() -> None:
    assert table(ROWS, style=Style(width=50)) == (
        "one            1   a short cell\n"
        "a longer name  23  a cell that has quite a number\n"
        "                   of words in it, and more\n"
    )


def test_in_a_narrow_terminal_it_stands_below() -> None:
    assert table(ROWS, ("name", "n", "what"), style=Style(width=30)) == (
        "one            1\n"
        "    a short cell\n"
        "a longer name  23\n"
        "    a cell that has quite a\n"
        "    number of words in it, and\n"
        "    more\n"
    )


def test_numbers_in_the_last_column() -> None:
    assert table([("a", "1"), ("b", "100")], ("", "n"), style=Style(), right=(1,)) == "     n\na    1\nb  100\n"


def test_nothing() -> None:
    assert table([], ("a", "b"), style=Style()) == ""


def test_colour_goes_around_padded_cells() -> None:
    text = table([("a", "x"), ("bb", "y")], ("", "n"), style=Style(colour=True), paint={0: Style(colour=True).red})
    assert text == "    \x1b[1mn\x1b[0m\n\x1b[31ma \x1b[0m  x\n\x1b[31mbb\x1b[0m  y\n"


def test_paragraph() -> None:
    assert paragraph("several words here", Style(width=14), "  ") == "  several\n  words here\n"
    assert paragraph("0x" + "f" * 40, Style(width=20)) == "0x" + "f" * 40 + "\n"

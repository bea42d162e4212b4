# SPDX-License-Identifier: GPL-2.0-or-later
"""Colour and width, by stream and environment."""

from __future__ import annotations

import io

import pytest

from gmemu.report.style import DEFAULT_WIDTH, Style


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "NO_COLOR", "TERM", "COLUMNS":
        monkeypatch.delenv(name, raising=False)


def test_a_terminal_has_colour() -> None:
    style = Style.of(Terminal())
    assert style.colour
    assert style.red("x") == "\x1b[31mx\x1b[0m"
    assert style.bold("  ") == "  "


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_unless_it_mustnt(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    style = Style.of(Terminal())
    assert [f("x") for f in (style.bold, style.dim, style.red, style.green, style.yellow)] == ["x"] * 5


def test_an_empty_no_color_doesnt_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert Style.of(Terminal()).colour


def test_what_is_no_terminal_has_none() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in io.StringIO(), closed, None:
        assert not Style.of(stream).colour
        assert Style.of(stream).width == DEFAULT_WIDTH


@pytest.mark.parametrize(("columns", "width"), [("72", 72), ("3", 20), ("wide", DEFAULT_WIDTH)])
def test_columns(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert Style.of(io.StringIO()).width == width

# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress bar, by a clock of the test's own."""

from __future__ import annotations

import io

import pytest

from gmemu.report.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_in_the_first_second() -> None:
    stream, clock = Terminal(), Clock()
    with Progress("measuring", stream, clock) as progress:
        clock.now += 0.9
        progress(1, 10)
    assert stream.getvalue() == ""


def test_drawn_and_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream, clock = Terminal(), Clock()
    with Progress("measuring", stream, clock) as progress:
        clock.now += 1.0
        progress(512, 1024)
        clock.now += 0.05
        progress(600, 1024)
        clock.now += 0.05
        progress(1024, 1024)
        progress(1, 0)
    assert stream.getvalue() == (
        "\rmeasuring [############............]  50 %  512 of 1,024 pages\x1b[K"
        "\rmeasuring [########################] 100 %  1,024 of 1,024 pages\x1b[K"
        "\r\x1b[K"
    )


def test_a_narrow_terminal() -> None:
    assert Progress("measuring", Terminal()).line(1, 4, 30) == " 25 %"


def test_nobody_looks() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("measuring", stream, clock) as progress:
        clock.now += 60
        progress(1, 2)
    assert stream.getvalue() == ""


def test_a_note_is_worth_more_than_the_bar() -> None:
    progress = Progress("exploring", Terminal(), Clock(), unit="searches")
    wide = progress.line(3, 40, 120, "pin: 7 schedules")
    assert wide.startswith("exploring [")
    assert wide.endswith("3 of 40 searches  pin: 7 schedules")
    assert progress.line(3, 40, 40, "pin: 7 schedules") == "4/40 pin: 7 schedules"
    assert progress.line(3, 40, 10, "pin: 7 schedules") == "  7 %"

# SPDX-License-Identifier: GPL-2.0-or-later
"""A progress bar on standard error, for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Self

from .style import Style, is_terminal

__all__ = ["Progress"]

APPEARS_AFTER = 1.0
REDRAWN_EVERY = 0.1
"""Seconds."""
_BAR = 24


class Progress:
    """Call it with how much is done, of how much, and perhaps what else is to be told.

    Nothing is drawn in the first second, or where no one looks.

    Use it in a ``with`` statement: the line is wiped at the end.
    """

    def __init__(
        self, what: str, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic, unit: str = "pages"
    ) -> None:
        self.what, self.stream, self.clock, self.unit = what, stream or sys.stderr, clock, unit
        self._next = clock() + APPEARS_AFTER if is_terminal(self.stream) else float("inf")
        self._drawn = False

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = self.clock()
        if now < self._next or total <= 0:
            return
        self._next, self._drawn = now + REDRAWN_EVERY, True
        self.stream.write("\r" + self.line(done, total, Style.of(self.stream).width, note) + "\x1b[K")
        self.stream.flush()

    def line(self, done: int, total: int, width: int, note: str = "") -> str:
        """What is drawn, in at most `width` - 1 columns; the note, if there is one, is worth more than the bar."""
        filled = _BAR * done // total
        bar = f"[{'#' * filled}{'.' * (_BAR - filled)}] "
        numbers = f"{100 * done // total:3d} %  {done:,} of {total:,} {self.unit}"
        full = f"{self.what} {bar}{numbers}"
        shorter = [f"{full}  {note}", f"{done + 1}/{total} {note}"] if note else []
        return next((line for line in (*shorter, full) if len(line) < width), f"{100 * done // total:3d} %")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

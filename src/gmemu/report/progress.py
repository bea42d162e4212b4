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
    """Call it with how much is done, and of how much.  Nothing is drawn in the first second, or where no one looks.

    Use it in a ``with`` statement: the line is wiped at the end.
    """

    def __init__(self, what: str, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.stream, self.clock = what, stream or sys.stderr, clock
        self._next = clock() + APPEARS_AFTER if is_terminal(self.stream) else float("inf")
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        now = self.clock()
        if now < self._next or total <= 0:
            return
        self._next, self._drawn = now + REDRAWN_EVERY, True
        self.stream.write("\r" + self.line(done, total, Style.of(self.stream).width) + "\x1b[K")
        self.stream.flush()

    def line(self, done: int, total: int, width: int) -> str:
        """What is drawn, in at most `width` - 1 columns."""
        filled = _BAR * done // total
        bar = f"[{'#' * filled}{'.' * (_BAR - filled)}] "
        numbers = f"{100 * done // total:3d} %  {done:,} of {total:,} pages"
        full = f"{self.what} {bar}{numbers}"
        return full if len(full) < width else f"{100 * done // total:3d} %"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

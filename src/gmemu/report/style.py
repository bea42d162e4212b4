# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether to use colour, and how wide a line may be."""

from __future__ import annotations

import os
from typing import IO

__all__ = ["DEFAULT_WIDTH", "Style"]

DEFAULT_WIDTH = 100
"""Columns, where there is no terminal to ask."""


class Style:
    """How text is to look.  Without `colour` every method returns what it's given; `width` is in columns."""

    def __init__(self, *, colour: bool = False, width: int = DEFAULT_WIDTH) -> None:
        self.colour, self.width = colour, width

    @classmethod
    def of(cls, stream: IO[str] | None) -> Style:
        """The style for `stream`: colour on a terminal, unless NO_COLOR is set (https://no-color.org) or TERM is dumb."""
        tty = is_terminal(stream)
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return cls(colour=tty and not plain, width=max(_columns(stream), 20))

    def bold(self, text: str) -> str:
        """Headings, and what was asked for."""
        return self._with("1", text)

    def dim(self, text: str) -> str:
        """What may be skipped."""
        return self._with("2", text)

    def red(self, text: str) -> str:
        """Refused, or missing."""
        return self._with("31", text)

    def green(self, text: str) -> str:
        """Present, or right."""
        return self._with("32", text)

    def yellow(self, text: str) -> str:
        """To be taken note of: that it's simulated."""
        return self._with("33", text)

    def _with(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text.strip() else text


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether `stream` is open and a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _columns(stream: IO[str] | None) -> int:
    """How wide the terminal is, or COLUMNS if that is set.  (shutil knows too, but is slow to import.)"""
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH if stream is not None else DEFAULT_WIDTH
    except (OSError, ValueError):
        return DEFAULT_WIDTH

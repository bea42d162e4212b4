# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command hands back, and the codes that it exits with."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..report.style import Style

__all__ = ["ExitCode", "Outcome", "UsageError"]


class ExitCode(IntEnum):
    """What `gmemu` exits with."""

    PASS = 0
    MISMATCH = 1
    USAGE = 2
    BUG = 3
    SKIPPED = 4
    INCOMPLETE = 10
    INTERRUPTED = 130


class UsageError(ValueError):
    """What was asked can't be done.  The message is one sentence for a person."""


class Outcome(NamedTuple):
    """The result of a command: `data` for --json, `text` for people (or bytes for a program), `remarks` for standard error
    (not with --json)."""

    data: Any
    text: Callable[[Style], str | bytes]
    code: ExitCode = ExitCode.PASS
    remarks: tuple[str, ...] = ()

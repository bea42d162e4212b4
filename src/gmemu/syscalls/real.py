# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a real kernel's refusal: which call, and which errno or signal.  Not in the catalogue of rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ..rules import Rule
from ..uapi.errno import errno_name

__all__ = ["RealRule", "real_rule"]


class RealRule(Rule):
    """`door` is the backend's name, `kernel` what the kernel calls itself.  The id is door.call.outcome."""

    __slots__ = ("call", "door")

    def __init__(self, door: str, kernel: str, call: str, errno: int, signal: str = "") -> None:
        outcome = signal or errno_name(errno)
        self.door, self.call = door, call
        super().__init__(
            f"{door}.{call}.{outcome}",
            errno,
            f"{kernel} refused {call} with {outcome} and doesn't say which check failed",
            kernel,
            advice="The emulated kernel does say: make the same calls there.",
            signal=signal,
        )

    def __reduce__(self) -> tuple[Callable[..., Rule], tuple[Any, ...]]:
        return real_rule, (self.door, self.source, self.call, self.errno, self.signal)


def real_rule(door: str, kernel: str, call: str, errno: int, signal: str = "") -> RealRule:
    """The one rule for this outcome of this call, so that its hits are counted together."""
    return _only(door, kernel, call, errno, signal)


_only = cache(RealRule)

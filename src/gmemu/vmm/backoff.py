# SPDX-License-Identifier: GPL-2.0-or-later
"""How often something is tried again, and how long one waits in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Backoff"]


class Backoff(NamedTuple):
    """At most `attempts` tries; between them `first` seconds, then twice as long each time, up to `longest`.

    `pause` waits.  Whoever has a clock of their own, or other work to do meanwhile, gives another; an emulated host on which
    nobody else runs needs none (`Backoff.none`).
    """

    attempts: int = 8
    first: float = 0.001
    longest: float = 0.1
    pause: Callable[[float], object] = time.sleep

    @classmethod
    def none(cls, attempts: int = 8) -> Backoff:
        """As often, without waiting."""
        return cls(attempts, pause=lambda seconds: None)

    def wait(self, attempt: int) -> None:
        """After try number `attempt`, counted from 1, failed."""
        self.pause(min(self.first * 2 ** (attempt - 1), self.longest))

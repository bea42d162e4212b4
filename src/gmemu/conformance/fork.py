# SPDX-License-Identifier: GPL-2.0-or-later
"""A second process for a case: the child of a fork(), which does one step each time its parent asks.

A script is a generator function of the child's door.  It yields callables; each is called in the child, and its outcome
is brought to the parent.  So parent and child take turns, in an order that the case decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..syscalls.door import Door
from .outcome import Outcome, observe

__all__ = ["Child", "DoorChild", "ForkedChild", "Script"]

Script = Callable[[Any], Iterator[Callable[[], Any]]]


class Child(Protocol):
    """A forked process.  `locate` names a faulting address, as in `observe`."""

    locate: Callable[[int], str]

    def step(self) -> Outcome:
        """The outcome of the script's next callable."""

    def exit(self) -> None:
        """End the process.  Again: nothing."""


class DoorChild:
    """A process behind a door that can fork: of the emulated host, or beside the agent in a virtual machine."""

    def __init__(self, door: Any, script: Script) -> None:
        self.locate: Callable[[int], str] = hex
        self._door = door.fork()
        self._script: Iterator[Callable[[], Any]] | None = iter(script(self._door))

    def step(self) -> Outcome:
        assert self._script is not None
        return observe(next(self._script), locate=self.locate)[0]

    def exit(self) -> None:
        if self._script is not None:
            self._script = None
            self._door.exit()


class ForkedChild:
    """A process of this machine.  It never returns to the program that was forked."""

    def __init__(self, door: Door, script: Script) -> None:
        self.locate: Callable[[int], str] = hex
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._orders)
            os.close(self._answers)
            try:
                self._serve(iter(script(door)), orders, answers)
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)

    @staticmethod
    def _serve(script: Iterator[Callable[[], Any]], orders: int, answers: int) -> None:
        while os.read(orders, 1):
            outcome, _ = observe(next(script), locate=lambda address: f"@{address:x}")
            os.write(answers, "\t".join(outcome).encode() + b"\n")

    def step(self) -> Outcome:
        os.write(self._orders, b".")
        line = b""
        while not line.endswith(b"\n"):
            more = os.read(self._answers, 4096)
            if not more:
                raise RuntimeError("the child process ended before it answered")
            line += more
        result, _, rule = line[:-1].decode().partition("\t")
        head, at, address = result.partition("@")
        return Outcome(head + self.locate(int(address, 16)) if at else result, rule)

    def exit(self) -> None:
        if self._pid:
            os.close(self._orders)
            os.close(self._answers)
            os.waitpid(self._pid, 0)
            self._pid = 0

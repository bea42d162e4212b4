# SPDX-License-Identifier: GPL-2.0-or-later
"""A door that writes down what goes through it: for traces that are to become programs for a real kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..rules import BusError, KernelError, SegmentationFault
from ..sync.explored import ExploredRuntime
from .door import Door
from .emulated import EmulatedDoor

__all__ = ["Call", "RecordedDoor"]


class Call(NamedTuple):
    """One system call, or a load or store.

    `args` are its arguments, a buffer as the bytes that it had; `task` is the explored task's number, -1 for the set-up;
    `process` is 0 for the first process.  It began before step `begin` of the run and was over before step `end`, which is
    -1 if it never was.  `result` is its value, or what it failed with: an errno (negative) or a signal's name.
    """

    name: str
    args: tuple[Any, ...]
    task: int
    process: int
    begin: int
    end: int = -1
    result: object = None
    rule: str = ""


class RecordedDoor(EmulatedDoor):
    """An `EmulatedDoor` that keeps its calls, with those of its threads and forked children, in `calls`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[Call] = []
        self.number = 0
        self._processes = [self.process]

    def thread(self, name: str, cpu: int = 0) -> EmulatedDoor:
        return self._adopt(super().thread(name, cpu))

    def fork(self) -> EmulatedDoor:
        child = self._recorded("fork", super().fork)()
        return self._adopt(child)

    def _adopt(self, door: EmulatedDoor) -> EmulatedDoor:
        assert isinstance(door, RecordedDoor)
        door.calls, door._processes = self.calls, self._processes
        if door.process not in self._processes:
            self._processes.append(door.process)
        door.number = self._processes.index(door.process)
        return door

    def _recorded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any) -> Any:
            kept = tuple(bytes(arg) if isinstance(arg, bytearray | memoryview) else arg for arg in args)
            task, now = self._time()
            at = len(self.calls)
            self.calls.append(Call(name, kept, task, self.number, now))
            try:
                result = call(*args)
            except KernelError as error:
                self._over(at, -(error.errno or 0), error.rule.id)
                raise
            except BusError as fault:
                self._over(at, "SIGBUS", fault.rule.id)
                raise
            except SegmentationFault as fault:
                self._over(at, "SIGSEGV", fault.rule.id)
                raise
            self._over(at, result if isinstance(result, int | bytes) else None)
            return result

        return recorded

    def _time(self) -> tuple[int, int]:
        runtime = self.rt
        return (runtime.running, len(runtime.trace)) if isinstance(runtime, ExploredRuntime) else (-1, 0)

    def _over(self, at: int, result: object, rule: str = "") -> None:
        self.calls[at] = self.calls[at]._replace(end=self._time()[1], result=result, rule=rule)


def _record(name: str) -> Callable[..., Any]:
    def method(self: RecordedDoor, *args: Any, **kwargs: Any) -> Any:
        call = getattr(super(RecordedDoor, self), name)
        return self._recorded(name, lambda *given: call(*given, **kwargs))(*args)

    return method


for _name, _member in vars(Door).items():
    if callable(_member) and not _name.startswith("_"):
        setattr(RecordedDoor, _name, _record(_name))

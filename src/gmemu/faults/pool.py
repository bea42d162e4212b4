# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs in processes of their own, several at once, results in the order of the jobs.

Each job is a fork: it begins with everything imported, shares nothing afterwards, and may hang or die.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Died", "run_jobs"]

T = TypeVar("T")


class Died(NamedTuple):
    """A job without a result."""

    why: str


class _Child(Generic[T]):
    def __init__(self, job: Callable[[], T], seconds: int) -> None:
        self.reader, writer = os.pipe()
        self.deadline = time.monotonic() + 4 * seconds
        self.data = b""
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self.reader)
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
                with os.fdopen(writer, "wb") as pipe:
                    pickle.dump(job(), pipe)
                status = 0
            finally:
                os._exit(status)
        os.close(writer)

    def read(self) -> bool:
        """More of the result; False at its end."""
        more = os.read(self.reader, 1 << 16)
        self.data += more
        return bool(more)

    def result(self, seconds: int) -> T | Died:
        os.close(self.reader)
        _, status = os.waitpid(self.pid, 0)
        if status == 0 and self.data:
            result: T = pickle.loads(self.data)
            return result
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number in (signal.SIGXCPU, signal.SIGKILL):
                return Died(f"no end after {seconds} s of processor time")
            return Died(f"killed by {signal.Signals(number).name}")
        return Died("the process that ran it failed")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def run_jobs(jobs: Sequence[Callable[[], T]], at_once: int, seconds: int) -> Iterator[T | Died]:
    """Results in the order of `jobs`, each as soon as it and all before it are there.

    A job may use `seconds` of processor time, and four times that in all.
    """
    running: dict[int, _Child[T]] = {}
    done: dict[int, T | Died] = {}
    started = given = 0
    try:
        while given < len(jobs):
            while started < len(jobs) and len(running) < at_once:
                running[started] = _Child(jobs[started], seconds)
                started += 1
            ready, _, _ = select.select([child.reader for child in running.values()], [], [], 0.5)
            for number, child in list(running.items()):
                if child.reader in ready and not child.read():
                    done[number] = child.result(seconds)
                    del running[number]
                elif time.monotonic() > child.deadline:
                    child.kill()
            while given in done:
                yield done.pop(given)
                given += 1
    finally:
        for child in running.values():
            child.kill()
            child.result(seconds)

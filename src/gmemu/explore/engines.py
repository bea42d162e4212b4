# SPDX-License-Identifier: GPL-2.0-or-later
"""Where parts of a search are done: an interface, and processes of this machine."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, NamedTuple, Protocol

from .options import Options
from .parts import Item, Part, explore_part
from .runs import World
from .snapshot import Worlds

__all__ = ["Done", "Engine", "Processes"]


class Done(NamedTuple):
    """What became of an item: a part; an exception; or neither if its worker was lost."""

    ticket: int
    part: Part | None = None
    error: Exception | None = None


class Engine(Protocol):
    """Workers that search parts."""

    workers: int
    seconds: float
    """how long a part should take"""

    def submit(self, item: Item) -> int:
        """Have it done; a ticket for it."""

    def wait(self, timeout: float) -> list[Done]:
        """What is done by now; if nothing is, whatever is first within so many seconds."""

    def close(self) -> None:
        """Nobody waits for the rest any more."""


class Processes:
    """Processes forked from this one, each with a pipe; one that dies is replaced."""

    seconds = 0.025

    def __init__(self, build: Callable[[], World], options: Options, workers: int) -> None:
        self.workers = workers
        self._given = build, options
        self._context = get_context("fork")
        self._running: dict[Connection, tuple[Any, deque[int]]] = {}
        """pipe -> process, and the tickets of what it has to do, in order"""
        self._backlog: deque[tuple[int, Item]] = deque()
        self._tickets = 0
        for _ in range(workers):
            self._start()

    def _start(self) -> None:
        mine, its = self._context.Pipe()
        others = [*self._running, mine]
        process = self._context.Process(target=_work, args=(its, others, *self._given), daemon=True)
        process.start()
        its.close()
        self._running[mine] = process, deque()

    def submit(self, item: Item) -> int:
        """Into the queue."""
        self._tickets += 1
        self._backlog.append((self._tickets, item))
        self._send()
        return self._tickets

    def _send(self) -> None:
        """Each process has the next thing to do when it's through with one."""
        for most in (1, 2):
            for pipe, (_, tickets) in self._running.items():
                if self._backlog and len(tickets) < most:
                    ticket, item = self._backlog.popleft()
                    tickets.append(ticket)
                    try:
                        pipe.send(item)
                    except OSError:
                        continue  # it died: `wait` sees that

    def wait(self, timeout: float) -> list[Done]:
        """As `Engine.wait`."""
        done = []
        for pipe in wait_for(list(self._running), timeout):
            assert isinstance(pipe, Connection)
            process, tickets = self._running[pipe]
            try:
                part, error = pipe.recv()
            except (EOFError, OSError):
                process.join()
                del self._running[pipe]
                done += [Done(ticket) for ticket in tickets]
                self._start()
            else:
                done.append(Done(tickets.popleft(), part, error))
        self._send()
        return done

    def close(self) -> None:
        """They hold nothing that would have to be given back."""
        for pipe, (process, _) in self._running.items():
            process.terminate()
            process.join()
            pipe.close()
        self._running.clear()


def _work(pipe: Connection, others: list[Connection], build: Callable[[], World], options: Options) -> None:
    """A process: one item after the other, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()  # else a pipe would stay open when its owner is gone
    worlds: Worlds[World] = Worlds(build, options.restore)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        part: Part | None = None
        failed: Exception | None = None
        try:
            part = explore_part(worlds, options, item)
        except Exception as error:
            failed = error
        try:
            pipe.send((part, failed))
        except OSError:
            return

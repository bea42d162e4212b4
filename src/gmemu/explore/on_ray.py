# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a search by the workers of a Ray cluster.

Ray runs a task again whose worker or machine was lost; as a part depends on nothing but the way there it comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

from .engines import Done
from .options import Options
from .parts import Item, Part, explore_part
from .runs import World
from .snapshot import Worlds

__all__ = ["on_ray"]

_RETRIES = 3
"""How often Ray runs a part again before it tells us."""


def on_ray(ray: Any) -> Callable[[Callable[[], World], Options, int], _Cluster]:
    """An engine for `parallel.explore_parallel`, given the module `ray`, connected (see `cluster`)."""
    return partial(_Cluster, ray)


class _Cluster:
    """As many parts at a time as there are to be workers."""

    seconds = 0.2

    def __init__(self, ray: Any, build: Callable[[], World], options: Options, workers: int) -> None:
        self.workers = workers
        self._ray = ray
        self._lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        self._explore: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(_explore_there)
        self._given = uuid4().hex, ray.put((build, options))
        self._begun: dict[Any, int] = {}
        self._tickets = 0

    def submit(self, item: Item) -> int:
        """As a task of Ray's."""
        name, given = self._given
        self._tickets += 1
        self._begun[self._explore.remote(name, given, item)] = self._tickets
        return self._tickets

    def wait(self, timeout: float) -> list[Done]:
        """As `Engine.wait`."""
        if not self._begun:
            return []
        waiting = list(self._begun)
        ready, _ = self._ray.wait(waiting, timeout=timeout, num_returns=1)
        return [self._result(self._begun.pop(reference), reference) for reference in ready]

    def _result(self, ticket: int, reference: Any) -> Done:
        try:
            return Done(ticket, self._ray.get(reference))
        except self._lost:
            return Done(ticket)
        except Exception as error:
            return Done(ticket, error=error)

    def close(self) -> None:
        """What waits isn't begun; what was begun ends soon."""
        for reference in self._begun:
            self._ray.cancel(reference)


_there: dict[str, tuple[Worlds[World], Options]] = {}
"""In a worker: the search that it works for."""


def _explore_there(name: str, given: tuple[Callable[[], World], Options], item: Item) -> Part:
    if name not in _there:
        for worlds, _ in _there.values():
            worlds.close()
        _there.clear()
        build, options = given
        _there[name] = Worlds(build, options.restore), options
    return explore_part(*_there[name], item)

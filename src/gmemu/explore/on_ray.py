# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a search by the workers of a Ray cluster.

Ray runs a task again whose worker or machine was lost; as a part depends on nothing but the way there it comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from typing import Any
from uuid import uuid4

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
        self._lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        self._explore: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(_explore_there)
        self._ray = ray
        self._given = uuid4().hex, ray.put((build, options))
        self._begun: set[Any] = set()

    def submit(self, item: Item) -> Future[Part]:
        """As a task of Ray's."""
        name, given = self._given
        reference = self._explore.remote(name, given, item)
        self._begun.add(reference)
        result: Future[Part] = Future()
        reference.future().add_done_callback(partial(self._pass_on, reference, result))
        return result

    def _pass_on(self, reference: Any, result: Future[Part], done: Future[Part]) -> None:
        self._begun.discard(reference)
        error = done.exception()
        if error is None:
            result.set_result(done.result())
        else:
            result.set_exception(BrokenExecutor(str(error)) if isinstance(error, self._lost) else error)

    def restart(self) -> None:
        """Ray has other workers already."""

    def close(self) -> None:
        """What waits isn't begun; what was begun ends soon."""
        for reference in tuple(self._begun):
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

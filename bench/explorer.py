# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorer: schedules a second, what setting up costs, two processes against one, and frontrun on the same programs.

CPU time, unless it says otherwise: this and a peer are measured in turns in one process.  frontrun comes with
``pip install 'gmemu[bench]'``; without it its lines are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from statistics import median

from gmemu.explore import Outcome, explore
from gmemu.explore.parallel import explore_parallel
from gmemu.explore.runs import World
from gmemu.explore.snapshot import Worlds
from gmemu.scenarios import CATALOGUE
from gmemu.sync.explored import ExploredRuntime

from .figures import Figure

RUNS = 5


class _Toy:
    """A program of locks and atomics; `bodies` are given it."""

    def __init__(self, *bodies: Callable[[_Toy], None], locks: int = 1) -> None:
        self.runtime = ExploredRuntime()
        self.counter = self.runtime.atomic("counter")
        self.locks = [self.runtime.mutex(f"m{i}") for i in range(locks)]
        for i, body in enumerate(bodies):
            self.runtime.spawn(f"t{i}", partial(body, self))

    def check(self) -> None:
        pass

    def state(self) -> object:
        return self.counter.read()

    def close(self) -> None:
        pass


def _increments(times: int) -> Callable[[_Toy], None]:
    def run(toy: _Toy) -> None:
        for _ in range(times):
            toy.counter.add(1)

    return run


def _locked_increment(toy: _Toy) -> None:
    with toy.locks[0]:
        toy.counter.set(toy.counter.read() + 1)


def _dines(i: int, count: int) -> Callable[[_Toy], None]:
    def run(toy: _Toy) -> None:
        with toy.locks[i], toy.locks[(i + 1) % count]:
            pass

    return run


def _cpu(*works: Callable[[], object], least: float = 0.05) -> list[float]:
    """CPU seconds of one call of each, the medians of some rounds in which they take turns.

    In a round each is called until that took `least` seconds, so that none is too short to be measured.
    """
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(RUNS):
        for work, times in zip(works, spent, strict=True):
            calls, start = 0, time.process_time()
            while not calls or time.process_time() - start < least:
                work()
                calls += 1
            times.append((time.process_time() - start) / calls)
    return [median(times) for times in spent]


def _rate() -> Figure:
    """Two tasks of nine conflicting steps and a begin each: twenty steps a schedule."""
    build = partial(_Toy, _increments(9), _increments(9))
    most = 4000
    [seconds] = _cpu(lambda: explore(build, max_schedules=most))
    return Figure("20-step scenario", most / seconds, "schedules/s", ">= 10,000", most / seconds >= 10_000)


def _set_up() -> Iterator[Figure]:
    """What a kernel scenario pays before each run, put back and set up anew, against all that a run costs."""
    scenario = CATALOGUE["guest-fault-to-shared"]
    result = explore(scenario)
    whole = _cpu(lambda: explore(scenario))[0] / result.schedules
    worlds: Worlds[World] = Worlds(scenario)
    for _ in range(10):  # the first few are set up anew anyway
        worlds.done(worlds.fresh(), True)
    [back] = _cpu(worlds.fresh)
    worlds.close()
    [anew] = _cpu(lambda: scenario().close())
    yield Figure("world put back, of a run's time", 100 * back / whole, "%", "", None, f"{back * 1e6:.0f} us")
    yield Figure("world put back, against set up anew", anew / back, "x", "", None, f"{anew * 1e6:.0f} us anew")


def _processes() -> Iterator[Figure]:
    """Wall time: two processes share what takes one some seconds, unreduced; and two that do it all each, as a machine's
    processors may not be as fast together as alone."""
    build = partial(_Toy, _increments(8), _increments(8))
    search = partial(explore, build, reduce=False)
    shared, apart = [], []
    for _ in range(5):
        start = time.monotonic()
        one = search()
        alone = time.monotonic() - start
        two = explore_parallel(build, 2, reduce=False)
        shared.append(alone / (time.monotonic() - start - alone))
        assert (one.schedules, one.states) == (two.schedules, two.states)
        start = time.monotonic()
        both = [get_context("fork").Process(target=search) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join()
        apart.append(2 * alone / (time.monotonic() - start))
    ratio = median(shared)
    note = f"wall time, {one.schedules} schedules, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    yield Figure("two processes against one", ratio, "x", ">= 1.7 x", ratio >= 1.7, note)
    yield Figure("two that share nothing, beside", median(apart), "x", "", None)


def _frontrun() -> Iterator[Figure]:
    """frontrun wants to have started the interpreter, so both are measured in one that it did."""
    if find_spec("frontrun") is None:
        return
    code = "from bench.explorer import against_frontrun; import json; print(json.dumps(list(against_frontrun())))"
    frontrun = [sys.executable, "-c", "import sys; from frontrun.cli import main; sys.exit(main(sys.argv[1:]))"]
    done = subprocess.run([*frontrun, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for figure in json.loads(done.stdout.strip().splitlines()[-1]):
        yield Figure(*figure)


def against_frontrun() -> Iterator[Figure]:
    """CPU time to the verdict, on the same programs: no bound on either side, both stop at the first deadlock, and neither
    then replays or minimises it.

    What is counted is the same, too: executions from the beginning to an end.  Where nothing can go wrong both need as
    many.  To the philosophers' deadlock they need not, as each tries orders in an order of its own.
    """
    import threading

    import frontrun

    class Shared:
        def __init__(self, locks: int) -> None:
            self.locks = [threading.Lock() for _ in range(locks)]
            self.counter = 0

    def locked(shared: Shared) -> None:
        with shared.locks[0]:
            shared.counter += 1

    def dines(i: int, count: int) -> Callable[[Shared], None]:
        def run(shared: Shared) -> None:
            with shared.locks[i], shared.locks[(i + 1) % count]:
                pass

        return run

    programs: list[tuple[str, Callable[[], World], Callable[[], Shared], list[Callable[[Shared], None]], Outcome]] = []
    for n in (2, 3, 4, 5):
        build: Callable[[], World] = partial(_Toy, *[_locked_increment] * n)
        programs.append((f"{n} x lock, increment, unlock", build, partial(Shared, 1), [locked] * n, Outcome.EXHAUSTED))
    for n in (3, 4, 5):
        build = partial(_Toy, *[_dines(i, n) for i in range(n)], locks=n)
        workers = [dines(i, n) for i in range(n)]
        programs.append((f"{n} philosophers", build, partial(Shared, n), workers, Outcome.VIOLATED))
    for what, build, set_up, threads, verdict in programs:
        found = explore(build, minimise=False)
        assert found.outcome is verdict
        ask = partial(frontrun.explore, set_up, threads, lambda shared: True, preemption_bound=None, detect_io=False)
        theirs = ask(reproduce_on_failure=0)
        assert theirs.property_holds is (verdict is Outcome.EXHAUSTED)
        ours, peer = _cpu(partial(explore, build, minimise=False), partial(ask, reproduce_on_failure=0))
        executions = f"{found.schedules} and {theirs.num_explored} executions"
        note = f"{verdict}: {ours * 1e3:.2f} ms, frontrun {peer * 1e3:.1f} ms; {executions}"
        yield Figure(f"{what}, against frontrun", peer / ours, "x", ">= 20 x", peer / ours >= 20, note)


def figures() -> Iterator[Figure]:
    """All of them."""
    yield _rate()
    yield from _set_up()
    yield from _processes()
    yield from _frontrun()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What reductions leave out is never missed: verdict and final states are those of searches that leave out nothing.

`test_search` has that for random programs.  Here are the catalogue's scenarios.  The smallest are searched without any
reduction; without the partial-order reduction, but from each state once, those that take no more than some thousand runs.
Of the rest it's seen that the reduced search has whatever some random runs come to.
"""

from __future__ import annotations

import random
from functools import partial

import pytest

from gmemu.explore import Options, Outcome, explore
from gmemu.scenarios import CATALOGUE
from gmemu.scenarios.worlds import BUSY, OnePage

from .programs import Program

PLAIN = 400
"""Runs of the search without any reduction."""
TINY = ("lru-batch", "null-source", "unaligned-source")

HASHED = 2000
"""Runs of the search that goes on from each state once."""
SMALL = (
    "conversion-oom",
    "error-offset",
    "fault-in-flight",
    "forked-mapping",
    "pin",
    "populate-converts",
    "preserve-after-final",
    "punch-granule",
    "punch-private",
    "reboot",
    "removal-fails",
    "slot-flags",
    "slot-release",
    "vfio-map",
)
SEARCHED_ELSEWHERE = ("guest-fault",)
"""It takes seconds."""
LARGE = sorted({*CATALOGUE} - {*TINY, *SMALL, *SEARCHED_ELSEWHERE})
"""All others."""


@pytest.mark.parametrize("name", TINY)
def test_nothing_is_left_out(name: str) -> None:
    reduced = explore(CATALOGUE[name])
    full = explore(CATALOGUE[name], reduce=False, symmetry=False, max_schedules=PLAIN)
    assert full.outcome is reduced.outcome is Outcome.EXHAUSTED
    assert full.states == reduced.states


@pytest.mark.parametrize("name", SMALL)
def test_every_state_is_gone_on_from(name: str) -> None:
    reduced = explore(CATALOGUE[name])
    full = explore(CATALOGUE[name], reduce=False, symmetry=False, hashing=True, max_schedules=HASHED)
    assert full.outcome is reduced.outcome is Outcome.EXHAUSTED
    assert full.states == reduced.states
    assert full.schedules >= reduced.schedules


@pytest.mark.parametrize("name", LARGE)
def test_whatever_some_unreduced_runs_come_to_the_reduced_search_has(name: str) -> None:
    drawn = explore(CATALOGUE[name], strategy="random", seed=1, max_schedules=25, stop_at_violation=False)
    assert drawn.states <= explore(CATALOGUE[name]).states


BROKEN = [(name, v) for name in (*TINY, *SMALL) for v in CATALOGUE[name].broken_with()]


@pytest.mark.parametrize(("name", "variants"), BROKEN, ids=["+".join((name, *v)) for name, v in BROKEN])
def test_what_is_violated_is_violated_without_reduction(name: str, variants: tuple[str, ...]) -> None:
    build = partial(CATALOGUE[name], variants)
    full = explore(build, reduce=False, symmetry=False, hashing=True, minimise=False, max_schedules=HASHED)
    assert full.kind in CATALOGUE[name].kinds_with(variants)


# Symmetry


def exchanged(states: frozenset[object]) -> set[object]:
    """Final states but for who of the like tasks came to what."""
    return {tuple(sorted(value for _, value in state)) for state in states}  # type: ignore[attr-defined]


class PageEach(OnePage):
    """Like tasks, each of which converts a page of its own; another looks at the file as a whole."""

    name = "page-each"
    pages = 2
    group = "convert"

    def tasks(self) -> None:
        for page in range(self.pages):
            self.task(f"convert {page}", partial(self.convert, page), group=self.group, pages=(page,))

    def holds(self) -> None:
        assert set(self.seen.values()) <= {"converted", BUSY}


def test_tasks_that_are_alike_up_to_their_pages() -> None:
    class Apart(PageEach):
        group = ""

    alike, apart = explore(PageEach), explore(Apart)
    ordered = explore(PageEach, reduce=False, hashing=True, max_schedules=5000)
    full = explore(PageEach, reduce=False, symmetry=False, hashing=True, max_schedules=5000)
    for result in (alike, apart, ordered, full):
        assert result.outcome is Outcome.EXHAUSTED
        assert exchanged(result.states) == exchanged(full.states)
    assert alike.schedules <= apart.schedules < ordered.schedules < full.schedules


def test_like_tasks_with_a_page_each_that_meet_at_once() -> None:
    def build() -> Program:
        program = Program(atomics=4)

        def work(page: int) -> None:
            program.note(f"t{page}", program.atomics[3].add(1))
            program.atomics[page].add(1)

        for page in range(3):
            program.runtime.spawn(f"t{page}", partial(work, page), "worker")
        return program

    alike, apart = explore(build), explore(build, symmetry=False)
    assert (alike.schedules, apart.schedules) == (1, 6)


class Pages(Program):
    """Pages with a number in each, which tasks mark before they touch them."""

    def __init__(self, seed: int, group: str) -> None:
        super().__init__(atomics=1, locks=1)
        rng = random.Random(seed)
        self.content = [0] * 5
        plan = [(rng.choice(("mine", "mine", "common", "lock", "atomic")), rng.random() < 0.5) for _ in range(3)]
        for n in range(rng.choice((2, 2, 3))):
            self.runtime.spawn(f"t{n}", partial(self.work, f"t{n}", n, plan), group, pages=(n,))
        if rng.random() < 0.5:
            self.runtime.spawn("other", rng.choice((partial(self.touch, "other", 4, rng.random() < 0.5), self.look)))

    def touch(self, name: str, page: int, write: bool) -> None:
        if write:
            self.runtime.writes(("page", self, page))
            self.content[page] += 1
        else:
            self.runtime.reads(("page", self, page))
            self.note(name, self.content[page])

    def look(self) -> None:
        """At all pages at once."""
        self.runtime.reads(("page", self, 0, 3))
        self.note("other", sum(self.content[:3]))

    def work(self, name: str, mine: int, plan: list[tuple[str, bool]]) -> None:
        for what, write in plan:
            if what == "atomic":
                self.note(name, self.atomics[0].add(1)) if write else self.atomics[0].set(7)
            elif what == "lock":
                with self.locks[0]:
                    self.touch(name, 4, write)
            else:
                self.touch(name, mine if what == "mine" else 4, write)

    def state(self) -> object:
        """But for who is who among the like."""
        tasks = [(tuple(self.seen.get(f"t{n}", ())), self.content[n]) for n in range(3)]
        return tuple(sorted(tasks)), self.content[4], tuple(self.seen.get("other", ()))


@pytest.mark.parametrize("seed", range(24))
def test_random_tasks_with_a_page_each(seed: int) -> None:
    apart = explore(partial(Pages, seed, ""), stop_at_violation=False)
    for reduce, hashing in ((True, False), (True, True), (False, True)):
        options = Options(reduce=reduce, hashing=hashing, stop_at_violation=False)
        alike = explore(partial(Pages, seed, "alike"), options)
        assert alike.outcome is apart.outcome is Outcome.EXHAUSTED
        assert alike.states == apart.states
        if reduce and not hashing:
            assert alike.schedules <= apart.schedules


def test_order_among_like_tasks_is_that_of_their_names() -> None:
    """Each does something to its own page first, then all meet: of six orders one is run to its end, two more are begun."""

    class Meet(Program):
        def __init__(self, group: str) -> None:
            super().__init__(atomics=1)
            for n in range(3):
                self.runtime.spawn(f"t{n}", partial(self.work, f"t{n}", n), group, pages=(n,))

        def work(self, name: str, page: int) -> None:
            self.runtime.writes(("page", self, page))
            self.note(name, self.atomics[0].add(1))

    apart, alike = explore(partial(Meet, "")), explore(partial(Meet, "worker"))
    assert (apart.schedules, len(apart.states)) == (6, 6)
    assert (alike.schedules, len(alike.states)) == (3, 1)

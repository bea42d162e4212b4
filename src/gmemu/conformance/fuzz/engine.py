# SPDX-License-Identifier: GPL-2.0-or-later
"""Two worlds in lockstep, driven and shrunk by Hypothesis's stateful engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ..backends import Backend
from ..outcome import Outcome
from .calls import Step, World
from .step import prologue, steps

__all__ = ["Finding", "fewer_steps", "fuzz", "replay"]

_LENGTH = 60
_EXAMPLES = 50


class Finding(NamedTuple):
    """A sequence after which the kernels part: its last step came out `emulated` here and `real` there."""

    steps: list[Step]
    emulated: Outcome
    real: Outcome


class _Different(AssertionError):
    pass


def replay(sequence: list[Step], emulation: Backend, real: Backend) -> Finding | None:
    """Make the calls on both kernels: where they part, if they do."""
    with ExitStack() as stack:
        worlds = [World(stack.enter_context(backend.door())) for backend in (emulation, real)]
        try:
            for i, step in enumerate(sequence):
                here, there = (world.do(step) for world in worlds)
                if here.result != there.result:
                    return Finding(sequence[: i + 1], here, there)
        finally:
            for world in worlds:
                world.close_all()
    return None


def fewer_steps(finding: Finding, emulation: Backend, real: Backend) -> Finding:
    """Leave out what Hypothesis, whose time is limited, left in: many steps at a time, then fewer, down to one by one."""
    size = len(finding.steps) // 2
    while size:
        at = 0
        while at < len(finding.steps) - 1:
            last = len(finding.steps) - 1
            again = replay([*finding.steps[:at], *finding.steps[min(at + size, last) :]], emulation, real)
            if again is None:
                at += size
            else:
                finding = again
        size //= 2
    return finding


def fuzz(
    emulation: Backend, real: Backend, start: int, count: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[int, Finding | None]:
    """Random sequences from seed `start` until `count` steps were made or the kernels part: how many, and the finding."""
    done = 0
    found: list[Finding] = []
    broken: list[Exception] = []
    vm_types = (0, 1) if real.features.private_memory else (0,)
    first = prologue(vm_types)
    included = st.tuples(*(st.sampled_from((False, *(True,) * 15)) for _ in first))

    class Lockstep(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self._stack = ExitStack()
            self._worlds = [World(self._stack.enter_context(backend.door())) for backend in (emulation, real)]
            self._made: list[Step] = []

        @initialize(which=included)
        def start(self, which: tuple[bool, ...]) -> None:
            for step, wanted in zip(first, which, strict=True):
                if wanted:
                    self._do(step)

        @rule(step=steps(vm_types))
        def call(self, step: Step) -> None:
            self._do(step)

        def _do(self, step: Step) -> None:
            nonlocal done
            done += 1
            self._made.append(step)
            try:
                here, there = (world.do(step) for world in self._worlds)
            except Exception as error:
                error.add_note("after these calls:\n" + "\n".join(map(repr, self._made)))
                broken.append(error)
                raise
            if here.result != there.result:
                found.append(Finding(list(self._made), here, there))
                raise _Different

        def teardown(self) -> None:
            progress(done)
            for world in self._worlds:
                world.close_all()
            self._stack.close()

    chosen = settings(
        max_examples=min(_EXAMPLES, -(-count // _LENGTH)),
        stateful_step_count=_LENGTH,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    part = 0
    while done < count and not found:
        machine = seed(start * 1_000_003 + part)(Lockstep)
        try:
            run_state_machine_as_test(machine, settings=chosen)
        except _Different:
            break
        except Flaky:
            if broken:
                raise broken[0] from None  # a kernel that's gone can't be asked again
            if len(found) == 0:
                raise
            break  # seen once, and not each time: it stands as it was found
        part += 1
    return done, fewer_steps(found[-1], emulation, real) if found else None

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario leaves behind is found at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gmemu.explore import Kind, Outcome, explore
from gmemu.explore.program import Program, explore_program
from gmemu.invariants import Leak
from gmemu.kvm.host import Host
from gmemu.mm.gup import get_user_pages_fast
from gmemu.scenarios.worlds import OnePage
from gmemu.uapi.mman import FOLL_PIN


def pin(world: Any) -> None:
    get_user_pages_fast(world.host.init.mm, world.memory.address, 1, FOLL_PIN)


def reference(world: Any) -> None:
    world.memory[0] = 1
    world.host.memmap.get(world.pfn())


def folio(world: Any) -> None:
    world.host.memmap.alloc(1)


def lock(world: Any) -> None:
    world.kvm_vm.slots_lock.__enter__()


@pytest.mark.parametrize(
    ("leave", "said"),
    [
        (pin, "still has 1024 references after everything was closed"),
        (reference, "still has 1 references after everything was closed"),
        (folio, "still has 1 references after everything was closed"),
        (lock, "ended and still holds slots_lock"),
    ],
)
def test_what_is_left_is_a_leak(leave: Callable[[Any], None], said: str) -> None:
    class Leaky(OnePage):
        name = "leaky"

        def tasks(self) -> None:
            self.task("task", lambda: leave(self))

    result = explore(Leaky)
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, Kind.LEAK)
    assert said in result.detail


def test_a_page_that_the_rmp_still_assigns() -> None:
    with Host("inplace-v13") as host:
        [(pfn, _)] = host.memmap.alloc(1)
        host.snp.rmp.rmpupdate(pfn, assigned=True, immutable=True)
        with pytest.raises(Leak, match="is still FIRMWARE"):
            host.snp.check_quiet()
        host.memmap.leak(pfn, 1)
        host.snp.check_quiet()


def test_what_is_given_back_is_none() -> None:
    class Clean(OnePage):
        name = "clean"

        def tasks(self) -> None:
            self.task("pin", lambda: pin(self))

        def release(self) -> None:
            self.let_go(self.pfn())

    assert explore(Clean).outcome is Outcome.EXHAUSTED


def test_a_users_thread_that_keeps_a_lock() -> None:
    def program(p: Program) -> None:
        lock = p.runtime.mutex("mine")
        p.thread("keep", lambda: lock.__enter__())

    result = explore_program(program)
    assert (result.kind, "still holds mine" in result.detail) == (Kind.LEAK, True)

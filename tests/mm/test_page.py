# SPDX-License-Identifier: GPL-2.0-or-later
"""Page counts: allocation, references, map counts, pins, and what may never happen to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemu.invariants import InvariantViolation, UseAfterFree
from gmemu.uapi.mman import GUP_PIN_COUNTING_BIAS

from .machine import Machine, refusal


def test_a_new_page_has_one_reference_and_no_mapping(machine: Machine) -> None:
    [(pfn, count)] = machine.memmap.alloc(3)
    assert count == 3
    assert [machine.memmap.refcount(pfn + i) for i in range(3)] == [1, 1, 1]
    assert machine.memmap.mapcount(pfn) == 0
    machine.memmap.put(pfn, 3)
    assert machine.memmap.refcount(pfn) == 0


def test_a_freed_page_is_zeroed_and_used_again(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(1)
    machine.memory.write(pfn << 12, b"left over")
    machine.memmap.put(pfn)
    assert machine.memory.read(pfn << 12, 9) == bytes(9)
    assert machine.memmap.alloc(1) == [(pfn, 1)]
    machine.memmap.put(pfn)


def test_page_zero_is_never_given_out(machine: Machine) -> None:
    assert machine.memmap.zero_pfn == 1
    free = machine.memmap.nr_pages - machine.memmap.nr_allocated - 1
    runs = machine.memmap.alloc(free)
    assert runs == [(2, free)]
    assert refusal(lambda: machine.memmap.alloc(1)) == "mm.page.oom"
    machine.memmap.put(2, free)


def test_allocation_is_all_or_nothing(machine: Machine) -> None:
    before = machine.memmap.nr_allocated
    assert refusal(lambda: machine.memmap.alloc(machine.memmap.nr_pages)) == "mm.page.oom"
    assert machine.memmap.nr_allocated == before


def test_references_count_by_run(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(8)
    machine.memmap.get(pfn + 2, 3)
    assert [machine.memmap.refcount(pfn + i) for i in range(8)] == [1, 1, 2, 2, 2, 1, 1, 1]
    machine.memmap.put(pfn, 8)
    assert [machine.memmap.refcount(pfn + i) for i in range(8)] == [0, 0, 1, 1, 1, 0, 0, 0]
    machine.memmap.put(pfn + 2, 3)


def test_a_reference_that_nobody_held_is_noticed(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(1)
    machine.memmap.put(pfn)
    with pytest.raises(InvariantViolation, match="reference dropped that nobody held"):
        machine.memmap.put(pfn)


def test_a_freed_page_cant_be_referenced(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(2)
    machine.memmap.put(pfn)
    assert not machine.memmap.try_get(pfn)
    assert not machine.memmap.try_get(pfn, 2)
    assert machine.memmap.refcount(pfn + 1) == 1
    assert machine.memmap.try_get(pfn + 1)
    machine.memmap.put(pfn + 1, by=2)


def test_a_mapped_page_isnt_freed(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(1)
    machine.memmap.map(pfn)
    with pytest.raises(InvariantViolation, match="freed while a page table maps it"):
        machine.memmap.put(pfn)
    with pytest.raises(UseAfterFree, match="taken to a page that was freed"):
        machine.memmap.get(pfn)
    machine.memmap.maps.clear()  # the entry that should not have been
    assert machine.memmap.is_free(pfn)


def test_an_entry_that_isnt_there_cant_go(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(1)
    with pytest.raises(InvariantViolation, match="although no page table maps it"):
        machine.memmap.unmap(pfn)
    machine.memmap.put(pfn)


def test_a_pin_is_a_thousand_references(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(2)
    machine.memmap.pin(pfn)
    assert machine.memmap.refcount(pfn) == 1 + GUP_PIN_COUNTING_BIAS
    assert machine.memmap.maybe_dma_pinned(pfn)
    assert not machine.memmap.maybe_dma_pinned(pfn + 1)
    machine.memmap.unpin(pfn)
    assert not machine.memmap.maybe_dma_pinned(pfn)
    machine.memmap.put(pfn, 2)


def test_many_ordinary_references_look_like_a_pin(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(1)
    machine.memmap.get(pfn, by=GUP_PIN_COUNTING_BIAS - 1)
    assert machine.memmap.maybe_dma_pinned(pfn)
    machine.memmap.put(pfn, by=GUP_PIN_COUNTING_BIAS)


def test_somebody_can_object_to_freeing(machine: Machine) -> None:
    def owned(pfn: int, count: int) -> None:
        raise InvariantViolation("owned by the firmware")

    [(pfn, _)] = machine.memmap.alloc(1)
    machine.memmap.free_checks.append(owned)
    with pytest.raises(InvariantViolation, match="owned by the firmware"):
        machine.memmap.put(pfn)


def test_who_waits_for_references_hears_of_those_that_go(machine: Machine) -> None:
    memmap = machine.memmap
    [(pfn, _)] = memmap.alloc(2)
    memmap.get(pfn)
    heard: list[tuple[int, int]] = []
    memmap.put_hooks.append(lambda first, end: heard.append((first, end)))
    memmap.put(pfn, 2)
    assert heard == [(pfn, pfn + 1)], "the other page had no reference left"


def test_a_leaked_page_outlives_its_owner(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(1)
    machine.memmap.leak(pfn, 1)
    machine.memmap.put(pfn)
    assert machine.memmap.refcount(pfn) == 1


def test_bad_pages_end_a_sound_run(machine: Machine) -> None:
    machine.memmap.poisoned |= {20, 23}
    assert [machine.memmap.sound(pfn, 4) for pfn in (10, 18, 20, 21)] == [4, 2, 0, 2]


def test_folio_locks_nest_by_page(machine: Machine) -> None:
    for pfn in range(400):
        machine.memmap.folio_lock(pfn)
        machine.memmap.folio_unlock(pfn)
    machine.memmap.folio_lock(5)
    machine.memmap.folio_lock(6)
    machine.memmap.folio_unlock(5)
    machine.memmap.folio_unlock(6)


@given(st.lists(st.tuples(st.sampled_from(["get", "put", "alloc", "free"]), st.integers(0, 15), st.integers(1, 6))))
def test_counts_against_a_model(steps: list[tuple[str, int, int]]) -> None:
    """Whole runs are gotten and put; a page is free when the model says so."""
    machine = Machine(1 << 20)
    memmap = machine.memmap
    model: dict[int, int] = {}
    runs: list[tuple[int, int]] = []
    for what, which, count in steps:
        if what == "alloc":
            for pfn, have in memmap.alloc(count):
                runs.append((pfn, have))
                for page in range(pfn, pfn + have):
                    assert page not in model
                    model[page] = 1
        elif runs:
            pfn, have = runs[which % len(runs)]
            if what == "get":
                memmap.get(pfn, have)
                for page in range(pfn, pfn + have):
                    model[page] += 1
            else:
                memmap.put(pfn, have)
                for page in range(pfn, pfn + have):
                    model[page] -= 1
                if not model[pfn]:
                    runs.remove((pfn, have))
                    for page in range(pfn, pfn + have):
                        del model[page]
        assert {p: r for s, e, r in memmap.refs.runs() for p in range(s, e) if p != memmap.zero_pfn} == model
        assert memmap.nr_allocated == len(model) + 1
    machine.memory.close()

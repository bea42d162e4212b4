# SPDX-License-Identifier: GPL-2.0-or-later
"""LRU-add batches: who waits in them, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemu.mm.swap import PAGEVEC_SIZE

from .machine import Machine


def test_a_page_waits_with_a_reference(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(1)
    machine.lru.folio_add_lru(0, pfn)
    assert machine.memmap.refcount(pfn) == 2
    assert machine.lru.batches() == {0: (pfn,)}
    machine.lru.lru_add_drain(0)
    assert machine.memmap.refcount(pfn) == 1
    machine.memmap.put(pfn)


def test_the_thirty_first_page_drains_the_batch(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(PAGEVEC_SIZE)
    for page in range(pfn, pfn + PAGEVEC_SIZE - 1):
        machine.lru.folio_add_lru(0, page)
    assert machine.lru.held() == 30
    machine.lru.folio_add_lru(0, pfn + PAGEVEC_SIZE - 1)
    assert machine.lru.held() == 0
    machine.memmap.put(pfn, PAGEVEC_SIZE)


def test_each_cpu_has_its_own(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(2)
    machine.lru.folio_add_lru(0, pfn)
    machine.lru.folio_add_lru(1, pfn + 1)
    machine.lru.lru_add_drain(0)
    assert machine.lru.batches() == {1: (pfn + 1,)}
    machine.lru.lru_add_drain_all()
    assert machine.lru.batches() == {}
    machine.memmap.put(pfn, 2)


def test_draining_what_was_never_filled(machine: Machine) -> None:
    machine.lru.lru_add_drain(7)
    machine.lru.lru_add_drain_all()
    assert machine.lru.held() == 0


def test_the_batch_frees_a_page_that_it_held_last(machine: Machine) -> None:
    [(pfn, _)] = machine.memmap.alloc(1)
    machine.lru.folio_add_lru(0, pfn)
    machine.memmap.put(pfn)
    assert machine.memmap.refcount(pfn) == 1
    machine.lru.lru_add_drain(0)
    assert machine.memmap.refcount(pfn) == 0


@pytest.mark.parametrize("count", [1, 30, 31, 32, 61, 62, 63, 1000])
def test_adding_many_at_once_is_like_adding_one_by_one(count: int) -> None:
    together, singly = Machine(), Machine()
    [(pfn, _)] = together.memmap.alloc(count)
    singly.memmap.alloc(count)
    together.lru.folio_add_lru(0, pfn, count)
    for page in range(pfn, pfn + count):
        singly.lru.folio_add_lru(0, page)
    assert together.lru.batches() == singly.lru.batches()
    assert together.memmap.refs == singly.memmap.refs
    together.memory.close()
    singly.memory.close()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), max_size=12))
def test_batches_against_a_model(steps: list[tuple[int, int]]) -> None:
    machine = Machine()
    model: dict[int, list[int]] = {}
    for cpu, count in steps:
        [(pfn, _)] = machine.memmap.alloc(count)
        machine.lru.folio_add_lru(cpu, pfn, count)
        batch = model.setdefault(cpu, [])
        for page in range(pfn, pfn + count):
            batch.append(page)
            if len(batch) == PAGEVEC_SIZE:
                batch.clear()
        assert machine.lru.batches() == {cpu: tuple(batch) for cpu, batch in model.items() if batch}
        held = {page for batch in model.values() for page in batch}
        assert all(machine.memmap.refcount(page) == (2 if page in held else 1) for page in range(pfn, pfn + count))
    machine.memory.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""A run written down: who held what, and the state of each page, at every step."""

from __future__ import annotations

import json
from functools import partial

import pytest

from gmemu.explore import Kind, Trace, explore, record
from gmemu.explore.verdict import kind_of
from gmemu.invariants import InvariantViolation, Leak
from gmemu.scenarios import CATALOGUE


def traced(name: str, *variants: str) -> Trace:
    build = partial(CATALOGUE[name], variants)
    return record(build, explore(build).choices, scenario=name, variants=variants)


@pytest.fixture(scope="module")
def deadlock() -> Trace:
    return traced("populate-abba", "populate-gup-under-lock")


@pytest.fixture(scope="module")
def stale() -> Trace:
    return traced("guest-fault", "store-after-invalidate")


def test_a_deadlock_ends_with_those_who_wait_and_what_they_hold(deadlock: Trace) -> None:
    assert deadlock.kind is Kind.DEADLOCK
    assert deadlock.tasks == ("populate", "fault", "protect")
    end = deadlock.steps[-1].after
    locks = {lock.name: lock for lock in end.locks}
    assert locks["gmem:invalidate_lock"].holders == ((0, "exclusive"),)
    assert 0 in locks["gmem:invalidate_lock"].waiters
    assert {w.task for w in deadlock.waiting} == {0, 1, 2}
    populate = deadlock.waiting[0]
    assert (populate.kind, populate.object) == ("acquire-shared", "gmem:invalidate_lock")
    assert any(frame.function == "populate_locked" for frame in populate.stack)


def test_frames_name_the_kernels_functions(deadlock: Trace) -> None:
    where = {step.where.kernel for step in deadlock.steps if step.where}
    assert {"gfn_to_memslot", "filemap_grab_folio", "__kvm_gmem_get_pfn"} <= where


def test_pages_show_attribute_tables_and_references(stale: Trace) -> None:
    [first] = [page for page in stale.before.pages if page.name == "gmem[0x0]"]
    assert (first.pfn, first.attribute, first.refs) == (-1, "shared", 0)
    [last] = [page for page in stale.steps[-1].after.pages if page.name == "gmem[0x0]"]
    assert (last.attribute, last.sptes) == ("private", ("gfn 0x0 shared rw",))
    assert last.tlbs == ("vcpu0 gfn 0x0 rw",)
    assert last.holders == ("page cache", "1 LRU batch")
    stored = next(s for s in stale.steps if s.domain == "attribute" and s.kind == "write")
    assert [p.attribute for p in stale.before_step(stored.number).pages] == ["shared"]
    assert [p.attribute for p in stored.after.pages] == ["private"]


def test_a_rule_is_told_at_the_step_that_it_follows() -> None:
    trace = record(CATALOGUE["fault-in-flight"], ())
    failed = [(step.task, step.rules) for step in trace.steps if step.rules]
    assert failed == [(1, ("gmem.fault.private",))]
    assert trace.results == {"convert": "converted", "touch": "gmem.fault.private"}


def test_owners_are_the_trusted_entitys_words() -> None:
    trace = record(CATALOGUE["source-converted"], ())
    owners = {page.owner for step in trace.steps for page in step.after.pages if page.owner}
    assert "HYPERVISOR" in owners
    assert any(owner.startswith("GUEST_VALID asid ") for owner in owners)


def test_recording_changes_nothing(stale: Trace) -> None:
    again = record(partial(CATALOGUE["guest-fault"], ("store-after-invalidate",)), stale.choices)
    assert again.steps == stale.steps
    assert again.preemptions == stale.preemptions == 2


def test_it_is_plain_data(stale: Trace) -> None:
    data = json.loads(json.dumps(stale.data()))
    assert data["simulated"] is True
    assert data["kind"] == "invariant"
    assert data["steps"][0]["kind"] == "begin"


def test_kinds_go_by_the_nearest_class() -> None:
    assert kind_of(Leak("x")) is Kind.LEAK
    assert kind_of(InvariantViolation("x")) is Kind.INVARIANT
    assert kind_of(AssertionError("x")) is Kind.ASSERTION
    assert kind_of(KeyError("x")) is Kind.EXCEPTION


def test_a_page_says_that_it_is_in_a_large_folio() -> None:
    """And of a file with many pages the first are shown."""
    trace = record(CATALOGUE["split-and-merge"], ())
    shown = [step.after.pages for step in trace.steps]
    assert {len(pages) for pages in shown} == {16}
    seen = dict.fromkeys(pages[1].attribute for pages in shown)
    large = " in a large folio"
    assert list(seen) == [f"private{large}", f"shared{large}", "shared", "private"]
    assert shown[-1][1].attribute == f"private{large}"

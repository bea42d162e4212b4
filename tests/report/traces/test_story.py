# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps and changes in words."""

from __future__ import annotations

import pytest

from gmemu.explore.trace import Lock, Page, Step, Trace, World
from gmemu.report.traces.story import changes, event, held_by, holders_text, page_text, verdict


@pytest.mark.parametrize(
    ("kind", "domain", "what", "says"),
    [
        ("begin", "", "", "begin"),
        ("acquire", "lock", "mmu_lock", "lock_acquire: mmu_lock exclusive"),
        ("acquire-shared", "lock", "mmap_lock", "lock_acquire: mmap_lock shared"),
        ("release-shared", "lock", "mmap_lock", "lock_release: mmap_lock shared"),
        ("enter", "srcu", "kvm->srcu", "srcu_read_lock: kvm->srcu"),
        ("release", "srcu", "kvm->srcu", "srcu_read_unlock: kvm->srcu"),
        ("write", "page-cache", "page-cache cache 0x0", "page_cache_write: cache 0x0"),
        ("read", "atomic", "mmu_invalidate_seq", "atomic_read: mmu_invalidate_seq"),
    ],
)
def test_events(kind: str, domain: str, what: str, says: str) -> None:
    assert event(Step(0, 0, True, kind, domain, what, (), (), World())) == says


def test_pages() -> None:
    assert page_text(Page("gmem[0x0]", attribute="shared")) == "shared, no memory"
    page = Page("gmem[0x0]", 2, "private", ("mm 0x10 rw",), ("gfn 0x0 private rw",), (), 3, ("page cache", "1 pin"), "HV")
    assert page_text(page) == (
        "private, pfn 0x2, 3 references (page cache, 1 pin), PTE mm 0x10 rw, SPTE gfn 0x0 private rw, owner HV"
    )


def test_changes() -> None:
    old = Page("p", 2, "shared", ("mm 0x10 rw",), refs=2, holders=("page cache", "1 PTE"))
    new = Page("p", 2, "private", refs=1, holders=("page cache",), owner="GUEST")
    before, after = World(pages=(old,)), World(pages=(new,))
    assert changes(before, after) == (
        "p: shared -> private",
        "p: PTE mm 0x10 rw goes",
        "p: references 2 -> 1 (page cache)",
        "p: owner none -> GUEST",
    )
    assert changes(after, after) == ()
    assert changes(before, World()) == ("p: gone",)
    assert changes(World(), World(pages=(Page("p", attribute="shared"),))) == ("p: shared, no memory",)
    assert changes(after, World(pages=(Page("p", attribute="private"),)))[0] == "p: memory is taken away"


def test_locks() -> None:
    lock = Lock("mmap_lock", ((0, "shared"), (1, "shared")), (2,))
    assert holders_text(lock, ("a", "b", "c")) == "mmap_lock: held by a (shared), b (shared); c waits"
    assert held_by(World((lock, Lock("mmu_lock", ((1, "exclusive"),)))), 1) == ("mmap_lock (shared)", "mmu_lock")


def test_a_kind_is_said_once(deadlock: tuple[Trace, Trace]) -> None:
    assert verdict(deadlock[0]).count("deadlock:") == 1
    assert verdict(deadlock[1]) == "nothing was violated"

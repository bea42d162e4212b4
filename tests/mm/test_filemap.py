# SPDX-License-Identifier: GPL-2.0-or-later
"""The page cache: finding and adding folios, truncation, and taking pages out of every process's page tables."""

from __future__ import annotations

from gmemu.mm.filemap import Folio, PageCache

from .machine import PAGE, Machine, address, refusal


def cache_of(machine: Machine) -> PageCache:
    return PageCache(machine.memmap, machine.lru, "test")


def drop(cache: PageCache, index: int, count: int = 1) -> int:
    """grab_folio(), and let go of it: the page frame."""
    folio = cache.grab_folio(index, count)
    cache.unlock_folio(folio)
    cache.put_folio(folio)
    return folio.pfn


def test_a_new_folio_has_three_references(machine: Machine) -> None:
    """The page cache's, the caller's, and its LRU batch's."""
    cache = cache_of(machine)
    folio = cache.grab_folio(7)
    assert (folio.index, folio.count) == (7, 1)
    assert machine.memmap.refcount(folio.pfn) == 3
    assert cache.pfn(7) == folio.pfn
    assert cache.nrpages == 1
    cache.unlock_folio(folio)
    cache.put_folio(folio)
    machine.lru.lru_add_drain_all()
    assert machine.memmap.refcount(folio.pfn) == 1
    cache.truncate_range(0, 8)


def test_a_known_folio_is_found_again(machine: Machine) -> None:
    cache = cache_of(machine)
    pfn = drop(cache, 3)
    folio = cache.grab_folio(3)
    assert folio.pfn == pfn
    assert cache.nrpages == 1
    cache.unlock_folio(folio)
    cache.put_folio(folio)
    cache.truncate_range(0, 8)


def test_of_many_wanted_the_like_ones_are_given(machine: Machine) -> None:
    cache = cache_of(machine)
    drop(cache, 2)
    drop(cache, 3)
    for index, wanted, count in ((0, 8, 2), (2, 8, 2), (4, 3, 3)):
        folio = cache.grab_folio(index, wanted)
        assert (folio.index, folio.count) == (index, count)
        cache.unlock_folio(folio)
        cache.put_folio(folio)
    assert cache.nrpages == 7
    cache.truncate_range(0, 8)


def test_what_there_is_memory_for_is_given_and_no_memory_leaves_nothing_behind(machine: Machine) -> None:
    cache = cache_of(machine)
    folio = cache.grab_folio(0, machine.memmap.nr_pages)
    assert 0 < folio.count < machine.memmap.nr_pages
    held = cache.nrpages
    assert refusal(lambda: cache.grab_folio(held, 1)) == "mm.page.oom"
    assert cache.nrpages == held
    cache.unlock_folio(folio)
    cache.put_folio(folio)
    cache.truncate_range(0, held)


def test_a_page_is_zeroed_once(machine: Machine) -> None:
    cache = cache_of(machine)
    folio = cache.grab_folio(0)
    machine.memory.write(folio.pfn * PAGE, b"junk")
    cache.clear_folio(folio)
    assert machine.memory.read(folio.pfn * PAGE, 4) == bytes(4)
    machine.memory.write(folio.pfn * PAGE, b"data")
    cache.clear_folio(folio)
    assert machine.memory.read(folio.pfn * PAGE, 4) == b"data"
    cache.unlock_folio(folio)
    cache.put_folio(folio)
    cache.truncate_range(0, 1)
    assert not cache.uptodate[0]


def test_of_several_pages_only_the_fresh_are_zeroed(machine: Machine) -> None:
    cache = cache_of(machine)
    folio = cache.grab_folio(0, 3)
    cache.mark_uptodate(Folio(1, folio.pfn + 1, 1))
    for page in range(3):
        machine.memory.write((folio.pfn + page) * PAGE, b"old!")
    cache.clear_folio(folio)
    assert [machine.memory.read((folio.pfn + page) * PAGE, 4) for page in range(3)] == [bytes(4), b"old!", bytes(4)]
    cache.unlock_folio(folio)
    cache.put_folio(folio)
    cache.truncate_range(0, 3)


def test_truncation_gives_the_pages_back(machine: Machine) -> None:
    cache = cache_of(machine)
    freed: list[tuple[int, int]] = []
    cache.free_folio = lambda pfn, count: freed.append((pfn, count))
    pfn = drop(cache, 0, 4)
    machine.lru.lru_add_drain_all()
    cache.truncate_range(1, 3)
    assert freed == [(pfn + 1, 2)]
    assert cache.nrpages == 2
    assert [machine.memmap.refcount(pfn + i) for i in range(4)] == [1, 0, 0, 1]
    cache.truncate_range(0, 1 << 52)
    assert cache.nrpages == 0


def test_a_pinned_page_outlives_truncation(machine: Machine) -> None:
    """Who holds the page keeps it and its bytes; the file gets a new one."""
    cache = cache_of(machine)
    pfn = drop(cache, 0)
    machine.lru.lru_add_drain_all()
    machine.memory.write(pfn * PAGE, b"mine")
    machine.memmap.pin(pfn)
    cache.truncate_range(0, 1)
    assert machine.memory.read(pfn * PAGE, 4) == b"mine"
    assert drop(cache, 0) != pfn
    machine.memmap.unpin(pfn)
    cache.truncate_range(0, 1)


def test_truncation_unmaps_every_process(machine: Machine) -> None:
    file = machine.shmem(4)
    one, other = machine.process(), machine.process()
    first, second = machine.map(one, 4, file, shared=True), machine.map(other, 2, file, shared=True, pgoff=2)
    one.mm.write(address(first), b"x" * 4 * PAGE)
    other.mm.write(address(second), b"y" * 2 * PAGE)
    file.cache.truncate_range(1, 3)
    assert not one.mm.ptes.empty(first.start, first.start + 1)
    assert one.mm.ptes.empty(first.start + 1, first.start + 3)
    assert other.mm.ptes.empty(second.start, second.start + 1)
    assert not other.mm.ptes.empty(second.start + 1, second.start + 2)
    assert one.mm.read(address(first), 3 * PAGE) == b"x" * PAGE + bytes(2 * PAGE)
    file.put()


def test_unmapping_keeps_the_pages(machine: Machine) -> None:
    file = machine.shmem(2)
    process = machine.process()
    vma = machine.map(process, 2, file, shared=True)
    process.mm.write(address(vma), b"stay")
    assert file.cache.is_mapped(0, 1)
    file.cache.unmap_pages(0, 2)
    assert not file.cache.is_mapped(0, 2)
    assert process.mm.read(address(vma), 4) == b"stay"
    file.put()


def test_unmapping_leaves_private_copies(machine: Machine) -> None:
    """unmap_mapping_pages() without even_cows: a page that a process copied on write isn't the file's any more."""
    file = machine.shmem(3)
    process = machine.process()
    vma = machine.map(process, 3, file)
    process.mm.read(address(vma), 3 * PAGE)
    process.mm.write(address(vma, 1), b"mine")
    file.cache.unmap_pages(0, 3)
    assert [process.mm.ptes[vma.start + i] is None for i in range(3)] == [True, False, True]
    assert process.mm.read(address(vma, 1), 4) == b"mine"
    file.cache.truncate_range(0, 3)
    assert process.mm.read(address(vma, 1), 4) == b"mine"
    file.put()


def test_the_mapping_is_seen_through_any_part_of_it(machine: Machine) -> None:
    """After a split each part is known to the file, with its own offset."""
    file = machine.shmem(8)
    process = machine.process()
    vma = machine.map(process, 8, file, shared=True)
    start = vma.start
    process.mm.write(start * PAGE, b"z" * 8 * PAGE)
    machine.unmap(process, start + 3, start + 5)
    assert [(v.start - start, v.end - start, v.pgoff) for v in process.mm.vmas] == [(0, 3, 0), (5, 8, 5)]
    file.cache.unmap_pages(2, 7)
    mapped = [not process.mm.ptes.empty(start + i, start + i + 1) for i in range(8)]
    assert mapped == [True, True, False, False, False, False, False, True]
    file.put()

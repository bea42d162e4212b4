# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of memory: what processes and devices do with pages.

Written from the facts about the kernels, to be compared with the emulation; it shares no code with it.  A page is an
object; who maps it, caches it or pins it is found by looking, so nothing here can be out of step with itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from errno import EINVAL, ENODEV, ENOMEM

from .pages import (
    PAGE,
    AnonymousShared,
    Area,
    Entry,
    Errno,
    File,
    Hold,
    OutOfMemory,
    Page,
    Process,
    Signal,
    joined,
    pieces,
)

BATCH = 31  # folios that wait in a CPU's LRU-add batch: the one that fills it empties it
PROT_WRITE = 2
PIN_REFERENCES = 1024


class World:
    """Everything that exists.  `cpu` is where the caller runs: it matters only for the LRU batches."""

    def __init__(self) -> None:
        self.zero = Page()
        self.processes = [Process()]
        self.files: list[File] = []
        self.batches: dict[int, list[Page]] = {0: [], 1: []}
        self.holds: list[Hold] = []
        self.cpu = 0
        self.capacity = 1 << 40
        """How many pages the machine can allocate."""

    # Pages

    def hidden_pages(self) -> int:
        """Pages that only the kernel knows."""
        return 0

    def new_page(self) -> Page:
        """A page from the free list."""
        self.need(1)
        return Page()

    def need(self, count: int) -> None:
        if self.capacity < 1 << 40 and 1 + len(self.references()) + self.hidden_pages() + count > self.capacity:
            raise OutOfMemory

    def grab(self, file: File, index: int) -> Page:
        """The page of a file's cache; a new one is zero, and waits in this CPU's batch."""
        if index not in file.pages:
            page = file.pages[index] = self.new_page()
            batch = self.batches[self.cpu]
            batch.append(page)
            if len(batch) == BATCH:
                batch.clear()
        return file.pages[index]

    def cached(self) -> Iterator[Page]:
        """The pages that page caches have."""
        for file in self.files:
            yield from file.pages.values()

    def references(self) -> Counter[Page]:
        """Each page's reference count, as it must be: one for each cache, page table entry, batch and holder."""
        counts = Counter(self.cached())
        counts.update(entry.page for process in self.processes for entry in process.table.values())
        counts.update(page for batch in self.batches.values() for page in batch)
        for hold in self.holds:
            for page in hold.pages:
                counts[page] += PIN_REFERENCES if hold.pin else 1
        del counts[self.zero]
        return counts

    def pinned(self, page: Page) -> bool:
        return any(hold.pin and page in hold.pages for hold in self.holds)

    def unmap(self, file: File, start: int, end: int) -> None:
        """No process has file pages [start, end) in its page table any more."""
        for process in self.processes:
            for vpn, area in process.areas.items():
                if area.file is file and start <= area.number < end:
                    process.table.pop(vpn, None)

    def drop(self, file: File, start: int, end: int) -> None:
        """The file loses pages [start, end); who holds one keeps it."""
        self.unmap(file, start, end)
        for index in [i for i in file.pages if start <= i < end]:
            file.pages.pop(index).give_back()

    # What a process does with its memory

    def touch(self, process: Process, address: int, write: bool) -> Page:
        """The page under `address`, faulted in.  Raises `Signal`."""
        try:
            return self._touch(process, address, write)
        except OutOfMemory:
            raise Signal("SIGBUS", address, ENOMEM) from None

    def _touch(self, process: Process, address: int, write: bool) -> Page:
        vpn = address // PAGE
        area = process.areas.get(vpn)
        if area is None or not area.prot or (write and not area.prot & PROT_WRITE):
            raise Signal("SIGSEGV", address)
        entry = process.table.get(vpn)
        if area.file is not None:
            if entry is None:
                if not area.file.may_touch(area.number):
                    raise Signal("SIGBUS", address)
                entry = process.table[vpn] = Entry(self.grab(area.file, area.number))
                entry.page.fresh = False
        elif write and (entry is None or entry.page is self.zero):
            entry = process.table[vpn] = Entry(self.new_page())
        elif write and entry is not None and not entry.writable:
            if self.references()[entry.page] > 1:
                self.need(1)
                entry = process.table[vpn] = Entry(entry.page.copy())
            entry.writable = True
        elif entry is None:
            entry = process.table[vpn] = Entry(self.zero, writable=False)
        assert entry is not None
        return entry.page

    def load(self, process: Process, address: int, length: int) -> bytes | None:
        return joined(self.touch(process, at, False).read(at % PAGE, n) for at, _, n in pieces(address, length))

    def store(self, process: Process, address: int, data: bytes) -> None:
        for at, done, n in pieces(address, len(data)):
            self.touch(process, at, True).write(at % PAGE, data[done : done + n])

    def map_file(self, process: Process, fd: int, offset: int, npages: int, prot: int, shared: bool, at: int) -> None:
        """mmap() of a file, once the kernel has chosen the address `at`.

        What MAP_FIXED finds there goes before the file is asked, and doesn't come back.
        """
        if offset % PAGE:
            raise Errno(EINVAL)
        file = process.file(fd)
        if not file.mappable:
            raise Errno(ENODEV)
        self.unmap_range(process, at, npages)
        file.may_map(shared)
        for i in range(npages):
            process.areas[at // PAGE + i] = Area(file, offset // PAGE + i, prot)

    def map_anonymous(self, process: Process, npages: int, prot: int, shared: bool, at: int) -> None:
        file = AnonymousShared(npages) if shared else None
        if file is not None:
            self.files.append(file)
        for i in range(npages):
            process.areas[at // PAGE + i] = Area(file, i, prot)

    def unmap_range(self, process: Process, address: int, npages: int) -> None:
        """munmap()."""
        for vpn in range(address // PAGE, address // PAGE + npages):
            process.areas.pop(vpn, None)
            process.table.pop(vpn, None)
        self.reap()

    def forget_range(self, process: Process, address: int, npages: int) -> None:
        """madvise(MADV_DONTNEED)."""
        for vpn in range(address // PAGE, address // PAGE + npages):
            process.table.pop(vpn, None)

    # Devices

    def hold(self, process: Process, address: int, npages: int, write: bool, pin: bool) -> Hold:
        """get_user_pages() or pin_user_pages(): all or EFAULT, but what was faulted in stays."""
        pages = []
        try:
            for i in range(npages):
                pages.append(self.touch(process, address + i * PAGE, write))
        except Signal as signal:
            raise Errno(signal.error) from None
        hold = Hold(pages, pin)
        self.holds.append(hold)
        return hold

    def release(self, hold: Hold) -> None:
        self.holds.remove(hold)

    # Life

    def fork(self, parent: Process) -> Process:
        """A child with the same files and mappings; private pages are shared until written, unless they're pinned."""
        child = Process()
        child.fds, child.areas = dict(parent.fds), dict(parent.areas)
        self.processes.append(child)
        for vpn, entry in sorted(parent.table.items()):
            if parent.areas[vpn].file is None:
                if self.pinned(entry.page):
                    try:
                        self.need(1)
                    except OutOfMemory:
                        self.processes.remove(child)
                        raise Errno(ENOMEM) from None
                    child.table[vpn] = Entry(entry.page.copy())
                else:
                    entry.writable = False
                    child.table[vpn] = Entry(entry.page, writable=False)
        return child

    def exit(self, process: Process) -> None:
        process.alive = False
        process.areas.clear()
        process.table.clear()
        process.fds.clear()
        self.processes.remove(process)
        self.reap()

    def close(self, process: Process, fd: int) -> None:
        process.file(fd)
        del process.fds[fd]
        self.reap()

    def dup(self, process: Process, fd: int) -> int:
        return process.install(process.file(fd))

    def reap(self) -> None:
        """Files that nobody refers to are closed."""
        for file in list(self.files):
            if not any(process.refers(file) for process in self.processes):
                self.files.remove(file)
                file.closed()

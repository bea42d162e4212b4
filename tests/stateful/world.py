# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's pages, processes and files: what memory means, kept page by page in dictionaries.

Written from the facts about the kernels, to be compared with the emulation; it shares no code with it.  A page is an
object; who maps it, caches it or pins it is found by looking, so nothing here can be out of step with itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from errno import EBADF, EFAULT, EINVAL, ENODEV, ENOMEM
from typing import NamedTuple

PAGE = 4096
BATCH = 31  # folios that wait in a CPU's LRU-add batch: the one that fills it empties it
PROT_WRITE = 2
PIN_REFERENCES = 1024


class Errno(Exception):
    """A system call fails.  `offset` is error_offset, where there is one."""

    def __init__(self, number: int, offset: int | None = None) -> None:
        super().__init__(number, offset)
        self.number, self.offset = number, offset


class Signal(Exception):
    """A process touches what it may not: SIGBUS or SIGSEGV at a byte address.  `error` is what a driver gets instead."""

    def __init__(self, name: str, address: int, error: int = EFAULT) -> None:
        super().__init__(name, address)
        self.name, self.address, self.error = name, address, error


class OutOfMemory(Exception):
    """No page is free."""


class Assigned:
    """What the RMP says of a page that belongs to a guest: as which frame, and whether the guest accepted it."""

    def __init__(self, gfn: int, validated: bool) -> None:
        self.gfn, self.validated = gfn, validated


class Page:
    """A page of memory: its bytes (None: all zero), and what else there is to know of them."""

    def __init__(self, data: bytearray | None = None) -> None:
        self.data = data
        self.fresh = True
        """In a page cache, and never used since: nobody has cleared it yet."""
        self.unknown = False
        """Its bytes are noise, or somebody else's matter, and aren't compared."""
        self.assigned: Assigned | None = None

    def copy(self) -> Page:
        """Another page with the same bytes."""
        other = Page(None if self.data is None else bytearray(self.data))
        other.unknown = self.unknown
        return other

    def read(self, offset: int, length: int) -> bytes | None:
        """What is there; None if that can't be told."""
        if self.unknown:
            return None
        return bytes(length) if self.data is None else bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        if self.data is None:
            self.data = bytearray(PAGE)
        self.data[offset : offset + len(data)] = data

    def give_back(self) -> None:
        """The page is the host's again; if it was a guest's, what is in it makes no sense to anybody."""
        if self.assigned:
            self.assigned, self.unknown = None, True


def joined(parts: Iterable[bytes | None]) -> bytes | None:
    """All the parts in a row; None if one of them can't be told."""
    known = list(parts)
    return None if None in known else b"".join(part for part in known if part is not None)


class File:
    """An open file.  `pages` is what its page cache has, by index; `npages` how long it is."""

    mappable = True
    """Whether the kind of file has anything to say about mmap() at all."""

    def __init__(self, npages: int = 0) -> None:
        self.npages = npages
        self.pages: dict[int, Page] = {}

    def may_map(self, shared: bool) -> None:
        """Raise why the file can't be mapped."""
        raise Errno(ENODEV)

    def may_touch(self, index: int) -> bool:
        """Whether the host may have the page at `index`; a signal if not."""
        return index < self.npages

    def closed(self) -> None:
        """Nobody refers to the file any more."""
        for page in self.pages.values():
            page.give_back()
        self.pages.clear()


class AnonymousShared(File):
    """What mmap(MAP_SHARED | MAP_ANONYMOUS) makes: a file that nobody has a descriptor of."""


class Area(NamedTuple):
    """What a process mapped at one page: file page `number` of `file`, or private memory of its own."""

    file: File | None
    number: int
    prot: int


class Entry:
    """What a process has in its page table at one page."""

    def __init__(self, page: Page, writable: bool = True) -> None:
        self.page, self.writable = page, writable


class Process:
    """Descriptors, mappings and page table, by page."""

    def __init__(self) -> None:
        self.fds: dict[int, File] = {}
        self.areas: dict[int, Area] = {}
        self.table: dict[int, Entry] = {}
        self.alive = True

    def file(self, fd: int) -> File:
        if fd not in self.fds:
            raise Errno(EBADF)
        return self.fds[fd]

    def install(self, file: File) -> int:
        fd = next(n for n in range(3, 1 << 20) if n not in self.fds)
        self.fds[fd] = file
        return fd

    def refers(self, file: File) -> bool:
        return any(f is file for f in self.fds.values()) or any(a.file is file for a in self.areas.values())


class Hold:
    """References that a device took: FOLL_PIN or plain."""

    def __init__(self, pages: list[Page], pin: bool) -> None:
        self.pages, self.pin = pages, pin


def pieces(address: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(address, how far into the access, length) of each part of an access that lies in one page."""
    done = 0
    while done < length:
        n = min(length - done, PAGE - (address + done) % PAGE)
        yield address + done, done, n
        done += n


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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's pages, files and processes: what memory means, kept page by page in dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from errno import EBADF, EFAULT, ENODEV
from typing import NamedTuple

PAGE = 4096


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

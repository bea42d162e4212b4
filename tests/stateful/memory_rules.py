# SPDX-License-Identifier: GPL-2.0-or-later
"""What processes and devices do with memory: map, unmap, read, write, pin, fork, exit."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from gmemu.mm.gup import get_user_pages_fast, put_pages
from gmemu.syscalls.emulated import EmulatedDoor
from gmemu.uapi.mman import (
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
)

from .kvm_objects import Gmem, SevDevice
from .machine import FEW_PAGES, OFTEN, SELDOM, SMALL, Machine, pick
from .pages import PAGE, Hold, Process

PROT = st.sampled_from([3] * 10 + [1, 0])
WITHIN = st.sampled_from([0, 1, 100, 4000, 4095])
LENGTH = st.sampled_from([1, 8, 200, 200, 3000, 6000])
BYTE = st.integers(1, 255)
MAX_PROCESSES = 3


class MemoryRules(Machine):
    """The rules of one process's memory, whoever's it is."""

    @precondition(lambda self: self.opened(Gmem))
    @rule(n=SMALL, first=st.integers(0, 9), pages=st.integers(1, 12), prot=PROT, private=SELDOM, over=SMALL, odd=SELDOM)
    def map_gmem(self, n: int, first: int, pages: int, prot: int, private: bool, over: int, odd: bool) -> None:
        """Map a guest_memfd, sometimes over what is there, sometimes beyond its end."""
        process, fd, _, _ = self.gmem_at(n)
        door, offset, flags, at = self.door(process), first * PAGE + odd, MAP_PRIVATE if private else MAP_SHARED, 0
        if over % 5 == 0 and process.areas and not self.meets_ours(self.area_at(process, over // 5), pages):
            at, flags = self.area_at(process, over // 5), flags | MAP_FIXED
        # the model must be told the address that the kernel chose
        try:
            address = door.mmap(at, pages * PAGE, prot, flags, fd, offset)
        except OSError as error:
            code = error.errno
            self.agree(lambda: self.world.map_file(process, fd, offset, pages, prot, not private, at), lambda: _fail(code))
        else:
            assert at in (0, address)
            free = not any(address // PAGE + i in process.areas for i in range(pages))
            assert free or at, "a mapping was put where another is"
            self.agree(lambda: self.world.map_file(process, fd, offset, pages, prot, not private, address), lambda: None)

    @rule(n=SMALL, pages=FEW_PAGES, prot=PROT, shared=st.booleans())
    def map_anonymous(self, n: int, pages: int, prot: int, shared: bool) -> None:
        """Map ordinary memory."""
        process = self.process(n)
        flags = MAP_ANONYMOUS | (MAP_SHARED if shared else MAP_PRIVATE)
        address = self.door(process).mmap(0, pages * PAGE, prot, flags)
        self.world.map_anonymous(process, pages, prot, shared, address)

    @precondition(lambda self: any(p.areas for p in self.world.processes))
    @rule(n=SMALL, at=SMALL, pages=FEW_PAGES, forget=st.booleans())
    def unmap(self, n: int, at: int, pages: int, forget: bool) -> None:
        """Unmap some pages, wherever mappings begin and end; or clear their page table entries."""
        process = self.process(n)
        address = self.area_at(process, at)
        if forget:
            self._forget(process, address, pages)
        elif not self.meets_ours(address, pages):
            self.agree(
                lambda: self.world.unmap_range(process, address, pages),
                lambda: self.door(process).munmap(address, pages * PAGE),
            )

    def _forget(self, process: Process, address: int, pages: int) -> None:
        """madvise(MADV_DONTNEED); a page that isn't mapped is ENOMEM after the others were done, so avoid that."""
        if address // PAGE in process.areas:
            pages = self.mapped_from(process, address, pages)
            self.agree(
                lambda: self.world.forget_range(process, address, pages),
                lambda: self.door(process).madvise(address, pages * PAGE, MADV_DONTNEED),
            )

    @rule(n=SMALL, at=SMALL, within=WITHIN, length=LENGTH, byte=st.integers(0, 255), cpu=st.booleans())
    def access(self, n: int, at: int, within: int, length: int, byte: int, cpu: bool) -> None:
        """A process writes `byte`s, or reads if it's odd."""
        process = self.process(n)
        door, address, data = self.door(process, cpu), self.area_at(process, at) + within, bytes([byte]) * length
        if self.meets_ours(address, 3):
            return
        if byte & 1:
            seen: list[bytes | None] = []

            def want() -> bytes | None:
                seen.append(self.world.load(process, address, length))
                return seen[0]

            def have() -> bytes | None:
                data = door.load(address, length)
                return data if seen[0] is not None else None

            self.agree(want, have)
        else:
            self.agree(lambda: self.world.store(process, address, data), lambda: door.store(address, data))

    # Devices

    @rule(n=SMALL, at=SMALL, pages=FEW_PAGES, write=st.booleans(), pin=OFTEN, cpu=st.booleans())
    def hold(self, n: int, at: int, pages: int, write: bool, pin: bool, cpu: bool) -> None:
        """A driver takes the pages behind user addresses: for DMA, longterm, or with plain references."""
        process, door = self.process(n), self.door(self.process(n), cpu)
        address = self.area_at(process, at)
        pages = pages if n % 7 == 6 else self.mapped_from(process, address, pages)
        areas = [process.areas.get(address // PAGE + i) for i in range(pages)]
        write = write or any(area is not None and area.file is None for area in areas)
        flags = (FOLL_PIN | FOLL_LONGTERM if pin else 0) | (FOLL_WRITE if write else 0)
        frames: list[int] = []

        def take() -> int:
            previous = door.rt.enter(door.task)
            try:
                for pfn, count in get_user_pages_fast(door.mm, address, pages, flags):
                    frames.extend(range(pfn, pfn + count))
            finally:
                door.rt.leave(previous)
            return len(frames)

        if self.agree(lambda: len(self.world.hold(process, address, pages, write, pin).pages), take):
            self.twins.holds[self.world.holds[-1]] = frames

    @precondition(lambda self: self.world.holds)
    @rule(n=SMALL, page=SMALL, byte=BYTE, done=OFTEN)
    def device(self, n: int, page: int, byte: int, done: bool) -> None:
        """A device reads what the model says, and writes; or its driver lets the pages go."""
        if done:
            return self.drop_hold(n)
        hold = pick(self.world.holds, n)
        at = page % len(hold.pages)
        pfn, data = self.twins.holds[hold][at], bytes([byte]) * 64
        if not hold.pages[at].unknown:
            self.agree(lambda: hold.pages[at].read(0, 64), lambda: self.host.memory.host_read(pfn * PAGE, 64))
            self.agree(lambda: hold.pages[at].write(32, data), lambda: self.host.memory.host_write(pfn * PAGE + 32, data))
        return None

    def drop_hold(self, n: int) -> None:
        hold: Hold = pick(self.world.holds, n)
        put_pages(self.host.init.mm, [(pfn, 1) for pfn in self.twins.holds.pop(hold)], FOLL_PIN if hold.pin else 0)
        self.world.release(hold)

    # Processes and descriptors

    @rule(n=SMALL, what=st.sampled_from(["fork", "fork", "dup", "dup", "close", "exit", "odd"]), which=SMALL)
    def live(self, n: int, what: str, which: int) -> None:
        """Processes come and go, and descriptors; but not so many go that nothing is left to meet."""
        process = self.process(n)
        door = self.door(process)
        fds = [fd for fd, file in process.fds.items() if not isinstance(file, SevDevice)]
        fd = pick(fds, which) if fds else 99
        if what == "fork" and len(self.world.processes) < MAX_PROCESSES:
            made: list[EmulatedDoor] = []
            if self.agree(lambda: self.world.fork(process) and None, lambda: made.append(door.fork())):
                self._meet(self.world.processes[-1], made[0])
        elif what == "exit" and self.world.processes.index(process) > which % 8 // 7:
            self.agree(lambda: self.world.exit(process), door.exit)
        elif what == "dup" and fds and len(process.fds) < 20:
            self.made(lambda: self.world.dup(process, fd), lambda: door.dup(fd), process)
        elif what == "close" and (len(process.fds) > 4 or which > 30):
            self.agree(lambda: self.world.close(process, fd), lambda: door.close(fd))
        elif what == "odd" and which > 30:
            self.agree(lambda: self.world.close(process, 99), lambda: door.close(99))


def _fail(code: int | None) -> None:
    raise OSError(code, "")

# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated machine as it stands inside a real process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from types import TracebackType
from typing import Any

from ..faults import Faults
from ..faults.runtime import FaultyRuntime
from ..hw.memory import PAGE_SHIFT
from ..hw.real_memory import ProcessMemory, RealMemory
from ..hw.x86.engine import stop_function
from ..kvm.clock import Tsc
from ..kvm.design import Design
from ..kvm.guest_memfd.conversion import ConversionError
from ..kvm.guest_memfd.file import GmemFile
from ..kvm.guest_memfd.inode import GmemInode
from ..kvm.guest_memfd.populate import PopulateCallback
from ..kvm.host import Host
from ..kvm.mmu import PageFault
from ..kvm.vm import Vm
from ..mm.file import File, Inode
from ..mm.filemap import PageCache
from ..mm.page import Memmap
from ..mm.process import Process
from ..mm.real import CHUNK, PlacedPageCache, RealAddressSpace, RealMemmap
from ..profiles import Profile, get
from ..rules import mm as rules
from ..sync import DirectRuntime
from ..uapi.mman import MADV_POPULATE_WRITE
from .family import STORE, TAKE, Family
from .references import References

__all__ = ["MEMORY", "RealHost", "RealProcess", "RealRuntime"]

MEMORY = 16 << 40
_SIG_AGAIN = signal.SIGRTMAX - 1
"""preload.c's: its handler stops the guest that the thread runs, if it runs one"""


class _GuestMode(AbstractContextManager[None]):
    """Guest mode in which the thread's signals come."""

    def __init__(self, rt: _ProgramsThreads, inner: AbstractContextManager[None]) -> None:
        self._rt, self._inner = rt, inner

    def __enter__(self) -> None:
        self._inner.__enter__()
        handle = getattr(self._rt.running, "engine_handle", 0)
        if handle:
            self._rt.process_memory.guest_enter(stop_function(), handle)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        stopped = self._rt.process_memory.guest_exit()  # without effect if it wasn't entered
        self._inner.__exit__(kind, exc, tb)
        if stopped:
            self._rt.current.pending_signals = 1
            self._rt.running.kick()  # whoever looks for a reason to go on finds one to leave


class _ProgramsThreads(DirectRuntime):
    """Threads are the program's; a guest that runs can be met by the program's signals."""

    process_memory: ProcessMemory

    @property
    def running(self) -> Any:
        """The virtual processor that the calling thread runs, if any."""
        return getattr(self._threads, "cpu", None)

    @running.setter
    def running(self, cpu: Any) -> None:
        self._threads.cpu = cpu

    @cached_property
    def _threads(self) -> threading.local:
        return threading.local()

    def guest_mode(self) -> AbstractContextManager[None]:
        return _GuestMode(self, super().guest_mode())

    def stop_guest(self, thread: int, stop: Callable[[], None]) -> None:
        """By a signal to the thread: an engine that another thread stops may have skipped an instruction meanwhile."""
        with suppress(ProcessLookupError):
            signal.pthread_kill(thread, _SIG_AGAIN)

    def set_signal_mask(self, mask: int | None) -> None:
        self.process_memory.signal_mask(mask is not None, mask or 0)


class RealRuntime(_ProgramsThreads):
    """The runtime of a host in a real process."""

    def __init__(self, process_memory: ProcessMemory) -> None:
        super().__init__()
        self.process_memory = process_memory


class RealFaultyRuntime(_ProgramsThreads, FaultyRuntime):
    """That of one where things fail on order."""

    def __init__(self, process_memory: ProcessMemory, faults: Faults) -> None:
        super().__init__(faults)
        self.process_memory = process_memory


class RealProcess(Process):
    """The program.  Each emulated file has a real descriptor, so numbers, dup() and poll() are the real kernel's affair."""

    def __init__(self, mm: RealAddressSpace, process: ProcessMemory) -> None:
        self._process = process
        super().__init__(mm)

    def get_unused_fd(self) -> int:
        try:
            return os.memfd_create("gmemu", os.MFD_CLOEXEC)
        except OSError as error:
            raise rules.TOO_MANY_FDS(error.strerror or "") from error

    def fd_install(self, fd: int, file: File) -> None:
        if isinstance(file, GmemFile):
            os.set_inheritable(fd, True)
            with suppress(OSError):  # only lseek() would tell
                os.ftruncate(fd, file.inode.size)
        self.adopt_fd(fd, file)

    def adopt_fd(self, fd: int, file: File) -> None:
        """A descriptor that exists leads to `file` from here on.  Takes over the caller's reference."""
        self.files[fd] = file
        self._process.mark_fd(fd, True)

    def file(self, fd: int) -> File:
        """As the other; a descriptor that the emulated kernel knows nothing of leads to some file of the real one."""
        file = self.files.get(fd)
        if file is not None:
            return file
        try:
            os.fstat(fd)
        except OSError:
            return super().file(fd)  # it's not open
        return File(Inode(0o600))

    def put_unused_fd(self, fd: int) -> None:
        os.close(fd)

    def close(self, fd: int) -> None:
        self._process.mark_fd(fd, False)
        super().close(fd)


class RealTsc(Tsc):
    """That of the machine which this is: what RDTSC gives to the program.  Its frequency is measured since the program began
    to use the emulated kernel."""

    def __init__(self, process: ProcessMemory) -> None:
        self._process = process
        now, then, began = process.read_tsc()
        self.khz = round((now - then) * 1_000_000 / max(time.monotonic_ns() - began, 1))

    def read(self) -> int:
        return self._process.read_tsc()[0]


class RealHost(Host):
    """One machine, whose only process is the one that it runs in."""

    def __init__(
        self, profile: str | Profile, process: ProcessMemory, *, platform: str = "amd", faults: Faults | None = None
    ) -> None:
        self.process_memory = process
        profile = get(profile) if isinstance(profile, str) else profile
        design = Design.of(profile)
        self._convert, self._take_from_host = design.convert, design.take_from_host
        self._populate, self._check = design.populate, design.check_references
        self.threads: RealRuntime | RealFaultyRuntime = (
            RealRuntime(process) if faults is None else RealFaultyRuntime(process, faults)
        )
        self.family: Family | None = None
        self.on_event: Callable[..., None] | None = None
        """told of what the kernel does: its name, and details by keyword"""
        self.is_watched = faults is not None
        """somebody orders failures or keeps a log, or has forked: calls are more than themselves"""
        super().__init__(
            profile,
            memory=MEMORY,
            runtime=self.threads,
            design=design._replace(
                convert=self._convert_and_refresh,
                populate=self._populate_and_tell,
                mapping_range=self._mapping_range,
            ),
            platform=platform,
            faults=faults,
        )
        self.references = References(self)

    def new_tsc(self) -> Tsc:
        return RealTsc(self.process_memory)

    def new_memory(self, size: int) -> tuple[RealMemory, Memmap]:
        memory = self.real_memory = RealMemory(size, self.process_memory)
        return memory, RealMemmap(self.rt, memory)

    def new_page_cache(self, name: str, pages: int) -> PageCache:
        assert isinstance(self.memmap, RealMemmap)
        return PlacedPageCache(self.memmap, self.lru, name, pages)

    def new_process(self) -> RealProcess:
        assert isinstance(self.memmap, RealMemmap)
        return RealProcess(RealAddressSpace(self.memmap, self.process_memory), self.process_memory)

    def _convert_and_refresh(self, inode: GmemInode, start: int, end: int, attributes: int) -> None:
        """The conversion; then what is shared is mapped, as no fault handler of ours is behind the real page tables."""
        try:
            self._convert(inode, start, end, attributes)
            if self.on_event is not None:
                self.tell("convert", inode=inode.ino, start=start, end=end, attributes=attributes)
        except BaseException:
            self._publish(inode, start, end)
            raise
        if not attributes:
            self._publish(inode, start, end)
        elif self.family is not None:
            self.family.tell(STORE, inode, start, end, attributes)

    def look_closer(self) -> None:
        """From now on there is somebody whom a conversion has to ask or tell, besides what every machine has."""
        self.design = self.design._replace(
            take_from_host=self._take_from_all,
            check_references=self._check_references,
        )

    def join(self, family: Family) -> None:
        """The process forks: it has relatives."""
        self.family = family
        self.is_watched = True
        self.look_closer()

    def listen(self, on_event: Callable[..., None]) -> None:
        """Somebody wants to be told of what the kernel does."""
        self.on_event = on_event
        self.is_watched = True
        self.look_closer()

    def _take_from_all(self, inode: GmemInode, start: int, end: int) -> None:
        """Unmap the pages in the processes that a fork made, too."""
        if self.family is not None:
            self.family.tell(TAKE, inode, start, end)
        if self.on_event is not None:
            self.tell("zap", inode=inode.ino, start=start, end=end)
        self._take_from_host(inode, start, end)

    def _check_references(self, host: Host, mapping: PageCache, start: int, end: int) -> None:
        """What the real kernel held for the program it may have let go of by now: then look again."""
        try:
            self._check(host, mapping, start, end)
        except ConversionError:
            if not self.references.settle():
                raise
            self._check(host, mapping, start, end)

    def _populate_and_tell(self, vm: Vm, gfn: int, source: int, npages: int, writeback: bool, load: PopulateCallback) -> int:
        done = self._populate(vm, gfn, source, npages, writeback, load)
        self.tell("populate", gfn=gfn, pages=done, source=source)
        return done

    def _mapping_range(self, vm: Vm, fault: PageFault) -> tuple[int, int]:
        """Of memory that is the program's own, 2 MiB are mapped at once, as if it were in huge pages."""
        slot = fault.slot
        one = fault.gfn, fault.gfn + 1
        if slot is None or self.real_memory.is_own(fault.pfn) or slot.dirty_bitmap is not None or not fault.map_writable:
            return one
        start = max(fault.gfn - fault.gfn % CHUNK, slot.base_gfn)
        end = min(fault.gfn - fault.gfn % CHUNK + CHUNK, slot.end_gfn)
        address = slot.userspace_addr + (start - slot.base_gfn << PAGE_SHIFT)
        if self.init.mm.overlapping(address >> PAGE_SHIFT, (address >> PAGE_SHIFT) + end - start):
            return one
        try:
            self.process_memory.madvise(address, end - start << PAGE_SHIFT, MADV_POPULATE_WRITE)
        except OSError:
            return one
        return start, end

    def tell(self, event: str, **details: object) -> None:
        """Whoever keeps a log hears of `event`."""
        if self.on_event is not None:
            self.on_event(event, **details)

    def _publish(self, inode: GmemInode, start: int, end: int) -> None:
        self.refresh(inode, start, end)
        if self.family is not None:
            for s, e, attributes in list(inode.attributes.runs(start, end)):
                self.family.tell(STORE, inode, s, e, attributes)

    def refresh(self, inode: GmemInode, start: int, end: int) -> None:
        """Let this process touch those of file pages [start, end) that it may."""
        for vma in inode.mapping.i_mmap:
            first, last = vma.pages_of(start, end)
            if first < last:
                assert isinstance(vma.mm, RealAddressSpace)
                vma.mm.refresh(vma, first, last)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated kernel inside the program: kernel.c calls the methods of what `start` returns.

Each takes the six words of a system call and returns its result, or the errno as a negative number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from errno import EFAULT, EIO
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING

from ..faults import Faults
from ..faults.points import Points
from ..kvm.guest_memfd.file import GmemFile
from ..kvm.vcpu import VcpuFile
from ..mm.uaccess import copy_from_user, read_user, write_user
from ..rules import KernelError, MemoryFault
from ..rules import gmemu as own_rules
from ..uapi.ioctl import ioctl_size
from ..uapi.kvm import (
    KVM_MEMORY_ENCRYPT_OP,
    KVM_RUN,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    kvm_memory_attributes2,
    kvm_userspace_memory_region,
)
from . import devices
from .door import RealDoor
from .explain import Explainer
from .family import Family
from .host import RealHost, RealProcess
from .log import LoggedCalls, NoLog, open_log
from .measured import measurement
from .settings import Settings
from .stat import stat

if TYPE_CHECKING:
    from ..hw.real_memory import ProcessMemory

__all__ = ["ExecKernel", "start"]

NOT_OURS = -4096
_U32 = 0xFFFFFFFF
_MORE_TO_DO = {KVM_RUN, KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2}
_LONGEST = 1 << 20
"""bytes that one read() or write() of an emulated file moves at most"""

Call = Callable[..., int]


def _errno(call: Call) -> Call:
    """`call`, with what it raises as a negative errno."""

    @wraps(call)
    def wrapped(self: ExecKernel, *words: int) -> int:
        try:
            return call(self, *words)
        except (MemoryFault, OSError) as error:
            return self._failed(error)

    return wrapped


def _signed(word: int) -> int:
    """A register as C's int."""
    word &= _U32
    return word - (1 << 32) if word >> 31 else word


class ExecKernel:
    """System calls of the program."""

    NOT_OURS = NOT_OURS

    def __init__(self, settings: Settings, real: ProcessMemory) -> None:
        self.settings, self.real = settings, real
        self.failed = threading.local()
        """.error: why this thread's last call failed"""
        self._complained = False
        self._points = Points() if settings.points else None
        faults = Faults(*settings.inject.splitlines(), observer=self._points) if settings.inject or settings.points else None
        self.host = RealHost(settings.profile, real, platform=settings.platform, faults=faults)
        self.door = RealDoor(self.host)
        process = self.door.process
        assert isinstance(process, RealProcess)
        self.process = process
        self._family = Family(self.host, self.door.task, self._carry_out)

    def complain(self, error: KernelError) -> None:
        """Say on standard error, once, what this machine lacks, and what works all the same."""
        if not self._complained:
            self._complained = True
            works = "VMs without private memory, and guest_memfd that nobody maps, still work"
            os.write(2, f"gmemu exec: {error.rule.text} ({error.found}): {works}. {error.rule.advice}\n".encode())

    # Files

    @_errno
    def open(self, path: int, flags: int, *_: int) -> int:
        name = self.path(path)
        fd = devices.open_path(self, name)
        if fd is None:
            return NOT_OURS
        os.set_inheritable(fd, not flags & os.O_CLOEXEC)
        return fd

    def path(self, address: int) -> str:
        """A path at `address`: read to the end of its page at most, then on."""
        text = b""
        while b"\0" not in text and len(text) < 4096:
            text += read_user(self.door.mm, address + len(text), 4096 - (address + len(text)) % 4096)
        return os.fsdecode(text.split(b"\0")[0])

    def error_offset(self, argument: int) -> int:
        """What a conversion that failed left in its argument."""
        return copy_from_user(self.door.mm, kvm_memory_attributes2, argument).error_offset

    @_errno
    def close(self, fd: int, *_: int) -> int:
        self.door.close(fd)
        return 0

    @_errno
    def dup(self, fd: int, copy: int, *_: int) -> int:
        self.process.adopt_fd(copy, self.process.file(fd).get())
        return copy

    def _failed(self, error: MemoryFault | OSError) -> int:
        """The errno for what a call raised, which is kept for the log."""
        self.failed.error = error
        if isinstance(error, MemoryFault):
            return -EFAULT
        if isinstance(error, KernelError) and error.rule is own_rules.NO_USERFAULTFD:
            self.complain(error)
        return -(error.errno or EIO)

    def ioctl(self, fd: int, request: int, arg: int, *_: int) -> int:
        """The call that programs make most: no wrapper around it."""
        request &= _U32
        try:
            if request in _MORE_TO_DO or self.host.is_watched:
                return self._ioctl(fd, request, arg)
            return self.door.ioctl(fd, request, arg)
        except (MemoryFault, OSError) as error:
            return self._failed(error)

    def _ioctl(self, fd: int, request: int, arg: int) -> int:
        if request == KVM_RUN:
            return self._run(fd, arg)
        if (
            self._family.is_child
            and isinstance(file := self.process.files.get(fd), GmemFile)
            and self._family.inherited(file)
        ):
            return self._ask(file, request, arg)
        if self.host.faults is not None:
            self.door.adopt(fd)  # orders mean pages that are there
        result = self.door.ioctl(fd, request, arg)
        if request == KVM_MEMORY_ENCRYPT_OP and self.host.on_event is not None:
            self._tell_measurement(fd, arg)
        if request in (KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2):
            self._watch_slot(arg)
        return result

    def _tell_measurement(self, fd: int, arg: int) -> None:
        command = int.from_bytes(read_user(self.door.mm, arg, 4), "little")
        found = measurement(self.process.files.get(fd), command)
        if found is not None:
            self.host.tell("measurement", platform=found.platform, digest=found.digest.hex(), simulated=True)

    def _run(self, fd: int, arg: int) -> int:
        """KVM_RUN is what a signal interrupts: one that waits already, or one that comes while the guest runs."""
        task = self.door.task_of_thread()
        task.pending_signals = int(self.real.signal_pending())
        file = self.process.files.get(fd)
        threads = self.host.threads
        threads.running = file.vcpu.cpu if isinstance(file, VcpuFile) else None
        try:
            return self.door.ioctl(fd, KVM_RUN, arg)
        finally:
            threads.running = None
            task.pending_signals = 0

    def _ask(self, file: GmemFile, request: int, arg: int) -> int:
        """An ioctl on a guest_memfd after a fork: the oldest process's kernel does it."""
        size = ioctl_size(request)
        result, argument = self._family.ask(file, request, read_user(self.door.mm, arg, size))
        write_user(self.door.mm, arg, argument)
        return result

    def _carry_out(self, file: GmemFile, request: int, argument: bytearray) -> int:
        """What a child asked for, in the oldest process."""
        previous = self.host.rt.enter(self.door.task)
        try:
            return file.ioctl(request, argument)
        except OSError as error:
            return -(error.errno or EIO)
        finally:
            self.host.rt.leave(previous)

    def _watch_slot(self, arg: int) -> None:
        """A memslot was made, perhaps: hear of what becomes of the program's memory that guests have there."""
        region = copy_from_user(self.door.mm, kvm_userspace_memory_region, arg)
        if region.memory_size:
            self.real.watch(region.userspace_addr, region.userspace_addr + region.memory_size, True)

    @_errno
    def fallocate(self, fd: int, mode: int, offset: int, length: int, *_: int) -> int:
        self.door.fallocate(fd, mode & _U32, offset, length)
        return 0

    @_errno
    def ftruncate(self, fd: int, length: int, *_: int) -> int:
        self.door.ftruncate(fd, length)
        return 0

    @_errno
    def fstat(self, fd: int, buffer: int, *_: int) -> int:
        """The real descriptor's answer is there already; what the emulated file knows better is put over it."""
        mine = self.door.fstat(fd)
        there = stat.unpack_from(read_user(self.door.mm, buffer, stat.SIZE))
        there.st_mode, there.st_size = mine.mode, mine.size
        there.st_blksize, there.st_blocks = mine.blksize, mine.blocks
        there.st_rdev = devices.rdev(self.process.file(fd))
        write_user(self.door.mm, buffer, there.pack())
        return 0

    @_errno
    def read(self, fd: int, buffer: int, length: int, offset: int, *_: int) -> int:
        length = min(length, _LONGEST)
        whole = self._offset(offset) is None
        data = self.door.read(fd, length) if whole else self.door.pread(fd, length, offset)
        write_user(self.door.mm, buffer, data)
        return len(data)

    @_errno
    def write(self, fd: int, buffer: int, length: int, offset: int, *_: int) -> int:
        data = read_user(self.door.mm, buffer, min(length, _LONGEST))
        whole = self._offset(offset) is None
        return self.door.write(fd, data) if whole else self.door.pwrite(fd, data, offset)

    @staticmethod
    def _offset(word: int) -> int | None:
        return None if word == (1 << 64) - 1 else word

    @_errno
    def fsync(self, fd: int, *_: int) -> int:
        self.door.fsync(fd)
        return 0

    # Memory

    @_errno
    def mmap(self, address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
        return self.door.mmap(address, length, prot, flags & _U32, _signed(fd), offset)

    @_errno
    def munmap(self, address: int, length: int, *_: int) -> int:
        self.door.munmap(address, length)
        return 0

    @_errno
    def mprotect(self, address: int, length: int, prot: int, *_: int) -> int:
        self.door.mprotect(address, length, prot)
        return 0

    @_errno
    def madvise(self, address: int, length: int, advice: int, *_: int) -> int:
        self.door.madvise(address, length, _signed(advice))
        return 0

    @_errno
    def mremap(self, address: int, old: int, new: int, flags: int, to: int, *_: int) -> int:
        return self.door.mremap(address, old, new, flags, to)

    @_errno
    def replaced(self, address: int, length: int, *_: int) -> int:
        self.door.replaced(address, length)
        return 0

    @_errno
    def fault(self, address: int, *_: int) -> int:
        self.door.access_again(address)
        return 0

    @_errno
    def pin(self, what: int, fd: int, request: int, argument: int, number: int, *_: int) -> int:
        """The program is about to make a call by which the real kernel may hold memory of ours: a token, or 0."""
        with self.door.syscall():
            return self.host.references.start(what, _signed(fd), request & _U32, argument, number)

    @_errno
    def pinned(self, token: int, result: int, *_: int) -> int:
        """That call returned."""
        with self.door.syscall():
            self.host.references.done(token, _signed(result))
        return 0

    # Life

    @_errno
    def fork(self, stage: int, *_: int) -> int:
        if stage == 0:
            self._family.before_fork()
            self.host.join(self._family)
        elif stage == 1:
            self._family.in_parent()
        else:
            self._family.in_child()
        return 0

    @_errno
    def exit(self, *_: int) -> int:
        if self._points is not None:
            with open(self.settings.points, "a", encoding="utf-8") as file:
                file.writelines(f"{order}\n" for order in self._points.orders())
        return 0


def start(real: ProcessMemory) -> ExecKernel | LoggedCalls:
    """The emulated machine, as `gmemu exec` ordered it (environment), in the process that `real` is of."""
    settings = Settings.from_environment(os.environ)
    if settings.plugin:
        import_module(settings.plugin)
    kernel = ExecKernel(settings, real)
    if not settings.log and not settings.explain:
        return kernel
    title = {
        "gmemu": "exec",
        "simulated": True,
        "profile": settings.profile,
        "platform": settings.platform,
        "pid": os.getpid(),
    }
    log = open_log(settings.log, title) if settings.log else NoLog()
    calls = LoggedCalls(kernel, log, Explainer(kernel).told if settings.explain else None)
    kernel.host.listen(calls.event)
    return calls

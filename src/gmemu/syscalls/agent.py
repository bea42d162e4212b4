# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to a kernel elsewhere: an agent there makes the system calls.

The agent is a small C program (`conformance/vm/agent.c`) in a virtual machine, or beside us in a test.  Every number goes
to it as it is, so bad pointers and descriptors are as bad there; a buffer becomes a copy in the agent's memory that ends
where memory ends, and comes back.  A load or store is the CPU's own, with a signal handler: what a C program would have
died of is known, signal and address.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from errno import EFAULT
from signal import SIGBUS, SIGSEGV
from typing import TYPE_CHECKING, Any

from ..mm.file import Stat
from ..rules import BusError, KernelError, MemoryFault, SegmentationFault, gmemu
from ..uapi.kvm import ioctl_name
from ..uapi.mman import O_CLOEXEC, O_NONBLOCK, O_RDWR
from ..uapi.unistd import Sys, stat
from .channel import BUFFER, AgentLost, Answer, Channel, ChildChannel, Op
from .real import real_rule

if TYPE_CHECKING:
    from ..hw.cpu import Guest
    from ..mm.uaccess import Iovec, UserPointer

__all__ = ["AgentDoor"]

Argument = int | bytes | bytearray | memoryview

_CALL = struct.Struct("<BII6Q6I")
_IOVEC = struct.Struct("<QQ")
_FDS = struct.Struct("<ii")
_LOAD = struct.Struct("<BQI")
_STORE = struct.Struct("<BQ")
_LONG = (1 << 64) - 1
_NO_BUFFER = (1 << 32) - 1
_UTS_FIELD = 65
_BUS_MCEERR_AO = 5
"""si_code of a SIGBUS that tells of bad memory before it's touched: action optional."""

_NAMES = {int(call): call.name.lower() for call in Sys}
_PLAIN = (_NO_BUFFER,) * 6


def _iov(parts: Sequence[Iovec]) -> bytes:
    """The parts as the kernel wants them."""
    return b"".join(_IOVEC.pack(address & _LONG, length & _LONG) for address, length in parts)


class AgentDoor:
    """System calls of the process (or thread) that is the agent behind `channel`.

    A call that lasts longer than `patience` (milliseconds) is interrupted by a signal there, and mostly ends in EINTR.
    """

    patience = 10_000

    def __init__(self, channel: Channel, name: str = "vm") -> None:
        self.channel, self.name = channel, name
        uts = bytearray(6 * _UTS_FIELD)
        self.kernel = "the agent's kernel"
        self.syscall(Sys.UNAME, uts)
        system, _, release, *_ = (uts[at : at + _UTS_FIELD].rstrip(b"\0").decode() for at in range(0, len(uts), _UTS_FIELD))
        self.release = release
        self.kernel = f"{system} {release}"

    # Any call

    def syscall(self, number: int, *args: Argument, asked: str = "") -> int:
        """System call `number`.  A buffer stands for its address; what the kernel wrote to a writable one is written back.

        Raises `KernelError`, and `MemoryFault` if the kernel sent SIGBUS or SIGSEGV meanwhile: the call met poisoned memory.
        """
        request = self._request(number, args)
        return self._result(self.channel.ask(request), number, args, asked)

    def begin(self, number: int, *args: Argument) -> Callable[[], int]:
        """Start a system call on a thread or fork and don't wait: call what is returned to have the result."""
        channel = self.channel
        if not isinstance(channel, ChildChannel):
            raise ValueError("the first process has nobody else to wait for it: use thread() or fork()")
        channel.tell(self._request(number, args))
        return lambda: self._result(channel.hear(), number, args, "")

    def _request(self, number: int, args: tuple[Argument, ...]) -> bytes:
        values, sizes, blobs = [0] * 6, list(_PLAIN), []
        for index, arg in enumerate(args):
            if isinstance(arg, int):
                values[index] = arg & _LONG
            else:
                view = memoryview(arg)
                if view.nbytes > BUFFER:
                    raise ValueError(f"a buffer of {view.nbytes} bytes is too large for an agent; {BUFFER} is the limit")
                sizes[index] = view.nbytes
                blobs.append(view.tobytes())
        return _CALL.pack(Op.CALL, number, self.patience, *values, *sizes) + b"".join(blobs)

    def _result(self, answer: Answer, number: int, args: tuple[Argument, ...], asked: str) -> int:
        at = 0
        for arg in args:
            if not isinstance(arg, int):
                view = memoryview(arg)
                if not view.readonly:
                    view.cast("B")[:] = answer.data[at : at + view.nbytes]
                at += view.nbytes
        call = _NAMES.get(number) or f"syscall {number}"
        if answer.signal in (SIGBUS, SIGSEGV) and answer.code != _BUS_MCEERR_AO:
            raise self._fault(answer, call, answer.address)
        if -4096 < answer.result < 0:
            shown = asked or ", ".join(f"{a:#x}" if isinstance(a, int) else f"{len(a)} bytes" for a in args)
            raise KernelError(real_rule(self.name, self.kernel, call, -answer.result), f"{call}({shown})")
        return answer.result

    def _fault(self, answer: Answer, call: str, address: int) -> MemoryFault:
        kind, signal = (BusError, "SIGBUS") if answer.signal == SIGBUS else (SegmentationFault, "SIGSEGV")
        return kind(real_rule(self.name, self.kernel, call, EFAULT, signal), address, f"{call}, si_code {answer.code}")

    # Processes

    def fork(self) -> AgentDoor:
        """fork(): the child's door."""
        return self._spawn(b"f")

    def thread(self, name: str = "", cpu: int = 0) -> AgentDoor:
        """Another thread of this process, on whatever CPU.  With `begin` it waits in the kernel while others go on."""
        return self._spawn(b"t")

    def _spawn(self, kind: bytes) -> AgentDoor:
        answer = self.channel.ask(bytes((Op.SPAWN,)) + kind)
        if answer.result < 0:
            raise KernelError(real_rule(self.name, self.kernel, "clone", -answer.result))
        return AgentDoor(ChildChannel(self.channel, answer.result), self.name)

    def exit(self) -> None:
        """_exit(): the process or thread is gone.  For the first process that is the end of the machine."""
        if isinstance(self.channel, ChildChannel):
            self.channel.close()
        else:
            self.channel.ask(bytes((Op.LEAVE,)))
            self.channel.close()

    def kill(self) -> None:
        """SIGKILL to a fork, whatever it's doing."""
        if not isinstance(self.channel, ChildChannel):
            raise AgentLost("the first process can't be killed from outside")
        self.channel.end(kill=True)

    # Files

    def open(self, path: str) -> int:
        return self.syscall(Sys.OPEN, path.encode() + b"\0", O_RDWR | O_CLOEXEC, 0, asked=path)

    def close(self, fd: int) -> None:
        self.syscall(Sys.CLOSE, fd)

    def dup(self, fd: int) -> int:
        return self.syscall(Sys.DUP, fd)

    def memfd_create(self, name: str) -> int:
        return self.syscall(Sys.MEMFD_CREATE, name.encode() + b"\0", 0, asked=name)

    def ioctl(self, fd: int, request: int, arg: UserPointer = 0) -> int:
        shown = f"{arg:#x}" if isinstance(arg, int) else f"{len(arg)} bytes"
        return self.syscall(Sys.IOCTL, fd, request, arg, asked=f"fd {fd}, {ioctl_name(request)}, {shown}")

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        self.syscall(Sys.FALLOCATE, fd, mode, offset, length)

    def fstat(self, fd: int) -> Stat:
        buffer = bytearray(stat.SIZE)
        self.syscall(Sys.FSTAT, fd, buffer)
        found = stat.unpack_from(buffer)
        return Stat(found.st_ino, found.st_mode, found.st_size, found.st_blksize, found.st_blocks)

    def ftruncate(self, fd: int, length: int) -> None:
        self.syscall(Sys.FTRUNCATE, fd, length)

    def fsync(self, fd: int) -> None:
        self.syscall(Sys.FSYNC, fd)

    def read(self, fd: int, length: int) -> bytes:
        """read(), of at most `BUFFER` bytes."""
        buffer = bytearray(min(length, BUFFER))
        return bytes(buffer[: self.syscall(Sys.READ, fd, buffer, len(buffer))])

    def write(self, fd: int, data: bytes) -> int:
        return self.syscall(Sys.WRITE, fd, data[:BUFFER], min(len(data), BUFFER))

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """pread64(), of at most `BUFFER` bytes."""
        buffer = bytearray(min(length, BUFFER))
        return bytes(buffer[: self.syscall(Sys.PREAD64, fd, buffer, len(buffer), offset)])

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return self.syscall(Sys.PWRITE64, fd, data[:BUFFER], min(len(data), BUFFER), offset)

    def pipe(self) -> tuple[int, int]:
        ends = bytearray(_FDS.size)
        self.syscall(Sys.PIPE2, ends, O_CLOEXEC | O_NONBLOCK)
        reads, writes = _FDS.unpack(ends)
        return reads, writes

    def splice(self, fd_in: int, off_in: UserPointer, fd_out: int, off_out: UserPointer, length: int, flags: int = 0) -> int:
        return self.syscall(Sys.SPLICE, fd_in, off_in, fd_out, off_out, length, flags)

    def vmsplice(self, fd: int, iov: Sequence[Iovec], flags: int = 0) -> int:
        return self.syscall(Sys.VMSPLICE, fd, _iov(iov), len(iov), flags)

    def getpid(self) -> int:
        return self.syscall(Sys.GETPID)

    def process_vm_readv(self, pid: int, local: Sequence[Iovec], remote: Sequence[Iovec], flags: int = 0) -> int:
        return self.syscall(Sys.PROCESS_VM_READV, pid, _iov(local), len(local), _iov(remote), len(remote), flags)

    def process_vm_writev(self, pid: int, local: Sequence[Iovec], remote: Sequence[Iovec], flags: int = 0) -> int:
        return self.syscall(Sys.PROCESS_VM_WRITEV, pid, _iov(local), len(local), _iov(remote), len(remote), flags)

    # Memory

    def mmap(self, address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        return self.syscall(Sys.MMAP, address, length, prot, flags, fd, offset)

    def munmap(self, address: int, length: int) -> None:
        self.syscall(Sys.MUNMAP, address, length)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        self.syscall(Sys.MPROTECT, address, length, prot)

    def madvise(self, address: int, length: int, advice: int) -> None:
        self.syscall(Sys.MADVISE, address, length, advice)

    def mremap(self, address: int, old_length: int, new_length: int, flags: int, new_address: int = 0) -> int:
        return self.syscall(Sys.MREMAP, address, old_length, new_length, flags, new_address)

    def mlock(self, address: int, length: int) -> None:
        self.syscall(Sys.MLOCK, address, length)

    def munlock(self, address: int, length: int) -> None:
        self.syscall(Sys.MUNLOCK, address, length)

    def load(self, address: int, length: int) -> bytes:
        parts = []
        for at in range(address, address + length, BUFFER):
            answer = self.channel.ask(_LOAD.pack(Op.LOAD, at & _LONG, min(BUFFER, address + length - at)))
            self._check_access(answer, "load", at)
            parts.append(bytes(answer.data))
        return b"".join(parts)

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), BUFFER):
            request = _STORE.pack(Op.STORE, address + at & _LONG) + view[at : at + BUFFER].tobytes()
            self._check_access(self.channel.ask(request), "store", address + at)

    def _check_access(self, answer: Answer, call: str, address: int) -> None:
        """A fault at an address that isn't canonical is told without it."""
        if answer.signal:
            raise self._fault(answer, call, answer.address or address)

    def load_guest(self, vcpu_fd: int, guest: Guest) -> Any:
        raise gmemu.NO_ENGINE("a scripted guest for a real vCPU")

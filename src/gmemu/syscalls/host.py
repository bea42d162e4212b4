# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to the kernel that this Python runs on: its real /dev/kvm, its real memory.

Calls go to libc, so the errno is the kernel's own; which check made it, no kernel says.  Buffers handed to `ioctl` are
used where they are.  Only this module needs ctypes: importing gmemu must stay cheap.

Loads and stores never touch the memory themselves, as a SIGBUS would kill the interpreter.  The kernel does it:

1. process_vm_readv and process_vm_writev on our own pid.  They need no descriptor and no lock, and stop at the first page
   that can't be had.  But they go through get_user_pages, which refuses what the CPU wouldn't mind: loads from a
   write-only mapping, mappings without struct pages, memory taken out of the kernel's direct map (memfd_secret, and
   guest_memfd in series not merged yet).
2. So a page that was refused, but whose protection allows the access, is tried once more through a pipe: write() and
   read() copy with the process's own page tables and come back with EFAULT where the CPU would have trapped.

Neither says which signal it would have been.  /proc/self/maps does: SIGSEGV where nothing is mapped or the protection
forbids it, else SIGBUS.  (Probing with a SIGBUS handler isn't sound in Python: its handlers run after the instruction.)
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import c_char, c_char_p, c_int, c_long, c_size_t, c_ssize_t, c_uint, c_ulong, c_void_p
from errno import EFAULT
from typing import TYPE_CHECKING, Any

from ..mm.file import Stat
from ..rules import BusError, MemoryFault, SegmentationFault, gmemu
from ..rules import mm as rules
from ..uapi.ioctl import ioctl_size
from ..uapi.kvm import ioctl_name
from ..uapi.mman import O_CLOEXEC, O_NONBLOCK, O_RDWR
from .real import RealRule, real_rule

if TYPE_CHECKING:
    from ..hw.cpu import Guest
    from ..mm.uaccess import Iovec, UserPointer

__all__ = ["HostDoor"]

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_LONG = (1 << 64) - 1


class _iovec(ctypes.Structure):
    _fields_ = (("base", c_void_p), ("len", c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)


def _declare(name: str, result: type[Any], *args: type[Any]) -> Callable[..., int]:
    """libc's `name`.  ctypes masks an integer to its argument's width, so any Python integer may be passed."""
    function = getattr(_libc, name)
    function.restype, function.argtypes = result, args
    return function  # type: ignore[no-any-return]


_open = _declare("open", c_int, c_char_p, c_int)
_close = _declare("close", c_int, c_int)
_dup = _declare("dup", c_int, c_int)
_ioctl = _declare("ioctl", c_int, c_int, c_ulong, c_void_p)
_mmap = _declare("mmap", c_ssize_t, c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_munmap = _declare("munmap", c_int, c_void_p, c_size_t)
_mprotect = _declare("mprotect", c_int, c_void_p, c_size_t, c_int)
_madvise = _declare("madvise", c_int, c_void_p, c_size_t, c_int)
_fallocate = _declare("fallocate", c_int, c_int, c_int, c_long, c_long)
_ftruncate = _declare("ftruncate", c_int, c_int, c_long)
_fsync = _declare("fsync", c_int, c_int)
_read = _declare("read", c_ssize_t, c_int, c_void_p, c_size_t)
_write = _declare("write", c_ssize_t, c_int, c_void_p, c_size_t)
_pread = _declare("pread", c_ssize_t, c_int, c_void_p, c_size_t, c_long)
_pwrite = _declare("pwrite", c_ssize_t, c_int, c_void_p, c_size_t, c_long)
_memfd_create = _declare("memfd_create", c_int, c_char_p, c_uint)
_splice = _declare("splice", c_ssize_t, c_int, c_void_p, c_int, c_void_p, c_size_t, c_uint)
_vmsplice = _declare("vmsplice", c_ssize_t, c_int, ctypes.POINTER(_iovec), c_size_t, c_uint)
_mremap = _declare("mremap", c_ssize_t, c_void_p, c_size_t, c_size_t, c_int, c_void_p)
_mlock = _declare("mlock", c_int, c_void_p, c_size_t)
_munlock = _declare("munlock", c_int, c_void_p, c_size_t)
_IOV = (c_int, ctypes.POINTER(_iovec), c_ulong, ctypes.POINTER(_iovec), c_ulong, c_ulong)
_process_vm_readv = _declare("process_vm_readv", c_ssize_t, *_IOV)
_process_vm_writev = _declare("process_vm_writev", c_ssize_t, *_IOV)


def _iov(parts: Sequence[Iovec]) -> Any:
    """The parts as the kernel wants them."""
    return (_iovec * len(parts))(*(_iovec(address & _LONG, length & _LONG) for address, length in parts))


def _rule(call: str, errno: int, signal: str) -> RealRule:
    return real_rule("host", f"Linux {os.uname().release}", call, errno, signal)


def _check(result: int, call: str, asked: str) -> int:
    """What the call returned, unless it failed."""
    if result == -1:
        raise _rule(call, ctypes.get_errno(), "")(f"{call}({asked})")
    return result


class HostDoor:
    """System calls of this very process."""

    name = "host"

    # Files

    def open(self, path: str) -> int:
        return _check(_open(os.fsencode(path), O_RDWR | O_CLOEXEC), "open", path)

    def close(self, fd: int) -> None:
        _check(_close(fd), "close", f"fd {fd}")

    def dup(self, fd: int) -> int:
        return _check(_dup(fd), "dup", f"fd {fd}")

    def memfd_create(self, name: str) -> int:
        return _check(_memfd_create(os.fsencode(name), 0), "memfd_create", name)

    def ioctl(self, fd: int, request: int, arg: UserPointer = 0) -> int:
        """ioctl(); a buffer must be writable, as the kernel may write it.

        One shorter than the request's structure gets EFAULT (`mm.uaccess`) here: the kernel would go on reading and writing
        behind it.  What a structure says to follow it (KVM_SET_MSRS) can't be checked.
        """
        if isinstance(arg, int):
            result = _ioctl(fd, request, arg & _LONG)
            shown = f"{arg:#x}"
        else:
            size = memoryview(arg).nbytes
            if size < ioctl_size(request):
                raise rules.USER_COPY(f"a buffer of {size} bytes for a structure of {ioctl_size(request)}")
            result = _ioctl(fd, request, (c_char * size).from_buffer(arg))
            shown = f"{size} bytes"
        return result if result != -1 else _check(result, "ioctl", f"fd {fd}, {ioctl_name(request)}, {shown}")

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        _check(_fallocate(fd, mode, offset, length), "fallocate", f"fd {fd}, {mode:#x}, {offset:#x}, {length:#x}")

    def fstat(self, fd: int) -> Stat:
        try:
            stat = os.fstat(c_int(fd).value)
        except OSError as error:
            raise _rule("fstat", error.errno or 0, "")(f"fstat(fd {fd})") from None
        return Stat(stat.st_ino, stat.st_mode, stat.st_size, stat.st_blksize, stat.st_blocks)

    def ftruncate(self, fd: int, length: int) -> None:
        _check(_ftruncate(fd, length), "ftruncate", f"fd {fd}, {length:#x}")

    def fsync(self, fd: int) -> None:
        _check(_fsync(fd), "fsync", f"fd {fd}")

    def read(self, fd: int, length: int) -> bytes:
        buffer = ctypes.create_string_buffer(length)
        got = _check(_read(fd, buffer, length), "read", f"fd {fd}, {length:#x} bytes")
        return buffer.raw[:got]

    def write(self, fd: int, data: bytes) -> int:
        return _check(_write(fd, data, len(data)), "write", f"fd {fd}, {len(data):#x} bytes")

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        buffer = ctypes.create_string_buffer(length)
        got = _check(_pread(fd, buffer, length, offset), "pread", f"fd {fd}, {length:#x} bytes, {offset:#x}")
        return buffer.raw[:got]

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return _check(_pwrite(fd, data, len(data), offset), "pwrite", f"fd {fd}, {len(data):#x} bytes, {offset:#x}")

    def pipe(self) -> tuple[int, int]:
        return os.pipe2(O_CLOEXEC | O_NONBLOCK)

    def splice(self, fd_in: int, off_in: UserPointer, fd_out: int, off_out: UserPointer, length: int, flags: int = 0) -> int:
        offsets = [off if isinstance(off, int) else (c_char * 8).from_buffer(off) for off in (off_in, off_out)]
        asked = f"fd {fd_in}, fd {fd_out}, {length:#x}, {flags:#x}"
        return _check(_splice(fd_in, offsets[0] or None, fd_out, offsets[1] or None, length, flags), "splice", asked)

    def vmsplice(self, fd: int, iov: Sequence[Iovec], flags: int = 0) -> int:
        return _check(_vmsplice(fd, _iov(iov), len(iov), flags), "vmsplice", f"fd {fd}, {len(iov)} parts, {flags:#x}")

    # Processes

    def getpid(self) -> int:
        return os.getpid()

    def process_vm_readv(self, pid: int, local: Sequence[Iovec], remote: Sequence[Iovec], flags: int = 0) -> int:
        moved = _process_vm_readv(pid, _iov(local), len(local), _iov(remote), len(remote), flags)
        return _check(moved, "process_vm_readv", f"pid {pid}, {len(local)} parts from {len(remote)}")

    def process_vm_writev(self, pid: int, local: Sequence[Iovec], remote: Sequence[Iovec], flags: int = 0) -> int:
        moved = _process_vm_writev(pid, _iov(local), len(local), _iov(remote), len(remote), flags)
        return _check(moved, "process_vm_writev", f"pid {pid}, {len(local)} parts to {len(remote)}")

    # Memory

    def mmap(self, address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        asked = f"{address:#x}, {length:#x}, {prot:#x}, {flags:#x}, fd {fd}, {offset:#x}"
        return _check(_mmap(address & _LONG, length, prot, flags, fd, offset), "mmap", asked)

    def munmap(self, address: int, length: int) -> None:
        _check(_munmap(address & _LONG, length), "munmap", f"{address:#x}, {length:#x}")

    def mprotect(self, address: int, length: int, prot: int) -> None:
        _check(_mprotect(address & _LONG, length, prot), "mprotect", f"{address:#x}, {length:#x}, {prot:#x}")

    def madvise(self, address: int, length: int, advice: int) -> None:
        _check(_madvise(address & _LONG, length, advice), "madvise", f"{address:#x}, {length:#x}, {advice}")

    def mremap(self, address: int, old_length: int, new_length: int, flags: int, new_address: int = 0) -> int:
        asked = f"{address:#x}, {old_length:#x}, {new_length:#x}, {flags:#x}, {new_address:#x}"
        moved = _mremap(address & _LONG, old_length & _LONG, new_length & _LONG, flags, new_address & _LONG)
        return _check(moved, "mremap", asked)

    def mlock(self, address: int, length: int) -> None:
        _check(_mlock(address & _LONG, length & _LONG), "mlock", f"{address:#x}, {length:#x}")

    def munlock(self, address: int, length: int) -> None:
        _check(_munlock(address & _LONG, length & _LONG), "munlock", f"{address:#x}, {length:#x}")

    def load(self, address: int, length: int) -> bytes:
        buffer = bytearray(length)
        _transfer(address, buffer, write=False)
        return bytes(buffer)

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        _transfer(address, bytearray(view) if view.readonly else view, write=True)

    def load_guest(self, vcpu_fd: int, guest: Guest) -> None:
        raise gmemu.NO_ENGINE("a scripted guest for a real vCPU")


def _transfer(address: int, data: bytearray | memoryview, *, write: bool) -> None:
    """Load or store all of `data`.  Raises `MemoryFault` for the first byte that can't be had."""
    if not data:
        return
    call = _process_vm_writev if write else _process_vm_readv
    local = (c_char * len(data)).from_buffer(data)
    base, done, pid = ctypes.addressof(local), 0, os.getpid()
    while done < len(data):
        here, left = _iovec(base + done, len(data) - done), len(data) - done
        at = address + done
        moved = call(pid, here, 1, _iovec(at & _LONG, left), 1, 0) if 0 <= at <= _LONG else -1
        if moved <= 0:
            moved = min(left, PAGE_SIZE - at % PAGE_SIZE)
            permissions = _permissions(at)
            possible = "w" in permissions if write else permissions[:3] not in ("", "---")
            if not possible or not _through_pipe(at, base + done, moved, write=write):
                raise _fault(at, permissions, write=write)
        done += moved


def _permissions(address: int) -> str:
    """The mapping's permissions as /proc/self/maps has them ("rw-s"), or "" where there is none."""
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            span, permissions, _ = line.split(None, 2)
            start, end = (int(part, 16) for part in span.split(b"-"))
            if start <= address < end:
                return permissions.decode()
    return ""


def _fault(address: int, permissions: str, *, write: bool) -> MemoryFault:
    """The signal that the CPU would have ended in: SIGBUS if the protection allows it; x86 may read what it may write."""
    call = "store" if write else "load"
    if "w" in permissions or ("r" in permissions and not write):
        return BusError(_rule(call, EFAULT, "SIGBUS"), address, f"{call} at a mapped address")
    where = f"a mapping with permissions {permissions}" if permissions else "an address where nothing is mapped"
    return SegmentationFault(_rule(call, EFAULT, "SIGSEGV"), address, f"{call} at {where}")


def _through_pipe(address: int, local: int, count: int, *, write: bool) -> bool:
    """Copy `count` bytes (within a page, so that no pipe is too small) by write() and read(): whether it could be done."""
    source, destination = (local, address) if write else (address, local)
    out, in_ = os.pipe2(O_CLOEXEC)
    try:
        return _write(in_, source, count) == count and _read(out, destination, count) == count
    finally:
        os.close(out)
        os.close(in_)

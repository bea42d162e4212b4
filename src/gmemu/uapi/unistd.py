# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64's system call numbers (arch/x86/entry/syscalls/syscall_64.tbl): those that touch files, memory and processes."""

from __future__ import annotations

from enum import IntEnum

from .layout import Struct, s64, u32, u64

__all__ = ["Sys", "stat"]


class Sys(IntEnum):
    """System calls by name, in capitals."""

    READ = 0
    WRITE = 1
    OPEN = 2
    CLOSE = 3
    FSTAT = 5
    LSEEK = 8
    MMAP = 9
    MPROTECT = 10
    MUNMAP = 11
    IOCTL = 16
    PREAD64 = 17
    PWRITE64 = 18
    PIPE = 22
    MREMAP = 25
    MSYNC = 26
    MINCORE = 27
    MADVISE = 28
    DUP = 32
    DUP2 = 33
    GETPID = 39
    SENDFILE = 40
    UNAME = 63
    FCNTL = 72
    FSYNC = 74
    FTRUNCATE = 77
    FCHMOD = 91
    FSTATFS = 138
    MLOCK = 149
    MUNLOCK = 150
    SETRLIMIT = 160
    GETTID = 186
    REMAP_FILE_PAGES = 216
    FADVISE64 = 221
    MBIND = 237
    SPLICE = 275
    TEE = 276
    SYNC_FILE_RANGE = 277
    VMSPLICE = 278
    MOVE_PAGES = 279
    FALLOCATE = 285
    EVENTFD2 = 290
    DUP3 = 292
    PIPE2 = 293
    PROCESS_VM_READV = 310
    PROCESS_VM_WRITEV = 311
    MEMFD_CREATE = 319
    USERFAULTFD = 323
    MLOCK2 = 325
    COPY_FILE_RANGE = 326
    IO_URING_SETUP = 425
    IO_URING_REGISTER = 427
    PIDFD_OPEN = 434
    PIDFD_GETFD = 438
    PROCESS_MADVISE = 440
    MEMFD_SECRET = 447
    CACHESTAT = 451
    MSEAL = 462


class stat(Struct):
    """What fstat() fills in (asm/stat.h).  Sizes in bytes, blocks of 512 bytes."""

    st_dev: int = u64()
    st_ino: int = u64()
    st_nlink: int = u64()
    st_mode: int = u32()
    st_uid: int = u32()
    st_gid: int = u32()
    pad0: int = u32()
    st_rdev: int = u64()
    st_size: int = s64()
    st_blksize: int = s64()
    st_blocks: int = s64()
    times: tuple[int, ...] = u64(6)
    unused: tuple[int, ...] = s64(3)

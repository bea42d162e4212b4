# SPDX-License-Identifier: GPL-2.0-or-later
"""A process: file descriptors, an address space, and the task that enters the kernel for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..rules import KernelError
from ..rules import mm as rules
from ..sync import Task
from .address_space import AddressSpace
from .file import File, fput

__all__ = ["Process"]

RLIMIT_NOFILE = 1 << 20


class Process:
    """One address space, one table of files; `task` is its first thread."""

    _next_pid = 1000

    def __init__(self, mm: AddressSpace) -> None:
        Process._next_pid += 1
        self.pid = Process._next_pid
        self.mm, self.rt = mm, mm.rt
        mm.memmap.processes[self.pid] = self
        self.files: dict[int, File] = {}
        self.nofile = RLIMIT_NOFILE
        self._lowest = 3
        self._reserved: set[int] = set()
        self.task = self.thread("main")

    def thread(self, name: str, cpu: int = 0) -> Task:
        """Another thread of this process, on CPU number `cpu`."""
        return Task(f"{name}/{self.pid}", self, self.mm, cpu)

    def get_unused_fd(self) -> int:
        """get_unused_fd_flags(): the lowest free number, set aside until `fd_install` or `put_unused_fd`.

        Raises EMFILE (`fs.fd-limit`).
        """
        fd = self._lowest
        while fd in self.files or fd in self._reserved:
            fd += 1
        if fd >= self.nofile:
            raise rules.TOO_MANY_FDS(f"{len(self.files)} open")
        self._reserved.add(fd)
        self._lowest = fd + 1
        return fd

    def fd_install(self, fd: int, file: File) -> None:
        """fd_install(): `fd` leads to `file` from here on.  Takes over the caller's reference."""
        self._reserved.remove(fd)
        self.files[fd] = file

    def put_unused_fd(self, fd: int) -> None:
        """put_unused_fd(): the number is free again."""
        self._reserved.remove(fd)
        self._lowest = min(self._lowest, fd)

    def install_fd(self, file: File) -> int:
        """A descriptor for `file`.  Takes over the caller's reference, also when it fails: EMFILE (`fs.fd-limit`)."""
        try:
            fd = self.get_unused_fd()
        except KernelError:
            file.put()
            raise
        self.fd_install(fd, file)
        return fd

    def file(self, fd: int) -> File:
        """fget() without the reference.  Raises EBADF (`fs.fd`)."""
        self.rt.reads(("fd", self, fd))
        try:
            return self.files[fd]
        except KeyError:
            raise rules.BAD_FD(f"fd {fd}") from None

    @contextmanager
    def fdget(self, fd: int) -> Iterator[File]:
        """fdget() and fdput(): the file, which stays open until the end of the block whoever closes it."""
        file = self.file(fd).get()
        try:
            yield file
        finally:
            fput(self.rt, file)

    def close(self, fd: int) -> None:
        """close_fd()."""
        self.rt.writes(("fd", self, fd))
        file = self.files.pop(fd, None)
        if file is None:
            raise rules.BAD_FD(f"fd {fd}")
        self._lowest = min(self._lowest, fd)
        fput(self.rt, file)
        self.rt.task_work_run()

    def fork(self) -> Process:
        """copy_process(): the child shares the open files and has a copy of the address space."""
        child = Process(self.mm.fork())
        child.files = {fd: file.get() for fd, file in self.files.items()}
        child._lowest, child.nofile = self._lowest, self.nofile
        return child

    def exit(self) -> None:
        """do_exit(): mappings go before files, as in the kernel."""
        self.mm.memmap.processes.pop(self.pid, None)
        self.mm.exit()
        self.rt.task_work_run()
        for fd in sorted(self.files):
            self.close(fd)

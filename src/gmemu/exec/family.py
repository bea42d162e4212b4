# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that share emulated files since a fork.

fork() copies the emulated kernel with everything else, and the real kernel doesn't hand on what userfaultfd refuses.
So the child sets its own gate up.  The oldest process remains the one whose kernel knows: it tells its children of
every page that is taken or given, and waits until they have obeyed; a child asks it for conversions.  Each side has a
thread that listens.  What a child allocates for VMs of its own comes from a part of the machine's memory that its
parent leaves alone.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING
from weakref import WeakSet

from ..kvm.guest_memfd.file import GmemFile
from ..kvm.guest_memfd.inode import GmemInode
from ..mm.real import RealAddressSpace, RealMemmap

if TYPE_CHECKING:
    from ..sync import Task
    from .host import RealHost

__all__ = ["Family", "Request"]

Request = Callable[[GmemFile, int, bytearray], int]
"""What the oldest process does for a child: (file, ioctl request, argument) -> result, or a negative errno"""

TAKE, STORE = 0, 1
_ORDER = struct.Struct("<IQQQI")
"""what, inode number, first page, end page, attributes"""
_ASK = struct.Struct("<QII")
"""inode number, ioctl request, bytes of argument that follow"""
_ANSWER = struct.Struct("<q")


class Family:
    """One process's place in it.  `carry_out` is done here for a child that asks."""

    def __init__(self, host: RealHost, task: Task, carry_out: Request) -> None:
        self._host, self._task, self._carry_out = host, task, carry_out
        self._children: list[socket.socket] = []
        self._parent: socket.socket | None = None
        self._asking = threading.Lock()
        self._born: tuple[tuple[socket.socket, socket.socket], tuple[socket.socket, socket.socket]] | None = None
        self._previous: Task | None = None
        assert isinstance(host.memmap, RealMemmap)
        self._memmap = host.memmap
        self._part = 0
        self._inherited: WeakSet[GmemInode] = WeakSet()
        self.is_child = False
        """this process, or an ancestor of it, was forked when it had an emulated kernel already"""

    def inherited(self, file: GmemFile) -> bool:
        """Whether the file is older than this process: then another's kernel is the one that knows."""
        return file.gmem_inode in self._inherited

    # fork

    def before_fork(self) -> None:
        """Let nobody be in the kernel while the process is copied."""
        self._previous = self._host.rt.enter(self._task)
        self._born = socket.socketpair(), socket.socketpair()
        self._part = self._memmap.part_for_child()

    def in_parent(self) -> None:
        """The child is there: listen to what it asks."""
        assert self._born is not None
        (orders, theirs), (asks, its) = self._born
        theirs.close()
        its.close()
        self._children.append(orders)
        self._leave()
        self._listen(self._serve, asks)

    def in_child(self) -> None:
        """This is the child: set the gate up, and listen to the parent's orders."""
        assert self._born is not None
        (parents, orders), (asked, asks) = self._born
        for end in (parents, asked, *self._children):
            end.close()
        self._children, self._parent, self._asking = [], asks, threading.Lock()
        self.is_child = True
        mm = self._task.mm
        assert isinstance(mm, RealAddressSpace)
        self._inherited = WeakSet(self._host.gmem_inodes)
        for vm in self._host.vms:
            vm.mm = copy(mm)  # another process's: KVM refuses a VM's ioctls to any but its creator
        mm.after_fork()
        self._memmap.keep_to(self._part)
        self._leave()
        self._listen(self._obey, orders)

    def _leave(self) -> None:
        assert self._previous is not None
        self._host.rt.leave(self._previous)

    def _listen(self, what: Callable[[socket.socket], None], end: socket.socket) -> None:
        def body() -> None:
            self._host.process_memory.kernel_thread()
            what(end)

        threading.Thread(target=body, name="gmemu-family", daemon=True).start()

    # From the oldest process down

    def tell(self, what: int, inode: GmemInode, start: int, end: int, attributes: int = 0) -> None:
        """Every child takes file pages [start, end) from its process, or stores their attribute and gives what is shared."""
        for child in list(self._children):
            try:
                child.sendall(_ORDER.pack(what, inode.ino, start, end, attributes))
                alive = bool(child.recv(1))
            except OSError:
                alive = False
            if not alive:
                child.close()
                self._children.remove(child)

    def _obey(self, orders: socket.socket) -> None:
        """In a child: do what the parent says, until it's gone."""
        while len(order := orders.recv(_ORDER.size, socket.MSG_WAITALL)) == _ORDER.size:
            what, ino, start, end, attributes = _ORDER.unpack(order)
            rt = self._host.rt
            previous = rt.enter(self._task)
            try:
                for inode in [inode for inode in self._host.gmem_inodes if inode.ino == ino]:
                    if what == TAKE:
                        inode.mapping.unmap_pages(start, end)
                    else:
                        inode.attributes.set(start, end, attributes)
                        self._host.refresh(inode, start, end)
                    self.tell(what, inode, start, end, attributes)
            finally:
                rt.leave(previous)
            orders.sendall(b"\0")

    # From a child up

    def ask(self, file: GmemFile, request: int, argument: bytes) -> tuple[int, bytes]:
        """In a child: have the oldest process do an ioctl.  Its result, and the argument as it left it."""
        assert self._parent is not None
        with self._asking:
            self._parent.sendall(_ASK.pack(file.gmem_inode.ino, request, len(argument)) + argument)
            answer = self._parent.recv(_ANSWER.size + len(argument), socket.MSG_WAITALL)
        if len(answer) < _ANSWER.size + len(argument):
            return -5, argument
        return _ANSWER.unpack_from(answer)[0], answer[_ANSWER.size :]

    def _serve(self, asks: socket.socket) -> None:
        """In the parent: do what a child asks for, until it's gone."""
        while len(head := asks.recv(_ASK.size, socket.MSG_WAITALL)) == _ASK.size:
            ino, request, length = _ASK.unpack(head)
            argument = bytearray(asks.recv(length, socket.MSG_WAITALL))
            files = [file for inode in self._host.gmem_inodes if inode.ino == ino for file in inode.files]
            result = self._carry_out(files[0], request, argument) if files else -9
            asks.sendall(_ANSWER.pack(result) + argument)

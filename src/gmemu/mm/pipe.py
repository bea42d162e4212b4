# SPDX-License-Identifier: GPL-2.0-or-later
"""Pipes (fs/pipe.c): a ring of pages.  What was spliced into one stays referenced, not copied, until it's read."""

from __future__ import annotations

from collections import deque

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rules import mm as rules
from ..sync import Deadlock
from .file import S_IFIFO, File, Inode
from .page import Memmap

__all__ = ["PIPE_BUFFERS", "Pipe", "PipeBuffer", "PipeFile"]

PIPE_BUFFERS = 16
"""How many pages a pipe holds unless told otherwise (PIPE_DEF_BUFFERS)."""


class PipeBuffer:
    """`length` bytes of page frame `pfn`, from `offset` on; it has one of the page's references.  `own`: the pipe's own
    page, to which more may be added."""

    __slots__ = ("length", "offset", "own", "pfn")

    def __init__(self, pfn: int, offset: int, length: int, *, own: bool = False) -> None:
        self.pfn, self.offset, self.length, self.own = pfn, offset, length, own


class Pipe:
    """pipe_inode_info, with how many ends of each kind are open."""

    def __init__(self, memmap: Memmap) -> None:
        self.memmap, self.memory = memmap, memmap.memory
        self.mutex = memmap.rt.mutex("pipe->mutex")
        self.buffers: deque[PipeBuffer] = deque()
        self.readers = self.writers = 0
        memmap.pipes.add(self)

    def ends(self, *, noexec: bool) -> tuple[PipeFile, PipeFile]:
        """create_pipe_files(): the end to read from, and the end to write to.  `noexec`: pipefs refuses PROT_EXEC."""
        inode = Inode(S_IFIFO | 0o600)
        self.readers = self.writers = 1
        return PipeFile(self, inode, reads=True, noexec=noexec), PipeFile(self, inode, reads=False, noexec=noexec)

    @property
    def room(self) -> int:
        """How many more buffers there can be."""
        return PIPE_BUFFERS - len(self.buffers)

    def wait_for_space(self, *, nonblock: bool) -> None:
        """Until there's room, or nobody reads.  The caller holds the mutex.

        Raises EPIPE (`fs.pipe.readers`), EAGAIN (`fs.pipe.full`), and `Deadlock` where a real kernel would sleep: whoever
        could read must do it before.
        """
        if not self.readers:
            raise rules.PIPE_READERS("no open end to read from")
        if not self.room:
            if not nonblock:
                raise Deadlock("the pipe is full, and nobody reads while this call waits")
            raise rules.PIPE_FULL(f"{len(self.buffers)} pages wait")

    def wait_for_data(self, *, nonblock: bool) -> bool:
        """Until there's something: whether there is; not if nobody can write any more.  The caller holds the mutex.

        Raises EAGAIN (`fs.pipe.empty`), and `Deadlock` as `wait_for_space` does.
        """
        if self.buffers or not self.writers:
            return bool(self.buffers)
        if not nonblock:
            raise Deadlock("the pipe is empty, and nobody writes while this call waits")
        raise rules.PIPE_EMPTY("nothing to read")

    def add(self, buffer: PipeBuffer) -> None:
        """add_to_pipe().  There must be room."""
        self.buffers.append(buffer)

    def peek(self, length: int) -> bytes:
        """At most `length` bytes of the first buffer."""
        buffer = self.buffers[0]
        return self.memory.kernel_read((buffer.pfn << PAGE_SHIFT) + buffer.offset, min(length, buffer.length))

    def consume(self, length: int) -> None:
        """`length` bytes of the first buffer are done; a buffer that's empty lets its page go."""
        buffer = self.buffers[0]
        buffer.offset, buffer.length = buffer.offset + length, buffer.length - length
        if not buffer.length:
            self.buffers.popleft()
            self.memmap.put(buffer.pfn)

    def release(self) -> None:
        """free_pipe_info()."""
        while self.buffers:
            self.memmap.put(self.buffers.popleft().pfn)


class PipeFile(File):
    """One end, opened with O_NONBLOCK."""

    name = "pipe"

    def __init__(self, pipe: Pipe, inode: Inode, *, reads: bool, noexec: bool) -> None:
        super().__init__(inode)
        self.noexec = noexec
        self.pipe, self.can_read, self.can_write = pipe, reads, not reads

    def read(self, length: int) -> bytes:
        """anon_pipe_read(): what is there, up to `length` bytes.  Raises EAGAIN (`fs.pipe.empty`)."""
        parts: list[bytes] = []
        if not length:
            return b""
        with self.pipe.mutex:
            if not self.pipe.wait_for_data(nonblock=True):
                return b""
            while length and self.pipe.buffers:
                parts.append(self.pipe.peek(length))
                self.pipe.consume(len(parts[-1]))
                length -= len(parts[-1])
        return b"".join(parts)

    def write(self, data: bytes) -> int:
        """anon_pipe_write(): what there's room for.  Raises EPIPE (`fs.pipe.readers`), EAGAIN (`fs.pipe.full`)."""
        if not data:
            return 0
        with self.pipe.mutex:
            if not self.pipe.readers:
                raise rules.PIPE_READERS("no open end to read from")
            done = self._merge(data)
            if not done:
                self.pipe.wait_for_space(nonblock=True)
            while done < len(data) and self.pipe.room:
                [(pfn, _)] = self.pipe.memmap.alloc(1)
                piece = data[done : done + PAGE_SIZE]
                self.pipe.memory.clear(pfn, 1)
                self.pipe.memory.kernel_write(pfn << PAGE_SHIFT, piece)
                self.pipe.add(PipeBuffer(pfn, 0, len(piece), own=True))
                done += len(piece)
        return done

    def _merge(self, data: bytes) -> int:
        """The bytes beyond whole pages go behind what was written last, if they fit: how many did."""
        chars = len(data) & (PAGE_SIZE - 1)
        if not chars or not self.pipe.buffers:
            return 0
        last = self.pipe.buffers[-1]
        end = last.offset + last.length
        if not last.own or end + chars > PAGE_SIZE:
            return 0
        self.pipe.memory.kernel_write((last.pfn << PAGE_SHIFT) + end, data[:chars])
        last.length += chars
        return chars

    def release(self) -> None:
        """pipe_release()."""
        with self.pipe.mutex:
            self.pipe.readers -= self.can_read
            self.pipe.writers -= self.can_write
            if not self.pipe.readers and not self.pipe.writers:
                self.pipe.release()

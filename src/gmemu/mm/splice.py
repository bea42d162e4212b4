# SPDX-License-Identifier: GPL-2.0-or-later
"""splice() and vmsplice() (fs/splice.c): pages go through a pipe by reference where they can."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..hw.memory import PAGE_SIZE
from ..rules import KernelError
from ..rules import mm as rules
from ..uapi.mman import SPLICE_F_GIFT, SPLICE_F_MORE, SPLICE_F_MOVE, SPLICE_F_NONBLOCK
from .address_space import AddressSpace
from .file import File
from .gup import get_user_pages_fast
from .pipe import Pipe, PipeBuffer, PipeFile
from .uaccess import Iovec, IovIter, UserPointer, read_user, write_user

__all__ = ["check_splice_flags", "do_splice", "do_vmsplice"]

_ALL = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT
_OFFSET = struct.Struct("<q")
_PAGES_AT_ONCE = 16


def check_splice_flags(flags: int) -> None:
    """Raises EINVAL (`fs.splice.flags`)."""
    if flags & ~_ALL:
        raise rules.SPLICE_FLAGS(f"flags {flags:#x}")


def do_vmsplice(mm: AddressSpace, file: File, iov: Sequence[Iovec], flags: int) -> int:
    """vmsplice(): user memory into a pipe, page by page and uncopied; or, from the end that is read, copied out of it.

    How many bytes went.  Raises EBADF (`fs.splice.no-pipe`), EFAULT (`mm.gup.fault`, `mm.uaccess`), EINVAL (`mm.iovec.*`),
    EPIPE and EAGAIN (`fs.pipe.*`).
    """
    user = IovIter(mm, iov)
    if not user.count:
        return 0
    if not isinstance(file, PipeFile):
        raise rules.SPLICE_NO_PIPE(file.name)
    nonblock = bool(flags & SPLICE_F_NONBLOCK)
    with file.pipe.mutex:
        if file.can_write:
            file.pipe.wait_for_space(nonblock=nonblock)
            return _iter_to_pipe(mm, user, file.pipe)
        return _pipe_to_iter(file.pipe, user, nonblock=nonblock)


def _iter_to_pipe(mm: AddressSpace, user: IovIter, pipe: Pipe) -> int:
    """iter_to_pipe(): until the pipe is full, or a page can't be had.  Pages are had before room is looked for."""
    total = 0
    while user.count:
        try:
            parts = _get_pages(mm, *user.segment())
        except KernelError:
            if not total:
                raise
            break
        fitting = parts[: pipe.room]
        for part in fitting:
            pipe.add(part)
            user.advance(part.length)
            total += part.length
        for part in parts[len(fitting) :]:
            mm.memmap.put(part.pfn)
        if len(fitting) < len(parts):
            break
    return total


def _get_pages(mm: AddressSpace, address: int, have: int) -> list[PipeBuffer]:
    """iov_iter_get_pages2(): at most 16 pages of `have` bytes at user `address`; fewer if one can't be had.

    Raises EFAULT (`mm.gup.fault`) and ENOMEM (`mm.page.oom`) for the first.
    """
    parts: list[PipeBuffer] = []
    while have and len(parts) < _PAGES_AT_ONCE:
        offset = address & (PAGE_SIZE - 1)
        try:
            [(pfn, _)] = get_user_pages_fast(mm, address - offset, 1)
        except KernelError:
            if not parts:
                raise
            break
        parts.append(PipeBuffer(pfn, offset, min(have, PAGE_SIZE - offset)))
        address, have = address + parts[-1].length, have - parts[-1].length
    return parts


def _pipe_to_iter(pipe: Pipe, user: IovIter, *, nonblock: bool) -> int:
    """vmsplice_to_user(): a buffer that can't be stored as a whole stays, though some of it was."""
    total = 0
    if not pipe.wait_for_data(nonblock=nonblock):
        return 0
    while user.count and pipe.buffers:
        data = pipe.peek(user.count)
        if user.copy_to(data) < len(data):
            if not total:
                raise rules.USER_COPY(f"after {total} bytes")
            break
        pipe.consume(len(data))
        total += len(data)
    return total


def do_splice(mm: AddressSpace, source: File, off_in: UserPointer, to: File, off_out: UserPointer, length: int) -> int:
    """splice(): from a file into a pipe, from a pipe into a file, or from pipe to pipe: how many bytes.  It never waits, as
    the pipes at hand are O_NONBLOCK.

    `off_in` and `off_out` lead to a position, which is then used and updated instead of the file's; 0 for none.
    Raises ESPIPE (`fs.splice.pipe-offset`), EFAULT (`mm.uaccess`), EBADF (`fs.mode`), EINVAL (`fs.splice.*`), EAGAIN and
    EPIPE (`fs.pipe.*`).
    """
    ipipe = source.pipe if isinstance(source, PipeFile) else None
    opipe = to.pipe if isinstance(to, PipeFile) else None
    if (ipipe and off_in) or (opipe and off_out):
        raise rules.SPLICE_PIPE_OFFSET("an offset for a pipe")
    position = [_read_offset(mm, pointer) if pointer else None for pointer in (off_out, off_in)]
    if not source.can_read or not to.can_write:
        raise rules.FILE_MODE(f"from {source.name} to {to.name}")
    if ipipe and opipe:
        return _pipe_to_pipe(ipipe, opipe, length)
    if ipipe:
        done, at = _pipe_to_file(ipipe, to, position[0], length)
        _write_offset(mm, off_out, to, at)
    elif opipe:
        done, at = _file_to_pipe(source, position[1], opipe, length)
        _write_offset(mm, off_in, source, at)
    else:
        raise rules.SPLICE_PIPES(f"from {source.name} to {to.name}")
    return done


def _read_offset(mm: AddressSpace, pointer: UserPointer) -> int:
    data = read_user(mm, pointer, _OFFSET.size) if isinstance(pointer, int) else bytes(pointer[: _OFFSET.size])
    return int(_OFFSET.unpack(data)[0])


def _write_offset(mm: AddressSpace, pointer: UserPointer, file: File, position: int) -> None:
    """Where the call left off: in the caller's memory, or in the file's position."""
    if not pointer:
        file.position = position
    elif isinstance(pointer, int):
        write_user(mm, pointer, _OFFSET.pack(position))
    else:
        _OFFSET.pack_into(pointer, 0, position)


def _check_area(file: File, position: int | None, length: int) -> int:
    """rw_verify_area(): where to begin."""
    if position is not None and not file.positioned:
        raise rules.SPLICE_POSITION(file.name)
    at = file.position if position is None else position
    if length >> 63 or at < 0 or at + length >> 63:
        raise rules.SPLICE_AREA(f"position {at:#x}, length {length:#x}")
    return at


def _pipe_to_file(pipe: Pipe, file: File, position: int | None, length: int) -> tuple[int, int]:
    """do_splice_from(), iter_file_splice_write(): how many bytes, and the position after them."""
    at, done = _check_area(file, position, length), 0
    file.check_splice_write()
    with pipe.mutex:
        if not pipe.wait_for_data(nonblock=True):
            return 0, at
        while done < length and pipe.buffers:
            data = pipe.peek(length - done)
            file.pwrite(data, at + done)
            pipe.consume(len(data))
            done += len(data)
    return done, at + done


def _file_to_pipe(file: File, position: int | None, pipe: Pipe, length: int) -> tuple[int, int]:
    """splice_file_to_pipe(): how many bytes, and the position after them.  The pages are the file's own."""
    at, done = _check_area(file, position, length), 0
    with pipe.mutex:
        pipe.wait_for_space(nonblock=True)
        while done < length and pipe.room:
            found = file.splice_read(at + done, length - done)
            if found is None:
                break
            pipe.add(PipeBuffer(*found))
            done += found[2]
    return done, at + done


def _pipe_to_pipe(source: Pipe, to: Pipe, length: int) -> int:
    """splice_pipe_to_pipe(): buffers move as they are; of one that's split both have the page."""
    if source is to:
        raise rules.SPLICE_SELF("one pipe")
    done = 0
    with source.mutex, to.mutex:
        source.wait_for_data(nonblock=True)
        to.wait_for_space(nonblock=True)
        while done < length and source.buffers and to.room:
            first = source.buffers[0]
            moved = min(first.length, length - done)
            source.memmap.get(first.pfn)
            whole = moved == first.length
            to.add(PipeBuffer(first.pfn, first.offset, moved, own=first.own and whole))
            source.consume(moved)
            done += moved
    return done

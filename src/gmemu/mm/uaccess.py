# SPDX-License-Identifier: GPL-2.0-or-later
"""copy_from_user and copy_to_user.

What a system call is handed is either an address in the caller's address space, which may fault, or a buffer of the
Python program that stands for such memory and can't.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..rules import MemoryFault
from ..rules import mm as rules
from ..uapi.layout import Struct
from .address_space import AddressSpace

__all__ = ["IovIter", "Iovec", "UserPointer", "check_iovec", "copy_from_user", "copy_to_user", "read_user", "write_user"]

UserPointer = int | bytearray | memoryview
Iovec = tuple[int, int]
"""struct iovec: a user address, and how many bytes."""

S = TypeVar("S", bound=Struct)

TASK_SIZE_MAX = (1 << 47) - 4096
UIO_MAXIOV = 1024
MAX_RW_COUNT = (1 << 31) - 4096


def access_ok(address: int, length: int) -> bool:
    """Whether the range lies in the user half of the address space."""
    return address + length <= TASK_SIZE_MAX


def copy_from_user(mm: AddressSpace, layout: type[S], pointer: UserPointer) -> S:
    """The structure behind `pointer`.  Raises EFAULT (`mm.uaccess`)."""
    if isinstance(pointer, int):
        if pointer + layout.SIZE > TASK_SIZE_MAX:
            raise rules.USER_COPY(f"address {pointer:#x} isn't in user space")
        try:
            data = mm.read(pointer, layout.SIZE)
        except MemoryFault as fault:
            raise rules.USER_COPY(str(fault)) from fault
        return layout.unpack_from(data)
    if len(pointer) < layout.SIZE:
        raise rules.USER_COPY(f"a buffer of {len(pointer)} bytes for a structure of {layout.SIZE}")
    return layout.unpack_from(pointer)


def copy_to_user(mm: AddressSpace, pointer: UserPointer, value: Struct) -> None:
    """Write the structure behind `pointer`.  Raises EFAULT (`mm.uaccess`)."""
    if isinstance(pointer, int):
        write_user(mm, pointer, value.pack())
    elif memoryview(pointer).readonly:
        raise rules.USER_COPY("a buffer that can't be written")
    else:
        value.pack_into(pointer)


def read_user(mm: AddressSpace, address: int, length: int) -> bytes:
    """`length` bytes at user `address`.  Raises EFAULT (`mm.uaccess`)."""
    if not access_ok(address, length):
        raise rules.USER_COPY(f"address {address:#x} isn't in user space")
    try:
        return mm.read(address, length)
    except MemoryFault as fault:
        raise rules.USER_COPY(str(fault)) from fault


def write_user(mm: AddressSpace, address: int, data: bytes) -> None:
    """Write `data` at user `address`.  Raises EFAULT (`mm.uaccess`)."""
    if not access_ok(address, len(data)):
        raise rules.USER_COPY(f"address {address:#x} isn't in user space")
    try:
        mm.write(address, data)
    except MemoryFault as fault:
        raise rules.USER_COPY(str(fault)) from fault


def check_iovec(iov: Sequence[Iovec]) -> None:
    """iovec_from_user().  Raises EINVAL (`mm.iovec.count`, `mm.iovec.length`)."""
    if len(iov) > UIO_MAXIOV:
        raise rules.IOVEC_COUNT(f"{len(iov)} parts")
    for _, length in iov:
        if length >> 63:
            raise rules.IOVEC_LENGTH(f"{length:#x} bytes")


class IovIter:
    """import_iovec(): user memory in parts, filled or emptied from its beginning.  `count` bytes are left, at most
    MAX_RW_COUNT.

    Raises EINVAL as `check_iovec` does, EFAULT (`mm.uaccess`) if a part isn't in user space.
    """

    def __init__(self, mm: AddressSpace, iov: Sequence[Iovec]) -> None:
        check_iovec(iov)
        self._mm = mm
        self._parts: list[Iovec] = []
        self.count = 0
        for address, length in iov:
            if not access_ok(address, min(length, MAX_RW_COUNT) if len(iov) == 1 else length):
                raise rules.USER_COPY(f"address {address:#x}, {length:#x} bytes aren't in user space")
            length = min(length, MAX_RW_COUNT - self.count)
            if length:
                self._parts.append((address, length))
                self.count += length

    def segment(self) -> Iovec:
        """first_iovec_segment(): the part that comes next.  There must be one."""
        return self._parts[0]

    def advance(self, length: int) -> None:
        """iov_iter_advance(): `length` bytes of the next part are done."""
        address, have = self._parts[0]
        self._parts[:1] = [(address + length, have - length)] if length < have else []
        self.count -= length

    def copy_to(self, data: bytes) -> int:
        """copy_to_iter(): how many bytes could be stored."""
        done = 0
        while done < len(data) and self.count:
            address, have = self._parts[0]
            piece = data[done : done + have]
            try:
                self._mm.write(address, piece)
            except MemoryFault as fault:
                self.advance(fault.address - address)
                return done + fault.address - address
            self.advance(len(piece))
            done += len(piece)
        return done

    def copy_from(self, length: int) -> bytes:
        """copy_from_iter(): `length` bytes, or those before the first that can't be read."""
        data = b""
        while len(data) < length and self.count:
            address, have = self._parts[0]
            want = min(have, length - len(data))
            try:
                data += self._mm.read(address, want)
            except MemoryFault as fault:
                want = fault.address - address
                data += self._mm.read(address, want)
                self.advance(want)
                break
            self.advance(want)
        return data

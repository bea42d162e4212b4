# SPDX-License-Identifier: GPL-2.0-or-later
"""copy_from_user and copy_to_user.

What a system call is handed is either an address in the caller's address space, which may fault, or a buffer of the
Python program that stands for such memory and can't.
"""

from __future__ import annotations

from typing import TypeVar

from ..rules import MemoryFault
from ..rules import mm as rules
from ..uapi.layout import Struct
from .address_space import AddressSpace

__all__ = ["UserPointer", "copy_from_user", "copy_to_user", "read_user", "write_user"]

UserPointer = int | bytearray | memoryview

S = TypeVar("S", bound=Struct)

TASK_SIZE_MAX = (1 << 47) - 4096


def access_ok(address: int, length: int) -> bool:
    """Whether the range lies in the user half of the address space."""
    return address + length <= TASK_SIZE_MAX


def copy_from_user(mm: AddressSpace, layout: type[S], pointer: UserPointer) -> S:
    """The structure behind `pointer`.  Raises EFAULT (`mm.uaccess`)."""
    if isinstance(pointer, int):
        return layout.unpack_from(read_user(mm, pointer, layout.SIZE))
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

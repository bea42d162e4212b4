# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest_memfd."""

from __future__ import annotations

from errno import EAGAIN, EINTR, ENOMEM
from typing import TYPE_CHECKING

from ..rules import KernelError
from ..uapi.kvm import (
    KVM_GMEM_CONVERT_PRIVATE,
    KVM_GMEM_CONVERT_SHARED,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_SET_MEMORY_ATTRIBUTES2,
    kvm_gmem_convert,
    kvm_memory_attributes2,
)
from ..uapi.mman import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, MAP_SHARED, PROT_READ, PROT_WRITE
from .descriptor import Descriptor
from .mapping import Mapping

if TYPE_CHECKING:
    from ..syscalls.door import Door

__all__ = ["ConversionRefused", "GuestMemfd"]

_TELLS_WHERE = (EAGAIN, ENOMEM, EINTR)


class ConversionRefused(KernelError):
    """A conversion failed part-way through its checks: `error_offset` (bytes in the file) says where."""

    def __init__(self, cause: KernelError, error_offset: int) -> None:
        super().__init__(cause.rule, cause.found)
        self.error_offset = error_offset


class GuestMemfd(Descriptor):
    """Memory for a guest.  `size` is in bytes; offsets are bytes from the start of the file."""

    def __init__(self, door: Door, fd: int, size: int, *, convert_ioctls: bool = False) -> None:
        """`convert_ioctls`: the kernel has KVM_GMEM_CONVERT_SHARED and _PRIVATE instead of KVM_SET_MEMORY_ATTRIBUTES2."""
        super().__init__(door, fd)
        self.size, self._convert_ioctls = size, convert_ioctls

    def mmap(
        self,
        length: int | None = None,
        offset: int = 0,
        *,
        prot: int = PROT_READ | PROT_WRITE,
        flags: int = MAP_SHARED,
        address: int = 0,
    ) -> Mapping:
        """Map `length` bytes from `offset` (default: the rest of the file).  Raises ENODEV, EINVAL, ENOMEM."""
        length = self.size - offset if length is None else length
        return Mapping(self.door, self.door.mmap(address, length, prot, flags, self.fd, offset), length)

    def set_memory_attributes(self, offset: int, size: int, attributes: int, flags: int = 0) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2.  Raises `ConversionRefused` with `error_offset` for EAGAIN and ENOMEM.

        `flags`: KVM_SET_MEMORY_ATTRIBUTES2_ZERO or _PRESERVE where the kernel has them (RFC v5).
        """
        self._set(
            KVM_SET_MEMORY_ATTRIBUTES2,
            kvm_memory_attributes2(offset=offset, size=size, attributes=attributes, flags=flags),
        )

    def convert_shared(self, offset: int, size: int) -> None:
        """KVM_GMEM_CONVERT_SHARED (RFC of May 2025).  Raises as `set_memory_attributes`."""
        self._set(KVM_GMEM_CONVERT_SHARED, kvm_gmem_convert(offset=offset, size=size))

    def convert_private(self, offset: int, size: int) -> None:
        """KVM_GMEM_CONVERT_PRIVATE (RFC of May 2025).  Raises as `set_memory_attributes`."""
        self._set(KVM_GMEM_CONVERT_PRIVATE, kvm_gmem_convert(offset=offset, size=size))

    def _set(self, request: int, args: kvm_memory_attributes2 | kvm_gmem_convert) -> None:
        buffer = bytearray(args.pack())
        try:
            self._ioctl(self.fd, request, buffer)
        except KernelError as error:
            if error.errno in _TELLS_WHERE:
                raise ConversionRefused(error, type(args).unpack_from(buffer).error_offset) from None
            raise

    def make_private(self, offset: int, size: int, flags: int = 0) -> None:
        """Convert to private by the call that the kernel has, with KVM_SET_MEMORY_ATTRIBUTES2_* `flags` where there are."""
        if self._convert_ioctls:
            return self.convert_private(offset, size)
        return self.set_memory_attributes(offset, size, KVM_MEMORY_ATTRIBUTE_PRIVATE, flags)

    def make_shared(self, offset: int, size: int, flags: int = 0) -> None:
        """Convert to shared, as `make_private` the other way."""
        if self._convert_ioctls:
            return self.convert_shared(offset, size)
        return self.set_memory_attributes(offset, size, 0, flags)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate() with any mode."""
        self.door.fallocate(self.fd, mode, offset, length)

    def allocate(self, offset: int, length: int) -> None:
        """Have memory for `length` bytes from `offset`."""
        self.fallocate(FALLOC_FL_KEEP_SIZE, offset, length)

    def punch_hole(self, offset: int, length: int) -> None:
        """Give the memory of `length` bytes from `offset` back.  Attributes stay."""
        self.fallocate(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length)

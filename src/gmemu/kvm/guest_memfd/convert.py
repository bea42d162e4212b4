# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GMEM_CONVERT_SHARED and KVM_GMEM_CONVERT_PRIVATE, as the RFC of May 2025 had them: one ioctl for each direction.

The conversion behind them is that of today; what differs is the call.  `error_offset` must be 0 on entry, a range of no
bytes is converted at once, and a file has to be made for sharing (SUPPORT_SHARED) to know them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...mm.uaccess import UserPointer, copy_from_user
from ...rules import gmem as rules
from ...uapi.kvm import GUEST_MEMFD_FLAG_SUPPORT_SHARED, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_gmem_convert
from .conversion import ConversionError, with_error_offset

if TYPE_CHECKING:
    from .file import GmemFile

__all__ = ["kvm_gmem_convert_private", "kvm_gmem_convert_shared"]

_U64 = (1 << 64) - 1


def kvm_gmem_convert_shared(file: GmemFile, argp: UserPointer) -> int:
    """KVM_GMEM_CONVERT_SHARED."""
    return _convert_range(file, argp, 0)


def kvm_gmem_convert_private(file: GmemFile, argp: UserPointer) -> int:
    """KVM_GMEM_CONVERT_PRIVATE."""
    return _convert_range(file, argp, KVM_MEMORY_ATTRIBUTE_PRIVATE)


def _convert_range(file: GmemFile, argp: UserPointer, attributes: int) -> int:
    """kvm_gmem_ioctl_convert_range().  Raises ENOTTY, EFAULT, EINVAL, and what a conversion does, with `error_offset`."""
    inode = file.gmem_inode
    if not inode.flags & GUEST_MEMFD_FLAG_SUPPORT_SHARED or not file.vm.arch.has_private_mem:
        raise rules.CONVERT_SUPPORT(f"flags {inode.flags:#x}, VM type {file.vm.vm_type.name}")
    args = copy_from_user(file.vm.rt.current.mm, kvm_gmem_convert, argp)
    offset, size = args.offset, args.size
    if args.error_offset:
        raise rules.CONVERT_ERROR_OFFSET(f"{args.error_offset:#x}")
    if any(args.reserved):
        raise rules.CONVERT_RESERVED(f"reserved {args.reserved}")
    if not size:
        return 0
    if offset + size > _U64 or offset + size > inode.size:
        raise rules.CONVERT_RANGE(f"offset {offset:#x}, size {size:#x}, file of {inode.size:#x}")
    if (offset | size) & (PAGE_SIZE - 1):
        raise rules.CONVERT_UNALIGNED(f"offset {offset:#x}, size {size:#x}")
    try:
        file.vm.host.design.convert(inode, offset >> PAGE_SHIFT, offset + size >> PAGE_SHIFT, attributes)
    except ConversionError as failed:
        raise with_error_offset(file, args, argp, failed) from None
    return 0

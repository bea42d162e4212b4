# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_MEMORY_ATTRIBUTES2 as RFC v5 had it: the caller says what is to become of the contents.

ZERO: the pages read as zero afterwards.  PRESERVE: whoever has them next sees what is in them now.  Neither: nothing is
promised, and a software-protected VM scrambles them so that nobody comes to rely on it.  Each VM type tells which of the
two it can do in which direction (discussion D); since v6 there are none (D6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...mm.uaccess import UserPointer, copy_from_user
from ...rules import gmem as rules
from ...uapi.kvm import (
    KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
    KVM_SET_MEMORY_ATTRIBUTES2_ZERO,
    kvm_memory_attributes2,
)
from .conversion import ConversionError, check_attributes, convert_locked, with_error_offset

if TYPE_CHECKING:
    from ..arch.base import VmArch
    from .file import GmemFile
    from .inode import GmemInode

__all__ = ["content_modes", "kvm_gmem_set_attributes_content"]

_MODES = KVM_SET_MEMORY_ATTRIBUTES2_ZERO | KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE


def kvm_gmem_set_attributes_content(file: GmemFile, argp: UserPointer) -> int:
    """The ioctl: checks, the conversion, and then the contents of those pages of the range that have memory.

    That is also done where a page had the wanted attribute already (D7).  Raises EINVAL for flags that aren't there or
    exclude each other, EOPNOTSUPP for one that the VM can't keep, and what every conversion raises.
    """
    vm = file.vm
    attrs = copy_from_user(vm.rt.current.mm, kvm_memory_attributes2, argp)
    if attrs.flags & ~_MODES:
        raise rules.CONTENT_FLAGS(f"flags {attrs.flags:#x}")
    if attrs.flags == _MODES:
        raise rules.CONTENT_BOTH(f"flags {attrs.flags:#x}")
    start, end = check_attributes(file, attrs)
    to = "private" if attrs.attributes else "shared"
    if attrs.flags & ~vm.host.design.content_modes(vm.arch, bool(attrs.attributes)):
        raise rules.CONTENT_UNSUPPORTED(f"{_name(attrs.flags)} towards {to}, VM type {vm.vm_type.name}")
    inode = file.gmem_inode
    try:
        with inode.mapping.invalidate_lock.exclusive:
            convert_locked(inode, start, end, attrs.attributes)
            if attrs.flags == KVM_SET_MEMORY_ATTRIBUTES2_ZERO:
                _zero(inode, start, end)
            elif not attrs.flags:
                for first, last, delta in list(inode.mapping.pages.runs(start, end)):
                    vm.arch.content_unspecified(first + delta, last - first)
    except ConversionError as failed:
        raise with_error_offset(file, attrs, argp, failed) from None
    return 0


def content_modes(arch: VmArch, private: bool) -> int:
    """KVM_SET_MEMORY_ATTRIBUTES2_* flags that a conversion of the VM's memory can keep: it's the VM type that knows."""
    return arch.content_modes(private)


def _zero(inode: GmemInode, start: int, end: int) -> None:
    """Clear what has memory; what has none reads as zero anyway."""
    for first, last, delta in list(inode.mapping.pages.runs(start, end)):
        inode.host.rt.writes_each(("contents",), first + delta, last + delta)
        inode.host.memory.clear(first + delta, last - first)


def _name(flags: int) -> str:
    return "ZERO" if flags == KVM_SET_MEMORY_ATTRIBUTES2_ZERO else "PRESERVE"

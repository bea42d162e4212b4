# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of guest_memfd: creation, binding, faults, fallocate, attributes, population."""

from __future__ import annotations

from errno import EAGAIN, EBADF, EEXIST, EFAULT, EINTR, EINVAL, EIO, ENODEV, ENOTTY, EOPNOTSUPP
from typing import TYPE_CHECKING

from ..uapi.errno import EHWPOISON
from .base import rule

if TYPE_CHECKING:
    from ..profiles import Profile

_GMEM = "virt/kvm/guest_memfd.c: "


def _in_place(profile: Profile) -> bool:
    return profile.in_place


def _attributes2(profile: Profile) -> bool:
    return profile.conversion in ("attributes2", "content")


def _content(profile: Profile) -> bool:
    return profile.conversion == "content"


def _mappable(profile: Profile) -> bool:
    return bool(profile.gmem_flags & 1)


# Creation

CREATE_FLAGS = rule(
    "gmem.create.flags",
    EINVAL,
    "creation flags must be among those that KVM_CAP_GUEST_MEMFD_FLAGS reports for the VM",
    _GMEM + "kvm_gmem_create()",
)
CREATE_INIT_PRIVATE = rule(
    "gmem.create.init-private",
    EINVAL,
    "INIT_PRIVATE is only for memory that can be shared: it takes SUPPORT_SHARED",
    _GMEM + "kvm_gmem_create() (1G page support, RFC v2)",
    when=lambda p: p.init_flag == "private",
)
CREATE_FOLIO = rule(
    "gmem.create.folio-size",
    EINVAL,
    "with HUGETLB the flags name folios of 2 MiB or 1 GiB, without it none, and the size is a multiple of that",
    _GMEM + "kvm_gmem_create() (1G page support, RFC v2)",
    when=lambda p: p.conversion == "convert",
)
CREATE_SIZE = rule(
    "gmem.create.size",
    EINVAL,
    "the size must be positive as a signed number and a multiple of the page size",
    _GMEM + "kvm_gmem_create()",
)

# Binding

BIND_FD = rule("gmem.bind.fd", EBADF, "guest_memfd must be an open file descriptor", _GMEM + "kvm_gmem_bind()")
BIND_NOT_GMEM = rule("gmem.bind.not-gmem", EINVAL, "the file descriptor must be a guest_memfd", _GMEM + "kvm_gmem_bind()")
BIND_OTHER_VM = rule(
    "gmem.bind.other-vm", EINVAL, "the guest_memfd must have been created by the same VM", _GMEM + "kvm_gmem_bind()"
)
BIND_RANGE = rule(
    "gmem.bind.range",
    EINVAL,
    "the offset must be page aligned, and the slot must end within the file",
    _GMEM + "kvm_gmem_bind()",
)
BIND_OVERLAP = rule(
    "gmem.bind.overlap",
    EEXIST,
    "no page of the file may be bound to two slots",
    _GMEM + "kvm_gmem_bind()",
    when=lambda p: p.bind_overlap_is_eexist,
)
BIND_OVERLAP_OLD = rule(
    "gmem.bind.overlap-einval",
    EINVAL,
    "no page of the file may be bound to two slots",
    _GMEM + "kvm_gmem_bind()",
    when=lambda p: not p.bind_overlap_is_eexist,
)

# Mapping, and faults by the host

MMAP_UNSUPPORTED = rule(
    "gmem.mmap.flag",
    ENODEV,
    "a guest_memfd can be mapped only if it was created with GUEST_MEMFD_FLAG_MMAP",
    _GMEM + "kvm_gmem_mmap()",
    advice="Create it with GUEST_MEMFD_FLAG_MMAP where the profile has that.",
)
MMAP_PRIVATE = rule(
    "gmem.mmap.private",
    EINVAL,
    "a guest_memfd can be mapped MAP_SHARED only",
    _GMEM + "kvm_gmem_mmap()",
    when=_mappable,
)
FAULT_EOF = rule(
    "gmem.fault.eof",
    EFAULT,
    "a mapping of a guest_memfd may only be touched within the file",
    _GMEM + "kvm_gmem_fault_user_mapping()",
    signal="SIGBUS",
    when=_mappable,
)
FAULT_PRIVATE = rule(
    "gmem.fault.private",
    EFAULT,
    "the host may touch only pages that are shared",
    _GMEM + "kvm_gmem_fault_user_mapping()",
    advice="Convert the page to shared first, or create the file with INIT_SHARED.",
    signal="SIGBUS",
    when=_mappable,
)

# fallocate

FALLOC_KEEP_SIZE = rule(
    "gmem.fallocate.keep-size", EOPNOTSUPP, "FALLOC_FL_KEEP_SIZE is mandatory", _GMEM + "kvm_gmem_fallocate()"
)
FALLOC_MODE = rule(
    "gmem.fallocate.mode",
    EOPNOTSUPP,
    "only KEEP_SIZE and PUNCH_HOLE are supported",
    _GMEM + "kvm_gmem_fallocate()",
)
FALLOC_UNALIGNED = rule(
    "gmem.fallocate.unaligned",
    EINVAL,
    "offset and length must be multiples of the page size",
    _GMEM + "kvm_gmem_fallocate()",
)
FALLOC_EOF = rule(
    "gmem.fallocate.eof",
    EINVAL,
    "memory can be allocated only within the file",
    _GMEM + "kvm_gmem_allocate()",
)
FALLOC_SIGNAL = rule("gmem.fallocate.signal", EINTR, "no signal may be pending", _GMEM + "kvm_gmem_allocate()")

# The guest's side

GET_PFN_CLOSED = rule(
    "gmem.get-pfn.closed",
    EFAULT,
    "the slot's guest_memfd must still be open",
    _GMEM + "kvm_gmem_get_pfn()",
    advice="Delete the slot, or keep the file (or a mapping of it) until the slot is gone.",
)
GET_PFN_BINDING = rule(
    "gmem.get-pfn.binding",
    EIO,
    "the guest_memfd must have the page bound to the slot that the fault came by",
    _GMEM + "__kvm_gmem_get_pfn() (a warning: it can't happen)",
)
GET_PFN_POISON = rule(
    "gmem.get-pfn.hwpoison",
    EHWPOISON,
    "a page with a hardware memory error can't be given to the guest",
    _GMEM + "__kvm_gmem_get_pfn()",
    advice="Punch a hole at the page to have a new one.",
)
GET_PFN_PENDING = rule(
    "gmem.get-pfn.pending",
    EFAULT,
    "a page that is to become private and is still held can't be given to the guest",
    "no kernel; the third state of discussion A (D2)",
    advice="Have whoever holds the page let go of it, and run the vCPU again.",
)

# KVM_SET_MEMORY_ATTRIBUTES2

_ATTR = _GMEM + "kvm_gmem_set_attributes() (in-place conversion series, v13)"
IOCTL = rule("gmem.ioctl.unknown", ENOTTY, "a guest_memfd must know the ioctl", _GMEM + "kvm_gmem_ioctl()")
ATTR_DISABLED = rule(
    "gmem.attributes.disabled",
    ENOTTY,
    "in-place conversion must exist and be on (kvm.gmem_in_place_conversion=1)",
    _ATTR,
    advice="Without it, set attributes on the VM fd with KVM_SET_MEMORY_ATTRIBUTES.",
    when=lambda p: p.conversion == "vm",
)
ATTR_FLAGS = rule("gmem.attributes.flags", EINVAL, "flags must be 0", _ATTR, when=lambda p: p.conversion == "attributes2")
ATTR_RESERVED = rule("gmem.attributes.reserved", EINVAL, "every reserved word must be 0", _ATTR, when=_attributes2)
ATTR_NO_PRIVATE_MEM = rule(
    "gmem.attributes.vm-type", EINVAL, "the VM must be of a type that has private memory", _ATTR, when=_in_place
)
ATTR_UNKNOWN = rule(
    "gmem.attributes.unknown", EINVAL, "no attribute but KVM_MEMORY_ATTRIBUTE_PRIVATE may be set", _ATTR, when=_attributes2
)
ATTR_RANGE = rule(
    "gmem.attributes.range", EINVAL, "size must not be 0, and offset + size must not wrap", _ATTR, when=_in_place
)
ATTR_UNALIGNED = rule(
    "gmem.attributes.unaligned", EINVAL, "offset and size must be multiples of the page size", _ATTR, when=_in_place
)
ATTR_EOF = rule("gmem.attributes.eof", EINVAL, "the range must lie within the file", _ATTR, when=_in_place)
ATTR_BUSY = rule(
    "gmem.attributes.busy",
    EAGAIN,
    "a page can be made private only when nobody but the page cache holds a reference to it",
    _ATTR + ", kvm_gmem_is_safe_for_conversion()",
    advice="error_offset names the first such page: drop what holds it (a pin, DMA, vmsplice) and try again.",
    when=_in_place,
)

# KVM_GMEM_CONVERT_SHARED and KVM_GMEM_CONVERT_PRIVATE

_CONVERT = _GMEM + "kvm_gmem_ioctl_convert_range() (1G page support, RFC v2)"


def _convert(profile: Profile) -> bool:
    return profile.conversion == "convert"


CONVERT_SUPPORT = rule(
    "gmem.convert.support-shared",
    ENOTTY,
    "the file must have been created with SUPPORT_SHARED, and the VM must have private memory",
    _CONVERT,
    when=_convert,
)
CONVERT_ERROR_OFFSET = rule("gmem.convert.error-offset", EINVAL, "error_offset must be 0 on entry", _CONVERT, when=_convert)
CONVERT_RESERVED = rule("gmem.convert.reserved", EINVAL, "every reserved word must be 0", _CONVERT, when=_convert)
CONVERT_RANGE = rule(
    "gmem.convert.range", EINVAL, "the range must not wrap, and lie within the file", _CONVERT, when=_convert
)
CONVERT_UNALIGNED = rule(
    "gmem.convert.unaligned", EINVAL, "offset and size must be multiples of the page size", _CONVERT, when=_convert
)

SPLIT_BUSY = rule(
    "gmem.convert.split-busy",
    EAGAIN,
    "a large folio can be split or merged only while nobody but the page cache holds any of its pages",
    _GMEM + "folio_ref_freeze() in the restructuring of 1G page support, RFC v2 (S30)",
    advice="error_offset names the folio: drop what holds it and try again.",
    when=_convert,
)

# The content flags of RFC v5

_CONTENT = _GMEM + "kvm_gmem_set_attributes() (in-place conversion series, RFC v5)"
CONTENT_FLAGS = rule("gmem.content.flags", EINVAL, "flags may only have ZERO or PRESERVE", _CONTENT, when=_content)
CONTENT_BOTH = rule("gmem.content.both", EINVAL, "ZERO and PRESERVE exclude each other", _CONTENT, when=_content)
CONTENT_UNSUPPORTED = rule(
    "gmem.content.unsupported",
    EOPNOTSUPP,
    "the VM must be able to keep the promise: ZERO only towards shared; PRESERVE towards private, and for guests whose"
    " memory is encrypted only until the launch is final",
    _CONTENT,
    advice="With flags 0 nothing is promised; a guest must then initialize what it takes.",
    when=_content,
)

# kvm_gmem_populate

_POPULATE = _GMEM + "kvm_gmem_populate()"
POPULATE_COUNT = rule(
    "gmem.populate.count",
    EINVAL,
    "at least one page must be asked for",
    _POPULATE + " (a warning: the platform checks before)",
    when=lambda p: p.populate == "gup-first",
)
POPULATE_UNALIGNED = rule(
    "gmem.populate.unaligned",
    EINVAL,
    "the source must be page aligned",
    _POPULATE + " (a warning: the platform checks before)",
    when=lambda p: p.populate == "gup-first",
)
POPULATE_SLOT = rule("gmem.populate.slot", EINVAL, "the gfn must be in a slot with a guest_memfd", _POPULATE)
POPULATE_CLOSED = rule("gmem.populate.closed", EFAULT, "the slot's guest_memfd must still be open", _POPULATE)
POPULATE_SIGNAL = rule("gmem.populate.signal", EINTR, "no signal may be pending", _POPULATE)
POPULATE_NOT_PRIVATE = rule(
    "gmem.populate.not-private",
    EINVAL,
    "a page can be populated only while its attribute is private",
    _POPULATE,
    advice="Set KVM_MEMORY_ATTRIBUTE_PRIVATE on the range first.",
)
POPULATE_PREPARED = rule(
    "gmem.populate.prepared",
    EEXIST,
    "a page can be populated once, before anybody used it",
    _POPULATE,
    when=lambda p: p.populate == "locked",
)
POPULATE_SOURCE = rule(
    "gmem.populate.source",
    EFAULT,
    "the source must be readable user memory",
    "arch/x86/kvm/svm/sev.c: sev_gmem_post_populate()",
    when=lambda p: p.populate == "locked",
)
POPULATE_NO_SOURCE = rule(
    "gmem.populate.no-source",
    EINVAL,
    "there must be a source unless the page type needs none or conversion is in place",
    "arch/x86/kvm/svm/sev.c: sev_gmem_post_populate()",
)

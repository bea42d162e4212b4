# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's memory as the VMM has it, and how a part of it is converted.

Converting to private takes that nobody else holds the pages: no mapping of a device, no buffer registered for I/O, no
transfer under way.  What the VMM holds itself it lets go of first.  What others hold for a moment (a page fault under way, a
batch of the kernel's) goes by itself: EAGAIN, and one tries again.  `error_offset` says which page it was, so all that comes
before it is done meanwhile, and a single page that stays busy is known by name.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, EINTR, ENOMEM, EOPNOTSUPP
from typing import NamedTuple, Protocol

from ..api.guest_memfd import ConversionRefused, GuestMemfd
from ..api.mapping import Mapping
from ..api.vm import Vm
from ..uapi.kvm import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    GUEST_MEMFD_FLAG_SUPPORT_SHARED,
    KVM_CAP_GMEM_CONVERSION,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
    Cap,
    VmType,
)
from .backoff import Backoff
from .errors import ConversionTimeout, NoMemoryThere

__all__ = ["IN_PLACE", "Block", "Converter", "Holder", "convert", "converter_of", "in_blocks", "left_to_kvm"]

_TRY_AGAIN = (EAGAIN, EINTR, ENOMEM)


class Block(NamedTuple):
    """One memslot: `size` bytes at `gpa`, from the start of `gmem`.  `buffer` is where this process has its shared view."""

    gpa: int
    size: int
    gmem: GuestMemfd
    buffer: Mapping
    slot: int


class Holder(Protocol):
    """Something of the VMM's that holds guest pages: device assignment, a registered buffer, a migration thread."""

    def let_go(self, gpa: int, size: int) -> None:
        """The pages become private: drop every pin and mapping that there is of them."""

    def take(self, gpa: int, size: int) -> None:
        """The pages are shared now, and may be used again."""


Converter = Callable[[Block, int, int, bool], None]
"""(block, offset, size, private): one system call.  Raises `OSError`, `ConversionRefused` if it tells where."""


def on_guest_memfd(block: Block, offset: int, size: int, private: bool) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd: in place."""
    (block.gmem.make_private if private else block.gmem.make_shared)(offset, size)


def preserving(block: Block, offset: int, size: int, private: bool) -> None:
    """The same where a conversion says what becomes of the contents (RFC v5): they are kept where the platform can."""
    attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
    try:
        block.gmem.set_memory_attributes(offset, size, attributes, KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE)
    except OSError as error:
        if error.errno != EOPNOTSUPP:
            raise
        block.gmem.set_memory_attributes(offset, size, attributes)


def by_convert_ioctls(block: Block, offset: int, size: int, private: bool) -> None:
    """KVM_GMEM_CONVERT_SHARED and _PRIVATE (RFC of May 2025)."""
    (block.gmem.convert_private if private else block.gmem.convert_shared)(offset, size)


def left_to_kvm(block: Block, offset: int, size: int, private: bool) -> None:
    """A design in which KVM converts by itself when the vCPU is run again (pKVM's proposal; the variants
    `convert-in-vcpu-run...`): letting go of what the VMM holds is all that there is to do."""


IN_PLACE: dict[Converter, int] = {
    left_to_kvm: GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
    on_guest_memfd: GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
    preserving: GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
    by_convert_ioctls: GUEST_MEMFD_FLAG_SUPPORT_SHARED,
}
"""The converters with which a page keeps its place, each with the creation flags of memory that is shared at first."""

_RFC_V5_CAP_ATTRIBUTES = 249


def converter_of(vm: Vm) -> Converter:
    """How the kernel has it: on the guest_memfd where it says so, else on the VM, which selects one of two pools."""
    if vm.vm_type is VmType.ARM_PROTECTED and not vm.check_extension(Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES):
        return left_to_kvm
    if vm.check_extension(Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES) & KVM_MEMORY_ATTRIBUTE_PRIVATE:
        return on_guest_memfd
    if vm.check_extension(_RFC_V5_CAP_ATTRIBUTES) & KVM_MEMORY_ATTRIBUTE_PRIVATE:
        return preserving
    if vm.check_extension(KVM_CAP_GMEM_CONVERSION):
        return by_convert_ioctls

    def on_vm(block: Block, offset: int, size: int, private: bool) -> None:
        (vm.make_private if private else vm.make_shared)(block.gpa + offset, size)

    return on_vm


def in_blocks(blocks: list[Block], gpa: int, size: int) -> list[tuple[Block, int, int]]:
    """The parts of [gpa, gpa + size) by block, as (block, offset, size).  Raises `NoMemoryThere` for what is in none."""
    parts, at = [], gpa
    while at < gpa + size:
        block = next((b for b in blocks if b.gpa <= at < b.gpa + b.size), None)
        if block is None:
            raise NoMemoryThere(gpa, size)
        length = min(gpa + size, block.gpa + block.size) - at
        parts.append((block, at - block.gpa, length))
        at += length
    return parts


def convert(converter: Converter, block: Block, offset: int, size: int, private: bool, backoff: Backoff) -> None:
    """Convert `size` bytes from `offset` of the block, all of it, or raise `ConversionTimeout` or what else was refused.

    Attempts are counted for one page: whenever a page that was in the way is done, counting starts again.  So it ends.
    """
    end, until, failed = offset + size, offset + size, 0
    while offset < end:
        try:
            converter(block, offset, until - offset, private)
        except OSError as error:
            if error.errno not in _TRY_AGAIN:
                raise
            held = error.error_offset if isinstance(error, ConversionRefused) else offset
            if offset < held < until:
                until = held  # what comes before the page in use can be done at once
                continue
            failed += 1
            if failed == backoff.attempts:
                raise ConversionTimeout(block.gpa + offset, failed, error) from error
            backoff.wait(failed)
            until = end
            continue
        offset, until, failed = until, end, 0

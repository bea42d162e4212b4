# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversion inside KVM_RUN, as pKVM's proof of concept had it (discussion A; D1): for a guest that isn't encrypted, which
has no such thing otherwise, and for a protected one of pKVM in guest_memfd (profile `inplace-v13-pkvm`), which has.

The guest's hypercall unmaps the page from the host; user space is told, lets go of what it holds, and runs the vCPU again.
If nobody holds the page then, it's private and the guest goes on.  If somebody does, either the vCPU exits again, or the
guest goes on and is refused the page when it touches it.  There is no call by which user space could convert.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT
from ...kvm.guest_memfd.conversion import ConversionError, convert_locked
from ...kvm.guest_memfd.unshare import Unshare
from ...kvm.run import map_gpa_range_exit
from ...uapi.kvm import KVM_MAP_GPA_RANGE_ENCRYPTED, KVM_MEMORY_ATTRIBUTE_PRIVATE
from .references import _complete, convert_or_leave_pending, guest_lookup
from .variant import Variant

if TYPE_CHECKING:
    from ...kvm.design import Design
    from ...kvm.guest_memfd.inode import GmemInode
    from ...kvm.vcpu import Vcpu

__all__ = ["VARIANTS"]

Complete = Callable[[int], int]
EINVAL = 22


class _InVcpuRun:
    """What becomes of the guest's hypercall.  2a: as long as somebody holds the page, exit again."""

    def __call__(self, vcpu: Vcpu, gpa: int, npages: int, attributes: int, complete: Complete, flags: int) -> int:
        slot = vcpu.vm.find_slot(gpa >> PAGE_SHIFT)
        if slot is None or slot.gmem_file is None:
            return complete(-EINVAL)
        inode, start = slot.gmem_file.gmem_inode, slot.gmem_index(gpa >> PAGE_SHIFT)
        wanted = KVM_MEMORY_ATTRIBUTE_PRIVATE if attributes & KVM_MAP_GPA_RANGE_ENCRYPTED else 0
        if wanted:
            with inode.mapping.invalidate_lock.exclusive:
                inode.mapping.unmap_pages(start, start + npages)

        def resumed(ret: int) -> int:
            if self.convert(inode, start, start + npages, wanted):
                return complete(0)
            return map_gpa_range_exit(vcpu, gpa, npages, attributes, resumed, flags)

        return map_gpa_range_exit(vcpu, gpa, npages, attributes, resumed, flags)

    def convert(self, inode: GmemInode, start: int, end: int, attributes: int) -> bool:
        """User space ran the vCPU again: whether the guest may go on."""
        try:
            with inode.mapping.invalidate_lock.exclusive:
                convert_locked(inode, start, end, attributes)
        except ConversionError:
            return False
        return True


class _RefuseLater(_InVcpuRun):
    """2b: the guest goes on; what it touches too early is refused."""

    def convert(self, inode: GmemInode, start: int, end: int, attributes: int) -> bool:
        convert_or_leave_pending(inode, start, end, attributes)
        return True


class _UnmapOnce(_InVcpuRun):
    """The page was unmapped before the exit, so nothing is unmapped any more."""

    def convert(self, inode: GmemInode, start: int, end: int, attributes: int) -> bool:
        design, mapping = inode.host.design, inode.mapping
        with mapping.invalidate_lock.exclusive:
            try:
                design.check_references(inode.host, mapping, start, end)
            except ConversionError:
                return False
            design.publish(inode, start, end, attributes)
        return True


class _UnshareLater(Unshare):
    """2b: the guest goes on without its page, and takes it by touching it, if it may."""

    def may_enter(self, inode: GmemInode, index: int) -> bool:
        self.take(inode, index)
        return True


class _UnshareUnmapOnce(Unshare):
    """The page was unmapped before the exit, so nothing is unmapped any more."""

    def take(self, inode: GmemInode, index: int) -> bool:
        design = inode.host.design
        if not inode.private_run(index, 1):
            try:
                design.check_references(inode.host, inode.mapping, index, index + 1)
            except ConversionError:
                return False
            design.publish(inode, index, index + 1, KVM_MEMORY_ATTRIBUTE_PRIVATE)
        return True


class _UnshareByIoctl(Unshare):
    """User space converts before it runs the vCPU again; KVM only looks whether it did."""

    user_space_converts = True

    def take(self, inode: GmemInode, index: int) -> bool:
        return inode.private_run(index, 1) == 1


def _finish_and_look_up(inode: GmemInode, index: int) -> AbstractContextManager[None]:
    """The guest touches the page: if it's free by now, it's the guest's."""
    _complete(inode, index, index + 1)
    return guest_lookup(inode, index)


def _in_vcpu_run(how: _InVcpuRun, unshare: Unshare) -> Callable[[Design], Design]:
    return lambda d: d._replace(map_gpa_range=how, unshare=unshare, gmem_ioctls={})


def _let_go(convert: Callable[[], None], let_go: Callable[[], None]) -> None:
    """User space has nothing to do but to let go of what it holds."""
    let_go()


VARIANTS = (
    Variant(
        "convert-in-vcpu-run",
        "KVM converts when the vCPU is run again after the guest's hypercall; while the page is held, the vCPU exits again",
        "discussion A, continuations 1 and 2a; D1; pKVM's proof of concept",
        _in_vcpu_run(_InVcpuRun(), Unshare()),
        lambda u: u._replace(on_hypercall=_let_go),
    ),
    Variant(
        "convert-in-vcpu-run-refuse",
        "KVM converts when the vCPU is run again; while the page is held, the guest goes on and is refused it",
        "discussion A, continuations 1 and 2b; D1",
        lambda d: _in_vcpu_run(_RefuseLater(), _UnshareLater())(d)._replace(guest_lookup=_finish_and_look_up),
        lambda u: u._replace(on_hypercall=_let_go),
    ),
    Variant(
        "convert-in-vcpu-run-unmap-once",
        "KVM unmaps the page before the exit, and converts it when the vCPU is run again without unmapping it once more",
        "discussion A",
        _in_vcpu_run(_UnmapOnce(), _UnshareUnmapOnce()),
        lambda u: u._replace(on_hypercall=_let_go),
    ),
    Variant(
        "unshare-by-ioctl",
        "a protected guest of pKVM gets a page back once user space has converted it, by the ioctl that other VMs have",
        "discussion A: the design that was chosen, for pKVM",
        lambda d: d._replace(unshare=_UnshareByIoctl()),
        lambda u: u._replace(on_unshare=u.on_hypercall),
    ),
)

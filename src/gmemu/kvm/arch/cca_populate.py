# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_ARM_RMI_POPULATE: a realm's initial contents, copied from elsewhere and measured (Arm CCA series, v14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...mm.uaccess import UserPointer, copy_from_user, copy_to_user
from ...rules import KernelError
from ...rules import cca as rules
from ...rules import gmem as gmem_rules
from ...uapi.kvm_arm64 import KVM_ARM_RMI_POPULATE_FLAGS_MEASURE, kvm_arm_rmi_populate
from ..guest_memfd.populate import Source
from .cca_realm import create_realm, need_gic

if TYPE_CHECKING:
    from .cca import CcaVm

__all__ = ["rmi_populate"]

_U64 = (1 << 64) - 1


def rmi_populate(cca: CcaVm, arg: UserPointer) -> int:
    """kvm_arm_rmi_populate(): what was done is written back; user space calls again until nothing is left.

    An error counts only if no page was done.
    """
    from .cca import CcaState

    vm, mm = cca.vm, cca.vm.rt.current.mm
    args = copy_from_user(mm, kvm_arm_rmi_populate, arg)
    _check(cca, args)
    if not args.size:
        return 0
    with vm.slots_lock, cca.config_lock:
        need_gic(cca)
        if cca.state is CcaState.NONE:
            create_realm(cca)
        if cca.state is CcaState.DEAD:
            raise rules.REALM_DEAD("KVM_ARM_RMI_POPULATE")
        if cca.state is not CcaState.NEW:
            raise rules.POPULATE_STATE(f"realm state {cca.state.name}")
        populate = _Populate(cca, bool(args.flags & KVM_ARM_RMI_POPULATE_FLAGS_MEASURE))
        done = vm.host.design.populate(
            vm, args.base >> PAGE_SHIFT, args.source_uaddr, args.size >> PAGE_SHIFT, False, populate.post_populate
        )
    args.base += done << PAGE_SHIFT
    args.size -= done << PAGE_SHIFT
    args.source_uaddr += done << PAGE_SHIFT
    copy_to_user(mm, arg, args)
    return 0


def _check(cca: CcaVm, args: kvm_arm_rmi_populate) -> None:
    if args.reserved:
        raise rules.POPULATE_RESERVED(f"{args.reserved:#x}")
    if args.flags & ~KVM_ARM_RMI_POPULATE_FLAGS_MEASURE:
        raise rules.POPULATE_FLAGS(f"flags {args.flags:#x}")
    found = f"base {args.base:#x}, size {args.size:#x}, source {args.source_uaddr:#x}"
    if (args.base | args.size | args.source_uaddr) & (PAGE_SIZE - 1) or args.base + args.size > _U64:
        raise rules.POPULATE_RANGE(found)
    if not args.source_uaddr:
        raise rules.POPULATE_SOURCE(found)
    if args.source_uaddr + args.size > _U64:
        raise rules.POPULATE_RANGE(found)
    if args.base + args.size > cca.protected_end:
        raise rules.POPULATE_PROTECTED(f"{found}, protected up to {cca.protected_end:#x}")


class _Populate:
    """The callback of kvm_gmem_populate(), and what it's told."""

    def __init__(self, cca: CcaVm, measure: bool) -> None:
        self.cca, self.measure = cca, measure

    def post_populate(self, gfn: int, pfn: int, count: int, source: Source | None) -> tuple[int, KernelError | None]:
        """realm_create_protected_data_page() for `count` pages in turn."""
        if source is None or source.pfn < 0:
            return 0, gmem_rules.POPULATE_SOURCE(f"gfn {gfn:#x}: the RMM copies from a page of the host's")
        done = 0
        while done < count:
            n = 1 if self.cca.platform.rmm.inject is not None else self.cca.vm.rt.batch(count - done)
            try:
                done += self._load(gfn + done, pfn + done, source.pfn + done, n)
            except KernelError as error:
                return done, error
        return done, None

    def _load(self, gfn: int, pfn: int, source: int, count: int) -> int:
        """Delegate the pages, have them filled and measured: how many.  One that the RMM keeps after a failure is a bug."""
        cca, platform = self.cca, self.cca.platform
        platform.delegate(pfn, count)
        try:
            result = cca.rtt.with_tables(
                gfn,
                lambda: platform.rmm.rtt_data_map_init(cca.rd, pfn, gfn << PAGE_SHIFT, source, int(self.measure), count),
                "RMI_RTT_DATA_MAP_INIT",
            )
        except KernelError:
            self._undo(pfn, count)
            raise
        [done] = result.out
        if done < count:
            self._undo(pfn + done, count - done)
        return done

    def _undo(self, pfn: int, count: int) -> None:
        if not self.cca.platform.undelegate(pfn, count):
            self.cca.vm.bug(f"pfn {pfn:#x} can't be undelegated after it wasn't populated")

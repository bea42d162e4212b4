# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest uses part of a 2 MiB page, which makes KVM split its RMP entry, while the host converts that part."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..uapi.kvm_x86 import PFERR_GUEST_RMP_MASK
from .worlds import PAGE, SnpLaunch

__all__ = ["RmpFaultAgainstConversion"]


class RmpFaultAgainstConversion(SnpLaunch):
    """The handler of the RMP fault reads the attribute, finds the page, and splits its entry by PSMASH."""

    number = 4
    name = "rmp-fault"
    question = "Can the handler of an RMP fault act on a page that isn't private any more?"
    source = "guest-memfd S05"
    broken_by = {"rmp-fault-stale-attribute": Kind.ASSERTION}
    pages = 512

    def tasks(self) -> None:
        self.vm.create_vcpu()
        memmap = self.host.memmap
        self.before = memmap.alloc(1)
        self.before += memmap.alloc(-self.before[0][0] % self.pages - 1)  # what comes next begins a 2 MiB page
        self.gmem.allocate(0, self.pages * PAGE)
        self.convert(0, self.pages)
        rmp = self.host.snp.rmp
        rmp.rmpupdate(self.pfn(0), assigned=True, asid=self.sev.asid, gfn=0, pagesize=1)
        self.vcpu = next(iter(self.kvm_vm.vcpus))
        self.task("fault", self.fault)
        self.task("convert", self.share)

    def fault(self) -> str:
        """sev_handle_rmp_fault() for the first 4 KiB."""
        self.sev.after_page_fault(self.vcpu, 0, PFERR_GUEST_RMP_MASK)
        return "handled"

    def release(self) -> None:
        for pfn, count in self.before:
            self.host.memmap.put(pfn, count)

    def holds(self) -> None:
        assert self.seen == {"fault": "handled", "convert": "shared"}
        warnings = self.host.snp.warnings
        assert not warnings, f"the kernel warned: {warnings[0]}"

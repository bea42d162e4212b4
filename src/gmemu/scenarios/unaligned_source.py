# SPDX-License-Identifier: GPL-2.0-or-later
"""Population from a source that isn't page aligned."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..rules import KernelError
from ..uapi.kvm import VmType
from ..uapi.sev import SnpPageType, snp_cpuid_entry, snp_cpuid_table
from .worlds import PAGE, SnpLaunch

__all__ = ["UnalignedSource"]

OFFSET = PAGE - snp_cpuid_table.SIZE
"""Where each source page begins; of a CPUID table just the head is before the page boundary."""
TABLE = snp_cpuid_table(count=1).pack() + snp_cpuid_entry(eax_in=7, ebx=0xFFFFFFFF).pack()
PAGES = 3


class UnalignedSource(SnpLaunch):
    """SNP on Linux 6.12, which takes any address: three pages of data and a CPUID page that the firmware corrects.  The
    source's pages don't follow each other in physical memory."""

    number = 12
    name = "unaligned-source"
    question = "Does a guest get the bytes of an unaligned source, and a correction come back, over page boundaries?"
    source = "discussion C; guest-memfd 4.1, 4.4"
    broken_by = {
        "populate-one-source-page": Kind.ASSERTION,
        "populate-writes-back-head": Kind.ASSERTION,
        "populate-batch-too-short": Kind.ASSERTION,
        "populate-leaks-pins": Kind.ASSERTION,
    }
    holds_with = ("populate-gup-batch",)
    profile = "linux-6.12"
    pages = PAGES + 1

    def make_memory(self) -> None:
        self.memory = self.kvm.anonymous(2 * self.pages * PAGE)
        for page in (1, 0, 3, 2, 5, 4):
            self.memory[page * PAGE] = 0xFF
        self.data = bytes(page + 1 for page in range(PAGES) for _ in range(PAGE))
        self.memory[OFFSET : OFFSET + len(self.data)] = self.data
        self.table = self.memory.address + 4 * PAGE + OFFSET
        self.kvm.door.store(self.table, TABLE.ljust(PAGE, b"\0"))
        self.gmem = self.vm.create_guest_memfd(self.pages * PAGE)
        self.bind()
        self.vm.make_private(0, self.pages * PAGE)

    def tasks(self) -> None:
        self.held = self.references()
        self.task("load", self.load)

    def load(self) -> str:
        """Load the data, then the CPUID page."""
        self.vm.snp.launch_update(0, PAGES * PAGE, SnpPageType.NORMAL, self.memory.address + OFFSET)
        try:
            self.vm.snp.launch_update(PAGES * PAGE, PAGE, SnpPageType.CPUID, self.table)
        except KernelError as error:
            return error.rule.id
        return "accepted"

    def references(self) -> list[int]:
        """References to each page of the source."""
        entries = self.host.init.mm.ptes.runs()
        return [
            self.host.memmap.refs[s + d] or 0 for first, end, (d, _) in entries if d is not None for s in range(first, end)
        ]

    def holds(self) -> None:
        for page in range(PAGES):
            assert self.guest_sees(page, PAGE) == self.data[page * PAGE : (page + 1) * PAGE], f"page {page} is wrong"
        assert self.seen["load"] == "snp.update.failed", "the firmware didn't see what was to be corrected"
        corrected = self.kvm.door.load(self.table, len(TABLE))
        assert corrected != TABLE, "the correction of the CPUID table is lost"
        assert self.references() == self.held, "references to the source are left"

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.SNP)
        self.vm.snp.init2()
        self.vm.snp.launch_start()
        self.make_memory()
        self.tasks()

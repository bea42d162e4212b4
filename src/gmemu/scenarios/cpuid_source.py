# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the firmware's correction of a CPUID page goes."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..syscalls.emulated import EmulatedDoor
from ..uapi.sev import SnpPageType, snp_cpuid_entry, snp_cpuid_table
from .worlds import PAGE, SnpLaunch

__all__ = ["CpuidSource"]

TABLE = snp_cpuid_table(count=1).pack() + snp_cpuid_entry(eax_in=7, ebx=0xFFFFFFFF).pack()
"""Claims features that the processor hasn't."""


class CpuidSource(SnpLaunch):
    """The source is anonymous memory, which a forked child still shares: writing to it must copy it first."""

    number = 11
    name = "cpuid-source"
    question = "Does the corrected CPUID table reach who asked for it, and nobody else?"
    source = "guest-memfd S13, S14"
    broken_by = {"cpuid-source-read-only": Kind.ASSERTION}

    def tasks(self) -> None:
        self.convert(0)
        self.table = self.kvm.anonymous(PAGE)
        self.table[: len(TABLE)] = TABLE
        self.child = EmulatedDoor(self.host).fork()
        self.task("populate", lambda: self.populate(0, self.table.address, SnpPageType.CPUID))
        self.task("child", lambda: self.child.load(self.table.address, len(TABLE)))

    def holds(self) -> None:
        assert self.seen["populate"] == "snp.update.failed", "the firmware took what it had to correct"
        assert self.table[: len(TABLE)] != TABLE, "the correction is lost"
        assert self.seen["child"] == TABLE, "another process sees the correction"
        assert self.child.load(self.table.address, len(TABLE)) == TABLE, "another process sees the correction"

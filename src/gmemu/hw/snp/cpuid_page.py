# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPUID page: what the guest will believe of its CPU, checked by the firmware before it is encrypted.

SEV-SNP firmware ABI, SNP_LAUNCH_UPDATE, page type CPUID, and "CPUID Reporting".
"""

from __future__ import annotations

from ...uapi.sev import SNP_CPUID_COUNT_MAX, snp_cpuid_entry, snp_cpuid_table
from .cpu import CpuModel
from .cpuid_rules import judge_registers

__all__ = ["ARCHITECTURAL", "header_ok", "sanitize"]

ARCHITECTURAL = (range(0x10000), range(0x80000000, 0x80010000))
"""Leaves (EAX input) that are checked; a hypervisor may tell what it likes in the others."""


def header_ok(page: bytes | bytearray) -> bool:
    """Whether the table's head is in order.  If not, the firmware doesn't look at the entries, and corrects nothing."""
    head = snp_cpuid_table.unpack_from(page)
    return not head.reserved1 and not head.reserved2 and head.count <= SNP_CPUID_COUNT_MAX


def sanitize(page: bytearray, cpu: CpuModel) -> bool:
    """Correct every entry in place by the rules of `cpu`.  Returns whether the table was in order as it came.

    The whole list is walked whatever is found.  An architectural leaf that the CPU doesn't report must read as zero.  A
    reserved field that isn't zero is refused but stays.
    """
    in_order = True
    for i in range(snp_cpuid_table.unpack_from(page).count):
        at = snp_cpuid_table.SIZE + i * snp_cpuid_entry.SIZE
        entry = snp_cpuid_entry.unpack_from(page, at)
        if not any(entry.eax_in in leaves for leaves in ARCHITECTURAL):
            continue
        if not _judge(entry, cpu) or entry.reserved:
            in_order = False
        entry.pack_into(page, at)
    return in_order


def _judge(entry: snp_cpuid_entry, cpu: CpuModel) -> bool:
    rule = cpu.rule_for(entry.eax_in, entry.ecx_in)
    if rule is None:
        zero = not (entry.eax or entry.ebx or entry.ecx or entry.edx)
        entry.eax = entry.ebx = entry.ecx = entry.edx = 0
        return zero
    return judge_registers(entry, rule) if isinstance(rule, tuple) else rule(entry)

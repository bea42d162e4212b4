# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPUID page by the rules that the firmware checks it with."""

from __future__ import annotations

import pytest

from gmemu.hw.snp.cpu import GENOA
from gmemu.hw.snp.cpuid_page import header_ok, sanitize
from gmemu.launch.cpu_types import CPU_TYPES
from gmemu.launch.cpuid_page import cpuid_entries, cpuid_page
from gmemu.uapi.sev import SNP_CPUID_COUNT_MAX, snp_cpuid_entry, snp_cpuid_table


@pytest.mark.parametrize("vcpus", [1, 2, 64, 4096])
@pytest.mark.parametrize("cpu", ["EPYC-v4", "EPYC-Milan", "EPYC-Turin"])
def test_page_reads_back(cpu: str, vcpus: int) -> None:
    page = cpuid_page(CPU_TYPES[cpu], vcpus)
    assert len(page) == 4096
    head = snp_cpuid_table.unpack_from(page)
    assert (head.reserved1, head.reserved2) == (0, 0)
    assert 0 < head.count <= SNP_CPUID_COUNT_MAX
    first = snp_cpuid_table.SIZE
    entries = [snp_cpuid_entry.unpack_from(page, first + i * snp_cpuid_entry.SIZE) for i in range(head.count)]
    assert entries == cpuid_entries(CPU_TYPES[cpu], vcpus)
    assert not any(page[first + head.count * snp_cpuid_entry.SIZE :])


def test_entries_keep_the_rules() -> None:
    entries = {(e.eax_in, e.ecx_in): e for e in cpuid_entries(CPU_TYPES["EPYC-Milan"], 4)}
    assert len(entries) == len(cpuid_entries(CPU_TYPES["EPYC-Milan"], 4))
    assert not any(e.reserved for e in entries.values())
    assert entries[0, 0].eax >= max(leaf for leaf, _ in entries if leaf < 1 << 31)
    assert entries[1 << 31, 0].eax >= max(leaf for leaf, _ in entries)
    vendor = entries[0, 0]
    assert b"".join(r.to_bytes(4, "little") for r in (vendor.ebx, vendor.edx, vendor.ecx)) == b"AuthenticAMD"
    assert entries[1, 0].eax == entries[0x80000001, 0].eax == CPU_TYPES["EPYC-Milan"]
    assert entries[1, 0].ebx >> 8 & 0xFF == 8
    assert (entries[1, 0].ebx >> 16 & 0xFF, entries[1, 0].edx >> 28 & 1) == (4, 1)
    assert entries[0xD, 0].eax & 3 == 3
    assert entries[0xD, 0].ebx == entries[0xD, 1].ebx == 0x240
    assert entries[0x80000008, 0].eax & 0xFF <= 48
    assert entries[0x8000001F, 0].ebx & 0x3F == 51


@pytest.mark.parametrize("cpu", [name for name, value in CPU_TYPES.items() if value <= GENOA.signature])
@pytest.mark.parametrize("vcpus", [1, 64])
def test_firmware_finds_nothing_to_correct(cpu: str, vcpus: int) -> None:
    page = bytearray(cpuid_page(CPU_TYPES[cpu], vcpus))
    assert header_ok(page)
    assert sanitize(page, GENOA)
    assert page == cpuid_page(CPU_TYPES[cpu], vcpus)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the firmware accepts in a CPUID page, and what it makes of the rest."""

from __future__ import annotations

import pytest

from gmemu.hw.snp.cpu import GENOA, MILAN, CpuModel, fms
from gmemu.hw.snp.cpuid_page import header_ok, sanitize
from gmemu.hw.snp.cpuid_rules import ABSENT, FREE, RegisterRule, Rule, at_most, exact, mask
from gmemu.uapi.sev import snp_cpuid_entry, snp_cpuid_table

X87_SSE_AVX = 0x7


def leaf(eax_in: int, ecx_in: int = 0, **fields: int) -> snp_cpuid_entry:
    return snp_cpuid_entry(eax_in=eax_in, ecx_in=ecx_in, **fields)


def page_of(*entries: snp_cpuid_entry, **head: int) -> bytearray:
    table = snp_cpuid_table(**({"count": len(entries)} | head)).pack() + b"".join(e.pack() for e in entries)
    return bytearray(table.ljust(4096, b"\0"))


def judge(entry: snp_cpuid_entry, cpu: CpuModel = GENOA) -> tuple[bool, snp_cpuid_entry]:
    page = page_of(entry)
    in_order = sanitize(page, cpu)
    return in_order, snp_cpuid_entry.unpack_from(page, snp_cpuid_table.SIZE)


def accepted(entry: snp_cpuid_entry, cpu: CpuModel = GENOA) -> bool:
    in_order, after = judge(entry, cpu)
    assert not in_order or after == entry
    return in_order


def corrected(entry: snp_cpuid_entry, cpu: CpuModel = GENOA) -> snp_cpuid_entry:
    in_order, after = judge(entry, cpu)
    assert not in_order
    assert accepted(after, cpu), "a corrected entry must pass"
    return after


class TestHead:
    def test_order(self) -> None:
        assert header_ok(page_of())
        assert header_ok(page_of(count=64))
        assert not header_ok(page_of(count=65))
        assert not header_ok(page_of(reserved1=1))
        assert not header_ok(page_of(reserved2=1))


class TestRules:
    """The kinds of rule, by themselves."""

    def test_exact(self) -> None:
        assert exact(5).correct(5) == (5, False)
        assert exact(5).correct(4) == (5, True)

    def test_mask_only_clears(self) -> None:
        assert mask(0b0110).correct(0b0100) == (0b0100, False)
        assert mask(0b0110).correct(0b1101) == (0b0100, True)
        assert mask(0b0110, free=0b1000).correct(0b1000) == (0b1000, False)

    def test_at_most(self) -> None:
        assert at_most(5).correct(5) == (5, False)
        assert at_most(5).correct(6) == (5, True)

    def test_free(self) -> None:
        assert FREE.correct(0xFFFFFFFF) == (0xFFFFFFFF, False)

    def test_absent_replaces_without_complaint(self) -> None:
        assert ABSENT.correct(7) == (0, False)

    def test_reserved_bits_count_whatever_the_rule(self) -> None:
        assert RegisterRule(Rule.FREE, reserved=0xF0).correct(0xFF) == (0x0F, True)
        assert RegisterRule(Rule.AT_MOST, 0xFF, reserved=0xF0).correct(0x0F) == (0x0F, False)


class TestRange:
    @pytest.mark.parametrize("eax_in", [0x40000000, 0x10000, 0x7FFFFFFF, 0x80010000, 0xC0000000])
    def test_other_leaves_are_the_hypervisors(self, eax_in: int) -> None:
        assert accepted(leaf(eax_in, eax=0xFFFFFFFF, ebx=1, ecx=2, edx=3, reserved=9))

    @pytest.mark.parametrize(
        ("eax_in", "ecx_in"), [(0xFFFF, 0), (0x8000FFFF, 0), (0x3, 0), (0x1, 1), (0x7, 2), (0x8000FFFE, 7)]
    )
    def test_what_the_cpu_has_not_must_be_zero(self, eax_in: int, ecx_in: int) -> None:
        assert accepted(leaf(eax_in, ecx_in))
        for register in ("eax", "ebx", "ecx", "edx"):
            assert corrected(leaf(eax_in, ecx_in, **{register: 1})) == leaf(eax_in, ecx_in)

    def test_reserved_field_is_refused_but_stays(self) -> None:
        in_order, after = judge(leaf(0x0, eax=0x10, reserved=1))
        assert not in_order
        assert after == leaf(0x0, eax=0x10, reserved=1)


class TestLeaves:
    def test_highest_leaf(self) -> None:
        assert accepted(leaf(0x0, eax=0xD, ebx=0x68747541, ecx=0x444D4163, edx=0x69746E65))
        assert corrected(leaf(0x0, eax=0x11)).eax == 0x10
        assert corrected(leaf(0x80000000, eax=0x80000029)).eax == 0x80000028

    @pytest.mark.parametrize("eax_in", [0x1, 0x80000001])
    @pytest.mark.parametrize(
        ("family", "model", "stepping", "fine"),
        [
            (0x17, 0x01, 2, True),  # EPYC
            (0x17, 0x31, 0, True),  # EPYC-Rome
            (0x19, 0x01, 1, True),  # EPYC-Milan
            (0x19, 0x11, 1, True),
            (0x19, 0x11, 2, False),
            (0x19, 0x21, 0, False),
            (0x1A, 0x00, 0, False),
        ],
    )
    def test_no_newer_than_the_cpu(self, eax_in: int, family: int, model: int, stepping: int, fine: bool) -> None:
        entry = leaf(eax_in, eax=fms(family, model, stepping), ebx=0x800)
        if fine:
            assert accepted(entry)
        else:
            assert corrected(entry).eax == GENOA.signature

    def test_signature_bits(self) -> None:
        assert fms(0x17, 1, 2) == 0x00800F12
        assert fms(6, 0x8F, 8) == 0x000806F8
        assert corrected(leaf(0x1, eax=0x00800F12 | 1 << 31 | 1 << 14, ebx=0x800)).eax == 0x00800F12

    def test_features(self) -> None:
        good = {"eax": fms(0x17, 1, 2), "ebx": 0x12340856, "ecx": GENOA.features_ecx, "edx": GENOA.features_edx}
        assert accepted(leaf(0x1, **good))
        assert corrected(leaf(0x1, **good | {"ebx": 0x12341056})).ebx == 0x12340856  # CLFLUSH size
        assert accepted(leaf(0x1, **good | {"ecx": GENOA.features_ecx | 1 << 27 | 1 << 31}))  # OSXSAVE, hypervisor
        assert corrected(leaf(0x1, **good | {"ecx": GENOA.features_ecx | 1 << 24})).ecx == GENOA.features_ecx
        assert corrected(leaf(0x1, **good | {"edx": 0xFFFFFFFF})).edx == GENOA.features_edx

    def test_structured_features(self) -> None:
        eax, ebx, ecx, edx = GENOA.features7
        good = {"eax": eax, "ebx": ebx, "ecx": ecx, "edx": edx}
        assert accepted(leaf(0x7, **good))
        assert accepted(leaf(0x7, **good | {"ecx": ecx | 1 << 4}))  # OSPKE
        assert corrected(leaf(0x7, **good | {"ebx": ebx | 1 << 1})).ebx == ebx  # TSC_ADJUST
        assert corrected(leaf(0x7, **good | {"eax": 2})).eax == 1
        assert corrected(leaf(0x7, **good | {"edx": edx | 1 << 26})).edx == edx  # SPEC_CTRL
        assert corrected(leaf(0x7, **good), MILAN).ebx == MILAN.features7[1] & ebx
        assert accepted(leaf(0x7, 1, eax=0x20))
        assert corrected(leaf(0x7, 1, eax=0x21, ebx=1)) == leaf(0x7, 1, eax=0x20)

    @pytest.mark.parametrize(
        ("xcr0", "ebx"),
        [(1, 0x240), (3, 0x240), (7, 0x340), (0x27, 0x380), (0x67, 0x580), (0xE7, 0x980), (0x2E7, 0x988), (0x203, 0x988)],
    )
    def test_xsave_area(self, xcr0: int, ebx: int) -> None:
        assert accepted(leaf(0xD, 0, eax=X87_SSE_AVX, ebx=ebx, ecx=0x988, xcr0_in=xcr0))
        assert corrected(leaf(0xD, 0, eax=X87_SSE_AVX, ebx=ebx + 1, xcr0_in=xcr0)).ebx == ebx

    def test_xsave_needs_x87_and_sse(self) -> None:
        assert corrected(leaf(0xD, 0, eax=0x4, ebx=0x240)).eax == X87_SSE_AVX
        assert corrected(leaf(0xD, 0, eax=0x1F, ebx=0x240)).eax == X87_SSE_AVX
        assert corrected(leaf(0xD, 0, eax=3, ebx=0x240, edx=1)).edx == 0

    @pytest.mark.parametrize(
        ("xcr0", "xss", "ebx"),
        [
            (1, 0, 0x240),
            (0x7, 0, 0x340),
            (0x23, 0, 0x280),
            (0x43, 0, 0x440),
            (0x83, 0, 0x640),
            (0x203, 0, 0x248),
            (0x2E7, 0x1800, 0x9B0),
            (3, 0x800, 0x250),
            (3, 0x1000, 0x258),
        ],
    )
    def test_compacted_xsave_area(self, xcr0: int, xss: int, ebx: int) -> None:
        entry = {"eax": 0xF, "ecx": 0x1800, "xcr0_in": xcr0, "xss_in": xss}
        assert accepted(leaf(0xD, 1, ebx=ebx, **entry))
        assert corrected(leaf(0xD, 1, ebx=0, **entry)).ebx == ebx
        assert corrected(leaf(0xD, 1, ebx=ebx, **entry | {"eax": 0x1F})).eax == 0xF

    def test_xsave_components(self) -> None:
        assert accepted(leaf(0xD, 2, eax=0x100, ebx=0x240))
        assert corrected(leaf(0xD, 2, eax=0x100, ebx=0)) == leaf(0xD, 2, eax=0x100, ebx=0x240)
        assert accepted(leaf(0xD, 12, eax=0x18, ecx=1))
        assert corrected(leaf(0xD, 3, eax=1)).eax == 0

    def test_address_sizes(self) -> None:
        assert accepted(leaf(0x80000008, eax=48 << 8 | 40, ebx=1, ecx=0x7007))
        assert accepted(leaf(0x80000008, eax=57 << 8 | 52))
        assert corrected(leaf(0x80000008, eax=1 << 16 | 58 << 8 | 53)).eax == 57 << 8 | 52
        assert corrected(leaf(0x80000008, eax=48 << 8 | 52), MILAN).eax == 48 << 8 | 48
        assert corrected(leaf(0x80000008, edx=2 << 16 | 8)).edx == 1 << 16 | 7
        assert corrected(leaf(0x80000008, ebx=1 << 25)).ebx == 0  # VIRT_SSBD

    def test_memory_encryption(self) -> None:
        entry = leaf(0x8000001F, eax=0x1A, ebx=4 << 12 | 1 << 6 | 51, ecx=9, edx=9)
        assert accepted(entry)
        assert accepted(replace_ebx(entry, 1 << 12 | 5 << 6 | 51))
        assert corrected(replace_ebx(entry, 5 << 12 | 5 << 6 | 51)).ebx == 4 << 12 | 5 << 6 | 51
        assert corrected(replace_ebx(entry, 1 << 6 | 47)).ebx == 1 << 6 | 51
        assert accepted(replace_ebx(entry, 47), GENOA._replace(cbit=47))

    def test_performance_counters(self) -> None:
        assert accepted(leaf(0x80000022, eax=1, ebx=6 | 0x10 << 4 | 1 << 12, ecx=5))
        assert corrected(leaf(0x80000022, eax=1, ebx=7 | 0x11 << 4, edx=1)).ebx == 6 | 0x10 << 4

    def test_leaves_that_do_not_exist_are_silently_emptied(self) -> None:
        in_order, after = judge(leaf(0x4, 1, eax=5))
        assert in_order
        assert after == leaf(0x4, 1)


def replace_ebx(entry: snp_cpuid_entry, ebx: int) -> snp_cpuid_entry:
    copy = snp_cpuid_entry.unpack_from(entry.pack())
    copy.ebx = ebx
    return copy


def test_the_whole_list_is_walked() -> None:
    page = page_of(leaf(0x7, ebx=0xFFFFFFFF), leaf(0x40000000, eax=7), leaf(0x0, eax=0xFF), leaf(0x3, eax=1), count=3)
    assert not sanitize(page, GENOA)
    entries = [snp_cpuid_entry.unpack_from(page, 16 + 48 * i) for i in range(4)]
    assert (entries[0].ebx, entries[1].eax, entries[2].eax) == (GENOA.features7[1], 7, 0x10)
    assert entries[3].eax == 1, "beyond the count"


def test_a_full_table() -> None:
    page = page_of(*[leaf(0x8000001D, i % 5, eax=i) for i in range(64)])
    before = bytes(page)
    assert sanitize(page, GENOA)
    assert page == before


def test_what_the_cpu_reports_of_itself_passes() -> None:
    """A host that hands its own values on is always accepted."""
    for (eax_in, ecx_in), rules in GENOA.leaves.items():
        assert isinstance(rules, tuple)
        registers = dict(zip(("eax", "ebx", "ecx", "edx"), (r.value for r in rules), strict=True))
        assert accepted(leaf(eax_in, ecx_in, **registers))

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemu.hw.snp.rmp_entry import VMPL_RESET, Marker, RmpEntry, RmpState, decode, encode, state_of

STATES = {
    RmpState.HYPERVISOR: None,
    RmpState.HV_FIXED: RmpEntry(assigned=False, immutable=True),
    RmpState.FIRMWARE: RmpEntry(immutable=True),
    RmpState.RECLAIM: RmpEntry(),
    RmpState.CONTEXT: RmpEntry(immutable=True, vmsa=True),
    RmpState.METADATA: RmpEntry(immutable=True, gfn_delta=7, marker=Marker.METADATA),
    RmpState.PRE_GUEST: RmpEntry(immutable=True, asid=1),
    RmpState.PRE_SWAP: RmpEntry(immutable=True, asid=1, validated=True),
    RmpState.GUEST_INVALID: RmpEntry(asid=1),
    RmpState.GUEST_VALID: RmpEntry(asid=1, validated=True),
}


@pytest.mark.parametrize(("state", "entry"), STATES.items())
def test_states(state: RmpState, entry: RmpEntry | None) -> None:
    assert state_of(entry) is state


def test_numbers_are_the_specifications() -> None:
    assert {s.name: s.value for s in RmpState} == {
        "INVALID": 0, "DEFAULT": 1, "HYPERVISOR": 2, "HV_FIXED": 3, "FIRMWARE": 4, "RECLAIM": 6, "CONTEXT": 7,
        "METADATA": 8, "PRE_GUEST": 9, "PRE_SWAP": 0xA, "GUEST_INVALID": 0xB, "GUEST_VALID": 0xC,
    }  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        RmpEntry(assigned=False, validated=True),
        RmpEntry(assigned=False, asid=3),
        RmpEntry(validated=True),
        RmpEntry(immutable=True, gfn_delta=7),  # FIRMWARE and CONTEXT have gpa 0
        RmpEntry(immutable=True, gfn_delta=7, vmsa=True),
        RmpEntry(immutable=True, marker=Marker.METADATA),  # METADATA names its context page
        RmpEntry(immutable=True, gfn_delta=1, marker=Marker.IOMMU),
    ],
)
def test_what_is_no_state(entry: RmpEntry) -> None:
    assert state_of(entry) is RmpState.INVALID


def test_a_page_nobody_owns_may_be_spelled_out() -> None:
    assert state_of(RmpEntry(assigned=False)) is RmpState.HYPERVISOR


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (RmpEntry(), 1 << 0),
        (RmpEntry(assigned=False, pagesize=1), 1 << 1),
        (RmpEntry(assigned=False, immutable=True), 1 << 2 | 1 << 63),
        (RmpEntry(assigned=False, gfn_delta=0x123), 0x123 << 12),
        (RmpEntry(asid=0x3FF, gfn_delta=-0x40), 1 | 0x3FF << 51),
        (RmpEntry(assigned=False, vmsa=True), 1 << 61),
        (RmpEntry(assigned=False, validated=True), 1 << 62),
        (RmpEntry(assigned=False, gfn_delta=5, marker=Marker.METADATA), (5 | 1 << 36) << 12),
    ],
)
def test_each_field_has_its_place(entry: RmpEntry, word: int) -> None:
    raw = encode(entry, 0x40)
    assert len(raw) == 16
    assert int.from_bytes(raw[:8], "little") == word


def test_masks_are_the_second_quadword() -> None:
    assert encode(RmpEntry(vmpl=(31, 1, 2, 4)), 0)[8:] == bytes([31, 1, 2, 4, 0, 0, 0, 0])


def test_subpage_count() -> None:
    assert encode(None, 0, 511) == (511 << 3).to_bytes(16, "little")
    assert decode(encode(None, 0, 511), 0) == (None, 511)
    assert decode(encode(RmpEntry(), 0, 3), 0) == (RmpEntry(), 3)
    assert decode(bytes(16), 9) == (None, 0)


flags = st.booleans()
mask = st.integers(0, 31)


@given(
    pfn=st.integers(0, 1 << 28),
    assigned=flags,
    validated=flags,
    immutable=flags,
    vmsa=flags,
    pagesize=st.integers(0, 1),
    asid=st.integers(0, 1023),
    gfn=st.integers(0, (1 << 36) - 1),
    vmpl=st.tuples(mask, mask, mask, mask),
    count=st.integers(0, 511),
)
def test_decode_undoes_encode(
    pfn: int,
    assigned: bool,
    validated: bool,
    immutable: bool,
    vmsa: bool,
    pagesize: int,
    asid: int,
    gfn: int,
    vmpl: tuple[int, int, int, int],
    count: int,
) -> None:
    delta = gfn - pfn if asid else gfn
    entry = RmpEntry(assigned, validated, immutable, asid, delta, vmsa, pagesize, vmpl)
    back, subpages = decode(encode(entry, pfn, count), pfn)
    assert subpages == count
    if back is None:
        assert not any((assigned, validated, immutable, asid, gfn, vmsa, pagesize))
    else:
        assert back == entry
        assert back.gfn(pfn) == gfn


def test_reset_masks() -> None:
    assert VMPL_RESET == (31, 0, 0, 0)
    assert RmpEntry().vmpl is VMPL_RESET

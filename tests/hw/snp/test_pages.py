# SPDX-License-Identifier: GPL-2.0-or-later
"""SNP_PAGE_RECLAIM, _MOVE, _MD_INIT and _UNSMASH: every transition, every refusal, in order."""

from __future__ import annotations

from typing import ClassVar

import pytest

from gmemu.hw.snp.firmware import PlatformState
from gmemu.hw.snp.guest_context import GuestState
from gmemu.hw.snp.rmp import RmpState
from gmemu.hw.snp.rmp_entry import Marker, RmpEntry
from gmemu.uapi.sev import PspStatus

from .machine import ASID, COVERED, GCTX, GFN, OK, PAGE, Machine

S = PspStatus
DST = PAGE + 0x400


def put(machine: Machine, state: RmpState, pfn: int = PAGE, gfn: int = GFN, asid: int = ASID, pagesize: int = 0) -> None:
    """A page in any state, however it came there."""
    entry = {
        RmpState.HYPERVISOR: None,
        RmpState.HV_FIXED: RmpEntry(assigned=False, immutable=True),
        RmpState.FIRMWARE: RmpEntry(immutable=True),
        RmpState.RECLAIM: RmpEntry(),
        RmpState.CONTEXT: RmpEntry(immutable=True, vmsa=True),
        RmpState.METADATA: RmpEntry(immutable=True, gfn_delta=GCTX, marker=Marker.METADATA),
        RmpState.PRE_GUEST: RmpEntry(immutable=True, asid=asid, gfn_delta=gfn - pfn),
        RmpState.PRE_SWAP: RmpEntry(immutable=True, validated=True, asid=asid, gfn_delta=gfn - pfn),
        RmpState.GUEST_INVALID: RmpEntry(asid=asid, gfn_delta=gfn - pfn),
        RmpState.GUEST_VALID: RmpEntry(validated=True, asid=asid, gfn_delta=gfn - pfn),
    }[state]
    pages = 512 if pagesize else 1
    machine.rmp.entries.set(pfn, pfn + pages, entry._replace(pagesize=pagesize) if entry else None)
    assert machine.rmp.state(pfn) is state


def all_states() -> list[RmpState]:
    return [s for s in RmpState if s not in (RmpState.INVALID, RmpState.DEFAULT)]


class TestReclaim:
    AFTER: ClassVar = {
        RmpState.METADATA: RmpState.RECLAIM,
        RmpState.FIRMWARE: RmpState.RECLAIM,
        RmpState.PRE_GUEST: RmpState.GUEST_INVALID,
        RmpState.PRE_SWAP: RmpState.GUEST_VALID,
    }

    @pytest.mark.parametrize("pagesize", [0, 1])
    @pytest.mark.parametrize("state", all_states())
    def test_table(self, machine: Machine, state: RmpState, pagesize: int) -> None:
        if state is RmpState.HYPERVISOR and pagesize:
            return  # not an entry that has a size
        put(machine, state, pagesize=pagesize)
        before = machine.rmp.lookup(PAGE)
        status = machine.psp.page_reclaim(PAGE, pagesize)
        refused = state in (RmpState.CONTEXT, RmpState.HV_FIXED)
        assert status == (S.INVALID_PAGE_STATE if refused else OK)
        assert machine.rmp.state(PAGE) is self.AFTER.get(state, state)
        assert machine.rmp.state(PAGE + 511) is (self.AFTER.get(state, state) if pagesize else RmpState.HYPERVISOR)
        if state not in self.AFTER:
            assert machine.rmp.lookup(PAGE) == before
        elif machine.rmp.rmpupdate(PAGE, assigned=False, pagesize=pagesize) != (0, 1):
            pytest.fail("the host may take it now")

    def test_keeps_the_gpa_of_metadata_but_not_its_marker(self, machine: Machine) -> None:
        put(machine, RmpState.METADATA)
        machine.psp.page_reclaim(PAGE)
        assert machine.rmp.lookup(PAGE) == RmpEntry(gfn_delta=GCTX)

    def test_order(self, machine: Machine) -> None:
        psp, beyond = machine.psp, COVERED + 0x1000
        psp.state = PlatformState.UNINIT
        assert psp.page_reclaim(beyond, reserved=1) == S.INVALID_PARAM
        assert psp.page_reclaim(beyond) == S.INVALID_PLATFORM_STATE
        psp.state = PlatformState.INIT
        assert psp.page_reclaim(beyond) == S.INVALID_ADDRESS
        assert psp.page_reclaim(-1) == S.INVALID_ADDRESS
        assert psp.page_reclaim(beyond - 1, 1) == S.INVALID_ADDRESS
        put(machine, RmpState.CONTEXT)
        assert psp.page_reclaim(PAGE, 1) == S.INVALID_PAGE_SIZE
        assert psp.page_reclaim(PAGE) == S.INVALID_PAGE_STATE
        assert psp.page_reclaim(COVERED) == S.INVALID_PAGE_STATE

    def test_below_a_huge_page(self, machine: Machine) -> None:
        """Such a page's own entry is 4 KiB, mutable and nobody's: nothing to reclaim."""
        machine.pre_guest(pagesize=1)
        assert machine.psp.page_reclaim(PAGE) == S.INVALID_PAGE_SIZE
        assert machine.psp.page_reclaim(PAGE + 1, 1) == S.INVALID_PAGE_SIZE
        assert machine.psp.page_reclaim(PAGE + 1) == OK
        assert machine.rmp.state(PAGE + 1) is RmpState.PRE_GUEST


class TestMdInit:
    @pytest.mark.parametrize("pagesize", [0, 1])
    def test_firmware_to_metadata(self, machine: Machine, pagesize: int) -> None:
        machine.guest()
        machine.fill(PAGE, b"old")
        put(machine, RmpState.FIRMWARE, pagesize=pagesize)
        assert machine.psp.md_init(GCTX, PAGE) == OK
        assert machine.rmp.state(PAGE + 511 * pagesize) is RmpState.METADATA
        assert machine.page(PAGE) == bytes(4096)
        entry = machine.rmp.lookup(PAGE)
        assert entry is not None
        assert (entry.gfn(PAGE), entry.marker) == (GCTX, Marker.METADATA)
        assert int.from_bytes(machine.rmp.raw(PAGE)[:8], "little") >> 12 & (1 << 39) - 1 == GCTX | 1 << 36

    @pytest.mark.parametrize("state", [s for s in all_states() if s is not RmpState.FIRMWARE])
    def test_from_no_other_state(self, machine: Machine, state: RmpState) -> None:
        machine.guest()
        put(machine, state)
        assert machine.psp.md_init(GCTX, PAGE) == S.INVALID_PAGE_STATE

    def test_order(self, machine: Machine) -> None:
        psp = machine.psp
        psp.state = PlatformState.UNINIT
        assert psp.md_init(GCTX, PAGE, reserved=1) == S.INVALID_PARAM
        assert psp.md_init(GCTX, PAGE) == S.INVALID_PLATFORM_STATE
        psp.state = PlatformState.INIT
        assert psp.md_init(GCTX, PAGE) == S.INVALID_GUEST
        machine.context_page()
        assert psp.md_init(GCTX, PAGE) == S.INVALID_PAGE_STATE
        put(machine, RmpState.FIRMWARE)
        assert psp.md_init(GCTX, PAGE) == S.INVALID_GUEST_STATE


class TestMove:
    @pytest.mark.parametrize("pagesize", [0, 1])
    @pytest.mark.parametrize(
        ("source", "after"), [(RmpState.PRE_SWAP, RmpState.GUEST_VALID), (RmpState.PRE_GUEST, RmpState.GUEST_INVALID)]
    )
    def test_guest_page(self, machine: Machine, source: RmpState, after: RmpState, pagesize: int) -> None:
        machine.guest()
        put(machine, source, pagesize=pagesize)
        machine.rmp.firmware_write(PAGE, 512, lambda e: e._replace(vmsa=True, vmpl=(31, 1, 2, 3)))
        machine.memory.write(PAGE << 12, b"guest's", key=machine.psp.keys[ASID])
        put(machine, RmpState.PRE_GUEST, DST, GFN + 512, pagesize=pagesize)
        assert machine.psp.page_move(GCTX, PAGE, DST, pagesize) == OK
        entry = machine.rmp.lookup(DST)
        assert entry is not None
        assert machine.rmp.state(DST) is after
        assert (entry.gfn(DST), entry.vmsa, entry.vmpl, entry.pagesize) == (GFN, True, (31, 1, 2, 3), pagesize)
        assert machine.rmp.state(PAGE) is RmpState.GUEST_INVALID
        assert machine.page(DST, ASID).startswith(b"guest's")

    def test_metadata(self, machine: Machine) -> None:
        machine.guest()
        put(machine, RmpState.METADATA)
        machine.memory.write(PAGE << 12, b"metadata")
        put(machine, RmpState.FIRMWARE, DST)
        assert machine.psp.page_move(GCTX, PAGE, DST) == OK
        assert machine.rmp.state(PAGE) is RmpState.FIRMWARE
        assert machine.rmp.state(DST) is RmpState.METADATA
        assert machine.page(DST).startswith(b"metadata")

    GOOD: ClassVar = [
        (RmpState.PRE_SWAP, RmpState.PRE_GUEST),
        (RmpState.PRE_GUEST, RmpState.PRE_GUEST),
        (RmpState.METADATA, RmpState.FIRMWARE),
    ]

    @pytest.mark.parametrize("source", all_states())
    @pytest.mark.parametrize("dest", all_states())
    def test_no_other_pair(self, machine: Machine, source: RmpState, dest: RmpState) -> None:
        machine.guest()
        put(machine, source)
        put(machine, dest, DST)
        expected = OK if (source, dest) in self.GOOD else S.INVALID_PAGE_STATE
        assert machine.psp.page_move(GCTX, PAGE, DST) == expected

    @pytest.mark.parametrize(("src_asid", "dst_asid"), [(ASID + 1, ASID), (ASID, ASID + 1), (ASID + 1, ASID + 1)])
    def test_owner(self, machine: Machine, src_asid: int, dst_asid: int) -> None:
        machine.guest()
        put(machine, RmpState.PRE_SWAP, asid=src_asid)
        put(machine, RmpState.PRE_GUEST, DST, asid=dst_asid)
        assert machine.psp.page_move(GCTX, PAGE, DST) == S.INVALID_PAGE_OWNER

    def test_owner_of_metadata(self, machine: Machine) -> None:
        machine.guest(2)
        put(machine, RmpState.METADATA)
        put(machine, RmpState.FIRMWARE, DST)
        assert machine.psp.page_move(2, PAGE, DST) == S.INVALID_PAGE_OWNER

    def test_order(self, machine: Machine) -> None:
        psp = machine.psp
        psp.state = PlatformState.UNINIT
        assert psp.page_move(GCTX, PAGE, DST, reserved=1) == S.INVALID_PARAM
        assert psp.page_move(GCTX, PAGE, DST) == S.INVALID_PLATFORM_STATE
        psp.state = PlatformState.INIT
        assert psp.page_move(GCTX, PAGE, DST, 1) == S.INVALID_GUEST
        machine.context_page()
        assert psp.page_move(GCTX, PAGE, DST, 1) == S.INVALID_PAGE_SIZE
        put(machine, RmpState.PRE_SWAP, pagesize=1)
        put(machine, RmpState.PRE_GUEST, DST)
        assert psp.page_move(GCTX, PAGE, DST) == S.INVALID_PAGE_SIZE
        assert psp.page_move(GCTX, PAGE, DST, 1) == S.INVALID_PAGE_SIZE
        put(machine, RmpState.GUEST_VALID)
        assert psp.page_move(GCTX, PAGE, DST) == S.INVALID_GUEST_STATE
        psp.contexts[GCTX].state = GuestState.RUNNING
        assert psp.page_move(GCTX, PAGE, DST) == S.INACTIVE
        psp.contexts[GCTX].asid = ASID
        assert psp.page_move(GCTX, PAGE, DST) == S.INVALID_PAGE_STATE
        assert psp.page_move(GCTX, COVERED, DST) == S.INVALID_PAGE_STATE


class TestUnsmash:
    def split(self, machine: Machine, state: RmpState = RmpState.PRE_GUEST) -> None:
        put(machine, state, pagesize=1)
        machine.rmp.firmware_write(PAGE, 512, lambda e: e._replace(pagesize=0))

    @pytest.mark.parametrize("state", [RmpState.PRE_GUEST, RmpState.PRE_SWAP])
    def test_joins(self, machine: Machine, state: RmpState) -> None:
        self.split(machine, state)
        before = machine.rmp.lookup(PAGE)
        assert before is not None
        assert machine.psp.page_unsmash(PAGE) == OK
        assert machine.rmp.lookup(PAGE + 511) == before._replace(pagesize=1)
        assert machine.rmp.own_state(PAGE + 511) is RmpState.RECLAIM

    @pytest.mark.parametrize("state", [s for s in all_states() if s not in (RmpState.PRE_GUEST, RmpState.PRE_SWAP)])
    def test_only_immutable_pages_of_a_guest(self, machine: Machine, state: RmpState) -> None:
        if state is not RmpState.HYPERVISOR:
            self.split(machine, state)
        assert machine.psp.page_unsmash(PAGE) == S.INVALID_PAGE_STATE

    @pytest.mark.parametrize("at", [0, 1, 511])
    @pytest.mark.parametrize(
        "odd",
        [
            {"immutable": False},
            {"validated": True},
            {"asid": ASID + 1},
            {"gfn_delta": 0x1000},
            {"vmsa": True},
            {"vmpl": (31, 1, 0, 0)},
        ],
    )
    def test_all_must_be_alike(self, machine: Machine, at: int, odd: dict[str, int]) -> None:
        self.split(machine)
        machine.rmp.firmware_write(PAGE + at, 1, lambda e: e._replace(**odd))  # type: ignore[arg-type]
        assert machine.psp.page_unsmash(PAGE) == S.INVALID_PAGE_STATE

    def test_no_vmsa(self, machine: Machine) -> None:
        self.split(machine)
        machine.rmp.firmware_write(PAGE, 512, lambda e: e._replace(vmsa=True))
        assert machine.psp.page_unsmash(PAGE) == S.INVALID_PAGE_STATE

    def test_guest_address_aligned(self, machine: Machine) -> None:
        machine.pre_guest(count=512, gfn=GFN + 1)
        assert machine.psp.page_unsmash(PAGE) == S.INVALID_PAGE_STATE

    def test_not_what_is_joined_already(self, machine: Machine) -> None:
        self.split(machine)
        machine.psp.page_unsmash(PAGE)
        assert machine.psp.page_unsmash(PAGE) == S.INVALID_PAGE_STATE

    def test_order(self, machine: Machine) -> None:
        psp = machine.psp
        psp.state = PlatformState.UNINIT
        assert psp.page_unsmash(PAGE, reserved=1) == S.INVALID_PARAM
        assert psp.page_unsmash(PAGE + 1) == S.INVALID_PARAM
        assert psp.page_unsmash(PAGE) == S.INVALID_PLATFORM_STATE
        psp.state = PlatformState.INIT
        assert psp.page_unsmash(COVERED) == S.INVALID_PAGE_STATE

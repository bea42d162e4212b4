# SPDX-License-Identifier: GPL-2.0-or-later
"""RMPUPDATE and PSMASH: every code, in the order of the checks; and what the table tells the host."""

from __future__ import annotations

import pytest

from gmemu.hw.snp.rmp import PsmashStatus, Rmp, RmpState, RmpUpdateStatus
from gmemu.hw.snp.rmp_entry import VMPL_RESET, RmpEntry, decode
from gmemu.sync import DirectRuntime

from .machine import ASID, COVERED, GFN, PAGE, Stepping

OK, INPUT, PERMISSION = RmpUpdateStatus.SUCCESS, RmpUpdateStatus.FAIL_INPUT, RmpUpdateStatus.FAIL_PERMISSION
INUSE, OVERLAP = RmpUpdateStatus.FAIL_INUSE, RmpUpdateStatus.FAIL_OVERLAP


@pytest.fixture
def rmp() -> Rmp:
    return Rmp(DirectRuntime(), COVERED)


@pytest.mark.parametrize(
    ("asid", "immutable", "state"),
    [
        (ASID, True, RmpState.PRE_GUEST),
        (ASID, False, RmpState.GUEST_INVALID),
        (0, True, RmpState.FIRMWARE),
        (0, False, RmpState.RECLAIM),
    ],
)
def test_from_hypervisor(rmp: Rmp, asid: int, immutable: bool, state: RmpState) -> None:
    assert rmp.state(PAGE) is RmpState.HYPERVISOR
    assert rmp.rmpupdate(PAGE, assigned=True, asid=asid, gfn=GFN if asid else 0, immutable=immutable) == (OK, 1)
    assert rmp.state(PAGE) is state
    assert rmp.state(PAGE + 1) is RmpState.HYPERVISOR


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("asid", [0, ASID])
def test_back_to_hypervisor(rmp: Rmp, asid: int, validated: bool) -> None:
    rmp.rmpupdate(PAGE, assigned=True, asid=asid, gfn=GFN)
    if asid and validated:
        rmp.pvalidate(PAGE, GFN, ASID, 0, True)
    assert rmp.rmpupdate(PAGE, assigned=False) == (OK, 1)
    assert rmp.state(PAGE) is RmpState.HYPERVISOR
    assert len(rmp.entries) == 0


def test_releasing_a_page_that_nobody_has_is_no_error(rmp: Rmp) -> None:
    assert rmp.rmpupdate(PAGE, assigned=False) == (OK, 1)


@pytest.mark.parametrize("change", [{"assigned": False}, {"assigned": True}, {"assigned": True, "asid": ASID, "gfn": GFN}])
def test_immutable(rmp: Rmp, change: dict[str, int]) -> None:
    rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True)
    before = rmp.entries.copy()
    assert rmp.rmpupdate(PAGE, **change) == (PERMISSION, 0)  # type: ignore[arg-type]
    assert rmp.entries == before


def test_hv_fixed_is_immutable_too(rmp: Rmp) -> None:
    rmp.entries.set(PAGE, PAGE + 1, RmpEntry(assigned=False, immutable=True))
    assert rmp.rmpupdate(PAGE, assigned=True) == (PERMISSION, 0)
    assert rmp.rmpupdate(PAGE, assigned=True, pagesize=1) == (PERMISSION, 0)
    assert rmp.state(PAGE) is RmpState.HV_FIXED


@pytest.mark.parametrize("extra", [{"asid": ASID}, {"immutable": True}])
def test_nobodys_page_has_no_asid_and_is_mutable(rmp: Rmp, extra: dict[str, int]) -> None:
    assert rmp.rmpupdate(PAGE, assigned=False, **extra) == (PERMISSION, 0)  # type: ignore[arg-type]
    assert rmp.rmpupdate(COVERED, assigned=False, **extra) == (INPUT, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pfn", "args"),
    [
        (COVERED, {}),
        (-1, {}),
        (PAGE, {"asid": 1024}),
        (PAGE, {"asid": ASID, "gfn": 1 << 39}),
        (PAGE, {"asid": ASID, "gfn": -1}),
        (PAGE + 1, {"pagesize": 1}),
        (PAGE, {"pagesize": 1, "asid": ASID, "gfn": GFN + 1}),
        (COVERED, {"pagesize": 1}),
        (-512, {"pagesize": 1}),
    ],
)
def test_bad_input(rmp: Rmp, pfn: int, args: dict[str, int]) -> None:
    assert rmp.rmpupdate(pfn, assigned=True, **args) == (INPUT, 0)  # type: ignore[arg-type]
    assert len(rmp.entries) == 0


def test_2m_page_that_the_table_covers_in_part() -> None:
    rmp = Rmp(DirectRuntime(), 0x600 + 100)
    assert rmp.rmpupdate(0x600, assigned=True, pagesize=1) == (INPUT, 0)
    assert rmp.rmpupdate(0x600, assigned=True) == (OK, 1)


def test_input_comes_before_all_else(rmp: Rmp) -> None:
    rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True)
    rmp.set_in_use(PAGE, True)
    assert rmp.rmpupdate(PAGE, assigned=True, asid=1024) == (INPUT, 0)


def test_in_use_comes_before_permission(rmp: Rmp) -> None:
    rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True)
    rmp.set_in_use(PAGE, True)
    assert rmp.rmpupdate(PAGE, assigned=False) == (INUSE, 0)
    rmp.set_in_use(PAGE, False)
    assert rmp.rmpupdate(PAGE, assigned=False) == (PERMISSION, 0)


def test_vmsa_of_a_running_vcpu(rmp: Rmp) -> None:
    rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN)
    rmp.set_in_use(PAGE, True)
    assert rmp.rmpupdate(PAGE, assigned=False) == (INUSE, 0)
    assert rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, pagesize=1) == (INUSE, 0)
    assert rmp.state(PAGE) is RmpState.GUEST_INVALID
    rmp.set_in_use(PAGE, False)
    rmp.set_in_use(PAGE, False)
    assert rmp.rmpupdate(PAGE, assigned=False) == (OK, 1)


def test_permission_comes_before_overlap(rmp: Rmp) -> None:
    rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True)
    assert rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, pagesize=1) == (PERMISSION, 0)


class TestHuge:
    """2 MiB entries."""

    def test_made_and_given_back_whole(self, rmp: Rmp) -> None:
        assert rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, pagesize=1) == (OK, 1)
        assert {rmp.state(p) for p in range(PAGE, PAGE + 512)} == {RmpState.GUEST_INVALID}
        entry = rmp.lookup(PAGE + 511)
        assert entry is not None
        assert (entry.pagesize, entry.gfn(PAGE + 511)) == (1, GFN + 511)
        assert rmp.state(PAGE + 512) is rmp.state(PAGE - 1) is RmpState.HYPERVISOR
        assert rmp.rmpupdate(PAGE, assigned=False, pagesize=1) == (OK, 1)
        assert len(rmp.entries) == 0

    def test_several(self, rmp: Rmp) -> None:
        assert rmp.rmpupdate(PAGE, count=3, assigned=True, asid=ASID, gfn=GFN, pagesize=1) == (OK, 3)
        entry = rmp.lookup(PAGE + 1024)
        assert entry is not None
        assert entry.gfn(PAGE + 1024) == GFN + 1024
        assert len(rmp.entries) == 1
        rmp.rmpupdate(PAGE + 1536 + 7, assigned=True)
        assert rmp.rmpupdate(PAGE, count=4, assigned=True, asid=ASID, gfn=GFN, immutable=True, pagesize=1) == (OVERLAP, 3)

    @pytest.mark.parametrize("offset", [0, 1, 511])
    @pytest.mark.parametrize("assigned", [False, True])
    def test_4k_update_below_it(self, rmp: Rmp, offset: int, assigned: bool) -> None:
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, pagesize=1)
        assert rmp.rmpupdate(PAGE + offset, assigned=assigned) == (OVERLAP, 0)
        assert rmp.psmash(PAGE) is PsmashStatus.SUCCESS
        assert rmp.rmpupdate(PAGE + offset, assigned=assigned) == (OK, 1)

    def test_4k_update_below_an_immutable_one(self, rmp: Rmp) -> None:
        """Only the first page's own entry is immutable."""
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True, pagesize=1)
        assert rmp.rmpupdate(PAGE, assigned=False) == (PERMISSION, 0)
        assert rmp.rmpupdate(PAGE + 1, assigned=False) == (OVERLAP, 0)

    @pytest.mark.parametrize("offset", [0, 1, 511])
    @pytest.mark.parametrize("assigned", [False, True])
    def test_over_4k_pages(self, rmp: Rmp, offset: int, assigned: bool) -> None:
        rmp.rmpupdate(PAGE + offset, assigned=True, asid=ASID, gfn=GFN + offset)
        asid = ASID if assigned else 0
        assert rmp.rmpupdate(PAGE, assigned=assigned, asid=asid, gfn=GFN, pagesize=1) == (OVERLAP, 0)

    def test_same_guest_page_again_keeps_what_the_guest_did(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, pagesize=1)
        rmp.pvalidate(PAGE, GFN, ASID, 0, True, 1)
        assert rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True, pagesize=1) == (OK, 1)
        assert rmp.state(PAGE) is RmpState.PRE_SWAP

    def test_raw_form(self, rmp: Rmp) -> None:
        """The first page's entry is the guest's; the others read as nobody's, and so as RECLAIM to the firmware."""
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True, pagesize=1)
        head, count = decode(rmp.raw(PAGE), PAGE)
        assert (head, count) == (rmp.lookup(PAGE), 0)
        below, _ = decode(rmp.raw(PAGE + 1), PAGE + 1)
        assert below == RmpEntry()
        assert rmp.own_state(PAGE) is RmpState.PRE_GUEST
        assert rmp.own_state(PAGE + 1) is RmpState.RECLAIM
        assert rmp.own_run(PAGE + 1, 9) == (RmpEntry(), 1)

    def test_subpage_count_counts_4k_pages(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE + 1, count=3, assigned=True, asid=ASID, gfn=GFN)
        assert decode(rmp.raw(PAGE), PAGE) == (None, 3)
        rmp.rmpupdate(PAGE, assigned=True)
        assert decode(rmp.raw(PAGE), PAGE) == (RmpEntry(), 3)
        assert decode(rmp.raw(PAGE + 1), PAGE + 1)[1] == 0


class TestPsmash:
    def test_keeps_all_other_fields(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, pagesize=1)
        rmp.pvalidate(PAGE, GFN, ASID, 0, True, 1)
        rmp.rmpadjust(PAGE, GFN, ASID, 0, target_vmpl=1, mask=3, pagesize=1)
        before = rmp.lookup(PAGE)
        assert before is not None
        assert rmp.psmash(PAGE) is PsmashStatus.SUCCESS
        for pfn in (PAGE, PAGE + 1, PAGE + 511):
            entry = rmp.lookup(pfn)
            assert entry == before._replace(pagesize=0)
            assert entry is not None
            assert entry.gfn(pfn) == GFN + pfn - PAGE
        assert decode(rmp.raw(PAGE), PAGE)[1] == 511

    def test_codes_in_order(self, rmp: Rmp) -> None:
        rmp.set_in_use(PAGE, True)
        assert rmp.psmash(PAGE + 1) is PsmashStatus.FAIL_INPUT
        assert rmp.psmash(COVERED) is PsmashStatus.FAIL_BADADDR
        assert rmp.psmash(PAGE) is PsmashStatus.FAIL_INUSE
        rmp.set_in_use(PAGE, False)
        assert rmp.psmash(PAGE) is PsmashStatus.FAIL_BADADDR  # nobody's
        rmp.rmpupdate(PAGE, assigned=True)
        assert rmp.psmash(PAGE) is PsmashStatus.FAIL_BADADDR  # 4 KiB
        rmp.rmpupdate(PAGE + 512, assigned=True, asid=ASID, gfn=GFN, immutable=True, pagesize=1)
        assert rmp.psmash(PAGE + 512) is PsmashStatus.FAIL_PERMISSION


class TestWhatSurvives:
    """Validation, rights and the VMSA bit belong to a guest's page in one place."""

    @pytest.fixture
    def validated(self, rmp: Rmp) -> RmpEntry:
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN)
        rmp.pvalidate(PAGE, GFN, ASID, 0, True)
        rmp.rmpadjust(PAGE, GFN, ASID, 0, target_vmpl=1, mask=7, vmsa=True)
        entry = rmp.lookup(PAGE)
        assert entry is not None
        assert (entry.validated, entry.vmsa, entry.vmpl) == (True, True, (31, 7, 0, 0))
        return entry

    def test_the_same_again(self, rmp: Rmp, validated: RmpEntry) -> None:
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True)
        assert rmp.lookup(PAGE) == validated._replace(immutable=True)

    @pytest.mark.parametrize("new", [{"asid": ASID + 1, "gfn": GFN}, {"asid": ASID, "gfn": GFN + 1}, {"asid": 0, "gfn": 0}])
    def test_anything_else(self, rmp: Rmp, validated: RmpEntry, new: dict[str, int]) -> None:
        rmp.rmpupdate(PAGE, assigned=True, **new)  # type: ignore[arg-type]
        entry = rmp.lookup(PAGE)
        assert entry is not None
        assert (entry.validated, entry.vmsa, entry.vmpl) == (False, False, VMPL_RESET)

    def test_given_back_and_assigned_again(self, rmp: Rmp, validated: RmpEntry) -> None:
        rmp.rmpupdate(PAGE, assigned=False)
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN)
        assert rmp.state(PAGE) is RmpState.GUEST_INVALID


class TestBackToBack:
    def test_consecutive_guest_pages_are_one_run(self, rmp: Rmp) -> None:
        assert rmp.rmpupdate(PAGE, count=1000, assigned=True, asid=ASID, gfn=GFN, immutable=True) == (OK, 1000)
        assert len(rmp.entries) == 1
        entry, n = rmp.own_run(PAGE + 10, 5000)
        assert n == 990
        assert entry is not None
        assert entry.gfn(PAGE + 999) == GFN + 999

    def test_firmware_pages_all_have_gpa_zero(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, count=4, assigned=True, immutable=True)
        assert [rmp.state(PAGE + i) for i in range(4)] == [RmpState.FIRMWARE] * 4

    @pytest.mark.parametrize(
        ("make", "code"),
        [
            (lambda r: r.rmpupdate(PAGE + 5, assigned=True, immutable=True), PERMISSION),
            (lambda r: r.set_in_use(PAGE + 5, True), INUSE),
        ],
    )
    def test_stops_at_the_first_failure(self, rmp: Rmp, make: object, code: RmpUpdateStatus) -> None:
        assert callable(make)
        make(rmp)
        assert rmp.rmpupdate(PAGE, count=9, assigned=True, asid=ASID, gfn=GFN) == (code, 5)
        assert rmp.state(PAGE + 4) is RmpState.GUEST_INVALID
        assert rmp.state(PAGE + 6) is RmpState.HYPERVISOR

    def test_stops_at_a_huge_page_and_at_the_end(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, pagesize=1)
        assert rmp.rmpupdate(PAGE - 3, count=9, assigned=True, asid=ASID, gfn=0) == (OVERLAP, 3)
        assert rmp.rmpupdate(COVERED - 2, count=9, assigned=True, asid=ASID, gfn=0) == (INPUT, 2)

    def test_the_earliest_failing_page_decides(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE + 2, assigned=True, immutable=True)
        rmp.set_in_use(PAGE + 5, True)
        assert rmp.rmpupdate(PAGE, count=9, assigned=True) == (PERMISSION, 2)

    def test_same_with_steps(self) -> None:
        fast, slow = Rmp(DirectRuntime(), COVERED), Rmp(Stepping(), COVERED)
        for rmp in (fast, slow):
            rmp.rmpupdate(PAGE + 20, assigned=True, immutable=True)
            assert rmp.rmpupdate(PAGE, count=40, assigned=True, asid=ASID, gfn=GFN) == (PERMISSION, 20)
            rmp.set_validated(PAGE, 10)
            assert rmp.rmpupdate(PAGE + 5, count=10, assigned=False) == (OK, 10)
        assert fast.entries == slow.entries

    def test_none(self, rmp: Rmp) -> None:
        assert rmp.rmpupdate(PAGE, count=0, assigned=True) == (OK, 0)


class TestMarks:
    """Explored runs see each page's entry as a thing of its own."""

    def test_one_per_page(self) -> None:
        rt = Stepping()
        rmp = Rmp(rt, COVERED)
        rmp.rmpupdate(PAGE, count=3, assigned=True, asid=ASID, gfn=GFN)
        assert rt.marks == [("w", ("rmp", PAGE + i)) for i in range(3)]
        rt.marks.clear()
        rmp.owned(PAGE, 2)
        rmp.lookup(PAGE)
        rmp.set_in_use(PAGE, True)
        pages = [("r", PAGE), ("r", PAGE + 1), ("r", PAGE), ("w", PAGE)]
        assert rt.marks == [(kind, ("rmp", pfn)) for kind, pfn in pages]

    def test_a_huge_page_touches_all_its_entries(self) -> None:
        rt = Stepping()
        Rmp(rt, COVERED).rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, pagesize=1)
        assert rt.marks == [("w", ("rmp", PAGE, PAGE + 512))]

    def test_one_for_all_where_nothing_can_run_between(self) -> None:
        class Direct(Stepping):
            def batch(self, count: int) -> int:
                return count

        rt = Direct()
        Rmp(rt, COVERED).rmpupdate(PAGE, count=1000, assigned=True, asid=ASID, gfn=GFN)
        assert rt.marks == [("w", ("rmp", PAGE))]


class TestHost:
    def test_writes(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE + 3, assigned=True)
        rmp.entries.set(PAGE + 4, PAGE + 5, RmpEntry(assigned=False, immutable=True))
        assert rmp.check_host_write(PAGE, 3)
        assert not rmp.check_host_write(PAGE, 4)
        assert not rmp.check_host_write(PAGE + 3)
        assert rmp.check_host_write(PAGE + 4, 100)

    def test_owned(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE + 3, assigned=True)
        rmp.entries.set(PAGE + 4, PAGE + 5, RmpEntry(assigned=False, immutable=True))
        assert not rmp.owned(PAGE, 3)
        assert rmp.owned(PAGE, 4)
        assert rmp.owned(PAGE + 4)
        assert not rmp.owned(PAGE + 5, 1000)

    def test_outside_the_table(self, rmp: Rmp) -> None:
        assert rmp.state(COVERED) is RmpState.DEFAULT
        assert rmp.own_state(COVERED) is RmpState.DEFAULT
        assert not rmp.covers(-1)
        with pytest.raises(LookupError, match="outside the RMP"):
            rmp.lookup(COVERED)


def test_a_terabyte_costs_runs() -> None:
    rmp = Rmp(DirectRuntime(), 1 << 28)
    assert rmp.rmpupdate(0, count=1 << 28, assigned=True, asid=ASID, gfn=1 << 20, immutable=True) == (OK, 1 << 28)
    rmp.set_validated(0, 1 << 28)
    rmp.rmpupdate(1 << 20, assigned=False)
    assert len(rmp.entries) == 2
    assert rmp.assigned_to(ASID) == (1 << 28) - 1

# SPDX-License-Identifier: GPL-2.0-or-later
"""PVALIDATE, RMPADJUST, and what the table says to a guest's accesses, in the order of the checks."""

from __future__ import annotations

import pytest

from gmemu.hw.snp.rmp import (
    NestedFault,
    NotValidated,
    PvalidateStatus,
    Rmp,
    RmpAdjustStatus,
    RmpState,
    VmplMask,
)
from gmemu.hw.snp.rmp_entry import RmpEntry
from gmemu.sync import DirectRuntime
from gmemu.uapi.kvm_x86 import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_ENC_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_RMP_MASK,
    PFERR_GUEST_SIZEM_MASK,
    PFERR_GUEST_VMPL_MASK,
    PFERR_PRESENT_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)

from .machine import ASID, COVERED, GFN, PAGE

R, W, XU, XS = VmplMask.READ, VmplMask.WRITE, VmplMask.EXEC_USER, VmplMask.EXEC_SUPERVISOR
BASE = PFERR_PRESENT_MASK | PFERR_USER_MASK | PFERR_GUEST_FINAL_MASK | PFERR_GUEST_RMP_MASK
ENC = BASE | PFERR_GUEST_ENC_MASK


@pytest.fixture
def rmp() -> Rmp:
    """A GUEST_INVALID page at PAGE, and a 2 MiB one 2 MiB further."""
    rmp = Rmp(DirectRuntime(), COVERED)
    rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN)
    rmp.rmpupdate(PAGE + 512, assigned=True, asid=ASID, gfn=GFN + 512, pagesize=1)
    return rmp


def fault(rmp: Rmp, *args: object, **kwargs: object) -> int:
    with pytest.raises(NestedFault) as e:
        rmp.check_guest(*args, **kwargs)  # type: ignore[arg-type]
    return e.value.error


class TestPvalidate:
    def test_there_and_back(self, rmp: Rmp) -> None:
        assert rmp.pvalidate(PAGE, GFN, ASID, 0, True) is PvalidateStatus.SUCCESS
        assert rmp.state(PAGE) is RmpState.GUEST_VALID
        assert rmp.pvalidate(PAGE, GFN, ASID, 0, False) is PvalidateStatus.SUCCESS
        assert rmp.state(PAGE) is RmpState.GUEST_INVALID

    @pytest.mark.parametrize("validate", [False, True])
    def test_no_change_is_the_carry_flag(self, rmp: Rmp, validate: bool) -> None:
        if validate:
            rmp.pvalidate(PAGE, GFN, ASID, 0, True)
        assert rmp.pvalidate(PAGE, GFN, ASID, 0, validate) == 255

    def test_2m(self, rmp: Rmp) -> None:
        assert rmp.pvalidate(PAGE + 512, GFN + 512, ASID, 0, True, 1) is PvalidateStatus.SUCCESS
        assert rmp.state(PAGE + 1023) is RmpState.GUEST_VALID
        assert rmp.pvalidate(PAGE + 512, GFN + 512, ASID, 0, True, 1) is PvalidateStatus.NO_UPDATE

    def test_2m_over_4k_the_guest_is_told(self, rmp: Rmp) -> None:
        assert rmp.pvalidate(PAGE, GFN, ASID, 0, True, 1) == 6

    @pytest.mark.parametrize("offset", [0, 1, 511])
    def test_4k_over_2m_the_hypervisor_must_split(self, rmp: Rmp, offset: int) -> None:
        pfn, gfn = PAGE + 512 + offset, GFN + 512 + offset
        with pytest.raises(NestedFault) as e:
            rmp.pvalidate(pfn, gfn, ASID, 0, True)
        assert e.value.error == ENC | PFERR_GUEST_SIZEM_MASK
        rmp.psmash(PAGE + 512)
        assert rmp.pvalidate(pfn, gfn, ASID, 0, True) is PvalidateStatus.SUCCESS

    def test_2m_must_be_aligned(self, rmp: Rmp) -> None:
        assert rmp.pvalidate(PAGE, GFN + 1, ASID, 1, True, 1) is PvalidateStatus.FAIL_INPUT

    @pytest.mark.parametrize(
        ("pfn", "gfn", "asid", "vmpl", "extra"),
        [
            (PAGE, GFN, ASID, 1, PFERR_GUEST_VMPL_MASK),
            (PAGE + 1, GFN + 1, ASID, 0, 0),
            (COVERED, GFN, ASID, 0, 0),
            (PAGE, GFN + 1, ASID, 0, 0),
            (PAGE, GFN, ASID + 1, 0, 0),
        ],
    )
    def test_faults(self, rmp: Rmp, pfn: int, gfn: int, asid: int, vmpl: int, extra: int) -> None:
        with pytest.raises(NestedFault) as e:
            rmp.pvalidate(pfn, gfn, asid, vmpl, True)
        assert e.value.error == ENC | extra
        assert (e.value.pfn, e.value.gfn) == (pfn, gfn)

    def test_an_immutable_page_faults(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True)
        with pytest.raises(NestedFault, match="immutable"):
            rmp.pvalidate(PAGE, GFN, ASID, 0, True)

    def test_size_is_looked_at_before_the_bit(self, rmp: Rmp) -> None:
        rmp.pvalidate(PAGE, GFN, ASID, 0, True)
        assert rmp.pvalidate(PAGE, GFN, ASID, 0, True, 1) is PvalidateStatus.FAIL_SIZEMISMATCH


class TestRmpadjust:
    @pytest.fixture(autouse=True)
    def _accept(self, rmp: Rmp) -> None:
        rmp.pvalidate(PAGE, GFN, ASID, 0, True)
        rmp.pvalidate(PAGE + 512, GFN + 512, ASID, 0, True, 1)

    def adjust(self, rmp: Rmp, vmpl: int = 0, target: int = 1, mask: int = R, **kwargs: int) -> RmpAdjustStatus:
        return rmp.rmpadjust(PAGE, GFN, ASID, vmpl, target_vmpl=target, mask=mask, **kwargs)  # type: ignore[arg-type]

    def test_grants(self, rmp: Rmp) -> None:
        assert self.adjust(rmp, mask=R | W) == 0
        assert self.adjust(rmp, vmpl=1, target=2) == 0
        entry = rmp.lookup(PAGE)
        assert entry is not None
        assert entry.vmpl == (31, 3, 1, 0)
        rmp.check_guest(PAGE, GFN, ASID, 1, W, True)
        rmp.check_guest(PAGE, GFN, ASID, 2, R, True)

    @pytest.mark.parametrize(("target", "mask"), [(4, R), (-1, R), (1, 32)])
    def test_input(self, rmp: Rmp, target: int, mask: int) -> None:
        assert self.adjust(rmp, vmpl=3, target=target, mask=mask) == 1

    @pytest.mark.parametrize(("vmpl", "target"), [(0, 0), (1, 1), (2, 1)])
    def test_only_downwards(self, rmp: Rmp, vmpl: int, target: int) -> None:
        assert self.adjust(rmp, vmpl=vmpl, target=target) == 2

    def test_only_what_the_caller_has(self, rmp: Rmp) -> None:
        self.adjust(rmp, mask=R)
        assert self.adjust(rmp, vmpl=1, target=2, mask=W) == 2

    def test_sizes(self, rmp: Rmp) -> None:
        assert self.adjust(rmp, pagesize=1) == 6
        assert rmp.rmpadjust(PAGE + 512, GFN + 512, ASID, 0, target_vmpl=1, mask=R, pagesize=1) == 0
        entry = rmp.lookup(PAGE + 1000)
        assert entry is not None
        assert entry.vmpl[1] == R
        with pytest.raises(NestedFault) as e:
            rmp.rmpadjust(PAGE + 512, GFN + 512, ASID, 0, target_vmpl=1, mask=R)
        assert e.value.error == ENC | PFERR_GUEST_SIZEM_MASK

    def test_vmsa_bit_is_vmpl0s(self, rmp: Rmp) -> None:
        self.adjust(rmp, mask=R, vmsa=True)
        entry = rmp.lookup(PAGE)
        assert entry is not None
        assert entry.vmsa
        self.adjust(rmp, vmpl=1, target=2, mask=0, vmsa=False)
        assert rmp.lookup(PAGE) == entry
        self.adjust(rmp, mask=R, vmsa=False)
        assert rmp.lookup(PAGE) == entry._replace(vmsa=False)

    def test_needs_a_validated_page_of_its_own(self, rmp: Rmp) -> None:
        with pytest.raises(NestedFault):
            rmp.rmpadjust(PAGE, GFN, ASID + 1, 0, target_vmpl=1, mask=R)
        rmp.pvalidate(PAGE, GFN, ASID, 0, False)
        with pytest.raises(NotValidated):
            self.adjust(rmp)


class TestAccess:
    def test_allowed(self, rmp: Rmp) -> None:
        rmp.pvalidate(PAGE, GFN, ASID, 0, True)
        for access in (R, W, XU, XS):
            rmp.check_guest(PAGE, GFN, ASID, 0, access, True)
        rmp.check_guest(PAGE + 1, 0x999, ASID, 3, W, False)

    def test_error_says_what_kind_of_access(self, rmp: Rmp) -> None:
        assert fault(rmp, PAGE + 1, GFN, ASID, 0, R, True) == ENC
        assert fault(rmp, PAGE + 1, GFN, ASID, 0, W, True) == ENC | PFERR_WRITE_MASK
        assert fault(rmp, PAGE + 1, GFN, ASID, 0, XS, True) == ENC | PFERR_FETCH_MASK
        assert fault(rmp, PAGE, GFN, ASID, 0, W, False) == BASE | PFERR_WRITE_MASK

    def test_shared_access_needs_a_page_nobody_is_assigned(self, rmp: Rmp) -> None:
        rmp.entries.set(PAGE + 2, PAGE + 3, RmpEntry(assigned=False, immutable=True))
        rmp.check_guest(PAGE + 2, 0, ASID, 0, R, False)
        assert fault(rmp, PAGE, GFN, ASID, 0, R, False) == BASE

    @pytest.mark.parametrize(
        ("pfn", "gfn", "asid", "pagesize"),
        [(PAGE, GFN + 1, ASID, 0), (PAGE + 1, GFN + 1, ASID, 0), (PAGE, GFN, ASID + 1, 0), (PAGE, GFN, ASID, 1)],
    )
    def test_not_the_guests_page(self, rmp: Rmp, pfn: int, gfn: int, asid: int, pagesize: int) -> None:
        """Each faults although the page isn't validated either, which comes later."""
        assert fault(rmp, pfn, gfn, asid, 0, R, True, pagesize) == ENC

    def test_immutable(self, rmp: Rmp) -> None:
        rmp.rmpupdate(PAGE, assigned=True, asid=ASID, gfn=GFN, immutable=True)
        assert fault(rmp, PAGE, GFN, ASID, 0, R, True) == ENC

    def test_not_validated_comes_before_rights(self, rmp: Rmp) -> None:
        with pytest.raises(NotValidated, match="hasn't been validated") as e:
            rmp.check_guest(PAGE, GFN, ASID, 3, R, True)
        assert e.value.EXIT_CODE == 0x404
        assert (e.value.gfn, e.value.pfn) == (GFN, PAGE)

    def test_rights(self, rmp: Rmp) -> None:
        rmp.pvalidate(PAGE, GFN, ASID, 0, True)
        rmp.rmpadjust(PAGE, GFN, ASID, 0, target_vmpl=1, mask=R | XU)
        rmp.check_guest(PAGE, GFN, ASID, 1, R, True)
        rmp.check_guest(PAGE, GFN, ASID, 1, XU, True)
        assert fault(rmp, PAGE, GFN, ASID, 1, W, True) == ENC | PFERR_WRITE_MASK | PFERR_GUEST_VMPL_MASK
        assert fault(rmp, PAGE, GFN, ASID, 1, XS, True) == ENC | PFERR_FETCH_MASK | PFERR_GUEST_VMPL_MASK
        assert fault(rmp, PAGE, GFN, ASID, 2, R, True) == ENC | PFERR_GUEST_VMPL_MASK

    def test_small_mapping_of_a_huge_page(self, rmp: Rmp) -> None:
        rmp.pvalidate(PAGE + 512, GFN + 512, ASID, 0, True, 1)
        rmp.check_guest(PAGE + 512 + 9, GFN + 512 + 9, ASID, 0, W, True)
        rmp.check_guest(PAGE + 512, GFN + 512, ASID, 0, W, True, 1)
        assert fault(rmp, PAGE + 512 + 9, GFN + 512 + 8, ASID, 0, R, True) == ENC

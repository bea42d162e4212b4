# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix of failures, row by row: what is ordered or done, and what comes of it.

A test is named after its row; `UNREACHABLE` has those that can't be had here, with the reason, and a test sees to it that
no row is forgotten.
"""

from __future__ import annotations

import re
from errno import EAGAIN, EBUSY, EFAULT, EINTR, EINVAL, EIO, ENOMEM, ENXIO

import pytest

from gmemu import BusError, ConversionRefused, ExitReason, InvariantViolation, KernelError, SegmentationFault
from gmemu.api.sev import SnpError
from gmemu.api.tdx import TdxError
from gmemu.hw.el2.guest_cpu import PkvmGuestCpu
from gmemu.hw.el2.hypervisor import PageState
from gmemu.hw.guest_cpu import GuestCpu
from gmemu.hw.rmm.guest_cpu import RealmGuestCpu
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.hw.tdx.guest_cpu import TdGuestCpu
from gmemu.uapi.errno import EHWPOISON
from gmemu.uapi.ghcb import SEV_TERM_SET_LINUX, LinuxTermReason, ghcb_msr_term_fields
from gmemu.uapi.kvm import SystemEvent
from gmemu.uapi.mman import MADV_HWPOISON
from gmemu.uapi.rmi import GranuleState, Ripas, RsiResponse
from gmemu.uapi.sev import PspStatus, SnpPageType, snp_cpuid_entry, snp_cpuid_table, snp_id_block
from gmemu.uapi.tdx import TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED, TdxStatus, status_of
from gmemu.vmm import Poisoned

from .machines import GFN, GPA, HLT, PAGE, PAGES, SEPT_VE_DISABLE, Machine, PkvmMachine, RealmMachine, SnpMachine, TdxMachine

ROWS = 46
UNREACHABLE: dict[int, str] = {}
"""Rows that can't be had."""


def test_no_row_is_missing() -> None:
    found = {int(name[5:7]) for name in globals() if re.match(r"test_\d\d_", name)}
    assert found | set(UNREACHABLE) == set(range(1, ROWS + 1))
    assert not found & set(UNREACHABLE)


# Every platform


def test_01_not_private_snp() -> None:
    with SnpMachine() as m:
        m.fill(0)
        before = m.digest
        assert m.update(0) == ("snp.update.failed", EIO, PspStatus.SUCCESS, PAGE)
        assert m.digest == before


def test_01_not_private_tdx() -> None:
    with TdxMachine() as m:
        m.fill(0)
        rule, errno, left = m.add(0)
        assert (rule, errno) == ("gmem.populate.not-private", EINVAL)
        assert left is not None
        assert left.nr_pages == 1


def test_02_poison_snp() -> None:
    def guest(cpu: GuestCpu) -> None:
        cpu.accept(GPA, PAGE)
        cpu.store(GPA, b"known to the guest only")
        cpu.halt()
        cpu.load(GPA)

    with SnpMachine(f"poison gfn={GFN:#x} during=KVM_RUN call=2") as m:
        m.convert(0)
        m.finish()
        assert m.run(guest).reason is HLT
        exit_ = m.vcpu.run()
        assert exit_.reason is ExitReason.MEMORY_FAULT
        assert exit_.error is not None
        assert (exit_.error.errno, exit_.memory_fault.gpa) == (EHWPOISON, GPA)
        with pytest.raises(Poisoned):
            m.run()
        m.lost = True


def test_02_poison_by_madvise() -> None:
    with Machine() as m:
        m.fill(0)
        with pytest.raises(BusError):
            m.block.buffer.madvise(MADV_HWPOISON, 0, PAGE)
        with pytest.raises(Poisoned):
            m.run(lambda cpu: cpu.load(GPA))
        m.lost = True


def test_03_signal_snp() -> None:
    with SnpMachine("signal during=SNP_LAUNCH_UPDATE call=1 at=page nth=3", "signal during=SNP_LAUNCH_UPDATE call=3") as m:
        m.convert(0, 8)
        assert m.update(0, 8) == ("", 0, PspStatus.SUCCESS, 5 * PAGE), "partly done is success"
        assert m.update(3, 5) == ("", 0, PspStatus.SUCCESS, 0)
        m.convert(8)
        assert m.update(8) == ("snp.update.failed", EIO, PspStatus.SUCCESS, PAGE), "before the first page: EIO"
        assert m.update(8).rule == ""


def test_03_signal_tdx() -> None:
    with TdxMachine("signal during=INIT_MEM_REGION at=page nth=3") as m:
        m.fill(0, 8)
        m.convert(0, 8)
        rule, errno, left = m.add(0, 8)
        assert (rule, errno) == ("tdx.init-mem-region.signal", EINTR)
        assert left is not None
        assert (left.gpa, left.nr_pages) == (GPA + 2 * PAGE, 6), "the page that was come to wasn't added"
        assert m.add(2, 6)[0] == ""


def test_04_slot_end_snp() -> None:
    with SnpMachine() as m:
        m.convert(PAGES - 2, 2)
        assert m.update(PAGES - 2, 4) == ("", 0, PspStatus.SUCCESS, 2 * PAGE)
        assert m.update(PAGES, 2).errno == EINVAL


def test_04_slot_end_tdx() -> None:
    with TdxMachine() as m:
        m.convert(PAGES - 2, 2)
        rule, errno, left = m.add(PAGES - 2, 4)
        assert (rule, errno) == ("gmem.populate.slot", EINVAL)
        assert left is not None
        assert left.nr_pages == 2


@pytest.mark.parametrize("make", [SnpMachine, TdxMachine])
def test_05_implicit_conversion(make: type[Machine]) -> None:
    with make() as m:
        m.boot(2) if isinstance(m, TdxMachine) else m.finish()
        exit_ = m.vcpu.run(lambda cpu: cpu.store(GPA + 8 * PAGE, b"x"))
        assert (exit_.reason, exit_.wants_private) == (ExitReason.MEMORY_FAULT, True)
        assert exit_.error is not None
        assert (exit_.error.errno, exit_.memory_fault.gpa) == (EFAULT, GPA + 8 * PAGE)
        m.convert(9)
        exit_ = m.vcpu.run(lambda cpu: cpu.store(GPA + 9 * PAGE, b"x", shared=True))
        assert (exit_.reason, exit_.wants_private) == (ExitReason.MEMORY_FAULT, False)


def test_06_hypercall_not_enabled_snp() -> None:
    answers: list[int] = []
    with SnpMachine(hypercalls=False) as m:
        m.finish()
        m.run(lambda cpu: answers.append(cpu.page_state_change_msr(GPA, private=True)))
    assert answers[0] != 0


def test_06_hypercall_not_enabled_tdx() -> None:
    answers: list[int] = []
    with TdxMachine(hypercalls=False) as m:
        m.boot()
        m.run(lambda cpu: answers.append(cpu.map_gpa(GPA, PAGE, private=False).status))
    assert answers == [TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED]


def test_07_hole_punched_snp() -> None:
    def guest(cpu: GuestCpu) -> None:
        cpu.accept(GPA, PAGE)
        cpu.store(GPA, b"mine")
        cpu.halt()
        cpu.load(GPA)

    with SnpMachine() as m:
        m.convert(0)
        m.finish()
        assert m.run(guest).reason is HLT
        m.block.gmem.punch_hole(0, PAGE)
        exit_ = m.run()
        assert exit_.reason is ExitReason.SYSTEM_EVENT, "#VC: a fresh page, not validated"
        assert exit_.system_event.type == SystemEvent.SEV_TERM
        assert m.state(0) is RmpState.GUEST_INVALID


def test_07_hole_punched_tdx() -> None:
    def guest(cpu: TdGuestCpu) -> None:
        cpu.accept(GPA + PAGE, PAGE)
        cpu.store(GPA + PAGE, b"mine")
        cpu.halt()
        cpu.load(GPA + PAGE)

    with TdxMachine() as m:
        m.boot()
        assert m.run(guest).reason is HLT
        m.block.gmem.punch_hole(PAGE, PAGE)
        exit_ = m.run()
        assert exit_.reason is ExitReason.SYSTEM_EVENT, "#VE: PENDING again"
        assert exit_.system_event.type == SystemEvent.TDX_FATAL


# SNP


def test_08_double_populate() -> None:
    with SnpMachine() as m:
        m.convert(0)
        assert m.update(0).rule == ""
        digest = m.digest
        assert m.update(0) == ("snp.update.failed", EIO, PspStatus.SUCCESS, PAGE)
        assert m.digest == digest


def cpuid_page(*entries: snp_cpuid_entry, count: int | None = None, reserved: int = 0) -> bytes:
    head = snp_cpuid_table(count=len(entries) if count is None else count, reserved1=reserved)
    return (head.pack() + b"".join(entry.pack() for entry in entries)).ljust(PAGE, b"\0")


def test_09_cpuid_rejected() -> None:
    with SnpMachine() as m:
        m.convert(0)
        table = m.kvm.anonymous(PAGE)
        table[:] = cpuid_page(snp_cpuid_entry(eax_in=7, ebx=0xFFFFFFFF))
        digest = m.digest
        refused = m.update(0, type=SnpPageType.CPUID, source=table.address)
        assert refused == ("snp.update.failed", EIO, PspStatus.INVALID_PARAM, PAGE)
        corrected = snp_cpuid_entry.unpack_from(table[:], snp_cpuid_table.SIZE)
        assert 0 < corrected.ebx < 0xFFFFFFFF
        assert (m.digest, m.state(0)) == (digest, RmpState.HYPERVISOR)
        assert m.update(0, type=SnpPageType.CPUID, source=table.address).rule == ""
        table.close()


@pytest.mark.parametrize("fields", [{"count": 65}, {"reserved": 1}], ids=["count", "reserved"])
def test_10_cpuid_header_bad(fields: dict[str, int]) -> None:
    with SnpMachine() as m:
        m.convert(0)
        table = m.kvm.anonymous(PAGE)
        page = cpuid_page(snp_cpuid_entry(eax_in=7, ebx=0xFFFFFFFF), **fields)
        table[:] = page
        refused = m.update(0, type=SnpPageType.CPUID, source=table.address)
        assert refused == ("snp.update.failed", EIO, PspStatus.INVALID_PARAM, PAGE)
        assert table[:] == page
        table.close()


def test_11_update_after_finish() -> None:
    with SnpMachine() as m:
        m.finish()
        m.convert(0)
        assert m.update(0) == ("snp.update.failed", EIO, PspStatus.INVALID_GUEST_STATE, PAGE)
        assert m.state(0) is RmpState.HYPERVISOR


@pytest.mark.parametrize(
    ("block", "status"),
    [
        ({"ld": b"x" * 48, "policy": 0x30000}, "BAD_MEASUREMENT"),
        ({"policy": 0x70000}, "POLICY_FAILURE"),
        ({}, "BAD_SIGNATURE"),
    ],
    ids=["measurement", "policy", "signature"],
)
def test_12_wrong_id_block(block: dict[str, object], status: str) -> None:
    pytest.importorskip("cryptography")
    with SnpMachine(vcpus=0) as m:
        fields = {"ld": m.digest, "policy": 0x30000, "version": 1, **block}
        papers = m.kvm.anonymous(2 * PAGE)
        papers[:96] = snp_id_block(**fields).pack()
        papers[PAGE : PAGE + 8] = (1).to_bytes(4, "little") + (1).to_bytes(4, "little")
        with pytest.raises(SnpError) as caught:
            m.vm.snp.launch_finish(id_block=papers.address, id_auth=papers.address + PAGE)
        papers.close()
        assert caught.value.errno == EIO
        assert caught.value.fw_error.name == status


@pytest.mark.parametrize("status", ["BAD_MEASUREMENT", "BAD_SIGNATURE", "POLICY_FAILURE"])
def test_12_as_ordered(status: str) -> None:
    with SnpMachine(f"psp LAUNCH_FINISH -> {status}") as m:
        with pytest.raises(SnpError) as caught:
            m.finish()
        assert (caught.value.errno, caught.value.fw_error.name) == (EIO, status)


@pytest.mark.parametrize("status", ["INVALID_PAGE_STATE", "INVALID_PAGE_OWNER", "INVALID_PAGE_SIZE"])
def test_13_the_firmware_refuses_a_page(status: str) -> None:
    with SnpMachine(f"psp LAUNCH_UPDATE gfn={GFN + 2:#x} -> {status}") as m:
        m.convert(0, 4)
        assert m.update(0, 4) == ("", 0, PspStatus.SUCCESS, 2 * PAGE), "what was done before counts"
        digest = m.digest
        m.faults.order(f"psp LAUNCH_UPDATE -> {status}")
        assert m.update(2, 2) == ("snp.update.failed", EIO, PspStatus[status], 2 * PAGE)
        assert (m.digest, m.state(2)) == (digest, RmpState.HYPERVISOR)
        assert m.update(2, 2).left == 0


def test_14_reclaim_fails() -> None:
    with SnpMachine("psp LAUNCH_UPDATE -> INVALID_PARAM", "psp PAGE_RECLAIM -> INVALID_PAGE_STATE") as m:
        m.convert(0)
        assert m.update(0) == ("snp.update.failed", EIO, PspStatus.INVALID_PARAM, PAGE)
        assert m.dead
        assert m.leaked == 1
        with pytest.raises(KernelError) as caught:
            m.vcpu.run()
        assert (caught.value.errno, caught.value.rule.id) == (EIO, "kvm.vm.dead")


def test_15_rmpupdate_overlaps() -> None:
    with SnpMachine("rmp RMPUPDATE during=SNP_LAUNCH_UPDATE times=100 -> FAIL_OVERLAP") as m:
        m.convert(0)
        assert m.update(0).rule == "", "tried again until it goes"
        assert len(m.faults.fired) == 100
    m = SnpMachine("rmp RMPUPDATE during=SNP_LAUNCH_UPDATE times=all -> FAIL_OVERLAP")
    m.convert(0)
    with pytest.raises(InvariantViolation, match="KVM would try for ever"):
        m.update(0)
    m.kvm.close()


def test_16_rmpupdate_in_use() -> None:
    with SnpMachine("rmp RMPUPDATE during=SNP_LAUNCH_UPDATE -> FAIL_INUSE") as m:
        m.convert(0)
        assert m.update(0) == ("snp.update.failed", EIO, PspStatus.SUCCESS, PAGE)
        assert m.state(0) is RmpState.HYPERVISOR
        assert m.update(0).rule == ""


def test_16_the_vmsa_of_a_running_vcpu() -> None:
    """Giving the page back is what fails: a warning, and the page is lost."""
    with SnpMachine() as m:
        m.finish()
        [pfn] = m.arch.vmsa_pfns.values()
        m.faults.order(f"rmp RMPUPDATE pfn={pfn:#x} -> FAIL_INUSE")
        vcpu = m.vcpus.pop()
        vcpu.close()
        m.vmm.close()
        m.vm.close()
        assert m.leaked == 1
        m.vm = m.kvm.create_vm()


@pytest.mark.parametrize(("code", "warned"), [("FAIL_INUSE", False), ("FAIL_BADADDR", True)])
def test_17_psmash(code: str, warned: bool) -> None:
    with SnpMachine(f"rmp PSMASH times=5 -> {code}", pages=1024) as m:
        first = large_page(m)
        m.host.snp.psmash(m.pfn(first))
        assert len(m.faults.fired) == (1 if warned else 5)
        assert bool(m.warnings()) == warned
        entry = m.host.snp.rmp.entries[m.pfn(first)]
        assert entry is not None
        assert bool(entry.pagesize) == warned
        m.faults.cancel()


def large_page(m: SnpMachine) -> int:
    """The guest owns 2 MiB by one RMP entry: the page of the file where that begins.  The slot is moved there."""
    m.finish()
    m.block.gmem.allocate(0, 1024 * PAGE)
    m.convert(0, 1024)
    first = -m.pfn(0) % 512
    m.vm.delete_slot(0)
    m.vm.set_user_memory_region2(0, GPA, 512 * PAGE, gmem=m.block.gmem, offset=first * PAGE)
    assert m.host.snp.rmp.rmpupdate(m.pfn(first), assigned=True, asid=1, gfn=GFN, pagesize=1) == (0, 1)
    return first


def test_18_size_mismatch() -> None:
    codes: list[int] = []
    with SnpMachine(pages=1024) as m:
        first = large_page(m)
        assert m.run(lambda cpu: codes.append(cpu.pvalidate(GPA + 5 * PAGE))).reason is HLT
        assert codes == [0], "#NPF with SIZEM, PSMASH, and again"
        assert m.state(first + 5) is RmpState.GUEST_VALID
        assert m.state(first + 6) is RmpState.GUEST_INVALID


def test_19_pvalidate_without_change() -> None:
    codes: list[int] = []

    def guest(cpu: GuestCpu) -> None:
        cpu.accept(GPA, PAGE)
        codes.append(cpu.pvalidate(GPA))
        cpu.accept(GPA, PAGE)

    with SnpMachine() as m:
        m.convert(0)
        m.finish()
        exit_ = m.run(guest)
        assert codes == [255]
        assert exit_.reason is ExitReason.SYSTEM_EVENT
        assert ghcb_msr_term_fields(exit_.system_event.data[0]) == (SEV_TERM_SET_LINUX, LinuxTermReason.PVALIDATE)


def test_19_as_ordered() -> None:
    with SnpMachine("rmp PVALIDATE -> NO_UPDATE") as m:
        m.convert(0)
        m.finish()
        assert m.run(lambda cpu: cpu.accept(GPA, PAGE)).reason is ExitReason.SYSTEM_EVENT


def test_20_access_before_pvalidate() -> None:
    with SnpMachine() as m:
        m.convert(0)
        m.finish()
        exit_ = m.run(lambda cpu: cpu.store(GPA, b"x"))
        assert exit_.reason is ExitReason.SYSTEM_EVENT
        assert exit_.system_event.type == SystemEvent.SEV_TERM


def test_21_the_vmsa_page_vanishes() -> None:
    """A processor whose VMSA was punched out can't run until the guest gives it another."""
    with SnpMachine(vcpus=2) as m:
        m.convert(0, 4)
        m.finish()
        ran: list[int] = []

        def boot(cpu: GuestCpu) -> None:
            for page in (1, 2):
                cpu.accept(GPA + page * PAGE, PAGE)
                assert cpu.rmpadjust(GPA + page * PAGE, vmpl=1, mask=0, vmsa=True) == 0
                assert cpu.ap_create(1, GPA + page * PAGE) == 0
                cpu.halt()

        assert m.run(boot).reason is HLT
        ap = m.vcpus[1]
        assert ap.run(lambda cpu: ran.append(1)).reason is HLT
        m.block.gmem.punch_hole(PAGE, PAGE)
        assert ap.run(lambda cpu: ran.append(2)).reason is ExitReason.FAIL_ENTRY
        assert m.vcpu.run().reason is HLT  # the next VMSA
        assert ap.run(lambda cpu: ran.append(3)).reason is HLT
        assert ran == [1, 3]


# TDX


@pytest.mark.parametrize("leaf", ["MEM_SEPT_ADD", "MEM_PAGE_ADD"])
def test_22_busy_when_populated(leaf: str) -> None:
    with TdxMachine(f"seamcall {leaf} times=20 -> OPERAND_BUSY") as m:
        m.convert(0)
        assert m.add(0)[0] == "", "KVM tries again"
        assert len(m.faults.fired) == 20


def test_22_busy_when_populated_by_an_older_kernel() -> None:
    with TdxMachine("seamcall MEM_PAGE_ADD -> OPERAND_BUSY", profile="linux-6.18") as m:
        m.fill(0)
        m.convert(0)
        rule, errno, _ = m.add(0)
        assert (rule, errno) == ("tdx.populate.busy", 16)


def test_22_busy_when_faulted_in() -> None:
    with TdxMachine("seamcall MEM_PAGE_AUG times=50 -> OPERAND_BUSY") as m:
        m.boot()
        assert m.run(lambda cpu: cpu.accept(GPA + PAGE, PAGE)).reason is HLT
        assert len(m.faults.fired) == 50


@pytest.mark.parametrize("leaf", ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE"])
def test_22_busy_once_when_zapped(leaf: str) -> None:
    with TdxMachine(f"seamcall {leaf} -> OPERAND_BUSY") as m:
        m.boot()
        m.convert(0, private=False)
        assert len(m.faults.fired) == 1
        assert not m.dead, "every vCPU was kicked, and it went the second time"


@pytest.mark.parametrize("leaf", ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE"])
def test_23_busy_twice_when_zapped(leaf: str) -> None:
    with TdxMachine(f"seamcall {leaf} times=2 -> OPERAND_BUSY") as m:
        m.boot()
        m.convert(0, private=False)
        assert m.dead
        with pytest.raises(KernelError) as caught:
            m.vcpu.run(lambda cpu: None)
        assert caught.value.errno == EIO
        m.lost = True


@pytest.mark.parametrize("status", ["EPT_WALK_FAILED", "EPT_ENTRY_NOT_FREE", "OP_STATE_INCORRECT"])
def test_24_the_tree_is_inconsistent(status: str) -> None:
    with TdxMachine(f"seamcall MEM_PAGE_AUG -> {status}") as m:
        m.boot()
        with pytest.raises(KernelError) as caught:
            m.run(lambda cpu: cpu.accept(GPA + PAGE, PAGE))
        assert caught.value.errno == EIO
        assert m.dead
        assert status in m.warnings()[0]


@pytest.mark.parametrize(
    ("leaf", "status"), [("MEM_TRACK", "PREVIOUS_TLB_EPOCH_BUSY"), ("MEM_PAGE_REMOVE", "TLB_TRACKING_NOT_DONE")]
)
def test_25_a_vcpu_was_not_kicked(leaf: str, status: str) -> None:
    with TdxMachine(f"seamcall {leaf} times=2 -> {status}") as m:
        m.boot()
        m.convert(0, private=False)
        assert m.dead
        assert status in m.warnings()[0]
        m.lost = True


def test_26_page_size_mismatch() -> None:
    statuses: list[int] = []

    def guest(cpu: TdGuestCpu) -> None:
        cpu.accept(GPA + PAGE, PAGE)
        statuses.append(cpu.tdaccept(GPA, huge=True))
        cpu.accept(GPA, 512 * PAGE)

    with TdxMachine(pages=512) as m:
        m.fill(0)
        m.convert(0, 512)
        m.vm.tdx.finalize_vm()
        assert m.run(guest).reason is HLT
        assert [status_of(status) for status in statuses] == [TdxStatus.PAGE_SIZE_MISMATCH]
        assert sum(end - start for start, end, _ in m.arch.sept.leaves.runs()) == 512


def test_27_page_already_accepted() -> None:
    statuses: list[int] = []

    def guest(cpu: TdGuestCpu) -> None:
        cpu.accept(GPA + PAGE, PAGE)
        cpu.store(GPA + PAGE, b"kept")
        statuses.append(cpu.tdaccept(GPA + PAGE))
        assert cpu.load(GPA + PAGE, 4) == b"kept", "it isn't zeroed again"

    with TdxMachine() as m:
        m.boot()
        assert m.run(guest).reason is HLT
        assert [status_of(status) for status in statuses] == [TdxStatus.PAGE_ALREADY_ACCEPTED]


def test_28_access_that_was_not_accepted() -> None:
    with TdxMachine(attributes=SEPT_VE_DISABLE) as m:
        m.boot()
        with pytest.raises(KernelError) as caught:
            m.run(lambda cpu: cpu.load(GPA + PAGE))
        assert (caught.value.errno, caught.value.rule.id) == (EIO, "tdx.run.not-accepted")
        assert m.host.vms[0].vm_dead


def test_29_interrupted() -> None:
    with TdxMachine("tdcall MEM_PAGE_ACCEPT times=7 -> INTERRUPTED_RESTARTABLE") as m:
        m.boot()
        assert m.run(lambda cpu: cpu.accept(GPA + PAGE, PAGE)).reason is HLT
        assert len(m.faults.fired) == 7


def test_29_demote() -> None:
    """KVM doesn't use it yet; the module answers, and whoever calls loops."""
    with TdxMachine("seamcall MEM_PAGE_DEMOTE times=2 -> INTERRUPTED_RESTARTABLE") as m:
        module, answers = m.host.tdx.module, []
        for _ in range(3):
            answers.append(status_of(module.mem_page_demote(m.arch.tdr, GPA, 1 << 20).status))
        assert answers[:2] == [TdxStatus.INTERRUPTED_RESTARTABLE] * 2
        assert answers[2] is not TdxStatus.INTERRUPTED_RESTARTABLE


@pytest.mark.parametrize(
    ("leaf", "status", "errno"),
    [
        ("MNG_CREATE", "RND_NO_ENTROPY", EAGAIN),
        ("MNG_ADDCX", "RND_NO_ENTROPY", EAGAIN),
        ("MNG_KEY_CONFIG", "RND_NO_ENTROPY", EIO),
        ("MNG_KEY_CONFIG", "KEY_GENERATION_FAILED", EIO),
    ],
)
def test_30_entropy(leaf: str, status: str, errno: int) -> None:
    """Once sc_retry() has given up; key configuration that fails is a bug to KVM (tdx_do_tdh_mng_key_config)."""
    with pytest.raises(TdxError) as caught:
        TdxMachine(f"seamcall {leaf} times=all -> {status}")
    assert caught.value.errno == errno


def test_30_entropy_that_comes_back() -> None:
    with TdxMachine("seamcall MNG_KEY_CONFIG times=9 -> RND_NO_ENTROPY") as m:
        assert len(m.faults.fired) == 9


def test_31_finalize_without_vcpu() -> None:
    with TdxMachine(vcpus=0) as m:
        with pytest.raises(TdxError) as caught:
            m.vm.tdx.finalize_vm()
        assert caught.value.errno == EIO
        assert status_of(caught.value.hw_error) is TdxStatus.NO_VCPUS
        assert m.dead


def test_32_init_mem_region_too_late() -> None:
    with TdxMachine() as m:
        m.boot()
        rule, errno, _ = m.add(1)
        assert (rule, errno) == ("tdx.vcpu-cmd.state", EINVAL)


def test_32_hw_error_not_zero() -> None:
    from gmemu.uapi.kvm import KVM_MEMORY_ENCRYPT_OP
    from gmemu.uapi.tdx import TdxCmd, kvm_tdx_cmd

    with TdxMachine() as m:
        with pytest.raises(KernelError) as caught:
            m.vm.ioctl(KVM_MEMORY_ENCRYPT_OP, bytearray(kvm_tdx_cmd(id=TdxCmd.FINALIZE_VM, hw_error=1).pack()))
        assert caught.value.errno == EINVAL


# In-place conversion


# Arm CCA


def test_33_rtt_level() -> None:
    """The RMM misses a table at level 2: KVM makes it, and the one below, and tries again."""
    with RealmMachine() as m:
        m.convert(0)
        assert m.populate(0) == ("", 0, 0)
        assert sorted(level for level, _ in m.host.rmm.rmm.realms[m.arch.rd].rtt.tables) == [2, 3]


def test_33_rtt_at_the_last_level() -> None:
    with RealmMachine("rmi RTT_DATA_MAP_INIT -> 0x304") as m:
        m.convert(0)
        assert m.populate(0) == ("cca.rmi.last-level", EIO, PAGE)
        assert (m.dead, m.granule(0)) == (True, GranuleState.NS)


def test_34_delegate_not_ns() -> None:
    with RealmMachine("rmi GRANULE_RANGE_DELEGATE after=rmi:REALM_CREATE -> ERROR_INPUT") as m:
        m.convert(0)
        assert m.populate(0) == ("cca.rmi.delegate", ENXIO, PAGE)
        assert m.granule(0) is GranuleState.NS
        assert m.populate(0) == ("", 0, 0)


def test_35_populate_after_activation() -> None:
    with RealmMachine() as m:
        m.boot()
        before = m.rim
        assert m.populate(1) == ("cca.populate.state", EBUSY, PAGE)
        assert m.rim == before


def test_36_ripas_destroyed() -> None:
    answers: list[int] = []

    def guest(cpu: RealmGuestCpu) -> None:
        answers.append(cpu.ipa_state_set(GPA, GPA + PAGE, Ripas.RAM, change_destroyed=False).response)
        answers.append(cpu.ipa_state_set(GPA, GPA + PAGE, Ripas.RAM).response)
        answers.append(int.from_bytes(cpu.load(GPA), "little"))

    with RealmMachine() as m:
        m.boot()
        m.block.gmem.punch_hole(0, PAGE)
        with pytest.raises(KernelError) as stuck:
            m.vcpu.run(lambda cpu: cpu.load(GPA))
        assert (stuck.value.rule.id, stuck.value.errno) == ("cca.run.destroyed", EINTR)
        assert m.run(guest).reason is HLT
        assert answers == [RsiResponse.REJECT, RsiResponse.ACCEPT, 0]


def test_37_ripas_change_while_the_attribute_differs() -> None:
    with RealmMachine() as m:
        m.boot()
        exit_ = m.vcpu.run(lambda cpu: cpu.ipa_state_set(GPA + PAGE, GPA + 3 * PAGE, Ripas.EMPTY))
        assert exit_.reason is ExitReason.MEMORY_FAULT
        assert exit_.error is not None
        assert exit_.error.errno == EFAULT
        fault = exit_.memory_fault
        assert (fault.gpa, fault.size, exit_.wants_private) == (GPA + PAGE, 2 * PAGE, False)


def test_38_set_ripas_rejected() -> None:
    answers: list[tuple[int, int]] = []

    def guest(cpu: RealmGuestCpu) -> None:
        for _ in range(2):
            change = cpu.ipa_state_set(GPA + PAGE, GPA + 2 * PAGE, Ripas.EMPTY)
            answers.append((change.new_base, change.response))

    with RealmMachine("host RIPAS_CHANGE -> REJECT") as m:
        m.boot()
        assert m.run(guest).reason is HLT
        assert answers == [(GPA + PAGE, RsiResponse.REJECT), (GPA + 2 * PAGE, RsiResponse.ACCEPT)]


@pytest.mark.parametrize("status", ["BUSY", "INCOMPLETE"])
@pytest.mark.parametrize("command", ["REALM_CREATE", "RTT_DATA_MAP_INIT", "REC_CREATE", "REALM_ACTIVATE"])
def test_39_busy_and_incomplete(status: str, command: str) -> None:
    with RealmMachine() as plain:
        expected = plain.boot().rim
    with RealmMachine(f"rmi {command} times=2 -> {status}") as m:
        assert m.boot().rim == expected
        assert m.faults.fired


def test_40_undelegate_fails() -> None:
    with RealmMachine("rmi GRANULE_RANGE_UNDELEGATE during=fallocate -> ERROR_INPUT") as m:
        m.boot()
        m.block.gmem.punch_hole(0, PAGE)
        assert (m.leaked, len(m.warnings())) == (1, 1)
        m.block.gmem.allocate(0, PAGE)
        assert m.granule(0) is GranuleState.NS


def test_40_the_rmm_keeps_a_page() -> None:
    """RMI_RTT_DATA_UNMAP fails, which KVM takes for a bug: the VM is dead, the page lost."""
    with RealmMachine("rmi RTT_DATA_UNMAP during=fallocate -> ERROR_INPUT") as m:
        m.boot()
        m.block.gmem.punch_hole(0, PAGE)
        assert (m.dead, m.leaked) == (True, 1)


@pytest.mark.parametrize("make", [Machine, SnpMachine, TdxMachine])
def test_46_a_pinned_page(make: type[Machine]) -> None:
    with make(f"pin gfn={GFN + 5:#x} during=KVM_SET_MEMORY_ATTRIBUTES2 hold=2") as m:
        m.fill(0, 8)
        for _ in range(2):
            with pytest.raises(ConversionRefused) as caught:
                m.block.gmem.make_private(0, 8 * PAGE)
            assert (caught.value.errno, caught.value.error_offset) == (EAGAIN, 5 * PAGE)
        m.block.gmem.make_private(0, 8 * PAGE)


# pKVM


def test_41_share_of_what_is_not_mapped() -> None:
    """The hypercall becomes an abort, the host donates the page, and the instruction is run again."""
    with PkvmMachine() as m:
        answers: list[int] = []
        assert m.vcpu.run(lambda cpu: answers.append(cpu.mem_share(GPA))).reason is HLT
        assert answers == [0]
        assert m.host.pkvm.hypervisor.vms[0x1000].entries[GFN].state is PageState.SHARED_OWNED


def test_42_double_share_and_unshare_of_what_is_not_shared() -> None:
    with PkvmMachine() as m:
        answers: list[int] = []

        def guest(cpu: PkvmGuestCpu) -> None:
            answers.extend(call(GPA) for call in (cpu.mem_unshare, cpu.mem_share, cpu.mem_share))

        assert m.vcpu.run(guest).reason is HLT
        assert answers == [-3, 0, -3]


def test_42_by_order() -> None:
    with PkvmMachine("el2 MEM_SHARE -> EPERM") as m:
        answers: list[int] = []
        assert m.vcpu.run(lambda cpu: answers.extend((cpu.mem_share(GPA), cpu.mem_share(GPA)))).reason is HLT
        assert answers == [-3, 0]


def test_43_the_host_touches_a_donated_page() -> None:
    with PkvmMachine() as m:
        m.vcpu.run(lambda cpu: cpu.store(GPA, b"secret"))
        with pytest.raises(SegmentationFault) as caught:
            m.memory[0]
        assert caught.value.rule.id == "pkvm.host-stage2"


def test_44_forced_reclaim() -> None:
    """fork() copies a pinned page through the kernel's own mapping."""
    with PkvmMachine() as m:
        m.vcpu.run(lambda cpu: cpu.store(GPA, b"secret"))
        child = m.kvm.door.fork()
        assert child.load(m.memory.address, 6) == bytes(6)
        child.exit()
        with pytest.raises(KernelError) as caught:
            m.vcpu.run(lambda cpu: cpu.load(GPA, 1))
        assert (caught.value.errno, caught.value.rule.id) == (EFAULT, "pkvm.fault.poisoned")


def test_45_memcache() -> None:
    """KVM 7.3 hands the hypervisor's ENOMEM on; the fault is met again by the next KVM_RUN, which tops the cache up."""
    with PkvmMachine("el2 DONATE_GUEST -> ENOMEM") as m:
        with pytest.raises(KernelError) as caught:
            m.vcpu.run(lambda cpu: cpu.load(GPA, 1))
        assert (caught.value.errno, caught.value.rule.id) == (ENOMEM, "pkvm.donate.memcache")
        assert m.vcpu.run().reason is HLT


def test_45_allocation() -> None:
    with PkvmMachine("alloc pkvm-memcache -> ENOMEM") as m:
        with pytest.raises(KernelError) as caught:
            m.vcpu.run(lambda cpu: cpu.load(GPA, 1))
        assert caught.value.errno == ENOMEM
        assert m.vcpu.run().reason is HLT

# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's memory: the launch, run-time conversion, what the host and the guest see, removal and its failures."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EBUSY, EEXIST, EFAULT, EINTR, EINVAL, EIO
from hashlib import shake_128

import pytest

from gmemu import ExitReason, InvariantViolation, VirtualizationException
from gmemu.api.tdx import TdxError
from gmemu.hw.tdx.guest_cpu import TdGuestCpu
from gmemu.hw.tdx.mrtd import Mrtd
from gmemu.hw.tdx.pamt import PageType
from gmemu.hw.tdx.sept import SeptState
from gmemu.uapi.errno import EHWPOISON
from gmemu.uapi.kvm import KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, SystemEvent, kvm_exit_internal_error
from gmemu.uapi.tdx import (
    TDVMCALL_STATUS_ALIGN_ERROR,
    TDVMCALL_STATUS_INVALID_OPERAND,
    TDVMCALL_STATUS_RETRY,
    TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED,
    TdAttributes,
    TdcallLeaf,
    Tdvmcall,
    TdxLeaf,
    TdxOperand,
    TdxStatus,
)

from ..world import PAGE, errno_of, refusal
from .platform_world import GPA, PAGES
from .td_world import BUSY, GFN, TdxWorld, every_tdx_profile

BYTES = shake_128(b"a TD's first pages").digest(3 * PAGE)
ADD, EXTEND = TdxLeaf.MEM_PAGE_ADD, TdxLeaf.MR_EXTEND
BLOCK, TRACK, REMOVE = TdxLeaf.MEM_RANGE_BLOCK, TdxLeaf.MEM_TRACK, TdxLeaf.MEM_PAGE_REMOVE
WBINVD, AUG, SEPT_ADD = TdxLeaf.PHYMEM_PAGE_WBINVD, TdxLeaf.MEM_PAGE_AUG, TdxLeaf.MEM_SEPT_ADD


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[TdxWorld]:
    world = TdxWorld(getattr(request, "param", "inplace-v13"))
    yield world
    world.finish()


def mrtd(contents: bytes, gpa: int = GPA) -> bytes:
    measured = Mrtd()
    measured.page_add_extend(gpa, contents)
    return measured.value


# Launch


@every_tdx_profile
@pytest.mark.parametrize("injecting", [False, True])
def test_the_measurement_is_of_what_was_loaded(world: TdxWorld, injecting: bool) -> None:
    """The way of many pages at once, and that of one call after the other."""
    t = world.td()
    if injecting:
        world.answers()
    t.load(BYTES)
    t.vm.tdx.finalize_vm()
    assert t.td.measurement == mrtd(BYTES)


def test_both_flows_measure_the_same(world: TdxWorld) -> None:
    copied, in_place = world.td(), world.td()
    in_place.load(BYTES)
    copied.anonymous[: len(BYTES)] = BYTES
    copied.make_private(0, 3)
    copied.vm.tdx.init_mem_region(copied.vcpu, GPA, 3 * PAGE, copied.anonymous.address)
    assert in_place.td.mrtd.value == copied.td.mrtd.value == mrtd(BYTES)


@every_tdx_profile
def test_pages_that_arent_measured_count_by_address_only(world: TdxWorld) -> None:
    t = world.td()
    t.load(BYTES, measure=False)
    expected = Mrtd()
    expected.page_add(GPA, 3)
    assert t.td.mrtd.value == expected.value
    t.vm.tdx.finalize_vm()
    seen: list[bytes] = []
    t.run(lambda cpu: seen.append(cpu.load(GPA, 8)))
    assert seen == [BYTES[:8]]


@every_tdx_profile
def test_a_page_cant_be_added_twice(world: TdxWorld) -> None:
    t = world.td()
    t.load(BYTES)
    before = t.td.mrtd.value
    source = 0 if t.in_place else t.shared.address
    with pytest.raises(TdxError) as again:
        t.vm.tdx.init_mem_region(t.vcpu, GPA + PAGE, PAGE, source)
    if world.profile.populate == "locked":  # the generic code stops it
        assert (again.value.errno, again.value.rule.id) == (EEXIST, "gmem.populate.prepared")
    else:
        assert (again.value.errno, again.value.rule.id) == (EIO, "tdx.populate.mapped")
    assert t.td.mrtd.value == before
    t.vm.tdx.finalize_vm()  # the VM lives


@every_tdx_profile
def test_what_is_left_is_written_back(world: TdxWorld) -> None:
    """Rows 1 and 4: a page that isn't private, and a range beyond the slot."""
    t = world.td()
    t.make_private(0, 2)
    source = t.anonymous.address
    with pytest.raises(TdxError) as shared:
        t.vm.tdx.init_mem_region(t.vcpu, GPA, 4 * PAGE, source)
    left = shared.value.left
    assert left is not None
    assert (shared.value.errno, left.nr_pages, left.gpa) == (EINVAL, 2, GPA + 2 * PAGE)
    assert left.source_addr == source + 2 * PAGE
    t.make_private(PAGES - 1, 1)
    with pytest.raises(TdxError) as beyond:
        t.vm.tdx.init_mem_region(t.vcpu, GPA + (PAGES - 1) * PAGE, 2 * PAGE, source)
    assert beyond.value.errno == EINVAL
    assert beyond.value.left is not None
    assert beyond.value.left.nr_pages == 1


@every_tdx_profile
def test_a_signal(world: TdxWorld) -> None:
    """Row 3."""
    t = world.td()
    t.make_private(0, 2)
    world.door.task.pending_signals = 1
    with pytest.raises(TdxError) as interrupted:
        t.vm.tdx.init_mem_region(t.vcpu, GPA, 2 * PAGE, t.anonymous.address)
    world.door.task.pending_signals = 0
    assert interrupted.value.errno == EINTR
    assert interrupted.value.left is not None
    assert interrupted.value.left.nr_pages == 2


def test_a_page_never_touched_is_loaded_as_zeroes(world: TdxWorld) -> None:
    t = world.td()
    t.make_private(0, 1)
    t.vm.tdx.init_mem_region(t.vcpu, GPA, PAGE, 0)
    assert t.td.mrtd.value == mrtd(bytes(PAGE))


@every_tdx_profile
def test_references(world: TdxWorld) -> None:
    """Discussion B: kernels up to 6.18 hold a reference to each page in a secure EPT."""
    t = world.td()
    t.load(BYTES)
    pinned = world.profile.populate == "locked"
    world.drain()
    assert world.host.memmap.refcount(t.pfn(0)) == (2 if pinned else 1)


# Busy, and what else the module may say (rows 22 to 25)


@pytest.mark.parametrize(
    ("world", "errno"), [("linux-6.18", EBUSY), ("linux-7.3", 0), ("inplace-v13", 0)], indirect=["world"]
)
@pytest.mark.parametrize("leaf", [ADD, SEPT_ADD], ids=lambda leaf: leaf.name)
def test_busy_while_loading(world: TdxWorld, errno: int, leaf: TdxLeaf) -> None:
    t = world.td()
    t.make_private(0, 1)
    asked = world.answers((leaf, BUSY), repeat=1 if errno else 3)
    assert errno_of(lambda: t.vm.tdx.init_mem_region(t.vcpu, GPA, PAGE, t.anonymous.address)) == errno
    t.vm.tdx.init_mem_region(t.vcpu, GPA, PAGE, t.anonymous.address) if errno else None
    assert [called for called, _ in asked].count(ADD) >= 1
    assert t.td.mrtd.value == mrtd(bytes(PAGE))


@pytest.mark.parametrize(
    "status", [TdxStatus.EPT_WALK_FAILED, TdxStatus.EPT_ENTRY_NOT_FREE, TdxStatus.EPT_ENTRY_STATE_INCORRECT]
)
@pytest.mark.parametrize("leaf", [ADD, SEPT_ADD], ids=lambda leaf: leaf.name)
def test_anything_else_while_loading_kills_the_vm(world: TdxWorld, leaf: TdxLeaf, status: TdxStatus) -> None:
    t = world.td()
    t.make_private(0, 1)
    world.answers((leaf, status | TdxOperand.RCX))
    assert errno_of(lambda: t.vm.tdx.init_mem_region(t.vcpu, GPA, PAGE, t.anonymous.address)) == EIO
    assert refusal(t.vm.tdx.finalize_vm) == "kvm.vm.dead"
    world.module.inject = None


def test_extend_that_fails_kills_the_vm(world: TdxWorld) -> None:
    t = world.td()
    t.make_private(0, 1)
    world.answers((EXTEND, TdxStatus.EPT_ENTRY_STATE_INCORRECT))
    assert errno_of(lambda: t.vm.tdx.init_mem_region(t.vcpu, GPA, PAGE, t.anonymous.address)) == EIO
    assert refusal(t.vm.tdx.finalize_vm) == "kvm.vm.dead"
    world.module.inject = None


@every_tdx_profile
def test_busy_at_run_time_is_tried_again_without_entering(world: TdxWorld) -> None:
    t = world.td().start()
    asked = world.answers((AUG, BUSY), repeat=5)
    t.run(lambda cpu: cpu.accept(GPA + 8 * PAGE, PAGE))
    assert [called for called, _ in asked].count(AUG) == 6
    assert [called for called, _ in asked].count(TdxLeaf.VP_ENTER) == 2


def test_busy_at_entry(world: TdxWorld) -> None:
    t = world.td().start()
    asked = world.answers((TdxLeaf.VP_ENTER, TdxStatus.OPERAND_BUSY | TdxOperand.TD_EPOCH), repeat=2)
    seen: list[bytes] = []
    assert t.run(lambda cpu: seen.append(cpu.load(GPA, 4))).reason is ExitReason.HLT
    assert seen == [b"boot"]
    assert [called for called, _ in asked].count(TdxLeaf.VP_ENTER) == 3


@every_tdx_profile
def test_removal_in_order(world: TdxWorld) -> None:
    t = world.td().start()
    t.run(lambda cpu: cpu.accept(GPA + 8 * PAGE, PAGE))
    asked = world.answers()
    t.make_shared(8, 1)
    assert [called for called, _ in asked] == [BLOCK, TRACK, REMOVE, WBINVD]
    asked.clear()


def test_removal_before_the_td_runs_needs_no_tracking(world: TdxWorld) -> None:
    t = world.td()
    t.load(BYTES)
    asked = world.answers()
    t.make_shared(0, 1)
    assert [called for called, _ in asked] == [BLOCK, REMOVE, WBINVD]


@pytest.mark.parametrize("leaf", [BLOCK, TRACK, REMOVE], ids=lambda leaf: leaf.name)
def test_busy_once_while_removing(world: TdxWorld, leaf: TdxLeaf) -> None:
    """Row 22: every vCPU is kicked out, and it's tried again."""
    t = world.td().start()
    world.answers((leaf, BUSY))
    t.make_shared(0, 1)
    world.module.inject = None
    assert t.td.sept.leaves[GFN] is None
    t.run(lambda cpu: cpu.store(GPA, b"shared now", shared=True))
    assert t.shared[:10] == b"shared now"


@pytest.mark.parametrize("leaf", [BLOCK, REMOVE], ids=lambda leaf: leaf.name)
def test_busy_twice_while_removing(world: TdxWorld, leaf: TdxLeaf) -> None:
    """Row 23, and S42: past the point of no return, so the conversion succeeds; the VM is dead, the page still the TD's."""
    t = world.td().start()
    pfn = t.pfn(0)
    world.answers((leaf, BUSY), repeat=2)
    t.make_shared(0, 1)
    world.module.inject = None
    assert refusal(t.vcpu.run) == "kvm.vm.dead"
    assert world.module.pamt.type(pfn) is PageType.REG
    assert t.shared[:4] != b"boot"  # the host may look, and sees noise
    t.shared[0] = 1  # and write, which poisons
    assert world.module.is_poisoned(pfn << 12, 1)
    world.dirty = True
    world.door.exit()
    with pytest.raises(InvariantViolation, match="was freed while the TDX module had it"):
        world.host.check_quiet()


@pytest.mark.parametrize(
    ("leaf", "status"),
    [
        (TRACK, TdxStatus.PREVIOUS_TLB_EPOCH_BUSY | TdxOperand.TD_EPOCH),
        (REMOVE, TdxStatus.TLB_TRACKING_NOT_DONE | TdxOperand.RCX),
        (BLOCK, TdxStatus.EPT_WALK_FAILED | TdxOperand.RCX),
        (WBINVD, TdxStatus.OPERAND_INVALID | TdxOperand.RCX),
    ],
)
def test_what_never_happens_while_removing(world: TdxWorld, leaf: TdxLeaf, status: int) -> None:
    """Rows 24 and 25."""
    t = world.td().start()
    world.answers((leaf, status))
    t.make_shared(0, 1)
    world.module.inject = None
    assert refusal(t.vcpu.run) == "kvm.vm.dead"
    world.dirty = True


@pytest.mark.parametrize("world", ["linux-6.18"], indirect=True)
def test_a_held_page_that_isnt_removed_is_leaked(world: TdxWorld) -> None:
    """Discussion B, the other way: with a reference for each page nothing is freed that the module still has."""
    t = world.td().start()
    pfn = t.pfn(0)
    world.answers((REMOVE, TdxStatus.EPT_WALK_FAILED))
    t.make_shared(0, 1)
    world.module.inject = None
    world.door.exit()
    assert world.host.memmap.leaked[pfn]
    world.host.check_quiet()
    world.dirty = True


# Run time


@every_tdx_profile
def test_conversion_both_ways(world: TdxWorld) -> None:
    t = world.td().start()
    seen: list[bytes] = []

    def guest(cpu: TdGuestCpu) -> None:
        at = GPA + 4 * PAGE
        cpu.accept(at, PAGE)
        cpu.store(at, b"secret")
        cpu.convert(at, PAGE, private=False)
        seen.append(cpu.load(at, 6, shared=True))
        cpu.store(at | cpu.shared_bit, b"public")
        cpu.convert(at, PAGE, private=True)
        seen.append(cpu.load(at, 6))
        cpu.store(at, b"again")
        seen.append(cpu.load(at, 5))

    assert t.run(guest).reason is ExitReason.HLT
    assert seen == [bytes(6), bytes(6), b"again"]
    if not t.in_place:
        assert t.shared[4 * PAGE : 4 * PAGE + 6] == b"public"  # the other pool keeps what it had


def test_without_the_erratum_nothing_is_zeroed(world: TdxWorld) -> None:
    t = world.td()
    world.host.tdx.partial_write_mce = False
    t.start()
    t.make_shared(0, 1)
    assert t.shared[:4] not in (b"boot", bytes(4))


@every_tdx_profile
def test_a_view_that_isnt_the_pages(world: TdxWorld) -> None:
    """Row 5."""
    t = world.td().start()
    exit_ = t.run(lambda cpu: cpu.load(GPA + 2 * PAGE, shared=True))
    assert exit_.error is not None
    assert (exit_.error.errno, exit_.reason, exit_.wants_private) == (EFAULT, ExitReason.MEMORY_FAULT, False)
    assert exit_.memory_fault.gpa == GPA + 2 * PAGE
    exit_ = t.run(lambda cpu: cpu.load(GPA + 600 * PAGE))
    assert (exit_.reason, exit_.wants_private) == (ExitReason.MEMORY_FAULT, True)
    t.make_private(600, 1)
    assert t.vcpu.run().reason is ExitReason.SYSTEM_EVENT  # the page is there now, but pending


@every_tdx_profile
def test_touching_what_isnt_accepted(world: TdxWorld) -> None:
    t = world.td().start()
    caught: list[int] = []

    def careful(cpu: TdGuestCpu) -> None:
        try:
            cpu.load(GPA + PAGE)
        except VirtualizationException as ve:
            caught.append(ve.gpa)
            cpu.accept(ve.gpa, PAGE)
        caught.append(cpu.load(GPA + PAGE)[0])

    assert t.run(careful).reason is ExitReason.HLT
    assert caught == [GPA + PAGE, 0]
    exit_ = t.run(lambda cpu: cpu.load(GPA + 2 * PAGE))
    assert exit_.system_event.type == SystemEvent.TDX_FATAL
    assert exit_.system_event.data[11] == Tdvmcall.REPORT_FATAL_ERROR


@every_tdx_profile
def test_touching_what_isnt_accepted_with_ve_disabled(world: TdxWorld) -> None:
    """Row 28."""
    t = world.td(attributes=TdAttributes.SEPT_VE_DISABLE).start()
    assert refusal(lambda: t.run(lambda cpu: cpu.load(GPA + PAGE))) == "tdx.run.not-accepted"
    assert refusal(t.vcpu.run) == "kvm.vm.dead"


@every_tdx_profile
def test_accepting_2_mib_where_there_is_4_kib(world: TdxWorld) -> None:
    """Rows 26 and 27."""
    t = world.td()
    t.make_private()
    t.vm.tdx.finalize_vm()
    answers: list[int] = []

    def guest(cpu: TdGuestCpu) -> None:
        answers.append(cpu.tdaccept(GPA, huge=True))
        cpu.accept(GPA, 2 << 20)
        answers.append(cpu.tdaccept(GPA))

    assert t.run(guest).reason is ExitReason.HLT
    assert answers == [TdxStatus.PAGE_SIZE_MISMATCH | 1, TdxStatus.PAGE_ALREADY_ACCEPTED]
    runs = list(t.td.sept.leaves.runs(GFN, GFN + 512))
    assert sum(end - start for start, end, _ in runs) == 512
    assert {entry.state for _, _, entry in runs} == {SeptState.MAPPED}


def test_an_interrupted_accept_is_tried_again(world: TdxWorld) -> None:
    """Row 29."""
    t = world.td().start()
    left = [TdxStatus.INTERRUPTED_RESTARTABLE, TdxStatus.OPERAND_BUSY | TdxOperand.SEPT]

    def inject(leaf: TdcallLeaf, gpa: int) -> int | None:
        return left.pop() if left else None

    world.module.inject_tdcall = inject
    assert t.run(lambda cpu: cpu.accept(GPA + PAGE, PAGE)).reason is ExitReason.HLT
    assert not left


@every_tdx_profile
def test_a_hole(world: TdxWorld) -> None:
    """Row 7: fresh memory, pending again."""
    t = world.td().start()
    t.gmem.punch_hole(0, PAGE)
    caught: list[object] = []

    def guest(cpu: TdGuestCpu) -> None:
        try:
            cpu.load(GPA)
        except VirtualizationException as ve:
            caught.append(ve.gpa)
        cpu.accept(GPA, PAGE)
        caught.append(cpu.load(GPA, 4))

    t.run(guest)
    assert caught == [GPA, bytes(4)]


@every_tdx_profile
def test_memory_that_went_bad(world: TdxWorld) -> None:
    """Row 2."""
    t = world.td().start()
    t.run(lambda cpu: cpu.load(GPA, 1))
    pfn = t.pfn(0)
    world.syscall(lambda: refusal(lambda: world.host.memory_failure(pfn)))
    assert t.td.sept.leaves[GFN] is None
    exit_ = t.run(lambda cpu: cpu.load(GPA, 1))
    assert exit_.error is not None
    assert (exit_.error.errno, exit_.reason) == (EHWPOISON, ExitReason.MEMORY_FAULT)


@every_tdx_profile
def test_deleting_the_slot_removes_private_pages(world: TdxWorld) -> None:
    t = world.td().start()
    t.vm.delete_slot(0)
    assert not t.td.sept.leaves
    assert not world.module.pamt.owned(t.pfn(0), 1)


def test_shared_invalidation_leaves_the_secure_ept_alone(world: TdxWorld) -> None:
    """The host's own mapping going away is no reason to take private pages from the TD."""
    t = world.td().start()
    asked = world.answers()
    t.shared.close()
    assert asked == []
    world.module.inject = None


@pytest.mark.parametrize("world", ["linux-7.3"], indirect=True)
def test_two_pools_are_invalidated_apart(world: TdxWorld) -> None:
    t = world.td().start()
    t.make_shared(4, 1)
    seen: list[bytes] = []
    t.shared[4 * PAGE : 4 * PAGE + 2] = b"a1"
    t.run(lambda cpu: seen.append(cpu.load(GPA + 4 * PAGE, 2, shared=True)))
    world.door.madvise(t.shared.address + 4 * PAGE, PAGE, 4)  # MADV_DONTNEED
    t.run(lambda cpu: seen.extend([cpu.load(GPA + 4 * PAGE, 2, shared=True), cpu.load(GPA, 4)]))
    assert seen == [b"a1", bytes(2), b"boot"]


# MapGPA


def test_map_gpa_in_pieces(world: TdxWorld) -> None:
    t = world.td()
    t.load(b"boot")
    t.vm.tdx.finalize_vm()
    results: list[object] = []
    exit_ = t.vcpu.run(lambda cpu: results.append(cpu.map_gpa(GPA + PAGE, 3 << 20, private=True)))
    pieces = []
    while exit_.reason is ExitReason.HYPERCALL:
        pieces.append(exit_.hypercall.args[:3])
        assert exit_.hypercall.flags == 1
        exit_.answer_hypercall(0)
        exit_ = t.vcpu.run()
    assert pieces == [(GPA + PAGE, 512, 0x10), (GPA + PAGE + (2 << 20), 256, 0x10)]
    assert results == [(0, Tdvmcall.MAP_GPA)]


@pytest.mark.parametrize(("answer", "status"), [(11, TDVMCALL_STATUS_RETRY), (22, TDVMCALL_STATUS_INVALID_OPERAND)])
def test_map_gpa_refused_half_way(world: TdxWorld, answer: int, status: int) -> None:
    t = world.td().start()
    results: list[tuple[int, int]] = []
    exit_ = t.vcpu.run(lambda cpu: results.append(cpu.map_gpa(GPA, 4 << 20, private=False)))
    exit_.answer_hypercall(0)
    exit_ = t.vcpu.run()
    exit_.answer_hypercall(answer)
    t.vcpu.run()
    assert results == [(status, (GPA | 1 << 47) + (2 << 20))]


def test_map_gpa_makes_way_for_an_interrupt(world: TdxWorld) -> None:
    t = world.td().start()
    results: list[tuple[int, int]] = []
    exit_ = t.vcpu.run(lambda cpu: results.append(cpu.map_gpa(GPA, 4 << 20, private=True)))
    [tdx] = t.arch.vcpus.values()
    tdx.has_events = True
    exit_.answer_hypercall(0)
    assert t.vcpu.run().reason is ExitReason.HLT
    assert results == [(TDVMCALL_STATUS_RETRY, GPA + (2 << 20))]


def test_map_gpa_answered_with_nonsense(world: TdxWorld) -> None:
    t = world.td().start()
    t.vcpu.run(lambda cpu: cpu.map_gpa(GPA, PAGE, private=True)).answer_hypercall(5)
    assert refusal(t.vcpu.run) == "kvm.run.hypercall-ret"


def test_map_gpa_wrong(world: TdxWorld) -> None:
    t = world.td().start()
    seen: list[int] = []

    def guest(cpu: TdGuestCpu) -> None:
        for gpa, size in ((GPA, 0), (GPA, 1 << 47), (1 << 48, PAGE), (GPA + 1, PAGE), (GPA, PAGE + 1)):
            seen.append(cpu.tdvmcall(Tdvmcall.MAP_GPA, gpa, size)[0])
        seen.append(cpu.tdvmcall(0x10005)[0])
        seen.append(cpu.tdvmcall(Tdvmcall.GET_TD_VM_CALL_INFO, 0)[0])

    assert t.vcpu.run(guest).reason is ExitReason.HLT
    wrong, align = TDVMCALL_STATUS_INVALID_OPERAND, TDVMCALL_STATUS_ALIGN_ERROR
    assert seen == [wrong, wrong, wrong, align, align, TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED, 0]


def test_map_gpa_that_user_space_didnt_allow(world: TdxWorld) -> None:
    """Row 6."""
    t = world.td().start()
    world.kvm_vm(t.vm).hypercall_exits = 0
    seen: list[int] = []
    t.vcpu.run(lambda cpu: seen.append(cpu.map_gpa(GPA, PAGE, private=True).status))
    assert seen == [TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED]


# Poison


def test_a_host_store_to_private_memory_kills_the_td(world: TdxWorld) -> None:
    t = world.td().start(BYTES[:PAGE])
    pfn = t.pfn(0)
    world.host.memory.host_write((pfn << 12) + 0x80, b"oops")  # by whatever way: the page tables have none
    seen: list[bytes] = []

    def guest(cpu: TdGuestCpu) -> None:
        seen.append(cpu.load(GPA, 0x80))
        cpu.store(GPA + 0x80, bytes(64))
        seen.append(cpu.load(GPA + 0x80, 64))  # a whole line was written: it's sound again

    assert t.run(guest).reason is ExitReason.HLT
    assert seen == [BYTES[:0x80], bytes(64)]
    world.host.memory.host_write((pfn << 12) + 0x80, b"oops")
    exit_ = t.run(lambda cpu: cpu.load(GPA + 0x80, 1))
    assert exit_.reason is ExitReason.INTERNAL_ERROR
    details = exit_.details(kvm_exit_internal_error)
    assert details.suberror == KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
    assert details.data[0] == TdxStatus.NON_RECOVERABLE_TD
    assert t.td.fatal
    exit_ = t.run(lambda cpu: cpu.load(GPA, 1))
    assert exit_.details(kvm_exit_internal_error).data[0] == TdxStatus.TD_FATAL
    assert pfn in world.host.memmap.poisoned
    world.dirty = True


def test_the_host_reads_noise(world: TdxWorld) -> None:
    t = world.td().start(b"a secret of some length")
    seen = world.host.memory.host_read(t.pfn(0) << 12, 23)
    assert seen != b"a secret of some length"
    assert world.host.memory.view[t.pfn(0) << 12 : (t.pfn(0) << 12) + 4].tobytes() == b"a se"


# Several vCPUs


def test_a_running_vcpu_is_kicked_before_a_page_goes(world: TdxWorld) -> None:
    """While one guest is in the middle of its work another thread converts what it uses."""
    t = world.td(vcpus=2).start()
    seen: list[object] = []

    def guest(cpu: TdGuestCpu) -> None:
        seen.append(cpu.load(GPA, 4))
        t.make_shared(0, 1)
        seen.append(cpu.load(GPA, 4))

    exit_ = t.vcpu.run(guest)
    assert (exit_.reason, exit_.wants_private) == (ExitReason.MEMORY_FAULT, True)
    assert seen == [b"boot"]


@every_tdx_profile
def test_two_tds_dont_see_each_other(world: TdxWorld) -> None:
    one, two = world.td().start(b"one!"), world.td().start(b"two!")
    assert one.td.hkid != two.td.hkid
    seen: list[bytes] = []
    for t in (one, two):
        t.run(lambda cpu: seen.append(cpu.load(GPA, 4)))
    assert seen == [b"one!", b"two!"]
    one.vcpu.close()

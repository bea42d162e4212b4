# SPDX-License-Identifier: GPL-2.0-or-later
"""VMGEXIT: the GHCB MSR protocol, page-state change one by one and in batches, and how each can go wrong."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, ENOSPC, EOPNOTSUPP
from typing import Any, NamedTuple

import pytest

from gmemu import ExitReason, GuestCpu, KernelError, VmmCommunication
from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.uapi.ghcb import (
    GHCB_HV_FT_SNP,
    GHCB_HV_FT_SNP_AP_CREATION,
    GHCB_MSR_AP_RESET_HOLD_REQ,
    GHCB_MSR_CPUID_REQ,
    GHCB_MSR_HV_FT_REQ,
    GHCB_MSR_PREF_GPA_REQ,
    GHCB_MSR_SEV_INFO_REQ,
    SEV_TERM_SET_LINUX,
    SVM_VMGEXIT_GUEST_REQUEST,
    SVM_VMGEXIT_HV_FEATURES,
    SVM_VMGEXIT_PSC,
    SVM_VMGEXIT_TERM_REQUEST,
    SVM_VMGEXIT_UNSUPPORTED_EVENT,
    GhcbError,
    LinuxTermReason,
    PscOp,
    ghcb_msr_psc_req,
    ghcb_msr_reg_gpa_req,
    ghcb_msr_term_fields,
    psc_entry,
    psc_hdr,
)
from gmemu.uapi.kvm import (
    KVM_HC_MAP_GPA_RANGE,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
    KVM_MAP_GPA_RANGE_PAGE_SZ_2M,
    Cap,
    SystemEvent,
)

from .snp_world import BASE, GFN, World, noise

GENERIC, BAD_HEADER, BAD_ENTRY = 0x100 << 32, 1 << 32 | 1, 1 << 32 | 2
PRIVATE, SHARED, SMASH = PscOp.PRIVATE, PscOp.SHARED, 3
HUGE = 0x200000 // PAGE_SIZE


def page(number: int) -> int:
    return BASE + number * PAGE_SIZE


class Change(NamedTuple):
    """One KVM_EXIT_HYPERCALL: frames, and the third argument."""

    gfn: int
    pages: int
    attributes: int


class Psc(NamedTuple):
    """What a batch came to: SW_EXITINFO2, cur_entry, cur_page of every entry, and the exits on the way."""

    code: int
    current: int
    done: list[int]
    changes: list[Change]


def run_psc(world: World, entries: list[psc_entry], *, first: int = 0, end: int | None = None, answers: Any = ()) -> Psc:
    """Have the guest ask for all of `entries`; user space answers the exits in turn, then 0."""
    header = psc_hdr(cur_entry=first, end_entry=len(entries) - 1 & 0xFFFF if end is None else end)
    buffer = bytearray(header.pack() + b"".join(entry.pack() for entry in entries))
    codes: list[int] = []
    vcpu = world.vcpus[0]
    exit_ = vcpu.run(lambda cpu: codes.append(cpu.vmgexit(SVM_VMGEXIT_PSC, 0, 0, buffer)))
    changes, replies = [], list(answers)
    while exit_.reason is ExitReason.HYPERCALL:
        assert exit_.hypercall.nr == KVM_HC_MAP_GPA_RANGE
        gpa, npages, attributes, *_ = exit_.hypercall.args
        changes.append(Change(gpa // PAGE_SIZE, npages, attributes))
        exit_.answer_hypercall(replies.pop(0) if replies else 0)
        exit_ = vcpu.run()
    assert exit_.reason is ExitReason.HLT
    after = [psc_entry.unpack_from(buffer, psc_hdr.SIZE + 8 * i).cur_page for i in range(len(entries))]
    return Psc(codes[0], psc_hdr.unpack_from(buffer).cur_entry, after, changes)


def entries(*gfns: int, op: int = SHARED, pagesize: int = 0) -> list[psc_entry]:
    return [psc_entry.of(gfn, op, pagesize) for gfn in gfns]


# The MSR protocol


def test_what_the_hypervisor_says_of_itself(world: World) -> None:
    world.finished()
    said: list[int] = []
    requests = (GHCB_MSR_SEV_INFO_REQ, GHCB_MSR_HV_FT_REQ, GHCB_MSR_PREF_GPA_REQ, ghcb_msr_reg_gpa_req(GFN))
    world.vcpus[0].run(lambda cpu: said.extend(map(cpu.ghcb_msr, requests)))
    features = GHCB_HV_FT_SNP | GHCB_HV_FT_SNP_AP_CREATION
    assert said == [2 << 48 | 1 << 32 | 51 << 24 | 1, features << 12 | 0x81, (1 << 64) - 0x1000 | 0x11, GFN << 12 | 0x13]


def test_the_version_that_init2_asked_for() -> None:
    world = World("linux-6.12")
    world.init2(ghcb_version=1)
    world.add_vcpu()
    world.start()
    world.finish()
    said: list[int] = []
    world.vcpus[0].run(lambda cpu: said.append(cpu.ghcb_msr(GHCB_MSR_SEV_INFO_REQ)))
    assert said[0] >> 48 == 1
    world.close()


@pytest.mark.parametrize("request_", [0x003, 0x0FF, 0xFFF, 0x1234_5016])
def test_a_request_that_nobody_knows_stays_in_the_msr(world: World, request_: int) -> None:
    world.finished()
    said: list[int] = []
    assert world.vcpus[0].run(lambda cpu: said.append(cpu.ghcb_msr(request_))).reason is ExitReason.HLT
    assert said == [request_]


@pytest.mark.parametrize("request_", [GHCB_MSR_CPUID_REQ, GHCB_MSR_AP_RESET_HOLD_REQ])
def test_what_is_not_emulated_says_so(inplace: World, request_: int) -> None:
    inplace.finished()
    with pytest.raises(KernelError) as refused:
        inplace.vcpus[0].run(lambda cpu: cpu.ghcb_msr(request_))
    assert (refused.value.errno, refused.value.rule.id) == (EOPNOTSUPP, "gmemu.snp.ghcb-msr")


def test_termination(world: World) -> None:
    world.finished()
    exit_ = world.vcpus[0].run(lambda cpu: cpu.terminate(SEV_TERM_SET_LINUX, LinuxTermReason.CPUID))
    assert (exit_.reason, exit_.system_event.type) == (ExitReason.SYSTEM_EVENT, SystemEvent.SEV_TERM)
    assert ghcb_msr_term_fields(exit_.system_event.data[0]) == (SEV_TERM_SET_LINUX, LinuxTermReason.CPUID)
    assert world.vcpus[0].run().reason is ExitReason.HLT, "it doesn't go on"
    assert world.vcpus[0].run().reason is ExitReason.HLT


# VMGEXIT


def test_other_vmgexits(world: World) -> None:
    world.finished()
    said: list[int] = []

    def guest(cpu: GuestCpu) -> None:
        said.append(cpu.vmgexit(SVM_VMGEXIT_HV_FEATURES, 0, 0))
        said.append(cpu.vmgexit(0x12345, 0, 0))
        cpu.ghcb_msr(ghcb_msr_reg_gpa_req(GFN))
        said.append(cpu.vmgexit(SVM_VMGEXIT_TERM_REQUEST, 7, 8))

    exit_ = world.vcpus[0].run(guest)
    assert said == [GHCB_HV_FT_SNP | GHCB_HV_FT_SNP_AP_CREATION, GhcbError.INVALID_EVENT]
    assert exit_.reason is ExitReason.SYSTEM_EVENT
    assert exit_.system_event.data[0] == BASE, "what the GHCB MSR holds, not what the guest says"
    assert world.vcpus[0].run().reason is ExitReason.HLT


@pytest.mark.parametrize(
    ("code", "rule"),
    [(SVM_VMGEXIT_UNSUPPORTED_EVENT, "snp.vmgexit.unsupported-event"), (SVM_VMGEXIT_GUEST_REQUEST, "gmemu.snp.vmgexit")],
)
def test_vmgexits_that_end_the_run(inplace: World, code: int, rule: str) -> None:
    inplace.finished()
    for _ in range(2):
        with pytest.raises(KernelError) as refused:
            inplace.vcpus[0].run(lambda cpu: cpu.vmgexit(code, 0, 0))
        assert refused.value.rule.id == rule


# Page-state change by MSR


@pytest.mark.parametrize("private", [True, False])
def test_msr_change(world: World, private: bool) -> None:
    world.finished()
    said: list[int] = []
    vcpu = world.vcpus[0]
    exit_ = vcpu.run(lambda cpu: said.append(cpu.page_state_change_msr(page(3), private=private)))
    assert exit_.reason is ExitReason.HYPERCALL
    assert exit_.hypercall.args[:3] == (page(3), 1, KVM_MAP_GPA_RANGE_ENCRYPTED if private else 0)
    assert exit_.hypercall.ret == 0
    assert vcpu.run().reason is ExitReason.HLT, "user space need not answer: 0 stands there"
    assert said == [0]


@pytest.mark.parametrize("answer", [EAGAIN, EINVAL, 1, ENOSPC, 1 << 63])
def test_msr_change_refused(world: World, answer: int) -> None:
    """All the guest learns is that it failed.  Newer kernels let user space give no other reasons than those two."""
    world.finished()
    said: list[int] = []
    vcpu = world.vcpus[0]
    request = ghcb_msr_psc_req(GFN, SHARED)

    def guest(cpu: GuestCpu) -> None:
        said.append(cpu.ghcb_msr(request))

    vcpu.run(guest).answer_hypercall(answer)
    if answer in (EAGAIN, EINVAL) or not world.profile.snp_checks_psc_answer:
        assert vcpu.run().reason is ExitReason.HLT
        assert said == [0x15 | 1 << 63]
        return
    with pytest.raises(KernelError) as refused:
        vcpu.run()
    assert (refused.value.errno, refused.value.rule.id) == (EINVAL, "kvm.run.hypercall-ret")
    assert vcpu.run().reason is ExitReason.HLT
    assert said == [request], "the guest finds its request unanswered"


@pytest.mark.parametrize("op", [0, 3, 15])
def test_msr_change_of_another_kind(world: World, op: int) -> None:
    world.finished()
    said: list[int] = []
    assert world.vcpus[0].run(lambda cpu: said.append(cpu.ghcb_msr(ghcb_msr_psc_req(GFN, op)))).reason is ExitReason.HLT
    assert said == [0x15 | 1 << 63]


def test_the_hypercall_isnt_enabled(world: World) -> None:
    """#6: no exit, and an error for the guest, in both protocols."""
    world.finished()
    world.vm.enable_cap(Cap.EXIT_HYPERCALL, 0)
    said: list[int] = []

    def guest(cpu: GuestCpu) -> None:
        said.append(cpu.page_state_change_msr(page(0), private=False))
        said.append(cpu.page_state_change(entries(GFN)))

    assert world.vcpus[0].run(guest).reason is ExitReason.HLT
    assert said == [1 << 31, GENERIC]


# Page-state change in batches


def test_adjoining_entries_are_one_exit(world: World) -> None:
    psc = run_psc(world.finished(), entries(GFN, GFN + 1, GFN + 2))
    assert psc == (0, 3, [1, 1, 1], [(GFN, 3, 0)])


def test_what_breaks_a_run(world: World) -> None:
    """A gap, another operation, another size, a step back, an entry that is done, one that was begun."""
    batch = entries(GFN, GFN + 1, GFN + 5) + entries(GFN + 6, op=PRIVATE) + entries(GFN + 5)
    batch += entries(5 * HUGE - 1) + entries(5 * HUGE, 6 * HUGE, pagesize=1) + [psc_entry.of(7 * HUGE, SHARED, 1, 5)]
    batch += [psc_entry.of(9, SHARED, 0, 1), *entries(10)]
    psc = run_psc(world.finished(), batch)
    huge = KVM_MAP_GPA_RANGE_PAGE_SZ_2M
    assert psc.changes == [
        (GFN, 2, 0),
        (GFN + 5, 1, 0),
        (GFN + 6, 1, KVM_MAP_GPA_RANGE_ENCRYPTED),
        (GFN + 5, 1, 0),
        (5 * HUGE - 1, 1, 0),
        (5 * HUGE, 1024, huge),
        (7 * HUGE + 5, 507, huge),
        (10, 1, 0),
    ]
    assert (psc.code, psc.current) == (0, len(batch))
    assert psc.done == [1] * 6 + [512] * 3 + [1, 1]


def test_a_large_entry_done_in_part_is_not_joined_by_what_follows(world: World) -> None:
    """KVM adds what is left to the entry's own start, and so looks in the wrong place: there it does find one."""
    begun = psc_entry.of(4 * HUGE, SHARED, 1, 500)
    psc = run_psc(world.finished(), [begun, *entries(5 * HUGE)])
    assert psc.changes == [(4 * HUGE + 500, 12, KVM_MAP_GPA_RANGE_PAGE_SZ_2M), (5 * HUGE, 1, 0)]
    other = World(world.profile.name).finished()
    psc = run_psc(other, [begun, *entries(4 * HUGE + 12)])
    assert psc.changes == [(4 * HUGE + 500, 13, KVM_MAP_GPA_RANGE_PAGE_SZ_2M)]
    other.close()


def test_a_batch_that_was_interrupted_goes_on(world: World) -> None:
    psc = run_psc(world.finished(), entries(1, 2, 3, 4), first=2)
    assert psc == (0, 4, [0, 0, 1, 1], [(3, 2, 0)])
    nothing = World(world.profile.name).finished()
    assert run_psc(nothing, entries(1, 2), first=2) == (0, 2, [0, 0], [])
    nothing.close()


@pytest.mark.parametrize("answer", [EAGAIN, EINVAL])
def test_refused_in_the_middle(world: World, answer: int) -> None:
    """What was done stays done, in the entries and in the head; the guest may ask for the rest again."""
    psc = run_psc(world.finished(), entries(1, 2, 10, 11, 20), answers=[0, answer])
    assert psc == (GENERIC, 2, [1, 1, 0, 0, 0], [(1, 2, 0), (10, 2, 0)])


def test_answered_with_something_else(world: World) -> None:
    if not world.profile.snp_checks_psc_answer:
        psc = run_psc(world.finished(), entries(1), answers=[ENOSPC])
        assert psc == (GENERIC, 0, [0], [(1, 1, 0)])
        return
    with pytest.raises(KernelError, match=r"kvm\.run\.hypercall-ret"):
        run_psc(world.finished(), entries(1), answers=[ENOSPC])
    assert world.vcpus[0].run().reason is ExitReason.HLT


def test_unsupported_operations_are_skipped_in_silence(world: World) -> None:
    """SMASH and UNSMASH are hints."""
    batch = entries(HUGE, 2 * HUGE, op=SMASH, pagesize=1) + entries(7) + entries(8, op=4)
    assert run_psc(world.finished(), batch) == (0, 4, [512, 512, 1, 1], [(7, 1, 0)])


@pytest.mark.parametrize(
    "bad",
    [psc_entry.of(9, SHARED, 0, 2), psc_entry.of(HUGE, SHARED, 1, 513), psc_entry.of(HUGE + 1, SHARED, 1)],
    ids=["too far", "too far in 2M", "unaligned 2M"],
)
def test_a_bad_entry(world: World, bad: psc_entry) -> None:
    """Found when its turn comes; what came before is done."""
    psc = run_psc(world.finished(), [*entries(1, 2), bad, *entries(20)])
    assert (psc.code, psc.current, psc.changes) == (BAD_ENTRY, 2, [(1, 2, 0)])
    assert psc.done[:2] == [1, 1]
    assert psc.done[3] == 0


@pytest.mark.parametrize(("end", "code"), [(252, 0), (253, BAD_HEADER), (0xFFFF, BAD_HEADER)])
def test_how_many_entries_there_may_be(world: World, end: int, code: int) -> None:
    """253, and the buffer is as large as the GHCB's, whatever the guest handed over."""
    psc = run_psc(world.finished(), entries(*range(253)), end=end)
    assert psc.code == code
    assert psc.changes == ([] if code else [(0, 253, 0)])


def test_a_short_buffer(world: World) -> None:
    """What the guest didn't write is zeroes: entry 0 of operation 0, which is unsupported."""
    world.finished()
    codes: list[int] = []
    world.vcpus[0].run(lambda cpu: codes.append(cpu.vmgexit(SVM_VMGEXIT_PSC, 0, 0, bytearray())))
    assert codes == [0]


# The contract between guest and host


def test_to_private_and_to_shared_as_linux_does(world: World) -> None:
    """Host first, then PVALIDATE; PVALIDATE first, then host."""
    world.finished()
    world.convert(0, 2, private=False)
    seen: list[object] = []

    def guest(cpu: GuestCpu) -> None:
        cpu.convert(page(0), 2 * PAGE_SIZE, private=True)
        seen.append([world.state(number) for number in (0, 1)])
        cpu.store(page(0), b"private")
        cpu.convert(page(0), PAGE_SIZE, private=False)
        cpu.store(page(0), b"shared!", shared=True)
        seen.append(cpu.load(page(1), 1) is not None)

    stops = world.serve(world.vcpus[0], guest)
    assert [(s.reason, s.gpa, s.private) for s in stops[:-1]] == [
        ("HYPERCALL", page(0), True),
        ("HYPERCALL", page(1), True),
        ("HYPERCALL", page(0), False),
    ]
    assert seen == [[RmpState.GUEST_VALID] * 2, True]
    assert world.buffer[:7] == b"shared!"


def test_to_private_without_validating(world: World) -> None:
    world.started(vcpus=1)
    world.load(0, noise())
    world.finish()

    def guest(cpu: GuestCpu) -> None:
        assert cpu.page_state_change(entries(GFN + 1, op=PRIVATE)) == 0
        with pytest.raises(VmmCommunication):
            cpu.store(page(1), b"too early")

    assert world.serve(world.vcpus[0], guest)[-1].reason == "HLT"


@pytest.mark.parametrize("private", [True, False])
def test_a_host_that_says_no_ends_a_linux_guest(world: World, private: bool) -> None:
    world.finished()
    world.convert(0, private=not private)
    vcpu = world.vcpus[0]

    def guest(cpu: GuestCpu) -> None:
        if not private:
            cpu.accept(page(0), PAGE_SIZE)
        cpu.convert(page(0), PAGE_SIZE, private=private)

    vcpu.run(guest).answer_hypercall(EINVAL)
    exit_ = vcpu.run()
    assert ghcb_msr_term_fields(exit_.system_event.data[0]) == (SEV_TERM_SET_LINUX, LinuxTermReason.PSC)

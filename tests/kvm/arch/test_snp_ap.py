# SPDX-License-Identifier: GPL-2.0-or-later
"""AP creation: a guest starts, stops and starts again its other processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from gmemu import ExitReason, GuestCpu, Kvm, Vcpu, VmType
from gmemu.check import check_host
from gmemu.uapi.ghcb import SVM_VMGEXIT_AP_CREATION, GhcbError
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, KVM_SET_MP_STATE, MpState, kvm_mp_state

PAGE = 4096
GPA = 0x40000000
VMSA = GPA + PAGE


class Guest:
    """An SNP guest with two processors and eight private pages, launched."""

    def __init__(self) -> None:
        self.kvm = Kvm.open()
        self.vm = self.kvm.create_vm(VmType.SNP)
        self.vm.snp.init2()
        self.gmem = self.vm.create_guest_memfd(8 * PAGE, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
        self.vm.set_user_memory_region2(0, GPA, 8 * PAGE, gmem=self.gmem)
        self.vm.snp.launch_start()
        self.bsp, self.ap = (self.vm.create_vcpu(n) for n in range(2))
        self.gmem.make_private(0, 8 * PAGE)
        self.vm.snp.launch_finish()

    def on_bsp(self, act: Callable[[GuestCpu], int]) -> int:
        """What comes of it on the first processor."""
        answers: list[int] = []
        assert self.bsp.run(lambda cpu: answers.append(act(cpu))).reason is ExitReason.HLT
        return answers[0]

    def make_vmsa(self, gpa: int = VMSA) -> None:
        def act(cpu: GuestCpu) -> int:
            cpu.accept(gpa, PAGE)
            return cpu.rmpadjust(gpa, vmpl=1, mask=0, vmsa=True)

        assert self.on_bsp(act) == 0

    def runs(self, vcpu: Vcpu) -> ExitReason:
        """How KVM_RUN of a guest ends that just halts."""
        return vcpu.run(lambda cpu: None).reason


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    check_host(made.kvm.host)
    made.kvm.close()


def test_a_processor_is_started_stopped_and_started(guest: Guest) -> None:
    guest.make_vmsa()
    assert guest.on_bsp(lambda cpu: cpu.ap_create(1, VMSA)) == 0
    steps: list[str] = []

    def program(cpu: GuestCpu) -> None:
        steps.append("begins")
        cpu.halt()
        steps.append("goes on")

    assert guest.ap.run(program).reason is ExitReason.HLT
    assert guest.on_bsp(lambda cpu: cpu.ap_create(1, VMSA)) == 0
    assert guest.ap.run().reason is ExitReason.HLT
    assert guest.ap.run().reason is ExitReason.HLT
    assert steps == ["begins", "begins", "goes on"]
    assert guest.on_bsp(lambda cpu: cpu.ap_destroy(1)) == 0
    assert guest.ap.run(program).reason is ExitReason.HLT  # it waits, and runs nothing
    assert steps == ["begins", "begins", "goes on"]
    assert guest.on_bsp(lambda cpu: cpu.ap_create(1, VMSA)) == 0
    assert guest.ap.run().reason is ExitReason.HLT
    assert steps[3:] == ["begins"]


def test_user_space_cannot_make_a_stopped_processor_run(guest: Guest) -> None:
    assert guest.on_bsp(lambda cpu: cpu.ap_destroy(1)) == 0
    assert guest.runs(guest.ap) is ExitReason.HLT
    guest.ap.ioctl(KVM_SET_MP_STATE, bytearray(kvm_mp_state(mp_state=MpState.RUNNABLE).pack()))
    assert guest.runs(guest.ap) is ExitReason.FAIL_ENTRY


def test_what_is_no_vmsa_cannot_be_entered(guest: Guest) -> None:
    """The page must be the guest's, validated, and made a VMSA by RMPADJUST."""
    assert guest.on_bsp(lambda cpu: cpu.ap_create(1, VMSA)) == 0
    assert guest.runs(guest.ap) is ExitReason.FAIL_ENTRY
    guest.on_bsp(lambda cpu: cpu.pvalidate(VMSA))
    assert guest.runs(guest.ap) is ExitReason.FAIL_ENTRY
    guest.on_bsp(lambda cpu: cpu.rmpadjust(VMSA, vmpl=1, mask=0, vmsa=True))
    assert guest.runs(guest.ap) is ExitReason.HLT


def test_outside_of_every_memslot(guest: Guest) -> None:
    assert guest.on_bsp(lambda cpu: cpu.ap_create(1, 0x50001000)) == 0
    assert guest.runs(guest.ap) is ExitReason.FAIL_ENTRY


def test_on_init_waits_for_one(guest: Guest) -> None:
    """KVM's own VMSA stays until then."""
    assert guest.on_bsp(lambda cpu: cpu.ap_create(1, VMSA, on_init=True)) == 0
    assert guest.runs(guest.ap) is ExitReason.HLT


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda cpu: cpu.ap_create(2, VMSA), id="no such processor"),
        pytest.param(lambda cpu: cpu.ap_create(1, VMSA + 8), id="unaligned"),
        pytest.param(lambda cpu: cpu.ap_create(1, GPA), id="2 MiB aligned"),
        pytest.param(lambda cpu: cpu.ap_create(1, 1 << 52 | PAGE), id="beyond the address space"),
        pytest.param(lambda cpu: cpu.ap_create(1, VMSA, features=3), id="other features"),
        pytest.param(lambda cpu: cpu.vmgexit(SVM_VMGEXIT_AP_CREATION, 1 << 32 | 3, VMSA, rax=1), id="no such request"),
    ],
)
def test_bad_requests(guest: Guest, ask: Callable[[GuestCpu], int]) -> None:
    assert guest.on_bsp(ask) == GhcbError.INVALID_INPUT
    assert guest.runs(guest.ap) is ExitReason.HLT


def test_a_slot_that_goes_away_takes_the_vmsa_with_it(guest: Guest) -> None:
    guest.make_vmsa()
    guest.on_bsp(lambda cpu: cpu.ap_create(1, VMSA))
    assert guest.runs(guest.ap) is ExitReason.HLT
    guest.vm.set_user_memory_region2(0, GPA, 0)
    assert guest.runs(guest.ap) is ExitReason.FAIL_ENTRY

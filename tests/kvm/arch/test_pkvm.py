# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs under pKVM: memory that is donated, shared, unshared and taken back; what the host may still do with it."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EAGAIN, EFAULT, EINVAL, EIO, ENOMEM, EPERM

import pytest

from gmemu import BusError, ExitReason, InvariantViolation, Mapping, SegmentationFault, Vcpu, Vm, VmType
from gmemu.check import check_host
from gmemu.hw.el2.guest_cpu import PkvmGuestCpu
from gmemu.hw.el2.hypervisor import El2Call, Hypervisor
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from gmemu.uapi.kvm_arm64 import VendorHyp
from gmemu.uapi.mman import MADV_DONTNEED, MADV_HWPOISON

from ..world import PAGE, errno_of, refusal
from .arm_world import ArmWorld

GPA = 1 << 30
GFN = GPA // PAGE
INVALID = -3


class PkvmWorld(ArmWorld):
    platform = "pkvm"

    @property
    def hypervisor(self) -> Hypervisor:
        return self.host.pkvm.hypervisor

    def protected(self, pages: int = 4) -> tuple[Vm, Vcpu, Mapping]:
        """A protected VM with anonymous memory at GPA."""
        vm = self.vm(VmType.ARM_PROTECTED)
        memory = self.kvm.anonymous(pages * PAGE)
        vm.set_user_memory_region2(0, GPA, pages * PAGE, userspace_addr=memory.address)
        return vm, self.vcpu(vm), memory


@pytest.fixture
def world() -> Iterator[PkvmWorld]:
    world = PkvmWorld("linux-7.3")
    yield world
    world.finish()


def test_the_image_is_what_the_vmm_wrote_and_the_vmm_loses_it(world: PkvmWorld) -> None:
    _, vcpu, memory = world.protected()
    memory[0:5] = b"image"
    seen: list[bytes] = []
    assert vcpu.run(lambda cpu: seen.append(cpu.load(GPA, 5))).reason is ExitReason.HLT
    assert seen == [b"image"]
    for touch in (lambda: memory[0:5], lambda: memory.__setitem__(0, 1)):
        with pytest.raises(SegmentationFault) as caught:
            touch()
        assert (caught.value.rule.id, caught.value.rule.signal) == ("pkvm.host-stage2", "SIGSEGV")
    assert memory[PAGE] == 0  # the guest never touched that one
    check_host(world.host)


def test_conversion_both_ways_keeps_the_bytes(world: PkvmWorld) -> None:
    _, vcpu, memory = world.protected()

    def guest(cpu: PkvmGuestCpu) -> None:
        cpu.store(GPA, b"from the guest")
        cpu.convert(GPA, 2 * PAGE, private=False)
        cpu.halt()
        assert cpu.load(GPA, 13) == b"From the VMM!"
        cpu.convert(GPA, 2 * PAGE, private=True)
        cpu.halt()
        assert cpu.load(GPA, 13) == b"From the VMM!"

    assert vcpu.run(guest).reason is ExitReason.HLT
    assert memory[0:14] == b"from the guest"
    memory[0:13] = b"From the VMM!"
    assert vcpu.run().reason is ExitReason.HLT
    with pytest.raises(SegmentationFault):
        memory[0]
    check_host(world.host)
    assert vcpu.run().reason is ExitReason.HLT


def test_hypercalls(world: PkvmWorld) -> None:
    _, vcpu, _ = world.protected()
    answers: list[int] = []

    def guest(cpu: PkvmGuestCpu) -> None:
        answers.append(cpu.smc(VendorHyp.FEATURES)[0])
        answers.append(cpu.meminfo())
        answers.append(cpu.hypercall(VendorHyp.HYP_MEMINFO, 1))
        for call in (VendorHyp.MEM_SHARE, VendorHyp.MEM_UNSHARE):
            answers.append(cpu.hypercall(call, GPA + 1))
            answers.append(cpu.hypercall(call, GPA, 1))
            answers.append(cpu.hypercall(call, GPA, 0, 1))
        answers.append(cpu.mem_unshare(GPA))  # nothing is there
        answers.append(cpu.mem_share(GPA))  # it's mapped, then shared
        answers.append(cpu.mem_share(GPA))
        answers.append(cpu.mem_unshare(GPA))
        answers.append(cpu.mem_unshare(GPA))

    vcpu.run(guest)
    assert answers == [0b11101, PAGE, *(INVALID,) * 7, INVALID, 0, INVALID, 0, INVALID]


def test_memory_is_pinned_and_stays(world: PkvmWorld) -> None:
    """Neither the host's mappings nor their end change anything for the guest."""
    _, vcpu, memory = world.protected()
    vcpu.run(lambda cpu: cpu.store(GPA, b"kept"))
    world.door.madvise(memory.address, PAGE, MADV_DONTNEED)
    assert memory[0:4] == bytes(4)  # a new page: the guest's is out of the VMM's reach for good
    seen: list[bytes] = []
    vcpu.run(lambda cpu: seen.append(cpu.load(GPA, 4)))
    assert seen == [b"kept"]


def test_teardown_gives_zeroes_back_but_what_was_shared(world: PkvmWorld) -> None:
    vm, vcpu, memory = world.protected()

    def guest(cpu: PkvmGuestCpu) -> None:
        cpu.store(GPA, b"secret")
        cpu.store(GPA + PAGE, b"public")
        cpu.mem_share(GPA + PAGE)

    vcpu.run(guest)
    assert world.host.init.mm.locked_vm == 2
    vcpu.close()
    vm.close()
    assert (memory[0:6], memory[PAGE : PAGE + 6]) == (bytes(6), b"public")
    assert world.host.init.mm.locked_vm == 0
    world.host.pkvm.check_quiet()


class TestForce:
    """The host's kernel touches the page through a mapping of its own."""

    def test_a_guests_page_is_zeroed_and_lost_to_it(self, world: PkvmWorld) -> None:
        _, vcpu, memory = world.protected()
        vcpu.run(lambda cpu: cpu.store(GPA, b"secret"))
        child = world.fork()
        assert child.load(memory.address, 6) == bytes(6)
        assert memory[0:6] == bytes(6)
        check_host(world.host)
        assert errno_of(lambda: vcpu.run(lambda cpu: cpu.load(GPA, 1))) == EFAULT
        assert refusal(vcpu.run) == "pkvm.fault.poisoned"

    def test_a_system_call_that_reads_it(self, world: PkvmWorld) -> None:
        """process_vm_readv() pins the page and copies from there."""
        _, vcpu, memory = world.protected()
        vcpu.run(lambda cpu: cpu.store(GPA, b"secret"))
        local, remote = [(memory.address + PAGE, 6)], [(memory.address, 6)]
        assert world.door.process_vm_readv(world.door.getpid(), local, remote) == 6
        assert memory[PAGE : PAGE + 6] == bytes(6)
        assert errno_of(lambda: vcpu.run(lambda cpu: cpu.load(GPA, 1))) == EFAULT

    def test_what_is_shared_is_copied(self, world: PkvmWorld) -> None:
        _, vcpu, memory = world.protected()

        def guest(cpu: PkvmGuestCpu) -> None:
            cpu.store(GPA, b"public")
            cpu.mem_share(GPA)
            cpu.halt()
            cpu.mem_unshare(GPA)
            cpu.load(GPA, 1)

        vcpu.run(guest)
        assert world.fork().load(memory.address, 6) == b"public"
        assert vcpu.run().reason is ExitReason.HLT

    def test_the_hypervisors_own_pages_are_the_end(self, world: PkvmWorld) -> None:
        _, vcpu, _ = world.protected()
        vcpu.run(lambda cpu: cpu.load(GPA, 1))
        [pfn] = world.hypervisor.vms[0x1000].metadata[:1]
        with pytest.raises(InvariantViolation, match="hypervisor-protected memory"):
            world.host.memory.copy(pfn, pfn + 1, 1)


class TestRefusals:
    def test_kernels_without_it(self) -> None:
        world = PkvmWorld("linux-6.12")
        assert errno_of(lambda: world.vm(VmType.ARM_PROTECTED)) == EINVAL
        world.finish()

    def test_machines_without_it(self) -> None:
        world = ArmWorld("linux-7.3")
        assert refusal(lambda: world.vm(VmType.ARM_PROTECTED)) == "kvm.create-vm.type"
        world.finish()

    def test_handles_run_out(self, world: PkvmWorld) -> None:
        vms = [world.vm(VmType.ARM_PROTECTED) for _ in range(255)]
        assert refusal(lambda: world.vm(VmType.ARM_PROTECTED)) == "pkvm.create-vm.handle"
        vms[0].close()
        world.vm(VmType.ARM_PROTECTED)

    @pytest.mark.parametrize("flag", [KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY])
    def test_slot_flags(self, world: PkvmWorld, flag: int) -> None:
        vm, _, memory = world.protected()

        def add() -> None:
            vm.set_user_memory_region2(1, 2 * GPA, PAGE, flags=flag, userspace_addr=memory.address)

        assert (errno_of(add), refusal(add)) == (EPERM, "pkvm.slot.flags")

    def test_slots_stay_once_the_vm_has_run(self, world: PkvmWorld) -> None:
        vm, vcpu, memory = world.protected()
        vm.set_user_memory_region2(1, 2 * GPA, PAGE, userspace_addr=memory.address + PAGE)
        vm.set_user_memory_region2(1, 2 * GPA, 0)
        vcpu.run(lambda cpu: cpu.load(GPA, 1))
        vm.set_user_memory_region2(1, 2 * GPA, PAGE, userspace_addr=memory.address + PAGE)
        for change in (
            lambda: vm.set_user_memory_region2(1, 2 * GPA, 0),
            lambda: vm.set_user_memory_region2(1, 3 * GPA, PAGE, userspace_addr=memory.address + PAGE),
        ):
            assert (errno_of(change), refusal(change)) == (EPERM, "pkvm.slot.fixed")
        seen: list[bytes] = []
        vcpu.run(lambda cpu: seen.append(cpu.load(2 * GPA + 8, 1)))  # the slot is still there

    def test_memlock(self, world: PkvmWorld) -> None:
        _, vcpu, _ = world.protected()
        world.host.init.mm.memlock_limit = 1
        vcpu.run(lambda cpu: cpu.load(GPA, 1))
        assert errno_of(lambda: vcpu.run(lambda cpu: cpu.load(GPA + PAGE, 1))) == ENOMEM
        assert refusal(vcpu.run) == "pkvm.fault.memlock"
        world.host.init.mm.memlock_limit = 2
        assert vcpu.run().reason is ExitReason.HLT

    def test_a_page_that_cannot_be_pinned(self, world: PkvmWorld) -> None:
        _, vcpu, memory = world.protected()
        memory.close()
        assert errno_of(lambda: vcpu.run(lambda cpu: cpu.load(GPA, 1))) == EFAULT
        assert refusal(vcpu.run) == "pkvm.fault.pin"
        assert world.host.init.mm.locked_vm == 0

    def test_guest_memfd_is_no_memory_for_it(self, world: PkvmWorld) -> None:
        """Its pages aren't swap-backed."""
        vm = world.vm(VmType.ARM_PROTECTED)
        gmem = vm.create_guest_memfd(PAGE, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
        memory = gmem.mmap()
        vm.set_user_memory_region2(0, GPA, PAGE, userspace_addr=memory.address)
        vcpu = world.vcpu(vm)
        assert errno_of(lambda: vcpu.run(lambda cpu: cpu.load(GPA, 1))) == EIO
        assert refusal(vcpu.run) == "pkvm.fault.swap-backed"

    def test_shmem_is(self, world: PkvmWorld) -> None:
        vm = world.vm(VmType.ARM_PROTECTED)
        memory = world.kvm.anonymous(PAGE, shared=True)
        vm.set_user_memory_region2(0, GPA, PAGE, userspace_addr=memory.address)
        assert world.vcpu(vm).run(lambda cpu: cpu.store(GPA, b"x")).reason is ExitReason.HLT

    def test_memory_that_went_bad(self, world: PkvmWorld) -> None:
        world.dirty = True
        _, vcpu, memory = world.protected()
        memory[0] = 1
        with pytest.raises(BusError):  # written data is lost
            world.door.madvise(memory.address, PAGE, MADV_HWPOISON)
        with pytest.raises(BusError, match="SIGBUS"):
            vcpu.run(lambda cpu: cpu.load(GPA, 1))

    @pytest.mark.parametrize(
        ("call", "errno", "rule"),
        [
            (El2Call.INIT_VM, EINVAL, "pkvm.init-vm"),
            (El2Call.INIT_VCPU, ENOMEM, "pkvm.init-vm"),
            (El2Call.DONATE_GUEST, ENOMEM, "pkvm.donate.memcache"),
            (El2Call.DONATE_GUEST, EPERM, "pkvm.donate"),
        ],
    )
    def test_what_the_hypervisor_refuses_changes_nothing(
        self, world: PkvmWorld, call: El2Call, errno: int, rule: str
    ) -> None:
        _, vcpu, memory = world.protected()
        memory[0] = 1
        world.hypervisor.inject = lambda name, what: errno if name is call else None
        assert refusal(lambda: vcpu.run(lambda cpu: cpu.load(GPA, 1))) == rule
        assert (memory[0], world.host.init.mm.locked_vm) == (1, 0)
        world.hypervisor.inject = None
        assert vcpu.run().reason is ExitReason.HLT

    def test_losing_a_race_is_no_error(self, world: PkvmWorld) -> None:
        _, vcpu, _ = world.protected()
        answers = iter([EAGAIN])
        world.hypervisor.inject = lambda name, what: next(answers, None) if name is El2Call.DONATE_GUEST else None
        assert vcpu.run(lambda cpu: cpu.load(GPA, 1)).reason is ExitReason.HLT


class TestOrdinaryVms:
    def test_memory_is_shared(self, world: PkvmWorld) -> None:
        vm = world.vm()
        memory = world.kvm.anonymous(2 * PAGE)
        vm.set_user_memory_region2(0, GPA, 2 * PAGE, userspace_addr=memory.address)
        vcpu = world.vcpu(vm)
        vcpu.run(lambda cpu: cpu.store(GPA, b"both"))
        assert memory[0:4] == b"both"
        [(start, _, entry)] = [run for run in world.hypervisor.pages.runs() if run[2].shares]
        assert (start, entry.shares) == (world.host.init.mm.pte(memory.address // PAGE)[0], 1)  # type: ignore[index]
        check_host(world.host)
        world.door.madvise(memory.address, PAGE, MADV_DONTNEED)
        assert not [run for run in world.hypervisor.pages.runs() if run[2].shares]
        assert memory[0] == 0

    def test_a_protected_guests_page_is_not_for_them(self, world: PkvmWorld) -> None:
        _, vcpu, memory = world.protected()
        vcpu.run(lambda cpu: cpu.load(GPA, 1))
        vm = world.vm()
        vm.set_user_memory_region2(0, GPA, PAGE, userspace_addr=memory.address)
        other = world.vcpu(vm)
        assert refusal(lambda: other.run(lambda cpu: cpu.load(GPA, 1))) == "pkvm.share"

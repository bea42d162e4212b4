# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM on arm64: VM types, vCPUs, registers, PSCI, the GIC, and an ordinary VM's memory."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EFAULT, EINVAL, ENODEV, ENOENT, ENOEXEC

import pytest

from gmemu import Cap, ExitReason, GuestCpu, VmType
from gmemu.api.arm64 import create_vgic, get_reg, init_vcpu, set_reg
from gmemu.hw.arm.guest_cpu import ArmGuestCpu
from gmemu.hw.cpu import ExternalAbort, UndefinedOpcode
from gmemu.uapi.kvm import (
    KVM_GET_MP_STATE,
    KVM_GET_REGS,
    KVM_MEMORY_ENCRYPT_OP,
    KVM_PRE_FAULT_MEMORY,
    KVM_SET_MEMORY_ATTRIBUTES,
    KVM_SET_MP_STATE,
    MpState,
    SystemEvent,
    kvm_mp_state,
)
from gmemu.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_INIT,
    KVM_CREATE_DEVICE,
    KVM_DEV_TYPE_ARM_VGIC_V3,
    KVM_SET_DEVICE_ATTR,
    Psci,
    PsciReturn,
    core_reg,
    kvm_create_device,
    kvm_device_attr,
    kvm_vcpu_init,
)

from ..world import PAGE, errno_of, in_profiles, load, refusal, store
from .arm_world import ArmWorld

GPA = 1 << 30


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[ArmWorld]:
    world = ArmWorld(getattr(request, "param", "inplace-v13"))
    yield world
    world.finish()


# /dev/kvm


def test_vm_types(world: ArmWorld) -> None:
    assert world.kvm.check_extension(Cap.VM_TYPES) == 0
    for vm_type in (VmType.SW_PROTECTED, VmType.SNP, VmType.TDX, VmType.ARM_PROTECTED | 40, 2 << 8):
        assert refusal(lambda t=vm_type: world.kvm.create_vm(t)) in ("kvm.create-vm.type", "kvm.create-vm.ipa-bits")  # type: ignore[misc]
    assert errno_of(lambda: world.kvm.create_vm(VmType.ARM_PROTECTED)) == EINVAL


@in_profiles("linux-7.3")
def test_realms_need_their_series(world: ArmWorld) -> None:
    assert refusal(lambda: world.kvm.create_vm(VmType.ARM_REALM)) == "kvm.create-vm.type"
    assert world.kvm.check_extension(Cap.ARM_RMI) == 0
    vm = world.vm()
    assert errno_of(lambda: vm.ioctl(KVM_SET_MEMORY_ATTRIBUTES, bytearray(32))) == EINVAL


@pytest.mark.parametrize(("bits", "found"), [(31, EINVAL), (32, 0), (40, 0), (48, 0), (49, EINVAL)])
def test_the_size_of_the_address_space(world: ArmWorld, bits: int, found: int) -> None:
    assert errno_of(lambda: world.kvm.create_vm(VmType.DEFAULT, bits)) == found


def test_capabilities(world: ArmWorld) -> None:
    vm = world.vm()
    expected = {
        Cap.ARM_VM_IPA_SIZE: 48,
        Cap.ARM_RMI: 1,
        Cap.ONE_REG: 1,
        Cap.NR_MEMSLOTS: 32767,
        Cap.MAX_VCPUS: 512,
        Cap.PRE_FAULT_MEMORY: 0,
        Cap.EXIT_HYPERCALL: 0,
        Cap.GUEST_MEMFD: 1,
    }
    assert {cap: vm.check_extension(cap) for cap in expected} == expected
    assert refusal(lambda: vm.enable_map_gpa_range()) == "kvm.enable-cap.unknown"


def test_what_only_x86_has(world: ArmWorld) -> None:
    vm = world.vm()
    vcpu = world.vcpu(vm)
    assert refusal(lambda: vm.ioctl(KVM_MEMORY_ENCRYPT_OP)) == "arm64.vm.ioctl"
    for request in (KVM_MEMORY_ENCRYPT_OP, KVM_PRE_FAULT_MEMORY, KVM_GET_REGS):
        assert refusal(lambda r=request: vcpu.ioctl(r, bytearray(256))) == "kvm.vcpu.ioctl"  # type: ignore[misc]


def test_memslots_end_with_the_address_space(world: ArmWorld) -> None:
    vm = world.kvm.create_vm(VmType.DEFAULT, 36)
    memory = world.kvm.anonymous(2 * PAGE)
    assert errno_of(lambda: vm.set_user_memory_region(0, (1 << 36) - PAGE, 2 * PAGE, memory.address)) == EFAULT
    vm.set_user_memory_region(0, (1 << 36) - 2 * PAGE, 2 * PAGE, memory.address)


# vCPUs


def test_a_vcpu_is_initialised_first(world: ArmWorld) -> None:
    vcpu = world.vm().create_vcpu(0)
    assert errno_of(lambda: get_reg(vcpu, core_reg(0))) == ENOEXEC
    assert refusal(lambda: vcpu.run(lambda cpu: None)) == "arm64.vcpu.not-initialized"


def test_initialisation_checks(world: ArmWorld) -> None:
    vm = world.vm()
    vcpu, other = vm.create_vcpu(0), vm.create_vcpu(1)

    def init(target: int, features: int, on: object = vcpu) -> str:
        arg = bytearray(kvm_vcpu_init(target=target, features=(features, 0, 0, 0, 0, 0, 0)).pack())
        return refusal(lambda: on.ioctl(KVM_ARM_VCPU_INIT, arg))  # type: ignore[attr-defined]

    assert init(0, 0) == "arm64.vcpu-init.target"
    assert init(5, 1 << 3) == "arm64.vcpu-init.features"
    assert init(5, 1 << 2) == ""
    assert init(5, 0) == "arm64.vcpu-init.changed"
    assert init(5, 0, other) == "arm64.vcpu-init.changed"
    assert init(5, 1 << 2 | 1, other) == ""


def test_registers(world: ArmWorld) -> None:
    vm = world.vm()
    vcpu = world.vcpu(vm)
    assert get_reg(vcpu, core_reg(33)) == 0x3C5
    for index in (0, 30, 31, 32):
        set_reg(vcpu, core_reg(index), 0x1111 * (index + 1))
        assert get_reg(vcpu, core_reg(index)) == 0x1111 * (index + 1)
    assert errno_of(lambda: get_reg(vcpu, core_reg(40))) == ENOENT
    init_vcpu(vm, vcpu)
    assert get_reg(vcpu, core_reg(0)) == 0


def test_mp_state(world: ArmWorld) -> None:
    vm = world.vm()
    vcpu = world.vcpu(vm, power_off=True)
    state = bytearray(kvm_mp_state.SIZE)
    vcpu.ioctl(KVM_GET_MP_STATE, state)
    assert kvm_mp_state.unpack_from(state).mp_state == MpState.STOPPED
    assert vcpu.run(lambda cpu: pytest.fail("it's off")).reason is ExitReason.HLT
    assert refusal(lambda: vcpu.ioctl(KVM_SET_MP_STATE, bytearray(kvm_mp_state(mp_state=3).pack()))) == "arm64.mp-state"
    vcpu.ioctl(KVM_SET_MP_STATE, bytearray(kvm_mp_state(mp_state=MpState.RUNNABLE).pack()))
    ran: list[int] = []
    vcpu.run(lambda cpu: ran.append(1))
    assert ran == [1]


# PSCI


def test_psci(world: ArmWorld) -> None:
    vm = world.vm()
    first, second = world.vcpu(vm), world.vcpu(vm, 17, power_off=True)
    answers: list[int] = []

    def guest(cpu: ArmGuestCpu) -> None:
        answers.extend(
            [
                cpu.psci(Psci.VERSION),
                cpu.psci(Psci.FEATURES, Psci.CPU_ON),
                cpu.psci(Psci.FEATURES, 0x84000099),
                cpu.psci(Psci.AFFINITY_INFO, 0x101),
                cpu.cpu_on(0x102),
                cpu.cpu_on(0x101, 0x8000, 7),
                cpu.cpu_on(0x101),
                cpu.psci(Psci.AFFINITY_INFO, 0x101),
                cpu.hypercall(0x86000000),
            ]
        )
        cpu.psci(Psci.CPU_OFF)

    assert first.run(guest).reason is ExitReason.HLT
    assert answers == [0x10001, 0, -1, 1, -2, PsciReturn.SUCCESS, PsciReturn.ALREADY_ON, 0, -1]
    assert (get_reg(second, core_reg(32)), get_reg(second, core_reg(0))) == (0x8000, 7)
    assert second.run(lambda cpu: None).reason is ExitReason.HLT


@pytest.mark.parametrize("function", [Psci.SYSTEM_OFF, Psci.SYSTEM_RESET])
def test_system_events(world: ArmWorld, function: Psci) -> None:
    vm = world.vm()
    vcpu = world.vcpu(vm)
    exit_ = vcpu.run(lambda cpu: cpu.psci(function))
    event = {Psci.SYSTEM_OFF: SystemEvent.SHUTDOWN, Psci.SYSTEM_RESET: SystemEvent.RESET}[function]
    assert (exit_.reason, exit_.system_event.type) == (ExitReason.SYSTEM_EVENT, event)
    assert vcpu.run(lambda cpu: pytest.fail("it's off")).reason is ExitReason.HLT
    init_vcpu(vm, vcpu)
    assert vcpu.run(lambda cpu: None).reason is ExitReason.HLT


def test_an_external_abort_that_nobody_catches_resets_the_machine(world: ArmWorld) -> None:
    vm = world.vm()
    vcpu = world.vcpu(vm)

    def guest(cpu: GuestCpu) -> None:
        raise ExternalAbort(0x1000, "a test")

    assert vcpu.run(guest).system_event.type == SystemEvent.RESET


@pytest.mark.parametrize("call", ["ghcb_msr", "port_in"])
def test_instructions_of_others(world: ArmWorld, call: str) -> None:
    vcpu = world.vcpu(world.vm())
    with pytest.raises(UndefinedOpcode):
        vcpu.run(lambda cpu: getattr(cpu, call)(0))


# The GIC


def test_the_gic(world: ArmWorld) -> None:
    vm = world.vm()
    assert errno_of(lambda: vm.ioctl(KVM_CREATE_DEVICE, bytearray(kvm_create_device(type=1).pack()))) == ENODEV
    with create_vgic(vm) as vgic:
        assert refusal(lambda: create_vgic(vm)) == "arm64.vgic.exists"
        attr = bytearray(kvm_device_attr(group=0).pack())
        assert refusal(lambda: vgic.ioctl(KVM_SET_DEVICE_ATTR, attr)) == "arm64.vgic.attribute"
        assert refusal(lambda: vgic.ioctl(0)) == "fs.ioctl.unknown"


def test_the_gic_comes_before_the_first_run(world: ArmWorld) -> None:
    vm = world.vm()
    world.vcpu(vm).run(lambda cpu: None)
    device = bytearray(kvm_create_device(type=KVM_DEV_TYPE_ARM_VGIC_V3).pack())
    assert refusal(lambda: vm.ioctl(KVM_CREATE_DEVICE, device)) == "arm64.vgic.vcpu-ran"


# Memory of an ordinary VM


def test_guest_memfd_of_an_ordinary_vm(world: ArmWorld) -> None:
    vm = world.vm()
    vcpu = world.vcpu(vm)
    gmem = world.gmem(vm, 4)
    memory = gmem.mmap()
    vm.set_user_memory_region2(0, GPA, 4 * PAGE, gmem=gmem, userspace_addr=memory.address)
    memory[:5] = b"hello"
    assert load(vcpu, GPA, 5) == b"hello"
    store(vcpu, GPA + PAGE, b"guest")
    assert memory[PAGE : PAGE + 5] == b"guest"


def test_mmio(world: ArmWorld) -> None:
    vcpu = world.vcpu(world.vm())
    exit_ = vcpu.run(lambda cpu: cpu.store(GPA, b"abcd"))
    assert (exit_.reason, exit_.mmio.phys_addr, exit_.mmio.data[:4]) == (ExitReason.MMIO, GPA, b"abcd")

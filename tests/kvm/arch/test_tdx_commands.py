# SPDX-License-Identifier: GPL-2.0-or-later
"""The KVM_TDX_* commands: what is refused, and in which order it's found."""

from __future__ import annotations

from collections.abc import Iterator
from errno import E2BIG, EBUSY, EFAULT, EINVAL, EIO, ENOTTY, EOPNOTSUPP

import pytest

from gmemu import Host, Kvm, VmType
from gmemu.api.tdx import TdxError, set_x2apic
from gmemu.hw.tdx.td import OpState
from gmemu.uapi.kvm import KVM_MEMORY_ENCRYPT_OP, Cap
from gmemu.uapi.kvm_x86 import kvm_cpuid2, kvm_cpuid_entry2
from gmemu.uapi.tdx import TdAttributes, TdxCmd, TdxLeaf, TdxOperand, TdxStatus, kvm_tdx_cmd, kvm_tdx_init_vm

from ..world import PAGE, errno_of, refusal
from .platform_world import GPA
from .td_world import BUSY, TDX_PROFILES, TdxWorld, every_tdx_profile


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[TdxWorld]:
    world = TdxWorld(getattr(request, "param", "inplace-v13"))
    yield world
    world.finish()


# Platforms


def test_vm_types_by_profile_and_platform() -> None:
    def mask(profile: str, platform: str) -> int:
        with Kvm.open(profile, platform=platform) as kvm:
            return kvm.check_extension(Cap.VM_TYPES)

    assert mask("inplace-v13", "amd") == 0b010011
    assert mask("linux-6.12", "intel") == 0b000011
    assert {mask(profile, "intel") for profile in TDX_PROFILES} == {0b100011}
    assert mask("inplace-v13", "arm") == 0
    with pytest.raises(ValueError, match="there is no platform 'riscv'"):
        Host(platform="riscv")


def test_each_platform_refuses_the_others_vms() -> None:
    with Kvm.open(platform="amd") as kvm:
        assert refusal(lambda: kvm.create_vm(VmType.TDX)) == "kvm.create-vm.type"
    with Kvm.open(platform="intel") as kvm:
        assert refusal(lambda: kvm.create_vm(VmType.SNP)) == "kvm.create-vm.type"
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu()
        assert errno_of(lambda: vm.ioctl(KVM_MEMORY_ENCRYPT_OP)) == ENOTTY
        assert errno_of(lambda: vcpu.ioctl(KVM_MEMORY_ENCRYPT_OP)) == EINVAL


# What every command checks


def test_hw_error_must_be_zero(world: TdxWorld) -> None:
    vm = world.kvm.create_vm(VmType.TDX)
    cmd = bytearray(kvm_tdx_cmd(id=TdxCmd.FINALIZE_VM, hw_error=1).pack())
    assert refusal(lambda: vm.ioctl(KVM_MEMORY_ENCRYPT_OP, cmd)) == "tdx.cmd.hw-error"
    assert errno_of(lambda: vm.ioctl(KVM_MEMORY_ENCRYPT_OP, 0x1000)) == EFAULT
    assert errno_of(lambda: vm.ioctl(KVM_MEMORY_ENCRYPT_OP, 0)) == EFAULT


def test_unknown_commands(world: TdxWorld) -> None:
    t = world.td()
    for number in (TdxCmd.INIT_VCPU, TdxCmd.INIT_MEM_REGION, TdxCmd.GET_CPUID, 6, 99):
        assert refusal(lambda number=number: t.vm.tdx.command(number)) == "tdx.cmd.unknown"  # type: ignore[misc]
    for number in (TdxCmd.CAPABILITIES, TdxCmd.INIT_VM, TdxCmd.FINALIZE_VM, 6):
        assert refusal(lambda number=number: t.vm.tdx.command(number, on=t.vcpu)) == "tdx.vcpu-cmd.unknown"  # type: ignore[misc]


# CAPABILITIES


@every_tdx_profile
def test_capabilities(world: TdxWorld) -> None:
    tdx = world.kvm.create_vm(VmType.TDX).tdx
    caps = tdx.capabilities()
    assert caps.supported_attrs == TdAttributes.SEPT_VE_DISABLE
    width = next(entry for entry in caps.cpuid if entry.function == 0x80000008)
    assert width.eax >> 16 & 0xFF == 0xFF
    assert refusal(lambda: tdx.capabilities(len(caps.cpuid) - 1)) == "tdx.capabilities.nent"
    assert errno_of(lambda: tdx.capabilities(0)) == E2BIG
    assert refusal(lambda: tdx.command(TdxCmd.CAPABILITIES, tdx.scratch, flags=1)) == "tdx.capabilities.flags"
    assert errno_of(lambda: tdx.command(TdxCmd.CAPABILITIES, 0x1000)) == EFAULT


# INIT_VM


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"flags": 1}, "tdx.init-vm.flags"),
        ({"attributes": 1}, "tdx.init-vm.attributes"),
        ({"attributes": 1 << 40}, "tdx.init-vm.attributes"),
        ({"xfam": 1 << 3}, "tdx.init-vm.xfam"),
        ({"gpaw": 47}, "tdx.init-vm.gpaw"),
        ({"cpuid": []}, "tdx.init-vm.gpaw"),
        (
            {"cpuid": [kvm_cpuid_entry2(function=0x80000008, eax=48 << 16), kvm_cpuid_entry2(function=2)]},
            "tdx.init-vm.cpuid",
        ),
        (
            {"cpuid": [kvm_cpuid_entry2(function=0x80000008, eax=48 << 16), kvm_cpuid_entry2(function=7, ecx=1 << 5)]},
            "tdx.init-vm.cpuid",
        ),
        ({"cpuid": [kvm_cpuid_entry2(function=0x80000008, eax=48 << 16)] * 257}, "tdx.init-vm.nent"),
    ],
)
def test_init_vm_refusals(world: TdxWorld, arguments: dict[str, object], rule: str) -> None:
    vm = world.kvm.create_vm(VmType.TDX)
    assert refusal(lambda: vm.tdx.init_vm(**arguments)) == rule  # type: ignore[arg-type]
    assert not world.module.tds
    vm.tdx.init_vm()
    assert refusal(vm.tdx.init_vm) == "tdx.init-vm.again"


def test_init_vm_reserved_and_padding(world: TdxWorld) -> None:
    tdx = world.kvm.create_vm(VmType.TDX).tdx
    world.door.store(tdx.scratch, kvm_tdx_init_vm(reserved=(0,) * 11 + (1,)).pack())
    assert refusal(lambda: tdx.command(TdxCmd.INIT_VM, tdx.scratch)) == "tdx.init-vm.reserved"
    world.door.store(tdx.scratch, kvm_tdx_init_vm(cpuid=kvm_cpuid2(padding=1)).pack())
    assert refusal(lambda: tdx.command(TdxCmd.INIT_VM, tdx.scratch)) == "tdx.init-vm.padding"
    assert errno_of(lambda: tdx.command(TdxCmd.INIT_VM, 0x1000)) == EFAULT


def test_what_the_module_finds_wrong_with_td_params_is_told(world: TdxWorld) -> None:
    entries = [kvm_cpuid_entry2(function=0x80000008, eax=48 << 16), kvm_cpuid_entry2(function=1, edx=1)]
    vm = world.kvm.create_vm(VmType.TDX)
    with pytest.raises(TdxError) as refused:
        vm.tdx.init_vm(cpuid=entries)
    assert refused.value.errno == EINVAL
    assert refused.value.hw_error == TdxStatus.OPERAND_INVALID | TdxOperand.CPUID_CONFIG
    assert "CPUID_CONFIG" not in str(refused.value)
    assert "OPERAND_INVALID (0xc000010000000045)" in str(refused.value)
    vm.tdx.init_vm()


def test_init_vm_stores_what_it_was_given(world: TdxWorld) -> None:
    owner = bytes(range(48))
    t = world.td(mrowner=owner, attributes=TdAttributes.SEPT_VE_DISABLE, gpaw=52)
    assert (t.td.mrowner, t.td.attributes) == (owner, TdAttributes.SEPT_VE_DISABLE)
    assert t.arch.gfn_direct_bits << 12 == 1 << 51
    assert t.td.sept.levels == 5


def test_key_ids_run_out_and_come_back(world: TdxWorld) -> None:
    vms = []
    for _ in world.module.info.hkids:
        vms.append(world.kvm.create_vm(VmType.TDX))
        vms[-1].tdx.init_vm()
    last = world.kvm.create_vm(VmType.TDX)
    assert refusal(last.tdx.init_vm) == "tdx.init-vm.hkid"
    vms[3].close()
    last.tdx.init_vm()


def test_a_failed_allocation_leaves_nothing(world: TdxWorld) -> None:
    vm = world.kvm.create_vm(VmType.TDX)
    world.host.failing_allocations["tdx-page"] = 1
    assert refusal(vm.tdx.init_vm) == "mm.page.oom"
    vm.tdx.init_vm()


# Entropy and other failures of the keys (row 30)


@pytest.mark.parametrize("leaf", [TdxLeaf.MNG_CREATE, TdxLeaf.MNG_ADDCX], ids=lambda leaf: leaf.name)
def test_no_entropy_is_eagain_after_ten_tries(world: TdxWorld, leaf: TdxLeaf) -> None:
    vm = world.kvm.create_vm(VmType.TDX)
    asked = world.answers((leaf, TdxStatus.RND_NO_ENTROPY), repeat=10)
    assert refusal(vm.tdx.init_vm) == "tdx.init-vm.entropy"
    assert [called for called, _ in asked].count(leaf) == 10
    assert not world.module.tds
    world.answers((leaf, TdxStatus.RND_NO_ENTROPY), repeat=9)
    vm.tdx.init_vm()


@pytest.mark.parametrize(
    ("leaf", "status"),
    [
        (TdxLeaf.MNG_CREATE, TdxStatus.HKID_NOT_FREE),
        (TdxLeaf.MNG_KEY_CONFIG, TdxStatus.KEY_GENERATION_FAILED),
        (TdxLeaf.MNG_ADDCX, TdxStatus.PAGE_METADATA_INCORRECT),
        (TdxLeaf.MNG_INIT, TdxStatus.OP_STATE_INCORRECT),
    ],
)
def test_anything_else_kills_the_vm(world: TdxWorld, leaf: TdxLeaf, status: TdxStatus) -> None:
    vm = world.kvm.create_vm(VmType.TDX)
    world.answers((leaf, status))
    assert errno_of(vm.tdx.init_vm) == EIO
    assert refusal(vm.tdx.init_vm) == "kvm.vm.dead"
    assert not world.module.tds


# vCPUs


def test_vcpus_come_between_init_and_finalize(world: TdxWorld) -> None:
    vm = world.kvm.create_vm(VmType.TDX)
    assert refusal(vm.create_vcpu) == "tdx.vcpu-create.state"
    vm.tdx.init_vm()
    vcpu = vm.create_vcpu(0)
    assert refusal(lambda: vcpu.tdx_init(x2apic=False)) == "tdx.init-vcpu.x2apic"
    set_x2apic(vcpu)
    assert refusal(lambda: vcpu.tdx_init(flags=1)) == "tdx.init-vcpu.flags"
    vcpu.tdx_init(0x1234)
    assert refusal(vcpu.tdx_init) == "tdx.init-vcpu.again"
    [vp] = world.module.vps.values()
    assert vp.rcx == 0x1234
    vm.tdx.finalize_vm()
    assert refusal(lambda: vm.create_vcpu(1)) == "tdx.vcpu-create.state"
    assert refusal(vcpu.tdx_init) == "tdx.vcpu-cmd.state"


@pytest.mark.parametrize("leaf", [TdxLeaf.VP_CREATE, TdxLeaf.VP_ADDCX, TdxLeaf.VP_INIT], ids=lambda leaf: leaf.name)
def test_a_vcpu_that_the_module_refuses(world: TdxWorld, leaf: TdxLeaf) -> None:
    vm = world.kvm.create_vm(VmType.TDX)
    vm.tdx.init_vm()
    vcpu = vm.create_vcpu()
    set_x2apic(vcpu)
    world.answers((leaf, TdxStatus.PAGE_METADATA_INCORRECT))
    assert errno_of(lambda: vcpu.tdx_init(x2apic=False)) == EIO


@every_tdx_profile
def test_get_cpuid(world: TdxWorld) -> None:
    t = world.td(cpuid=[kvm_cpuid_entry2(function=0x80000008, eax=48 << 16), kvm_cpuid_entry2(function=7, ebx=1)])
    entries = t.vm.tdx.get_cpuid(t.vcpu)
    by_leaf = {(entry.function, entry.index): entry for entry in entries}
    assert by_leaf[7, 0].ebx == 1
    assert by_leaf[7, 0].flags == 1
    assert by_leaf[0x80000008, 0].eax >> 16 & 0xFF == 48
    assert refusal(lambda: t.vm.tdx.get_cpuid(t.vcpu, 1)) == "tdx.get-cpuid.nent"
    t.vm.tdx.finalize_vm()
    assert refusal(lambda: t.vm.tdx.get_cpuid(t.vcpu)) == "tdx.vcpu-cmd.state"


# INIT_MEM_REGION


@every_tdx_profile
def test_init_mem_region_refusals(world: TdxWorld) -> None:
    t = world.td()
    source = t.anonymous.address
    region = t.vm.tdx.init_mem_region
    t.make_private(0, 4)
    range_ = "tdx.init-mem-region.range"
    assert refusal(lambda: region(t.vcpu, GPA, PAGE, source, flags=2)) == "tdx.init-mem-region.flags"
    assert refusal(lambda: region(t.vcpu, GPA, PAGE, source + 1)) == range_
    assert refusal(lambda: region(t.vcpu, GPA + 1, PAGE, source)) == range_
    assert refusal(lambda: region(t.vcpu, GPA, 0, source)) == range_
    assert refusal(lambda: region(t.vcpu, (1 << 64) - PAGE, 2 * PAGE, source)) == range_
    assert refusal(lambda: region(t.vcpu, GPA | 1 << 47, PAGE, source)) == range_
    assert refusal(lambda: region(t.vcpu, (1 << 47) - PAGE, 2 * PAGE, source)) == range_
    assert errno_of(lambda: t.vm.tdx.command(TdxCmd.INIT_MEM_REGION, 0x1000, on=t.vcpu)) == EFAULT
    second = t.vm.create_vcpu(1)
    assert refusal(lambda: region(second, GPA, PAGE, source)) == "tdx.init-mem-region.vcpu"
    assert refusal(lambda: region(t.vcpu, 1 << 40, PAGE, source)) == "gmem.populate.slot"
    region(t.vcpu, GPA, PAGE, source)
    t.vm.tdx.finalize_vm()
    assert refusal(lambda: region(t.vcpu, GPA + PAGE, PAGE, source)) == "tdx.vcpu-cmd.state"  # row 32


@pytest.mark.parametrize(
    ("world", "errno"), [("linux-6.18", EOPNOTSUPP), ("linux-7.3", EINVAL), ("inplace-v13", 0)], indirect=["world"]
)
def test_a_source_of_zero(world: TdxWorld, errno: int) -> None:
    t = world.td()
    t.make_private(0, 1)
    assert errno_of(lambda: t.vm.tdx.init_mem_region(t.vcpu, GPA, PAGE, 0)) == errno


@every_tdx_profile
def test_the_source_may_not_be_the_targets_own_private_page(world: TdxWorld) -> None:
    t = world.td()
    if not t.in_place:
        pytest.skip("guest_memfd can't be mapped by this kernel, so it's no source")
    t.make_private(0, 1)
    assert errno_of(lambda: t.vm.tdx.init_mem_region(t.vcpu, GPA, PAGE, t.shared.address)) == EFAULT


# FINALIZE_VM


@every_tdx_profile
def test_finalize(world: TdxWorld) -> None:
    vm = world.kvm.create_vm(VmType.TDX)
    assert refusal(vm.tdx.finalize_vm) == "tdx.finalize.state"
    vm.tdx.init_vm()
    vm.create_vcpu().tdx_init()
    world.answers((TdxLeaf.MR_FINALIZE, BUSY))
    with pytest.raises(TdxError) as busy:
        vm.tdx.finalize_vm()
    assert (busy.value.errno, busy.value.hw_error) == (EBUSY, BUSY)
    vm.tdx.finalize_vm()
    assert refusal(vm.tdx.finalize_vm) == "tdx.finalize.state"
    [td] = world.module.tds.values()
    assert td.op_state is OpState.RUNNABLE


def test_finalize_without_a_vcpu_kills_the_vm(world: TdxWorld) -> None:
    """Row 31."""
    vm = world.kvm.create_vm(VmType.TDX)
    vm.tdx.init_vm()
    with pytest.raises(TdxError) as failed:
        vm.tdx.finalize_vm()
    assert (failed.value.errno, failed.value.hw_error) == (EIO, TdxStatus.NO_VCPUS)
    assert refusal(vm.tdx.finalize_vm) == "kvm.vm.dead"


# What else depends on it


@every_tdx_profile
def test_running_and_prefaulting_too_early(world: TdxWorld) -> None:
    t = world.td()
    assert refusal(t.vcpu.run) == "tdx.run.not-initialized"
    assert errno_of(lambda: t.vcpu.pre_fault(GPA, PAGE)) == EOPNOTSUPP
    t.make_private()
    t.vm.tdx.finalize_vm()
    assert refusal(lambda: t.vcpu.pre_fault(GPA | 1 << 47, PAGE)) == "tdx.prefault.shared-bit"
    t.vcpu.pre_fault(GPA, 2 * PAGE)
    assert sum(end - start for start, end, _ in t.td.sept.leaves.runs()) == 2


def test_no_memslot_reaches_the_shared_bit(world: TdxWorld) -> None:
    t = world.td()
    assert refusal(lambda: t.vm.set_user_memory_region2(1, 1 << 47, PAGE)) == "tdx.slot.shared-bit"
    assert refusal(lambda: t.vm.set_user_memory_region2(1, (1 << 47) - PAGE, 2 * PAGE)) == "tdx.slot.shared-bit"


def test_registers_are_out_of_reach(world: TdxWorld) -> None:
    t = world.td()
    assert errno_of(lambda: t.vcpu.regs) == EINVAL

# SPDX-License-Identifier: GPL-2.0-or-later
"""What comparison with real kernels showed to be wrong in the emulation, each once, in plain words."""

from collections.abc import Iterator
from errno import EFAULT, EINVAL, ENODEV, ENOSPC, ENOTTY, EOPNOTSUPP, EPERM

import pytest

from gmemu import KernelError, Kvm, Mapping, SegmentationFault, VmType
from gmemu.syscalls.emulated import EmulatedDoor
from gmemu.uapi.kvm import KVM_ENABLE_CAP, KVM_MEMORY_ENCRYPT_OP, kvm_enable_cap
from gmemu.uapi.kvm_x86 import kvm_regs
from gmemu.uapi.mman import (
    FALLOC_FL_WRITE_ZEROES,
    MADV_COLD,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MADV_WIPEONFORK,
    MAP_LOCKED,
    MAP_SHARED,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

PAGE = 4096
SHARED_ONLY = "linux-6.18-shared-only"


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm.open(SHARED_ONLY) as kvm:
        yield kvm


def errno_of(call: object, *args: object) -> int:
    assert callable(call)
    with pytest.raises(KernelError) as refused:
        call(*args)
    return refused.value.errno or 0


def test_a_kernel_without_smm_has_one_address_space(kvm: Kvm) -> None:
    vm, memory = kvm.create_vm(), kvm.anonymous(PAGE)
    assert errno_of(vm.set_user_memory_region, 0x10000, 0, PAGE, memory.address) == EINVAL


def test_a_kernel_built_without_attributes_has_no_ioctl_for_them(kvm: Kvm) -> None:
    assert errno_of(kvm.create_vm().set_memory_attributes, 0, PAGE, 0) == ENOTTY


def test_pre_faulting_without_tdp(kvm: Kvm) -> None:
    vm, memory = kvm.create_vm(), kvm.anonymous(PAGE)
    vcpu = vm.create_vcpu()
    assert errno_of(vcpu.pre_fault, 0, PAGE) == ENOSPC
    vm.set_user_memory_region(0, 0, PAGE, memory.address)
    assert errno_of(vcpu.pre_fault, 0, PAGE) == EOPNOTSUPP
    vm.delete_slot(0)
    assert errno_of(vcpu.pre_fault, 0, PAGE) == EOPNOTSUPP


def test_bit_1_of_rflags_is_always_set(kvm: Kvm) -> None:
    vcpu = kvm.create_vm().create_vcpu()
    vcpu.regs = kvm_regs()
    assert vcpu.regs.rflags == 2


def test_reserved_bits_of_cr4_are_refused(kvm: Kvm) -> None:
    vcpu = kvm.create_vm().create_vcpu()
    sregs = vcpu.sregs
    sregs.cr4 = 1 << 63
    assert errno_of(setattr, vcpu, "sregs", sregs) == EINVAL


def test_cs_at_reset_is_what_svm_has(kvm: Kvm) -> None:
    assert kvm.create_vm().create_vcpu().sregs.cs.type == 10


@pytest.mark.parametrize(("profile", "errno"), [("linux-6.12", ENODEV), ("linux-6.18", EPERM)])
def test_before_6_18_the_missing_mmap_is_told_before_noexec(profile: str, errno: int) -> None:
    with Kvm.open(profile) as kvm:
        gmem = kvm.create_vm(VmType.SW_PROTECTED).create_guest_memfd(PAGE)
        assert errno_of(lambda: gmem.mmap(prot=PROT_READ | PROT_EXEC, flags=MAP_SHARED)) == errno


@pytest.mark.parametrize(("profile", "errno"), [("linux-6.12", EINVAL), ("linux-6.18", ENOTTY)])
def test_a_vcpu_knows_encrypt_op_since_there_is_tdx(profile: str, errno: int) -> None:
    with Kvm.open(profile) as kvm:
        assert errno_of(kvm.create_vm().create_vcpu().ioctl, KVM_MEMORY_ENCRYPT_OP, 1) == errno


@pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_REMOVE, MADV_COLD, MADV_PAGEOUT])
def test_locked_memory_is_not_dropped(kvm: Kvm, advice: int) -> None:
    gmem = kvm.create_vm().create_guest_memfd(PAGE, 3)
    assert errno_of(gmem.mmap(flags=MAP_SHARED | MAP_LOCKED).madvise, advice) == EINVAL
    gmem.mmap().madvise(advice)


def test_a_memfd_knows_few_modes_of_fallocate(kvm: Kvm) -> None:
    memfd = kvm.door.memfd_create("x")
    for mode in (8, 16, 32, 64, 128):
        assert errno_of(kvm.door.fallocate, memfd, mode, 0, PAGE) == EOPNOTSUPP
    kvm.door.fallocate(memfd, 3, 0, PAGE)


def test_7_3_counts_no_blocks_yet() -> None:
    for profile, blocks in (("linux-7.3", 0), ("inplace-v13", 8)):
        with Kvm.open(profile) as kvm:
            gmem = kvm.create_vm(VmType.SW_PROTECTED).create_guest_memfd(PAGE)
            gmem.allocate(0, PAGE)
            assert gmem.stat().blocks == blocks


def test_a_vcpu_reads_the_capability_before_it_refuses_it(kvm: Kvm) -> None:
    vcpu = kvm.create_vm().create_vcpu()
    assert errno_of(vcpu.ioctl, KVM_ENABLE_CAP, 0) == EFAULT
    assert errno_of(vcpu.ioctl, KVM_ENABLE_CAP, bytearray(kvm_enable_cap().pack())) == EINVAL


def test_a_child_lacks_what_was_advised_away(kvm: Kvm) -> None:
    memory = kvm.anonymous(4 * PAGE)
    memory[:] = b"\x33" * len(memory)
    memory.madvise(MADV_DONTFORK, PAGE, 2 * PAGE)
    memory.madvise(MADV_DOFORK, 2 * PAGE, PAGE)
    memory.madvise(MADV_WIPEONFORK, 3 * PAGE, PAGE)
    assert isinstance(kvm.door, EmulatedDoor)
    child = kvm.door.fork()
    assert child.load(memory.address, 1) == b"\x33"
    with pytest.raises(SegmentationFault):
        child.load(memory.address + PAGE, 1)
    assert child.load(memory.address + 2 * PAGE, 1) == b"\x33"
    assert child.load(memory.address + 3 * PAGE, 1) == b"\0"
    assert Mapping(kvm.door, memory.address, 4 * PAGE)[:] == b"\x33" * 4 * PAGE
    child.exit()


def test_a_new_guest_forgets_the_exit_of_the_old() -> None:
    with Kvm.open("linux-6.12") as kvm:
        vm = kvm.create_vm(VmType.SW_PROTECTED)
        vcpu = vm.create_vcpu()
        vm.make_private(0, PAGE)
        assert vcpu.run(lambda cpu: cpu.load(0)).memory_fault.gpa == 0
        assert vcpu.run(lambda cpu: cpu.port_out(0x80, b"x")).io.port == 0x80


@pytest.mark.parametrize(("profile", "errno"), [("linux-6.12", EOPNOTSUPP), ("linux-6.18", ENODEV)])
def test_writing_zeroes_by_fallocate_came_after_6_12(profile: str, errno: int) -> None:
    with Kvm.open(profile) as kvm:
        assert errno_of(kvm.door.fallocate, kvm.fd, FALLOC_FL_WRITE_ZEROES, 0, PAGE) == errno


def test_get_user_pages_reads_only_what_may_be_read() -> None:
    with Kvm.open("linux-6.12") as kvm:
        vm = kvm.create_vm(VmType.SW_PROTECTED)
        memory = kvm.anonymous(PAGE)
        memory.protect(PROT_WRITE)
        vm.set_user_memory_region(0, 0, PAGE, memory.address)
        assert errno_of(vm.create_vcpu().pre_fault, 0, PAGE) == EFAULT


def test_holes_in_a_memfd_zero_parts_of_pages(kvm: Kvm) -> None:
    door, memfd = kvm.door, kvm.door.memfd_create("x")
    door.pwrite(memfd, b"x" * 3 * PAGE, 0)
    door.fallocate(memfd, 3, PAGE - 1, 2)
    assert door.pread(memfd, 4, PAGE - 2) == b"x\0\0x"
    door.ftruncate(memfd, 2 * PAGE + 1)
    door.ftruncate(memfd, 3 * PAGE)
    assert door.pread(memfd, 3, 2 * PAGE) == b"x\0\0"


def test_what_was_changed_and_back_is_one_mapping_again(kvm: Kvm) -> None:
    memory = kvm.anonymous(3 * PAGE)
    kvm.door.mprotect(memory.address + PAGE, PAGE, PROT_READ)
    grow = (memory.address, 3 * PAGE, 4 * PAGE, MREMAP_MAYMOVE)
    assert errno_of(kvm.door.mremap, *grow) == EFAULT
    kvm.door.mprotect(memory.address + PAGE, PAGE, PROT_READ | PROT_WRITE)
    kvm.door.mremap(*grow)

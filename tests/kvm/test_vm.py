# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs and vCPUs as objects: creation, ioctls that concern all of them, who may use them, how long they live."""

from __future__ import annotations

from errno import EEXIST, EFAULT, EINVAL, EIO, EMFILE, ENOTTY
from itertools import permutations

import pytest

from gmemu import Cap, Exit, ExitReason, GuestCpu, KernelError, Kvm
from gmemu.uapi.kvm import (
    KVM_CREATE_VCPU,
    KVM_ENABLE_CAP,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MEMORY_ENCRYPT_OP,
    KVM_RUN,
    KVM_SET_DEBUGREGS,
    KVM_SET_MEMORY_ATTRIBUTES2,
    KVM_SET_USER_MEMORY_REGION2,
    MpState,
    kvm_enable_cap,
    kvm_mp_state,
)
from gmemu.uapi.kvm_x86 import kvm_debugregs

from .world import DEFAULT, PAGE, World, errno_of, every_profile, load, refusal, store

KVM_SET_CPUID2, KVM_SET_MSRS, KVM_SET_MP_STATE = 0x4008AE90, 0x4008AE89, 0x4004AE99


class TestVcpuCreation:
    def test_checks_in_order(self, world: World) -> None:
        """The id, how many there are, then whether it's taken: each call breaks that one and those after it."""
        vm = world.vm()
        kvm = world.kvm_vm(vm)
        limit = world.kvm.check_extension(Cap.MAX_VCPU_ID)
        vm.create_vcpu(0)
        kvm.created_vcpus = world.kvm.check_extension(Cap.MAX_VCPUS)
        assert refusal(lambda: vm.ioctl(KVM_CREATE_VCPU, limit)) == "kvm.create-vcpu.id"
        assert refusal(lambda: vm.create_vcpu(0)) == "kvm.create-vcpu.many"
        kvm.created_vcpus = 1
        assert refusal(lambda: vm.create_vcpu(0)) == "kvm.create-vcpu.exists"
        assert errno_of(lambda: vm.create_vcpu(0)) == EEXIST
        vm.create_vcpu(limit - 1)

    def test_an_argument_that_isnt_a_number(self, world: World) -> None:
        assert refusal(lambda: world.vm().ioctl(KVM_CREATE_VCPU, bytearray(8))) == "kvm.create-vcpu.id"

    @pytest.mark.parametrize("failure", ["descriptors", "memory", "pages"])
    def test_a_failure_leaves_nothing_behind(self, world: World, failure: str) -> None:
        vm = world.vm()
        kvm, process = world.kvm_vm(vm), world.host.init
        before = (kvm.users, world.host.memmap.nr_allocated)
        if failure == "descriptors":
            process.nofile = vm.fd + 1
        elif failure == "memory":
            world.host.failing_allocations["vcpu"] = 1
        else:
            [(hog, count)] = world.host.memmap.alloc(world.host.memmap.nr_pages - world.host.memmap.nr_allocated - 3)
            before = (kvm.users, world.host.memmap.nr_allocated)
        expected = "fs.fd-limit" if failure == "descriptors" else "mm.page.oom"
        assert refusal(lambda: vm.create_vcpu()) == expected
        assert (kvm.users, world.host.memmap.nr_allocated) == before
        assert (kvm.created_vcpus, kvm.vcpus) == (0, [])
        process.nofile = 1 << 20
        if failure == "pages":
            world.host.memmap.put(hog, count)
        vm.create_vcpu(0)

    def test_its_pages_need_not_adjoin(self, world: World) -> None:
        """Whatever the allocator gives: kvm_run, the pio page and the coalesced ring are pages of their own."""
        memmap = world.host.memmap
        [(pfn, _)] = memmap.alloc(5)
        for page in range(pfn, pfn + 5, 2):
            memmap.put(page)
        vm = world.vm()
        vcpu = vm.create_vcpu()
        vcpu.kvm_run[:] = bytes(range(256)) * 48
        assert vcpu.kvm_run[:] == bytes(range(256)) * 48
        vcpu.kvm_run[:] = bytes(3 * PAGE)
        memmap.put(pfn + 1)
        memmap.put(pfn + 3)

    def test_beyond_its_pages(self, world: World) -> None:
        vcpu = world.vm().create_vcpu()
        address = world.door.mmap(0, 4 * PAGE, 3, 1, vcpu.fd, 0)
        assert refusal(lambda: world.door.load(address + 3 * PAGE, 1)) == "kvm.vcpu.mmap"


class TestEnableCap:
    def test_checks_in_order(self, world: World) -> None:
        vm = world.vm()

        def enable(cap: int, flags: int, arg: int) -> str:
            args = kvm_enable_cap(cap=cap, flags=flags, args=(arg, 0, 0, 0))
            return refusal(lambda: vm.ioctl(KVM_ENABLE_CAP, bytearray(args.pack())))

        assert enable(9999, 1, 1) == "kvm.enable-cap.flags"
        assert enable(9999, 0, 1) == "kvm.enable-cap.unknown"
        assert enable(Cap.EXIT_HYPERCALL, 0, 1) == "kvm.enable-cap.argument"
        assert enable(Cap.EXIT_HYPERCALL, 0, 1 << KVM_HC_MAP_GPA_RANGE) == ""
        assert world.kvm_vm(vm).exits_on_hypercall(KVM_HC_MAP_GPA_RANGE)
        assert enable(Cap.EXIT_HYPERCALL, 0, 0) == ""
        assert not world.kvm_vm(vm).exits_on_hypercall(KVM_HC_MAP_GPA_RANGE)


@pytest.mark.parametrize("request_", [KVM_ENABLE_CAP, KVM_SET_USER_MEMORY_REGION2])
def test_a_structure_that_isnt_there(world: World, request_: int) -> None:
    assert errno_of(lambda: world.vm().ioctl(request_, 0x1000)) == EFAULT


def test_unknown_ioctls(world: World) -> None:
    vm = world.vm()
    vcpu = vm.create_vcpu()
    assert errno_of(lambda: vm.ioctl(KVM_RUN)) == ENOTTY
    assert errno_of(lambda: vm.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(128))) == ENOTTY
    assert errno_of(lambda: vcpu.ioctl(KVM_CREATE_VCPU)) == EINVAL
    assert refusal(lambda: vcpu.ioctl(0x5401)) == "kvm.vcpu.ioctl"


def test_memory_encryption_of_a_plain_vm(world: World) -> None:
    vm = world.vm(DEFAULT)
    assert vm.ioctl(KVM_MEMORY_ENCRYPT_OP, 0) == 0
    assert refusal(lambda: vm.ioctl(KVM_MEMORY_ENCRYPT_OP, bytearray(32))) == "snp.cmd.sev-asid"
    assert errno_of(lambda: vm.create_vcpu().ioctl(KVM_MEMORY_ENCRYPT_OP, bytearray(32))) == ENOTTY


class TestRegisters:
    def test_a_vcpu_without_local_apic_is_runnable(self, world: World) -> None:
        vcpu = world.vm().create_vcpu()
        for state in MpState:
            arg = bytearray(kvm_mp_state(mp_state=state).pack())
            expected = "" if state is MpState.RUNNABLE else "kvm.mp-state.invalid"
            assert refusal(lambda arg=arg: vcpu.ioctl(KVM_SET_MP_STATE, arg)) == expected  # type: ignore[misc]

    def test_too_many_entries(self, world: World) -> None:
        vcpu = world.vm().create_vcpu()
        head = bytearray((257).to_bytes(4, "little") + bytes(4))
        assert refusal(lambda: vcpu.ioctl(KVM_SET_CPUID2, head)) == "kvm.cpuid.many"
        head[:4] = (256).to_bytes(4, "little")
        assert refusal(lambda: vcpu.ioctl(KVM_SET_MSRS, head)) == "kvm.msrs.many"

    def test_registers_round_trip(self, world: World) -> None:
        vcpu = world.vm().create_vcpu()
        regs = vcpu.regs
        assert regs.rip == 0xFFF0
        regs.rax, regs.rip = 7, 0x1000
        vcpu.regs = regs
        assert vcpu.regs == regs
        sregs = vcpu.sregs
        sregs.cr0 |= 1 << 31  # paging without protection
        assert refusal(lambda: setattr(vcpu, "sregs", sregs)) == "kvm.sregs.invalid"

    @pytest.mark.parametrize("changed", [{"dr6": 1 << 32}, {"dr7": 1 << 63}, {"flags": 1}, {}])
    def test_debug_registers(self, world: World, changed: dict[str, int]) -> None:
        vcpu = world.vm().create_vcpu()
        registers = kvm_debugregs()
        for name, value in changed.items():
            setattr(registers, name, value)
        arg = bytearray(registers.pack())
        assert refusal(lambda: vcpu.ioctl(KVM_SET_DEBUGREGS, arg)) == ("kvm.debugregs.invalid" if changed else "")

    @pytest.mark.parametrize(
        ("xcr0", "valid"), [(0, False), (1, True), (3, True), (4, False), (7, True), (1 << 40 | 1, False)]
    )
    def test_xcr0(self, world: World, xcr0: int, valid: bool) -> None:
        vcpu = world.vm().create_vcpu()
        assert refusal(lambda: vcpu.set_xcr0(xcr0)) == ("" if valid else "kvm.xcrs.invalid")


class TestForeignProcess:
    @every_profile
    def test_a_child_may_not_use_them(self, world: World) -> None:
        """The check comes first, before the ioctl is even looked at."""
        vm = world.vm()
        vcpu, gmem = vm.create_vcpu(), world.gmem(vm, flags=0)
        child = world.fork()
        for fd in (vm.fd, vcpu.fd):
            for request in (KVM_RUN, KVM_CREATE_VCPU, 0x5401):
                with pytest.raises(KernelError) as caught:
                    child.ioctl(fd, request)
                assert (caught.value.errno, caught.value.rule.id) == (EIO, "kvm.foreign-process")
        child.fallocate(gmem.fd, 3, 0, PAGE)  # files are another matter

    def test_a_childs_own_vm_is_its_own(self, world: World) -> None:
        child = Kvm(world.fork())
        vm = child.create_vm()
        memory = child.anonymous(PAGE)
        memory[:5] = b"child"
        vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
        vcpu = vm.create_vcpu()
        assert load(vcpu, 0, 5) == b"child"
        store(vcpu, 0, b"guest")
        assert memory[:5] == b"guest"


def test_a_dead_vm(world: World) -> None:
    vm = world.vm()
    vcpu = vm.create_vcpu()
    error = world.kvm_vm(vm).bug("a test says so")
    assert (error.errno, error.rule.id) == (EIO, "kvm.vm.bugged")
    for call in (lambda: vm.create_vcpu(1), lambda: vcpu.run(), lambda: vcpu.regs):
        assert refusal(call) == "kvm.vm.dead"


class TestLife:
    @pytest.mark.parametrize("order", list(permutations(("vm", "vcpu", "gmem", "mapping"))), ids="-".join)
    def test_closing_in_any_order_leaves_nothing(self, world: World, order: tuple[str, ...]) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 4)
        mapping, vcpu = gmem.mmap(), vm.create_vcpu()
        vm.set_user_memory_region2(0, 0, 4 * PAGE, gmem=gmem, userspace_addr=mapping.address)
        mapping[:] = b"m" * 4 * PAGE
        gmem.make_private(PAGE, PAGE)
        store(vcpu, PAGE, b"private")
        objects = {"vm": vm, "vcpu": vcpu, "gmem": gmem, "mapping": mapping}
        for name in order:
            objects[name].close()  # type: ignore[attr-defined]
        assert world.host.vms == []
        world.host.check_quiet()

    def test_a_vm_lives_as_long_as_its_guest_memfd(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 2)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem)
        vm.close()
        gmem.allocate(0, 2 * PAGE)
        gmem.punch_hole(0, PAGE)
        gmem.make_private(0, PAGE)
        assert len(world.host.vms) == 1
        gmem.close()
        assert world.host.vms == []

    def test_closing_everything_while_the_guest_runs(self, world: World) -> None:
        """An ioctl holds its file: the VM goes when KVM_RUN comes back, not before."""
        vm = world.vm()
        gmem = world.gmem(vm, 1)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
        vcpu = vm.create_vcpu()

        def guest(cpu: GuestCpu) -> None:
            cpu.store(0, b"x")
            gmem.close()
            vm.close()
            vcpu.kvm_run.close()
            world.door.close(vcpu.fd)
            assert len(world.host.vms) == 1

        world.door.load_guest(vcpu.fd, guest)
        assert vcpu.ioctl(KVM_RUN) == 0
        assert world.host.vms == []

    def test_exit_of_the_process_takes_all(self, world: World) -> None:
        vm = world.vm()
        gmem = world.gmem(vm, 2)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem)
        store(vm.create_vcpu(), 0, b"x")
        world.door.exit()
        assert world.host.vms == []
        world.host.check_quiet()

    def test_duplicates_keep_it(self, world: World) -> None:
        vm = world.vm()
        again = world.door.dup(vm.fd)
        vm.close()
        assert len(world.host.vms) == 1
        world.door.close(again)
        assert world.host.vms == []

    def test_a_dup_that_fails_holds_nothing(self, world: World) -> None:
        vm = world.vm()
        world.host.init.nofile = vm.fd + 1
        assert errno_of(lambda: world.door.dup(vm.fd)) == EMFILE
        vm.close()
        assert world.host.vms == []

    def test_two_vms_of_one_process(self, world: World) -> None:
        memory = world.kvm.anonymous(PAGE)
        vcpus = []
        for _ in range(2):
            vm = world.vm(DEFAULT)
            vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
            vcpus.append(vm.create_vcpu())
        store(vcpus[0], 0, b"seen")
        assert load(vcpus[1], 0, 4) == b"seen"
        memory.close()
        exits: list[Exit | str] = [refusal(lambda vcpu=vcpu: vcpu.run(lambda cpu: cpu.load(0, 1))) for vcpu in vcpus]  # type: ignore[misc]
        assert exits == ["kvm.fault.hva"] * 2

    def test_guest_memory_needs_a_slot(self, world: World) -> None:
        vcpu = world.vm(DEFAULT).create_vcpu()
        assert vcpu.run().reason is ExitReason.INTERNAL_ERROR

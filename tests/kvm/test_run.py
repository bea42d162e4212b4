# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_RUN: exits and their completion, hypercalls, signals, and guests that end in a Python exception."""

from __future__ import annotations

from errno import EAGAIN, EINTR, EINVAL, EPERM

import pytest

from gmemu import BusError, ExitReason, GuestCpu, KernelError, Vcpu, Vm
from gmemu.uapi.kvm import (
    KVM_ENOSYS,
    KVM_HC_MAP_GPA_RANGE,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_RUN,
    KVM_RUN_EXIT_OFFSET,
    kvm_exit_internal_error,
)

from .world import DEFAULT, PAGE, PRIVATE, World, errno_of, every_profile, load, refusal, store


def machine(world: World) -> tuple[Vm, Vcpu]:
    """A default VM with a page of memory at gpa 0."""
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(PAGE)
    vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
    return vm, vm.create_vcpu()


def test_halting_and_going_on(world: World) -> None:
    _, vcpu = machine(world)
    steps: list[int] = []

    def guest(cpu: GuestCpu) -> None:
        steps.append(1)
        cpu.halt()
        steps.append(2)
        cpu.halt()
        steps.append(3)

    assert vcpu.run(guest).reason is ExitReason.HLT
    assert steps == [1]
    assert vcpu.run().reason is ExitReason.HLT
    assert steps == [1, 2]
    assert vcpu.run().reason is ExitReason.HLT
    assert steps == [1, 2, 3]


def test_a_triple_fault(world: World) -> None:
    _, vcpu = machine(world)
    assert vcpu.run(lambda cpu: cpu.triple_fault()).reason is ExitReason.SHUTDOWN


def test_no_guest_and_no_memory(world: World) -> None:
    """The processor fetches at the reset vector, where nothing is: KVM can't emulate that."""
    vcpu = world.vm(DEFAULT).create_vcpu()
    exit_ = vcpu.run()
    assert exit_.reason is ExitReason.INTERNAL_ERROR
    assert exit_.details(kvm_exit_internal_error).suberror == KVM_INTERNAL_ERROR_EMULATION


def test_no_guest_but_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Unicorn isn't installed."""
    monkeypatch.setattr("gmemu.hw.x86.cpu.available", lambda: False)
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(PAGE)
    vm.set_user_memory_region2(0, 0xFFFFF000, PAGE, userspace_addr=memory.address)
    assert refusal(vm.create_vcpu().run) == "gmemu.run.no-engine"


class TestArgumentsAndSignals:
    def test_an_argument(self, world: World) -> None:
        _, vcpu = machine(world)
        assert refusal(lambda: vcpu.ioctl(KVM_RUN, 1)) == "kvm.run.argument"
        assert errno_of(lambda: vcpu.ioctl(KVM_RUN, bytearray(8))) == EINVAL

    def test_immediate_exit(self, world: World) -> None:
        _, vcpu = machine(world)
        ran: list[int] = []
        vcpu.immediate_exit = True
        assert refusal(lambda: vcpu.run(lambda cpu: ran.append(1))) == "kvm.run.immediate-exit"
        assert ran == []
        vcpu.immediate_exit = False
        assert vcpu.run().reason is ExitReason.HLT
        assert ran == [1]

    def test_immediate_exit_finishes_what_is_pending(self, world: World) -> None:
        """KVM_RUN with immediate_exit is how a VMM completes an exit without running the guest any further."""
        _, vcpu = machine(world)
        seen: list[bytes] = []

        def guest(cpu: GuestCpu) -> None:
            seen.append(cpu.load(0x10000, 4))

        exit_ = vcpu.run(guest)
        exit_.answer_mmio(b"done")
        vcpu.immediate_exit = True
        assert errno_of(vcpu.run) == EINTR
        vcpu.kvm_run[KVM_RUN_EXIT_OFFSET : KVM_RUN_EXIT_OFFSET + 32] = bytes(32)
        vcpu.immediate_exit = False
        assert vcpu.run().reason is ExitReason.HLT
        assert seen == [b"done"]

    def test_a_signal(self, world: World) -> None:
        _, vcpu = machine(world)
        world.door.task.pending_signals = 1
        assert refusal(lambda: vcpu.run(lambda cpu: None)) == "kvm.run.signal"
        assert world.kvm_vcpu(vcpu).exit_reason == ExitReason.INTR
        world.door.task.pending_signals = 0
        assert vcpu.run().reason is ExitReason.HLT

    def test_a_signal_after_an_exit_that_kvm_handled(self, world: World) -> None:
        _, vcpu = machine(world)
        steps: list[str] = []

        def guest(cpu: GuestCpu) -> None:
            world.door.task.pending_signals = 1
            cpu.store(0, b"x")
            steps.append("stored")

        assert refusal(lambda: vcpu.run(guest)) == "kvm.run.signal"
        assert steps == []
        world.door.task.pending_signals = 0
        assert vcpu.run().reason is ExitReason.HLT
        assert steps == ["stored"]


def test_an_exit_can_be_kept(world: World) -> None:
    """An exit tells what it was also after the next one."""
    vcpu = world.vm().create_vcpu()

    def guest(cpu: GuestCpu) -> None:
        cpu.load(0xC0000000, 4)
        cpu.load(0xD0000000, 8)

    first = vcpu.run(guest)
    first.answer_mmio(b"1234")
    second = vcpu.run()
    assert (first.mmio.phys_addr, first.mmio.len) == (0xC0000000, 4)
    assert (second.mmio.phys_addr, second.mmio.len) == (0xD0000000, 8)


class TestMmio:
    @every_profile
    def test_reads(self, world: World) -> None:
        vcpu = world.vm().create_vcpu()
        seen: list[bytes] = []

        def guest(cpu: GuestCpu) -> None:
            seen.append(cpu.load(0xC0000000, 4))
            seen.append(cpu.load(0xC0000010, 8))

        exit_ = vcpu.run(guest)
        assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0xC0000000, 4, 0)
        exit_.answer_mmio(b"\1\2\3\4")
        exit_ = vcpu.run()
        assert (exit_.mmio.phys_addr, exit_.mmio.len) == (0xC0000010, 8)
        exit_.answer_mmio(b"abcdefgh")
        assert vcpu.run().reason is ExitReason.HLT
        assert seen == [b"\1\2\3\4", b"abcdefgh"]

    def test_a_read_that_nobody_answers(self, world: World) -> None:
        vcpu = world.vm().create_vcpu()
        seen: list[bytes] = []
        assert vcpu.run(lambda cpu: seen.append(cpu.load(0xC0000000, 8))).reason is ExitReason.MMIO
        assert vcpu.run().reason is ExitReason.HLT
        assert seen == [bytes(8)]

    def test_writes(self, world: World) -> None:
        vcpu = world.vm().create_vcpu()
        exit_ = vcpu.run(lambda cpu: cpu.store(0xC0000004, b"\xaa\xbb"))
        assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0xC0000004, 2, 1)
        assert exit_.mmio.data == b"\xaa\xbb" + bytes(6)
        assert vcpu.run().reason is ExitReason.HLT

    @pytest.mark.parametrize(("length", "pieces"), [(8, [8]), (9, [8, 1]), (16, [8, 8]), (20, [8, 8, 4])])
    def test_more_than_eight_bytes_come_in_pieces(self, world: World, length: int, pieces: list[int]) -> None:
        vcpu = world.vm().create_vcpu()
        data = bytes(range(1, length + 1))
        seen: list[bytes] = []

        def guest(cpu: GuestCpu) -> None:
            cpu.store(0x1000, data)
            seen.append(cpu.load(0x2000, length))

        written, exit_ = b"", vcpu.run(guest)
        for number, piece in enumerate(pieces):
            assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0x1000 + 8 * number, piece, 1)
            written += exit_.mmio.data[:piece]
            exit_ = vcpu.run()
        assert written == data
        for number, piece in enumerate(pieces):
            assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0x2000 + 8 * number, piece, 0)
            exit_.answer_mmio(data[8 * number : 8 * number + piece])
            exit_ = vcpu.run()
        assert seen == [data]

    def test_an_access_that_runs_out_of_memory_half_way(self, world: World) -> None:
        """The part that is memory is memory; the rest is MMIO."""
        _, vcpu = machine(world)
        exit_ = vcpu.run(lambda cpu: cpu.store(PAGE - 2, b"abcd"))
        assert (exit_.mmio.phys_addr, exit_.mmio.data[:2]) == (PAGE, b"cd")
        assert vcpu.run().reason is ExitReason.HLT
        assert load(vcpu, PAGE - 2, 2) == b"ab"


class TestPortIo:
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_out_and_in(self, world: World, size: int) -> None:
        _, vcpu = machine(world)
        seen: list[bytes] = []

        def guest(cpu: GuestCpu) -> None:
            cpu.port_out(0x3F8, b"WXYZ"[:size])
            seen.append(cpu.port_in(0x60, size))

        exit_ = vcpu.run(guest)
        assert exit_.reason is ExitReason.IO
        assert (exit_.io.direction, exit_.io.size, exit_.io.port, exit_.io.count) == (1, size, 0x3F8, 1)
        assert exit_.io.data_offset == PAGE
        assert exit_.io_data() == b"WXYZ"[:size]
        exit_ = vcpu.run()
        assert (exit_.io.direction, exit_.io.port) == (0, 0x60)
        exit_.answer_io(b"abcd"[:size])
        assert vcpu.run().reason is ExitReason.HLT
        assert seen == [b"abcd"[:size]]


class TestHypercalls:
    def ask(self, world: World, *args: int, nr: int = KVM_HC_MAP_GPA_RANGE, enabled: bool = True) -> tuple[Vcpu, list[int]]:
        """A guest that makes the call once; its answers come into the list."""
        vm, vcpu = machine(world)
        if enabled:
            vm.enable_map_gpa_range()
        answers: list[int] = []
        world.door.load_guest(vcpu.fd, lambda cpu: answers.append(cpu.hypercall(nr, *args)))
        return vcpu, answers

    @pytest.mark.parametrize(("nr", "enabled"), [(KVM_HC_MAP_GPA_RANGE, False), (99, True), (1, True)])
    def test_what_kvm_doesnt_know(self, world: World, nr: int, enabled: bool) -> None:
        vcpu, answers = self.ask(world, 0, 1, 0, nr=nr, enabled=enabled)
        assert vcpu.run().reason is ExitReason.HLT
        assert answers == [-KVM_ENOSYS]

    @pytest.mark.parametrize(("gpa", "npages"), [(1, 1), (0, 0), (PAGE, (1 << 64) - 1), (0, (1 << 64) - 0)])
    def test_a_bad_range_never_leaves_the_kernel(self, world: World, gpa: int, npages: int) -> None:
        vcpu, answers = self.ask(world, gpa, npages & ((1 << 64) - 1), 0)
        assert vcpu.run().reason is ExitReason.HLT
        assert answers == [-EINVAL]

    @pytest.mark.parametrize("answer", [0, EAGAIN, EINVAL, EPERM, 0xFFFFFFFF])
    def test_user_spaces_answer_is_the_guests(self, world: World, answer: int) -> None:
        """complete_hypercall_exit() hands on whatever is there; only SNP's page-state changes are looked at."""
        vcpu, answers = self.ask(world, 0x40000, 3, 1 << 4)
        exit_ = vcpu.run()
        assert exit_.reason is ExitReason.HYPERCALL
        assert exit_.hypercall.nr == KVM_HC_MAP_GPA_RANGE
        assert exit_.hypercall.args == (0x40000, 3, 1 << 4, 0, 0, 0)
        assert exit_.hypercall.ret == 0
        exit_.answer_hypercall(answer)
        assert vcpu.run().reason is ExitReason.HLT
        assert answers == [answer]

    @every_profile
    def test_the_guest_asks_and_the_vmm_converts(self, world: World) -> None:
        vm = world.vm()
        gmem, memory = world.gmem(vm, 2), world.kvm.anonymous(2 * PAGE)
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem, userspace_addr=memory.address)
        vm.enable_map_gpa_range()
        vcpu = vm.create_vcpu()

        def guest(cpu: GuestCpu) -> None:
            assert cpu.map_gpa_range(PAGE, PAGE, private=True) == 0
            cpu.store(PAGE, b"secret")

        exit_ = vcpu.run(guest)
        gpa, npages, attributes = exit_.hypercall.args[:3]
        convert = gmem.set_memory_attributes if world.profile.in_place else vm.set_memory_attributes
        convert(gpa, npages * PAGE, PRIVATE if attributes & 1 << 4 else 0)
        exit_.answer_hypercall(0)
        assert vcpu.run().reason is ExitReason.HLT
        assert load(vcpu, PAGE, 6) == b"secret"


class TestExceptions:
    """A guest that ends in an exception of Python's, or of whoever pressed Ctrl-C, leaves the kernel as it should be."""

    @pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit, KernelError])
    def test_come_out_of_run(self, world: World, kind: type[BaseException]) -> None:
        _, vcpu = machine(world)

        def guest(cpu: GuestCpu) -> None:
            cpu.store(0, b"x")
            if kind is KernelError:
                world.door.close(999)
            raise kind

        with pytest.raises(kind):
            vcpu.run(guest)
        kvm_vcpu, rt = world.kvm_vcpu(vcpu), world.host.rt
        assert rt.current.name == "swapper"
        assert kvm_vcpu.cpu.runs_code  # the scripted one is gone
        assert vcpu.run().reason is ExitReason.INTERNAL_ERROR
        store(vcpu, 0, b"y")  # the vCPU's mutex was given back

    def test_inside_a_call_that_the_guest_caused(self, world: World) -> None:
        """What the guest's own function does to the host is a call like any other."""
        vm, vcpu = machine(world)
        gmem = vm.create_guest_memfd(PAGE, 1)
        mapping = gmem.mmap()

        with pytest.raises(BusError):
            vcpu.run(lambda cpu: mapping[0])
        assert load(vcpu, 0, 1) == bytes(1)

    def test_a_new_guest_owes_nothing_to_the_old_one(self, world: World) -> None:
        """An exit that failed, I/O that waits, a completion: all belong to the guest that is gone."""
        vm, vcpu = machine(world)
        assert vcpu.run(lambda cpu: cpu.load(0x8000, 16)).reason is ExitReason.MMIO
        assert load(vcpu, 0, 1) == bytes(1)
        vm.set_user_memory_region2(1, 0x10000, PAGE, userspace_addr=0x5000)
        assert refusal(lambda: vcpu.run(lambda cpu: cpu.load(0x10000, 1))) == "kvm.fault.hva"
        assert load(vcpu, 0, 1) == bytes(1)
        assert vcpu.run(lambda cpu: cpu.port_in(1)).reason is ExitReason.IO
        assert load(vcpu, 0, 1) == bytes(1)


def test_vcpus_take_turns(world: World) -> None:
    vm, first = machine(world)
    second = vm.create_vcpu(1)

    def guest(cpu: GuestCpu) -> None:
        value = cpu.load(0, 1)[0]
        while value < 10:
            cpu.store(0, bytes((value + 1,)))
            cpu.halt()
            value = cpu.load(0, 1)[0]

    vcpus = [first, second]
    for vcpu in vcpus:
        vcpu.run(guest)
    for turn in range(8):
        vcpus[turn % 2].run()
    assert load(first, 0, 1) == b"\x0a"

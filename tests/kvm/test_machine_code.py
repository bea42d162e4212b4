# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code on the emulated host: what comes out of KVM_RUN, in each processor mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmemu import ExitReason
from gmemu.uapi.kvm import KVM_INTERRUPT, KVM_SET_GUEST_DEBUG
from gmemu.uapi.kvm_x86 import kvm_debug_exit_arch, kvm_guest_debug

from .code import CODE, DATA, Machine, needs_unicorn
from .world import World

pytestmark = needs_unicorn


@pytest.fixture
def machine(world: World) -> Iterator[Machine]:
    """A default VM."""
    made = Machine(world)
    yield made
    made.close()


class TestRealMode:
    def test_ports_and_halt(self, machine: Machine) -> None:
        # mov al, 'A'; out 0x10, al; in al, 0x11; mov [0x2000], al; hlt
        machine.real_mode(bytes.fromhex("b041 e610 e411 a20020 f4"))
        exit_ = machine.run()
        assert exit_.reason is ExitReason.IO
        assert (exit_.io.direction, exit_.io.port, exit_.io.size, exit_.io.count) == (1, 0x10, 1, 1)
        assert exit_.io_data() == b"A"
        exit_ = machine.run()
        assert (exit_.io.direction, exit_.io.port) == (0, 0x11)
        exit_.answer_io(b"\x5a")
        assert machine.run().reason is ExitReason.HLT
        assert machine.get(0x2000, 1) == b"\x5a"
        assert machine.vcpu.regs.rip == CODE + 10

    def test_what_is_a_prefix_elsewhere(self, machine: Machine) -> None:
        machine.real_mode(bytes.fromhex("40 e710 f4"))  # inc ax (REX in 64-bit code); out 0x10, ax; hlt
        assert machine.run().io_data() == b"\x01\0"
        assert machine.run().reason is ExitReason.HLT

    def test_mmio(self, machine: Machine) -> None:
        machine.long_mode(bytes.fromhex("48c7c300003000c703785634128b4b04480fb65308830301f4"))
        exit_ = machine.run()
        assert exit_.reason is ExitReason.MMIO
        assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0x300000, 4, 1)
        assert exit_.mmio.data[:4] == bytes.fromhex("78563412")
        exit_ = machine.run()
        assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0x300004, 4, 0)
        exit_.answer_mmio(b"\x11\x22\x33\x44")
        exit_ = machine.run()
        assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0x300008, 1, 0)
        exit_.answer_mmio(b"\x99")
        exit_ = machine.run()  # add dword [rbx], 1: a load, then a store
        assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0x300000, 4, 0)
        exit_.answer_mmio(b"\xff\x00\x00\x00")
        exit_ = machine.run()
        assert (exit_.mmio.phys_addr, exit_.mmio.is_write, exit_.mmio.data[:4]) == (0x300000, 1, b"\x00\x01\x00\x00")
        assert machine.run().reason is ExitReason.HLT
        assert machine.vcpu.regs.rcx == 0x44332211
        assert machine.vcpu.regs.rdx == 0x99


class TestDevices:
    """MMIO: what one instruction accesses at once is one exit; two accesses never are."""

    @staticmethod
    def loads(machine: Machine, *expected: tuple[int, int]) -> int:
        """Each exit loads (address, length) and is answered by bytes that count up; then HLT.  RAX."""
        byte = 0
        for address, length in expected:
            exit_ = machine.run()
            assert exit_.reason is ExitReason.MMIO
            assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (address, length, 0)
            exit_.answer_mmio(bytes(range(byte, byte + length)))
            byte += length
        assert machine.run().reason is ExitReason.HLT
        return machine.vcpu.regs.rax

    def test_eight_bytes_are_one_load(self, machine: Machine) -> None:
        # mov rbx, 0x300000; mov rax, [rbx+8]; hlt
        machine.long_mode(bytes.fromhex("48c7c300003000 488b4308 f4"))
        assert self.loads(machine, (0x300008, 8)) == 0x0706050403020100

    def test_eight_bytes_are_one_store(self, machine: Machine) -> None:
        # mov rbx, 0x300000; mov [rbx+8], rbx; hlt
        machine.long_mode(bytes.fromhex("48c7c300003000 48895b08 f4"))
        exit_ = machine.run()
        assert (exit_.mmio.phys_addr, exit_.mmio.len, exit_.mmio.is_write) == (0x300008, 8, 1)
        assert exit_.mmio.data == (0x300000).to_bytes(8, "little")
        assert machine.run().reason is ExitReason.HLT

    def test_a_load_across_a_page_s_end_is_two(self, machine: Machine) -> None:
        # mov rbx, 0x300000; mov rax, [rbx+0xffd]; hlt
        machine.long_mode(bytes.fromhex("48c7c300003000 488b83fd0f0000 f4"))
        assert self.loads(machine, (0x300FFD, 3), (0x301000, 5)) == 0x0706050403020100

    def test_a_store_across_a_page_s_end_is_two(self, machine: Machine) -> None:
        # mov rbx, 0x300000; mov rax, 0x11223344; mov [rbx+0xffd], rax; hlt
        machine.long_mode(bytes.fromhex("48c7c300003000 48c7c044332211 488983fd0f0000 f4"))
        first, second = machine.run(), None
        assert (first.mmio.phys_addr, first.mmio.len, first.mmio.data[:3]) == (0x300FFD, 3, b"\x44\x33\x22")
        second = machine.run()
        assert (second.mmio.phys_addr, second.mmio.len, second.mmio.data[:5]) == (0x301000, 5, b"\x11\0\0\0\0")
        assert machine.run().reason is ExitReason.HLT

    def test_two_operands_side_by_side_are_two(self, machine: Machine) -> None:
        # mov rsi, 0x300004; mov rdi, 0x300000; cmpsd; hlt
        machine.long_mode(bytes.fromhex("48c7c604003000 48c7c700003000 a7 f4"))
        self.loads(machine, (0x300000, 4), (0x300004, 4))  # in which order, no processor promises

    def test_sixteen_bytes_go_by_eight(self, machine: Machine) -> None:
        # mov rbx, 0x300000; movups xmm0, [rbx]; movq rax, xmm0; hlt
        machine.long_mode(bytes.fromhex("48c7c300003000 0f1003 66480f7ec0 f4"))
        assert self.loads(machine, (0x300000, 8), (0x300008, 8)) == 0x0706050403020100

    def test_a_string_goes_element_by_element(self, machine: Machine) -> None:
        # mov rsi, 0x300000; mov rdi, DATA; mov ecx, 3; rep movsd; hlt
        machine.long_mode(bytes.fromhex("48c7c600003000 48c7c700000200 b903000000 f3a5 f4"))
        self.loads(machine, (0x300000, 4), (0x300004, 4), (0x300008, 4))
        assert machine.get(DATA, 12) == bytes(range(12))

    def test_a_load_after_code_that_ran_before(self, machine: Machine) -> None:
        """Code that ran freely is then gone through by single instructions."""
        # mov rbx, DATA; l: mov eax, [rbx]; mov ecx, [rbx+4]; add rbx, 0x2e0000; cmp rbx, 0x300000; je l; hlt
        machine.long_mode(bytes.fromhex("48c7c300000200 8b03 8b4b04 4881c300002e00 4881fb00003000 74eb f4"))
        self.loads(machine, (0x300000, 4), (0x300004, 4))

    def test_page_tables_that_go_are_the_end(self, machine: Machine) -> None:
        # mov cr3, rbx (0x300000); jmp $
        machine.long_mode(bytes.fromhex("48c7c300003000 0f22db ebfe"))
        exit_ = machine.run()
        assert exit_.reason is ExitReason.INTERNAL_ERROR

    def test_from_a_port_to_a_device_is_beyond_the_emulator(self, machine: Machine) -> None:
        # mov rdi, 0x300000; mov dx, 0x10; insb; hlt
        machine.long_mode(bytes.fromhex("48c7c700003000 66ba1000 6c f4"))
        assert machine.run().reason is ExitReason.INTERNAL_ERROR


class TestLongMode:
    def test_cpuid_msrs_and_the_time(self, machine: Machine) -> None:
        # mov ecx, 0x277; rdmsr; mov rbx, rax; rdtsc; mov rsi, rax; rdtsc; sub rax, rsi; hlt
        machine.long_mode(bytes.fromhex("b977020000 0f32 4889c3 0f31 4889c6 0f31 4829f0 f4"))
        assert machine.run().reason is ExitReason.HLT
        regs = machine.vcpu.regs
        assert regs.rbx == 0x00070406
        assert 0 < regs.rax < 1 << 32

    def test_an_unknown_msr_is_a_general_protection_fault(self, machine: Machine) -> None:
        machine.long_mode(bytes.fromhex("b9cdab0000 0f32 f4"))
        machine.handler64(13, CODE + 0x100)
        machine.put(CODE + 0x100, bytes.fromhex("5b 488b0c24 f4"))  # pop rbx (error code); mov rcx, [rsp] (rip); hlt
        assert machine.run().reason is ExitReason.HLT
        assert (machine.vcpu.regs.rbx, machine.vcpu.regs.rcx) == (0, CODE + 5)

    def test_a_page_fault_tells_the_byte(self, machine: Machine) -> None:
        # mov rbx, 0x40000123 (beyond what is mapped); mov [rbx], eax; hlt
        machine.long_mode(bytes.fromhex("bb23010040 8903 f4"))
        machine.handler64(14, CODE + 0x100)
        machine.put(CODE + 0x100, bytes.fromhex("59 0f20d0 48833c2400 f4"))  # pop rcx; mov rax, cr2; hlt
        assert machine.run().reason is ExitReason.HLT
        assert (machine.vcpu.regs.rcx, machine.vcpu.regs.rax) == (2, 0x40000123)

    def test_breakpoints_and_iret(self, machine: Machine) -> None:
        machine.long_mode(bytes.fromhex("cc b807000000 cd80 0f0b f4"))
        for vector, code in ((3, "ffc3 48cf"), (0x80, "83c310 48cf"), (6, "48830424 02 81c300010000 48cf")):
            machine.handler64(vector, CODE + 0x100 + vector * 16)
            machine.put(CODE + 0x100 + vector * 16, bytes.fromhex(code))
        assert machine.run().reason is ExitReason.HLT
        assert machine.vcpu.regs.rbx == 0x111

    def test_a_triple_fault(self, machine: Machine) -> None:
        machine.long_mode(bytes.fromhex("0f0b"))
        assert machine.run().reason is ExitReason.SHUTDOWN

    def test_code_changed_by_the_host(self, machine: Machine) -> None:
        machine.long_mode(bytes.fromhex("b001 e610 ebfa"))
        assert machine.run().io_data() == b"\x01"
        machine.put(CODE, bytes.fromhex("b002 e710 ebfa"))
        assert machine.run().io_data() == b"\x02\0\0\0"

    def test_code_changed_by_the_guest(self, machine: Machine) -> None:
        # mov byte [rip+2], 0xf4; jmp +0; nop (becomes hlt); ud2
        machine.long_mode(bytes.fromhex("c60502000000f4 eb00 90 0f0b"))
        assert machine.run().reason is ExitReason.HLT

    def test_an_interrupt_waits_for_the_guest(self, machine: Machine) -> None:
        """KVM_INTERRUPT while IF is 0: taken after STI and the instruction that follows it."""
        machine.long_mode(bytes.fromhex("b901000000 fb ffc1 ffc1 f4"))  # mov ecx, 1; sti; inc ecx; inc ecx; hlt
        machine.handler64(0x40, CODE + 0x100)
        machine.put(CODE + 0x100, bytes.fromhex("89ca 48cf"))  # mov edx, ecx; iretq
        machine.vcpu.ioctl(KVM_INTERRUPT, bytearray((0x40).to_bytes(4, "little")))
        assert machine.run().reason is ExitReason.HLT
        assert (machine.vcpu.regs.rcx, machine.vcpu.regs.rdx) == (3, 2)

    def test_strings_to_a_port(self, machine: Machine) -> None:
        machine.put(DATA, b"abc")
        # mov esi, DATA; mov edx, 0x3f8; mov ecx, 3; rep outsb; hlt
        machine.long_mode(bytes.fromhex("be00000200 baf8030000 b903000000 f36e f4"))
        assert [machine.run().io_data() for _ in range(3)] == [b"a", b"b", b"c"]
        assert machine.run().reason is ExitReason.HLT
        assert (machine.vcpu.regs.rcx, machine.vcpu.regs.rsi) == (0, DATA + 3)

    def test_strings_from_a_port(self, machine: Machine) -> None:
        # mov edi, DATA+0xffe; mov edx, 0x3f8; mov ecx, 4; rep insb; hlt
        machine.long_mode(bytes.fromhex("bffe0f0200 baf8030000 b904000000 f36c f4"))
        exit_ = machine.run()
        assert exit_.io.count == 2
        exit_.answer_io(b"xy")
        exit_ = machine.run()
        assert exit_.io.count == 2
        exit_.answer_io(b"zw")
        assert machine.run().reason is ExitReason.HLT
        assert machine.get(DATA + 0xFFE, 4) == b"xyzw"


class TestBreakpoints:
    """Debug registers, of user space by KVM_SET_GUEST_DEBUG or the guest's own."""

    @staticmethod
    def debug(machine: Machine, address: int, dr7: int, control: int = 1 | 1 << 17) -> None:
        """KVM_SET_GUEST_DEBUG, hardware breakpoints, with `address` in DR0."""
        args = kvm_guest_debug(control=control, debugreg=(address, 0, 0, 0, 0, 0, 0, dr7))
        machine.vcpu.ioctl(KVM_SET_GUEST_DEBUG, bytearray(args.pack()))

    @staticmethod
    def stopped(machine: Machine) -> tuple[int, int]:
        """Where the guest is, and DR6's low bits, after KVM_EXIT_DEBUG."""
        exit_ = machine.run()
        assert exit_.reason is ExitReason.DEBUG
        details = exit_.details(kvm_debug_exit_arch)
        return details.pc - CODE, details.dr6 & 0xE00F

    def test_a_store_is_seen_after_it(self, machine: Machine) -> None:
        # mov rbx, DATA; mov eax, [rbx]; mov [rbx+6], rax; hlt
        machine.long_mode(bytes.fromhex("48c7c300000200 8b03 48894306 f4"))
        self.debug(machine, DATA + 8, 0x401 | 1 << 16 | 3 << 18)  # four bytes, stores only
        assert self.stopped(machine) == (13, 1)
        assert machine.run().reason is ExitReason.HLT

    def test_a_load_counts_if_it_is_asked_for(self, machine: Machine) -> None:
        # mov rbx, DATA; mov eax, [rbx]; mov [rbx+8], rax; hlt
        machine.long_mode(bytes.fromhex("48c7c300000200 8b03 48894308 f4"))
        self.debug(machine, DATA, 0x401 | 3 << 16)
        assert self.stopped(machine) == (9, 1)
        assert machine.run().reason is ExitReason.HLT

    def test_each_instruction_of_any_kind_is_one_step(self, machine: Machine) -> None:
        # xor eax, eax; cpuid; mov rbx, 0x300000; mov eax, [rbx]; nop; hlt
        machine.long_mode(bytes.fromhex("31c0 0fa2 48c7c300003000 8b03 90 f4"))
        self.debug(machine, 0, 0x400, 1 | 2)
        assert [self.stopped(machine) for _ in range(3)] == [(2, 0x4000), (4, 0x4000), (11, 0x4000)]
        exit_ = machine.run()
        assert exit_.reason is ExitReason.MMIO
        exit_.answer_mmio(bytes(4))
        assert [self.stopped(machine) for _ in range(2)] == [(13, 0x4000), (14, 0x4000)]

    def test_guarded_debug_registers(self, machine: Machine) -> None:
        machine.long_mode(bytes.fromhex("90 0f21c0 f4"))  # nop; mov rax, dr0; hlt
        self.debug(machine, 0, 0x400 | 1 << 13)
        assert self.stopped(machine) == (1, 1 << 13)
        self.debug(machine, 0, 0, 0)
        assert machine.run().reason is ExitReason.HLT

    def test_a_guest_s_own_watchpoint_is_its_own_exception(self, machine: Machine) -> None:
        # mov rax, DATA; mov dr0, rax; mov ecx, 0x10401; mov dr7, rcx; mov [rax], al; hlt
        machine.long_mode(bytes.fromhex("48c7c000000200 0f23c0 b901040100 0f23f9 8800 f4"))
        machine.handler64(1, CODE + 0x100)
        machine.put(CODE + 0x100, bytes.fromhex("0f21f3 488b0c24 f4"))  # mov rbx, dr6; mov rcx, [rsp]; hlt
        assert machine.run().reason is ExitReason.HLT
        assert (machine.vcpu.regs.rbx & 0xE00F, machine.vcpu.regs.rcx) == (1, CODE + 20)

    def test_a_guest_s_own_breakpoint_is_passed_after_it(self, machine: Machine) -> None:
        # mov rax, the nop; mov dr0, rax; mov ecx, 0x401; mov dr7, rcx; nop; hlt
        machine.long_mode(bytes.fromhex("48c7c012a00000 0f23c0 b901040000 0f23f9 90 f4"))
        machine.handler64(1, CODE + 0x100)
        machine.put(CODE + 0x100, bytes.fromhex("48ffc3 48cf"))  # inc rbx; iretq
        assert machine.run().reason is ExitReason.HLT
        assert (machine.vcpu.regs.rbx, machine.vcpu.regs.rip) == (1, CODE + 20)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of machine code for the tests: a VM with memory at gpa 0, page tables that map it one to one, and modes."""

from __future__ import annotations

import pytest

from gmemu import Exit, Mapping, Vcpu, Vm, VmType
from gmemu.uapi.kvm_x86 import kvm_dtable, kvm_regs, kvm_segment

from .world import World

PAGE = 4096
PML4, PDPT, PD, GDT, IDT, TSS, STACK, CODE, DATA = (n * PAGE for n in (1, 2, 3, 4, 5, 6, 9, 10, 32))
SIZE = 2 << 20

needs_unicorn = pytest.mark.skipif(
    not __import__("gmemu.hw.x86.engine", fromlist=["available"]).available(), reason="Unicorn isn't installed"
)


class Machine:
    """A VM of `vm_type` with 2 MiB at gpa 0 and one vCPU."""

    def __init__(self, world: World, vm_type: VmType = VmType.DEFAULT) -> None:
        self.world = world
        self.vm: Vm = world.vm(vm_type)
        self.memory: Mapping = world.kvm.anonymous(SIZE)
        self.vm.set_user_memory_region2(0, 0, SIZE, userspace_addr=self.memory.address)
        self.vcpu: Vcpu = self.vm.create_vcpu()

    def put(self, address: int, data: bytes) -> None:
        """Write guest memory from outside."""
        self.memory[address : address + len(data)] = data

    def get(self, address: int, length: int) -> bytes:
        """Read it."""
        return self.memory[address : address + length]

    def real_mode(self, code: bytes, at: int = CODE) -> None:
        """16-bit code at `at`, flat segments of 64 KiB at 0, the stack below `STACK`."""
        self.put(at, code)
        sregs = self.vcpu.sregs
        sregs.cs.base = sregs.cs.selector = 0
        self.vcpu.sregs = sregs
        self.vcpu.regs = kvm_regs(rip=at, rflags=2, rsp=STACK)

    def protected_mode(self, code: bytes, at: int = CODE) -> None:
        """Flat 32-bit code without paging."""
        self.put(at, code)
        sregs = self.vcpu.sregs
        flat = {"limit": 0xFFFFFFFF, "present": 1, "db": 1, "s": 1, "g": 1}
        sregs.cs = kvm_segment(selector=8, type=11, **flat)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, kvm_segment(selector=16, type=3, **flat))
        sregs.cr0 = 0x11
        self._tables(sregs)
        self.vcpu.sregs = sregs
        self.put(GDT + 8, (0x00CF9B000000FFFF).to_bytes(8, "little") + (0x00CF93000000FFFF).to_bytes(8, "little"))
        self.vcpu.regs = kvm_regs(rip=at, rflags=2, rsp=STACK)

    def long_mode(self, code: bytes, at: int = CODE) -> None:
        """64-bit code at ring 0, 1 GiB mapped one to one by pages of 2 MiB."""
        self.put(at, code)
        self.put(PML4, (PDPT | 7).to_bytes(8, "little"))
        self.put(PDPT, (PD | 7).to_bytes(8, "little"))
        self.put(PD, b"".join((i << 21 | 0x87).to_bytes(8, "little") for i in range(512)))
        sregs = self.vcpu.sregs
        sregs.cs = kvm_segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, s=1, l=1, g=1)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, kvm_segment(limit=0xFFFFFFFF, selector=16, type=3, present=1, db=1, s=1, g=1))
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80010011, PML4, 0x620, 0xD00
        self._tables(sregs)
        sregs.tr = kvm_segment(base=TSS, limit=0x67, selector=24, type=11, present=1)
        self.vcpu.sregs = sregs
        self.put(GDT + 8, (0x00AF9B000000FFFF).to_bytes(8, "little") + (0x00CF93000000FFFF).to_bytes(8, "little"))
        self.vcpu.regs = kvm_regs(rip=at, rflags=2, rsp=STACK)

    @staticmethod
    def _tables(sregs: object) -> None:
        vars(sregs).update(gdt=kvm_dtable(base=GDT, limit=0xFF), idt=kvm_dtable(base=IDT, limit=0xFFF))

    def handler64(self, vector: int, address: int, gate: int = 0x8E, ist: int = 0) -> None:
        """A gate of the long-mode IDT."""
        low = address & 0xFFFF | 8 << 16 | ist << 32 | gate << 40 | (address >> 16 & 0xFFFF) << 48
        self.put(IDT + 16 * vector, low.to_bytes(8, "little") + (address >> 32).to_bytes(8, "little"))

    def handler32(self, vector: int, address: int, gate: int = 0x8E) -> None:
        """A gate of the 32-bit IDT."""
        self.put(IDT + 8 * vector, (address & 0xFFFF | 8 << 16 | gate << 40 | address >> 16 << 48).to_bytes(8, "little"))

    def run(self) -> Exit:
        """KVM_RUN."""
        return self.vcpu.run()

    def close(self) -> None:
        """Nothing is left."""
        self.vcpu.close()
        self.vm.close()
        self.memory.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""x86 machine code for a probe's guest: flat 32-bit protected mode without paging, so that an address is a gpa below 4 GiB.

Each operation of `guests` becomes a few instructions.  What was loaded, and what a hypercall answered, goes out by OUT to
`REPORT_PORT`.  The code ends in HLT, and halts again when it's run further.
"""

from __future__ import annotations

from ..api import Vcpu
from ..uapi.kvm_x86 import kvm_regs, kvm_segment
from .guests import REPORT_PORT, Hypercall, Load, Op, Out, Store, lower

__all__ = ["assemble", "enter"]

_OPERAND_SIZE = b"\x66"
_MOV_REG = {"eax": 0xB8, "ecx": 0xB9, "edx": 0xBA, "ebx": 0xBB, "esi": 0xBE}
_HYPERCALL_ARGS = ("ebx", "ecx", "edx", "esi")
_VMMCALL = b"\x0f\x01\xd9"
_HALT = b"\xf4\xeb\xfd"
"""hlt, and a jump back to it."""
_CR0_PE_ET = 0x11


def _mov(register: str, value: int) -> bytes:
    return bytes((_MOV_REG[register],)) + (value & 0xFFFFFFFF).to_bytes(4, "little")


def _sized(size: int, byte_opcode: int) -> bytes:
    """An opcode for 1, 2 or 4 bytes: the byte form, or the next opcode, with a prefix for 2."""
    return {1: bytes((byte_opcode,)), 2: _OPERAND_SIZE + bytes((byte_opcode + 1,)), 4: bytes((byte_opcode + 1,))}[size]


def _address(gpa: int) -> bytes:
    if gpa >> 32:
        raise ValueError(f"a 32-bit guest can't reach gpa {gpa:#x}")
    return gpa.to_bytes(4, "little")


def _out(port: int, size: int) -> bytes:
    return _mov("edx", port) + _sized(size, 0xEE)


def _assemble(op: Op) -> bytes:
    match op:
        case Load(gpa, length):
            return _sized(length, 0xA0) + _address(gpa) + _out(REPORT_PORT, length)
        case Store(gpa, data):
            return _mov("eax", int.from_bytes(data, "little")) + _sized(len(data), 0xA2) + _address(gpa)
        case Hypercall(nr, args):
            loads = b"".join(_mov(r, a) for r, a in zip(_HYPERCALL_ARGS, args, strict=False))
            return loads + _mov("eax", nr) + _VMMCALL + _out(REPORT_PORT, 4)
        case Out(port, data):
            return _mov("eax", int.from_bytes(data, "little")) + _out(port, len(data))


def assemble(ops: list[Op]) -> bytes:
    """The program."""
    return b"".join(_assemble(op) for op in lower(ops)) + _HALT


def enter(vcpu: Vcpu, address: int) -> None:
    """Set the registers so that the vCPU starts at `address` in flat 32-bit protected mode."""
    sregs = vcpu.sregs
    data = kvm_segment(limit=0xFFFFFFFF, selector=0x10, type=3, present=1, db=1, s=1, g=1)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, data)
    sregs.cs = kvm_segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, db=1, s=1, g=1)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _CR0_PE_ET, 0, 0, 0
    vcpu.sregs = sregs
    vcpu.regs = kvm_regs(rip=address, rflags=2)

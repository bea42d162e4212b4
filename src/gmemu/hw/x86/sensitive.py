# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that a hypervisor intercepts: where they may stand in a page of code, and what one of them says.

The engine can't be stopped precisely within an instruction.  It can before one whose address it knows.  So each page is
looked through before it's first executed.  What only looks like such an instruction (a part of another one) costs nothing:
no instruction begins there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

__all__ = ["Insn", "Kind", "candidates", "decode"]


class Kind(Enum):
    """What an intercepted instruction does."""

    IN = auto()
    OUT = auto()
    INS = auto()
    OUTS = auto()
    HLT = auto()
    CPUID = auto()
    RDMSR = auto()
    WRMSR = auto()
    RDTSC = auto()
    RDTSCP = auto()
    RDPMC = auto()
    VMCALL = auto()
    VMMCALL = auto()
    XSETBV = auto()
    MONITOR = auto()
    MWAIT = auto()
    WBINVD = auto()
    FROM_CR = auto()
    TO_CR = auto()
    FROM_DR = auto()
    TO_DR = auto()
    OPENING = auto()
    """STI, POPF or IRET: the engine carries it out, but interrupts may be taken after it."""


class Insn(NamedTuple):
    """One of them.  Sizes in bytes; `operand` is a port given as a constant (-1: DX), or a control or debug register;
    `register` the general register that goes with the latter; `segment` names an override."""

    kind: Kind
    length: int
    size: int = 0
    address_size: int = 0
    operand: int = -1
    register: int = 0
    repeated: bool = False
    segment: str = ""


_PREFIXES = frozenset(b"\x66\x67\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65" + bytes(range(0x40, 0x50)))
_SEGMENT_PREFIXES = {0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x26: "es", 0x64: "fs", 0x65: "gs"}
_OPCODES = re.compile(
    rb"[\x6c-\x6f\x9d\xcf\xe4-\xe7\xec-\xef\xf4\xfb]"
    rb"|\x0f(?=[\x08\x09\x20-\x23\x30-\x33\xa2]|\x01[\xc1\xc8\xc9\xd1\xd9\xf9])"
)
_SECOND = frozenset(b"\x01\x08\x09\x20\x21\x22\x23\x30\x31\x32\x33\xa2")

_TWO_BYTES = {
    0x08: Kind.WBINVD,
    0x09: Kind.WBINVD,
    0x30: Kind.WRMSR,
    0x31: Kind.RDTSC,
    0x32: Kind.RDMSR,
    0x33: Kind.RDPMC,
    0xA2: Kind.CPUID,
}
_GROUP_7 = {
    0xC1: Kind.VMCALL,
    0xC8: Kind.MONITOR,
    0xC9: Kind.MWAIT,
    0xD1: Kind.XSETBV,
    0xD9: Kind.VMMCALL,
    0xF9: Kind.RDTSCP,
}
_REGISTER_MOVES = {0x20: Kind.FROM_CR, 0x21: Kind.FROM_DR, 0x22: Kind.TO_CR, 0x23: Kind.TO_DR}


def candidates(page: bytes) -> Iterator[int]:
    """Offsets in `page` where one may begin, its prefixes included.  They may be negative: it began on the page before."""
    for match in _OPCODES.finditer(page):
        at = match.start()
        yield at
        while at > 0 and page[at - 1] in _PREFIXES and match.start() - at < 8:
            at -= 1
            yield at
    if page[0] in _SECOND:
        yield -1
    if page[-1] == 0x0F or page[-2:] == b"\x0f\x01":
        yield len(page) - (1 if page[-1] == 0x0F else 2)


def decode(code: bytes, bits: int) -> Insn | None:
    """The intercepted instruction at the start of `code`, in a segment of 16, 32 or 64 bits; None if it isn't one."""
    at, rex, small, address, repeated, segment = 0, 0, False, False, False, ""
    while at < len(code) and (code[at] in _PREFIXES and not (bits != 64 and 0x40 <= code[at] < 0x50)):
        byte = code[at]
        rex = byte if 0x40 <= byte < 0x50 else 0
        small |= byte == 0x66
        address |= byte == 0x67
        repeated |= byte in (0xF2, 0xF3)
        segment = _SEGMENT_PREFIXES.get(byte, segment)
        at += 1
    if at + 1 > len(code):
        return None
    opcode = code[at]
    natural = 2 if (bits == 16) != small else 4
    address_size = {16: 4 if address else 2, 32: 2 if address else 4, 64: 4 if address else 8}[bits]
    size = natural if opcode & 1 else 1
    if opcode in (0xE4, 0xE5, 0xE6, 0xE7):
        return Insn(Kind.OUT if opcode & 2 else Kind.IN, at + 2, size, operand=code[at + 1])
    if opcode in (0xEC, 0xED, 0xEE, 0xEF):
        return Insn(Kind.OUT if opcode & 2 else Kind.IN, at + 1, size)
    if opcode in (0x6C, 0x6D, 0x6E, 0x6F):
        kind = Kind.OUTS if opcode & 2 else Kind.INS
        return Insn(kind, at + 1, size, address_size, repeated=repeated, segment=segment)
    if opcode in (0x9D, 0xCF, 0xFB):
        return Insn(Kind.OPENING, at + 1)
    if opcode == 0xF4:
        return Insn(Kind.HLT, at + 1)
    if opcode != 0x0F or at + 2 > len(code):
        return None
    second = code[at + 1]
    if second in _TWO_BYTES:
        return Insn(_TWO_BYTES[second], at + 2)
    if at + 3 > len(code):
        return None
    if second == 1 and code[at + 2] in _GROUP_7:
        return Insn(_GROUP_7[code[at + 2]], at + 3)
    if second in _REGISTER_MOVES:
        modrm = code[at + 2]
        operand = (modrm >> 3 & 7) | (rex & 4) << 1
        operand |= 8 if 0xF0 in code[:at] else 0  # AMD's way to CR8 without REX
        return Insn(_REGISTER_MOVES[second], at + 3, operand=operand, register=(modrm & 7) | (rex & 1) << 3)
    return None

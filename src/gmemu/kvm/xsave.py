# SPDX-License-Identifier: GPL-2.0-or-later
"""The standard form of XSAVE's area, for x87 and SSE (Intel SDM 1, section 13.4)."""

from __future__ import annotations

from struct import pack, unpack_from

from ..hw.registers import Registers
from ..uapi.kvm_x86 import kvm_fpu

__all__ = ["pack_xsave", "unpack_xsave"]

_SIZE = 4096
_MXCSR_MASK = 0xFFFF
_INITIAL_FCW, _INITIAL_MXCSR = 0x37F, 0x1F80
_X87 = ("fcw", "fsw", "ftwx", "last_opcode", "last_ip", "last_dp", "fpr")


def pack_xsave(fpu: kvm_fpu, registers: Registers) -> bytes:
    """The area; a component in its initial state is told as absent, as XSAVE does that tracks what is in use."""
    head = pack("<HHBxHQQII", fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp, fpu.mxcsr, _MXCSR_MASK)
    legacy = (head + fpu.fpr + fpu.xmm).ljust(512, b"\0")
    initial = kvm_fpu(fcw=_INITIAL_FCW)
    in_use = int(any(getattr(fpu, name) != getattr(initial, name) for name in _X87)) | any(fpu.xmm) << 1
    return (legacy + (in_use & (registers.xcr0 | 1)).to_bytes(8, "little")).ljust(_SIZE, b"\0")


def unpack_xsave(region: bytes) -> kvm_fpu:
    """What the area says; a component that isn't there has its initial state."""
    present = int.from_bytes(region[512:520], "little")
    fcw, fsw, ftwx, opcode, ip, dp, mxcsr = unpack_from("<HHBxHQQI", region)
    fpu = kvm_fpu(fcw=_INITIAL_FCW, mxcsr=_INITIAL_MXCSR)
    if present & 1:
        fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp = fcw, fsw, ftwx, opcode, ip, dp
        fpu.fpr = region[32:160]
    if present & 2:
        fpu.xmm = region[160:416]
        fpu.mxcsr = mxcsr
    return fpu

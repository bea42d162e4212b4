# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's processor state (QEMU's CPUX86State, as Unicorn 2.1 lays it out), to and from the structures of the uAPI.

Unicorn has no call that sets a segment's hidden part, and a context saved by it is the whole state.  So state goes in and
out by contexts.  Where each field lies was found by setting registers one by one and looking for them; a test does
that again.
"""

from __future__ import annotations

from struct import Struct as Codec
from struct import pack_into, unpack_from

from ...uapi.kvm_x86 import kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs
from ..registers import ENGINE_MSRS

__all__ = ["Env"]

# Offsets in bytes.
_EIP, _EFLAGS, _CC_SRC, _CC_OP, _DF, _HFLAGS = 128, 136, 152, 168, 172, 176
_SEGS, _LDT, _TR, _GDT, _IDT = 184, 328, 352, 376, 400
_CR, _EFER, _FPSTT, _FPUS, _FPUC, _FPTAGS, _FPREGS = 424, 592, 600, 608, 610, 612, 624
_MXCSR, _XMM, _XCR0 = 816, 824, 4904
_ERROR_CODE, _IS_INT, _DR, _OLD_EXCEPTION = 5384, 5388, 5400, 5496
_MSRS = {
    "sysenter_cs": 4800,
    "sysenter_esp": 4808,
    "sysenter_eip": 4816,
    "star": 4824,
    "lstar": 4840,
    "cstar": 4848,
    "fmask": 4856,
    "kernelgsbase": 4864,
    "tsc_aux": 4896,
}

_REGS = Codec("<18Q")
_SEG = Codec("<I4xQII")
_ORDER = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_CC_OP_EFLAGS = 1
_CC_MASK = 0x8D5
_DF_MASK = 0x400

# hflags
HF_CPL_MASK = 3
HF_INHIBIT_IRQ = 1 << 3
_CS32, _SS32, _ADDSEG, _PE, _LMA, _CS64, _OSFXSR, _SMAP = (1 << n for n in (4, 5, 6, 7, 14, 15, 22, 23))
_COMPUTED = HF_CPL_MASK | HF_INHIBIT_IRQ | _CS32 | _SS32 | _ADDSEG | _PE | 7 << 9 | _LMA | _CS64 | _OSFXSR | _SMAP


class Env:
    """One saved context.  `state` is the bytes of the processor's state within it."""

    def __init__(self, state: memoryview) -> None:
        self.state = state

    # Single fields

    def _u64(self, offset: int) -> int:
        value: int = unpack_from("<Q", self.state, offset)[0]
        return value

    def _u32(self, offset: int) -> int:
        value: int = unpack_from("<I", self.state, offset)[0]
        return value

    @property
    def rip(self) -> int:
        """The instruction that is next."""
        return self._u64(_EIP)

    @property
    def hflags(self) -> int:
        """The mode bits that the engine translates by."""
        return self._u32(_HFLAGS)

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.state[_HFLAGS] & HF_CPL_MASK

    @property
    def code_bits(self) -> int:
        """16, 32 or 64: what the code segment says."""
        hflags = self._u32(_HFLAGS)
        return 64 if hflags & _CS64 else 32 if hflags & _CS32 else 16

    @property
    def shadow(self) -> int:
        """Whether interrupts are held off for one instruction."""
        return self.state[_HFLAGS] >> 3 & 1

    @property
    def backwards(self) -> bool:
        """RFLAGS.DF: strings go down."""
        return self._u32(_DF) != 1

    def segment_base(self, name: str) -> int:
        """The base that an address in the segment gets: none in 64-bit code, but for FS and GS."""
        return 0 if self.code_bits == 64 and name not in ("fs", "gs") else self.segment(name)[1]

    @property
    def error_code(self) -> int:
        """Of the exception that the engine raised last."""
        return self._u32(_ERROR_CODE)

    @property
    def is_int(self) -> bool:
        """Whether that exception was an INT n, INT3 or INTO instruction."""
        return bool(self._u32(_IS_INT))

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4."""
        return self._u64(_CR + 8 * number)

    @property
    def efer(self) -> int:
        """EFER."""
        return self._u64(_EFER)

    @property
    def rflags_system(self) -> int:
        """RFLAGS without the arithmetic flags, which the engine may not have computed."""
        return self._u64(_EFLAGS)

    def set_control(self, number: int, value: int) -> None:
        """Write CR2 alone (the others bear on hflags; see `put_sregs`)."""
        pack_into("<Q", self.state, _CR + 8 * number, value)

    def put_control(self, number: int, value: int) -> None:
        """Write CR0 or CR4, with what follows for EFER.LMA and the mode."""
        if number == 0:
            value |= 0x10
            paging = bool(value & 1 << 31)
            efer = self.efer & ~(1 << 10)
            efer |= 1 << 10 if paging and efer & 1 << 8 else 0
            pack_into("<Q", self.state, _EFER, efer)
        self.set_control(number, value)
        self.compute_mode()

    def put_efer(self, value: int) -> None:
        """Write EFER; LMA stays as it is."""
        pack_into("<Q", self.state, _EFER, value & ~(1 << 10) | self.efer & 1 << 10)

    def gpr(self, number: int) -> int:
        """General register by its number in instructions (0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP...)."""
        return self._u64(8 * number)

    def set_gpr(self, number: int, value: int) -> None:
        """Write one general register."""
        pack_into("<Q", self.state, 8 * number, value & (1 << 64) - 1)

    def set_rip(self, value: int) -> None:
        """Write RIP."""
        pack_into("<Q", self.state, _EIP, value & (1 << 64) - 1)

    def clear_shadow(self) -> None:
        """An instruction retired: interrupts are no longer held off by the STI or MOV SS before."""
        pack_into("<I", self.state, _HFLAGS, self._u32(_HFLAGS) & ~HF_INHIBIT_IRQ)

    def set_xcr0(self, value: int) -> None:
        """Write XCR0."""
        pack_into("<Q", self.state, _XCR0, value)

    def forget_exception(self) -> None:
        """The last exception was delivered, or given up: the next isn't one within it."""
        pack_into("<i", self.state, _OLD_EXCEPTION, -1)

    def debug(self, number: int) -> int:
        """DR0 to DR7."""
        return self._u64(_DR + 8 * number)

    def set_debug(self, number: int, value: int) -> None:
        """Write DR0 to DR7."""
        pack_into("<Q", self.state, _DR + 8 * number, value)

    def segment(self, name: str) -> tuple[int, int, int, int]:
        """Selector, base, limit (bytes) and attributes (as in a descriptor's second half) of a segment register."""
        selector, base, limit, flags = _SEG.unpack_from(self.state, _SEGS + 24 * _SEGMENTS.index(name))
        return selector, base, limit, flags

    def table(self, name: str) -> tuple[int, int, int]:
        """Base, limit (bytes) and attributes of gdt, idt, ldt or tr."""
        at = {"gdt": _GDT, "idt": _IDT, "ldt": _LDT, "tr": _TR}[name]
        _, base, limit, flags = _SEG.unpack_from(self.state, at)
        return base, limit, flags

    # Groups

    def get_regs(self, rflags: int) -> kvm_regs:
        """General registers; RFLAGS is given, as the engine computes it when asked."""
        values = _REGS.unpack_from(self.state, 0)
        return kvm_regs(**dict(zip(_ORDER, values[:16], strict=True)), rip=values[16], rflags=rflags)

    def put_regs(self, regs: kvm_regs) -> None:
        """General registers, RIP and RFLAGS."""
        _REGS.pack_into(self.state, 0, *(getattr(regs, name) for name in _ORDER), regs.rip, 0)
        self.put_rflags(regs.rflags)

    def put_rflags(self, rflags: int) -> None:
        """RFLAGS: arithmetic flags and direction are kept apart from the others."""
        pack_into("<Q", self.state, _EFLAGS, rflags & ~(_CC_MASK | _DF_MASK) | 2)
        pack_into("<Q", self.state, _CC_SRC, rflags & _CC_MASK)
        pack_into("<Ii", self.state, _CC_OP, _CC_OP_EFLAGS, -1 if rflags & _DF_MASK else 1)

    def get_sregs(self, old: kvm_sregs) -> kvm_sregs:
        """Segments, tables and control registers."""
        state = self.state
        segments = {name: _segment(state, _SEGS + 24 * i) for i, name in enumerate(_SEGMENTS)}
        gdt, idt = (_SEG.unpack_from(state, at) for at in (_GDT, _IDT))
        return kvm_sregs(
            **segments,
            tr=_segment(state, _TR),
            ldt=_segment(state, _LDT),
            gdt=kvm_dtable(base=gdt[1], limit=gdt[2] & 0xFFFF),
            idt=kvm_dtable(base=idt[1], limit=idt[2] & 0xFFFF),
            cr0=self.control(0),
            cr2=self.control(2),
            cr3=self.control(3),
            cr4=self.control(4),
            cr8=old.cr8,
            efer=self.efer,
            apic_base=old.apic_base,
            interrupt_bitmap=old.interrupt_bitmap,
        )

    def put_sregs(self, sregs: kvm_sregs) -> None:
        """Segments, tables and control registers, with the mode that they add up to."""
        state = self.state
        for i, name in enumerate(_SEGMENTS):
            self.put_segment(i, getattr(sregs, name))
        for at, segment in ((_TR, sregs.tr), (_LDT, sregs.ldt)):
            _SEG.pack_into(state, at, segment.selector, segment.base, segment.limit, _attributes(segment))
        for at, table in ((_GDT, sregs.gdt), (_IDT, sregs.idt)):
            _SEG.pack_into(state, at, 0, table.base, table.limit, 0)
        pack_into("<5Q", state, _CR, sregs.cr0 | 0x10, 0, sregs.cr2, sregs.cr3, sregs.cr4)
        pack_into("<Q", state, _EFER, sregs.efer)
        self.compute_mode()

    def put_segment(self, index: int, segment: kvm_segment) -> None:
        """One segment register with its hidden part: 0 ES, 1 CS, 2 SS, 3 DS, 4 FS, 5 GS.  Then `compute_mode`."""
        at = _SEGS + 24 * index
        _SEG.pack_into(self.state, at, segment.selector, segment.base, segment.limit, _attributes(segment))

    def get_sregs_segment(self, index: int) -> kvm_segment:
        """One segment register, by the numbers of `put_segment`."""
        return _segment(self.state, _SEGS + 24 * index)

    @staticmethod
    def segment_of_descriptor(selector: int, descriptor: int) -> kvm_segment:
        """What a segment register holds after `selector`, whose descriptor is given, was loaded."""
        flags = descriptor >> 32
        limit = descriptor & 0xFFFF | flags & 0xF0000
        if flags >> 23 & 1:
            limit = limit << 12 | 0xFFF
        segment = _unpacked(selector, descriptor >> 16 & 0xFFFFFF | flags & 0xFF000000, limit, flags)
        segment.type |= 1  # accessed
        return segment

    @staticmethod
    def null_segment(dpl: int) -> kvm_segment:
        """What SS holds in a handler that long mode switched stacks for."""
        return kvm_segment(selector=dpl, dpl=dpl, unusable=1)

    def compute_mode(self) -> None:
        """hflags from the control registers and segments (cpu_sync_bndcs_hflags() and its like)."""
        cr0, cr4, efer = self.control(0), self.control(4), self.efer
        _, _, _, cs = self.segment("cs")
        _, ss_base, _, ss = self.segment("ss")
        hflags = self._u32(_HFLAGS) & ~_COMPUTED
        hflags |= (cr0 & 1) << 7 | (cr0 << 8 & 7 << 9)
        hflags |= _OSFXSR if cr4 & 1 << 9 else 0
        hflags |= _SMAP if cr4 & 1 << 21 else 0
        long_mode = bool(efer & 1 << 10)
        hflags |= _LMA if long_mode else 0
        vm86 = bool(self.rflags_system & 1 << 17)
        hflags |= 3 if vm86 else ss >> 13 & 3 if cr0 & 1 else 0
        if long_mode and cs & 1 << 21:
            hflags |= _CS32 | _SS32 | _CS64
        else:
            hflags |= (_CS32 if cs & 1 << 22 else 0) | (_SS32 if ss & 1 << 22 else 0)
            if not cr0 & 1 or vm86 or not hflags & _CS32 or self.segment("ds")[1] | self.segment("es")[1] | ss_base:
                hflags |= _ADDSEG
        pack_into("<I", self.state, _HFLAGS, hflags)

    def put_shadow(self, shadow: int) -> None:
        """Whether interrupts are held off for one instruction."""
        hflags = self._u32(_HFLAGS) & ~HF_INHIBIT_IRQ
        pack_into("<I", self.state, _HFLAGS, hflags | (HF_INHIBIT_IRQ if shadow else 0))

    def get_fpu(self) -> kvm_fpu:
        """x87 in the order of its stack, and SSE."""
        state, top = self.state, self._u32(_FPSTT) & 7
        fpr = b"".join(bytes(state[at : at + 16]) for at in (_FPREGS + 16 * ((top + i) & 7) for i in range(8)))
        tags = sum(1 << i for i in range(8) if not state[_FPTAGS + i])
        fpus, fpuc = unpack_from("<HH", state, _FPUS)
        xmm = b"".join(bytes(state[_XMM + 64 * i : _XMM + 64 * i + 16]) for i in range(16))
        return kvm_fpu(fpr=fpr, fcw=fpuc, fsw=fpus & ~0x3800 | top << 11, ftwx=tags, xmm=xmm, mxcsr=self._u32(_MXCSR))

    def put_fpu(self, fpu: kvm_fpu) -> None:
        """x87 and SSE.  The two control words are for the caller to set by register, as rounding follows them."""
        state, top = self.state, fpu.fsw >> 11 & 7
        pack_into("<I", state, _FPSTT, top)
        pack_into("<H", state, _FPUS, fpu.fsw & ~0x3800)
        for i in range(8):
            at = _FPREGS + 16 * ((top + i) & 7)
            state[at : at + 16] = fpu.fpr[16 * i : 16 * i + 16]
            state[_FPTAGS + i] = not fpu.ftwx >> i & 1
        for i in range(16):
            state[_XMM + 64 * i : _XMM + 64 * i + 16] = fpu.xmm[16 * i : 16 * i + 16]

    def get_msrs(self) -> dict[int, int]:
        """`ENGINE_MSRS` by index."""
        return {index: self._u64(_MSRS[name]) for index, name in ENGINE_MSRS.items()}

    def put_msrs(self, msrs: dict[int, int]) -> None:
        """Those of `ENGINE_MSRS` that are in `msrs`; the rest become 0."""
        for index, name in ENGINE_MSRS.items():
            pack_into("<Q", self.state, _MSRS[name], msrs.get(index, 0))


def _segment(state: memoryview, at: int) -> kvm_segment:
    return _unpacked(*_SEG.unpack_from(state, at))


def _unpacked(selector: int, base: int, limit: int, flags: int) -> kvm_segment:
    present = flags >> 15 & 1
    return kvm_segment(
        base=base,
        limit=limit,
        selector=selector & 0xFFFF,
        type=flags >> 8 & 15,
        s=flags >> 12 & 1,
        dpl=flags >> 13 & 3,
        present=present,
        avl=flags >> 20 & 1,
        l=flags >> 21 & 1,
        db=flags >> 22 & 1,
        g=flags >> 23 & 1,
        unusable=1 - present,
    )


def _attributes(segment: kvm_segment) -> int:
    if segment.unusable:
        return segment.dpl << 13
    return (
        segment.type << 8
        | segment.s << 12
        | segment.dpl << 13
        | segment.present << 15
        | segment.avl << 20
        | segment.l << 21
        | segment.db << 22
        | segment.g << 23
    )

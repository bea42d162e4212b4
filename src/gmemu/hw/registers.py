# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual processor's registers, as KVM reads and writes them.

They live in two places: here, in the structures of the uAPI, and in the engine that runs machine code.  A group that the
engine has changed is fetched when it's next asked for; one that was set here is loaded when the engine is next entered.
"""

from __future__ import annotations

from typing import Protocol

from ..uapi.kvm_x86 import kvm_debugregs, kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs

__all__ = ["ENGINE_MSRS", "MSR_IA32_CR_PAT", "PAT_DEFAULT", "RegisterSource", "Registers"]

MSR_IA32_CR_PAT = 0x277
PAT_DEFAULT = 0x0007040600070406

ENGINE_MSRS = {
    0x174: "sysenter_cs",
    0x175: "sysenter_esp",
    0x176: "sysenter_eip",
    0xC0000081: "star",
    0xC0000082: "lstar",
    0xC0000083: "cstar",
    0xC0000084: "fmask",
    0xC0000102: "kernelgsbase",
    0xC0000103: "tsc_aux",
}
"""MSRs that instructions use without naming them (SYSCALL, SYSENTER, SWAPGS, RDTSCP): index -> the architecture's name."""


class RegisterSource(Protocol):
    """Where changed registers are fetched from: an engine."""

    def fetch_regs(self) -> kvm_regs:
        """The general registers, RIP and RFLAGS."""

    def fetch_sregs(self, old: kvm_sregs) -> kvm_sregs:
        """Segments, tables and control registers; what the engine doesn't keep is as in `old`."""

    def fetch_fpu(self) -> kvm_fpu:
        """x87 and SSE."""

    def fetch_shadow(self) -> int:
        """Whether interrupts are held off for one instruction."""

    def fetch_msrs(self) -> dict[int, int]:
        """`ENGINE_MSRS`."""


class Registers:
    """All of them.  `dirty` and `stale` name groups (regs, sregs, fpu, msrs...): to be loaded, or newer in the engine."""

    def __init__(self, bootstrap: bool) -> None:
        self.source: RegisterSource | None = None
        self.stale: set[str] = set()
        self.reset(bootstrap)

    def reset(self, bootstrap: bool) -> None:
        """kvm_vcpu_reset() and init_vmcb(): the state at power-on; `bootstrap` for the processor that starts first."""
        data = kvm_segment(limit=0xFFFF, type=3, present=1, s=1)
        code = kvm_segment(base=0xFFFF0000, limit=0xFFFF, selector=0xF000, type=10, present=1, s=1)
        self._regs = kvm_regs(rip=0xFFF0, rflags=2, rdx=0x600)
        self._sregs = kvm_sregs(
            cs=code,
            ds=data,
            es=data,
            fs=data,
            gs=data,
            ss=data,
            tr=kvm_segment(limit=0xFFFF, type=3, present=1),
            ldt=kvm_segment(limit=0xFFFF, type=2, present=1),
            gdt=kvm_dtable(limit=0xFFFF),
            idt=kvm_dtable(limit=0xFFFF),
            cr0=0x60000010,
            apic_base=0xFEE00800 | (0x100 if bootstrap else 0),
        )
        self._fpu = kvm_fpu(fcw=0x37F, mxcsr=0x1F80)
        self._msrs: dict[int, int] = {MSR_IA32_CR_PAT: PAT_DEFAULT}
        self.debugregs = kvm_debugregs(dr6=0xFFFF0FF0, dr7=0x400)
        self.xcr0 = 1
        self._shadow = 0
        self.dirty = {"regs", "sregs", "fpu", "msrs", "xcr0", "shadow"}
        self.stale.clear()

    def changed_by_engine(self) -> None:
        """Guest code ran: what is here is old."""
        self.stale |= {"regs", "sregs", "fpu", "msrs", "shadow"}

    def _fetch(self, group: str) -> RegisterSource | None:
        if group not in self.stale or self.source is None:
            return None
        self.stale.discard(group)
        return self.source

    @property
    def regs(self) -> kvm_regs:
        """General registers, RIP and RFLAGS."""
        if source := self._fetch("regs"):
            self._regs = source.fetch_regs()
        return self._regs

    @regs.setter
    def regs(self, value: kvm_regs) -> None:
        self._regs = value
        self._set("regs")

    @property
    def sregs(self) -> kvm_sregs:
        """Segments, descriptor tables, control registers, EFER, the APIC's base."""
        if source := self._fetch("sregs"):
            self._sregs = source.fetch_sregs(self._sregs)
        return self._sregs

    @sregs.setter
    def sregs(self, value: kvm_sregs) -> None:
        self._sregs = value
        self._set("sregs")

    @property
    def apic_base(self) -> int:
        """IA32_APICBASE, which only KVM changes."""
        return self._sregs.apic_base

    @property
    def cr8(self) -> int:
        """The task priority, where no local APIC has it."""
        return self._sregs.cr8

    @property
    def fpu(self) -> kvm_fpu:
        """x87 and SSE."""
        if source := self._fetch("fpu"):
            self._fpu = source.fetch_fpu()
        return self._fpu

    @fpu.setter
    def fpu(self, value: kvm_fpu) -> None:
        self._fpu = value
        self._set("fpu")

    @property
    def shadow(self) -> int:
        """1 if interrupts are held off for one instruction, by STI or a load of SS."""
        if source := self._fetch("shadow"):
            self._shadow = source.fetch_shadow()
        return self._shadow

    @shadow.setter
    def shadow(self, value: int) -> None:
        self._shadow = value
        self._set("shadow")

    @property
    def msrs(self) -> dict[int, int]:
        """Model-specific registers by index.  Change one by `set_msr`."""
        if source := self._fetch("msrs"):
            self._msrs.update(source.fetch_msrs())
        return self._msrs

    def set_msr(self, index: int, value: int) -> None:
        """Write one, whether or not the engine has it too."""
        self.msrs[index] = value
        if index in ENGINE_MSRS:
            self._set("msrs")

    def set_xcr0(self, value: int) -> None:
        """Write XCR0."""
        self.xcr0 = value
        self.dirty.add("xcr0")

    def _set(self, group: str) -> None:
        self.stale.discard(group)
        self.dirty.add(group)

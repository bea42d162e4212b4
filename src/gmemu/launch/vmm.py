# SPDX-License-Identifier: GPL-2.0-or-later
"""How VMMs differ in what they launch: the order of sections, the type of pages, the registers of a fresh vCPU.

A flavour is data.  The differences of EC2 and GCE are known from published digests, by way of sev-snp-measure; QEMU's
from its source (`target/i386/sev.c`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..uapi.sev import SnpPageType
from .errors import LaunchError
from .ovmf import MetadataSection, SectionType

__all__ = ["EC2", "GCE", "QEMU", "VMMS", "InitialRegisters", "Vmm", "vmm_named"]

RESET_VECTOR = 0xFFFFFFF0
DEFAULT_PAT = 0x0007040600070406
"""MSR 0x277 after reset (AMD APM volume 2, A.3)."""


class InitialRegisters(NamedTuple):
    """The registers in which flavours differ.

    Segment attributes are in the packed form of the VMSA: type in bits 3:0, S 4, DPL 6:5, P 7.  `cs_at_reset` is for a
    vCPU that starts at the reset vector, `cs` for one that starts elsewhere.  `rdx` is `None` where it is the CPU's
    signature.
    """

    cs_at_reset: int = 0x9B
    cs: int = 0x9B
    ss: int = 0x93
    tr: int = 0x8B
    g_pat: int = DEFAULT_PAT
    rdx: int | None = None
    mxcsr: int = 0x1F80
    fcw: int = 0x37F

    def code_segment(self, eip: int) -> int:
        """Attributes of CS for a vCPU that starts at `eip`."""
        return self.cs_at_reset if eip == RESET_VECTOR else self.cs


def _as_listed(sections: Iterable[MetadataSection]) -> list[MetadataSection]:
    return list(sections)


def _cpuid_last(sections: Iterable[MetadataSection]) -> list[MetadataSection]:
    return sorted(sections, key=lambda s: s.type is SectionType.CPUID)


class Vmm(NamedTuple):
    """One flavour.

    `order` puts the firmware's sections in the order of their launch.  `sec_mem` is the page type of memory that the
    firmware only wants validated.  `needs_cpu_type` tells whether the CPU type is measured.
    """

    name: str
    registers: InitialRegisters = InitialRegisters()
    sec_mem: SnpPageType = SnpPageType.ZERO
    order: Callable[[Iterable[MetadataSection]], list[MetadataSection]] = _as_listed

    @property
    def needs_cpu_type(self) -> bool:
        """Whether the CPU's signature is among the measured registers."""
        return self.registers.rdx is None


QEMU = Vmm("qemu")
EC2 = Vmm(
    "ec2",
    registers=InitialRegisters(cs_at_reset=0x9A, ss=0x92, tr=0x83, rdx=0x600, mxcsr=0, fcw=0),
    order=_cpuid_last,
)
GCE = Vmm(
    "gce",
    registers=InitialRegisters(g_pat=0x00070106, rdx=0x600, mxcsr=0, fcw=0),
    sec_mem=SnpPageType.UNMEASURED,
)

VMMS: dict[str, Vmm] = {vmm.name: vmm for vmm in (QEMU, EC2, GCE)}
"""Flavour by name."""


def vmm_named(name: str) -> Vmm:
    """The flavour `name`.  Raises `LaunchError` for one that isn't known."""
    try:
        return VMMS[name.lower()]
    except KeyError:
        raise LaunchError(f"VMM {name!r} isn't known; the known ones are {', '.join(VMMS)}") from None

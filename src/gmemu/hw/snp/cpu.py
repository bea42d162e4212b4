# SPDX-License-Identifier: GPL-2.0-or-later
"""The processor that the firmware runs beside: what it may report in CPUID, and what SNP depends on besides.

`GENOA` is the default: a fourth-generation EPYC, on which QEMU's EPYC, EPYC-Rome, EPYC-Milan and EPYC-Genoa models (and so
EPYC-v4) are all within bounds.  Values are what CPUID reads there; the rules are the PPR's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ...uapi.sev import snp_cpuid_entry
from .cpuid_rules import ABSENT, FREE, LeafRule, at_most, exact, mask

__all__ = ["GENOA", "CpuModel", "fms"]

XCR0_X87_SSE = 0x3
# bit of XCR0 -> size of the state component, and where the uncompacted format puts it (bytes)
_XCR0_COMPONENTS = {2: (0x100, 0x240), 5: (0x40, 0x340), 6: (0x200, 0x380), 7: (0x400, 0x580), 9: (0x8, 0x980)}
_XSS_COMPONENTS = {11: 0x10, 12: 0x18}  # CET_U, CET_S
_XSAVE_LEGACY = 0x240

_OSXSAVE, _HYPERVISOR, _OSPKE = 1 << 27, 1 << 31, 1 << 4


def fms(family: int, model: int, stepping: int) -> int:
    """CPUID Fn0000_0001_EAX of a family, model and stepping."""
    base = min(family, 0xF)
    return (family - base) << 20 | (model >> 4) << 16 | base << 8 | (model & 0xF) << 4 | stepping


def _parts(eax: int) -> tuple[int, int, int]:
    return (eax >> 8 & 0xF) + (eax >> 20 & 0xFF), (eax >> 12 & 0xF0) | (eax >> 4 & 0xF), eax & 0xF


class CpuModel(NamedTuple):
    """One product.  Use `_replace` for a machine that differs in a detail."""

    name: str
    signature: int
    """CPUID Fn0000_0001_EAX."""
    features_ecx: int
    features_edx: int
    features7: tuple[int, int, int, int]
    """Fn0000_0007 subleaf 0."""
    xcr0: int
    xsave_features: int
    """Fn0000_000D subleaf 1 EAX."""
    xss: int
    ext_features_ecx: int
    ext_features_edx: int
    address_bits: tuple[int, int]
    """Physical and linear."""
    ext_features8_ebx: int
    invlpgb_max: int
    rdpru_max: int
    memory_encryption: int
    """Fn8000_001F EAX."""
    cbit: int
    vmpls: int
    leaves: Mapping[tuple[int, int], LeafRule]
    """The leaves whose registers each have one rule, by (EAX, ECX) input; the others are methods of `rule_for`."""
    smt: bool = True
    sockets: int = 1
    max_asid: int = 1006
    tsc_ref_khz: int = 100_000
    tsc_factor: int = 200
    vmsa_tweak_bitmap: bytes = bytes(64)
    """Which quadwords of a VMSA the register protection hides (bit k: quadword k); the microcode's affair."""

    def rule_for(self, eax: int, ecx: int) -> LeafRule | None:
        """The rule of a leaf, or `None` where the CPU reports nothing."""
        if (eax, ecx) in self.leaves:
            return self.leaves[eax, ecx]
        custom = {
            (0x1, 0): self._features,
            (0x7, 0): self._structured_features,
            (0xD, 0): self._xsave,
            (0xD, 1): self._xsave_compact,
            (0x80000001, 0): self._ext_features,
            (0x80000008, 0): self._address_sizes,
            (0x8000001F, 0): self._memory_encryption,
            (0x80000022, 0): self._perfmon,
        }
        return custom.get((eax, ecx))

    def _signature(self, found: int) -> int:
        """Family, model and stepping may not be newer than the CPU's; reserved bits are cleared."""
        eax = found if _parts(found) <= _parts(self.signature) else self.signature
        return eax & 0x0FFF3FFF

    def _features(self, entry: snp_cpuid_entry) -> bool:
        return _set(
            entry,
            self._signature(entry.eax),
            (entry.ebx & ~0xFF00) | 8 << 8,  # CLFLUSH line, in quadwords
            entry.ecx & (self.features_ecx | _OSXSAVE | _HYPERVISOR),
            entry.edx & self.features_edx,
        )

    def _structured_features(self, entry: snp_cpuid_entry) -> bool:
        eax, ebx, ecx, edx = self.features7
        return _set(entry, min(entry.eax, eax), entry.ebx & ebx, entry.ecx & (ecx | _OSPKE), entry.edx & edx)

    def _xsave(self, entry: snp_cpuid_entry) -> bool:
        """EBX is what the features enabled in XCR0 need in the uncompacted format: the end of the last one."""
        enabled = max((bit for bit in _XCR0_COMPONENTS if entry.xcr0_in >> bit & 1), default=None)
        size = _XSAVE_LEGACY if enabled is None else sum(_XCR0_COMPONENTS[enabled])
        return _set(entry, (entry.eax | XCR0_X87_SSE) & self.xcr0, size, entry.ecx, self.xcr0 >> 32)

    def _xsave_compact(self, entry: snp_cpuid_entry) -> bool:
        """EBX is the sum of what is enabled in XCR0 and XSS, as the compacted format has no gaps."""
        size = _XSAVE_LEGACY + sum(part for bit, (part, _) in _XCR0_COMPONENTS.items() if entry.xcr0_in >> bit & 1)
        size += sum(part for bit, part in _XSS_COMPONENTS.items() if entry.xss_in >> bit & 1)
        return _set(entry, entry.eax & self.xsave_features, size, entry.ecx & self.xss, entry.edx & self.xss >> 32)

    def _ext_features(self, entry: snp_cpuid_entry) -> bool:
        eax = self._signature(entry.eax)
        return _set(entry, eax, entry.ebx, entry.ecx & self.ext_features_ecx, entry.edx & self.ext_features_edx)

    def _address_sizes(self, entry: snp_cpuid_entry) -> bool:
        physical, linear = self.address_bits
        eax = _bytes_at_most(entry.eax, physical, linear, 0)
        edx = min(entry.edx & 0xFFFF, self.invlpgb_max) | min(entry.edx >> 16, self.rdpru_max) << 16
        return _set(entry, eax, entry.ebx & self.ext_features8_ebx, entry.ecx, edx)

    def _memory_encryption(self, entry: snp_cpuid_entry) -> bool:
        """EBX: C-bit position exact, bits 11:6 free (physical address reduction), no more VMPLs than there are."""
        ebx = self.cbit | (entry.ebx & 0xFC0) | min(entry.ebx >> 12 & 0xF, self.vmpls) << 12
        return _set(entry, entry.eax & self.memory_encryption, ebx, entry.ecx, entry.edx)

    def _perfmon(self, entry: snp_cpuid_entry) -> bool:
        counters, stack = min(entry.ebx & 0xF, 6), min(entry.ebx >> 4 & 0x3F, 0x10)
        return _set(entry, entry.eax & 0x7, (entry.ebx & ~0x3FF) | stack << 4 | counters, entry.ecx, 0)


def _set(entry: snp_cpuid_entry, eax: int, ebx: int, ecx: int, edx: int) -> bool:
    """Store the registers; True if they were so already."""
    same = (entry.eax, entry.ebx, entry.ecx, entry.edx) == (eax, ebx, ecx, edx)
    entry.eax, entry.ebx, entry.ecx, entry.edx = eax, ebx, ecx, edx
    return same


def _bytes_at_most(value: int, *limits: int) -> int:
    """Bytes 0, 1, ... of `value`, each no more than its limit; the rest zero."""
    return sum(min(value >> 8 * i & 0xFF, limit) << 8 * i for i, limit in enumerate(limits))


_NONE = (exact(0), exact(0), exact(0), exact(0))
_ANY = (FREE, FREE, FREE, FREE)

_GENOA_LEAVES: dict[tuple[int, int], LeafRule] = {
    (0x0, 0): (at_most(0x10), FREE, FREE, FREE),
    (0x2, 0): (ABSENT, ABSENT, ABSENT, ABSENT),
    **{(0x4, i): (ABSENT, ABSENT, ABSENT, ABSENT) for i in range(4)},
    (0x5, 0): _ANY,
    (0x6, 0): (mask(0x4), exact(0), mask(0x1), exact(0)),
    (0x7, 1): (mask(0x20), exact(0), exact(0), exact(0)),
    (0xB, 0): _ANY,
    (0xB, 1): _ANY,
    **{(0xD, i): (exact(size), exact(at), exact(0), exact(0)) for i, (size, at) in _XCR0_COMPONENTS.items()},
    **{(0xD, i): (exact(size), exact(0), exact(1), exact(0)) for i, size in _XSS_COMPONENTS.items()},
    (0xF, 0): (exact(0), FREE, exact(0), mask(0x2)),
    (0xF, 1): (mask(0xFF), FREE, FREE, mask(0x7)),
    (0x10, 0): (exact(0), mask(0x2), exact(0), exact(0)),
    (0x10, 1): _ANY,
    (0x80000000, 0): (at_most(0x80000028), FREE, FREE, FREE),
    **{(0x80000000 + i, 0): _ANY for i in (2, 3, 4, 5, 6, 0x19, 0x1E)},
    (0x80000007, 0): (exact(0), mask(0x3B), FREE, mask(0x6799)),
    (0x8000000A, 0): (at_most(0x1), at_most(0x8000), exact(0), mask(0x1EBFBCFF)),
    (0x8000001A, 0): (mask(0x6), exact(0), exact(0), exact(0)),
    (0x8000001B, 0): (mask(0xBFF), exact(0), exact(0), exact(0)),
    (0x8000001C, 0): _NONE,
    **{(0x8000001D, i): _ANY for i in range(5)},
    (0x80000020, 0): (exact(0), mask(0x1E), exact(0), exact(0)),
    **{(0x80000020, i): _ANY for i in (1, 2, 3, 5)},
    (0x80000021, 0): (mask(0x62FCF), FREE, exact(0), exact(0)),
    (0x80000023, 0): (mask(0x1), FREE, exact(0), exact(0)),
    **{(0x80000026, i): _ANY for i in range(4)},
}

GENOA = CpuModel(
    name="EPYC-Genoa",
    signature=fms(0x19, 0x11, 1),
    features_ecx=0x76FA320B,
    features_edx=0x178BFBFF,
    features7=(1, 0xF1BF97A9, 0x00405FCE, 0x10000010),
    xcr0=0x2E7,
    xsave_features=0xF,
    xss=0x1800,
    ext_features_ecx=0x75C237FF,
    ext_features_edx=0x2FD3FBFF,
    address_bits=(52, 57),
    ext_features8_ebx=0x791EF257,
    invlpgb_max=7,
    rdpru_max=1,
    memory_encryption=0x05FD7FFF,
    cbit=51,
    vmpls=4,
    leaves=MappingProxyType(_GENOA_LEAVES),
)

MILAN = GENOA._replace(
    name="EPYC-Milan",
    signature=fms(0x19, 0x01, 1),
    features7=(0, 0x219C97A9, 0x0040068C, 0x10),
    xcr0=0x207,
    address_bits=(48, 48),
    memory_encryption=0x0101FD3F,
    max_asid=509,
)
"""A third-generation EPYC: no AVX-512, 48 address bits."""

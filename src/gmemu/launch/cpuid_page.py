# SPDX-License-Identifier: GPL-2.0-or-later
"""A CPUID page as a VMM would hand it to the firmware.

QEMU fills it from KVM_GET_CPUID2; here a plain EPYC stands in, with features that every EPYC has, so that the firmware
finds nothing to correct.  The page isn't measured, and so nothing here changes a digest.  Layout and rules: "SEV Secure
Nested Paging Firmware ABI", SNP_LAUNCH_UPDATE, CPUID page; function and register meanings: AMD publications 24594 and
25481.
"""

from __future__ import annotations

from ..uapi.sev import SNP_CPUID_COUNT_MAX, snp_cpuid_entry, snp_cpuid_table

__all__ = ["cpuid_entries", "cpuid_page"]

PAGE_SIZE = 4096
_VENDOR = b"AuthenticAMD"
_BRAND = b"AMD EPYC Processor (gmemu, simulated)"
_HYPERVISOR = 31
_XSAVE_BASE = 0x240  # legacy area and header: what x87 and SSE take


def _bits(*positions: int) -> int:
    return sum(1 << p for p in positions)


# SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4.1 SSE4.2 x2APIC MOVBE POPCNT AES XSAVE AVX F16C RDRAND
_F1_ECX = _bits(0, 1, 9, 12, 13, 19, 20, 21, 22, 23, 25, 26, 28, 29, 30)
# FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2
_F1_EDX = _bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26)
# FSGSBASE BMI1 AVX2 SMEP BMI2 RDSEED ADX SMAP CLFLUSHOPT SHA
_F7_EBX = _bits(0, 3, 5, 7, 8, 18, 19, 20, 23, 29)
# LAHF LZCNT SSE4A MISALIGNSSE 3DNOWPREFETCH
_FX1_ECX = _bits(0, 5, 6, 7, 8)
# the bits that repeat Fn1_EDX, and SYSCALL NX MMXEXT FFXSR PAGE1GB RDTSCP LM
_FX1_EDX = _F1_EDX & ~_bits(11, 19, 25, 26) | _bits(11, 20, 22, 25, 26, 27, 29)
# SEV SEV-ES SNP
_FX1F_EAX = _bits(1, 3, 4)


def cpuid_entries(signature: int, vcpus: int) -> list[snp_cpuid_entry]:
    """The functions of the page, for a CPU with CPUID `signature` in a guest of `vcpus`."""
    vendor = dict(zip(("ebx", "edx", "ecx"), _words(_VENDOR), strict=True))
    brand = _words(_BRAND.ljust(48, b"\0"))
    threads = min(vcpus, 0xFF)
    return [
        snp_cpuid_entry(eax_in=0, eax=0xD, **vendor),
        snp_cpuid_entry(
            eax_in=1,
            eax=signature,
            ebx=threads << 16 | 8 << 8,
            ecx=_F1_ECX | 1 << _HYPERVISOR,
            edx=_F1_EDX | (threads > 1) << 28,
        ),
        snp_cpuid_entry(eax_in=7, ebx=_F7_EBX),
        snp_cpuid_entry(eax_in=0xD, xcr0_in=1, eax=0x7, ebx=_XSAVE_BASE, ecx=_XSAVE_BASE + 0x100),
        snp_cpuid_entry(eax_in=0xD, ecx_in=1, xcr0_in=1, eax=0xF, ebx=_XSAVE_BASE),
        snp_cpuid_entry(eax_in=0xD, ecx_in=2, eax=0x100, ebx=_XSAVE_BASE),
        snp_cpuid_entry(eax_in=0x80000000, eax=0x8000001F, **vendor),
        snp_cpuid_entry(eax_in=0x80000001, eax=signature, ecx=_FX1_ECX, edx=_FX1_EDX),
        *(
            snp_cpuid_entry(eax_in=0x80000002 + i, eax=eax, ebx=ebx, ecx=ecx, edx=edx)
            for i, (eax, ebx, ecx, edx) in enumerate(zip(*(iter(brand),) * 4, strict=True))
        ),
        snp_cpuid_entry(eax_in=0x80000008, eax=48 << 8 | 48),
        snp_cpuid_entry(eax_in=0x8000001F, eax=_FX1F_EAX, ebx=1 << 6 | 51),
    ]


def cpuid_page(signature: int, vcpus: int) -> bytes:
    """The page, 4096 bytes."""
    entries = cpuid_entries(signature, vcpus)
    assert len(entries) <= SNP_CPUID_COUNT_MAX
    head = snp_cpuid_table(count=len(entries)).pack()
    return b"".join((head, *(entry.pack() for entry in entries))).ljust(PAGE_SIZE, b"\0")


def _words(text: bytes) -> list[int]:
    return [int.from_bytes(text[i : i + 4], "little") for i in range(0, len(text), 4)]

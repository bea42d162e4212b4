# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's names of AMD server CPUs, and the CPUID signature that each puts in the guest.

The signature (CPUID Fn0000_0001_EAX, AMD publication 25481) is what a vCPU finds in EDX at reset, and so it is
measured. The versions of one model differ in features only.  Source: `builtin_x86_defs` in QEMU's `target/i386/cpu.c`,
as of QEMU 10.2.
"""

from __future__ import annotations

from .errors import LaunchError

__all__ = ["CPU_TYPES", "cpu_signature", "signature"]


def signature(family: int, model: int, stepping: int) -> int:
    """The CPUID signature of a CPU, 32 bits.  Raises `LaunchError` for numbers that no CPUID can say."""
    if not (0 <= family <= 0xF + 0xFF and 0 <= model <= 0xFF and 0 <= stepping <= 0xF):
        raise LaunchError(f"family {family}, model {model}, stepping {stepping} is no CPU: they go up to 270, 255 and 15")
    base, extended = min(family, 0xF), max(family - 0xF, 0)
    return extended << 20 | (model >> 4) << 16 | base << 8 | (model & 0xF) << 4 | stepping


def _versions(name: str, count: int, family: int, model: int, stepping: int) -> dict[str, int]:
    value = signature(family, model, stepping)
    return {name: value} | {f"{name}-v{i}": value for i in range(1, count + 1)}


CPU_TYPES: dict[str, int] = {
    **_versions("EPYC", 5, 23, 1, 2),
    "EPYC-IBPB": signature(23, 1, 2),
    **_versions("EPYC-Rome", 5, 23, 49, 0),
    **_versions("EPYC-Milan", 3, 25, 1, 1),
    **_versions("EPYC-Genoa", 2, 25, 17, 0),
    **_versions("EPYC-Turin", 1, 26, 0, 0),
}
"""Signature by name."""


def cpu_signature(name: str) -> int:
    """The signature of the CPU type `name`.  Raises `LaunchError` with the names that come near."""
    try:
        return CPU_TYPES[name]
    except KeyError:
        raise LaunchError(_unknown(name)) from None


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    by_folded = {known.lower(): known for known in CPU_TYPES}
    near = [by_folded[m] for m in get_close_matches(name.lower(), by_folded, n=4, cutoff=0.5)]
    if near:
        return f"vCPU type {name!r} isn't known; did you mean {' or '.join(near)}?"
    return f"vCPU type {name!r} isn't known; the known types are {', '.join(CPU_TYPES)}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the emulation differs from a real kernel on purpose: the only place, with the reason, and when the reason is gone.

An entry whose probes no longer differ is stale, and makes a comparison fail: take it out.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

__all__ = ["DELIBERATE", "Deliberate"]


class Deliberate(NamedTuple):
    """`probes` and `profiles` are shell patterns: of probe ids, and of the profile compared."""

    probes: str
    profiles: str
    reason: str
    until: str

    def covers(self, probe: str, profile: str) -> bool:
        """Whether a difference at `probe` is meant."""
        return fnmatchcase(profile, self.profiles) and fnmatchcase(probe, self.probes)


DELIBERATE: tuple[Deliberate, ...] = (
    Deliberate(
        "capabilities/on-*: 235",
        "linux-*[0-9]",
        "KVM_CAP_VM_TYPES has the SNP bit: the emulated machine always has SNP, the one that was recorded from hasn't.",
        "a kernel is recorded on a machine with SEV-SNP, or a profile can be without it",
    ),
    Deliberate(
        "registers/others: KVM_MEMORY_ENCRYPT_OP(* on the VM",
        "linux-*[0-9]",
        "Where there is SEV the command is read, from a bad address here; a machine without doesn't know the ioctl.",
        "a kernel is recorded on a machine with SEV-SNP, or a profile can be without it",
    ),
    Deliberate(
        "registers/at-reset: cs",
        "*-shared-only",
        "The accessed bit of CS at reset: the emulated machine is AMD's, where it's clear; the one recorded from isn't.",
        "a shared-only kernel is recorded on an AMD machine",
    ),
)

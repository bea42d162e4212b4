# SPDX-License-Identifier: GPL-2.0-or-later
"""Which rules of the catalogue the cases reached, and why others can't be: the catalogue is the specification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ..profiles import Profile
from ..rules import catalogue

__all__ = ["EMULATION_ONLY", "Coverage", "measure"]

EMULATION_ONLY = {
    "snp.*": "a trusted entity's answer: it takes SNP hardware, or the emulation",
    "tdx.*": "a trusted entity's answer: it takes TDX hardware, or the emulation",
    "cca.*": "a trusted entity's answer: it takes CCA hardware, or the emulation",
    "pkvm.*": "a trusted entity's answer: it takes pKVM, or the emulation",
    "gmem.populate.*": "populating takes a VM type with a trusted entity",
    "arm64.*": "it takes an arm64 machine",
    "mm.mmap.real": "gmemu exec's own: real memory under an emulated kernel",
    "mm.mremap.unsupported": "gmemu exec's own",
    "mm.page.held": "gmemu exec's own",
    "mm.hwpoison.*": "a hardware memory error, ordered in the emulation",
    "sev.*": "it takes /dev/sev",
    "gmemu.*": "gmemu's own limits, not a kernel's",
    "*.hwpoison": "a hardware memory error, ordered in the emulation",
    "*.oom": "an allocation that fails, ordered in the emulation",
    "*.signal": "a signal at one moment, ordered in the emulation",
    "mm.fault.rmp": "it takes an RMP",
    "kvm.vm.bugged": "KVM's own bugs",
    "kvm.vm.dead": "KVM's own bugs",
    "kvm.regs.protected": "it takes a VM type whose registers are encrypted",
    "kvm.pre-fault.early": "it takes a VM type with a launch",
    "kvm.pre-fault.slot-deleted": "a race, which the explorer reaches",
}
"""Rules (by pattern) that no real kernel at hand can be made to reach, and why."""


class Coverage(NamedTuple):
    """Ids of rules: reached by the cases; not reached though they could be; only for the emulation."""

    reached: list[str]
    missed: list[str]
    emulation_only: list[str]

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


@contextmanager
def measure(profile: Profile) -> Iterator[Coverage]:
    """What is reached by what runs in the ``with`` block; filled in at its end."""
    rules = {name: rule for name, rule in catalogue().items() if rule.applies(profile)}
    before = {name: rule.hits for name, rule in rules.items()}
    coverage = Coverage([], [], [])
    yield coverage
    for name, rule in rules.items():
        if rule.hits > before[name]:
            coverage.reached.append(name)
        elif any(fnmatchcase(name, pattern) for pattern in EMULATION_ONLY):
            coverage.emulation_only.append(name)
        else:
            coverage.missed.append(name)

# SPDX-License-Identifier: GPL-2.0-or-later
"""How the firmware judges what a hypervisor wants to tell its guest about the CPU (SEV-SNP firmware ABI, "CPUID Reporting").

Each register of each leaf has a rule, stated by the processor's PPR: it must be exactly so, may only lack bits that the CPU
has, may not exceed it, or is free.  Some leaves have fields with a rule each.  A value that breaks its rule is corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from ...uapi.sev import snp_cpuid_entry

__all__ = ["ABSENT", "FREE", "LeafRule", "RegisterRule", "Rule", "at_most", "exact", "judge_registers", "mask"]


class Rule(Enum):
    """Kinds of rule for one register."""

    EXACT = auto()
    MASK = auto()
    AT_MOST = auto()
    FREE = auto()
    ABSENT = auto()


class RegisterRule(NamedTuple):
    """A rule and the CPU's value; bits of `reserved` must be zero whatever the rule."""

    rule: Rule
    value: int = 0
    reserved: int = 0

    def correct(self, found: int) -> tuple[int, bool]:
        """The value to report, and whether `found` broke the rule.  ABSENT replaces it without a complaint."""
        wanted, broken = found, False
        if self.rule is Rule.EXACT:
            wanted, broken = self.value, found != self.value
        elif self.rule is Rule.MASK:
            wanted, broken = found & self.value, bool(found & ~self.value)
        elif self.rule is Rule.AT_MOST:
            wanted, broken = min(found, self.value), found > self.value
        elif self.rule is Rule.ABSENT:
            wanted = self.value
        return wanted & ~self.reserved, broken or bool(wanted & self.reserved)


FREE = RegisterRule(Rule.FREE)
ABSENT = RegisterRule(Rule.ABSENT)


def exact(value: int) -> RegisterRule:
    """The register must hold `value`."""
    return RegisterRule(Rule.EXACT, value)


def mask(value: int, free: int = 0) -> RegisterRule:
    """The register may only have bits of `value`, or of `free`, which depend on what the guest does."""
    return RegisterRule(Rule.MASK, value | free)


def at_most(value: int) -> RegisterRule:
    """The register may not exceed `value`."""
    return RegisterRule(Rule.AT_MOST, value)


LeafRule = tuple[RegisterRule, RegisterRule, RegisterRule, RegisterRule] | Callable[[snp_cpuid_entry], bool]
"""Rules for EAX, EBX, ECX and EDX; or, for a leaf of several fields, a function that corrects the entry and tells whether
it was in order."""


def judge_registers(entry: snp_cpuid_entry, rules: tuple[RegisterRule, RegisterRule, RegisterRule, RegisterRule]) -> bool:
    """Correct each register by its rule.  Returns whether all were in order."""
    eax, bad_eax = rules[0].correct(entry.eax)
    ebx, bad_ebx = rules[1].correct(entry.ebx)
    ecx, bad_ecx = rules[2].correct(entry.ecx)
    edx, bad_edx = rules[3].correct(entry.edx)
    entry.eax, entry.ebx, entry.ecx, entry.edx = eax, ebx, ecx, edx
    return not (bad_eax or bad_ebx or bad_ecx or bad_edx)

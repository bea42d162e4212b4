# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules: each way in which a call can fail has an id, a sentence and a source.

Kernel code fails by raising a rule: ``raise gmem.SIZE_UNALIGNED(f"size {size:#x}")``.  What arrives in Python is an
`OSError` with `.errno`, `.rule` and `.why`.  No kernel says which of its EINVALs was meant; this does, always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..uapi.errno import errno_name

if TYPE_CHECKING:
    from ..profiles import Profile

__all__ = ["BusError", "KernelError", "MemoryFault", "Rule", "SegmentationFault", "catalogue", "rule"]

_CATALOGUE: dict[str, Rule] = {}


class KernelError(OSError):
    """A system call failed.  `errno` is the kernel's, `rule` the check that failed, `why` one sentence for a person."""

    def __init__(self, rule: Rule, found: str = "") -> None:
        self.rule = rule
        self.found = found
        super().__init__(rule.errno, self.why)

    @property
    def why(self) -> str:
        """What is demanded, what was found, what to do."""
        parts = [self.rule.text]
        if self.found:
            parts.append(f"; found {self.found}")
        if self.rule.advice:
            parts.append(f". {self.rule.advice}")
        return "".join(parts)

    def __str__(self) -> str:
        return f"{errno_name(self.rule.errno)} ({self.rule.id}): {self.why}"

    def __reduce__(self) -> tuple[Callable[..., KernelError], tuple[object, ...]]:
        return type(self), (self.rule, self.found)


class Rule:
    """One check.  Calling it makes the error to raise; `found` says what was seen instead.

    `id` is dotted, area first.  `text` states what must hold.  `source` names the kernel function, commit or firmware
    section.  `when` tells in which profiles the rule exists (`None`: in all).  `signal` is set for a memory access that
    user space makes itself: then `errno` is what a system call gets that is handed such an address.  `hits` counts how
    often the rule was raised.
    """

    __slots__ = ("advice", "errno", "hits", "id", "signal", "source", "text", "when")

    def __init__(
        self,
        id: str,
        errno: int,
        text: str,
        source: str,
        advice: str = "",
        when: Callable[[Profile], bool] | None = None,
        signal: str = "",
    ) -> None:
        self.id, self.errno, self.text, self.source = id, errno, text, source
        self.advice, self.when, self.signal, self.hits = advice, when, signal, 0

    def __call__(self, found: str = "") -> KernelError:
        self.hits += 1
        return KernelError(self, found)

    def applies(self, profile: Profile) -> bool:
        """Whether the rule exists in `profile`."""
        return self.when is None or self.when(profile)

    @property
    def outcome(self) -> str:
        """The name of the errno or signal, such as EINVAL or SIGBUS."""
        return self.signal or errno_name(self.errno)

    def __repr__(self) -> str:
        return f"<Rule {self.id} {self.outcome}>"

    def __reduce__(self) -> tuple[Callable[[str], Rule], tuple[str]]:
        return _lookup, (self.id,)


def rule(
    id: str,
    errno: int,
    text: str,
    source: str,
    *,
    advice: str = "",
    when: Callable[[Profile], bool] | None = None,
    signal: str = "",
) -> Rule:
    """Declare a rule and enter it in the catalogue.  Ids are unique."""
    if id in _CATALOGUE:
        raise ValueError(f"rule {id} is declared twice")
    return _CATALOGUE.setdefault(id, Rule(id, errno, text, source, advice, when, signal))


class MemoryFault(Exception):
    """A memory access by user space ended in a signal.  `address` is the faulting byte, `rule` why it isn't allowed."""

    def __init__(self, rule: Rule, address: int, found: str = "") -> None:
        rule.hits += 1
        self.rule, self.address, self.found = rule, address, found
        super().__init__(rule, address, found)

    @property
    def why(self) -> str:
        """What is demanded, what was found, what to do."""
        return KernelError(self.rule, self.found).why

    def __str__(self) -> str:
        return f"{self.rule.signal} at {self.address:#x} ({self.rule.id}): {self.why}"


class BusError(MemoryFault):
    """SIGBUS: the address is mapped, but no page may be had there."""


class SegmentationFault(MemoryFault):
    """SIGSEGV: nothing is mapped at the address, or not for this kind of access."""


def _lookup(id: str) -> Rule:
    return catalogue()[id]


def catalogue() -> dict[str, Rule]:
    """Every rule by id, in order of id."""
    from . import load_all

    load_all()
    return dict(sorted(_CATALOGUE.items()))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Two runs of the same cases, probe by probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .deliberate import DELIBERATE, Deliberate
from .outcome import Outcome

__all__ = ["Comparison", "Difference", "compare"]

_ABSENT = Outcome("not run")


class Difference(NamedTuple):
    """One probe that came out differently.  `rule` is the emulation's, where it refused."""

    probe: str
    here: str
    there: str
    rule: str
    deliberate: Deliberate | None = None

    def data(self) -> dict[str, Any]:
        """For JSON."""
        reason = self.deliberate.reason if self.deliberate else None
        return {"probe": self.probe, "here": self.here, "there": self.there, "rule": self.rule, "deliberate": reason}


class Comparison(NamedTuple):
    """`same` probes came out alike; `stale` entries of the deliberate list explain nothing any more."""

    same: int
    unexplained: list[Difference]
    deliberate: list[Difference]
    stale: list[Deliberate]

    @property
    def passed(self) -> bool:
        """No difference but deliberate ones, and none of those gone."""
        return not self.unexplained and not self.stale


def compare(
    here: Mapping[str, Outcome],
    there: Mapping[str, Outcome],
    profile: str,
    rules: Mapping[str, str] | None = None,
    deliberate: Iterable[Deliberate] = DELIBERATE,
) -> Comparison:
    """Compare `here` with `there`.  `profile` is the emulated one; `rules` tells the rule of a probe if `here` doesn't."""
    listed = list(deliberate)
    same, unexplained, meant = 0, [], []
    used: set[Deliberate] = set()
    for probe in {**there, **here}:
        a, b = here.get(probe, _ABSENT), there.get(probe, _ABSENT)
        if a.result == b.result:
            same += 1
            continue
        entry = next((d for d in listed if d.covers(probe, profile)), None)
        rule = a.rule or b.rule or (rules or {}).get(probe, "")
        difference = Difference(probe, a.result, b.result, rule, entry)
        if entry is None:
            unexplained.append(difference)
        else:
            meant.append(difference)
            used.add(entry)
    ran = here.keys() & there.keys()
    stale = [d for d in listed if d not in used and any(d.covers(probe, profile) for probe in ran)]
    return Comparison(same, unexplained, meant, stale)

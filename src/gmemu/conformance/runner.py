# SPDX-License-Identifier: GPL-2.0-or-later
"""Run cases on a backend and collect their probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..uapi.kvm import VmType
from .backends import Backend
from .bench import Bench
from .case import Case, all_cases
from .outcome import Outcome, observe

__all__ = ["Results", "run_cases"]

_TYPES = {VmType.DEFAULT: "default", VmType.SW_PROTECTED: "sw-protected"}


@dataclass
class Results:
    """Probe id ("group/case/vm type: probe") -> outcome, and what wasn't run: case id -> reason."""

    probes: dict[str, Outcome] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def run_cases(
    backend: Backend,
    group: str = "",
    cases: Iterable[Case] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Results:
    """Every case of `group` (or all) on `backend`.  A call that fails where a case doesn't expect it ends that case only."""
    results = Results()
    for case in all_cases() if cases is None else cases:
        if group and case.group != group:
            continue
        for vm_type in _TYPES if case.each_vm else (VmType.DEFAULT,):
            name = f"{case.id}/{_TYPES[vm_type]}" if case.each_vm else case.id
            lack = backend.features.lacks((("gmem",) if case.each_vm else ()) + case.needs, vm_type)
            if lack:
                results.skipped[name] = lack
                continue
            progress(name)
            with backend.door() as door, Bench(door, vm_type) as bench:
                end = observe(case.run, bench, locate=bench.locate)[0]
                results.probes.update({f"{name}: {probe}": outcome for probe, outcome in bench.probes.items()})
                if end.result != "ok":
                    results.probes[f"{name}: (what ended the case)"] = end
    return results

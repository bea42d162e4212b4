# SPDX-License-Identifier: GPL-2.0-or-later
"""What `gmemu launch` shows of a launch and of the guest that ran in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .table import paragraph, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..launch.base import Call
    from ..launch.demo import Event
    from ..launch.page_states import PageRun
    from ..launch.plan import LaunchPlan
    from ..profiles import Profile
    from .style import Style

__all__ = ["Snapshot", "SnpReport"]

_ORIGIN = {
    "given": "",
    "found": ", found on this machine",
    "synthetic": ", made by gmemu as no OVMF was found: no guest boots from it",
}
_WHO = {"guest": "guest", "exit": "KVM_RUN", "vmm": "VMM", "host": "host"}


class Snapshot(NamedTuple):
    """Memory at one time: pages by RMP state, and guest memory by runs."""

    states: dict[str, int]
    runs: Sequence[PageRun]


class SnpReport(NamedTuple):
    """Everything that is told of one launch.  `origin` of the firmware: "given", "found", or "synthetic"."""

    plan: LaunchPlan
    profile: Profile
    flow: str
    origin: str
    calls: Sequence[Call]
    measurement: str
    launched: Snapshot
    events: Sequence[Event]
    after: Snapshot

    def data(self, about: dict[str, Any]) -> dict[str, Any]:
        """For JSON; `about` says what was launched."""
        return {
            "measurement": self.measurement,
            **about,
            "flow": self.flow,
            "firmware_origin": self.origin,
            "calls": [call._asdict() for call in self.calls],
            "launched": _snapshot_data(self.launched),
            "guest": [event._asdict() for event in self.events],
            "after": _snapshot_data(self.after),
        }

    def text(self, style: Style) -> str:
        """For people."""
        parts = [
            self._head(style),
            _section("What each call did", style),
            table(self.calls, ("call", "effect"), style=style),
            _section("Measurement (simulated: no hardware has vouched for it)", style),
            style.green(self.measurement) + "\n",
            _section("Pages by RMP state after the launch", style),
            _states(self.launched.states, style),
            _section("A guest on vCPU 0, with 2 MiB of RAM added at 4 GiB", style),
            table([(_WHO[e.who], e.what, e.result) for e in self.events], ("who", "does", "result"), style=style),
            _section("Guest memory afterwards", style),
            _runs(self.after.runs, style),
        ]
        return "".join(parts)

    def _head(self, style: Style) -> str:
        plan, firmware = self.plan, self.plan.firmware
        count = len(plan.vcpus)
        features = plan.parameters["guest_features"]
        flow = {"in-place": "in place", "copy": "copied from another address"}[self.flow]
        rows = [
            ("simulated", "everything: host, kernel, SEV-SNP processor and firmware, guest"),
            ("kernel", f"{self.profile.name}: {self.profile.title}"),
            ("firmware", f"{firmware.name}, {_size(firmware.size)}{_ORIGIN[self.origin]}"),
            ("guest", f"{count} vCPU{'s' if count > 1 else ''} {plan.parameters['vcpu_type']}, features {features}"),
            ("launch", f"{plan.pages} pages, contents {flow}; as {plan.vmm.name} does it"),
        ]
        notes = "".join(paragraph(f"Note: {note}.", style) for note in plan.notes)
        title = style.bold("SEV-SNP launch on an emulated host") + "\n"
        return title + table(rows, style=style, paint={0: style.dim}) + notes


def _size(nbytes: int) -> str:
    return f"{nbytes >> 10} KiB" if nbytes & 0xFFFFF else f"{nbytes >> 20} MiB"


def _section(title: str, style: Style) -> str:
    return "\n" + style.bold(title) + "\n"


_MEANING = {
    "GUEST_VALID": "the guest's, validated: it may use them; VMSAs included",
    "GUEST_INVALID": "the guest's, not validated",
    "PRE_GUEST": "the guest's, waiting for the firmware",
    "CONTEXT": "the firmware's guest context",
    "FIRMWARE": "lent to the firmware",
    "METADATA": "the firmware's, for pages swapped out",
    "RECLAIM": "given back by the firmware",
    "HYPERVISOR": "the hypervisor's: shared, or unused",
}


def _states(states: dict[str, int], style: Style) -> str:
    rows = [(name, f"{count:,}", _MEANING.get(name, "")) for name, count in states.items()]
    return table([*rows, ("HYPERVISOR", "rest", _MEANING["HYPERVISOR"])], ("state", "pages", ""), style=style, right=(1,))


def _runs(runs: Sequence[PageRun], style: Style) -> str:
    rows = [
        (f"{r.gpa:#x}-{r.gpa + r.size - 1:#x}", f"{r.pages:,}", "private" if r.private else "shared", r.state) for r in runs
    ]
    return table(rows, ("gpa", "pages", "attribute", "RMP state"), style=style, right=(1,))


def _snapshot_data(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "pages_by_state": snapshot.states,
        "memory": [
            {"gpa": f"{r.gpa:#x}", "pages": r.pages, "attribute": "private" if r.private else "shared", "state": r.state}
            for r in snapshot.runs
        ],
    }

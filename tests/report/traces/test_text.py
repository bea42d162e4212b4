# SPDX-License-Identifier: GPL-2.0-or-later
"""ftrace's shape and Mermaid: what a person must be able to see in them."""

from __future__ import annotations

import re

from gmemu.explore.trace import Trace
from gmemu.report.traces import FORMATS


def text(name: str, trace: Trace) -> str:
    written = FORMATS[name].write([trace])
    assert isinstance(written, str)
    return written


def test_every_step_is_a_line_of_its_task(private_and_mapped: tuple[Trace, Trace]) -> None:
    trace = private_and_mapped[0]
    lines = text("text", trace).splitlines()
    numbered = [re.match(r" *(\w+)-(\d) +(\d+): ", line) for line in lines]
    steps = [(int(m[3]), int(m[2]), m[1]) for m in numbered if m]
    assert steps == [(step.number, step.task, trace.tasks[step.task]) for step in trace.steps]
    assert "simulated" in lines[0]


def test_the_text_says_why(private_and_mapped: tuple[Trace, Trace]) -> None:
    said = text("text", private_and_mapped[0])
    order = ["gets pfn", "--- convert runs; mmap_lock: held by touch (shared); folio_lock: held by touch",
             "shared -> private", "PTE mm", "# invariant: the host maps private pages"]  # fmt: skip
    assert [said.index(part) for part in order] == sorted(said.index(part) for part in order)


def test_who_waits_and_where(deadlock: tuple[Trace, Trace]) -> None:
    said = text("text", deadlock[0])
    for task in ("populate-0", "fault-1", "protect-2"):
        assert re.search(rf"{task} +: waits to acquire", said)
    assert "kvm_gmem_fault_user_mapping (kvm/guest_memfd/fault.py" in said
    assert "gmem:invalidate_lock: held by populate; populate, fault wait" in said


def test_mermaid_is_made_of_its_own_statements(
    private_and_mapped: tuple[Trace, Trace], deadlock: tuple[Trace, Trace]
) -> None:
    statement = re.compile(
        r"%% .*|sequenceDiagram|    participant [TLP]\d+ as [^;#{}<>]+|    (de)?activate L\d+"
        r"|    T\d+-(>>|x)[TLP]\d+: [^;#{}<>]+|    note over [TLP]\d+(,T\d+)?: [^;#{}<>]+"
    )
    for trace in (*private_and_mapped, *deadlock):
        for line in text("mermaid", trace).splitlines():
            assert statement.fullmatch(line), line


def test_mermaid_activates_a_lock_as_often_as_it_is_taken(private_and_mapped: tuple[Trace, Trace]) -> None:
    said = text("mermaid", private_and_mapped[0])
    for lock in set(re.findall(r"activate (L\d+)", said)):
        assert len(re.findall(rf"    activate {lock}\n", said)) == len(re.findall(rf"deactivate {lock}\n", said))

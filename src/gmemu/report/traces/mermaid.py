# SPDX-License-Identifier: GPL-2.0-or-later
"""A Mermaid sequence diagram: tasks, the locks that they take and the pages that they change.

Steps that only look at something are left out, but for those right before somebody else runs: what was seen there may no
longer be so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .story import changes, event, function, page_text, title, token, verdict

if TYPE_CHECKING:
    from ...explore.trace import Step, Trace

__all__ = ["write"]


def write(traces: Sequence[Trace]) -> str:
    """The first trace."""
    return "\n".join(_lines(traces[0])) + "\n"


def _lines(trace: Trace) -> Iterator[str]:
    locks = list(dict.fromkeys(s.object for s in trace.steps if s.domain == "lock"))
    pages = list(dict.fromkeys(p.name for world in (trace.before, *(s.after for s in trace.steps)) for p in world.pages))
    ids = {name: f"L{n}" for n, name in enumerate(locks)} | {name: f"P{n}" for n, name in enumerate(pages)}
    yield f"%% {title(trace)}: gmemu, simulated.  gmemu replay '{token(trace)}'"
    yield "sequenceDiagram"
    yield from (f"    participant T{n} as {_plain(name)}" for n, name in enumerate(trace.tasks))
    yield from (f"    participant {ids[name]} as {_plain(name)}" for name in (*locks, *pages))
    yield from (f"    note over {ids[page.name]}: {_plain(page_text(page))}" for page in trace.before.pages)
    for step in trace.steps:
        changed = changes(trace.before_step(step.number), step.after)
        yield from _step(step, changed, ids, _preempted(trace, step))
    for waiting in trace.waiting:
        yield f"    T{waiting.task}-x{ids.get(waiting.object, f'T{waiting.task}')}: waits to {waiting.kind}, for ever"
    last = f",T{len(trace.tasks) - 1}" if len(trace.tasks) > 1 else ""
    yield f"    note over T0{last}: {_plain(verdict(trace))}"


def _step(step: Step, changed: Sequence[str], ids: dict[str, str], preempted: bool) -> Iterator[str]:
    task, says = f"T{step.task}", f"{step.number} {_plain(function(step))}"
    if step.domain == "lock":
        lock, shared = ids[step.object], " (shared)" if step.kind.endswith("shared") else ""
        if step.kind.startswith("acquire"):
            yield f"    {task}->>{lock}: {says}: lock{shared}"
            yield f"    activate {lock}"
        elif step.kind.startswith("release"):
            yield f"    {task}->>{lock}: {says}: unlock{shared}"
            yield f"    deactivate {lock}"
    for change in changed:
        page, _, what = change.partition(": ")
        yield f"    {task}->>{ids[page]}: {says}: {_plain(what)}"
    if preempted and step.domain != "lock" and not changed:
        yield f"    note over {task}: {says}: {_plain(event(step))}"
    yield from (f"    note over {task}: {says} fails: {_plain(rule)}" for rule in step.rules)


def _preempted(trace: Trace, step: Step) -> bool:
    return step.number + 1 < len(trace.steps) and trace.steps[step.number + 1].task != step.task


def _plain(text: str) -> str:
    """Without what Mermaid reads as its own."""
    return text.replace(" -> ", " to ").replace("->", "\N{RIGHTWARDS ARROW}").translate(_OWN)


_OWN = str.maketrans({";": ",", "#": "/", "{": "(", "}": ")", ">": ")", "<": "(", "\n": " "})

# SPDX-License-Identifier: GPL-2.0-or-later
"""Text in ftrace's shape: task and number, step, function, event; below it what the step changed, and who holds what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .story import changes, event, function, holders_text, page_text, title, token, verdict

if TYPE_CHECKING:
    from ...explore.trace import Trace

__all__ = ["write"]


def write(traces: Sequence[Trace]) -> str:
    """The first trace."""
    return "\n".join(_lines(traces[0])) + "\n"


def _lines(trace: Trace) -> Iterator[str]:
    names = [f"{name}-{number}" for number, name in enumerate(trace.tasks)]
    width = max((len(name) for name in names), default=4)
    functions = max((len(function(step)) for step in trace.steps), default=0)
    margin = " " * (width + 9)
    yield "# tracer: gmemu (simulated: no kernel and no hardware took part)"
    yield f"# {title(trace)}: {len(trace.steps)} steps, {trace.preemptions} preemptions"
    yield f"# gmemu replay '{token(trace)}'"
    yield "#"
    yield from (f"# {page.name}: {page_text(page)}" for page in trace.before.pages)
    yield "#"
    yield f"#{'TASK-NR':>{width - 1}}   STEP  {'FUNCTION':<{functions}}  EVENT"
    last = None
    for step in trace.steps:
        if last is not None and step.task != last:
            left = trace.before_step(step.number)
            held = [holders_text(lock, trace.tasks) for lock in left.locks]
            yield f"{margin}  --- {trace.tasks[step.task]} runs; {'; '.join(held) or 'no lock is held'}"
        last = step.task
        yield f"{names[step.task]:>{width}} {step.number:6}: {function(step):<{functions}}  {event(step)}"
        yield from (f"{margin}  {change}" for change in changes(trace.before_step(step.number), step.after))
        yield from (f"{margin}  fails: {rule}" for rule in step.rules)
    for waiting in trace.waiting:
        yield f"{names[waiting.task]:>{width}}       : waits to {waiting.kind} {waiting.object}"
        yield from (f"{margin}  {frame}" for frame in reversed(waiting.stack))
    yield "#"
    yield from (f"# {name}: {result}" for name, result in trace.results.items())
    end = trace.steps[-1].after if trace.steps else trace.before
    yield from (f"# {page.name}: {page_text(page)}" for page in end.pages)
    yield from (f"# {lock}" for lock in (holders_text(lock, trace.tasks) for lock in end.locks))
    yield f"# {verdict(trace)}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Exploration results for people: verdicts, and traces in ftrace's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..sync.explored import Step, Taken
from .table import paragraph, table

if TYPE_CHECKING:
    from .style import Style

__all__ = ["step_text", "trace_text", "verdicts_text", "violation_text"]


def step_text(step: Step) -> str:
    """One step in words: what is done, to what."""
    what = step.what
    if isinstance(what, tuple):
        pages = [f"{part:#x}" for part in what if isinstance(part, int)]
        return f"{step.kind} {what[0]} {' '.join(pages)}".rstrip()
    return f"{step.kind} {what!r}" if what is not None and step.kind != "begin" else step.kind


def trace_text(trace: Sequence[Taken], names: Sequence[str]) -> str:
    """One line a step: task, number, what; a column for each task, so that who runs when can be seen at a glance."""
    width = max(map(len, names), default=0)
    lines = []
    for number, taken in enumerate(trace):
        indent = "    " * taken.task
        lines.append(f"{names[taken.task]:>{width}}-{taken.task} {number:5}: {indent}{step_text(taken.step)}")
    return "\n".join(lines) + "\n"


def verdicts_text(rows: Sequence[Sequence[str]], style: Style) -> str:
    """A line for each scenario and variant."""
    headings = ("scenario", "variant", "verdict", "schedules", "time", "what")
    return table(rows, headings, style=style, right=(3, 4))


def violation_text(detail: str, token: str, style: Style) -> str:
    """What went wrong, and how to see it again."""
    return paragraph(detail, style) + f"gmemu replay '{token}'\n"

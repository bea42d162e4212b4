# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay tokens: a schedule as a short text that anyone can give to `gmemu replay`.

``pin+check-before-unmap:0x12,1x7,0`` is scenario ``pin`` with one variant: task 0 runs for 12 steps, task 1 for 7, task 0
for one more.  What is left open is filled in by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

__all__ = ["Token", "schedule_text"]


def schedule_text(choices: Iterable[int]) -> str:
    """A schedule as a token has it."""
    runs = [(task, len(list(group))) for task, group in groupby(choices)]
    return ",".join(f"{task}x{count}" if count > 1 else str(task) for task, count in runs)


class Token(NamedTuple):
    """A scenario's name, its variants, and the tasks chosen, in order."""

    scenario: str
    variants: tuple[str, ...]
    choices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{'+'.join((self.scenario, *self.variants))}:{schedule_text(self.choices)}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """The token that `text` is.  Raises `ValueError` with a sentence."""
        name, colon, schedule = text.strip().partition(":")
        scenario, *variants = name.split("+")
        choices: list[int] = []
        try:
            for run in filter(None, schedule.split(",")):
                task, _, count = run.partition("x")
                choices += [int(task)] * int(count or 1)
        except ValueError:
            colon = ""
        if not colon or not scenario:
            raise ValueError(f"{text!r} is no replay token; one looks like pin+check-before-unmap:0x12,1x7,0")
        return cls(scenario, tuple(variants), tuple(choices))

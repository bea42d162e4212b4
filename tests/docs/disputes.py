# SPDX-License-Identifier: GPL-2.0-or-later
"""The generated parts of docs/disputes/: what exploration shows, and the traces that decide it.

A page has lines ``<!-- explored: scenario variant+variant ... -->``, where ``-`` stands for the default, each followed by
the table of what came of it, and ``<!-- trace: scenario variant+variant -->``, followed by the call that replays it.
``python -m tests.docs.disputes`` writes both anew.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial
from pathlib import Path

from gmemu.explore import Outcome, Result, explore
from gmemu.explore.token import Token
from gmemu.explore.verdict import Kind
from gmemu.scenarios import CATALOGUE

from .blocks import ROOT

PAGES = sorted((ROOT / "docs/disputes").glob("D*.md"))
_BLOCK = re.compile(r"<!-- (explored|trace): (.*?) -->\n\n(.*?)(?=\n\n(?!\|)|\Z)", re.S)
_COUNTS = re.compile(r"(\d+) (exits|calls|refusals)")


@lru_cache
def run(scenario: str, variants: tuple[str, ...]) -> Result:
    """The search; each is made once."""
    return explore(partial(CATALOGUE[scenario], variants))


def rows(scenario: str, designs: list[str]) -> list[str]:
    """The table: a line for each design."""
    lines = ["| design | verdict | what comes of it | worst case |", "|---|---|---|---|"]
    for design in designs:
        variants = () if design == "-" else tuple(design.split("+"))
        result = run(scenario, variants)
        name = "default" if design == "-" else " + ".join(f"`{v}`" for v in variants)
        if result.outcome is Outcome.VIOLATED:
            lines.append(f"| {name} | violated: {result.kind} | {_why(result)} | - |")
        else:
            assert result.outcome is Outcome.EXHAUSTED
            lines.append(f"| {name} | holds in every order | {_outcomes(result)} | {_worst(result)} |")
    return lines


def _why(result: Result) -> str:
    """The violation in a line; tasks that hang say nothing."""
    if result.kind in (Kind.LIVELOCK, Kind.DEADLOCK):
        return "no task gets any further"
    return result.detail.splitlines()[0].replace("|", "/")


def _outcomes(result: Result) -> str:
    """Each final state, counts aside."""
    found = set()
    for state in result.states:
        assert isinstance(state, tuple)
        parts = [f"{name}: {_said(value)}" for name, value in state]
        found.add(", ".join(parts))
    return "; or ".join(sorted(found)).replace("|", "/")


def _said(value: str) -> str:
    """A task's result, counts aside."""
    said = _COUNTS.sub("", value.strip("'")).strip(", ")
    return "done" if said in ("", "None") else said


def _worst(result: Result) -> str:
    """The highest of each count that any order gives."""
    most: dict[str, int] = {}
    for state in result.states:
        for number, what in _COUNTS.findall(str(state)):
            most[what] = max(most.get(what, 0), int(number))
    return ", ".join(f"{what}: {number}" for what, number in most.items()) or "-"


def block(kind: str, what: str) -> str:
    """What has to stand after the comment."""
    scenario, *designs = what.split()
    if kind == "explored":
        return "\n".join(rows(scenario, designs))
    variants = tuple(designs[0].split("+"))
    token = Token(scenario, variants, run(scenario, variants).choices)
    return f"    gmemu replay '{token}'"


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(kind, arguments, what stands there) of each generated part."""
    return [(m[1], m[2], m[3].rstrip("\n")) for m in _BLOCK.finditer(text)]


def renewed(text: str) -> str:
    """The page with its generated parts as they are now."""
    return _BLOCK.sub(lambda m: f"<!-- {m[1]}: {m[2]} -->\n\n{block(m[1], m[2])}", text)


def main() -> None:
    """Write the pages anew."""
    for page in PAGES:
        Path(page).write_text(renewed(page.read_text()))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel complained of, found in its log."""

from __future__ import annotations

import re

__all__ = ["find_splats"]

_STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?", re.MULTILINE)
_SPLAT = re.compile(
    r"WARNING: |BUG: |Oops: |Kernel panic|general protection fault|possible (?:circular locking|recursive locking|"
    r"irq lock inversion|deadlock)|INFO: (?:possible|suspicious|task .* blocked|rcu_)|suspicious RCU usage|"
    r"bad unlock balance|held lock freed|refcount_t: |Bad page state"
)
_LINES = 60
"""Of a splat, at most; the rest is in the log."""
_APART = 25
"""Lines: a mark nearer than that to the one before belongs to the same splat, unless that has ended."""
_END = re.compile(r"---\[ end trace|</TASK>")


def find_splats(log: str) -> list[str]:
    """Warnings, bugs, lockdep's reports and panics, each with the lines that follow it (without time stamps)."""
    lines = _STAMP.sub("", log).replace("\r", "").splitlines()
    splats, at = [], 0
    while at < len(lines):
        if not _SPLAT.search(lines[at]):
            at += 1
            continue
        end = _end(lines, at)
        splats.append("\n".join(lines[at:end]).rstrip())
        at = end
    return splats


def _end(lines: list[str], start: int) -> int:
    """One past the last line of the splat that starts at `start`."""
    last_mark = start
    for at in range(start + 1, min(start + _LINES, len(lines))):
        if _END.search(lines[at]):
            return at + 1
        if _SPLAT.search(lines[at]):
            last_mark = at
        elif at - last_mark > _APART and not lines[at].startswith(" "):
            return at
    return min(start + _LINES, len(lines))

# SPDX-License-Identifier: GPL-2.0-or-later
"""What `gmemu exec` costs a program (CPU time, medians): calls on the emulated kernel, and calls that it lets through."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .figures import Figure

__all__ = ["figures"]

_GOALS = (
    ("ioctl", "ioctl on an emulated descriptor", 5.0),
    ("convert_4k", "conversion of 4 KiB", 8.0),
    ("convert_2m", "conversion of 2 MiB", 120.0),
)


def figures() -> Iterator[Figure]:
    """Compile the program, run it with and without the library in front."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "exec"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O2", "-o", str(program), str(source), "-pthread"], check=True)
        under = [sys.executable, "-m", "gmemu", "exec", "--", str(program)]
        emulated = _run([*under, "kvm"])
        for name, what, goal in _GOALS:
            yield Figure(what, emulated[name], "us", f"<= {goal:g} us", emulated[name] <= goal)
        yield Figure("mprotect() and madvise() of 4 KiB, beside", emulated["bare"], "us", "", None)
        yield Figure("conversion of 2 MiB that is written to in between", emulated["convert_2m_touched"], "us", "", None)
        for name in ("read", "other_ioctl"):
            pairs = [(_run(under)[name], _run([str(program)])[name]) for _ in range(5)]
            ratio = sorted(with_ / without for with_, without in pairs)[2]
            yield Figure(
                f"untouched {name.removeprefix('other_')}(), slowed by", 100 * (ratio - 1), "%", "< 5 %", ratio < 1.05
            )


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found

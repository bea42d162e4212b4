# SPDX-License-Identifier: GPL-2.0-or-later
"""A short soak; `make soak` runs it for ten minutes."""

from __future__ import annotations

import subprocess

from .conftest import Compile, Exec
from .soak import command


def test_threads_at_random(compile_c: Compile, gmemu_exec: Exec) -> None:
    done = subprocess.run(command(compile_c("soak"), 4), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("converted ")

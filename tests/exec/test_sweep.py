# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that is run once for each thing that can fail."""

from __future__ import annotations

import json
import subprocess
import sys

from .conftest import Compile, Exec


def test_a_careless_program_is_found_out(compile_c: Compile, gmemu_exec: Exec) -> None:
    program = compile_c("careless")
    command = [sys.executable, "-m", "gmemu", "exec", "--json", "sweep", "--", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["simulated"] is True
    assert found["points"] == found["succeeded"] + len(found["findings"])
    reasons = {finding["order"]: finding["why"] for finding in found["findings"]}
    assert reasons["alloc gmem-inode -> ENOMEM"] == "is killed by SIGSEGV"
    assert reasons["alloc gmem-attributes nth=2 -> ENOMEM"] == "is killed by SIGBUS"


def test_what_fails_by_itself_isnt_swept(gmemu_exec: Exec) -> None:
    command = [sys.executable, "-m", "gmemu", "exec", "sweep", "--", "false"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "has to succeed with nothing failing first" in done.stderr

# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in C, compiled once, and how they are run under `gmemu exec`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gmemu.exec.program import ProgramError
from gmemu.exec.run import libraries

PROGRAMS = Path(__file__).parent / "programs"

Compile = Callable[..., Path]
Exec = Callable[..., "subprocess.CompletedProcess[str]"]


def cases(name: str) -> list[str]:
    """The tests that a program has, by its own table."""
    return re.findall(r'^\t\{"(\w+)", \w+\},$', (PROGRAMS / f"{name}.c").read_text(), re.M)


@pytest.fixture(scope="session")
def compile_c(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile a program of tests/exec/programs by its name."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    directory = tmp_path_factory.mktemp("programs")

    def build(name: str, *flags: str) -> Path:
        target = directory / "-".join((name, *(Path(flag).name for flag in flags)))
        if not target.exists():
            command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(PROGRAMS / f"{name}.c")]
            subprocess.run([*command, "-pthread", *flags], check=True)
        return target

    return build


@pytest.fixture(scope="session")
def gmemu_exec() -> Exec:
    """Run a program under `gmemu exec`: gmemu_exec(program, *arguments, options=(...))."""
    try:
        libraries()
    except ProgramError as error:
        pytest.skip(str(error))

    def run(*command: str | Path, options: tuple[str, ...] = (), timeout: float = 60) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "gmemu", "exec", *options, "--", *map(str, command)]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, env=dict(os.environ))

    return run

# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of an unmodified VMM in C."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import Compile, Exec, cases

pytestmark = pytest.mark.skipif(find_spec("unicorn") is None, reason="guests run by Unicorn, which isn't installed")


OPTIONS = {"two_pools": ("--profile", "linux-6.12")}


@pytest.fixture(scope="module")
def program(compile_c: Compile) -> Path:
    """The program with all of them."""
    return compile_c("guests")


@pytest.mark.parametrize("case", cases("guests"))
def test_guest(case: str, program: Path, gmemu_exec: Exec) -> None:
    done = gmemu_exec(program, case, options=OPTIONS.get(case, ()), timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ok {case}\n", "")

# SPDX-License-Identifier: GPL-2.0-or-later
"""In-place conversion, as an unmodified program in C sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Compile, Exec, cases

OPTIONS = {"elevated_reference": ("--inject", "ref offset=0x2000 during=KVM_SET_MEMORY_ATTRIBUTES2")}


@pytest.fixture(scope="module")
def program(compile_c: Compile) -> Path:
    """The program with all of them."""
    return compile_c("conversions")


@pytest.mark.parametrize("case", cases("conversions"))
def test_conversion(case: str, program: Path, gmemu_exec: Exec) -> None:
    done = gmemu_exec(program, case, options=OPTIONS.get(case, ()))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ok {case}\n", "")

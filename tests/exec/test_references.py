# SPDX-License-Identifier: GPL-2.0-or-later
"""References that the program takes by its machine's own kernel, and by gup_test."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from .conftest import Compile, Exec, cases


@pytest.fixture(scope="module")
def program(compile_c: Compile) -> Path:
    """The program with all of them, linked to what answers VFIO's calls."""
    library = compile_c("vfio", "-shared", "-fPIC")
    return compile_c("pins", str(library))


@pytest.mark.parametrize("case", [case for case in cases("pins") if "liburing" not in case])
def test_references(case: str, program: Path, gmemu_exec: Exec) -> None:
    done = gmemu_exec(program, case)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ok {case}\n", "")


def test_liburing(compile_c: Compile, gmemu_exec: Exec) -> None:
    try:
        program = compile_c("pins", "-DLIBURING", "-l:liburing.so.2")
    except subprocess.CalledProcessError:
        pytest.skip("no liburing on this machine")
    done = gmemu_exec(program, "ring_buffers_by_liburing")
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok ring_buffers_by_liburing\n", "")


@pytest.mark.parametrize(
    ("case", "holder"),
    [
        ("gup_test", r"gup_test, PIN_LONGTERM_TEST_START of 0x[0-9a-f]+"),
        ("splice_into_a_pipe", r"vmsplice\(\) into pipe \d+ by thread \d+"),
        ("device_mappings", r"VFIO container \d+'s DMA mapping at iova 0x10000 by thread \d+"),
    ],
)
def test_the_holder_is_named(case: str, holder: str, program: Path, gmemu_exec: Exec) -> None:
    done = gmemu_exec(program, case, options=("--explain",))
    assert done.returncode == 0
    assert re.search(rf"held by {holder}", done.stderr)


def test_the_log_has_them(tmp_path: Path, program: Path, gmemu_exec: Exec) -> None:
    log = tmp_path / "log"
    assert gmemu_exec(program, "splice_into_a_pipe", options=("--log", str(log))).returncode == 0
    text = log.read_text()
    assert re.search(r"\* hold: by=vmsplice\(\) into pipe \d+ by thread \d+, pages=1", text)
    assert re.search(r"\* release: by=vmsplice\(\) into pipe \d+ by thread \d+", text)

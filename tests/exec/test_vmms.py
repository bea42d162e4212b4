# SPDX-License-Identifier: GPL-2.0-or-later
"""Small VMMs that know of nothing but libc and KVM, in C and in Rust."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import PROGRAMS, Compile, Exec

pytest.importorskip("unicorn", reason="guests of machine code need gmemu[exec]")


@pytest.mark.parametrize("profile", ["linux-6.12", "inplace-v13"])
def test_c_in_real_mode(compile_c: Compile, gmemu_exec: Exec, profile: str) -> None:
    done = gmemu_exec(compile_c("hello"), "real", options=("--profile", profile))
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\nhalted\n", "")


@pytest.mark.parametrize(
    "flags", [(), ("-no-pie",), ("-O2", "-D_FORTIFY_SOURCE=2"), ("-fsanitize=address",), ("-DBY_NUMBER",)], ids=" ".join
)
def test_c_in_long_mode(compile_c: Compile, gmemu_exec: Exec, flags: tuple[str, ...]) -> None:
    """However it was compiled: relocatable or not, with libc's checking functions, watched by AddressSanitizer,
    making its system calls by number."""
    try:
        program = compile_c("hello", *flags)
    except subprocess.CalledProcessError:
        pytest.skip(f"the compiler has no {' '.join(flags)} here")
    done = gmemu_exec(program, "long")
    assert (done.returncode, done.stdout) == (0, "5\ndevice: 7 at 0x400004\nhalted\n"), done.stderr


def test_rust(tmp_path: Path, gmemu_exec: Exec) -> None:
    compiler = shutil.which("rustc")
    if compiler is None:
        pytest.skip("no rustc on this machine")
    program = tmp_path / "hello"
    made = subprocess.run(
        [compiler, "--edition", "2021", "-O", "-o", str(program), str(PROGRAMS / "hello.rs")],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode and "linker" in made.stderr:
        pytest.skip("rustc has no linker")
    assert made.returncode == 0, made.stderr
    done = gmemu_exec(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\nhalted\n", "")

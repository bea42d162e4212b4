# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be run, what is refused, and what a program is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gmemu.exec.program import ProgramError, find_program
from gmemu.exec.settings import Settings

from .conftest import Compile, Exec


def test_a_static_program_is_refused_and_told_what_to_do(compile_c: Compile, gmemu_exec: Exec) -> None:
    static = compile_c("conversions", "-static")
    done = gmemu_exec(static, "errors")
    assert done.returncode == 2
    assert "statically linked" in done.stderr
    assert "Link it dynamically" in done.stderr


def test_a_script_is_judged_by_its_interpreter(tmp_path: Path, compile_c: Compile) -> None:
    static = compile_c("conversions", "-static")
    script = tmp_path / "script"
    script.write_text(f"#!{static}\n")
    script.chmod(0o755)
    with pytest.raises(ProgramError, match="statically linked"):
        find_program(str(script))
    script.write_text("#!/usr/bin/env sh\n")
    assert find_program(str(script)) == script


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"#!\n", "names no interpreter"),
        (b"\x7fELF\x01" + bytes(60), "isn't a program for 64-bit x86"),
        (b"\x7fELF\x02" + bytes(13) + b"\xb7" + bytes(45), "machine 183"),
        (b"x", "isn't a 64-bit ELF program"),
    ],
)
def test_what_is_no_program(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    path.chmod(0o755)
    with pytest.raises(ProgramError, match=complaint):
        find_program(str(path))


def test_another_c_library(tmp_path: Path, compile_c: Compile) -> None:
    path = tmp_path / "musl"
    ours, other = b"/lib64/ld-linux-x86-64.so.2\0", b"/lib/ld-musl-x86_64.so.1\0"
    path.write_bytes(compile_c("hello").read_bytes().replace(ours, other.ljust(len(ours), b"\0")))
    path.chmod(0o755)
    with pytest.raises(ProgramError, match=r"another C library than glibc \(its linker is /lib/ld-musl-x86_64.so.1\)"):
        find_program(str(path))


def test_set_user_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "setuid"
    path.write_bytes(b"\x7fELF\x02")
    path.chmod(0o4755)
    with pytest.raises(ProgramError, match="set-user-ID"):
        find_program(str(path))


def test_what_is_not_there(gmemu_exec: Exec) -> None:
    done = gmemu_exec("/nowhere/program")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such program" in done.stderr


def test_the_exit_status_and_output_are_the_programs(gmemu_exec: Exec) -> None:
    done = gmemu_exec("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert gmemu_exec("sh", "-c", "kill -TERM $$").returncode == -15


def test_a_program_that_wants_no_kvm_pays_for_none(gmemu_exec: Exec) -> None:
    """The kernel isn't loaded: not even a broken one is noticed."""
    done = gmemu_exec("sh", "-c", "unset GMEMU_EXEC_KERNEL; exec cat /proc/self/maps")
    assert done.returncode == 0
    assert "libgmemu-preload" in done.stdout
    assert "libpython" not in done.stdout


def test_the_machines_own_device_is_out_of_reach(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    """By another name, too."""
    if not Path("/dev/kvm").exists():
        pytest.skip("this machine has no /dev/kvm")
    link = tmp_path / "kvm-link"
    link.symlink_to("/dev/kvm")
    done = gmemu_exec("cat", link)
    assert done.returncode == 1
    assert os.strerror(6) in done.stderr


def test_settings_travel_by_environment() -> None:
    settings = Settings(profile="linux-6.12", platform="intel")
    assert Settings.from_environment(settings.to_environment()) == settings
    assert Settings.from_environment({}) == Settings()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that a program starts, and descriptors that it hands on: what works, what is refused."""

from __future__ import annotations

import os
import shutil
from errno import EACCES, ENODEV
from pathlib import Path

import pytest

from .conftest import Compile, Exec

WAYS = ("execve", "execv", "execvp", "execl", "fexecve", "vfork", "spawn", "spawnp")
_GLIBC, _MUSL = b"/lib64/ld-linux-x86-64.so.2\0", b"/lib/ld-musl-x86_64.so.1\0"


def _static(compile_c: Compile, name: str) -> Path:
    return compile_c(name, "-static")


def _other_libc(program: Path, tmp_path: Path) -> Path:
    """`program`, as if it were linked with musl."""
    other = tmp_path / "other"
    other.write_bytes(program.read_bytes().replace(_GLIBC, _MUSL.ljust(len(_GLIBC), b"\0")))
    other.chmod(0o755)
    return other


@pytest.mark.parametrize("way", [*WAYS, "bare", "execle"])
def test_a_program_finds_the_emulated_machine(compile_c: Compile, gmemu_exec: Exec, way: str) -> None:
    """Also one whose environment was cleared (bare, execle)."""
    done = gmemu_exec(compile_c("children"), way, compile_c("ask"), "/dev/kvm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "KVM 12\n", "")


@pytest.mark.parametrize("way", ["execve", "fexecve", "vfork", "spawnp"])
def test_a_static_program_that_names_kvm_isnt_started(compile_c: Compile, gmemu_exec: Exec, way: str) -> None:
    static = _static(compile_c, "hello")
    done = gmemu_exec(compile_c("children"), way, static, "real")
    assert (done.returncode, done.stdout) == (126, "")
    assert f"gmemu exec: {static} is statically linked" in done.stderr or "/proc/self/fd/" in done.stderr
    assert "Link it dynamically" in done.stderr
    if way != "vfork":
        assert os.strerror(EACCES) in done.stderr


@pytest.mark.parametrize("way", ["execvp", "vfork", "spawn"])
def test_any_other_static_program_runs_without_kvm(compile_c: Compile, gmemu_exec: Exec, way: str) -> None:
    """Even if it finds the device's name: the real kernel refuses each ioctl on a KVM."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("this machine has no /dev/kvm that could be opened")
    done = gmemu_exec(compile_c("children"), way, _static(compile_c, "ask"), "/dev/kvm")
    assert (done.returncode, done.stdout) == (0, f"no KVM: {os.strerror(ENODEV)}\n"), done.stderr


def test_the_starter_goes_on_with_kvm(compile_c: Compile, gmemu_exec: Exec) -> None:
    """A confined child confines nobody else."""
    children, static = compile_c("children"), _static(compile_c, "ask")
    done = gmemu_exec("sh", "-c", f"{children} spawn {static} /dev/null; {compile_c('ask')} /dev/kvm")
    assert done.stdout.splitlines()[-1] == "KVM 12"


def test_a_script_is_judged_by_its_interpreter(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{_static(compile_c, 'hello')} real\n")
    script.chmod(0o755)
    done = gmemu_exec(compile_c("children"), "execve", script, "real")
    assert (done.returncode, done.stdout) == (126, "")
    assert "is statically linked" in done.stderr


def test_another_c_library(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    done = gmemu_exec(compile_c("children"), "execve", _other_libc(compile_c("hello"), tmp_path), "real")
    assert done.returncode == 126
    assert "is linked with another C library than glibc" in done.stderr


def test_32_bits(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    program = bytearray(compile_c("hello").read_bytes())
    program[4] = 1
    small = tmp_path / "small"
    small.write_bytes(program)
    small.chmod(0o755)
    done = gmemu_exec(compile_c("children"), "execve", small, "real")
    assert done.returncode == 126
    assert "isn't a program for 64-bit x86" in done.stderr


def test_set_user_id_has_no_effect(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    """With the other user's rights it would come without this library."""
    if os.geteuid() != 0:
        pytest.skip("needs a file of another user, which only root can make")
    program = tmp_path / "setuid"
    shutil.copy(compile_c("ask"), program)
    os.chown(program, 65534, -1)
    program.chmod(0o4755)
    tmp_path.chmod(0o755)
    done = gmemu_exec(compile_c("children"), "execve", program, "/dev/kvm")
    assert (done.returncode, done.stdout) == (0, "KVM 12\n"), done.stderr


@pytest.mark.parametrize(("case", "answer"), [("dup", "ok\n"), ("message", "ok\n"), ("inherit", "closed\n")])
def test_descriptors(compile_c: Compile, gmemu_exec: Exec, case: str, answer: str) -> None:
    done = gmemu_exec(compile_c("children"), case)
    assert (done.returncode, done.stdout) == (0, answer), done.stderr
    assert ("can't be sent in a message" in done.stderr) == (case == "message")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that lack something: gmemu exec says in a sentence what, and what still works does."""

from __future__ import annotations

import os
from errno import EACCES, EOPNOTSUPP
from pathlib import Path

import pytest

from .conftest import Compile, Exec


@pytest.fixture
def without(compile_c: Compile) -> Path:
    """programs/without.c: the child of `gmemu exec` that starts the program proper, with less."""
    return compile_c("without")


class TestUserfaultfd:
    def test_a_conversion_says_what_is_lacking_once(self, without: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
        done = gmemu_exec(without, "userfaultfd", compile_c("conversions"), "one_among_many")
        assert done.returncode == 1
        [said] = [line for line in done.stderr.splitlines() if line.startswith("gmemu exec:")]
        assert "must have userfaultfd" in said
        assert "VMs without private memory, and guest_memfd that nobody maps, still work" in said
        assert "a container's seccomp profile may refuse it" in said
        assert os.strerror(EOPNOTSUPP) in done.stderr

    def test_a_guest_without_private_memory_runs(self, without: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
        pytest.importorskip("unicorn", reason="guests of machine code need gmemu[exec]")
        done = gmemu_exec(without, "userfaultfd", compile_c("hello"), "long")
        assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "halted", "")

    def test_guest_memfd_that_nobody_maps_works(self, without: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
        pytest.importorskip("unicorn", reason="guests of machine code need gmemu[exec]")
        done = gmemu_exec(without, "userfaultfd", compile_c("guests"), "two_pools", options=("--profile", "linux-6.12"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "ok two_pools\n", "")


class TestSeccomp:
    def test_a_static_child_isnt_started(self, without: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
        static = compile_c("ask", "-static")
        for way in ("execve", "spawn"):
            done = gmemu_exec(without, "seccomp", compile_c("children"), way, static, "/dev/null")
            assert (done.returncode, done.stdout) == (126, "")
            assert "by seccomp, which this machine's kernel lacks or refuses" in done.stderr
            assert "All programs that are dynamically linked with glibc still work" in done.stderr
            assert os.strerror(EACCES) in done.stderr

    def test_a_dynamic_one_is(self, without: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
        done = gmemu_exec(without, "seccomp", compile_c("children"), "execve", compile_c("ask"), "/dev/kvm")
        assert (done.returncode, done.stdout, done.stderr) == (0, "KVM 12\n", "")


@pytest.mark.parametrize("case", ["private_at_start", "one_among_many"])
def test_no_privilege_is_needed(without: Path, compile_c: Compile, gmemu_exec: Exec, case: str) -> None:
    done = gmemu_exec(without, "privilege", compile_c("conversions"), case)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ok {case}\n", "")

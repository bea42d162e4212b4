# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as a process: exit codes, streams, and what it imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

GMEMU = [sys.executable, "-m", "gmemu"]


def run(*words: str | Path, code: int = 0, **more: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*GMEMU, *map(str, words)], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done  # type: ignore[no-any-return]


def test_exit_codes(image: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    snp = ("measure", "snp", "--vcpu-type", "EPYC-v4", "--firmware", image)
    assert len(run(*snp, "--log", a).stdout) == 97
    run(*snp, "--vcpus", "2", "--log", b)
    run("measure", "diff", a, a)
    assert "different" in run("measure", "diff", a, b, code=1).stdout
    assert run("measure", "diff", a, tmp_path, code=2).stderr.count("\n") == 1
    assert run("no-such-command", code=2).stderr.count("\n") == 1


def test_a_reader_that_goes_away() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*GMEMU, "rules"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (2, "gmemu: the output was closed before everything was written\n")


def test_a_full_disk() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run([*GMEMU, "profiles"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "gmemu: the output can't be written: No space left on device\n")


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams(closed: int) -> None:
    done = subprocess.run(["sh", "-c", f'"$@" {closed}>&-', "sh", *GMEMU, "profiles"], capture_output=True, check=False)
    assert done.returncode == 0


def test_interrupt(image: Path, tmp_path: Path) -> None:
    """A fifo that nobody writes to keeps the command waiting until it's interrupted."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen([*GMEMU, "measure", "diff", str(fifo), str(fifo)], stderr=subprocess.PIPE, text=True)
    with open(fifo, "w"):  # returns when the command has come to reading it
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "gmemu: interrupted\n")


def test_what_isnt_needed_isnt_imported(image: Path) -> None:
    code = "import sys; from gmemu.cli.main import main; main(sys.argv[1:]); print(*sorted(sys.modules), file=sys.stderr)"
    words = ("measure", "snp", "--firmware", str(image), "--vcpu-type", "EPYC-v4")
    measured = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    modules = measured.stderr.split()
    assert "gmemu.launch.snp" in modules
    for heavy in "ctypes", "cryptography", "greenlet", "hypothesis", "gmemu.syscalls.host", "gmemu.cli.doctor", "json":
        assert heavy not in modules, f"gmemu measure imports {heavy}"
    plain = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    floors = {name.split(".")[1] for name in plain.stderr.split() if name.startswith("gmemu.")}
    assert floors == {"cli", "report"}

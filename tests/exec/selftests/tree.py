# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch a kernel's source, and build its KVM selftests unmodified."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["PACKAGE", "Missing", "build"]

PACKAGE = "linux-source-6.12"
_WANTED = ("Makefile", "Kbuild", "Kconfig", "arch", "include", "scripts", "tools", "usr")


class Missing(Exception):
    """Something that this needs can't be had.  The message says what."""


def build(directory: Path) -> Path:
    """Build all x86 KVM selftests below `directory`: where the programs are.  What is there already is kept."""
    programs = directory / "kvm"
    if (programs / "guest_memfd_test").exists():
        return programs
    directory.mkdir(parents=True, exist_ok=True)
    tree = _source(directory)
    objects = directory / "objects"
    _run(["make", "-s", "-C", str(tree), f"O={objects}", "ARCH=x86_64", "headers"], "the kernel's headers")
    programs.mkdir(exist_ok=True)
    jobs = len(os.sched_getaffinity(0))
    command = ["make", "-s", "-k", f"-j{jobs}", "-C", str(tree / "tools/testing/selftests/kvm"), "ARCH=x86_64"]
    _run([*command, f"OUTPUT={programs}", f"KHDR_INCLUDES=-isystem {objects}/usr/include", "all"], "the selftests")
    return programs


def _source(directory: Path) -> Path:
    """The source tree: GMEMU_LINUX_SOURCE, or the distribution's package."""
    given = os.environ.get("GMEMU_LINUX_SOURCE")
    if given:
        return Path(given)
    tree = directory / PACKAGE
    if tree.exists():
        return tree
    archive = Path(f"/usr/src/{PACKAGE}.tar.xz")
    if not archive.exists():
        if shutil.which("apt-get") is None:
            raise Missing(f"no apt-get here, and no {archive}: set GMEMU_LINUX_SOURCE to a source tree of Linux 6.12")
        try:
            _run(["apt-get", "download", PACKAGE], PACKAGE, directory)
        except Missing:  # perhaps its lists of packages are old, or not there
            _run([*([] if os.geteuid() == 0 else ["sudo", "-n"]), "apt-get", "update", "-qq"], "apt's lists")
            _run(["apt-get", "download", PACKAGE], PACKAGE, directory)
        package = next(directory.glob(f"{PACKAGE}_*.deb"))
        _run(["dpkg-deb", "-x", str(package), str(directory / "package")], PACKAGE)
        archive = directory / "package" / archive.relative_to("/")
    members = [f"{PACKAGE}/{name}" for name in _WANTED]
    _run(["tar", "-xf", str(archive), "-C", str(directory), *members], str(archive))
    return tree


def _run(command: list[str], what: str, directory: Path | None = None) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{what} can't be had: {' '.join(command[:4])} ...: {done.stderr.strip()[-400:]}")

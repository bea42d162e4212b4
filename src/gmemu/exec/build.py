# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile the two libraries of `gmemu exec`.  Needs a C compiler, Python's headers and its shared library.

Run at install (hatch_build.py), and by `gmemu exec` where that couldn't be done or the sources are newer.  Only the standard
library is used, as gmemu itself isn't importable while it's being installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

__all__ = ["KERNEL", "PRELOAD", "BuildError", "build", "is_current", "libpython"]

HERE = Path(__file__).parent
PRELOAD = "libgmemu-preload.so"
KERNEL = f"libgmemu-kernel.{sysconfig.get_config_var('SOABI')}.so"
_SOURCES = ("kernel.h", "preload.h", "preload.c", "children.c", "apart.c", "kernel.c")
_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-shared")


class BuildError(Exception):
    """The libraries can't be made here.  The message says what is missing."""


def libpython() -> Path:
    """This Python's shared library.  Raises `BuildError` when it was built without one."""
    name = sysconfig.get_config_var("INSTSONAME") or sysconfig.get_config_var("LDLIBRARY") or ""
    for directory in (sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL")):
        if directory and ".so" in name and (Path(directory) / name).exists():
            return Path(directory) / name
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for directory in ("/usr/lib", f"/usr/lib/{multiarch}"):
        if ".so" in name and (Path(directory) / name).exists():
            return Path(directory) / name
    raise BuildError(
        "this Python has no shared library (libpython), which gmemu exec brings into the program: "
        "use one that was built with --enable-shared, such as the distribution's (Debian: libpython3-dev)"
    )


def is_current(directory: Path) -> bool:
    """Whether both libraries are there and no source is newer."""
    made = [directory / name for name in (PRELOAD, KERNEL)]
    if not all(path.exists() for path in made):
        return False
    oldest = min(path.stat().st_mtime_ns for path in made)
    return all((HERE / name).stat().st_mtime_ns <= oldest for name in _SOURCES)


def build(directory: Path) -> None:
    """Compile both libraries into `directory`.  Raises `BuildError`."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BuildError("there is no C compiler: install one (Debian: gcc libc6-dev), or a wheel of gmemu")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        raise BuildError(f"Python's headers aren't in {headers}: install them (Debian: libpython3-dev)")
    libpython()
    _compile(compiler, directory / PRELOAD, ("preload.c", "children.c", "apart.c"), ("-ldl", "-pthread"))
    _compile(compiler, directory / KERNEL, ("kernel.c",), (f"-I{headers}", "-pthread"))


def _compile(compiler: str, target: Path, sources: tuple[str, ...], extra: tuple[str, ...]) -> None:
    """Compile to a name of our own first, so that nobody loads half a library."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *_FLAGS, "-o", str(made), *(str(HERE / source) for source in sources), *extra]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")
        made.replace(target)

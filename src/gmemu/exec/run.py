# SPDX-License-Identifier: GPL-2.0-or-later
"""Start a program with the library in front of its libc."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .build import KERNEL, PRELOAD, BuildError, build, is_current, libpython
from .program import ProgramError, find_program
from .settings import Settings

__all__ = ["environment", "host_platform", "libraries", "run"]

_ASAN = "verify_asan_link_order=0:detect_leaks=0"
"""AddressSanitizer wants to be the first library, and would count what the emulated kernel still has at the end as leaks."""


def libraries() -> Path:
    """The directory with both libraries: where they were installed, or else where they have been made now.

    Raises `ProgramError` if they aren't there and can't be made.
    """
    here = Path(__file__).parent
    if is_current(here):
        return here
    directory = here if os.access(here, os.W_OK) else _cache()
    if not is_current(directory):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            build(directory)
        except (BuildError, OSError) as error:
            raise ProgramError(f"the library that catches system calls can't be made: {error}") from error
    return directory


def host_platform() -> str:
    """Whose processor this machine has, "intel" or "amd": programs ask it themselves, so the emulated is alike."""
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        intel = False
    return "intel" if intel else "amd"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gmemu"


def _libpython() -> str:
    try:
        return str(libpython())
    except BuildError as error:
        raise ProgramError(str(error)) from error


def environment(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """`base`, and what makes a program find the emulated machine.  Raises `ProgramError`."""
    directory = libraries()
    preloaded = [str(directory / PRELOAD), *base.get("LD_PRELOAD", "").split()]
    return {
        **base,
        **settings.to_environment(),
        "ASAN_OPTIONS": ":".join([_ASAN, *filter(None, [base.get("ASAN_OPTIONS")])]),
        "LD_PRELOAD": " ".join(dict.fromkeys(preloaded)),
        "GMEMU_EXEC_KERNEL": str(directory / KERNEL),
        "GMEMU_EXEC_LIBPYTHON": _libpython(),
        "GMEMU_EXEC_PYTHON": sys.executable,
        "GMEMU_EXEC_PATH": ":".join(path for path in sys.path if path and Path(path).exists()),
    }


def run(settings: Settings, command: Sequence[str]) -> None:
    """Become `command`.  Raises `ProgramError` if that can't be."""
    program = find_program(command[0])
    prepared = environment(settings, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(program, list(command), prepared)
    except OSError as error:
        raise ProgramError(f"{program}: {error.strerror}") from error

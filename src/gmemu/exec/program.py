# SPDX-License-Identifier: GPL-2.0-or-later
"""Which programs can be run: those that the dynamic linker starts, as the library is put in front of libc by it."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from pathlib import Path

__all__ = ["ProgramError", "find_program"]

_PT_INTERP = 3
_ELFCLASS64 = 2
_EM_X86_64 = 62


class ProgramError(Exception):
    """The program can't be run here.  The message says why, and what to do."""


def find_program(name: str) -> Path:
    """The program that a shell would start for `name`.  Raises `ProgramError`."""
    found = shutil.which(name)
    if found is None:
        raise ProgramError(f"{name}: there is no such program, or it isn't executable")
    path = Path(found)
    _check(path, os.stat(path).st_mode)
    return path


def _check(path: Path, mode: int) -> None:
    if mode & (stat.S_ISUID | stat.S_ISGID):
        raise ProgramError(
            f"{path} is set-user-ID, and the dynamic linker preloads nothing into such: run a copy without it"
        )
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"#!"):
            line = head + file.readline()
            _check_interpreter(path, line.split(b"\n")[0][2:])
            return
        if not head.startswith(b"\x7fELF"):
            raise ProgramError(f"{path} isn't a 64-bit ELF program, nor a script")
        machine = struct.unpack_from("<H", head, 18)[0]
        if head[4] != _ELFCLASS64 or machine != _EM_X86_64:
            raise ProgramError(f"{path} isn't a program for 64-bit x86 (machine {machine}): build it for x86-64")
        offset, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        headers = file.read(size * count)
        segments = {struct.unpack_from("<I", headers, at)[0]: at for at in range(0, len(headers), size)}
        linker = b""
        if _PT_INTERP in segments:
            start, length = struct.unpack_from("<Q16xQ", headers, segments[_PT_INTERP] + 8)
            file.seek(start)
            linker = file.read(length).rstrip(b"\0")
    if not linker:
        raise ProgramError(
            f"{path} is statically linked: nothing can be put in front of its system calls, which would reach this "
            "machine's own /dev/kvm. Link it dynamically (gcc without -static; Rust: a *-linux-gnu target without "
            "+crt-static; Go: with cgo and -ldflags=-linkmode=external)"
        )
    if not Path(os.fsdecode(linker)).name.startswith("ld-linux"):
        raise ProgramError(
            f"{path} is linked with another C library than glibc (its linker is {os.fsdecode(linker)}), in front of which "
            "the library made here can't be put: build it for a *-linux-gnu target"
        )


def _check_interpreter(path: Path, line: bytes) -> None:
    words = line.split()
    if not words:
        raise ProgramError(f"{path} names no interpreter after #!")
    interpreter = os.fsdecode(words[1] if len(words) > 1 and Path(os.fsdecode(words[0])).name == "env" else words[0])
    find_program(interpreter)

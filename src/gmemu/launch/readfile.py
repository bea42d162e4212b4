# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading the files that a launch is made from, with errors for people."""

from __future__ import annotations

import io
import mmap
import os
from stat import S_ISREG

from .errors import LaunchError

__all__ = ["Contents", "read_file", "sha256_file"]

Contents = bytes | mmap.mmap
"""A file's bytes: read, or for a large one mapped, which saves a copy."""

MAPPED_FROM = 32 << 20
"""Files of this size (bytes) and more are mapped."""

_CHUNK = 1 << 20


def read_file(path: str | os.PathLike[str], what: str, limit: int) -> Contents:
    """The contents of a regular file of at most `limit` bytes; `what` is its part in the launch, for messages."""
    try:
        with _open(path, what) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise LaunchError(
                    f"the {what} file {os.fspath(path)} has {size:#x} bytes, and at most {limit:#x} can be taken"
                )
            if size >= MAPPED_FROM:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.readall()
    except LaunchError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error


def sha256_file(path: str | os.PathLike[str], what: str) -> bytes:
    """SHA-256 of a file's contents, read a piece at a time: a kernel or initrd may be large."""
    from hashlib import sha256

    digest = sha256()
    try:
        with _open(path, what) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except LaunchError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    return digest.digest()


def _open(path: str | os.PathLike[str], what: str) -> io.FileIO:
    """Open a regular file or /dev/null, but nothing that could block or never end."""
    if os.fspath(path) != os.devnull and not S_ISREG(os.stat(path).st_mode):
        raise LaunchError(f"the {what} {os.fspath(path)} isn't a regular file; give the path of an image")
    return io.FileIO(path)


def _unreadable(path: str | os.PathLike[str], what: str, error: Exception) -> LaunchError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return LaunchError(f"the {what} file {os.fspath(path)!s} can't be read: {why}")

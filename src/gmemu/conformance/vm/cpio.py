# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes an initramfs: a cpio archive in the "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

from stat import S_IFCHR, S_IFDIR, S_IFREG

__all__ = ["initramfs"]

_DIRECTORIES = ("dev", "proc", "sys", "tmp")
_CONSOLE = (5, 1)


def initramfs(init: bytes) -> bytes:
    """An archive with the program `init` as /init, the directories that it mounts on, and a console for the kernel."""
    entries = [_entry(name, S_IFDIR | 0o755) for name in _DIRECTORIES]
    entries.append(_entry("dev/console", S_IFCHR | 0o600, device=_CONSOLE))
    entries.append(_entry("init", S_IFREG | 0o755, init))
    entries.append(_entry("TRAILER!!!", 0))
    return b"".join(entries)


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    path = name.encode() + b"\0"
    ino, uid, gid, nlink, mtime, checksum = 0, 0, 0, 1, 0, 0
    fields = (ino, mode, uid, gid, nlink, mtime, len(data), 0, 0, *device, len(path), checksum)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + path) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)

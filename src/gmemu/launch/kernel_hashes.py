# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of hashes by which a measured firmware recognises the kernel it is handed.

The VMM writes SHA-256 of command line, initrd and kernel into a table at an address that the firmware names; the page
is measured and the firmware checks what it loads against it.  Layout and order: QEMU `target/i386/sev.c`,
`build_kernel_loader_hashes()`.
"""

from __future__ import annotations

import os

from ..uapi.layout import Struct, char, nested, u16
from .errors import LaunchError
from .guid import guid_bytes
from .ovmf import PAGE_SIZE
from .readfile import sha256_file

__all__ = ["HASHES_SIZE", "hash_inputs", "hashes_page"]

TABLE_GUID = "9438d606-4f22-4cc9-b479-a793d411fd21"
CMDLINE_GUID = "97d02dd8-bd20-4c94-aa78-e7714d36ab2a"
INITRD_GUID = "44baf731-3a2f-4bd7-9af1-41e29169781d"
KERNEL_GUID = "4de79437-abd2-427f-b835-d5b172d2045b"


class HashEntry(Struct):
    """One SHA-256 and what it is of; `length` in bytes, of the whole entry."""

    guid: bytes = char(16)
    length: int = u16()
    hash: bytes = char(32)


class HashTable(Struct):
    """The table; `length` in bytes, without the padding behind it."""

    guid: bytes = char(16)
    length: int = u16()
    cmdline: HashEntry = nested(HashEntry)
    initrd: HashEntry = nested(HashEntry)
    kernel: HashEntry = nested(HashEntry)


HASHES_SIZE = (HashTable.SIZE + 15) & ~15
"""Bytes that the table takes in its page, padding included."""


def hashes_page(offset_in_page: int, kernel: bytes, initrd: bytes, cmdline: bytes) -> bytes:
    """The page, 4096 bytes, with the table at `offset_in_page`; the arguments are SHA-256 digests.

    Raises `LaunchError` if the table doesn't fit behind `offset_in_page`.
    """
    if offset_in_page + HASHES_SIZE > PAGE_SIZE:
        raise LaunchError(
            f"the firmware wants the kernel hashes at offset {offset_in_page:#x} of their page, where the table of "
            f"{HASHES_SIZE:#x} bytes doesn't fit; the image is damaged"
        )
    table = HashTable(
        guid=guid_bytes(TABLE_GUID),
        length=HashTable.SIZE,
        cmdline=_entry(CMDLINE_GUID, cmdline),
        initrd=_entry(INITRD_GUID, initrd),
        kernel=_entry(KERNEL_GUID, kernel),
    )
    return (bytes(offset_in_page) + table.pack()).ljust(PAGE_SIZE, b"\0")


def hash_inputs(
    kernel: str | os.PathLike[str], initrd: str | os.PathLike[str] | None, append: str | None
) -> tuple[bytes, bytes, bytes]:
    """SHA-256 of the kernel file, the initrd file and the command line, in the order that `hashes_page` takes them.

    An absent initrd is an empty one.  The command line is hashed with the NUL that ends it.  Raises `LaunchError`.
    """
    from hashlib import sha256

    line = append or ""
    if "\0" in line:
        raise LaunchError(f"the kernel command line has a NUL at position {line.index(chr(0))}, where it would end")
    return (
        sha256_file(kernel, "kernel"),
        sha256_file(initrd, "initrd") if initrd else sha256(b"").digest(),
        sha256(line.encode("utf-8", "surrogateescape") + b"\0").digest(),
    )


def _entry(guid: str, digest: bytes) -> HashEntry:
    return HashEntry(guid=guid_bytes(guid), length=HashEntry.SIZE, hash=digest)

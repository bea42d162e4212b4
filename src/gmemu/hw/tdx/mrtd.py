# SPDX-License-Identifier: GPL-2.0-or-later
"""MRTD and the RTMRs (TDX module ABI: TDH.MEM.PAGE.ADD, TDH.MR.EXTEND, TDG.MR.RTMR.EXTEND).

MRTD is one SHA-384 over everything that was added, so pages can't be hashed side by side, and what can be saved is what
surrounds the hashing: pages with their contents are laid out as one piece, 6272 bytes each, and absorbed at once.  That
takes a fifth of the time of hashing it.  (A second thread that lays pages out ahead costs more than it hides.)
"""

from __future__ import annotations

import struct
from hashlib import sha384
from typing import NamedTuple

__all__ = ["DIGEST_SIZE", "MEASURED_PAGE_SIZE", "NR_RTMRS", "Mrtd", "Row", "Rtmrs"]

DIGEST_SIZE = 48
NR_RTMRS = 4
PAGE_SIZE = 4096
CHUNK = 256
CHUNKS = PAGE_SIZE // CHUNK

_ADD = b"MEM.PAGE.ADD".ljust(16, b"\0")
_EXTEND = b"MR.EXTEND".ljust(16, b"\0")
_HEAD = struct.Struct("<16sQ104x")
_CONTENTS = struct.Struct(f"{CHUNK}s" * CHUNKS)
_EXTENDS = struct.Struct("<" + f"16sQ104x{CHUNK}s" * CHUNKS)
MEASURED_PAGE_SIZE = (1 + CHUNKS) * 128 + PAGE_SIZE
"""Bytes that a page with its contents puts into MRTD."""


class _Layout:
    """How `pages` pages with their contents enter MRTD: parts of a name, an address and contents, of which a PAGE.ADD has
    none.  Four pages at once take some four hundredths less than four times one page."""

    def __init__(self, pages: int) -> None:
        self.size = pages * PAGE_SIZE
        self.names = ([_ADD] + [_EXTEND] * CHUNKS) * pages
        each = (0, *range(0, PAGE_SIZE, CHUNK))
        self.addresses = [page * PAGE_SIZE + address for page in range(pages) for address in each]
        self.pack = struct.Struct("<" + ("16sQ104x0s" + f"16sQ104x{CHUNK}s" * CHUNKS) * pages).pack
        self.contents = struct.Struct(("0s" + f"{CHUNK}s" * CHUNKS) * pages).unpack_from


_ONE_PAGE, _FOUR_PAGES = _Layout(1), _Layout(4)


class Row(NamedTuple):
    """One page that entered MRTD: its guest physical address (bytes), SHA-384 of its contents if they were measured, and
    MRTD as it would be if it were finished here."""

    gpa: int
    contents: bytes | None
    mrtd: bytes


class Mrtd:
    """The measurement of a TD's build."""

    def __init__(self) -> None:
        self._hash = sha384()

    def __repr__(self) -> str:
        return f"<Mrtd {self.value.hex()} (simulated)>"

    @property
    def value(self) -> bytes:
        """MRTD if it were finished now."""
        return self._hash.digest()

    def page_add(self, gpa: int, count: int = 1) -> None:
        """TDH.MEM.PAGE.ADD of `count` consecutive pages from `gpa` (bytes)."""
        pack, update = _HEAD.pack, self._hash.update
        for at in range(gpa, gpa + count * PAGE_SIZE, PAGE_SIZE):
            update(pack(_ADD, at))

    def extend(self, gpa: int, contents: bytes | memoryview) -> None:
        """TDH.MR.EXTEND of each 256 bytes of `contents`, which is found at `gpa` (bytes)."""
        pack, update = _HEAD.pack, self._hash.update
        for offset in range(0, len(contents), CHUNK):
            update(pack(_EXTEND, gpa + offset))
            update(contents[offset : offset + CHUNK])

    def page_add_extend(self, gpa: int, contents: bytes | memoryview) -> None:
        """TDH.MEM.PAGE.ADD and sixteen TDH.MR.EXTEND for each page of `contents` in turn, as KVM does it."""
        update, end, at = self._hash.update, len(contents), 0
        for layout in (_FOUR_PAGES, _ONE_PAGE):
            pack, unpack, addresses, size = layout.pack, layout.contents, layout.addresses, layout.size
            if at + size > end:
                continue
            parts: list[object] = [field for name in layout.names for field in (name, 0, b"")]
            while at + size <= end:
                here = gpa + at
                parts[1::3] = [here + address for address in addresses]
                parts[2::3] = unpack(contents, at)
                update(pack(*parts))
                at += size

    def extend_pages(self, gpa: int, contents: bytes | memoryview) -> None:
        """Sixteen TDH.MR.EXTEND for each page of `contents`, all after the pages were added: the order of two passes."""
        pack, unpack, update = _EXTENDS.pack, _CONTENTS.unpack_from, self._hash.update
        parts: list[object] = [_EXTEND, 0, b""] * CHUNKS
        for offset in range(0, len(contents), PAGE_SIZE):
            parts[1::3] = range(gpa, gpa + PAGE_SIZE, CHUNK)
            parts[2::3] = unpack(contents, offset)
            update(pack(*parts))
            gpa += PAGE_SIZE

    def row(self, gpa: int, contents: bytes | memoryview | None) -> Row:
        """What a log says of the page that was just measured."""
        return Row(gpa, None if contents is None else sha384(contents).digest(), self.value)


class Rtmrs:
    """The four registers that the guest extends."""

    def __init__(self) -> None:
        self.values = [bytes(DIGEST_SIZE)] * NR_RTMRS

    def extend(self, index: int, data: bytes) -> None:
        """TDG.MR.RTMR.EXTEND: RTMR = SHA-384(RTMR | 48 bytes of `data`)."""
        self.values[index] = sha384(self.values[index] + data).digest()

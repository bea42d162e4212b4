# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM can't go on from."""

from __future__ import annotations

__all__ = ["ConversionTimeout", "GuestStuck", "NoMemoryThere", "Poisoned", "VmmError"]


class VmmError(Exception):
    """The VMM gives up; one sentence for a person."""


class ConversionTimeout(VmmError):
    """Memory couldn't be converted although it was tried again and again: somebody keeps a page, or there is no memory.

    `gpa` (bytes) is the first page that wasn't converted; nothing from there on was.
    """

    def __init__(self, gpa: int, attempts: int, last: OSError) -> None:
        super().__init__(f"the page at gpa {gpa:#x} couldn't be converted in {attempts} attempts; the last one: {last}")
        self.gpa, self.attempts, self.last = gpa, attempts, last


class NoMemoryThere(VmmError):
    """The guest asked for, or touched, private memory at an address where it was given none."""

    def __init__(self, gpa: int, size: int) -> None:
        super().__init__(f"the guest has no memory that could be converted at gpa {gpa:#x}, {size:#x} bytes")
        self.gpa, self.size = gpa, size


class Poisoned(VmmError):
    """The guest touched a page whose memory went bad.  Its contents are lost: the guest has to be told, or ended."""

    def __init__(self, gpa: int) -> None:
        super().__init__(f"the memory behind gpa {gpa:#x} went bad (EHWPOISON); what the guest had there is lost")
        self.gpa = gpa


class GuestStuck(VmmError):
    """A guest wants the same memory converted again and again, and doesn't get on."""

    def __init__(self, gpa: int, private: bool, times: int) -> None:
        kind = "private" if private else "shared"
        super().__init__(f"a guest wanted gpa {gpa:#x} to be {kind} {times} times in a row; converting it doesn't help")
        self.gpa, self.private = gpa, private

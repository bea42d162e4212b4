# SPDX-License-Identifier: GPL-2.0-or-later
"""TDVF metadata: which sections of guest memory a TDX firmware wants, and what of them is measured.

An entry of OVMF's GUIDed table says how far before the end of the image the descriptor stands; sixteen bytes before that is
another GUID.  Sources: Intel's TDVF design guide, edk2 `OvmfPkg/ResetVector/X64/IntelTdxMetadata.asm`; what a VMM refuses is
from QEMU's `hw/i386/tdvf.c`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import NamedTuple

from ..uapi.layout import Struct, char, u32, u64
from .errors import LaunchError
from .guid import guid_bytes
from .ovmf import FOUR_GIB, PAGE_SIZE, Firmware

__all__ = ["TDVF_METADATA_GUID", "TDVF_OFFSET_GUID", "TdvfSection", "TdvfSectionType", "find_tdvf", "read_tdvf"]

TDVF_OFFSET_GUID = "e47a6535-984a-4798-865e-4685a7bf8ec2"
"""Of the table's entry: u32, bytes from the descriptor to the end of the image."""
TDVF_METADATA_GUID = "e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae"
"""What stands before the descriptor."""
SIGNATURE = b"TDVF"
VERSION = 1


class TdvfHead(Struct):
    """Head of the descriptor; `length` counts the sections too, in bytes."""

    signature: bytes = char(4)
    length: int = u32()
    version: int = u32()
    count: int = u32()


class TdvfDescriptor(Struct):
    """One section: where its data are in the image, and where it is in guest memory (bytes)."""

    data_offset: int = u32()
    raw_size: int = u32()
    gpa: int = u64()
    size: int = u64()
    type: int = u32()
    attributes: int = u32()


class TdvfSectionType(IntEnum):
    """What a section is for."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3
    PERM_MEM = 4
    PAYLOAD = 5
    PAYLOAD_PARAM = 6
    TD_INFO = 7


class TdvfAttributes(IntFlag):
    """Attributes of a section."""

    MR_EXTEND = 1 << 0
    """Its contents are measured."""
    PAGE_AUG = 1 << 1
    """It's added at run time, so it's no part of the launch."""


_TYPES = {int(t): t for t in TdvfSectionType}
_WITH_DATA = frozenset({TdvfSectionType.BFV, TdvfSectionType.CFV})
_WITHOUT_DATA = frozenset({TdvfSectionType.TD_HOB, TdvfSectionType.TEMP_MEM, TdvfSectionType.PERM_MEM})


class TdvfSection(NamedTuple):
    """A section; `gpa` and `size` in bytes, both multiples of a page.  `raw_size` bytes at `data_offset` are its data."""

    type: TdvfSectionType
    gpa: int
    size: int
    data_offset: int
    raw_size: int
    attributes: TdvfAttributes

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.gpa + self.size

    @property
    def measured(self) -> bool:
        """Whether its contents enter MRTD, and not only its addresses."""
        return bool(self.attributes & TdvfAttributes.MR_EXTEND)

    @property
    def at_launch(self) -> bool:
        """Whether the VMM adds it before the TD is final."""
        return not self.attributes & TdvfAttributes.PAGE_AUG


def find_tdvf(firmware: Firmware) -> int | None:
    """Where in the image the descriptor starts (bytes), or `None` if the image has none."""
    entry = firmware.tables.get(TDVF_OFFSET_GUID)
    if entry is None:
        return None
    if len(entry.data) < 4:
        raise LaunchError(f"{firmware.name}: the TDX metadata entry of the GUIDed table is cut short; the image is damaged")
    return firmware.size - int.from_bytes(entry.data[:4], "little")


def read_tdvf(firmware: Firmware) -> tuple[TdvfSection, ...]:
    """The sections, in the firmware's order.  Raises `LaunchError` for an image that no VMM would launch as a TD."""
    start = find_tdvf(firmware)
    if start is None:
        raise LaunchError(
            f"{firmware.name} has no TDX metadata in its GUIDed table, so it can't be launched as a TD; "
            f"use an image built for TDX, such as OVMF.fd of a recent edk2"
        )
    where = f"{firmware.name}: the TDX metadata, {firmware.size - start:#x} bytes before the end of the image,"
    if start < 16 or start + TdvfHead.SIZE > firmware.size:
        raise LaunchError(f"{where} doesn't lie in it: the image has {firmware.size:#x} bytes")
    if firmware.data[start - 16 : start] != guid_bytes(TDVF_METADATA_GUID):
        raise LaunchError(f"{where} isn't preceded by {TDVF_METADATA_GUID}; the image is damaged")
    head = TdvfHead.unpack_from(firmware.data, start)
    if head.signature != SIGNATURE:
        raise LaunchError(f"{where} starts with {head.signature!r} instead of {SIGNATURE!r}")
    if head.version != VERSION:
        raise LaunchError(f"{where} has version {head.version}, and only version {VERSION} is known")
    end = start + TdvfHead.SIZE + head.count * TdvfDescriptor.SIZE
    if end > firmware.size or head.length < end - start:
        raise LaunchError(
            f"{where} announces {head.count} sections, which don't fit in its length of {head.length:#x} bytes"
        )
    sections = tuple(_read_section(firmware, start + TdvfHead.SIZE + i * TdvfDescriptor.SIZE, i) for i in range(head.count))
    _check_apart(firmware, sections)
    return sections


def _read_section(firmware: Firmware, at: int, index: int) -> TdvfSection:
    """One section, checked as QEMU does it."""
    raw = TdvfDescriptor.unpack_from(firmware.data, at)
    where = f"{firmware.name}: section {index} of the TDX metadata, at offset {at:#x},"
    if raw.type not in _TYPES:
        known = ", ".join(f"{t:#x} {t.name}" for t in TdvfSectionType)
        raise LaunchError(f"{where} has type {raw.type:#x}; the known types are {known}")
    kind = _TYPES[raw.type]
    where += f" {kind.name} of {raw.size:#x} bytes at gpa {raw.gpa:#x},"
    if raw.gpa % PAGE_SIZE or raw.size % PAGE_SIZE:
        raise LaunchError(f"{where} isn't made of whole pages: gpa and size must be multiples of {PAGE_SIZE:#x}")
    if not raw.size:
        raise LaunchError(f"{where} is empty, and KVM adds no region of no pages")
    if raw.gpa + raw.size > FOUR_GIB:
        raise LaunchError(f"{where} lies outside guest memory, which ends at 4 GiB for the firmware")
    if raw.raw_size > raw.size:
        raise LaunchError(f"{where} has {raw.raw_size:#x} bytes of data, more than it is large")
    if kind in _WITH_DATA and not raw.raw_size:
        raise LaunchError(f"{where} has no data, and is part of the firmware")
    if kind in _WITHOUT_DATA and raw.raw_size:
        raise LaunchError(f"{where} has data, and is memory that the firmware wants empty")
    if raw.data_offset + raw.raw_size > firmware.size:
        raise LaunchError(
            f"{where} takes its data from offset {raw.data_offset:#x} to {raw.data_offset + raw.raw_size:#x}, and the image "
            f"has {firmware.size:#x} bytes; give the whole image (with its variables), such as OVMF.fd"
        )
    return TdvfSection(kind, raw.gpa, raw.size, raw.data_offset, raw.raw_size, TdvfAttributes(raw.attributes & 3))


def _check_apart(firmware: Firmware, sections: tuple[TdvfSection, ...]) -> None:
    """No page may be added twice: KVM refuses the second time."""
    for low, high in pairwise(sorted(sections, key=lambda s: s.gpa)):
        if low.end > high.gpa:
            raise LaunchError(
                f"{firmware.name}: two sections of the TDX metadata overlap, {low.type.name} at gpa "
                f"{low.gpa:#x}-{low.end - 1:#x} and {high.type.name} at gpa {high.gpa:#x}-{high.end - 1:#x}; a page can be "
                f"added once"
            )

# SPDX-License-Identifier: GPL-2.0-or-later
"""OVMF images: the GUIDed table at their end, and the SEV metadata that it points to.

An image is mapped so that it ends at 4 GiB.  32 bytes before its end stands a table that is read backwards: each entry
is data, then u16 length (of data and head together), then GUID; the entry nearest to the end is the table's footer and
its length is that of the whole table.  Sources: edk2 `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm` and
`X64/OvmfSevMetadata.asm`; how QEMU reads it: `hw/i386/pc_sysfw_ovmf.c` and `snp_populate_metadata_pages()` in
`target/i386/sev.c`.

What is refused here is what no launch could come of: QEMU gives up, or the kernel would refuse the section.  What QEMU
and sev-snp-measure both take is taken.
"""

from __future__ import annotations

import os
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple, TypeVar

from ..uapi.layout import Struct, char, u16, u32
from .errors import LaunchError
from .guid import guid_bytes, guid_text
from .readfile import Contents, read_file

__all__ = [
    "FOUR_GIB",
    "MAX_FIRMWARE_SIZE",
    "PAGE_SIZE",
    "Firmware",
    "MetadataSection",
    "SectionType",
    "TableEntry",
]

PAGE_SIZE = 4096
FOUR_GIB = 1 << 32
MAX_FIRMWARE_SIZE = 1 << 30
"""Bytes.  Larger than any flash, and it leaves guest memory below 4 GiB for the firmware's sections."""

BYTES_AFTER_TABLE = 32
FOOTER_GUID = "96b582de-1fb2-45f7-baea-a366c55a082d"
SEV_METADATA_GUID = "dc886566-984a-4798-a75e-5585a7bf67cc"
RESET_BLOCK_GUID = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
HASH_TABLE_GUID = "7255371f-3a3b-4b04-927b-1da6efa8d454"
_LOOKED_FOR = frozenset({SEV_METADATA_GUID, RESET_BLOCK_GUID, HASH_TABLE_GUID})
METADATA_SIGNATURE = b"ASEV"
METADATA_VERSION = 1

_S = TypeVar("_S", bound=Struct)


class TableEntryHead(Struct):
    """What follows an entry's data; `size` counts both, in bytes."""

    size: int = u16()
    guid: bytes = char(16)


class MetadataPointer(Struct):
    """Data of the SEV metadata entry: bytes from the metadata to the end of the image."""

    offset: int = u32()


class MetadataHead(Struct):
    """Head of the SEV metadata; `size` counts the descriptors too, in bytes."""

    signature: bytes = char(4)
    size: int = u32()
    version: int = u32()
    count: int = u32()


class MetadataDescriptor(Struct):
    """One section of guest memory that the VMM prepares; `gpa` and `size` in bytes."""

    gpa: int = u32()
    size: int = u32()
    type: int = u32()


class ResetBlock(Struct):
    """Data of the reset block entry: where application processors start under SEV-ES and SNP."""

    eip: int = u32()


class HashTableArea(Struct):
    """Data of the hash table entry: where the firmware looks for the hashes of kernel, initrd and command line."""

    gpa: int = u32()
    size: int = u32()


class SectionType(IntEnum):
    """What a metadata section is for (edk2 `OvmfSevMetadata.asm`)."""

    SEC_MEM = 1
    SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    KERNEL_HASHES = 0x10


_SECTION_TYPES = {int(t): t for t in SectionType}
_ONE_PAGE = frozenset({SectionType.SECRETS, SectionType.CPUID})


class MetadataSection(NamedTuple):
    """A section of guest memory named by the firmware; `gpa` and `size` in bytes, both multiples of a page."""

    gpa: int
    size: int
    type: SectionType

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.gpa + self.size


class TableEntry(NamedTuple):
    """An entry of the GUIDed table; `offset` is that of its data in the image, in bytes."""

    guid: str
    offset: int
    data: bytes


class Firmware:
    """An image that has been read and checked.  Nothing of it changes afterwards.

    `data` is the image, `gpa` where it starts in guest memory and `size` its length, in bytes.  `tables` holds the GUIDed
    table by GUID.  `sev_metadata` lists the sections in the firmware's order; `has_sev_metadata` tells an empty list from
    none.  `reset_eip` is where application processors start, `hash_table_gpa` where the kernel hashes go; each is `None`
    where the firmware names none, and zero is none (QEMU refuses both).
    """

    __slots__ = ("data", "gpa", "has_sev_metadata", "hash_table_gpa", "name", "reset_eip", "sev_metadata", "size", "tables")

    def __init__(self, data: Contents, name: str) -> None:
        self.name, self.data, self.size = name, data, len(data)
        _check_size(name, self.size)
        self.gpa = FOUR_GIB - self.size
        self.tables = _read_table(name, data)
        self.reset_eip = self._reset_eip()
        self.hash_table_gpa = self._hash_table_gpa()
        pointer = self._table_data(SEV_METADATA_GUID, MetadataPointer, "SEV metadata")
        self.has_sev_metadata = pointer is not None
        self.sev_metadata = _read_metadata(name, data, pointer.offset) if pointer else ()
        _check_apart(name, self.sev_metadata, self.gpa)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Firmware:
        """Read and check the image at `path`.  Raises `LaunchError`."""
        return cls(read_file(path, "firmware", MAX_FIRMWARE_SIZE), os.fspath(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Firmware:
        """Check an image that is in memory already; `name` is what messages call it.  Raises `LaunchError`."""
        return cls(data, name)

    def sections(self, kind: SectionType) -> list[MetadataSection]:
        """The metadata sections of one type."""
        return [s for s in self.sev_metadata if s.type is kind]

    def __repr__(self) -> str:
        return f"<Firmware {self.name} {self.size:#x} bytes at {self.gpa:#x}, {len(self.sev_metadata)} sections>"

    def _reset_eip(self) -> int | None:
        block = self._table_data(RESET_BLOCK_GUID, ResetBlock, "SEV-ES reset block")
        return (block.eip or None) if block else None

    def _hash_table_gpa(self) -> int | None:
        area = self._table_data(HASH_TABLE_GUID, HashTableArea, "SEV hash table")
        return (area.gpa or None) if area else None

    def _table_data(self, guid: str, kind: type[_S], what: str) -> _S | None:
        entry = self.tables.get(guid)
        if entry is None:
            return None
        if len(entry.data) < kind.SIZE:
            raise LaunchError(
                f"{self.name}: the {what} entry of the GUIDed table, at offset {entry.offset:#x}, has {len(entry.data)} "
                f"bytes of data, where {kind.SIZE} are needed; the image is damaged"
            )
        return kind.unpack_from(entry.data)


def _check_size(name: str, size: int) -> None:
    if not size:
        raise LaunchError(f"{name} is empty; give an OVMF image")
    if size % PAGE_SIZE:
        raise LaunchError(
            f"{name} has {size:#x} bytes, which is no multiple of a page ({PAGE_SIZE:#x}); it is cut short, or no firmware"
        )
    if size > MAX_FIRMWARE_SIZE:
        raise LaunchError(f"{name} has {size:#x} bytes, and at most {MAX_FIRMWARE_SIZE:#x} fit below 4 GiB")


def _read_table(name: str, data: Contents) -> dict[str, TableEntry]:
    """Walk the GUIDed table from its footer backwards, as `pc_system_ovmf_table_find()` does."""
    footer_at = len(data) - BYTES_AFTER_TABLE - TableEntryHead.SIZE
    footer = TableEntryHead.unpack_from(data, footer_at)
    if footer.guid != guid_bytes(FOOTER_GUID):
        raise LaunchError(
            f"{name} is no OVMF image: the GUIDed table's footer isn't at offset {footer_at:#x}, "
            f"{BYTES_AFTER_TABLE + TableEntryHead.SIZE} bytes before the end; give an image with code, such as OVMF.fd"
        )
    start = footer_at + TableEntryHead.SIZE - footer.size
    if not 0 <= start <= footer_at:
        raise LaunchError(
            f"{name}: the footer at offset {footer_at:#x} gives the GUIDed table a length of {footer.size:#x} bytes, "
            f"which must be from {TableEntryHead.SIZE:#x} to what stands before it; the image is damaged"
        )
    entries: dict[str, TableEntry] = {}
    end = footer_at
    while end - start >= TableEntryHead.SIZE:
        entry = _read_entry(name, data, start, end)
        known = entries.setdefault(entry.guid, entry)
        if known.data != entry.data and entry.guid in _LOOKED_FOR:
            raise LaunchError(
                f"{name}: the GUIDed table has two entries {entry.guid} with different data, at offsets {known.offset:#x} "
                f"and {entry.offset:#x}, and VMMs disagree on which one counts"
            )
        end = entry.offset
    return entries


def _read_entry(name: str, data: Contents, start: int, end: int) -> TableEntry:
    """The entry of the table from `start` that ends at `end`, both offsets in the image."""
    head_at = end - TableEntryHead.SIZE
    head = TableEntryHead.unpack_from(data, head_at)
    if not TableEntryHead.SIZE <= head.size <= end - start:
        raise LaunchError(
            f"{name}: the entry of the GUIDed table at offset {head_at:#x} has a length of {head.size:#x} bytes, "
            f"which must be from {TableEntryHead.SIZE:#x} to the {end - start:#x} left in the table; the image is damaged"
        )
    return TableEntry(guid_text(head.guid), end - head.size, data[end - head.size : head_at])


def _read_metadata(name: str, data: Contents, offset: int) -> tuple[MetadataSection, ...]:
    """The sections of the SEV metadata that starts `offset` bytes before the end of the image."""
    where = f"{name}: the SEV metadata, {offset:#x} bytes before the end of the image,"
    start = len(data) - offset
    if start < 0 or offset < MetadataHead.SIZE:
        raise LaunchError(
            f"{where} doesn't lie in it: the image has {len(data):#x} bytes and the metadata at least {MetadataHead.SIZE:#x}"
        )
    head = MetadataHead.unpack_from(data, start)
    if head.signature != METADATA_SIGNATURE:
        raise LaunchError(f"{where} starts with {head.signature!r} instead of {METADATA_SIGNATURE!r}")
    if head.version != METADATA_VERSION:
        raise LaunchError(f"{where} has version {head.version}, and only version {METADATA_VERSION} is known")
    if head.size > offset:
        raise LaunchError(f"{where} gives its length as {head.size:#x} bytes and so runs out of the image")
    if head.size < MetadataHead.SIZE + head.count * MetadataDescriptor.SIZE:
        raise LaunchError(f"{where} announces {head.count} sections, which don't fit in its length of {head.size:#x} bytes")
    return tuple(
        _read_section(name, data, start + MetadataHead.SIZE + i * MetadataDescriptor.SIZE, i) for i in range(head.count)
    )


def _read_section(name: str, data: Contents, at: int, index: int) -> MetadataSection:
    """One section, checked by what KVM_SEV_SNP_LAUNCH_UPDATE and the firmware demand of its pages."""
    descriptor = MetadataDescriptor.unpack_from(data, at)
    gpa, size, number = descriptor.gpa, descriptor.size, descriptor.type
    where = f"{name}: section {index} of the SEV metadata, at offset {at:#x},"
    if number not in _SECTION_TYPES:
        known = ", ".join(f"{t:#x} {t.name}" for t in SectionType)
        raise LaunchError(f"{where} has type {number:#x}; the known types are {known}")
    kind = _SECTION_TYPES[number]
    where += f" {kind.name} of {size:#x} bytes at gpa {gpa:#x},"
    if gpa % PAGE_SIZE or size % PAGE_SIZE:
        raise LaunchError(f"{where} isn't made of whole pages: gpa and size must be multiples of {PAGE_SIZE:#x}")
    if not size:
        raise LaunchError(f"{where} is empty, and KVM takes no launch update of no pages")
    if gpa + size > FOUR_GIB:
        raise LaunchError(f"{where} lies outside guest memory, which ends at 4 GiB for the firmware")
    if kind in _ONE_PAGE and size != PAGE_SIZE:
        raise LaunchError(f"{where} must be one page: there is one {kind.name} page")
    return MetadataSection(gpa, size, kind)


def _check_apart(name: str, sections: tuple[MetadataSection, ...], firmware_gpa: int) -> None:
    """No page may be launched twice: the second time its RMP entry is assigned, and KVM refuses it."""
    ordered = sorted(sections)
    for low, high in pairwise(ordered):
        if low.end > high.gpa:
            raise LaunchError(
                f"{name}: two sections of the SEV metadata overlap, {low.type.name} at gpa {low.gpa:#x}-{low.end - 1:#x} "
                f"and {high.type.name} at gpa {high.gpa:#x}-{high.end - 1:#x}; a page can be launched once"
            )
    if ordered and ordered[-1].end > firmware_gpa:
        last = ordered[-1]
        raise LaunchError(
            f"{name}: the SEV metadata's section {last.type.name} at gpa {last.gpa:#x}-{last.end - 1:#x} overlaps the "
            f"firmware itself, which starts at gpa {firmware_gpa:#x}; a page can be launched once"
        )

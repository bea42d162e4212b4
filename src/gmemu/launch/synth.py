# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that look like OVMF from the outside.  They are not real firmware: no guest boots from one.

They carry what a VMM reads (the GUIDed table, the SEV metadata, the reset block, the place of the kernel hashes) around
bytes that mean nothing.  A demonstration without OVMF at hand uses one, and says so; tests vary every part.
"""

from __future__ import annotations

from collections.abc import Iterable

from .guid import guid_bytes
from .ovmf import (
    BYTES_AFTER_TABLE,
    FOOTER_GUID,
    HASH_TABLE_GUID,
    METADATA_SIGNATURE,
    METADATA_VERSION,
    PAGE_SIZE,
    RESET_BLOCK_GUID,
    SEV_METADATA_GUID,
    HashTableArea,
    MetadataDescriptor,
    MetadataHead,
    MetadataPointer,
    ResetBlock,
    SectionType,
    TableEntryHead,
)

__all__ = ["AMDSEV_SECTIONS", "OVMF_SECTIONS", "make_firmware"]

OVMF_SECTIONS: tuple[tuple[int, int, int], ...] = (
    (0x800000, 0x9000, SectionType.SEC_MEM),
    (0x80A000, 0x3000, SectionType.SEC_MEM),
    (0x80D000, 0x1000, SectionType.SECRETS),
    (0x80E000, 0x1000, SectionType.CPUID),
    (0x80F000, 0x11000, SectionType.SEC_MEM),
)
"""The sections (gpa, size, type; bytes) of edk2's OvmfPkgX64 of 2022, without a page for kernel hashes."""

AMDSEV_SECTIONS: tuple[tuple[int, int, int], ...] = (
    *OVMF_SECTIONS[:4],
    (0x80F000, 0x1000, SectionType.SVSM_CAA),
    (0x810000, 0x1000, SectionType.KERNEL_HASHES),
    (0x811000, 0xF000, SectionType.SEC_MEM),
)
"""The sections of edk2's AmdSevX64, with a page for kernel hashes and one for an SVSM."""

AMDSEV_HASH_TABLE = 0x810C00
OVMF_RESET_EIP = 0x80B004
HASH_TABLE_ROOM = 0x400
_RESET_CODE = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt


def make_firmware(
    size: int = 16 * PAGE_SIZE,
    sections: Iterable[tuple[int, int, int]] | None = AMDSEV_SECTIONS,
    reset_eip: int | None = OVMF_RESET_EIP,
    hash_table_gpa: int | None = AMDSEV_HASH_TABLE,
    *,
    footer: bool = True,
    other_entries: Iterable[tuple[str, bytes]] = (),
    seed: int = 0,
) -> bytes:
    """An image of `size` bytes, a multiple of 4096.

    `sections` are (gpa, size, type), in bytes; `None` leaves the SEV metadata out, as `None` for `reset_eip` or
    `hash_table_gpa` leaves that table entry out, and `footer` false the footer.  `other_entries` are (GUID, data) that
    no VMM looks for.  The filling depends on `seed` alone.  Nothing is checked, so that a test can make a bad image; a
    table that doesn't fit is a `ValueError`.
    """
    metadata = b"" if sections is None else _metadata(sections)
    entries = list(other_entries)
    if reset_eip is not None:
        entries.append((RESET_BLOCK_GUID, ResetBlock(eip=reset_eip).pack()))
    if hash_table_gpa is not None:
        entries.append((HASH_TABLE_GUID, HashTableArea(gpa=hash_table_gpa, size=HASH_TABLE_ROOM).pack()))
    if sections is not None:
        entries.append((SEV_METADATA_GUID, MetadataPointer(offset=0).pack()))
    table_size = sum(TableEntryHead.SIZE + len(data) for _, data in entries) + TableEntryHead.SIZE
    if sections is not None:
        entries[-1] = (SEV_METADATA_GUID, MetadataPointer(offset=BYTES_AFTER_TABLE + table_size + len(metadata)).pack())
    table = b"".join(_entry(guid, data) for guid, data in entries)
    if footer:
        table += TableEntryHead(size=table_size, guid=guid_bytes(FOOTER_GUID)).pack()
    reset_vector = _RESET_CODE.rjust(PAGE_SIZE, b"\x90")[-20:].ljust(BYTES_AFTER_TABLE, b"\0")
    tail = metadata + table + reset_vector
    if len(tail) > size:
        raise ValueError(f"tables of {len(tail):#x} bytes don't fit an image of {size:#x}")
    return _filling(size - len(tail), seed) + tail


def _metadata(sections: Iterable[tuple[int, int, int]]) -> bytes:
    descriptors = [MetadataDescriptor(gpa=gpa, size=size, type=int(kind)).pack() for gpa, size, kind in sections]
    head = MetadataHead(
        signature=METADATA_SIGNATURE,
        size=MetadataHead.SIZE + len(descriptors) * MetadataDescriptor.SIZE,
        version=METADATA_VERSION,
        count=len(descriptors),
    )
    return head.pack() + b"".join(descriptors)


def _entry(guid: str, data: bytes) -> bytes:
    return data + TableEntryHead(size=TableEntryHead.SIZE + len(data), guid=guid_bytes(guid)).pack()


def _filling(size: int, seed: int) -> bytes:
    """Bytes without a pattern, so that no two pages are alike."""
    from hashlib import shake_128

    return shake_128(b"gmemu synthetic firmware %d" % seed).digest(size)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that look like TDVF from the outside.  They are not real firmware: no TD boots from one."""

from __future__ import annotations

from collections.abc import Iterable

from .guid import guid_bytes
from .ovmf import FOUR_GIB, PAGE_SIZE
from .synth import make_firmware
from .tdvf import (
    SIGNATURE,
    TDVF_METADATA_GUID,
    TDVF_OFFSET_GUID,
    VERSION,
    TdvfAttributes,
    TdvfDescriptor,
    TdvfHead,
    TdvfSectionType,
)

__all__ = ["make_tdvf", "tdvf_sections"]

DESCRIPTOR_FROM_END = 0x840
"""Where edk2 has it."""

Section = tuple[int, int, int, int, int, int]
"""data offset, raw size, gpa, size, type, attributes."""


def tdvf_sections(image_size: int, variables: int = PAGE_SIZE) -> tuple[Section, ...]:
    """The sections of edk2's OvmfPkgX64 of 2022 around an image of `image_size` bytes, of which the first are variables."""
    gpa = FOUR_GIB - image_size
    code = image_size - variables
    return (
        (variables, code, gpa + variables, code, TdvfSectionType.BFV, TdvfAttributes.MR_EXTEND),
        (0, variables, gpa, variables, TdvfSectionType.CFV, 0),
        (0, 0, 0x810000, 0x10000, TdvfSectionType.TEMP_MEM, 0),
        (0, 0, 0x80B000, 0x2000, TdvfSectionType.TEMP_MEM, 0),
        (0, 0, 0x809000, 0x2000, TdvfSectionType.TD_HOB, 0),
        (0, 0, 0x800000, 0x6000, TdvfSectionType.TEMP_MEM, 0),
    )


def make_tdvf(
    size: int = 16 * PAGE_SIZE,
    sections: Iterable[Section] | None = None,
    *,
    guid: bool = True,
    signature: bytes = SIGNATURE,
    version: int = VERSION,
    count: int | None = None,
    offset: int = DESCRIPTOR_FROM_END,
    seed: int = 0,
) -> bytes:
    """An image of `size` bytes with TDX metadata.  Nothing is checked, so that a test can make a bad image."""
    listed = list(tdvf_sections(size) if sections is None else sections)
    head = TdvfHead(
        signature=signature,
        length=TdvfHead.SIZE + len(listed) * TdvfDescriptor.SIZE,
        version=version,
        count=len(listed) if count is None else count,
    )
    descriptors = b"".join(
        TdvfDescriptor(data_offset=at, raw_size=raw, gpa=gpa, size=length, type=int(kind), attributes=int(attributes)).pack()
        for at, raw, gpa, length, kind, attributes in listed
    )
    entry = (TDVF_OFFSET_GUID, offset.to_bytes(4, "little"))
    image = bytearray(make_firmware(size, None, hash_table_gpa=None, other_entries=[entry], seed=seed))
    start = size - DESCRIPTOR_FROM_END
    image[start - 16 : start] = guid_bytes(TDVF_METADATA_GUID) if guid else bytes(16)
    metadata = head.pack() + descriptors
    image[start : start + len(metadata)] = metadata
    return bytes(image)

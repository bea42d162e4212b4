# SPDX-License-Identifier: GPL-2.0-or-later
"""TDVF metadata: what is read, and what is refused and how."""

from __future__ import annotations

import pytest

from gmemu.launch.errors import LaunchError
from gmemu.launch.ovmf import FOUR_GIB, Firmware
from gmemu.launch.synth import make_firmware
from gmemu.launch.td_synth import make_tdvf, tdvf_sections
from gmemu.launch.tdvf import TdvfSectionType, read_tdvf

SIZE = 16 * 4096
BFV, CFV, HOB, TEMP = TdvfSectionType.BFV, TdvfSectionType.CFV, TdvfSectionType.TD_HOB, TdvfSectionType.TEMP_MEM


def image(*sections: tuple[int, int, int, int, int, int], **options: object) -> Firmware:
    return Firmware.from_bytes(make_tdvf(SIZE, sections or None, **options), "an image")  # type: ignore[arg-type]


def test_sections_are_read_in_order() -> None:
    sections = read_tdvf(image())
    assert [s.type for s in sections] == [BFV, CFV, TEMP, TEMP, HOB, TEMP]
    assert [(s.data_offset, s.raw_size, s.gpa, s.size) for s in sections] == [s[:4] for s in tdvf_sections(SIZE)]
    assert [s.measured for s in sections] == [True, False, False, False, False, False]
    assert all(s.at_launch for s in sections)
    assert sections[0].end == FOUR_GIB


def test_an_image_without() -> None:
    with pytest.raises(LaunchError, match="has no TDX metadata"):
        read_tdvf(Firmware.from_bytes(make_firmware(), "plain"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guid": False}, "isn't preceded by e9eaf9f3"),
        ({"signature": b"FVDT"}, "starts with b'FVDT'"),
        ({"version": 2}, "has version 2"),
        ({"count": 7}, "announces 7 sections"),
        ({"count": 1 << 31}, "announces"),
        ({"offset": 1 << 31}, "doesn't lie in it"),
        ({"offset": 4}, "doesn't lie in it"),
    ],
)
def test_a_damaged_descriptor(options: dict[str, object], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        read_tdvf(image(**options))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ((0, 0, 0x800000, 0x1000, 9, 0), "type 0x9; the known types are 0x0 BFV"),
        ((0, 0, 0x800001, 0x1000, TEMP, 0), "isn't made of whole pages"),
        ((0, 0, 0x800000, 0x1001, TEMP, 0), "isn't made of whole pages"),
        ((0, 0, 0x800000, 0, TEMP, 0), "is empty"),
        ((0, 0, FOUR_GIB, 0x1000, TEMP, 0), "lies outside guest memory"),
        ((0, 0x2000, 0x800000, 0x1000, BFV, 1), "more than it is large"),
        ((0, 0, 0x800000, 0x1000, BFV, 1), "has no data"),
        ((0, 0x1000, 0x800000, 0x1000, HOB, 0), "has data, and is memory"),
        ((SIZE, 0x1000, 0x800000, 0x1000, CFV, 0), "give the whole image"),
    ],
)
def test_a_section_that_no_vmm_would_launch(section: tuple[int, int, int, int, int, int], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        read_tdvf(image(section))


def test_sections_that_overlap() -> None:
    with pytest.raises(LaunchError, match=r"TD_HOB at gpa 0x801000-0x802fff.*added once"):
        read_tdvf(image((0, 0, 0x800000, 0x2000, TEMP, 0), (0, 0, 0x801000, 0x2000, HOB, 0)))

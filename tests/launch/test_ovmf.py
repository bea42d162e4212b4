# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading firmware: what real images hold, what is refused and how, and that nothing but `LaunchError` ever comes out."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmemu.launch.errors import LaunchError
from gmemu.launch.guid import guid_bytes, guid_text
from gmemu.launch.ovmf import (
    FOOTER_GUID,
    FOUR_GIB,
    HASH_TABLE_GUID,
    RESET_BLOCK_GUID,
    SEV_METADATA_GUID,
    Firmware,
    MetadataSection,
    SectionType,
)
from gmemu.launch.plan import plan_snp
from gmemu.launch.synth import AMDSEV_HASH_TABLE, AMDSEV_SECTIONS, OVMF_RESET_EIP, make_firmware

from .oracle import PAGE, installed_image, plan_digest

FOOTER_AT = -32 - 18
"""Offset of the table's footer from the end of an image."""

OTHER_GUID = "4c2eb361-7d9b-4cc3-8081-127c90d3d294"


@given(st.uuids())
def test_guids_are_mixed_endian(value: uuid.UUID) -> None:
    assert guid_bytes(str(value)) == value.bytes_le
    assert guid_text(value.bytes_le) == str(value)


def test_a_short_guid_is_refused() -> None:
    with pytest.raises(ValueError, match="is no GUID"):
        guid_bytes("96b582de-1fb2-45f7-baea-a366")


def test_debians_ovmf_has_metadata() -> None:
    firmware = Firmware.load(installed_image("OVMF.fd"))
    assert firmware.gpa + firmware.size == FOUR_GIB
    assert firmware.reset_eip
    assert {s.type for s in firmware.sev_metadata} >= {SectionType.SEC_MEM, SectionType.SECRETS, SectionType.CPUID}


def test_debians_4m_code_has_none_and_loads() -> None:
    firmware = Firmware.load(installed_image("OVMF_CODE_4M.fd"))
    assert firmware.reset_eip
    assert firmware.has_sev_metadata == bool(firmware.sev_metadata)


def test_synthetic_image_reads_back() -> None:
    firmware = Firmware.from_bytes(make_firmware(other_entries=[(OTHER_GUID, b"12345")]), "synthetic")
    assert (firmware.gpa, firmware.size) == (FOUR_GIB - 16 * PAGE, 16 * PAGE)
    assert (firmware.reset_eip, firmware.hash_table_gpa) == (OVMF_RESET_EIP, AMDSEV_HASH_TABLE)
    assert firmware.sev_metadata == tuple(MetadataSection(g, s, SectionType(t)) for g, s, t in AMDSEV_SECTIONS)
    assert set(firmware.tables) == {OTHER_GUID, RESET_BLOCK_GUID, HASH_TABLE_GUID, SEV_METADATA_GUID}
    entry = firmware.tables[OTHER_GUID]
    assert entry.data == b"12345"
    assert firmware.data[entry.offset : entry.offset + 5] == b"12345"
    assert "7 sections" in repr(firmware)


def test_what_is_absent_is_none() -> None:
    firmware = Firmware.from_bytes(make_firmware(sections=None, reset_eip=None, hash_table_gpa=None), "bare")
    assert (firmware.has_sev_metadata, firmware.sev_metadata) == (False, ())
    assert (firmware.reset_eip, firmware.hash_table_gpa, firmware.tables) == (None, None, {})
    assert Firmware.from_bytes(make_firmware(sections=()), "empty").has_sev_metadata


def _patched(offset: int, patch: bytes, base: bytes | None = None) -> bytes:
    data = bytearray(base or make_firmware())
    offset %= len(data)
    data[offset : offset + len(patch)] = patch
    return bytes(data)


def _metadata_at(data: bytes) -> int:
    return data.index(b"ASEV")


def _metadata_patch(offset: int, value: int) -> bytes:
    data = make_firmware()
    return _patched(_metadata_at(data) + offset, value.to_bytes(4, "little"), data)


def _section_image(*sections: tuple[int, int, int]) -> bytes:
    return make_firmware(sections=sections)


REFUSED = [
    (b"", "is empty"),
    (bytes(5000), "no multiple of a page"),
    (bytes(PAGE), "is no OVMF image"),
    (make_firmware(footer=False), "is no OVMF image"),
    (make_firmware()[:-PAGE], "is no OVMF image"),
    (_patched(FOOTER_AT, b"\x05\0"), "a length of 0x5 bytes"),
    (_patched(FOOTER_AT, b"\xff\xff", make_firmware(PAGE)), "a length of 0xffff bytes"),
    (_patched(FOOTER_AT - 18, b"\x00\x00"), "a length of 0x0 bytes, which must be from 0x12"),
    (_patched(FOOTER_AT - 18, b"\x00\x40"), "a length of 0x4000 bytes, which must be from 0x12"),
    (make_firmware(other_entries=[(SEV_METADATA_GUID, bytes(4))]), "two entries dc886566.* with different data"),
    (make_firmware(reset_eip=None, other_entries=[(RESET_BLOCK_GUID, b"abc")]), "reset block entry .* has 3 bytes"),
    (make_firmware(hash_table_gpa=None, other_entries=[(HASH_TABLE_GUID, b"abcd")]), "hash table entry .* has 4 bytes"),
    (make_firmware(sections=None, other_entries=[(SEV_METADATA_GUID, b"")]), "SEV metadata entry .* has 0 bytes"),
    (make_firmware(sections=None, other_entries=[(SEV_METADATA_GUID, b"\x00\x00\x00\x70")]), "doesn't lie in it"),
    (make_firmware(sections=None, other_entries=[(SEV_METADATA_GUID, b"\x08\x00\x00\x00")]), "doesn't lie in it"),
    (make_firmware(sections=None, other_entries=[(SEV_METADATA_GUID, b"\x40\x00\x00\x00")]), "instead of b'ASEV'"),
    (_metadata_patch(4, 0xFFFFFFFF), "runs out of the image"),
    (_metadata_patch(4, 0), "announces 7 sections, which don't fit"),
    (_metadata_patch(8, 2), "has version 2"),
    (_metadata_patch(12, 8), "announces 8 sections, which don't fit"),
    (_metadata_patch(12, 0xFFFFFFFF), "announces 4294967295 sections"),
    (_section_image((0x1000, PAGE, 0)), "has type 0x0; the known types are 0x1 SEC_MEM"),
    (_section_image((0x1000, PAGE, 5)), "section 0 .* has type 0x5"),
    (_section_image((0x1000, PAGE, 1), (0x3800, PAGE, 1)), "section 1 .* SEC_MEM of 0x1000 bytes at gpa 0x3800, isn't made"),
    (_section_image((0x1000, 0x1800, 1)), "isn't made of whole pages"),
    (_section_image((0x1000, 0, 1)), "is empty"),
    (_section_image((0xFFFFF000, 2 * PAGE, 1)), "outside guest memory"),
    (_section_image((0x1000, 2 * PAGE, 2)), "must be one page: there is one SECRETS page"),
    (_section_image((0x1000, 2 * PAGE, 3)), "must be one page: there is one CPUID page"),
    (
        _section_image((0x1000, 2 * PAGE, 1), (0x2000, PAGE, 2)),
        "SEC_MEM at gpa 0x1000-0x2fff and SECRETS at gpa 0x2000-0x2fff",
    ),
    (_section_image((0x1000, PAGE, 2), (0x1000, PAGE, 2)), "two sections .* overlap"),
    (_section_image((FOUR_GIB - 17 * PAGE, 2 * PAGE, 1)), "overlaps the firmware itself"),
]


@pytest.mark.parametrize(("data", "sentence"), REFUSED, ids=[s for _, s in REFUSED])
def test_bad_images_are_refused_in_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(LaunchError, match=sentence) as caught:
        Firmware.from_bytes(data, "bad.fd")
    assert str(caught.value).startswith("bad.fd")
    assert "\n" not in str(caught.value)


def test_too_large_an_image_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.fd"
    with path.open("wb") as file:
        file.truncate((1 << 30) + PAGE)
    with pytest.raises(LaunchError, match="at most 0x40000000"):
        Firmware.load(path)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/nonexistent/OVMF.fd", "the firmware file /nonexistent/OVMF.fd can't be read: No such file or directory"),
        ("/", "isn't a regular file"),
        ("/dev/zero", "isn't a regular file"),
        ("/dev/null", "is empty"),
        ("a\0b", "can't be read"),
    ],
)
def test_unreadable_files(path: str, sentence: str) -> None:
    with pytest.raises(LaunchError, match=sentence):
        Firmware.load(path)


def test_metadata_may_be_longer_than_its_sections() -> None:
    """Later versions of edk2 may add to it; QEMU goes by the count."""
    data = make_firmware()
    at = _metadata_at(data)
    longer = int.from_bytes(data[at + 4 : at + 8], "little") + 8
    assert Firmware.from_bytes(_patched(at + 4, longer.to_bytes(4, "little"), data), "longer").sev_metadata


def test_an_equal_entry_twice_is_harmless() -> None:
    entry = (RESET_BLOCK_GUID, OVMF_RESET_EIP.to_bytes(4, "little"))
    assert Firmware.from_bytes(make_firmware(other_entries=[entry]), "twice").reset_eip == OVMF_RESET_EIP


def test_entries_that_nobody_looks_for_may_repeat() -> None:
    data = make_firmware(other_entries=[(OTHER_GUID, b"1"), (OTHER_GUID, b"2")])
    assert Firmware.from_bytes(data, "twice").tables[OTHER_GUID].data == b"2"


def test_a_footer_of_nothing_is_an_empty_table() -> None:
    assert Firmware.from_bytes(_patched(FOOTER_AT, b"\x12\0"), "bare").tables == {}
    assert guid_bytes(FOOTER_GUID) in make_firmware()


# --- Fuzzing ----------------------------------------------------------------------------------------------------------

_SMALL = make_firmware(2 * PAGE, other_entries=[(OTHER_GUID, b"12345")])
_TABLES = len(_SMALL) - _metadata_at(_SMALL)
_interesting = st.sampled_from(
    [0, 1, 0x11, 0x12, 0x7F, 0x80, 0xFF, 0x1000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF]
)


def _survives(data: bytes) -> None:
    """Either a firmware that can be planned and measured, or one sentence."""
    sentence = ""
    try:
        plan = plan_snp(Firmware.from_bytes(data, "fuzzed.fd"), 2, "EPYC-v4", 1, "/dev/null")
        if plan.pages < 1000:
            assert len(plan_digest(plan)) == 96
    except LaunchError as error:
        sentence = str(error)
        assert sentence
    assert "\n" not in sentence


@settings(deadline=None, max_examples=1500)
@given(
    patches=st.lists(st.tuples(st.integers(1, _TABLES), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_fuzz_bytes_of_the_tables(patches: list[tuple[int, bytes]]) -> None:
    data = bytearray(_SMALL)
    for before_end, patch in patches:
        at = len(data) - before_end
        data[at : at + len(patch)] = patch[: len(data) - at]
    _survives(bytes(data))


@settings(deadline=None, max_examples=1500)
@given(at=st.integers(4, _TABLES), width=st.sampled_from([2, 4]), value=_interesting)
def test_fuzz_numbers_of_the_tables(at: int, width: int, value: int) -> None:
    offset = len(_SMALL) - at
    _survives(_patched(offset, (value & (1 << 8 * width) - 1).to_bytes(width, "little"), _SMALL))


@settings(deadline=None, max_examples=300)
@given(start=st.integers(0, len(_SMALL)), end=st.integers(0, len(_SMALL)))
def test_fuzz_truncation(start: int, end: int) -> None:
    _survives(_SMALL[start:end])
    _survives(_SMALL[start:] + bytes(start))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=2 * PAGE))
def test_fuzz_anything(data: bytes) -> None:
    _survives(data)
    _survives(data.rjust(2 * PAGE, b"\0"))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_fuzz_real_firmware(data: st.DataObject) -> None:
    image = Path(installed_image("OVMF.fd")).read_bytes()[-16 * PAGE :]
    at = data.draw(st.integers(len(image) - 0x600, len(image) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=8))[: len(image) - at]
    _survives(_patched(at, patch, image))

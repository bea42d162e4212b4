# SPDX-License-Identifier: GPL-2.0-or-later
"""Synthetic images, and the search for real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmemu.launch.find import FIRMWARE_PATHS, find_firmware
from gmemu.launch.ovmf import FOUR_GIB, Firmware
from gmemu.launch.synth import OVMF_SECTIONS, make_firmware

from .oracle import PAGE


def test_image_depends_on_the_seed_alone() -> None:
    assert make_firmware() == make_firmware()
    assert make_firmware(seed=1) != make_firmware()
    assert len(make_firmware(3 * PAGE)) == 3 * PAGE


def test_no_two_pages_are_alike() -> None:
    data = make_firmware(64 * PAGE)
    assert len({data[i : i + PAGE] for i in range(0, len(data), PAGE)}) == 64


def test_reset_vector_is_where_a_vcpu_starts() -> None:
    data = make_firmware()
    assert data[0xFFFFFFF0 - FOUR_GIB :][:2] == b"\xfa\xf4"


def test_tables_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="don't fit an image of 0x1000"):
        make_firmware(PAGE, [(i * PAGE, PAGE, 1) for i in range(500)])


def test_search_prefers_sev_metadata(tmp_path: Path) -> None:
    paths = tuple(str(tmp_path / name) for name in ("absent", "broken", "bare", "other-bare", "good", "later"))
    for path, data in zip(
        paths[1:],
        (bytes(PAGE), make_firmware(sections=None), make_firmware(sections=None), make_firmware(), make_firmware(seed=1)),
        strict=True,
    ):
        Path(path).write_bytes(data)
    assert find_firmware(paths) == paths[4]
    assert find_firmware(paths[:4]) == paths[2]
    assert find_firmware(paths[:2]) is None


def test_search_on_this_machine() -> None:
    path = find_firmware()
    if path is None:
        pytest.skip(f"no OVMF on this machine (Debian package ovmf): looked for {', '.join(FIRMWARE_PATHS)}")
    assert Firmware.load(path).reset_eip


def test_default_sections_are_those_of_debians_image() -> None:
    if not Path("/usr/share/ovmf/OVMF.fd").is_file():
        pytest.skip("OVMF.fd isn't installed (Debian package ovmf)")
    firmware = Firmware.load("/usr/share/ovmf/OVMF.fd")
    if len(firmware.sev_metadata) != len(OVMF_SECTIONS):
        pytest.skip("another version of OVMF than that of Debian 12")
    assert tuple((s.gpa, s.size, s.type) for s in firmware.sev_metadata) == OVMF_SECTIONS

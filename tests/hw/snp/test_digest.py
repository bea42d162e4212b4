# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch digest against known values, against its definition, and against itself by other ways."""

from __future__ import annotations

import mmap
import os
import random
import threading
from hashlib import sha384

import pytest

from gmemu.hw.snp import hashing
from gmemu.hw.snp.digest import BLANK, LaunchDigest, Row, vmsa_contents
from gmemu.uapi.sev import SnpPageType

NORMAL, VMSA, ZERO, UNMEASURED, SECRETS, CPUID = SnpPageType
ZEROS, AS = bytes(4096), b"A" * 4096
VMSA_GPA = 0xFFFFFFFFF000

VECTORS = [
    (
        NORMAL,
        ZEROS,
        0x1000,
        "e6e4d78904d9d6b33c0cbfd121998fd2d11744dae606b3aee35e2a45d6869b60b35c63928a9232bef72d6be386f48ec6",
    ),
    (NORMAL, AS, 0x1000, "ba3d0e531f228b81d4f6eb53577eade9a10d849eb03fd0d672b91c1fff5fb29c16d5f65cfe0054cbeffd9b2ef8287697"),
    (
        VMSA,
        ZEROS,
        VMSA_GPA,
        "f4577da9b848673216afc3909e5ea7aa80150dda441526874cd2b0282894709b46484c13a07221aefbedfff667199259",
    ),
    (ZERO, None, 0x1000, "4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044a28bbe585a2f75dac9356fa5ab78f061"),
    (
        UNMEASURED,
        None,
        0x1000,
        "81475a112c0223cebe1ccb31a0aa2567772871200b33515a3cbbd5ed6a68a8e630902dd83469ea6553554bfb67111fad",
    ),
    (
        SECRETS,
        None,
        0x1000,
        "ede71fa5ddc72c3de70c6ff1149b8ecb6ef08b74b1d3a72c2cece10bd140c06a6181343d33def7db6cc0da1ff9ba4805",
    ),
    (
        CPUID,
        None,
        0x1000,
        "af3c8d305f882f039a48318a961572ddc7ebf40b3d1eae828f4fa6e27a7b3078cf2d84b459e002fb58b4ae83efd7f29c",
    ),
]
FOUR_PAGES = "5f6ff95ddaac7476b5282397139ffde182830372e7a598ce2b92e7fe3011a74f4816e4e113e258fe16cddb1fe875c18c"


def contents_of(page_type: SnpPageType, page: bytes | None) -> bytes:
    if page is None:
        return BLANK
    return vmsa_contents(page) if page_type == VMSA else sha384(page).digest()


@pytest.mark.parametrize(("page_type", "page", "gpa", "expected"), VECTORS)
def test_vectors(page_type: SnpPageType, page: bytes | None, gpa: int, expected: str) -> None:
    ld = LaunchDigest()
    assert ld.extend(page_type, gpa, contents_of(page_type, page)).hex() == expected
    assert ld.value.hex() == expected
    assert "simulated" in repr(ld)


@pytest.mark.parametrize(("page_type", "page", "gpa", "expected"), VECTORS)
def test_vectors_by_the_batch(page_type: SnpPageType, page: bytes | None, gpa: int, expected: str) -> None:
    ld = LaunchDigest()
    rows = ld.extend_blank(page_type, gpa, 1) if page is None else ld.extend_pages(page_type, gpa, memoryview(page))
    assert rows == [(gpa, contents_of(page_type, page), bytes.fromhex(expected))]


def test_four_pages() -> None:
    ld = LaunchDigest()
    ld.extend_pages(NORMAL, 0x1000, memoryview(AS))
    for page_type, gpa in ((ZERO, 0x2000), (SECRETS, 0x3000), (CPUID, 0x4000)):
        ld.extend(page_type, gpa, BLANK)
    assert ld.value.hex() == FOUR_PAGES


def page_info(ld: bytes, contents: bytes, page_type: int, imi: int, masks: tuple[int, int, int], gpa: int) -> bytes:
    info = bytearray(112)
    info[0x00:0x30], info[0x30:0x60] = ld, contents
    info[0x60:0x62] = (0x70).to_bytes(2, "little")
    info[0x62], info[0x63] = page_type, imi
    info[0x65:0x68] = bytes(masks)
    info[0x68:0x70] = gpa.to_bytes(8, "little")
    return bytes(info)


@pytest.mark.parametrize("imi", [False, True])
@pytest.mark.parametrize("masks", [(0, 0, 0), (1, 3, 31)])
def test_page_info_byte_by_byte(imi: bool, masks: tuple[int, int, int]) -> None:
    contents = sha384(AS).digest()
    first = sha384(page_info(BLANK, contents, NORMAL, imi, masks, 0xABCDE000)).digest()
    second = sha384(page_info(first, contents, NORMAL, imi, masks, 0xABCDF000)).digest()
    ld = LaunchDigest()
    assert ld.extend(NORMAL, 0xABCDE000, contents, imi=imi, vmpl_masks=masks) == first
    assert ld.extend(NORMAL, 0xABCDF000, contents, imi=imi, vmpl_masks=masks) == second
    ld = LaunchDigest()
    rows = ld.extend_pages(NORMAL, 0xABCDE000, memoryview(AS + AS), imi=imi, vmpl_masks=masks)
    assert rows == [(0xABCDE000, contents, first), (0xABCDF000, contents, second)]


def test_vmsa_fields_that_are_measured_as_zero() -> None:
    page = bytearray(random.Random(1).randbytes(4096))
    measured = vmsa_contents(page)
    page[0x2F0:0x300] = bytes(16)
    assert measured == vmsa_contents(page) == sha384(page).digest()
    for at in (0x2EF, 0x300):
        other = bytearray(page)
        other[at] ^= 1
        assert vmsa_contents(other) != measured


def reference(image: bytes, gpa: int) -> list[Row]:
    ld, rows = LaunchDigest(), []
    for at in range(0, len(image), 4096):
        contents = sha384(image[at : at + 4096]).digest()
        rows.append((gpa + at, contents, ld.extend(NORMAL, gpa + at, contents)))
    return rows


PAGES = 700


@pytest.fixture(scope="module")
def image() -> bytes:
    return random.Random(2).randbytes(PAGES * 4096)


@pytest.mark.parametrize("pages", [0, 1, 63, 64, 65, 129, PAGES])
def test_threads_change_nothing(image: bytes, pages: int) -> None:
    part = image[: pages * 4096]
    ld = LaunchDigest()
    rows = ld.extend_pages(NORMAL, 0x10000, memoryview(part))
    assert rows == reference(part, 0x10000)
    assert ld.value == (rows[-1][2] if rows else BLANK)


@pytest.mark.parametrize("pages", [64, 600, PAGES])
def test_a_forked_child_changes_nothing(image: bytes, pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "FORK_FROM", 64)
    monkeypatch.setattr(hashing, "BLOCK", 128)
    monkeypatch.setattr("os.listdir", lambda path: ["1"])
    part = image[: pages * 4096]
    assert LaunchDigest().extend_pages(NORMAL, 0, memoryview(part)) == reference(part, 0)


def test_a_child_that_dies_is_made_up_for(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "FORK_FROM", 64)
    monkeypatch.setattr("os.listdir", lambda path: ["1"])
    parent, hash_pages = os.getpid(), hashing._hash

    def only_here(view: memoryview, first: int, last: int) -> list[bytes]:
        if os.getpid() != parent:
            os._exit(1)
        return hash_pages(view, first, last)

    monkeypatch.setattr(hashing, "_hash", only_here)
    assert LaunchDigest().extend_pages(NORMAL, 0, memoryview(image)) == reference(image, 0)


def test_a_child_that_someone_else_waited_for(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "FORK_FROM", 64)
    monkeypatch.setattr("os.listdir", lambda path: ["1"])
    wait = os.waitpid

    def gone(pid: int, options: int) -> tuple[int, int]:
        wait(pid, options)
        raise ChildProcessError

    monkeypatch.setattr("os.waitpid", gone)
    assert LaunchDigest().extend_pages(NORMAL, 0, memoryview(image)) == reference(image, 0)


def test_no_fork_where_there_are_threads(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "FORK_FROM", 64)
    monkeypatch.setattr("os.fork", lambda: pytest.fail("forked"))
    go = threading.Event()
    other = threading.Thread(target=go.wait)
    other.start()
    try:
        assert LaunchDigest().extend_pages(NORMAL, 0, memoryview(image)) == reference(image, 0)
    finally:
        go.set()
        other.join()


def test_memory_can_be_closed_afterwards(image: bytes) -> None:
    """Nothing keeps a slice of the view."""
    memory = mmap.mmap(-1, len(image))
    memory[:] = image
    LaunchDigest().extend_pages(NORMAL, 0, memoryview(memory))
    memory.close()


def test_whole_pages_only() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        LaunchDigest().extend_pages(NORMAL, 0, memoryview(bytes(4097)))

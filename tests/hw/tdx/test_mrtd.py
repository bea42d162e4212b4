# SPDX-License-Identifier: GPL-2.0-or-later
"""MRTD and RTMRs against vectors, and against a second, plain implementation."""

from hashlib import sha384, shake_128

import pytest

from gmemu.hw.tdx.mrtd import Mrtd, Row, Rtmrs

from .machine import GPA, PFN, TDR, Machine

PAGE = 4096
A, ZERO = b"A" * PAGE, bytes(PAGE)


def block(name: bytes, gpa: int) -> bytes:
    return name.ljust(16, b"\0") + gpa.to_bytes(8, "little") + bytes(104)


def plain(*operations: tuple[str, int, bytes]) -> bytes:
    """MRTD as the ABI words it: one SHA-384, one block for each ADD, three for each EXTEND."""
    stream = b""
    for what, gpa, contents in operations:
        if what == "add":
            stream += block(b"MEM.PAGE.ADD", gpa)
        else:
            for at in range(0, PAGE, 256):
                stream += block(b"MR.EXTEND", gpa + at) + contents[at : at + 256]
    return sha384(stream).digest()


def test_nothing_measured() -> None:
    expected = "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b"
    assert Mrtd().value.hex() == expected


VECTORS = [
    (
        [("add", 0x1000, b"")],
        "fcdabf6fdf38b87d2e3a89b1ab68c242abb261dffa70ef6f1dc2220c2752d2729cdf1be92afc2e0e4297f04e2b629552",
    ),
    (
        [("add", 0x1000, b""), ("extend", 0x1000, ZERO)],
        "ca76d5541328afef8bc9364261c515aebef90412ebc56ca0c2260ec531a14462cfc0c11de61d84292ddf8ca871da1ff1",
    ),
    (
        [("add", 0x1000, b""), ("extend", 0x1000, A)],
        "e43732a04011da0258ab791a4b4646eef256aaf0600c291123ffeff01eb61010581fdf4e5030716326c54fd85f3d33cf",
    ),
    (
        [("add", 0x1000, b""), ("extend", 0x1000, A), ("add", 0x2000, b""), ("extend", 0x2000, ZERO)],
        "98a88d2361ff3efd147a8a7e564267988654687810d61ac49dcb278798d148fdc9ec6b03d3a9d34ec2f5fa67c879df15",
    ),
    (
        [("add", 0x1000, b""), ("add", 0x2000, b""), ("extend", 0x1000, A), ("extend", 0x2000, ZERO)],
        "78e1973124ea2d10c3f057567a64d2df892d7c3661bc0cdd41b9e25009a108b549c8efae4216edd633d6390e63698187",
    ),
]


@pytest.mark.parametrize(("operations", "expected"), VECTORS)
def test_vectors(operations: list[tuple[str, int, bytes]], expected: str) -> None:
    mrtd = Mrtd()
    for what, gpa, contents in operations:
        mrtd.page_add(gpa) if what == "add" else mrtd.extend(gpa, contents)
    assert mrtd.value.hex() == expected == plain(*operations).hex()


def test_many_pages_at_once_are_the_same_as_one_by_one() -> None:
    contents = shake_128(b"pages").digest(5 * PAGE)
    pages = [(0x7000 + i * PAGE, contents[i * PAGE : (i + 1) * PAGE]) for i in range(5)]
    interleaved, two_pass = Mrtd(), Mrtd()
    interleaved.page_add_extend(0x7000, memoryview(contents))
    assert interleaved.value == plain(*(op for gpa, page in pages for op in (("add", gpa, b""), ("extend", gpa, page))))
    two_pass.page_add(0x7000, 5)
    two_pass.extend_pages(0x7000, contents)
    assert two_pass.value == plain(*(("add", gpa, b"") for gpa, _ in pages), *(("extend", gpa, page) for gpa, page in pages))
    assert two_pass.value != interleaved.value


def test_rtmr_extend() -> None:
    rtmrs = Rtmrs()
    rtmrs.extend(2, b"\x01" * 48)
    rtmrs.extend(2, b"\x02" * 48)
    assert rtmrs.values[2] == sha384(sha384(bytes(48) + b"\x01" * 48).digest() + b"\x02" * 48).digest()
    assert rtmrs.values[0] == bytes(48)


def test_the_module_measures_what_it_copies(m: Machine) -> None:
    m.initialize()
    m.tables()
    m.memory.write(0x100 << 12, A)
    assert m.module.mem_page_add(TDR, GPA, PFN, 0x100)[1] == 1
    assert not m.module.mr_extend_page(TDR, GPA).status
    assert m.module.mem_page_add(TDR, GPA + PAGE, PFN + 1, PFN + 1)[1] == 1
    assert not m.module.mr_extend_page(TDR, GPA + PAGE).status
    steps = [("add", GPA, b""), ("extend", GPA, A), ("add", GPA + PAGE, b""), ("extend", GPA + PAGE, ZERO)]
    assert m.td.mrtd.value == plain(*steps)


def test_a_log_has_each_page_and_the_measurement_after_it(m: Machine) -> None:
    m.initialize()
    m.tables()
    rows: list[Row] = []
    m.module.log = lambda tdr, more: rows.extend(more)
    m.memory.write(0x100 << 12, A)
    assert m.module.mem_page_add_extend(TDR, GPA, PFN, 0x100, 2)[1] == 2
    assert m.module.mem_page_add(TDR, GPA + 2 * PAGE, PFN + 2, 0x102)[1] == 1
    assert [row.gpa for row in rows] == [GPA, GPA + PAGE, GPA + 2 * PAGE]
    assert [row.contents for row in rows] == [sha384(A).digest(), sha384(ZERO).digest(), None]
    assert rows[0].mrtd == plain(("add", GPA, b""), ("extend", GPA, A))
    assert rows[-1].mrtd == m.td.mrtd.value

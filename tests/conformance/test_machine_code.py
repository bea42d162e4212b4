# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes of a guest's program."""

import pytest

from gmemu.conformance.guests import REPORT_PORT, Hypercall, Load, Op, Out, Store, lower
from gmemu.conformance.machine_code import assemble

HALT = "f4 eb fd"
PORT = REPORT_PORT.to_bytes(4, "little").hex()


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (Load(0x12345678, 4), f"a1 78563412 ba {PORT} ef"),
        (Load(0x1000, 2), f"66 a1 00100000 ba {PORT} 66 ef"),
        (Load(0x1000, 1), f"a0 00100000 ba {PORT} ee"),
        (Store(0x1000, b"\x01\x02\x03\x04"), "b8 01020304 a3 00100000"),
        (Store(0x1000, b"\x01\x02"), "b8 01020000 66 a3 00100000"),
        (Store(0x1000, b"\x01"), "b8 01000000 a2 00100000"),
        (Out(0x3F8, b"A"), "b8 41000000 ba f8030000 ee"),
        (Out(0x80, b"ABCD"), "b8 41424344 ba 80000000 ef"),
        (Hypercall(12, (0x1000, 1)), f"bb 00100000 b9 01000000 b8 0c000000 0f01d9 ba {PORT} ef"),
    ],
)
def test_one_operation(op: Op, code: str) -> None:
    assert assemble([op]).hex(" ") == bytes.fromhex(code + HALT).hex(" ")


def test_nothing_halts() -> None:
    assert assemble([]) == bytes.fromhex(HALT)


def test_loads_and_stores_are_cut_to_what_one_instruction_moves() -> None:
    assert lower([Load(0x1000, 7)]) == [Load(0x1000, 4), Load(0x1004, 2), Load(0x1006, 1)]
    assert lower([Store(0x1000, b"abcdefgh")]) == [Store(0x1000, b"abcd"), Store(0x1004, b"efgh")]


def test_a_gpa_beyond_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="0x100000000"):
        assemble([Load(1 << 32)])

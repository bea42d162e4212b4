# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import struct
from typing import TypeVar

import pytest

from gmemu.uapi.layout import Struct, char, nested, s8, s16, s32, s64, u8, u16, u32, u64

T = TypeVar("T", bound=Struct)


class Inner(Struct):
    """Three bytes of data in four."""

    wide: int = u16()
    narrow: int = u8()


class Outer(Struct):
    """Padding before, between and behind."""

    first: int = u8()
    inner: Inner = nested(Inner)
    many: tuple[int, ...] = u32(3)
    name: bytes = char(3)
    big: int = u64()
    last: int = s8()


def default(cls: type[T]) -> T:
    return cls()


def test_padding_is_what_c_inserts() -> None:
    assert Inner.SIZE == 4
    assert Inner.ALIGN == 2
    assert Outer.OFFSETS == {"first": 0, "inner": 2, "many": 8, "name": 20, "big": 24, "last": 32}
    assert Outer.SIZE == 40
    assert Outer.ALIGN == 8


def test_bytes() -> None:
    value = Outer(first=1, inner=Inner(wide=0x203, narrow=4), many=(5, 6, 7), name=b"abc", big=8, last=-1)
    raw = bytes.fromhex("01 00 0302 04 00 0000 05000000 06000000 07000000 616263 00 0800000000000000 ff 00000000000000")
    assert value.pack() == raw
    assert Outer.unpack_from(b"\xee" + raw, 1) == value


def test_defaults_are_not_shared() -> None:
    a, b = default(Outer), default(Outer)
    a.inner.wide = 7
    assert b.inner.wide == 0


def test_out_of_range_is_refused() -> None:
    with pytest.raises(struct.error):
        Inner(wide=0, narrow=256).pack()
    with pytest.raises(struct.error):
        Inner.unpack_from(bytes(3))


def test_signed_members() -> None:
    class Signed(Struct):
        a: int = s64()
        b: int = s32()
        c: int = s16()
        d: int = s8()

    value = Signed(a=-1, b=-2, c=-3, d=-4)
    assert value.pack() == struct.pack("<qihbx", -1, -2, -3, -4)
    assert Signed.unpack_from(value.pack()) == value


def test_repr_is_hexadecimal() -> None:
    assert repr(Inner(wide=0x1000, narrow=0)) == "Inner(wide=0x1000, narrow=0x0)"


def test_structs_of_different_types_differ() -> None:
    class Twin(Struct):
        wide: int = u16()
        narrow: int = u8()

    assert Twin(wide=1, narrow=2) != Inner(wide=1, narrow=2)

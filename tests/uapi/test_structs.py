# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every structure: bytes and fields are two views of the same thing."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmemu.uapi.layout import Field, Struct

from .structs import ALL, MODULES

BITS = {"B": 8, "H": 16, "I": 32, "Q": 64}


def value_of(field: Field) -> st.SearchStrategy[Any]:
    """Any value that `field` can hold."""
    if field.inner:
        return struct_of(field.inner)
    if field.code == "s":
        return st.binary(max_size=min(field.size, 12)).map(lambda b: b.ljust(field.size, b"\0"))
    bits = BITS[field.code.upper()]
    number = st.integers(0, 2**bits - 1) if field.code.isupper() else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return st.tuples(*[number] * field.count) if field.count else number


def struct_of(cls: type[Struct]) -> st.SearchStrategy[Struct]:
    """Any value of a structure."""
    return st.fixed_dictionaries({name: value_of(f) for name, f in cls._fields.items()}).map(lambda v: cls(**v))


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
class TestEveryStruct:
    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_fields_survive_the_bytes(self, cls: type[Struct], data: st.DataObject) -> None:
        value = data.draw(struct_of(cls))
        raw = value.pack()
        assert len(raw) == cls.SIZE
        assert cls.unpack_from(raw) == value

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_bytes_survive_the_fields_but_for_padding(self, cls: type[Struct], seed: int) -> None:
        once = cls.unpack_from(random.Random(seed).randbytes(cls.SIZE)).pack()
        assert cls.unpack_from(once).pack() == once

    def test_pack_into_touches_its_own_bytes_only(self, cls: type[Struct]) -> None:
        buffer = bytearray(b"\xff" * (cls.SIZE + 16))
        cls().pack_into(buffer, 8)
        assert buffer == b"\xff" * 8 + bytes(cls.SIZE) + b"\xff" * 8

    def test_default_is_all_zero(self, cls: type[Struct]) -> None:
        assert cls().pack() == bytes(cls.SIZE)

    def test_explains_itself(self, cls: type[Struct]) -> None:
        assert cls.__doc__
        assert cls.__doc__ != Struct.__doc__


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_all_lists_every_public_name(module: ModuleType) -> None:
    def own(name: str, value: object) -> bool:
        return not name.startswith("_") and (isinstance(value, int) or getattr(value, "__module__", "") == module.__name__)

    assert sorted(module.__all__) == sorted(name for name, value in vars(module).items() if own(name, value))

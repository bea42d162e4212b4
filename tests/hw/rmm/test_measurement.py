# SPDX-License-Identifier: GPL-2.0-or-later
"""RIM and REM against vectors, and against a second, plain implementation."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmemu.hw.rmm.measurement import Rem, Rim
from gmemu.uapi.rmi import HashAlgorithm, rmi_realm_params, rmi_rec_params

PAGE = 4096
A, ZERO = b"A" * PAGE, bytes(PAGE)


def words(size: int, **at: bytes) -> bytes:
    """`size` zero bytes with pieces at offsets, as at_50=..."""
    out = bytearray(size)
    for name, piece in at.items():
        offset = int(name.removeprefix("at_"), 16)
        out[offset : offset + len(piece)] = piece
    return bytes(out)


def q(value: int) -> bytes:
    return value.to_bytes(8, "little")


class Plain:
    """The chain as the specification words it."""

    def __init__(self, name: str, **params: bytes) -> None:
        self.name = name
        self.value = self.h(words(4096, **params))

    def h(self, data: bytes) -> bytes:
        return hashlib.new(self.name, data).digest()

    def step(self, type_: int, **at: bytes) -> None:
        self.value = self.h(words(256, at_0=q(type_), at_8=q(0x100), at_10=self.value, **at))


def test_published_vectors() -> None:
    params = rmi_realm_params(s2sz=48, num_bps=1, num_wps=1)
    assert Rim(params).value.hex() == "6739dfb22b75ee1268d08dfa8369f501bc0b066243553f069f560d1fa1172973"
    params.hash_algo = HashAlgorithm.SHA_512
    assert Rim(params).value.hex() == (
        "799e434048fb57eb9d4f0e2a2b98158720377252deab2bdfcd69b5a8f82237f434bd6bb1c75bf160a2d49382f733b3439a3ff769e4ea5dd9a6f7"
        "2239d44bbbab"
    )


SMALL = rmi_realm_params(s2sz=40, num_bps=5, num_wps=5)


def test_small_realm_by_the_rules_of_2_0() -> None:
    rim = Rim(SMALL)
    assert rim.value.hex() == "df8c2fc7f035ba1f9f78747e99b95d419a657d2b70e126efa4441a455ab73dfd"
    rim.ripas(0, 0x200000)
    rim.data(0x1000, A, measure=True)
    assert rim.value.hex() == "7227e6107cfbbf23a1f2c4c0b703d2dfc4d853f96f17bbbfb21949cfda822ed0"
    rim.data(0x2000, ZERO, measure=False)
    assert rim.value.hex() == "890fc7ac6e31fa2381cfdbcbebc5ab1ccc571ec0a8a655f23d435f07b7d34330"
    rim.rec(rmi_rec_params(flags=0, pc=0x5000))
    rim.rec(rmi_rec_params(flags=1, mpidr=7, pc=0x1000, gprs=(0x8FE00000, *(0,) * 7)))
    assert rim.value.hex() == "6ae1c72abc1fcee15f98c17a7e7ee863f97f76561c4516aa35d93ebae12e36fe"


def test_small_realm_by_the_rules_of_1_0() -> None:
    rim = Rim(SMALL, measures_ripas=True)
    rim.ripas(0, 0x200000)
    assert rim.value.hex() == "0f52f96185ce82798db7c4b22932f657192f6c7c7e8c93ba726d11b0070fe382"
    rim.data(0x1000, A, measure=True)
    assert rim.value.hex() == "8d771aaf734663ea8f4567bf5f8137ff77a82434c145e8495c1ccdb57aea180f"
    rim.rec(rmi_rec_params(flags=1, pc=0x1000))
    assert rim.value.hex() == "fd3e462692d318a275aeb66d47715375709defa135185dcf60ea925ee0c585cd"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("data"), st.integers(0, 1 << 30), st.integers(0, 255), st.booleans()),
        st.tuples(st.just("rec"), st.integers(0, (1 << 64) - 1), st.integers(0, 1), st.integers(0, 1 << 40)),
        st.tuples(st.just("ripas"), st.integers(0, 1 << 30), st.integers(0, 1 << 30), st.none()),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(algorithm=st.sampled_from(HashAlgorithm), old=st.booleans(), steps=STEPS, rpv=st.binary(min_size=64, max_size=64))
def test_any_realm(algorithm: HashAlgorithm, old: bool, steps: list[tuple[str, int, int, int]], rpv: bytes) -> None:
    name = {0: "sha256", 1: "sha512", 2: "sha384"}[algorithm]
    params = rmi_realm_params(flags=3, s2sz=44, num_bps=2, hash_algo=algorithm, rpv=rpv, vmid=9, rtt_base=0x5000)
    rim = Rim(params, measures_ripas=old)
    plain = Plain(name, at_0=q(3), at_8=q(44), at_18=q(2), at_30=q(algorithm))
    for what, first, second, third in steps:
        if what == "data":
            page = bytes([second]) * PAGE
            rim.data(first * PAGE, page, measure=bool(third))
            digest = plain.h(page) if third else b""
            plain.step(0, at_50=q(first * PAGE), at_58=q(third), at_60=digest)
        elif what == "rec":
            rim.rec(rmi_rec_params(flags=second, pc=first, gprs=(third, *(0,) * 7)))
            if second:
                plain.step(1, at_50=plain.h(words(4096, at_0=q(1), at_200=q(first), at_300=q(third))))
        else:
            rim.ripas(first, second)
            if old:
                plain.step(2, at_50=q(first), at_58=q(second))
        assert rim.value == plain.value


def test_pages_together_and_apart() -> None:
    together, apart, hashed = (Rim(SMALL) for _ in range(3))
    together.data(0x1000, A + ZERO, measure=True)
    apart.data(0x1000, A, measure=True)
    apart.data(0x2000, ZERO, measure=True)
    hashed.data_hashed(0x1000, [hashlib.sha256(A).digest(), hashlib.sha256(ZERO).digest()])
    assert together.value == apart.value == hashed.value
    row = apart.row(0x2000, ZERO)
    assert (row.contents, row.rim) == (hashlib.sha256(ZERO).digest(), apart.value)
    assert apart.row(0x2000, None).contents is None
    assert "simulated" in repr(apart)


@pytest.mark.parametrize(("algorithm", "name"), [(0, "sha256"), (1, "sha512"), (2, "sha384")])
def test_rem_is_a_chain(algorithm: int, name: str) -> None:
    rem = Rem(HashAlgorithm(algorithm))
    size = hashlib.new(name).digest_size
    assert rem.value == bytes(size)
    rem.extend(b"first")
    first = hashlib.new(name, bytes(size) + b"first").digest()
    assert rem.value == first
    rem.extend(b"second")
    assert rem.value == hashlib.new(name, first + b"second").digest()

# SPDX-License-Identifier: GPL-2.0-or-later
"""A realm's measurements: RIM, its initial one, and four REMs that it extends (RMM specification, A7.1).

The RIM is a chain: each descriptor of 256 bytes has the RIM before it, and its hash is the RIM after.  What a page holds
enters by its own hash, so pages can be hashed apart from the chain.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ...uapi.rmi import HashAlgorithm, RecFlags, rmi_realm_params, rmi_rec_params

__all__ = ["NR_REMS", "SLOT_SIZE", "Rem", "Rim", "RimRow", "measured_realm_params", "measured_rec_params"]

SLOT_SIZE = 64
"""Bytes that a measurement takes wherever it's stored, padded with zeroes on its right."""
NR_REMS = 4
PAGE_SIZE = 4096

_HASHES: dict[HashAlgorithm, Callable[..., Any]] = {
    HashAlgorithm.SHA_256: hashlib.sha256,
    HashAlgorithm.SHA_512: hashlib.sha512,
    HashAlgorithm.SHA_384: hashlib.sha384,
}
_DATA, _REC, _RIPAS = 0, 1, 2
_LENGTH = 0x100
_DATA_DESCRIPTOR = struct.Struct("<QQ64sQQ64s96x")
_REC_DESCRIPTOR = struct.Struct("<QQ64s64s112x")
_RIPAS_DESCRIPTOR = struct.Struct("<QQ64sQQ160x")
_MEASURED_CONTENT = 1


def measured_realm_params(params: rmi_realm_params) -> rmi_realm_params:
    """What of the parameters enters the RIM: not the personalisation value, the VMID, or where the tables are."""
    return rmi_realm_params(
        flags=params.flags,
        s2sz=params.s2sz,
        sve_vl=params.sve_vl,
        num_bps=params.num_bps,
        num_wps=params.num_wps,
        pmu_num_ctrs=params.pmu_num_ctrs,
        hash_algo=params.hash_algo,
    )


def measured_rec_params(params: rmi_rec_params) -> rmi_rec_params:
    """What of a REC's parameters enters the RIM: flags, PC and X0 to X7."""
    return rmi_rec_params(flags=params.flags, pc=params.pc, gprs=params.gprs)


class RimRow(NamedTuple):
    """One page that entered the RIM: its IPA (bytes), the hash of its contents if that was measured, the RIM after it."""

    ipa: int
    contents: bytes | None
    rim: bytes


class Rim:
    """The realm initial measurement, from the realm's parameters on.  `measures_ripas`: by the rules of RMM 1.0."""

    def __init__(self, params: rmi_realm_params, *, measures_ripas: bool = False) -> None:
        self.algorithm = HashAlgorithm(params.hash_algo)
        self.measures_ripas = measures_ripas
        self.hash = _HASHES[self.algorithm]
        self.value: bytes = self.hash(measured_realm_params(params).pack()).digest()

    def __repr__(self) -> str:
        return f"<Rim {self.value.hex()} (simulated)>"

    def data(self, ipa: int, contents: bytes | memoryview, *, measure: bool) -> None:
        """RTT_DATA_MAP_INIT of each page of `contents` from `ipa` (bytes), in turn; with its contents if `measure`."""
        hash_, pack, value = self.hash, _DATA_DESCRIPTOR.pack, self.value
        flags = _MEASURED_CONTENT if measure else 0
        view, digest = memoryview(contents), b""
        for offset in range(0, len(view), PAGE_SIZE):
            if measure:
                digest = hash_(view[offset : offset + PAGE_SIZE]).digest()
            value = hash_(pack(_DATA, _LENGTH, value, ipa + offset, flags, digest)).digest()
        self.value = value

    def data_hashed(self, ipa: int, digests: Iterable[bytes]) -> None:
        """`data` of measured pages whose contents were hashed before."""
        hash_, pack, value = self.hash, _DATA_DESCRIPTOR.pack, self.value
        for digest in digests:
            value = hash_(pack(_DATA, _LENGTH, value, ipa, _MEASURED_CONTENT, digest)).digest()
            ipa += PAGE_SIZE
        self.value = value

    def rec(self, params: rmi_rec_params) -> None:
        """REC_CREATE.  A REC that can't run at once isn't measured."""
        if params.flags & RecFlags.RUNNABLE:
            digest = self.hash(measured_rec_params(params).pack()).digest()
            self.value = self.hash(_REC_DESCRIPTOR.pack(_REC, _LENGTH, self.value, digest)).digest()

    def ripas(self, base: int, top: int) -> None:
        """RTT_INIT_RIPAS of one RTT entry, [base, top) in bytes: measured by RMM 1.0 only."""
        if self.measures_ripas:
            self.value = self.hash(_RIPAS_DESCRIPTOR.pack(_RIPAS, _LENGTH, self.value, base, top)).digest()

    def row(self, ipa: int, contents: bytes | None) -> RimRow:
        """What a log says of the page that was just measured."""
        return RimRow(ipa, None if contents is None else self.hash(contents).digest(), self.value)


class Rem:
    """A realm extensible measurement."""

    def __init__(self, algorithm: HashAlgorithm) -> None:
        self._hash = _HASHES[algorithm]
        self.value = bytes(self._hash().digest_size)

    def extend(self, data: bytes) -> None:
        """RSI_MEASUREMENT_EXTEND: REM = H(REM | data)."""
        self.value = self._hash(self.value + data).digest()

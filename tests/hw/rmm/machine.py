# SPDX-License-Identifier: GPL-2.0-or-later
"""An RMM with some memory, and a realm in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gmemu.hw.memory import PhysicalMemory
from gmemu.hw.rmm.realm import Realm, Rec
from gmemu.hw.rmm.realms import rec_mpidr
from gmemu.hw.rmm.rmm import Rmm, RmmInfo
from gmemu.sync import DirectRuntime
from gmemu.uapi.rmi import RmiStatus, rmi_realm_params, rmi_rec_params, rmi_status

PAGE = 4096
RD, ROOTS, PARAMS, SOURCE, POOL, DATA = 0x10, 0x20, 0x30, 0x31, 0x100, 0x1000
MIB = 1 << 20
GIB = 1 << 30
SHARED = 1 << 39


def rtt_error(level: int) -> int:
    return rmi_status(RmiStatus.ERROR_RTT, level)


class Machine:
    """Granules from POOL and from DATA on are delegated."""

    def __init__(self, version: tuple[int, int] = (2, 0)) -> None:
        self.memory = PhysicalMemory(64 << 30)
        self.rmm = Rmm(DirectRuntime(), self.memory, info=RmmInfo(version=version))
        self._next = POOL
        self.rmm.rmm_activate()
        for pfn, count in ((RD, 1), (ROOTS, 2), (POOL, 0x100), (DATA, 0x2000)):
            assert self.rmm.granule_range_delegate(pfn, count).status == 0

    def granule(self) -> int:
        """A delegated granule."""
        self._next += 1
        return self._next - 1

    def params(self, **fields: int) -> rmi_realm_params:
        defaults: dict[str, Any] = {
            "s2sz": 40,
            "num_bps": 5,
            "num_wps": 3,
            "vmid": 7,
            "rtt_base": ROOTS * PAGE,
            "rtt_level_start": 1,
            "rtt_num_start": 2,
        }
        return rmi_realm_params(**{**defaults, **fields})

    def create(self, **fields: int) -> int:
        """RMI_REALM_CREATE: its status."""
        self.memory.write(PARAMS * PAGE, self.params(**fields).pack())
        return self.rmm.realm_create(RD, PARAMS).status

    def realm(self) -> Realm:
        assert self.create() == 0
        return self.rmm.realms[RD]

    def rec_status(self, pfn: int, index: int = 0, flags: int = 1, aux: list[int] | None = None, **more: int) -> int:
        """RMI_REC_CREATE: its status."""
        aux = [self.granule() for _ in range(4)] if aux is None else aux
        addresses = tuple(a * PAGE for a in aux) + (0,) * (16 - len(aux))
        more_fields: dict[str, Any] = {"mpidr": rec_mpidr(index), "num_aux": len(aux), **more}
        self.memory.write(PARAMS * PAGE, rmi_rec_params(flags=flags, aux=addresses, **more_fields).pack())
        return self.rmm.rec_create(RD, pfn, PARAMS).status

    def rec(self, index: int = 0, flags: int = 1) -> Rec:
        pfn = self.granule()
        assert self.rec_status(pfn, index, flags) == 0
        return self.rmm.recs[pfn]

    def tables(self, ipa: int, level: int = 3) -> None:
        """The tables that lead to an entry of `level` at `ipa`."""
        rtt = self.rmm.realms[RD].rtt
        for at in range(rtt.depth(ipa // PAGE) + 1, level + 1):
            reach = PAGE << 9 * (4 - at)
            assert self.rmm.rtt_create(RD, self.granule(), ipa // reach * reach, at).status == 0

    def check(self) -> None:
        assert self.rmm.check_granules() == []


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.check()
    machine.memory.close()

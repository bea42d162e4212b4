# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with a TDX module, and the few steps that most tests begin with."""

from __future__ import annotations

from gmemu.hw.memory import PAGE_SIZE, PhysicalMemory
from gmemu.hw.tdx.module import TdxModule
from gmemu.hw.tdx.sept import SeptState
from gmemu.hw.tdx.td import Td, Vp
from gmemu.sync import DirectRuntime
from gmemu.uapi.tdx import TdxStatus, status_of, td_params

HKID = 32
TDR = 1
TDVPR = 0x20
TABLES = 0x40  # pages for tables
PFN = 0x400  # a page to play with: 2 MiB aligned
GPA = 0x40000000
GFN = GPA >> 12
NPAGES = 0x4000

Status = TdxStatus


def parameters(**changes: object) -> td_params:
    """TD_PARAMS that the module takes."""
    fields: dict[str, object] = {"xfam": 3, "max_vcpus": 4, "eptp_controls": 0x1E, "tsc_frequency": 80}
    return td_params(**{**fields, **changes})  # type: ignore[arg-type]


class Machine:
    """`rt`, `memory` and `module`; `td` is the TD at TDR once there is one."""

    def __init__(self, rt: DirectRuntime | None = None) -> None:
        self.rt = rt or DirectRuntime()
        self.memory = PhysicalMemory(NPAGES * PAGE_SIZE)
        self.module = TdxModule(self.rt, self.memory)
        self._table = TABLES

    def close(self) -> None:
        self.memory.close()

    @property
    def td(self) -> Td:
        return self.module.tds[TDR]

    @property
    def vp(self) -> Vp:
        return self.module.vps[TDVPR]

    def create(self) -> Td:
        """A TD with a key and its control pages, not initialized."""
        assert not self.module.mng_create(TDR, HKID).status
        assert not self.module.mng_key_config(TDR).status
        for pfn in range(2, 2 + self.module.info.tdcs_pages):
            assert not self.module.mng_addcx(TDR, pfn).status
        return self.td

    def initialize(self, **changes: object) -> Td:
        """... and initialized."""
        self.create()
        assert not self.module.mng_init(TDR, parameters(**changes)).status
        return self.td

    def vcpu(self, tdvpr: int = TDVPR) -> Vp:
        """A virtual processor of the TD."""
        assert not self.module.vp_create(TDR, tdvpr).status
        for pfn in range(tdvpr + 1, tdvpr + self.module.info.tdvps_pages):
            assert not self.module.vp_addcx(tdvpr, pfn).status
        assert not self.module.vp_init(tdvpr, 0).status
        return self.module.vps[tdvpr]

    def tables(self, gpa: int = GPA, levels: int = 4) -> None:
        """The tables that lead to `gpa`."""
        for level in range(levels - 1, 0, -1):
            if (level, gpa >> 12 >> 9 * level) in self.td.sept.tables:
                continue
            base = gpa >> 12 + 9 * level << 12 + 9 * level
            assert not self.module.mem_sept_add(TDR, base, level, self._table).status
            self._table += 1

    def runnable(self, **changes: object) -> Td:
        """A TD that may run, with one virtual processor and tables for GPA."""
        self.initialize(**changes)
        self.vcpu()
        self.tables()
        assert not self.module.mr_finalize(TDR).status
        return self.td

    def state(self, gpa: int = GPA) -> SeptState:
        """The state of the leaf at `gpa`."""
        entry = self.td.sept.leaves[gpa >> 12]
        return entry.state if entry else SeptState.FREE

    def track(self) -> None:
        """TRACK, and every processor out of the guest."""
        assert not self.module.mem_track(TDR).status
        for vp in self.td.vps.values():
            if vp.in_td:
                self.module.vp_exit(vp.tdvpr)


def code(status: int) -> TdxStatus:
    """The status without its operand."""
    return status_of(status)

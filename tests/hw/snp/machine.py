# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with an RMP and a PSP, and the few steps that most tests begin with."""

from __future__ import annotations

from gmemu.hw.memory import PAGE_SIZE, PhysicalMemory
from gmemu.hw.snp.guest_context import GuestContext
from gmemu.hw.snp.psp import Psp
from gmemu.hw.snp.rmp import Rmp
from gmemu.sync import DirectRuntime
from gmemu.uapi.sev import SNP_POLICY_MASK_RSVD_MBO, SNP_POLICY_MASK_SMT, PspStatus

POLICY = SNP_POLICY_MASK_SMT | SNP_POLICY_MASK_RSVD_MBO
GCTX = 1
ASID = 5
PAGE = 0x400  # a page to play with: 2 MiB aligned
GFN = 0x200
COVERED = 0x3000  # pages the RMP covers; memory has 0x1000 more

OK = PspStatus.SUCCESS


class Stepping(DirectRuntime):
    """As when interleavings are explored: nothing is batched.  Notes every mark."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[str, object]] = []

    def batch(self, count: int) -> int:
        return min(count, 1)

    def reads(self, what: object) -> None:
        self.marks.append(("r", what))

    def writes(self, what: object) -> None:
        self.marks.append(("w", what))


class Machine:
    """`rt`, `memory`, `rmp` and `psp` of one machine, initialised as at boot."""

    def __init__(self, rt: DirectRuntime | None = None, **psp: object) -> None:
        self.rt = rt or DirectRuntime()
        self.memory = PhysicalMemory((COVERED + 0x1000) * PAGE_SIZE)
        self.rmp = Rmp(self.rt, COVERED)
        self.psp = Psp(self.rt, self.memory, self.rmp, **psp)  # type: ignore[arg-type]

    def close(self) -> None:
        self.memory.close()

    def context_page(self, pfn: int = GCTX) -> None:
        """An INIT guest's context in page `pfn`."""
        assert self.rmp.rmpupdate(pfn, assigned=True, immutable=True) == (0, 1)
        assert self.psp.gctx_create(pfn) == OK

    def guest(self, pfn: int = GCTX, asid: int = ASID, policy: int = POLICY, **start: object) -> GuestContext:
        """A guest in LAUNCH, activated."""
        self.context_page(pfn)
        assert self.psp.launch_start(pfn, policy, **start) == OK  # type: ignore[arg-type]
        assert self.psp.activate(pfn, asid) == OK
        return self.psp.contexts[pfn]

    def pre_guest(self, pfn: int = PAGE, count: int = 1, gfn: int = GFN, asid: int = ASID, pagesize: int = 0) -> None:
        """Pages ready for LAUNCH_UPDATE."""
        update = self.rmp.rmpupdate(pfn, count=count, assigned=True, asid=asid, gfn=gfn, immutable=True, pagesize=pagesize)
        assert update == (0, count)

    def fill(self, pfn: int, page: bytes) -> None:
        """The host writes a page."""
        assert self.rmp.check_host_write(pfn)
        self.memory.write(pfn * PAGE_SIZE, page.ljust(PAGE_SIZE, b"\0"))

    def page(self, pfn: int, asid: int = 0) -> bytes:
        """A page's bytes as the guest with `asid` sees them; 0: the host."""
        return self.memory.read(pfn * PAGE_SIZE, PAGE_SIZE, self.psp.keys.get(asid, 0))

# SPDX-License-Identifier: GPL-2.0-or-later
"""The RMP against a model that has no runs: a dictionary with one record for each page, changed one page at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gmemu.hw.snp.rmp import NestedFault, Rmp
from gmemu.sync import DirectRuntime

from .machine import Stepping

NPAGES = 3 * 512 + 100


@dataclass(frozen=True)
class Page:
    asid: int
    gfn: int
    immutable: bool = False
    validated: bool = False
    vmpl: tuple[int, int, int, int] = (31, 0, 0, 0)
    huge: bool = False


class Model:
    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}
        self.held: set[int] = set()

    def rmpupdate(self, pfn: int, assigned: bool, asid: int, gfn: int, immutable: bool, pagesize: int) -> int:
        span = 512 if pagesize else 1
        pages = range(pfn, pfn + span)
        if pages[-1] >= NPAGES or (pagesize and (pfn % 512 or (asid and gfn % 512))):
            return 1
        if not assigned and (asid or immutable):
            return 2
        if any(p in self.held for p in pages):
            return 3
        old = self.pages.get(pfn)
        if old and old.immutable and (pfn % 512 == 0 or not old.huge):
            return 2
        if any(p in self.pages and self.pages[p].huge != bool(pagesize) for p in pages):
            return 4
        for i, p in enumerate(pages):
            old = self.pages.pop(p, None)
            if assigned:
                new = Page(asid, gfn + i if asid else gfn, immutable, huge=bool(pagesize))
                if asid and old and (old.asid, old.gfn) == (new.asid, new.gfn):
                    new = replace(old, immutable=immutable)
                self.pages[p] = new
        return 0

    def psmash(self, pfn: int) -> int:
        if pfn % 512:
            return 1
        if any(p in self.held for p in range(pfn, pfn + 512)):
            return 3
        head = self.pages.get(pfn)
        if head is None or not head.huge:
            return 4
        if head.immutable:
            return 2
        for p in range(pfn, pfn + 512):
            self.pages[p] = replace(self.pages[p], huge=False)
        return 0

    def pvalidate(self, pfn: int, gfn: int, asid: int, validate: bool, pagesize: int) -> int | None:
        if pagesize and gfn % 512:
            return 1
        page = self.pages.get(pfn)
        if page is None or page.asid != asid or page.gfn != gfn or page.immutable:
            return None
        if page.huge and not pagesize:
            return None
        if pagesize and not page.huge:
            return 6
        if page.validated == validate:
            return 255
        for p in range(pfn, pfn + (512 if pagesize else 1)):
            self.pages[p] = replace(self.pages[p], validated=validate)
        return 0


pfns = st.sampled_from([0, 1, 2, 510, 511, 512, 513, 1023, 1024, 1025, 1536, 1540, NPAGES - 1, NPAGES])
gfns = st.sampled_from([0, 1, 512, 1024, 1025, 0x10000])
asids = st.sampled_from([0, 0, 1, 2])
flag = st.booleans()
sizes = st.sampled_from([0, 0, 0, 1])
operations = st.one_of(
    st.tuples(st.just("update"), pfns, st.sampled_from([1, 1, 1, 2, 3, 600]), flag, asids, gfns, flag, sizes),
    st.tuples(st.just("psmash"), pfns),
    st.tuples(st.just("pvalidate"), pfns, gfns, st.sampled_from([1, 2]), flag, sizes),
    st.tuples(st.just("accept"), pfns),
    st.tuples(st.just("hold"), st.sampled_from([1, 513]), flag),
)


def apply(rmp: Rmp, op: tuple[object, ...], model: Model | None) -> object:
    """Carry `op` out; on the model first, if there is one, whose answer must agree.  Returns the answer."""
    kind = op[0]
    if kind == "update":
        _, pfn, count, assigned, asid, gfn, immutable, pagesize = op
        assert isinstance(pfn, int)
        assert isinstance(count, int)
        assert isinstance(asid, int)
        assert isinstance(gfn, int)
        assert isinstance(pagesize, int)
        code = done = 0
        while model and done < count:
            at = done * (512 if pagesize else 1)
            code = model.rmpupdate(pfn + at, bool(assigned), asid, gfn + (at if asid else 0), bool(immutable), pagesize)
            if code:
                break
            done += 1
        answer = rmp.rmpupdate(
            pfn,
            count=count,
            assigned=bool(assigned),
            asid=asid,
            gfn=gfn,
            immutable=bool(immutable),
            pagesize=pagesize,
        )
        assert model is None or answer == (code, done)
        return answer
    if kind == "psmash":
        assert isinstance(op[1], int)
        if op[1] >= NPAGES:
            return None
        smashed = rmp.psmash(op[1])
        assert model is None or smashed == model.psmash(op[1])
        return smashed
    if kind == "pvalidate":
        _, pfn, gfn, asid, validate, pagesize = op
        assert isinstance(pfn, int)
        assert isinstance(gfn, int)
        assert isinstance(asid, int)
        assert isinstance(pagesize, int)
        try:
            status: int | None = rmp.pvalidate(pfn, gfn, asid, 0, bool(validate), pagesize)
        except NestedFault:
            status = None
        assert model is None or status == model.pvalidate(pfn, gfn, asid, bool(validate), pagesize)
        return status
    if kind == "accept":  # what the guest would do with the page, whatever it is
        assert isinstance(op[1], int)
        entry = rmp.lookup(op[1]) if rmp.covers(op[1]) else None
        if entry is None or not entry.asid:
            return None
        head = op[1] - op[1] % 512 if entry.pagesize else op[1]
        return apply(rmp, ("pvalidate", head, entry.gfn(head), entry.asid, True, entry.pagesize), model)
    _, pfn, held = op
    assert isinstance(pfn, int)
    rmp.set_in_use(pfn, bool(held))
    if model:
        (model.held.add if held else model.held.discard)(pfn)
    return None


def pages_of(rmp: Rmp) -> dict[int, Page]:
    return {
        pfn: Page(e.asid, e.gfn(pfn), e.immutable, e.validated, e.vmpl, bool(e.pagesize))
        for start, end, e in rmp.entries.runs()
        for pfn in range(start, end)
    }


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(operations, max_size=25))
def test_rmp_is_the_model(ops: list[tuple[object, ...]]) -> None:
    rmp, model = Rmp(DirectRuntime(), NPAGES), Model()
    for op in ops:
        apply(rmp, op, model)
    assert pages_of(rmp) == model.pages
    for pfn in (0, 1, 511, 512, 1024, NPAGES - 1):
        assert rmp.owned(pfn) == (not rmp.check_host_write(pfn)) == (pfn in model.pages)
    for asid in (1, 2):
        assert rmp.assigned_to(asid) == sum(page.asid == asid for page in model.pages.values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(operations, max_size=15))
def test_batching_changes_nothing(ops: list[tuple[object, ...]]) -> None:
    fast, slow = Rmp(DirectRuntime(), NPAGES), Rmp(Stepping(), NPAGES)
    for op in ops:
        assert apply(fast, op, None) == apply(slow, op, None)
    assert fast.entries == slow.entries

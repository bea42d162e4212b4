# SPDX-License-Identifier: GPL-2.0-or-later
"""Page ownership at EL2: every call in every state, as the hypervisor's own self-test has it, and any order of calls."""

from __future__ import annotations

from errno import EAGAIN, EBUSY, EINVAL, ENOENT, ENOMEM, EPERM

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemu.hw.el2.hypervisor import El2Vcpu, HostEntry, Hypervisor, Owner, PageState
from gmemu.hw.memory import PAGE_SHIFT, PhysicalMemory
from gmemu.invariants import InvariantViolation
from gmemu.sync import DirectRuntime
from gmemu.uapi.errno import EHWPOISON

GFN, PFN = 0x40000, 0x100


class El2:
    """A hypervisor with one guest, whose vCPU's memcache is full."""

    def __init__(self) -> None:
        self.memory = PhysicalMemory(1 << 24)
        self.hyp = Hypervisor(DirectRuntime(), self.memory)
        self.handle = self.hyp.reserve_vm(40)
        assert self.hyp.init_vm(self.handle, [1, 2]) == 0
        vcpu = self.hyp.init_vcpu(self.handle, [3, 4])
        assert isinstance(vcpu, El2Vcpu)
        self.vcpu, self.vm = vcpu, vcpu.vm
        self._next = 8
        self.fill()

    def fill(self) -> None:
        while len(self.vcpu.memcache) < self.vm.min_pages:
            self.hyp.topup(self.vcpu, self._next)
            self._next += 1

    def donate(self, pfn: int = PFN, gfn: int = GFN) -> int:
        self.fill()
        return self.hyp.host_donate_guest(pfn, gfn, self.vcpu)

    def to(self, state: str) -> El2:
        """The page in one of its states."""
        if state != "host":
            assert self.donate() == 0
        if state in ("shared", "unsharing", "dying-shared"):
            assert self.hyp.guest_share_host(self.vm, GFN) == 0
        if state == "unsharing":
            assert self.hyp.guest_request_unshare(self.vm, GFN) == 0
        if state == "poisoned":
            assert self.hyp.force_reclaim_guest_page(PFN) == 0
        if state.startswith("dying"):
            assert self.hyp.start_teardown_vm(self.handle) == 0
        return self


RESULTS = {
    #               donate  share        unshare      force    reclaim  and as proposed: request, complete, take from file
    "host":         (0, -ENOENT, -ENOENT, -EAGAIN, -EINVAL, -ENOENT, -ENOENT, -EAGAIN),
    "guest":        (-EPERM, 0, -EPERM, 0, -EINVAL, -EPERM, 0, 0),
    "shared":       (-EPERM, -EPERM, 0, -EAGAIN, -EINVAL, 0, -EPERM, 0),
    "unsharing":    (-EPERM, -EPERM, 0, -EAGAIN, -EINVAL, -EPERM, 0, 0),
    "poisoned":     (-EPERM, -EHWPOISON, -EHWPOISON, -EAGAIN, -EINVAL, -EHWPOISON, -EHWPOISON, -EAGAIN),
    "dying":        (-EPERM, 0, -EPERM, 0, 0, -EPERM, 0, 0),
    "dying-shared": (-EPERM, -EPERM, 0, -EAGAIN, 0, 0, -EPERM, 0),
}  # fmt: skip


@pytest.mark.parametrize("state", RESULTS)
@pytest.mark.parametrize("call", range(8))
def test_every_call_in_every_state(state: str, call: int) -> None:
    el2 = El2().to(state)
    calls = (
        el2.donate,
        lambda: el2.hyp.guest_share_host(el2.vm, GFN),
        lambda: el2.hyp.guest_unshare_host(el2.vm, GFN),
        lambda: el2.hyp.force_reclaim_guest_page(PFN),
        lambda: el2.hyp.reclaim_dying_guest_page(el2.handle, GFN),
        lambda: el2.hyp.guest_request_unshare(el2.vm, GFN),
        lambda: el2.hyp.complete_unshare(el2.vm, GFN),
        lambda: el2.hyp.reclaim_guest_page(PFN),
    )
    assert calls[call]() == RESULTS[state][call]
    el2.hyp.check()


def test_what_becomes_of_the_bytes() -> None:
    """Donation, sharing and unsharing keep them; what's taken by force, or from a guest that is gone, is zeroed."""
    el2 = El2()
    at = PFN << PAGE_SHIFT
    el2.memory.write(at, b"image")
    el2.to("shared")
    assert el2.memory.read(at, 5) == b"image"
    assert el2.hyp.guest_unshare_host(el2.vm, GFN) == 0
    assert el2.memory.read(at, 5) == b"image"
    assert el2.hyp.force_reclaim_guest_page(PFN) == 0
    assert el2.memory.read(at, 5) == bytes(5)
    assert el2.hyp.walk(el2.vm, GFN) is None


@pytest.mark.parametrize(("shared", "left"), [(False, bytes(5)), (True, b"image")])
def test_teardown(shared: bool, left: bytes) -> None:
    el2 = El2()
    el2.memory.write(PFN << PAGE_SHIFT, b"image")
    el2.to("dying-shared" if shared else "dying")
    with pytest.raises(InvariantViolation, match="wasn't reclaimed"):
        el2.hyp.finalize_teardown_vm(el2.handle, [el2.vcpu])
    assert el2.hyp.reclaim_dying_guest_page(el2.handle, GFN) == 0
    assert el2.memory.read(PFN << PAGE_SHIFT, 5) == left
    back = el2.hyp.finalize_teardown_vm(el2.handle, [el2.vcpu])
    assert isinstance(back, list)
    assert {1, 2, 3, 4, 8, 9} <= set(back)
    assert not list(el2.hyp.pages.runs())
    assert el2.hyp.start_teardown_vm(el2.handle) == -EINVAL
    assert el2.hyp.finalize_teardown_vm(el2.handle, []) == -EINVAL


def test_a_mapping_takes_tables_from_the_memcache() -> None:
    """Two levels of tables below the root at 40 bits, one for a page 2 MiB on, none for its neighbour."""
    el2 = El2()
    assert el2.vm.min_pages == 2
    assert el2.donate() == 0
    assert len(el2.vcpu.memcache) == 0
    assert el2.hyp.host_donate_guest(PFN + 1, GFN + 1, el2.vcpu) == -ENOMEM
    assert el2.donate(PFN + 1, GFN + 1) == 0
    assert len(el2.vcpu.memcache) == 2
    assert el2.donate(PFN + 2, GFN + 512) == 0
    assert len(el2.vcpu.memcache) == 1


@pytest.mark.parametrize(("bits", "pages"), [(32, 1), (34, 1), (35, 2), (40, 2), (43, 2), (44, 3), (48, 3)])
def test_levels(bits: int, pages: int) -> None:
    el2 = El2()
    vm = el2.hyp.vms[el2.hyp.reserve_vm(bits)]
    assert vm.min_pages == pages


def test_two_guests_never_have_the_same_page() -> None:
    el2 = El2().to("guest")
    other = el2.hyp.reserve_vm(40)
    assert el2.hyp.init_vm(other, [20, 21]) == 0
    vcpu = el2.hyp.init_vcpu(other, [22])
    assert isinstance(vcpu, El2Vcpu)
    for pfn in (24, 25):
        el2.hyp.topup(vcpu, pfn)
    for pfn in (PFN, 1, 20, 24):  # a guest's, and the hypervisor's own
        assert el2.hyp.host_donate_guest(pfn, GFN, vcpu) == -EPERM
    assert el2.hyp.host_donate_guest(PFN + 1, GFN, vcpu) == 0
    el2.hyp.check()


def test_pages_of_the_hypervisor_cannot_be_taken_by_force() -> None:
    assert El2().hyp.force_reclaim_guest_page(1) == -EPERM


def test_ordinary_guests_share() -> None:
    el2 = El2()
    assert el2.hyp.host_share_guest(PFN, GFN, el2.vcpu) == 0
    el2.fill()
    assert el2.hyp.host_share_guest(PFN, GFN, el2.vcpu) == -EPERM
    assert el2.hyp.host_share_guest(PFN, GFN + 1, el2.vcpu) == 0
    assert el2.hyp.pages[PFN] == HostEntry(PageState.SHARED_OWNED, Owner.HOST, shares=2)
    assert el2.hyp.host_may_access(PFN, 1)
    assert el2.donate(PFN, GFN + 2) == -EPERM
    assert el2.hyp.host_unshare_guest(GFN + 2, el2.vm) == -ENOENT
    assert el2.donate(PFN + 1, GFN + 2) == 0
    assert el2.hyp.host_unshare_guest(GFN + 2, el2.vm) == -EPERM
    assert [el2.hyp.host_unshare_guest(gfn, el2.vm) for gfn in (GFN, GFN + 1)] == [0, 0]
    assert el2.hyp.pages[PFN] is None


def test_shares_are_counted_in_32_bits() -> None:
    el2 = El2()
    assert el2.hyp.host_share_guest(PFN, GFN, el2.vcpu) == 0
    el2.fill()
    el2.hyp.pages.set(PFN, PFN + 1, HostEntry(PageState.SHARED_OWNED, Owner.HOST, shares=0xFFFFFFFF))
    assert el2.hyp.host_share_guest(PFN, GFN + 1, el2.vcpu) == -EBUSY
    assert el2.hyp.walk(el2.vm, GFN + 1) is None


def test_unsharing_in_two_steps_keeps_the_bytes_and_the_guest_away() -> None:
    el2 = El2()
    el2.memory.write(PFN << PAGE_SHIFT, b"image")
    el2.to("unsharing")
    assert el2.hyp.walk(el2.vm, GFN) is None
    assert el2.hyp.is_unsharing(el2.vm, GFN)
    assert el2.hyp.host_may_access(PFN, 1)
    assert el2.hyp.complete_unshare(el2.vm, GFN) == 0
    assert el2.hyp.walk(el2.vm, GFN) is not None
    assert not el2.hyp.host_may_access(PFN, 1)
    assert el2.memory.read(PFN << PAGE_SHIFT, 5) == b"image"


def test_unsharing_at_once_ends_what_was_begun() -> None:
    el2 = El2().to("unsharing")
    assert el2.hyp.guest_unshare_host(el2.vm, GFN) == 0
    assert el2.hyp.walk(el2.vm, GFN) is not None


@pytest.mark.parametrize(("state", "left"), [("guest", bytes(5)), ("shared", b"image"), ("unsharing", b"image")])
def test_a_page_that_leaves_its_file(state: str, left: bytes) -> None:
    el2 = El2()
    el2.memory.write(PFN << PAGE_SHIFT, b"image")
    el2.to(state)
    assert el2.hyp.reclaim_guest_page(PFN) == 0
    assert el2.memory.read(PFN << PAGE_SHIFT, 5) == left
    assert el2.hyp.vcpu_in_poison_fault(el2.vcpu, GFN)
    assert not el2.hyp.is_unsharing(el2.vm, GFN)
    el2.hyp.check()


def test_handles_run_out() -> None:
    el2 = El2()
    handles = [el2.hyp.reserve_vm(40) for _ in range(254)]
    assert len({el2.handle, *handles}) == 255
    assert el2.hyp.reserve_vm(40) == -ENOMEM
    el2.hyp.unreserve_vm(handles[0])
    assert el2.hyp.reserve_vm(40) == handles[0]
    assert el2.hyp.init_vm(0, []) == -EINVAL


@given(st.lists(st.tuples(st.sampled_from("dsufrqc"), st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_any_order_of_calls(steps: list[tuple[str, int, int]]) -> None:
    """Against a model that knows of each page only who may touch it."""
    el2 = El2()
    guest: dict[int, tuple[int, str]] = {}  # gfn -> (pfn, owned | shared | wanted | poisoned)
    for call, page, frame in steps:
        pfn, gfn = PFN + page, GFN + frame
        have, state = guest.get(gfn, (0, ""))
        taken = any(p == pfn and s != "poisoned" for p, s in guest.values())
        if call == "d":
            expected = not state and not taken
            assert (el2.donate(pfn, gfn) == 0) == expected
            if expected:
                guest[gfn] = (pfn, "owned")
        elif call == "s":
            assert (el2.hyp.guest_share_host(el2.vm, gfn) == 0) == (state == "owned")
            if state == "owned":
                guest[gfn] = (have, "shared")
        elif call == "u":
            assert (el2.hyp.guest_unshare_host(el2.vm, gfn) == 0) == (state in ("shared", "wanted"))
            if state in ("shared", "wanted"):
                guest[gfn] = (have, "owned")
        elif call == "q":
            assert (el2.hyp.guest_request_unshare(el2.vm, gfn) == 0) == (state == "shared")
            if state == "shared":
                guest[gfn] = (have, "wanted")
        elif call == "c":
            assert (el2.hyp.complete_unshare(el2.vm, gfn) == 0) == (state in ("wanted", "owned"))
            if state == "wanted":
                guest[gfn] = (have, "owned")
        elif call == "r":
            owner = next((g for g, (p, s) in guest.items() if p == pfn and s != "poisoned"), None)
            assert (el2.hyp.reclaim_guest_page(pfn) == 0) == (owner is not None)
            if owner is not None:
                guest[owner] = (pfn, "poisoned")
        elif call == "f":
            owner = next((g for g, (p, s) in guest.items() if p == pfn and s == "owned"), None)
            assert (el2.hyp.force_reclaim_guest_page(pfn) == 0) == (owner is not None)
            if owner is not None:
                guest[owner] = (pfn, "poisoned")
        for p in range(PFN, PFN + 3):
            assert el2.hyp.host_may_access(p, 1) == (not any(q == p and s == "owned" for q, s in guest.values()))
        el2.hyp.check()
        for g in range(GFN, GFN + 3):
            reaches = guest.get(g, (0, ""))[1] in ("owned", "shared")
            assert (el2.hyp.walk(el2.vm, g) is not None) == reaches

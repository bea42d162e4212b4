# SPDX-License-Identifier: GPL-2.0-or-later
"""Large folios of the RFC of May 2025, against a model that knows only which pages are shared and which folios exist."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, ENOMEM

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmemu import ConversionRefused, GuestMemfd, Host, Kvm, Mapping, VmType
from gmemu.check import check_host
from gmemu.invariants import InvariantViolation
from gmemu.kvm.guest_memfd.large import LargeFolioInode
from gmemu.uapi.kvm import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_PRIVATE,
    GUEST_MEMFD_FLAG_SUPPORT_SHARED,
    GUESTMEM_HUGETLB_FLAG_1GB,
    GUESTMEM_HUGETLB_FLAG_2MB,
)

from ..world import PAGE, World, errno_of, in_profiles, refusal

SHARED = GUEST_MEMFD_FLAG_SUPPORT_SHARED | GUEST_MEMFD_FLAG_HUGETLB
PRIVATE = SHARED | GUEST_MEMFD_FLAG_INIT_PRIVATE
TWO_MB, ONE_GB = GUESTMEM_HUGETLB_FLAG_2MB, GUESTMEM_HUGETLB_FLAG_1GB
N, FOLIOS = 512, 3
"""pages of a 2 MiB folio; folios of the file"""


class Machine:
    """A software-protected VM with a file of three private folios of 2 MiB, mapped."""

    def __init__(self, flags: int = PRIVATE | TWO_MB, size: int = FOLIOS * N * PAGE) -> None:
        self.host = Host("rfc-2025-05", memory=1 << 34)
        self.kvm = Kvm.open_on(self.host)
        self.vm = self.kvm.create_vm(VmType.SW_PROTECTED)
        self.gmem: GuestMemfd = self.vm.create_guest_memfd(size, flags)
        self.memory: Mapping = self.gmem.mmap()
        self.vm.set_user_memory_region2(0, 0, size, gmem=self.gmem, userspace_addr=self.memory.address)
        self.vcpu = self.vm.create_vcpu()
        [inode] = self.host.gmem_inodes
        assert isinstance(inode, LargeFolioInode)
        self.inode = inode

    def large(self) -> list[bool]:
        return [bool(self.inode.large[first]) for first in range(0, self.inode.nr_pages, self.inode.per_folio)]

    def allocated(self) -> int:
        return self.inode.mapping.nrpages


@pytest.mark.parametrize(("flag", "per_folio"), [(TWO_MB, 512), (ONE_GB, 1 << 18)])
def test_memory_comes_by_the_folio(flag: int, per_folio: int) -> None:
    machine = Machine(PRIVATE | flag, 2 * per_folio * PAGE)
    assert machine.vcpu.pre_fault(5 * PAGE, PAGE) == 0
    assert (machine.allocated(), machine.large()) == (per_folio, [True, False])
    machine.gmem.make_shared(PAGE, PAGE)
    assert (machine.allocated(), machine.large()) == (per_folio, [False, False])
    machine.memory[PAGE : PAGE + 4] = b"data"
    machine.gmem.make_private(PAGE, PAGE)
    assert machine.large() == [True, False]
    machine.gmem.make_shared(PAGE, PAGE)
    assert machine.memory[PAGE : PAGE + 4] == b"data"


@in_profiles("rfc-2025-05")
def test_creation(world: World) -> None:
    vm = world.vm()
    for size, flags in (
        (N * PAGE, TWO_MB),
        (N * PAGE, SHARED),
        (N * PAGE + PAGE, SHARED | TWO_MB),
        (N * PAGE, SHARED | ONE_GB),
    ):
        assert refusal(lambda s=size, f=flags: vm.create_guest_memfd(s, f)) == "gmem.create.folio-size"  # type: ignore[misc]
        assert errno_of(lambda s=size, f=flags: vm.create_guest_memfd(s, f)) == EINVAL  # type: ignore[misc]
    vm.create_guest_memfd(N * PAGE, SHARED | TWO_MB)


@pytest.mark.parametrize("site", ["gmem-split", "gmem-merge"])
def test_a_failure_puts_everything_back(site: str) -> None:
    machine = Machine()
    machine.vcpu.pre_fault(0, 2 * N * PAGE)
    if site == "gmem-merge":
        machine.gmem.make_shared(0, 2 * N * PAGE)
    before, shapes = machine.inode.attributes.copy(), machine.large()
    machine.host.failing_allocations[site] = 1
    convert = machine.gmem.make_shared if site == "gmem-split" else machine.gmem.make_private
    with pytest.raises(ConversionRefused) as refused:
        convert(0, 2 * N * PAGE)
    assert (refused.value.errno, refused.value.error_offset) == (ENOMEM, 0)
    assert (machine.inode.attributes, machine.large()) == (before, shapes)
    check_host(machine.host)
    convert(0, 2 * N * PAGE)
    assert machine.large() == [site == "gmem-merge"] * 2 + [False]


def test_a_folio_that_is_held_cant_be_split() -> None:
    machine = Machine()
    machine.vcpu.pre_fault(0, N * PAGE)
    pfn = machine.inode.mapping.pfn(7)
    assert pfn is not None
    machine.host.memmap.get(pfn)
    with pytest.raises(ConversionRefused) as refused:
        machine.gmem.make_shared(3 * PAGE, PAGE)
    assert (refused.value.rule.id, refused.value.errno) == ("gmem.convert.split-busy", EAGAIN)
    assert refused.value.error_offset == 3 * PAGE
    assert (machine.large()[0], machine.inode.private_run(0, N)) == (True, N)
    machine.host.memmap.put(pfn)
    machine.gmem.make_shared(3 * PAGE, PAGE)
    assert machine.large()[0] is False


def test_a_guest_gets_a_folio_as_a_whole() -> None:
    machine = Machine()
    assert machine.vcpu.pre_fault((N + 7) * PAGE, PAGE) == 0
    [vm] = machine.host.vms
    pfn = machine.inode.mapping.pfn(N)
    assert pfn is not None
    assert pfn % N == 0
    assert [(start, end, start + spte.delta) for start, end, spte in vm.mmu.sptes.runs()] == [(N, 2 * N, pfn)]
    machine.gmem.make_shared((N + 3) * PAGE, PAGE)
    assert machine.vcpu.pre_fault((N + 3) * PAGE, PAGE) == 0
    machine.gmem.make_shared((2 * N + 1) * PAGE, PAGE)
    assert machine.vcpu.pre_fault((2 * N + 2) * PAGE, PAGE) == 0
    mapped = [(start, end, spte.private) for start, end, spte in vm.mmu.sptes.runs()]
    assert mapped == [(N, N + 3, True), (N + 3, N + 4, False), (N + 4, 2 * N, True), (2 * N + 2, 2 * N + 3, True)]
    check_host(machine.host)


def test_a_large_folio_with_a_shared_page_is_found() -> None:
    machine = Machine()
    machine.vcpu.pre_fault(0, PAGE)
    machine.inode.attributes.set(3, 4, 0)
    with pytest.raises(InvariantViolation, match="not all of which is private"):
        check_host(machine.host)


pages = st.integers(0, FOLIOS * N)
step = st.tuples(st.sampled_from(["private", "shared", "punch", "write", "fail"]), pages, pages)


@settings(max_examples=60)
@given(st.lists(step, max_size=12))
def test_against_a_model(steps: list[tuple[str, int, int]]) -> None:
    machine = Machine()
    shared: set[int] = set()
    written: dict[int, int] = {}
    exists: set[int] = set()
    for number, (what, a, b) in enumerate(steps, 1):
        start, end = min(a, b), max(a, b)
        if start == end:
            continue
        asked = set(range(start, end))
        if what == "write":
            page = start
            if page in shared:
                machine.memory[page * PAGE] = number
                written[page] = number
                exists.add(page // N)
        elif what == "punch":
            machine.gmem.punch_hole(start * PAGE, (end - start) * PAGE)
            written = {p: v for p, v in written.items() if p not in asked}
            exists -= {f for f in exists if set(range(f * N, f * N + N)) <= asked}
        elif what == "fail":
            machine.host.failing_allocations["gmem-split"] = 1
            splits = any(
                not (shared & set(range(f * N, f * N + N))) and asked & set(range(f * N, f * N + N)) for f in exists
            )
            if splits:
                with pytest.raises(ConversionRefused):
                    machine.gmem.make_shared(start * PAGE, (end - start) * PAGE)
            machine.host.failing_allocations.clear()
        elif what == "shared":
            machine.gmem.make_shared(start * PAGE, (end - start) * PAGE)
            shared |= asked
        else:
            machine.gmem.make_private(start * PAGE, (end - start) * PAGE)
            shared -= asked
        assert machine.allocated() == N * len(exists)
        assert machine.large() == [f in exists and not shared & set(range(f * N, f * N + N)) for f in range(FOLIOS)]
    machine.gmem.make_shared(0, FOLIOS * N * PAGE)
    for page in {0, N - 1, N, *written}:
        assert machine.memory[page * PAGE] == written.get(page, 0)
    check_host(machine.host)
    machine.host.close()

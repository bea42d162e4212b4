# SPDX-License-Identifier: GPL-2.0-or-later
"""check_host: quiet about a sound machine, and says what is wrong with one that isn't."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from gmemu import InvariantViolation, Kvm, Vm
from gmemu.api import GuestMemfd, Mapping
from gmemu.check import check_host
from gmemu.kvm.guest_memfd.inode import GmemInode
from gmemu.kvm.host import Host
from gmemu.mm.gup import get_user_pages_fast
from gmemu.rangemap import RangeMap
from gmemu.uapi.mman import FOLL_PIN

PAGE = 4096


class Machine:
    """One VM with a guest_memfd of eight pages, mapped, bound, touched by the host and by the guest; page 7 is private."""

    def __init__(self) -> None:
        self.kvm = Kvm.open(memory=1 << 24)
        self.host: Host = self.kvm.host
        self.vm: Vm = self.kvm.create_vm(1)
        self.gmem: GuestMemfd = self.vm.create_guest_memfd(8 * PAGE, 3)
        self.mapping: Mapping = self.gmem.mmap()
        self.vm.set_user_memory_region2(0, 0, 8 * PAGE, gmem=self.gmem, userspace_addr=self.mapping.address)
        self.vcpu = self.vm.create_vcpu()
        self.mapping[: 2 * PAGE] = bytes([1]) * 2 * PAGE
        self.gmem.make_private(7 * PAGE, PAGE)
        self.vcpu.run(lambda cpu: [cpu.store(i * PAGE, b"guest") for i in (1, 2, 7)])

    @property
    def inode(self) -> GmemInode:
        [inode] = self.host.gmem_inodes
        return inode

    def pfn(self, index: int) -> int:
        pfn = self.inode.mapping.pfn(index)
        assert pfn is not None
        return pfn


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.host.close()


def test_sound(machine: Machine) -> None:
    check_host(machine.host)
    check_host(machine.host, {})


def test_references_of_others(machine: Machine) -> None:
    """A pin is a reference that the kernel can't account for: the caller says what it holds."""
    mm = machine.host.init.mm
    [(pfn, _)] = get_user_pages_fast(mm, machine.mapping.address, 1, FOLL_PIN)
    check_host(machine.host)
    check_host(machine.host, {pfn: 1024})
    with pytest.raises(InvariantViolation, match="1027 references, and 3 users"):
        check_host(machine.host, {})


def test_after_everything_is_gone(machine: Machine) -> None:
    machine.kvm.door.exit()  # type: ignore[attr-defined]
    check_host(machine.host, {})
    machine.host.check_quiet()


def _private_but_mapped(m: Machine) -> None:
    m.inode.attributes.set(0, 1, 8)


def _shared_but_mapped_private(m: Machine) -> None:
    m.inode.attributes.set(7, 8, 0)


def _attribute_missing(m: Machine) -> None:
    m.inode.attributes.clear(3, 4)


def _attributes_beyond_the_end(m: Machine) -> None:
    m.inode.attributes.set(8, 9, 8)


def _attributes_unmerged(m: Machine) -> None:
    odd: RangeMap[int] = RangeMap()
    odd._keys, odd._values = [0, 3, 7, 8], [0, 0, 8, None]
    m.inode.attributes = odd


def _page_lost(m: Machine) -> None:
    m.inode.mapping.truncate_range(2, 3)


def _cache_miscounts(m: Machine) -> None:
    m.inode.mapping.nrpages += 1


def _use_after_free(m: Machine) -> None:
    m.host.lru.lru_add_drain_all()
    m.host.memmap.refs.clear(m.pfn(2), m.pfn(2) + 1)


def _reference_lost(m: Machine) -> None:
    m.host.memmap.put(m.pfn(0))


def _map_count(m: Machine) -> None:
    m.host.memmap.maps.set(m.pfn(0), m.pfn(0) + 1, 2)


def _stale_tlb(m: Machine) -> None:
    m.host.vms[0].mmu.sptes.clear(1, 2)


def _endless_invalidation(m: Machine) -> None:
    m.host.vms[0].mmu.invalidate_in_progress.add(1)


def _forgotten_binding(m: Machine) -> None:
    m.inode.files[0].bindings.clear()


def _full_batch(m: Machine) -> None:
    pfn = m.pfn(0)
    m.host.lru._batches[1] = [pfn] * 31
    m.host.memmap.get(pfn, by=31)


def _entry_outside(m: Machine) -> None:
    mm = m.host.init.mm
    mm.vmas.remove(next(vma for vma in mm.vmas if vma.mapping is m.inode.mapping))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_private_but_mapped, "maps private pages of 0x0-0x1"),
        (_shared_but_mapped_private, "gfn 0x7 is mapped private, and is shared"),
        (_attribute_missing, "no attribute for file pages 0x3-0x4"),
        (_attributes_beyond_the_end, "end at 0x9, the file at 0x8"),
        (_attributes_unmerged, "aren't merged"),
        (_page_lost, "gfn 0x2 maps pfn"),
        (_cache_miscounts, "says that it has"),
        (_use_after_free, "in use and free"),
        (_reference_lost, "references and"),
        (_map_count, "map counts"),
        (_stale_tlb, "still translates gfn 0x1"),
        (_endless_invalidation, "never ended"),
        (_forgotten_binding, "is bound to a file that doesn't know"),
        (_full_batch, "has 31 folios in its LRU batch"),
        (_entry_outside, "outside of every mapping"),
    ],
)
def test_damage(machine: Machine, damage: Callable[[Machine], None], complaint: str) -> None:
    damage(machine)
    with pytest.raises(InvariantViolation, match=complaint):
        check_host(machine.host)

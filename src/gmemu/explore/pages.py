# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of each page of a small host, for traces: attribute, page tables, references and who has them, owner.

Looking takes no steps: it's done outside of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..kvm.guest_memfd.large import LargeFolioInode
from ..rangemap import RangeMap
from ..uapi.mman import GUP_PIN_COUNTING_BIAS

if TYPE_CHECKING:
    from ..kvm.guest_memfd.inode import GmemInode
    from ..kvm.host import Host

__all__ = ["Page", "page_states"]

V = TypeVar("V")

_MOST = 16
"""Pages of a file that are shown, from its beginning on: a scenario that has more, in a large folio, is about those."""


class Page(NamedTuple):
    """One page.  `attribute` is ``private`` or ``shared``, and says if it's in a large folio.  Where the file has no memory
    `pfn` is -1 and `refs` 0.

    `ptes`: host mappings, ``mm 0x10 rw``; `sptes`: nested ones, ``gfn 0x0 private rw``; `tlbs`: translations that a
    processor still has, ``vcpu0 gfn 0x0 rw``; `holders`: what the references are, as far as it's known, ``page cache``,
    ``2 PTEs``, ``LRU batch``, ``1 pin``, ``1 other``; `owner`: what the trusted entity says, ``HYPERVISOR`` or
    ``GUEST_VALID asid 1``; empty where there is none.
    """

    name: str
    pfn: int = -1
    attribute: str = ""
    ptes: tuple[str, ...] = ()
    sptes: tuple[str, ...] = ()
    tlbs: tuple[str, ...] = ()
    refs: int = 0
    holders: tuple[str, ...] = ()
    owner: str = ""


def page_states(host: Host, known: dict[int, str]) -> tuple[Page, ...]:
    """Every page that a guest_memfd has or could have, that a process has mapped, or that was either before (`known`: page
    frame -> name, which is added to) and is still held."""
    maps = _maps(host)
    named: dict[str, tuple[int, str]] = {}
    inodes = sorted(host.gmem_inodes, key=lambda inode: inode.ino)
    for number, inode in enumerate(inodes):
        base = "gmem" if len(inodes) == 1 else f"gmem#{number}"
        for index in range(min(inode.nr_pages, _MOST)):
            pfn = inode.mapping.pfn(index)
            private = inode.attributes[index] if host.profile.in_place else _vm_attribute(host, inode, index)
            attribute = ("private" if private else "shared") + _folio(inode, index)
            named[f"{base}[{index:#x}]"] = (-1 if pfn is None else pfn, attribute)
    in_files = {pfn for pfn, _ in named.values()}
    for pfn, ptes in maps.items():
        if pfn not in in_files and pfn != host.memmap.zero_pfn:
            named[ptes[0].rpartition(" ")[0]] = (pfn, "")
            in_files.add(pfn)
    for pfn in known:
        if pfn not in in_files and host.memmap.refs[pfn]:
            named[f"pfn {pfn:#x}"] = (pfn, "")
    known.update((pfn, name) for name, (pfn, _) in named.items() if pfn >= 0)
    cached = {index + delta for cache in host.memmap.caches for index, delta in _each(cache.pages)}
    batched = Counter(pfn for batch in host.lru.batches().values() for pfn in batch)
    sptes, tlbs = _sptes(host, {pfn for pfn, _ in named.values()}), _tlbs(host)
    return tuple(
        Page(
            name,
            pfn,
            attribute,
            tuple(maps.get(pfn, ())),
            tuple(sptes.get(pfn, ())),
            tuple(tlbs.get(pfn, ())),
            host.memmap.refs[pfn] or 0,
            _holders(host.memmap.refs[pfn] or 0, pfn in cached, len(maps.get(pfn, ())), batched[pfn]),
            host.owner(pfn),
        )
        if pfn >= 0
        else Page(name, attribute=attribute)
        for name, (pfn, attribute) in named.items()
    )


def _folio(inode: GmemInode, index: int) -> str:
    return " in a large folio" if isinstance(inode, LargeFolioInode) and inode.large[index] else ""


def _vm_attribute(host: Host, inode: object, index: int) -> bool:
    """Two-pool kernels keep attributes by guest frame: a file page has that of the frame it's bound at."""
    for vm in host.vms:
        for slot in vm.memslots[0].by_id.values():
            file = slot.gmem_file
            if file is not None and file.gmem_inode is inode and 0 <= index - slot.gmem_pgoff < slot.npages:
                return vm.attributes.is_private(slot.base_gfn + index - slot.gmem_pgoff)
    return not getattr(inode, "init_shared", False)


def _holders(refs: int, cached: bool, ptes: int, batched: int) -> tuple[str, ...]:
    pins, plain = divmod(refs, GUP_PIN_COUNTING_BIAS)
    other = plain - cached - ptes - batched
    counts = (("PTE", ptes), ("LRU batch", batched), ("pin", pins), ("other", max(other, 0)))
    found = ["page cache"] if cached else []
    return tuple(found + [f"{n} {what}{'s' if n > 1 and what == 'PTE' else ''}" for what, n in counts if n])


def _each(runs: RangeMap[V]) -> Iterator[tuple[int, V]]:
    return ((index, value) for start, end, value in runs.runs() for index in range(start, end))


def _maps(host: Host) -> dict[int, list[str]]:
    """Page frame -> where processes map it."""
    found: dict[int, list[str]] = {}
    spaces = list(host.memmap.mmlist)
    spaces.sort(key=lambda mm: mm.number)
    for mm in spaces:
        name = "mm" if len(spaces) == 1 else f"mm{mm.number}"
        for vpn, (delta, writable) in _each(mm.ptes):
            pfn = host.memmap.zero_pfn if delta is None else vpn + delta
            found.setdefault(pfn, []).append(f"{name} {vpn:#x} {'rw' if writable else 'ro'}")
    return found


def _sptes(host: Host, wanted: set[int]) -> dict[int, list[str]]:
    """Page frame, of those wanted -> where VMs' page tables map it."""
    found: dict[int, list[str]] = {}
    for number, vm in enumerate(host.vms):
        name = "" if len(host.vms) == 1 else f"vm{number} "
        for gfn, spte in _each(vm.mmu.sptes):
            if gfn + spte.delta not in wanted:
                continue
            kind, rw = "private" if spte.private else "shared", "rw" if spte.writable else "ro"
            found.setdefault(gfn + spte.delta, []).append(f"{name}gfn {gfn:#x} {kind} {rw}")
    return found


def _tlbs(host: Host) -> dict[int, list[str]]:
    """Page frame -> translations that processors still have."""
    found: dict[int, list[str]] = {}
    for vm in host.vms:
        for number, vcpu in enumerate(vm.vcpus):
            for gfn, entry in vcpu.cpu.tlb.entries.items():
                found.setdefault(entry.pfn, []).append(f"vcpu{number} gfn {gfn:#x} {'rw' if entry.writable else 'ro'}")
    return found

# SPDX-License-Identifier: GPL-2.0-or-later
"""Which object of the model is which of the emulation, and whether the two are in the same state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from gmemu.check import check_host
from gmemu.hw.memory import PAGE_SIZE
from gmemu.kvm import vm as kvm_vm
from gmemu.kvm.arch.snp import SnpVm
from gmemu.kvm.guest_memfd.file import GmemFile
from gmemu.kvm.host import Host
from gmemu.kvm.vcpu import VcpuFile as RealVcpuFile
from gmemu.mm import file as mm_file
from gmemu.mm import process as mm_process
from gmemu.mm.filemap import PageCache
from gmemu.mm.shmem import ShmemFile

from .kvm_objects import SNP, Gmem, VcpuFile, Vm
from .pages import AnonymousShared, File, Hold, Page, Process
from .snp_world import SnpWorld

T = TypeVar("T")


class Twins:
    """The pairs, and `check`."""

    def __init__(self, world: SnpWorld, host: Host) -> None:
        self.world, self.host = world, host
        self.processes: dict[Process, mm_process.Process] = {}
        self.files: dict[File, mm_file.File] = {}
        self.vms: dict[Vm, kvm_vm.Vm] = {}
        self.holds: dict[Hold, list[int]] = {}

    def check(self) -> None:
        """Compare everything.  Page frames are paired with pages on the way, and must pair one to one."""
        self._frames: dict[Page, int] = {}
        self._undefined: set[Page] = set()
        self._guests: dict[Page, kvm_vm.Vm] = {}
        self._pair(self.world.zero, self.host.memmap.zero_pfn, "the zero page")
        for process in self.world.processes:
            self._check_process(process, self.processes[process])
        for file in self.world.files:
            self._check_file(file)
        assert set(self.host.vms) == {self.vms[vm] for vm in self.world.vms}, "which VMs exist"
        for vm in self.world.vms:
            self._check_vm(vm, self.vms[vm])
        self._check_batches()
        for hold in self.world.holds:
            for page, pfn in zip(hold.pages, self.holds[hold], strict=True):
                self._pair(page, pfn, "a held page")
        self._check_pages()

    def _pair(self, page: Page, pfn: int | None, where: str) -> None:
        assert pfn is not None, f"{where}: no page in the emulation"
        assert self._frames.setdefault(page, pfn) == pfn, f"{where}: pfn {pfn:#x}, elsewhere {self._frames[page]:#x}"

    def _check_process(self, process: Process, real: mm_process.Process) -> None:
        assert {fd: self.files[file] for fd, file in process.fds.items()} == real.files, "open descriptors"
        mm = real.mm
        areas = {vpn: (v.file, vpn - v.start + v.pgoff, v.prot) for v in mm.vmas for vpn in range(v.start, v.end)}
        for vpn, area in process.areas.items():
            file, number, prot = areas.pop(vpn, (None, -1, -1))
            if isinstance(area.file, AnonymousShared) and area.file not in self.files:
                assert isinstance(file, ShmemFile)
                self.files[area.file] = file
            wanted = self.files[area.file] if area.file else None
            assert (file, prot) == (wanted, area.prot), f"the mapping at user page {vpn:#x}"
            assert file is None or number == area.number, f"the file page mapped at user page {vpn:#x}"
        assert not areas, f"user pages {areas} are mapped"
        entries = {
            vpn: vpn + delta if delta is not None else self.host.memmap.zero_pfn
            for vpn, delta in _deltas((s, e, v[0]) for s, e, v in mm.ptes.runs())
        }
        for vpn, entry in process.table.items():
            self._pair(entry.page, entries.pop(vpn, None), f"the entry of user page {vpn:#x}")
        assert not entries, f"page table entries {entries} too many"

    def _check_file(self, file: File) -> None:
        real = self.files[file]
        assert real.count > 0
        if isinstance(file, Gmem):
            assert isinstance(real, GmemFile)
            self._check_cache(file, real.gmem_inode.mapping, "guest_memfd")
            self._guests.update(dict.fromkeys(file.pages.values(), self.vms[file.vm]))
            attributes = real.gmem_inode.attributes
            private = {i: attributes[i] == 8 for i in range(file.npages)}
            assert private == file.private, "what is private in a guest_memfd"
        elif isinstance(file, AnonymousShared):
            assert isinstance(real, ShmemFile)
            self._check_cache(file, real.cache, "shared memory")
        elif isinstance(file, VcpuFile):
            assert isinstance(real, RealVcpuFile)
            self._check_cache(file, real.vcpu.pages, "kvm_run")

    def _check_cache(self, file: File, cache: PageCache, what: str) -> None:
        found = dict(_deltas(cache.pages.runs()))
        for index, page in file.pages.items():
            delta = found.pop(index, None)
            self._pair(page, None if delta is None else index + delta, f"page {index:#x} of {what}")
            assert page.fresh == (cache.uptodate[index] is None), f"whether page {index:#x} of {what} was ever used"
            if page.fresh:
                self._undefined.add(page)
        assert not found, f"{what} has pages {found} too many"

    def _check_batches(self) -> None:
        real = self.host.lru.batches()
        for cpu, batch in self.world.batches.items():
            for page, pfn in zip(batch, real.get(cpu, ()), strict=True):
                if page not in self._frames:
                    self._undefined.add(page)
                self._pair(page, pfn, f"the LRU batch of CPU {cpu}")

    def _check_vm(self, vm: Vm, real: kvm_vm.Vm) -> None:
        slots = {n | space << 16: slot for space, slots in enumerate(real.memslots) for n, slot in slots.by_id.items()}
        assert slots.keys() == vm.slots.keys(), "which slots exist"
        for number, slot in vm.slots.items():
            other = slots[number]
            want = (slot.gfn, slot.npages, slot.flags, slot.region.address, slot.file and self.files[slot.file])
            have = (other.base_gfn, other.npages, other.flags & 7, other.userspace_addr, other.gmem_file)
            assert want == have, f"slot {number:#x}"
            assert slot.file is None or (slot.first, slot.gmem_only) == (other.gmem_pgoff, other.gmem_only), (
                f"slot {number:#x}"
            )
        if not self.world.kernel.in_place:
            stored = {gfn for s, e, _ in getattr(real.attributes, "array").runs() for gfn in range(s, e)}  # noqa: B009
            assert stored == {gfn for gfn, private in vm.attributes.items() if private}, "the VM's attributes"
        for gfn, pfn in ((gfn, gfn + d) for gfn, d in _deltas((s, e, v.delta) for s, e, v in real.mmu.sptes.runs())):
            page = self.world.guest_sees(vm, gfn)
            assert page is not None, f"gfn {gfn:#x} is mapped and shouldn't be"
            self._pair(page, pfn, f"the guest's mapping of gfn {gfn:#x}")
        for vcpu, twin in zip(vm.vcpus.values(), real.vcpus, strict=True):
            for index, page in vcpu.pages.items():
                self._pair(page, twin.pages.pfn(index), "kvm_run")
        if vm.started and vm.digest is not None:
            assert isinstance(real.arch, SnpVm)
            assert real.arch.snp_context is not None
            assert self.host.snp.psp.contexts[real.arch.snp_context].ld.value == vm.digest, "the launch digest"

    def _check_pages(self) -> None:
        assert len(set(self._frames.values())) == len(self._frames), "two pages in one frame"
        references = self.world.references()
        memmap, memory = self.host.memmap, self.host.memory
        for page, pfn in self._frames.items():
            if page is self.world.zero:
                continue
            have = memmap.refs[pfn]
            assert have == references[page], f"pfn {pfn:#x} has {have} references, not {references[page]}"
            key = self._check_owner(page, pfn)
            if not page.unknown and page not in self._undefined:
                assert memory.read(pfn * PAGE_SIZE, PAGE_SIZE, key) == page.read(0, PAGE_SIZE), f"the bytes of pfn {pfn:#x}"
        allocated = 1 + len(references) + self.world.hidden_pages()
        assert memmap.nr_allocated == allocated, "how many pages are allocated"
        held = Counter(self._hidden())
        for hold in self.world.holds:
            for pfn in self.holds[hold]:
                held[pfn] += 1024 if hold.pin else 1
        check_host(self.host, held)

    def _check_owner(self, page: Page, pfn: int) -> int:
        """Compare what the RMP says of a page: the key by which its bytes are read."""
        entry = self.host.snp.rmp.lookup(pfn) if any(vm.kind == SNP for vm in self.world.vms) else None
        if page.assigned is None:
            assert entry is None, f"pfn {pfn:#x} is {entry}"
            return 0
        arch = self._guests[page].arch
        assert isinstance(arch, SnpVm)
        want = (True, page.assigned.validated, False, arch.asid, page.assigned.gfn)
        have = entry and (entry.assigned, entry.validated, entry.immutable, entry.asid, entry.gfn(pfn))
        assert have == want, f"pfn {pfn:#x} in the RMP"
        return self.host.snp.psp.keys[arch.asid]

    def _hidden(self) -> Iterable[int]:
        """The page frames that only KVM and the firmware know of."""
        for vm in self.host.vms:
            if isinstance(vm.arch, SnpVm):
                yield from vm.arch.vmsa_pfns.values()
                if vm.arch.snp_context is not None:
                    yield vm.arch.snp_context


def _deltas(runs: Iterable[tuple[int, int, T]]) -> Iterable[tuple[int, T]]:
    return ((index, value) for start, end, value in runs for index in range(start, end))

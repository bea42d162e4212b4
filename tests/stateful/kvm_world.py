# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's KVM: its calls, in the simplest terms that give every errno."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EAGAIN, EBADF, EEXIST, EFAULT, EFBIG, EINTR, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, ENOTTY, EOPNOTSUPP

from .kvm_objects import (
    GUEST_MEMFD,
    LAST_GFN,
    LOG_DIRTY,
    MMAP,
    PRIVATE,
    READONLY,
    SNP,
    SW_PROTECTED,
    TASK_SIZE,
    U64,
    USER_SLOTS,
    Device,
    Gmem,
    Kernel,
    Region,
    Slot,
    VcpuFile,
    Vm,
    VmFile,
)
from .pages import PAGE, Errno, File, OutOfMemory, Page, Process, Signal
from .world import World


class KvmWorld(World):
    """A machine whose kernel has KVM."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.vms: list[Vm] = []

    def _install(self, process: Process, file: File) -> int:
        self.files.append(file)
        return process.install(file)

    def reap(self) -> None:
        super().reap()
        for vm in list(self.vms):
            if not any(getattr(file, "vm", None) is vm for file in self.files):
                self.vms.remove(vm)

    def cached(self) -> Iterator[Page]:
        """A vCPU's pages are its VM's, whether or not its descriptor is open."""
        for file in self.files:
            if not isinstance(file, VcpuFile):
                yield from file.pages.values()
        for vm in self.vms:
            for vcpu in vm.vcpus.values():
                yield from vcpu.pages.values()

    def open_device(self, process: Process) -> int:
        return self._install(process, Device())

    # VMs

    def create_vm(self, process: Process, fd: int, kind: int) -> int:
        if not isinstance(process.file(fd), Device):
            raise Errno(EBADF)
        if kind not in (0, SW_PROTECTED, SNP):
            raise Errno(EINVAL)
        vm = Vm(process, kind)
        self.vms.append(vm)
        return self._install(process, VmFile(vm))

    def vm(self, process: Process, fd: int) -> Vm:
        file = process.file(fd)
        assert isinstance(file, VmFile)
        if file.vm.owner is not process:
            raise Errno(EIO)
        return file.vm

    def create_vcpu(self, process: Process, fd: int, number: int) -> int:
        vm = self.vm(process, fd)
        if number >= 4096:
            raise Errno(EINVAL)
        if number in vm.vcpus:
            raise Errno(EEXIST)
        try:
            self.need(4 if vm.kind == SNP else 3)
        except OutOfMemory:
            raise Errno(ENOMEM) from None
        vm.vcpus[number] = VcpuFile(vm)
        return self._install(process, vm.vcpus[number])

    def create_gmem(self, process: Process, fd: int, size: int, flags: int) -> int:
        vm = self.vm(process, fd)
        if flags & ~(self.kernel.flags_private if vm.private_memory else self.kernel.flags_default):
            raise Errno(EINVAL)
        if not 0 < size < 1 << 63 or size % PAGE:
            raise Errno(EINVAL)
        file = Gmem(vm, size // PAGE, flags)
        file.mappable = self.kernel.flags_default != 0
        return self._install(process, file)

    def enable_map_gpa_range(self, process: Process, fd: int) -> None:
        self.vm(process, fd).map_gpa_range_exits = True

    # Memslots

    def set_region(self, process: Process, fd: int, region: Region, version: int) -> None:
        vm = self.vm(process, fd)
        if version == 1 and region.flags & ~(LOG_DIRTY | READONLY):
            raise Errno(EINVAL)
        self._check_region(vm, region)
        old = vm.slots.get(region.slot)
        if not region.size:
            if old is None:
                raise Errno(EINVAL)
            del vm.slots[region.slot]
            return
        if old is not None:
            self._change_slot(vm, old, region)
            return
        self._check_overlap(vm, region)
        slot = Slot(region)
        if region.flags & GUEST_MEMFD:
            self._bind(process, vm, slot)
        if slot.gfn + slot.npages - 1 > LAST_GFN:
            raise Errno(EINVAL)
        vm.slots[region.slot] = slot

    def _check_region(self, vm: Vm, region: Region) -> None:
        gmem = region.flags & GUEST_MEMFD
        known = 0 if gmem else LOG_DIRTY if vm.kind == SNP else LOG_DIRTY | READONLY
        if vm.private_memory or self.kernel.default_vm_binds:
            known |= GUEST_MEMFD
        wrong = (
            region.slot % (1 << 16) >= USER_SLOTS
            or region.flags & ~known
            or region.size % PAGE
            or region.gpa % PAGE
            or region.address % PAGE
            or region.address + region.size > TASK_SIZE
            or (gmem and (region.offset % PAGE or region.offset + region.size >= U64))
            or region.slot >> 16 >= (1 if vm.private_memory else 2)
            or region.gpa + region.size >= U64
            or region.size // PAGE > (1 << 31) - 1
        )
        if wrong:
            raise Errno(EINVAL)

    def _change_slot(self, vm: Vm, old: Slot, region: Region) -> None:
        """One without a guest_memfd may be moved, and logged or not."""
        same = region.address == old.region.address and region.size == old.region.size
        if (region.flags | old.flags) & GUEST_MEMFD or not same or (region.flags ^ old.flags) & READONLY:
            raise Errno(EINVAL)
        if region.gpa != old.region.gpa:
            self._check_overlap(vm, region)
            if region.gpa // PAGE + old.npages - 1 > LAST_GFN:
                raise Errno(EINVAL)
        if not region.flags & LOG_DIRTY or not old.flags & LOG_DIRTY:
            old.written, old.accessed = set(), set()
        old.region, old.gfn, old.flags = region, region.gpa // PAGE, region.flags

    def _check_overlap(self, vm: Vm, region: Region) -> None:
        start, end = region.gpa, region.gpa + region.size
        for number, slot in vm.slots.items():
            other = slot.region
            alike = number != region.slot and number >> 16 == region.slot >> 16
            if alike and other.gpa < end and start < other.gpa + other.size:
                raise Errno(EEXIST)

    def _bind(self, process: Process, vm: Vm, slot: Slot) -> None:
        file = process.file(slot.region.fd)
        end = slot.region.offset + slot.region.size
        if not isinstance(file, Gmem) or file.vm is not vm:
            raise Errno(EINVAL)
        if self.kernel.signed_offset:
            end = end if end < 1 << 63 else end - U64
        if (self.kernel.signed_offset and slot.region.offset >= 1 << 63) or end > file.npages * PAGE:
            raise Errno(EINVAL)
        for other in vm.slots.values():
            if other.file is file and other.first < slot.first + slot.npages and slot.first < other.first + other.npages:
                raise Errno(self.kernel.overlap)
        if slot.gfn + slot.npages - 1 <= LAST_GFN:
            slot.file = file
            slot.gmem_only = self.kernel.gmem_only == "always" or (
                self.kernel.gmem_only == "mmap" and bool(file.flags & MMAP)
            )

    def dirty_log(self, process: Process, fd: int, number: int) -> tuple[set[int], set[int]]:
        """KVM_GET_DIRTY_LOG: the pages that must be in it, and those that may be."""
        vm = self.vm(process, fd)
        if number >> 16 >= (1 if vm.private_memory else 2) or number % (1 << 16) >= USER_SLOTS:
            raise Errno(EINVAL)
        slot = vm.slots.get(number)
        if slot is None or not slot.flags & LOG_DIRTY:
            raise Errno(ENOENT)
        log = slot.written, slot.accessed
        slot.written, slot.accessed = set(), set()
        return log

    # Private or shared

    def is_private(self, vm: Vm, gfn: int) -> bool:
        if not self.kernel.in_place:
            return vm.attributes.get(gfn, False)
        slot = vm.slot_at(gfn)
        if slot is None or slot.file is None:
            return False
        return slot.file.private[slot.first + gfn - slot.gfn]

    def set_vm_attributes(self, process: Process, fd: int, gpa: int, size: int, attributes: int, flags: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES."""
        vm = self.vm(process, fd)
        supported = PRIVATE if vm.private_memory and not self.kernel.in_place else 0
        if flags or attributes & ~supported or not size or gpa + size >= U64 or gpa % PAGE or size % PAGE:
            raise Errno(EINVAL)
        if not self.kernel.in_place and supported:
            for gfn in range(gpa // PAGE, (gpa + size) // PAGE):
                vm.attributes[gfn] = bool(attributes)

    def convert(
        self, process: Process, fd: int, offset: int, size: int, attributes: int, flags: int, reserved: int, starved: bool
    ) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd.  `starved`: its allocation fails."""
        file = process.file(fd)
        assert isinstance(file, Gmem)
        if not self.kernel.in_place:
            raise Errno(ENOTTY)
        if flags or reserved or not file.vm.private_memory or attributes & ~PRIVATE:
            raise Errno(EINVAL)
        if not size or offset + size >= U64 or offset % PAGE or size % PAGE or offset + size > file.npages * PAGE:
            raise Errno(EINVAL)
        pages = range(offset // PAGE, (offset + size) // PAGE)
        if all(file.private[i] == bool(attributes) for i in pages):
            return
        if starved:
            raise Errno(ENOMEM, offset)
        if attributes:
            self._check_unused(file, pages)
        for i in pages:
            file.private[i] = bool(attributes)
            if not attributes and i in file.pages:
                file.pages[i].give_back()

    def convert_by_address(
        self, process: Process, fd: int, address: int, packed: bytes, offset: int, size: int, attributes: int
    ) -> None:
        """The same with the structure in user memory: it's read first, and after EAGAIN written back with error_offset."""
        if self.kernel.in_place:
            assert self._user(process, address, len(packed)) in (packed, None)
        try:
            self.convert(process, fd, offset, size, attributes, 0, 0, False)
        except Errno as error:
            if error.offset is not None:
                where = error.offset.to_bytes(8, "little")
                self.write_user(process, address, packed[:32] + where + packed[40:])
            raise

    def _user(self, process: Process, address: int, length: int) -> bytes | None:
        try:
            return self.load(process, address, length)
        except Signal:
            raise Errno(EFAULT) from None

    def write_user(self, process: Process, address: int, data: bytes) -> None:
        try:
            self.store(process, address, data)
        except Signal:
            raise Errno(EFAULT) from None

    def _check_unused(self, file: Gmem, pages: range) -> None:
        """Host mappings go; what is then held by more than the page cache stops the conversion."""
        self.unmap(file, pages.start, pages.stop)
        undrained = [[self.batches[self.cpu]], list(self.batches.values())]
        for i in pages:
            if i not in file.pages:
                continue
            page = file.pages[i]
            if self.pinned(page):
                raise Errno(EAGAIN, i * PAGE)
            while self.references()[page] > 1:
                if not undrained:
                    raise Errno(EAGAIN, i * PAGE)
                for batch in undrained.pop(0):
                    batch.clear()

    # Files

    def fallocate(self, process: Process, fd: int, mode: int, offset: int, length: int, signal: bool) -> None:
        file = process.file(fd)
        if offset < 0 or length <= 0:
            raise Errno(EINVAL)
        if mode not in (0, 1, 3, 8, 16, 17, 32, 64, 65, 128) or mode & ~self.kernel.fallocate_modes:
            raise Errno(EOPNOTSUPP)
        if not isinstance(file, Gmem):
            raise Errno(ENODEV)
        if offset + length >= 1 << 63:
            raise Errno(EFBIG)
        if mode not in (1, 3):
            raise Errno(EOPNOTSUPP)
        if offset % PAGE or length % PAGE:
            raise Errno(EINVAL)
        start, end = offset // PAGE, (offset + length) // PAGE
        if mode == 3:
            self.drop(file, start, end)
            return
        if end > file.npages:
            raise Errno(EINVAL)
        if signal:
            raise Errno(EINTR)
        for index in range(start, end):
            try:
                self.grab(file, index)
            except OutOfMemory:
                raise Errno(ENOMEM) from None

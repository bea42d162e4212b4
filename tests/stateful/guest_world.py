# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's guests: what an access reaches, what comes of it, and where a guest goes on."""

from __future__ import annotations

from collections.abc import Generator
from errno import EFAULT, EINTR, EINVAL, EIO, ENOENT, ENOMEM, EOPNOTSUPP

from .kvm_objects import (
    PRIVATE,
    READONLY,
    SNP,
    U64,
    BadAddressExit,
    Exit,
    FailedEntry,
    Guest,
    GuestFault,
    Halted,
    Heard,
    Hypercall,
    HypercallExit,
    Load,
    MemoryFaultExit,
    MmioExit,
    Op,
    PageStateChange,
    Slot,
    Store,
    Validate,
    VcpuFile,
    Vm,
)
from .kvm_world import KvmWorld
from .pages import PAGE, Assigned, Errno, OutOfMemory, Page, Process, Signal, joined, pieces


class GuestWorld(KvmWorld):
    """A machine whose VMs run."""

    def guest_page(self, vm: Vm, gpa: int, write: bool, encrypted: bool) -> Page | None:
        """The page that a guest's access reaches; None for MMIO.  Raises `GuestFault`."""
        gfn = gpa // PAGE
        slot = vm.slot_at(gfn)
        private = self.is_private(vm, gfn)
        # a software-protected guest wants what there is; an SNP guest says what it wants
        wanted = encrypted if vm.kind == SNP else private and vm.private_memory
        exit_ = MemoryFaultExit(PRIVATE if wanted else 0, gfn * PAGE, EFAULT)
        if wanted != private:
            raise GuestFault(exit_)
        if slot is None:
            if wanted:
                raise GuestFault(exit_)
            return None
        if not wanted and not slot.gmem_only:
            return self._guest_page_by_address(vm, slot, gfn, write)
        if slot.file is None:
            raise GuestFault(exit_)
        index = slot.first + gfn - slot.gfn
        try:
            page = self.grab(slot.file, index)
        except OutOfMemory:
            raise GuestFault(exit_._replace(errno=ENOMEM)) from None
        page.fresh = False
        if vm.kind == SNP and (not self.kernel.in_place or slot.file.private[index]) and not page.assigned:
            page.assigned, page.unknown = Assigned(gfn, False), True
        return page

    def _guest_page_by_address(self, vm: Vm, slot: Slot, gfn: int, write: bool) -> Page | None:
        if write and slot.flags & READONLY:
            return None
        try:
            page = self.touch(vm.owner, slot.region.address + (gfn - slot.gfn) * PAGE, write)
        except Signal:
            raise GuestFault(BadAddressExit()) from None
        slot.accessed.add(gfn - slot.gfn)
        if write:
            slot.written.add(gfn - slot.gfn)
        return page

    def guest_sees(self, vm: Vm, gfn: int) -> Page | None:
        """The page that is at a guest frame already, if the guest may have it."""
        slot = vm.slot_at(gfn)
        private = self.is_private(vm, gfn)
        if slot is None or (private and not vm.private_memory):
            return None
        if private or slot.gmem_only:
            return slot.file.pages.get(slot.first + gfn - slot.gfn) if slot.file else None
        entry = vm.owner.table.get(slot.region.address // PAGE + gfn - slot.gfn)
        return entry.page if entry else None

    def guest(self, vcpu: VcpuFile, ops: list[Op]) -> Guest:
        """The guest that does `ops`, in whichever pieces its exits cut it."""
        for op in ops:
            vcpu.results += yield from self._do(vcpu, op)
        yield Halted()

    def _do(self, vcpu: VcpuFile, op: Op) -> Generator[Exit | None, bytes | int | None, list[Heard]]:
        """One operation: what the guest hears of it, if anything."""
        if isinstance(op, Hypercall):
            bad = -22 if op.gpa % PAGE or not op.npages else 0
            bad = bad if vcpu.vm.map_gpa_range_exits else -1000
            return [bad or (yield from _ask(op.gpa, op.npages, op.private))]
        if isinstance(op, PageStateChange):
            refused = not vcpu.vm.map_gpa_range_exits or bool((yield from _ask(op.gpa, 1, op.private)))
            return [refused << 31]
        if isinstance(op, Validate):
            page = yield from self._reach(vcpu.vm, op.gpa, True, True)
            assert page is not None
            assert page.assigned is not None
            changed, page.assigned.validated = page.assigned.validated is not op.on, op.on
            return [0 if changed else 255]
        loaded: list[bytes | None] = []
        for gpa, done, n in pieces(op.gpa, op.length if isinstance(op, Load) else len(op.data)):
            page = yield from self._reach(vcpu.vm, gpa, isinstance(op, Store), not op.shared)
            if page is None:
                loaded.append((yield from _mmio(op, gpa, done, n)))
            elif page.assigned and not page.assigned.validated:
                return ["#VC"]
            elif isinstance(op, Store):
                page.write(gpa % PAGE, op.data[done : done + n])
            else:
                loaded.append(page.read(gpa % PAGE, n))
        return [joined(loaded)] if isinstance(op, Load) else []

    def _reach(self, vm: Vm, gpa: int, write: bool, encrypted: bool) -> Generator[Exit, None, Page | None]:
        """The page of an access, tried again after each exit that it ends in."""
        while True:
            try:
                return self.guest_page(vm, gpa, write, encrypted)
            except GuestFault as fault:
                yield fault.exit

    def run(self, process: Process, fd: int, answer: bytes | int | None, immediate: bool, signal: bool) -> Exit:
        """KVM_RUN, `answer` being what user space left in kvm_run for the exit before."""
        vcpu = process.file(fd)
        assert isinstance(vcpu, VcpuFile)
        if vcpu.vm.owner is not process:
            raise Errno(EIO)
        assert vcpu.guest is not None
        exit_: Exit | None = None
        if isinstance(vcpu.pending, MmioExit | HypercallExit):
            exit_, vcpu.pending = vcpu.guest.send(answer), None
        if exit_ is None:
            if immediate or signal:
                raise Errno(EINTR)
            if vcpu.vm.kind == SNP and not (vcpu.protected and vcpu.vm.finished):
                vcpu.pending = FailedEntry()
                return vcpu.pending
            exit_ = next(vcpu.guest)
            assert exit_ is not None
        vcpu.pending = exit_
        if isinstance(exit_, Halted):
            vcpu.guest = None
        return exit_

    def pre_fault(self, process: Process, fd: int, gpa: int, size: int, flags: int, signal: bool) -> int:
        """KVM_PRE_FAULT_MEMORY: how many bytes are left."""
        vcpu = process.file(fd)
        assert isinstance(vcpu, VcpuFile)
        if vcpu.vm.owner is not process:
            raise Errno(EIO)
        if flags or gpa % PAGE or size % PAGE or not size or gpa + size >= U64:
            raise Errno(EINVAL)
        if signal:
            raise Errno(EINTR)
        if vcpu.vm.kind == SNP and not vcpu.vm.finished:
            raise Errno(EOPNOTSUPP)
        for done in range(0, size, PAGE):
            error = 0
            try:
                if self.guest_page(vcpu.vm, gpa + done, False, self.is_private(vcpu.vm, (gpa + done) // PAGE)) is None:
                    error = ENOENT
            except GuestFault as fault:
                error = fault.exit.errno if isinstance(fault.exit, MemoryFaultExit) else EFAULT
            if error and not done:
                raise Errno(error)
            if error:
                return size - done
        return 0


def _ask(gpa: int, npages: int, private: bool) -> Generator[Exit | None, bytes | int | None, int]:
    """KVM_HC_MAP_GPA_RANGE: what user space answers."""
    answer = yield HypercallExit((gpa, npages, 16 if private else 0))
    assert isinstance(answer, int)
    yield None
    return answer


def _mmio(op: Load | Store, gpa: int, done: int, length: int) -> Generator[Exit | None, bytes | int | None, bytes]:
    """An access to nothing, in pieces of eight bytes: what user space answers to a load."""
    loaded = b""
    for at in range(0, length, 8):
        n = min(8, length - at)
        data = op.data[done + at : done + at + n] if isinstance(op, Store) else bytes(n)
        answer = yield MmioExit(gpa + at, isinstance(op, Store), data)
        assert isinstance(answer, bytes)
        loaded += answer[:n]
    yield None
    return loaded

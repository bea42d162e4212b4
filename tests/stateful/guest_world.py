# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's guests: what an access reaches, what comes of it, and where a guest goes on."""

from __future__ import annotations

from collections.abc import Generator
from errno import EFAULT, EINTR, EINVAL, EIO, ENOENT

from .kvm_objects import (
    PRIVATE,
    READONLY,
    U64,
    BadAddressExit,
    Exit,
    Guest,
    GuestFault,
    Halted,
    Hypercall,
    HypercallExit,
    Load,
    MemoryFaultExit,
    MmioExit,
    Op,
    Slot,
    Store,
    VcpuFile,
    Vm,
)
from .kvm_world import KvmWorld
from .world import PAGE, Errno, Page, Process, Signal, pieces


class GuestWorld(KvmWorld):
    """A machine whose VMs run."""

    def guest_page(self, vm: Vm, gpa: int, write: bool) -> Page | None:
        """The page that a guest's access reaches; None for MMIO.  Raises `GuestFault`."""
        gfn = gpa // PAGE
        slot = vm.slot_at(gfn)
        private = self.is_private(vm, gfn)
        wanted = private and vm.private_memory  # a software-protected guest wants what there is
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
        return self.grab(slot.file, slot.first + gfn - slot.gfn)

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
            if isinstance(op, Hypercall):
                yield from self._hypercall(vcpu, op)
                continue
            loaded = b""
            length = op.length if isinstance(op, Load) else len(op.data)
            for gpa, done, n in pieces(op.gpa, length):
                data = op.data[done : done + n] if isinstance(op, Store) else None
                loaded += yield from self._access(vcpu, gpa, n, data)
            if isinstance(op, Load):
                vcpu.results.append(loaded)
        yield Halted()

    def _access(
        self, vcpu: VcpuFile, gpa: int, length: int, data: bytes | None
    ) -> Generator[Exit | None, bytes | int | None, bytes]:
        while True:
            try:
                page = self.guest_page(vcpu.vm, gpa, data is not None)
                break
            except GuestFault as fault:
                yield fault.exit
        if page is not None:
            if data is not None:
                page.write(gpa % PAGE, data)
            return b"" if data is not None else page.read(gpa % PAGE, length)
        loaded = b""
        for done in range(0, length, 8):
            n = min(8, length - done)
            answer = yield MmioExit(gpa + done, data is not None, data[done : done + n] if data else bytes(n))
            assert isinstance(answer, bytes)
            loaded += answer[:n]
        yield None
        return loaded

    def _hypercall(self, vcpu: VcpuFile, op: Hypercall) -> Guest:
        if not vcpu.vm.map_gpa_range_exits:
            vcpu.results.append(-1000)
            return
        if op.gpa % PAGE or not op.npages:
            vcpu.results.append(-22)
            return
        answer = yield HypercallExit((op.gpa, op.npages, 16 if op.private else 0))
        assert isinstance(answer, int)
        yield None
        vcpu.results.append(answer)

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
        for done in range(0, size, PAGE):
            error = 0
            try:
                if self.guest_page(vcpu.vm, gpa + done, False) is None:
                    error = ENOENT
            except GuestFault as fault:
                error = fault.exit.errno if isinstance(fault.exit, MemoryFaultExit) else EFAULT
            if error and not done:
                raise Errno(error)
            if error:
                return size - done
        return 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's SNP launch: what each page gets, and the digest."""

from __future__ import annotations

from errno import EINVAL, EIO, ENOTTY
from hashlib import sha384

from .guest_world import GuestWorld
from .kvm_objects import GUEST_MEMFD, SNP, Op, SevDevice, Slot, VcpuFile, Vm
from .pages import PAGE, Assigned, Errno, OutOfMemory, Page, Process, Signal, pieces

NORMAL, ZERO, UNMEASURED, SECRETS = 1, 3, 4, 5


class Refused(Exception):
    """A page can't be populated; KVM doesn't say why."""


class SnpWorld(GuestWorld):
    """A machine with SNP."""

    def open_sev(self, process: Process) -> int:
        return self._install(process, SevDevice())

    def hidden_pages(self) -> int:
        """Pages that only KVM and the firmware know: guest contexts, and VMSAs."""
        return sum(vm.started + len(vm.vcpus) for vm in self.vms if vm.kind == SNP)

    def _snp(self, process: Process, fd: int) -> Vm:
        vm = self.vm(process, fd)
        if vm.kind != SNP:
            raise Errno(ENOTTY)
        return vm

    def launch_start(self, process: Process, fd: int) -> None:
        vm = self._snp(process, fd)
        if vm.started:
            raise Errno(EINVAL)
        try:
            self.need(1)
        except OutOfMemory:
            raise Errno(ENOTTY) from None
        vm.started = True

    def launch_update(
        self, process: Process, fd: int, gfn: int, source: int, length: int, kind: int
    ) -> tuple[int, int, int]:
        """KVM_SEV_SNP_LAUNCH_UPDATE: what is left to do, as (gfn, source, length)."""
        vm, old = self._snp(process, fd), self.kernel.locked_populate
        slot = vm.slot_at(gfn)
        wanted = 0 if kind == ZERO else source
        sourceless = kind != ZERO and not wanted and not self.kernel.in_place
        if not vm.started or length % PAGE or kind not in (NORMAL, ZERO, UNMEASURED, SECRETS):
            raise Errno(EINVAL)
        if not old and (not length or sourceless or wanted % PAGE):
            raise Errno(EINVAL)
        if slot is None or not slot.flags & GUEST_MEMFD:
            raise Errno(EINVAL)
        done = 0
        try:
            if slot.file is None:
                raise Refused
            while done < min(length // PAGE, slot.gfn + slot.npages - gfn):
                self._populate(process, vm, slot, gfn + done, wanted and wanted + done * PAGE, kind)
                done += 1
        except Refused:
            if not done:
                raise Errno(EIO) from None
        return gfn + done, source + done * PAGE if wanted else source, length - done * PAGE

    def _populate(self, process: Process, vm: Vm, slot: Slot, gfn: int, source: int, kind: int) -> None:
        """One page.  Which of two reasons to refuse it comes first shows in whether the source was touched."""
        given: Page | None = None
        if source and not self.kernel.locked_populate:
            given = self._source(process, source)
        assert slot.file is not None
        try:
            page = self.grab(slot.file, slot.first + gfn - slot.gfn)
        except OutOfMemory:
            raise Refused from None
        if self.kernel.locked_populate and not page.fresh:
            raise Refused
        if self.kernel.in_place:
            page.fresh = False
        if not self.is_private(vm, gfn) or (kind != ZERO and not source and not self.kernel.in_place) or page.assigned:
            raise Refused
        if source and self.kernel.locked_populate:
            given = self._source(process, source)
        if given is not None:
            page.data, page.unknown = None if given.data is None else bytearray(given.data), given.unknown
        if vm.finished:
            if page.fresh:
                page.data, page.unknown = None, False  # it will be cleared before anybody sees it
            raise Refused
        page.assigned, page.fresh = Assigned(gfn, True), False
        if kind == ZERO:
            page.data, page.unknown = None, False
        if kind == SECRETS:
            page.unknown = True
        self._measure(vm, gfn, kind, page)

    def _source(self, process: Process, address: int) -> Page:
        """A page with what is at a user address, which needn't be aligned in the older kernels."""
        found = Page(bytearray())
        assert found.data is not None
        for at, _, n in pieces(address, PAGE):
            try:
                part = self.touch(process, at, False).read(at % PAGE, n)
            except Signal:
                raise Refused from None
            found.unknown |= part is None
            found.data += part or bytes(n)
        return found

    def _measure(self, vm: Vm, gfn: int, kind: int, page: Page) -> None:
        contents: bytes | None = bytes(48)
        if kind == NORMAL:
            read = page.read(0, PAGE)
            contents = None if read is None else sha384(read).digest()
        if vm.digest is None or contents is None:
            vm.digest = None
            return
        info = vm.digest + contents + b"\x70\0" + bytes([kind]) + bytes(5) + (gfn * PAGE).to_bytes(8, "little")
        vm.digest = sha384(info).digest()

    def launch_finish(self, process: Process, fd: int) -> None:
        """KVM_SEV_SNP_LAUNCH_FINISH: first the vCPUs, whose registers the model doesn't know, then the launch."""
        vm = self._snp(process, fd)
        if not vm.started:
            raise Errno(EINVAL)
        for vcpu in vm.vcpus.values():
            if vcpu.protected:
                raise Errno(EINVAL)
            if vm.finished:
                raise Errno(EIO)
            vcpu.protected = True
            vm.digest = None
        if vm.finished:
            raise Errno(EIO)
        vm.finished = True

    def stuck(self, vcpu: VcpuFile, ops: list[Op]) -> bool:
        """Whether a guest that does `ops` now might never get on, as its accesses fault for ever: a page that is assigned
        as another frame, or one that is shared for KVM and private for the RMP.  Such a guest isn't run."""
        vm = vcpu.vm
        if vm.kind != SNP:
            return False
        return any(self._stuck(vm, gpa // PAGE, getattr(op, "shared", False)) for op in ops for gpa in _touched(op))

    def _stuck(self, vm: Vm, gfn: int, shared: bool) -> bool:
        slot = vm.slot_at(gfn)
        if slot is None:
            return shared
        if shared:
            return slot.gmem_only and not self.kernel.in_place
        page = slot.file.pages.get(slot.first + gfn - slot.gfn) if slot.file else None
        return page is not None and page.assigned is not None and page.assigned.gfn != gfn


def _touched(op: Op) -> list[int]:
    """The first byte of each page that an operation accesses."""
    length = getattr(op, "length", 0) or len(getattr(op, "data", b"")) or 1
    return [gpa for gpa, _, _ in pieces(op.gpa, length)]

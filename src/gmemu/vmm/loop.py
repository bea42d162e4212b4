# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop around KVM_RUN: what each exit that concerns private memory asks of a VMM.

- KVM_EXIT_MEMORY_FAULT (KVM_RUN fails with EFAULT): the guest touched memory as private that is shared, or the reverse.  It
  wants it converted: an implicit conversion.  Convert, and run again.  With EHWPOISON the memory went bad instead.
- KVM_EXIT_HYPERCALL with KVM_HC_MAP_GPA_RANGE: the guest asks for a conversion, and waits for the answer: 0, EAGAIN (ask
  again) or EINVAL (never).  Answer 0 only when all of the range was converted.
- KVM_EXIT_UNSHARE (proposed for pKVM with guest_memfd): a protected guest wants a page back.  Let go of it, and run again:
  KVM gives it to the guest then, or exits once more as somebody still holds it.
- EINTR: a signal came.  Run again.

Everything else (HLT, I/O, the end of the guest) is the caller's.
"""

from __future__ import annotations

from errno import EAGAIN, EINTR, EINVAL
from typing import TYPE_CHECKING

from ..api.kvm import Kvm
from ..api.vcpu import Exit, Vcpu
from ..api.vm import Vm
from ..uapi.errno import EHWPOISON
from ..uapi.kvm import (
    KVM_HC_MAP_GPA_RANGE,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
    KVM_MAP_GPA_RANGE_PAGE_SZ_1G,
    KVM_MAP_GPA_RANGE_PAGE_SZ_2M,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    ExitReason,
)
from .backoff import Backoff
from .errors import ConversionTimeout, GuestStuck, NoMemoryThere, Poisoned, VmmError
from .memory import IN_PLACE, Block, Converter, Holder, convert, converter_of, in_blocks

if TYPE_CHECKING:
    from ..hw.cpu import Guest
    from ..uapi.kvm import kvm_exit_hypercall

__all__ = ["Observer", "Vmm"]

PAGE_SIZE = 4096
_KNOWN_ATTRIBUTES = KVM_MAP_GPA_RANGE_ENCRYPTED | KVM_MAP_GPA_RANGE_PAGE_SZ_2M | KVM_MAP_GPA_RANGE_PAGE_SZ_1G
SAME_WISH_LIMIT = 16
"""How often in a row a guest may want the same thing converted."""


class Observer:
    """Told of what the loop sees and does; it does nothing by itself."""

    def seen(self, exit_: Exit) -> None:
        """An exit that concerns memory came."""

    def converted(self, gpa: int, size: int, private: bool) -> None:
        """This was converted."""

    def refused(self, gpa: int, size: int, answer: int, why: VmmError) -> None:
        """A guest's request was answered with EAGAIN or EINVAL."""


class Vmm:
    """One VM's memory and the service of its vCPUs.

    `blocks` is the guest's memory; `holders` what has to let go of pages that become private; `observer` is told of what
    happens.  `converter` is how the kernel converts, unless it's to be asked (`converter_of`).
    """

    def __init__(self, kvm: Kvm, vm: Vm, backoff: Backoff | None = None, converter: Converter | None = None) -> None:
        self.kvm, self.vm = kvm, vm
        self.backoff = backoff or Backoff()
        self.blocks: list[Block] = []
        self.holders: list[Holder] = []
        self.observer = Observer()
        self._convert = converter or converter_of(vm)
        self._last_wish: dict[Vcpu, tuple[tuple[int, int, bool], int]] = {}
        """what each vCPU's last exit wanted (gpa, size, private), and how often in a row"""

    @property
    def in_place(self) -> bool:
        """Whether a page keeps its place when it's converted."""
        return self._convert in IN_PLACE

    # Memory

    def add_memory(self, gpa: int, size: int, *, mapped: bool = True) -> Block:
        """Give the guest `size` bytes at `gpa`.

        In place the memory starts shared, as the VMM has it mapped and may fill it; with two pools it has a private and a
        shared half, of which the guest begins with the shared one.  `mapped` False: other memory of this process is the
        slot's user address, for contents to be copied from.
        """
        flags = IN_PLACE.get(self._convert, 0)
        gmem = self.vm.create_guest_memfd(size, flags)
        try:
            buffer = gmem.mmap() if self.in_place and mapped else self.kvm.anonymous(size)
        except BaseException:
            gmem.close()
            raise
        slot = next(i for i in range(len(self.blocks) + 1) if all(block.slot != i for block in self.blocks))
        try:
            self.vm.set_user_memory_region2(slot, gpa, size, gmem=gmem, userspace_addr=buffer.address)
        except BaseException:
            buffer.close()
            gmem.close()
            raise
        block = Block(gpa, size, gmem, buffer, slot)
        self.blocks.append(block)
        return block

    def remove_memory(self, block: Block) -> None:
        """Take the memory away again."""
        self.vm.delete_slot(block.slot)
        self.blocks.remove(block)
        block.buffer.close()
        block.gmem.close()

    def block_at(self, gpa: int) -> Block:
        """The block that `gpa` is in.  Raises `NoMemoryThere`."""
        for block in self.blocks:
            if block.gpa <= gpa < block.gpa + block.size:
                return block
        raise NoMemoryThere(gpa, 1)

    def convert(self, gpa: int, size: int, *, private: bool) -> None:
        """Make [gpa, gpa + size) private or shared, all of it.

        Raises `NoMemoryThere` before anything was done; `ConversionTimeout` or `OSError` with the part before done: what is
        converted stays so, and asking again for all of it is harmless.
        """
        for block, offset, length in in_blocks(self.blocks, gpa, size):
            if private:
                for holder in self.holders:
                    holder.let_go(block.gpa + offset, length)
            convert(self._convert, block, offset, length, private, self.backoff)
            if not private:
                for holder in self.holders:
                    holder.take(block.gpa + offset, length)
        self.observer.converted(gpa, size, private)

    # Running

    def run(self, vcpu: Vcpu, guest: Guest | None = None) -> Exit:
        """Run the vCPU, serving what concerns memory, until something is for the caller.

        A `guest` given starts from its beginning.  Raises `VmmError` where going on makes no sense, and what KVM_RUN does.
        """
        exit_ = self._enter(vcpu, guest)
        while self.serve(vcpu, exit_):
            exit_ = self._enter(vcpu, None)
        return exit_

    def serve(self, vcpu: Vcpu, exit_: Exit) -> bool:
        """Deal with an exit.  True: run the vCPU again.  False: the exit is the caller's."""
        if exit_.reason is ExitReason.MEMORY_FAULT:
            self.observer.seen(exit_)
            self._memory_fault(vcpu, exit_)
            return True
        if exit_.reason is ExitReason.HYPERCALL and exit_.hypercall.nr == KVM_HC_MAP_GPA_RANGE:
            self.observer.seen(exit_)
            exit_.answer_hypercall(self._map_gpa_range(vcpu, exit_.hypercall))
            return True
        if exit_.reason is ExitReason.UNSHARE:
            self.observer.seen(exit_)
            wanted = exit_.unshare
            self._wishes(vcpu, wanted.gpa, wanted.size, True)
            self.convert(wanted.gpa, wanted.size, private=True)
            return True
        self._last_wish.pop(vcpu, None)
        return False

    def _wishes(self, vcpu: Vcpu, gpa: int, size: int, private: bool) -> None:
        """The vCPU's guest wants this converted.  Raises `GuestStuck` if it wanted just that too often in a row: another
        vCPU may take the page away meanwhile, or somebody hold it, but not for ever."""
        wish, times = self._last_wish.get(vcpu, ((-1, 0, False), 0))
        times = times + 1 if wish == (gpa, size, private) else 1
        self._last_wish[vcpu] = (gpa, size, private), times
        if times > SAME_WISH_LIMIT:
            raise GuestStuck(gpa, private, times)

    def _enter(self, vcpu: Vcpu, guest: Guest | None) -> Exit:
        """KVM_RUN, again after each signal: the guest is where it was."""
        for attempt in range(1, self.backoff.attempts + 1):
            try:
                return vcpu.run(guest)
            except OSError as error:
                if error.errno != EINTR or attempt == self.backoff.attempts:
                    raise
                guest = None
        raise AssertionError("not reached")

    def _memory_fault(self, vcpu: Vcpu, exit_: Exit) -> None:
        fault = exit_.memory_fault
        if exit_.error is not None and exit_.error.errno == EHWPOISON:
            raise Poisoned(fault.gpa)
        if fault.flags & ~KVM_MEMORY_EXIT_FLAG_PRIVATE:
            raise VmmError(f"KVM_EXIT_MEMORY_FAULT has flags {fault.flags:#x}, of which only PRIVATE is known here")
        private = exit_.wants_private
        self._wishes(vcpu, fault.gpa, fault.size, private)
        self.convert(fault.gpa, fault.size, private=private)

    def _map_gpa_range(self, vcpu: Vcpu, call: kvm_exit_hypercall) -> int:
        """What to answer: EINVAL for what makes no sense, EAGAIN for what may yet come true, 0 only when all was done."""
        gpa, npages, attributes = call.args[:3]
        size = npages * PAGE_SIZE
        if gpa % PAGE_SIZE or not npages or gpa + size > 1 << 64 or attributes & ~_KNOWN_ATTRIBUTES:
            return self._refuse(gpa, size, EINVAL, VmmError(f"MAP_GPA_RANGE of {npages:#x} pages, {attributes:#x}"))
        private = bool(attributes & KVM_MAP_GPA_RANGE_ENCRYPTED)
        self._wishes(vcpu, gpa, size, private)
        try:
            self.convert(gpa, size, private=private)
        except NoMemoryThere as error:
            return self._refuse(gpa, size, EINVAL, error)
        except ConversionTimeout as error:
            return self._refuse(gpa, size, EAGAIN if error.last.errno != EINTR else EINVAL, error)
        return 0

    def _refuse(self, gpa: int, size: int, answer: int, why: VmmError) -> int:
        self.observer.refused(gpa, size, answer, why)
        return answer

    def close(self) -> None:
        """Take all memory down.  The vCPUs and the VM are the caller's."""
        for block in reversed(self.blocks):
            block.buffer.close()
            block.gmem.close()
        self.blocks.clear()

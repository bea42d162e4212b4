# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest asks for a page to become private that a device has pinned: by an ioctl, or inside KVM_RUN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..api import ConversionRefused
from ..explore.verdict import Kind
from ..mm.gup import get_user_pages_fast
from ..uapi.kvm import ExitReason
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN
from .worlds import PAGE, GuestMemory, OnePage

if TYPE_CHECKING:
    from ..api.vcpu import Exit, Vcpu
    from ..hw.guest_cpu import GuestCpu

__all__ = ["ConvertExits", "RemappedBeforeConversion", "RunningVmm"]


class RunningVmm(GuestMemory):
    """Of both sorts of guests that want a page to themselves: the VMM that runs one, and answers it."""

    vcpu: Vcpu
    pinned: int | None = None
    exits = conversions = refusals = 0

    def guest(self, cpu: GuestCpu) -> None:
        """Ask for the page, then use it."""
        raise NotImplementedError

    def answer(self, exit_: Exit) -> None:
        """An exit before the guest is done."""
        raise NotImplementedError

    def run(self) -> str:
        """The VMM: how many exits it took until the guest was done, how many calls to convert, and how many were refused."""
        exit_ = self.vcpu.run(self.guest)
        while exit_.reason is not ExitReason.HLT:
            if self.exits:
                self.runtime.retry()
            self.exits += 1
            self.answer(exit_)
            exit_ = self.vcpu.run()
        return f"{self.exits} exits, {self.conversions} calls, {self.refusals} refusals"

    def convert_now(self) -> None:
        """The ioctl, until it isn't refused."""
        while True:
            self.conversions += 1
            try:
                return self.gmem.make_private(0, PAGE)
            except ConversionRefused:
                self.refusals += 1
                self.on_busy()
                self.runtime.retry()

    def on_busy(self) -> None:
        """Have whoever holds the page let go of it."""
        self.user_space.on_busy(self.unpin)

    def unpin(self) -> None:
        """VFIO_IOMMU_UNMAP_DMA, if that hasn't been done."""
        if self.pinned is not None:
            pfn, self.pinned = self.pinned, None
            self.let_go(pfn)


class GuestAsks(OnePage, RunningVmm):
    """A guest that asks by hypercall."""

    def begin(self) -> None:
        """The page was written, and a vCPU is there."""
        self.memory[0] = 1
        self.host.lru.lru_add_drain_all()
        self.vm.enable_map_gpa_range()
        self.vcpu = self.vm.create_vcpu()

    def guest(self, cpu: GuestCpu) -> None:
        cpu.map_gpa_range(0, PAGE, private=True)
        cpu.store(0, b"\2")

    def answer(self, exit_: Exit) -> None:
        if exit_.reason is ExitReason.HYPERCALL:
            self.user_space.on_hypercall(self.convert_now, self.on_busy)
            exit_.answer_hypercall(0)
        else:
            self.on_busy()

    def holds(self) -> None:
        assert self.inode.private_run(0, 1) == 1, "the guest asked for a private page, and it isn't"
        assert self.memory_of_guest() == b"\2", "what the guest wrote is lost"

    def memory_of_guest(self) -> bytes:
        """The first byte of the page."""
        return self.host.memory.read(self.pfn() * PAGE, 1)


class ConvertExits(GuestAsks):
    """A device has the page pinned until the VMM asks for it, and the host touches its mapping."""

    number = 23
    name = "convert-exits"
    question = "What does it take until the guest has its page, by each design?"
    source = "discussion A; D1"
    broken_by = {
        "vmm-retries-blindly": Kind.LIVELOCK,
        "vmm-retries-blindly+convert-in-vcpu-run": Kind.LIVELOCK,
        "vmm-retries-blindly+convert-in-vcpu-run-refuse": Kind.LIVELOCK,
        "refcount-wait": Kind.LIVELOCK,
    }
    holds_with = ("convert-in-vcpu-run", "convert-in-vcpu-run-refuse")

    def tasks(self) -> None:
        self.begin()
        [(self.pinned, _)] = get_user_pages_fast(self.host.init.mm, self.memory.address, 1, FOLL_PIN | FOLL_LONGTERM)
        self.task("vmm", self.run)
        self.task("touch", lambda: self.memory[0])


class RemappedBeforeConversion(GuestAsks):
    """Nobody holds the page, but the host touches its mapping while the guest waits for its answer."""

    number = 24
    name = "remapped-before-conversion"
    question = "Does it matter that the host maps the page again after it was unmapped for the exit?"
    source = "discussion A"
    broken_by = {"convert-in-vcpu-run-unmap-once": Kind.LIVELOCK}
    holds_with = ("convert-in-vcpu-run", "convert-in-vcpu-run-refuse")

    def tasks(self) -> None:
        self.begin()
        self.task("vmm", self.run)
        self.task("touch", lambda: self.memory[0])

# SPDX-License-Identifier: GPL-2.0-or-later
"""A protected guest of pKVM wants a page of guest_memfd back that the host still uses: convert_exits.py at EL2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..explore.verdict import Kind
from ..hw.el2.hypervisor import PageState
from ..mm.gup import get_user_pages_fast
from ..uapi.kvm import ExitReason
from ..uapi.kvm_arm64 import VendorHyp
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN
from .convert_exits import RunningVmm
from .worlds import PAGE, ProtectedPage

if TYPE_CHECKING:
    from ..api.vcpu import Exit
    from ..hw.guest_cpu import GuestCpu

__all__ = ["PunchedBeforeUnshare", "RemappedBeforeUnshare", "UnshareExits"]


class GuestWantsItBack(ProtectedPage, RunningVmm):
    """A guest that asks by MEM_UNSHARE."""

    def guest(self, cpu: GuestCpu) -> None:
        cpu.convert(0, PAGE, private=True)
        assert cpu.load(0, len(self.CONTENTS)) == self.CONTENTS, "what the guest left in its page is lost"
        cpu.store(0, b"secret")

    def answer(self, exit_: Exit) -> None:
        if exit_.reason is ExitReason.UNSHARE:
            self.user_space.on_unshare(self.convert_now, self.on_busy)
        else:
            self.on_busy()

    def holds(self) -> None:
        hypervisor = self.host.pkvm.hypervisor
        assert self.inode.private_run(0, 1) == 1, "the guest wanted its page back, and it's shared"
        assert hypervisor.host_state(self.pfn()) is PageState.NOPAGE, "the host still has the page at EL2"
        assert self.host.memory.read(self.pfn() * PAGE, 6) == b"secret", "what the guest wrote is lost"


class UnshareExits(GuestWantsItBack):
    """A device has the page pinned until the VMM asks for it, and the host touches its mapping."""

    number = 34
    name = "unshare-exits"
    question = "What does it take until a protected guest has its page back from the host, by each design?"
    source = "discussion A: pKVM's proof of concept, KVM_EXIT_UNSHARE"
    broken_by = {
        "vmm-retries-blindly": Kind.LIVELOCK,
        "vmm-retries-blindly+convert-in-vcpu-run-refuse": Kind.LIVELOCK,
        "vmm-retries-blindly+unshare-by-ioctl": Kind.LIVELOCK,
    }
    holds_with = ("convert-in-vcpu-run", "convert-in-vcpu-run-refuse", "unshare-by-ioctl")

    def tasks(self) -> None:
        [(self.pinned, _)] = get_user_pages_fast(self.host.init.mm, self.memory.address, 1, FOLL_PIN | FOLL_LONGTERM)
        self.task("vmm", self.run)
        self.task("touch", lambda: self.memory[0])


class RemappedBeforeUnshare(GuestWantsItBack):
    """Nobody holds the page, but the host touches its mapping while the guest waits."""

    number = 35
    name = "remapped-before-unshare"
    question = "Does it matter to a protected guest that the host maps the page again after it was unmapped for the exit?"
    source = "discussion A"
    broken_by = {"convert-in-vcpu-run-unmap-once": Kind.LIVELOCK}
    holds_with = ("convert-in-vcpu-run", "convert-in-vcpu-run-refuse", "unshare-by-ioctl")

    def tasks(self) -> None:
        self.task("vmm", self.run)
        self.task("touch", lambda: self.memory[0])


class PunchedBeforeUnshare(GuestWantsItBack):
    """Nobody holds the page, but the VMM throws it away while the guest waits for it."""

    number = 36
    name = "punched-before-unshare"
    question = (
        "Is a page that is on its way back to its guest lost to it, rather than freed under it, when it's thrown away?"
    )
    source = "discussion A, and S11 at EL2"
    broken_by = {}
    holds_with = ("convert-in-vcpu-run-refuse", "unshare-by-ioctl")

    def guest(self, cpu: GuestCpu) -> None:
        """Ask, then use the page, if it's there."""
        if not cpu.hypercall(VendorHyp.MEM_UNSHARE, 0):
            cpu.store(0, b"secret")

    def tasks(self) -> None:
        self.task("vmm", self.run)
        self.task("punch", lambda: self.gmem.punch_hole(0, PAGE))

    def holds(self) -> None:
        hypervisor, vm = self.host.pkvm.hypervisor, self.pkvm.hyp_vm
        assert self.seen["punch"] is None
        assert self.seen["vmm"] == "pkvm.fault.poisoned" or "exits" in str(self.seen["vmm"])
        assert hypervisor.walk(vm, 0) is None, "the guest still reaches a page that left its file"
        assert self.inode.mapping.pfn(0) is None, "the page is in the file again"

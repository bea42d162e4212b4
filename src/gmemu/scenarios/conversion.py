# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversion against whoever else wants the page."""

from __future__ import annotations

from ..explore.scenario import PAGE, Scenario
from ..mm.gup import get_user_pages_fast
from ..syscalls.emulated import EmulatedDoor
from ..uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, VmType
from ..uapi.mman import FOLL_LONGTERM, FOLL_PIN

__all__ = [
    "ConversionAgainstGuestFault",
    "ConversionAgainstPunch",
    "ConversionToSharedAgainstGuestFault",
    "FaultInFlight",
    "ForkedMapping",
    "LruBatch",
    "PinAgainstConversion",
]

_SHARED = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
_BUSY = "gmem.attributes.busy"
_PRIVATE = "gmem.fault.private"


class _OnePage(Scenario):
    """A SW_PROTECTED VM with one page of guest_memfd, shared at first, mapped by the host and bound at gpa 0."""

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.SW_PROTECTED)
        self.gmem = self.vm.create_guest_memfd(PAGE, _SHARED)
        self.memory = self.gmem.mmap()
        self.vm.set_user_memory_region2(0, 0, PAGE, gmem=self.gmem, userspace_addr=self.memory.address)
        self.tasks()

    def tasks(self) -> None:
        """Add the tasks."""
        raise NotImplementedError

    def convert(self) -> str:
        """The conversion to private."""
        self.gmem.make_private(0, PAGE)
        return "converted"


class LruBatch(_OnePage):
    """The host wrote the page a moment ago on another CPU: a reference waits in that CPU's batch, and nobody uses it."""

    number = 6
    name = "lru-batch"
    question = "Does a page that nobody uses look used because it waits in an LRU batch?"
    source = "guest-memfd S08"
    broken_by = {"no-lru-drain": "AssertionError"}

    def tasks(self) -> None:
        writer = EmulatedDoor(self.host).thread("writer", cpu=1)
        writer.store(self.memory.address, b"x")
        self.task("convert", self.convert)

    def holds(self) -> None:
        assert self.seen["convert"] == "converted", (
            f"conversion failed with {self.seen['convert']}, and nobody holds the page"
        )


class FaultInFlight(_OnePage):
    """The host's fault holds a reference after it let go of the invalidate lock, and is about to map the page."""

    number = 7
    name = "fault-in-flight"
    question = "Can a host fault that began before a conversion map the page after it?"
    source = "guest-memfd S09"
    broken_by = {"no-reference-check": "InvariantViolation"}

    def tasks(self) -> None:
        self.task("convert", self.convert)
        self.task("touch", lambda: self.memory[0])

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", _BUSY)
        assert self.seen["touch"] in (0, _PRIVATE)
        assert self.seen != {"convert": _BUSY, "touch": _PRIVATE}, "neither side had the page"


class PinAgainstConversion(_OnePage):
    """A driver pins the page, which the host has mapped, by GUP-fast: no lock is taken."""

    number = 8
    name = "pin"
    question = "Can a page be private while somebody who pinned it when it was shared goes on using it?"
    source = "guest-memfd S09, S10; 3.4"
    broken_by = {"no-reference-check": "AssertionError", "check-before-unmap": "AssertionError"}

    def tasks(self) -> None:
        self.memory[0] = 1
        self.host.lru.lru_add_drain_all()
        self.task("convert", self.convert)
        self.task("pin", self.pin)

    def pin(self) -> str:
        """pin_user_pages_fast(FOLL_LONGTERM)."""
        get_user_pages_fast(self.host.init.mm, self.memory.address, 1, FOLL_PIN | FOLL_LONGTERM)
        return "pinned"

    def holds(self) -> None:
        assert self.seen != {"convert": "converted", "pin": "pinned"}, "the page is private, and pinned as shared"
        assert self.seen["convert"] in ("converted", _BUSY)


class ConversionAgainstGuestFault(_OnePage):
    """The guest touches the page while it's converted."""

    number = 9
    name = "guest-fault"
    question = "Can the guest be left with a shared mapping of a page that became private?"
    source = "guest-memfd S11"
    broken_by = {"store-after-invalidate": "InvariantViolation"}

    def tasks(self) -> None:
        self.vcpu = self.vm.create_vcpu()
        self.task("convert", self.convert)
        self.task("vcpu", lambda: self.vcpu.run(lambda cpu: cpu.load(0, 1)).reason.name)

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", _BUSY)  # busy: the fault holds the page until it's mapped
        assert self.seen["vcpu"] in ("HLT", "MEMORY_FAULT")


class ConversionToSharedAgainstGuestFault(_OnePage):
    """The other direction, in which no reference count stands in the way of a fault that is late."""

    number = 9
    name = "guest-fault-to-shared"
    question = "Can the guest be left with a private mapping of a page that became shared?"
    source = "guest-memfd S11"
    broken_by = {"no-seq-retry": "InvariantViolation", "store-after-invalidate": "InvariantViolation"}

    def tasks(self) -> None:
        self.gmem.make_private(0, PAGE)
        self.vcpu = self.vm.create_vcpu()
        self.task("convert", lambda: self.gmem.make_shared(0, PAGE))
        self.task("vcpu", lambda: self.vcpu.run(lambda cpu: cpu.load(0, 1)).reason.name)

    def holds(self) -> None:
        assert self.seen["convert"] is None
        assert self.seen["vcpu"] in ("HLT", "MEMORY_FAULT")


class ForkedMapping(_OnePage):
    """A forked child has the page mapped too, and touches it again."""

    number = 19
    name = "forked-mapping"
    question = "Does a forked child lose the page when its parent converts it?"
    source = "guest-memfd S36"
    broken_by = {"unmap-current-mm-only": "InvariantViolation"}

    def tasks(self) -> None:
        self.child = EmulatedDoor(self.host).fork()
        self.child.load(self.memory.address, 1)
        self.task("convert", self.convert)
        self.task("child", lambda: self.child.load(self.memory.address, 1))

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", _BUSY)


class ConversionAgainstPunch(_OnePage):
    """A hole is punched and memory allocated while the page is converted."""

    number = 20
    name = "punch-and-allocate"
    question = "Is an attribute lost when a page is punched or allocated while it's converted?"
    source = "guest-memfd S37, S38"

    def tasks(self) -> None:
        self.memory[0] = 1
        self.task("convert", self.convert)
        self.task("punch", lambda: self.gmem.punch_hole(0, PAGE))
        self.task("allocate", lambda: self.gmem.allocate(0, PAGE))

    def holds(self) -> None:
        assert self.seen["convert"] in ("converted", _BUSY)
        inode = next(iter(self.host.gmem_inodes))
        private = inode.private_run(0, 1) == 1
        assert private == (self.seen["convert"] == "converted"), "the attribute isn't what the conversion said"

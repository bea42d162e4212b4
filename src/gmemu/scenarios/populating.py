# SPDX-License-Identifier: GPL-2.0-or-later
"""Populate against host faults, writers of mmap_lock and conversion."""

from __future__ import annotations

from ..explore.scenario import PAGE, Scenario
from ..uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, VmType
from ..uapi.sev import SnpPageType

__all__ = ["PopulateAgainstConversion", "PopulateAgainstHostFault"]


class _SnpLaunch(Scenario):
    """An SNP VM in launch; page 0 is private and to be populated, page 1 is shared and the source."""

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.SNP)
        self.vm.snp.init2()
        flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
        self.gmem = self.vm.create_guest_memfd(2 * PAGE, flags)
        self.memory = self.gmem.mmap()
        self.vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=self.gmem, userspace_addr=self.memory.address)
        self.vm.snp.launch_start()
        self.gmem.make_private(0, PAGE)
        self.tasks()

    def tasks(self) -> None:
        """Add the tasks."""
        raise NotImplementedError

    def populate(self) -> str:
        """Load page 0 from page 1 of the same file."""
        self.vm.snp.launch_update(0, PAGE, SnpPageType.NORMAL, self.memory.address + PAGE)
        return "populated"


class PopulateAgainstHostFault(_SnpLaunch):
    """The source is guest_memfd memory itself: its fault takes mmap_lock, then the invalidate lock."""

    number = 1
    name = "populate-abba"
    question = "Can populate, a host fault and an mmap writer wait for each other for ever?"
    source = "guest-memfd S01; discussion C"
    broken_by = {"populate-gup-under-lock": "Deadlock"}

    def tasks(self) -> None:
        self.task("populate", self.populate)
        self.task("fault", lambda: self.memory[PAGE])
        self.task("protect", lambda: self.kvm.door.mprotect(self.memory.address, PAGE, 3))

    def holds(self) -> None:
        assert self.seen["populate"] == "populated"


class PopulateAgainstConversion(_SnpLaunch):
    """The source page is converted to private while populate reads it."""

    number = 18
    name = "source-converted"
    question = "What if the source of populate, in the same guest_memfd, is converted meanwhile?"
    source = "guest-memfd S39"

    def tasks(self) -> None:
        self.memory[PAGE] = 0x5A
        self.task("populate", self.populate)
        self.task("convert", lambda: self.gmem.make_private(PAGE, PAGE))

    def holds(self) -> None:
        assert self.seen["convert"] in (None, "gmem.attributes.busy")
        assert self.seen["populate"] in ("populated", "snp.update.failed")
        if self.seen["convert"] is not None:
            assert self.seen["populate"] == "populated", "the source was held, so populate had it"

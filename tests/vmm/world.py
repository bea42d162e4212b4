# SPDX-License-Identifier: GPL-2.0-or-later
"""A software-protected VM with the reference VMM on it, and a clock that counts instead of waiting."""

from __future__ import annotations

from collections.abc import Callable

from gmemu import Kvm, VmType
from gmemu.check import check_host
from gmemu.hw.memory import PAGE_SHIFT
from gmemu.kvm.design import Design
from gmemu.vmm import Backoff, Block, Observer, Vmm, VmmError
from gmemu.vmm.memory import Converter

PAGE = 4096


class World(Observer):
    """`waits` is what was waited for (seconds); `at_wait` is done meanwhile."""

    def __init__(
        self,
        profile: str = "inplace-v13",
        pages: int = 8,
        *,
        design: Design | None = None,
        converter: Converter | None = None,
    ) -> None:
        self.kvm = Kvm.open(profile, design=design)
        self.host = self.kvm.host
        self.vm = self.kvm.create_vm(VmType.SW_PROTECTED)
        self.waits: list[float] = []
        self.at_wait: Callable[[], None] = lambda: None
        self.vmm = Vmm(self.kvm, self.vm, Backoff(4, pause=self._pause), converter)
        self.vmm.observer = self
        self.block: Block = self.vmm.add_memory(0, pages * PAGE)
        self.vcpu = self.vm.create_vcpu()
        self.seen_exits = 0
        self.conversions: list[tuple[int, int, bool]] = []
        self.refusals: list[tuple[int, int, int, VmmError]] = []

    def _pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.at_wait()

    def seen(self, exit_: object) -> None:
        self.seen_exits += 1

    def converted(self, gpa: int, size: int, private: bool) -> None:
        self.conversions.append((gpa, size, private))

    def refused(self, gpa: int, size: int, answer: int, why: VmmError) -> None:
        self.refusals.append((gpa, size, answer, why))

    def private_pages(self) -> list[int]:
        """Numbers of the block's pages that are private."""
        [vm] = self.host.vms
        return [gfn for gfn in range(self.block.size >> PAGE_SHIFT) if vm.attributes.is_private(gfn)]

    def pfn(self, page: int) -> int:
        """The frame of a page, which is touched for it."""
        self.block.buffer[page * PAGE] = 1
        [inode] = self.host.gmem_inodes
        pfn = inode.mapping.pfn(page)
        assert pfn is not None
        return pfn

    def pin(self, page: int) -> Callable[[], None]:
        """A device pins a page of the block; called, the result lets it go."""
        pfn = self.pfn(page)
        self.host.memmap.pin(pfn)
        return lambda: self.host.memmap.unpin(pfn)

    def close(self) -> None:
        check_host(self.host)
        self.vcpu.close()
        self.vmm.close()
        self.vm.close()
        self.host.check_quiet()
        self.kvm.close()

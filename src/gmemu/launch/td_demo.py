# SPDX-License-Identifier: GPL-2.0-or-later
"""A short guest for a TD that was just launched: it accepts a page, shares it with the host, and takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..uapi.kvm import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
    ExitReason,
)
from .demo_guest import Event
from .errors import LaunchError
from .ovmf import PAGE_SIZE
from .plan import MemoryRegion
from .tdvf import TdvfSectionType

if TYPE_CHECKING:
    from ..api.vcpu import Exit
    from ..hw.tdx.guest_cpu import TdGuestCpu
    from .tdx import TdxLaunch

__all__ = ["RAM", "run_td_demo"]

RAM = MemoryRegion(4 << 30, 2 << 20)
SECRET, GREETING, ANSWER = b"a secret", b"hello, host", b"hello, guest"


def run_td_demo(launch: TdxLaunch) -> list[Event]:
    """Give the TD 2 MiB of RAM at 4 GiB, run the guest on its first vCPU, and tell what happened."""
    demo = _Demo(launch)
    try:
        return demo.run()
    finally:
        demo.close()


class _Demo:
    def __init__(self, launch: TdxLaunch) -> None:
        self.launch, self.vm, self.in_place = launch, launch.vm, launch.profile.in_place
        self.events: list[Event] = []
        flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED if self.in_place else 0
        self.gmem = self.vm.create_guest_memfd(RAM.size, flags)
        self.buffer = self.gmem.mmap() if self.in_place else launch.kvm.anonymous(RAM.size)
        self.slot = len(launch.memory)
        self.vm.set_user_memory_region2(self.slot, RAM.gpa, RAM.size, gmem=self.gmem, userspace_addr=self.buffer.address)

    def run(self) -> list[Event]:
        vcpu = self.launch.vcpus[0]
        exit_ = vcpu.run(self.guest)
        while exit_.reason is not ExitReason.HLT:
            self._serve(exit_)
            exit_ = vcpu.run()
        seen = self.buffer[: len(GREETING)]
        self.buffer[: len(ANSWER)] = ANSWER
        self._saw("host", "reads the shared page, and answers", repr(seen.decode("ascii", "replace")))
        exit_ = vcpu.run()
        while exit_.reason is not ExitReason.HLT:
            self._serve(exit_)
            exit_ = vcpu.run()
        self._saw("exit", "KVM_EXIT_HLT", "the guest is done")
        return self.events

    def close(self) -> None:
        self.vm.delete_slot(self.slot)
        self.buffer.close()
        self.gmem.close()

    def guest(self, cpu: TdGuestCpu) -> None:
        """What runs on the vCPU."""
        firmware = next((s for s in self.launch.plan.steps if s.name == TdvfSectionType.BFV.name.lower()), None)
        if firmware is not None and firmware.contents is not None:
            at = firmware.gpa + firmware.size - 16
            same = cpu.load(at, 16) == bytes(firmware.contents[-16:])
            self._saw("guest", f"reads its reset vector at {at:#x}", "as launched" if same else "NOT as launched")
        page = RAM.gpa
        cpu.accept(page, PAGE_SIZE)
        cpu.store(page, SECRET)
        self._saw("guest", f"accepts its page at {page:#x}, writes", repr(SECRET.decode()))
        cpu.convert(page, PAGE_SIZE, private=False)
        cpu.store(page, GREETING, shared=True)
        self._saw("guest", "shares the page by MapGPA, writes", repr(GREETING.decode()))
        cpu.halt()
        self._saw(
            "guest", "reads the shared page", repr(cpu.load(page, len(ANSWER), shared=True).decode("ascii", "replace"))
        )
        cpu.convert(page, PAGE_SIZE, private=True)
        zero = not any(cpu.load(page, len(SECRET)))
        self._saw("guest", "takes the page back and accepts it, finds", "zeroes" if zero else "something else")

    def _serve(self, exit_: Exit) -> None:
        if exit_.reason is ExitReason.MEMORY_FAULT:
            fault = exit_.memory_fault
            self._saw("exit", "KVM_EXIT_MEMORY_FAULT", f"gpa {fault.gpa:#x}")
            self._convert(fault.gpa, fault.size, exit_.wants_private)
        elif exit_.reason is ExitReason.HYPERCALL:
            gpa, npages, attributes = exit_.hypercall.args[:3]
            private = bool(attributes & KVM_MAP_GPA_RANGE_ENCRYPTED)
            kind = "private" if private else "shared"
            self._saw("exit", "KVM_EXIT_HYPERCALL, MAP_GPA_RANGE", f"gpa {gpa:#x}, {npages:#x} pages, to be {kind}")
            self._convert(gpa, npages * PAGE_SIZE, private)
            exit_.answer_hypercall(0)
        else:
            raise LaunchError(f"the guest ended with {exit_.reason.name}")

    def _convert(self, gpa: int, size: int, private: bool) -> None:
        if self.in_place:
            (self.gmem.make_private if private else self.gmem.make_shared)(gpa - RAM.gpa, size)
        else:
            (self.vm.make_private if private else self.vm.make_shared)(gpa, size)
        self._saw("vmm", f"converts {size:#x} bytes at {gpa:#x}", "private" if private else "shared")

    def _saw(self, who: str, what: str, result: str) -> None:
        self.events.append(Event(who, what, result))

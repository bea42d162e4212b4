# SPDX-License-Identifier: GPL-2.0-or-later
"""A short guest for a TD that was just launched: it accepts a page, shares it with the host, and takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..uapi.kvm import KVM_MAP_GPA_RANGE_ENCRYPTED, ExitReason
from ..vmm import Observer, VmmError
from .demo_guest import Event
from .errors import LaunchError
from .ovmf import PAGE_SIZE
from .plan import MemoryRegion
from .tdvf import TdvfSectionType

if TYPE_CHECKING:
    from ..api.vcpu import Exit
    from ..hw.cpu import Guest
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


class _Demo(Observer):
    def __init__(self, launch: TdxLaunch) -> None:
        self.launch, self.vmm = launch, launch.vmm
        self.events: list[Event] = []
        self.ram = self.vmm.add_memory(RAM.gpa, RAM.size)
        self.buffer = self.ram.buffer

    def run(self) -> list[Event]:
        self.vmm.observer = self
        try:
            self._run_to_halt(self.guest)
            seen = self.buffer[: len(GREETING)]
            self.buffer[: len(ANSWER)] = ANSWER
            self._saw("host", "reads the shared page, and answers", repr(seen.decode("ascii", "replace")))
            self._run_to_halt(None)
        except VmmError as error:
            raise LaunchError(str(error)) from error
        finally:
            self.vmm.observer = Observer()
        self._saw("exit", "KVM_EXIT_HLT", "the guest is done")
        return self.events

    def _run_to_halt(self, guest: Guest | None) -> None:
        exit_ = self.vmm.run(self.launch.vcpus[0], guest)
        if exit_.reason is not ExitReason.HLT:
            raise LaunchError(f"the guest ended with {exit_.reason.name}")

    def close(self) -> None:
        self.vmm.remove_memory(self.ram)

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

    def seen(self, exit_: Exit) -> None:
        if exit_.reason is ExitReason.MEMORY_FAULT:
            self._saw("exit", "KVM_EXIT_MEMORY_FAULT", f"gpa {exit_.memory_fault.gpa:#x}")
            return
        gpa, npages, attributes = exit_.hypercall.args[:3]
        kind = "private" if attributes & KVM_MAP_GPA_RANGE_ENCRYPTED else "shared"
        self._saw("exit", "KVM_EXIT_HYPERCALL, MAP_GPA_RANGE", f"gpa {gpa:#x}, {npages:#x} pages, to be {kind}")

    def converted(self, gpa: int, size: int, private: bool) -> None:
        self._saw("vmm", f"converts {size:#x} bytes at {gpa:#x}", "private" if private else "shared")

    def refused(self, gpa: int, size: int, answer: int, why: VmmError) -> None:
        self._saw("vmm", f"answers with errno {answer}", str(why))

    def _saw(self, who: str, what: str, result: str) -> None:
        self.events.append(Event(who, what, result))

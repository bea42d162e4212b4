# SPDX-License-Identifier: GPL-2.0-or-later
"""A short guest for a realm that was just launched: it takes a page of RAM into use, shares it with the host, and takes it
back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rules import BusError
from ..uapi.kvm import ExitReason
from ..vmm import Observer, VmmError
from .demo_guest import Event
from .errors import LaunchError
from .ovmf import PAGE_SIZE

if TYPE_CHECKING:
    from ..api.vcpu import Exit
    from ..hw.cpu import Guest
    from ..hw.rmm.guest_cpu import RealmGuestCpu
    from .cca import CcaLaunch

__all__ = ["run_realm_demo"]

SECRET, GREETING, ANSWER = b"a secret", b"hello, host", b"hello, guest"


def run_realm_demo(launch: CcaLaunch) -> list[Event]:
    """Run the guest on the realm's first vCPU, in the last 2 MiB of its RAM, and tell what happened."""
    return _Demo(launch).run()


class _Demo(Observer):
    def __init__(self, launch: CcaLaunch) -> None:
        self.launch, self.vmm = launch, launch.vmm
        self.events: list[Event] = []
        region = launch.plan.regions[-1]
        self.page = region.gpa + region.size - (2 << 20)
        self.block = self.vmm.block_at(self.page)
        if self.vmm.in_place:
            self.buffer = self.block.gmem.mmap()
            self.offset = self.page - self.block.gpa
        else:
            self.buffer, self.offset = self.block.buffer, self.page - self.block.gpa

    def run(self) -> list[Event]:
        self.vmm.observer = self
        try:
            self._run_to_halt(self.guest)
            self._look()
            at = self.offset
            seen = self.buffer[at : at + len(GREETING)]
            self.buffer[at : at + len(ANSWER)] = ANSWER
            self._saw("host", "reads the shared page, and answers", repr(seen.decode("ascii", "replace")))
            self._run_to_halt(None)
        except VmmError as error:
            raise LaunchError(str(error)) from error
        finally:
            self.vmm.observer = Observer()
            if self.buffer is not self.block.buffer:
                self.buffer.close()
        self._saw("exit", "KVM_EXIT_HLT", "the guest is done")
        return self.events

    def _look(self) -> None:
        """In place the host maps what the realm has, and may not touch it."""
        if not self.vmm.in_place:
            return
        at = self.launch.plan.steps[-1].gpa - self.block.gpa
        if at < 0:
            return
        try:
            self.buffer[at : at + 8]
        except BusError as error:
            self._saw("host", "reads what was launched", f"SIGBUS ({error.rule.id})")

    def _run_to_halt(self, guest: Guest | None) -> None:
        exit_ = self.vmm.run(self.launch.vcpus[0], guest)
        if exit_.reason is not ExitReason.HLT:
            raise LaunchError(f"the guest ended with {exit_.reason.name}")

    def guest(self, cpu: RealmGuestCpu) -> None:
        """What runs on the vCPU."""
        first = self.launch.plan.steps[0]
        same = cpu.load(first.gpa, 16) == bytes(first.contents[:16])
        self._saw("guest", f"reads its {first.name} at {first.gpa:#x}", "as launched" if same else "NOT as launched")
        matches = cpu.measurement_read(0).startswith(self.launch.measurement)
        self._saw("guest", "RSI_MEASUREMENT_READ of the RIM", "the same" if matches else "ANOTHER")
        page = self.page
        cpu.accept(page, PAGE_SIZE)
        cpu.store(page, SECRET)
        self._saw("guest", f"makes sure that {page:#x} is RAM, writes", repr(SECRET.decode()))
        cpu.convert(page, PAGE_SIZE, private=False)
        cpu.store(page, GREETING, shared=True)
        self._saw("guest", "shares the page by RSI_IPA_STATE_SET, writes", repr(GREETING.decode()))
        cpu.halt()
        words = cpu.load(page, len(ANSWER), shared=True)
        self._saw("guest", "reads the shared page", repr(words.decode("ascii", "replace")))
        cpu.convert(page, PAGE_SIZE, private=True)
        zero = not any(cpu.load(page, len(SECRET)))
        self._saw("guest", "takes the page back, finds", "zeroes" if zero else "something else")

    def seen(self, exit_: Exit) -> None:
        fault = exit_.memory_fault
        kind = "private" if exit_.wants_private else "shared"
        self._saw("exit", "KVM_EXIT_MEMORY_FAULT", f"gpa {fault.gpa:#x}, {fault.size:#x} bytes, to be {kind}")

    def converted(self, gpa: int, size: int, private: bool) -> None:
        self._saw("vmm", f"converts {size:#x} bytes at {gpa:#x}", "private" if private else "shared")

    def _saw(self, who: str, what: str, result: str) -> None:
        self.events.append(Event(who, what, result))

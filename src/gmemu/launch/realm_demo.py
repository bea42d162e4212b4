# SPDX-License-Identifier: GPL-2.0-or-later
"""A short guest for a realm that was just launched: it takes a page of RAM into use, shares it with the host, and takes it
back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rules import BusError
from .demo import ANSWER, GREETING, Demo, Event
from .ovmf import PAGE_SIZE

if TYPE_CHECKING:
    from ..hw.rmm.guest_cpu import RealmGuestCpu
    from .cca import CcaLaunch

__all__ = ["run_realm_demo"]

SECRET = b"a secret"


def run_realm_demo(launch: CcaLaunch) -> list[Event]:
    """Run the guest on the realm's first vCPU, in the last 2 MiB of its RAM, and tell what happened."""
    return _Demo(launch).run()


class _Demo(Demo):
    def __init__(self, launch: CcaLaunch) -> None:
        super().__init__(launch)
        self.launch = launch
        region = launch.plan.regions[-1]
        self.page = region.gpa + region.size - (2 << 20)
        self.block = self.vmm.block_at(self.page)
        self.buffer = self.block.gmem.mmap() if self.vmm.in_place else self.block.buffer

    def run(self) -> list[Event]:
        try:
            return self.exchange(self.guest, self.buffer, self.page - self.block.gpa)
        finally:
            if self.buffer is not self.block.buffer:
                self.buffer.close()

    def look(self) -> None:
        """In place the host maps what the realm has, and may not touch it."""
        at = self.launch.plan.steps[-1].gpa - self.block.gpa
        if not self.vmm.in_place or at < 0:
            return
        try:
            self.buffer[at : at + 8]
        except BusError as error:
            self.saw("host", "reads what was launched", f"SIGBUS ({error.rule.id})")

    def guest(self, cpu: RealmGuestCpu) -> None:
        """What runs on the vCPU."""
        first = self.launch.plan.steps[0]
        same = cpu.load(first.gpa, 16) == bytes(first.contents[:16])
        self.saw("guest", f"reads its {first.name} at {first.gpa:#x}", "as launched" if same else "NOT as launched")
        matches = cpu.measurement_read(0).startswith(self.launch.measurement)
        self.saw("guest", "RSI_MEASUREMENT_READ of the RIM", "the same" if matches else "ANOTHER")
        page = self.page
        cpu.accept(page, PAGE_SIZE)
        cpu.store(page, SECRET)
        self.saw("guest", f"makes sure that {page:#x} is RAM, writes", repr(SECRET.decode()))
        cpu.convert(page, PAGE_SIZE, private=False)
        cpu.store(page, GREETING, shared=True)
        self.saw("guest", "shares the page by RSI_IPA_STATE_SET, writes", repr(GREETING.decode()))
        cpu.halt()
        words = cpu.load(page, len(ANSWER), shared=True)
        self.saw("guest", "reads the shared page", repr(words.decode("ascii", "replace")))
        cpu.convert(page, PAGE_SIZE, private=True)
        zero = not any(cpu.load(page, len(SECRET)))
        self.saw("guest", "takes the page back, finds", "zeroes" if zero else "something else")

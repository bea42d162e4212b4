# SPDX-License-Identifier: GPL-2.0-or-later
"""A short guest for a TD that was just launched: it accepts a page, shares it with the host, and takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .demo import ANSWER, GREETING, Demo, Event
from .ovmf import PAGE_SIZE
from .plan import MemoryRegion
from .tdvf import TdvfSectionType

if TYPE_CHECKING:
    from ..hw.tdx.guest_cpu import TdGuestCpu
    from .tdx import TdxLaunch

__all__ = ["RAM", "run_td_demo"]

RAM = MemoryRegion(4 << 30, 2 << 20)
SECRET = b"a secret"


def run_td_demo(launch: TdxLaunch) -> list[Event]:
    """Give the TD 2 MiB of RAM at 4 GiB, run the guest on its first vCPU, and tell what happened."""
    demo = _Demo(launch)
    try:
        return demo.run()
    finally:
        demo.close()


class _Demo(Demo):
    def __init__(self, launch: TdxLaunch) -> None:
        super().__init__(launch)
        self.launch = launch
        self.ram = self.vmm.add_memory(RAM.gpa, RAM.size)

    def run(self) -> list[Event]:
        return self.exchange(self.guest, self.ram.buffer, 0)

    def close(self) -> None:
        self.vmm.remove_memory(self.ram)

    def guest(self, cpu: TdGuestCpu) -> None:
        """What runs on the vCPU."""
        firmware = next((s for s in self.launch.plan.steps if s.name == TdvfSectionType.BFV.name.lower()), None)
        if firmware is not None and firmware.contents is not None:
            at = firmware.gpa + firmware.size - 16
            same = cpu.load(at, 16) == bytes(firmware.contents[-16:])
            self.saw("guest", f"reads its reset vector at {at:#x}", "as launched" if same else "NOT as launched")
        page = RAM.gpa
        cpu.accept(page, PAGE_SIZE)
        cpu.store(page, SECRET)
        self.saw("guest", f"accepts its page at {page:#x}, writes", repr(SECRET.decode()))
        cpu.convert(page, PAGE_SIZE, private=False)
        cpu.store(page, GREETING, shared=True)
        self.saw("guest", "shares the page by MapGPA, writes", repr(GREETING.decode()))
        cpu.halt()
        self.saw("guest", "reads the shared page", repr(cpu.load(page, len(ANSWER), shared=True).decode("ascii", "replace")))
        cpu.convert(page, PAGE_SIZE, private=True)
        zero = not any(cpu.load(page, len(SECRET)))
        self.saw("guest", "takes the page back and accepts it, finds", "zeroes" if zero else "something else")

# SPDX-License-Identifier: GPL-2.0-or-later
"""A short guest for a launch that is finished, served by the reference VMM.

The guest reads the firmware that it was launched with, takes a page of RAM into use as private memory, shares that page
with the host to exchange a few words, and takes it back.  What each side did and saw is written down as it happens.
The RAM isn't part of the launch: it is added at 4 GiB, where no firmware and none of its sections can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rules import BusError
from ..uapi.kvm import KVM_MAP_GPA_RANGE_ENCRYPTED, ExitReason
from ..uapi.sev import SnpPageType
from ..vmm import Observer, VmmError
from .demo import ANSWER, GREETING, Demo, Event
from .errors import LaunchError
from .ovmf import FOUR_GIB, PAGE_SIZE
from .page_states import frame_of
from .plan import MemoryRegion
from .vcpu_state import RESET_VECTOR

if TYPE_CHECKING:
    from ..api.vcpu import Exit
    from ..hw.guest_cpu import GuestCpu
    from .snp import SnpLaunch

__all__ = ["DOORBELL_PORT", "RAM", "DemoGuest"]

RAM = MemoryRegion(FOUR_GIB, 2 << 20)
"""The guest's RAM, in bytes."""

DOORBELL_PORT = 0xE9
"""Where the guest says which step it has come to."""

SECRET = b"known to the guest only"
_PRIVATE, _SHARED, _TAKEN_BACK = b"1", b"2", b"3"
_FIRMWARE_BYTES = FOUR_GIB - RESET_VECTOR


class DemoGuest(Demo):
    """The guest on vCPU 0 of `launch`, its RAM, and the VMM's side.  Use it in a ``with`` statement; `run` it once."""

    def __init__(self, launch: SnpLaunch) -> None:
        super().__init__(launch)
        self.launch, self.in_place = launch, launch.profile.in_place
        self.memory = launch.kvm.host.memory
        self.ram = self.vmm.add_memory(RAM.gpa, RAM.size)
        self.gmem, self.buffer = self.ram.gmem, self.ram.buffer

    def run(self) -> list[Event]:
        """Run the guest until it halts, serving its exits.  Returns everything that happened, in order."""
        self.vmm.observer = self
        try:
            exit_ = self.vmm.run(self.vcpu, self.guest)
            while exit_.reason is not ExitReason.HLT:
                self._serve(exit_)
                exit_ = self.vmm.run(self.vcpu)
        except VmmError as error:
            raise LaunchError(str(error)) from error
        finally:
            self.vmm.observer = Observer()
        self.saw("exit", "KVM_EXIT_HLT", "the guest is done")
        return self.events

    def close(self) -> None:
        """Take the RAM away."""
        self.vmm.remove_memory(self.ram)

    def __enter__(self) -> DemoGuest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # The guest

    def guest(self, cpu: GuestCpu) -> None:
        """What runs on the vCPU."""
        page = RAM.gpa
        code = cpu.load(RESET_VECTOR, _FIRMWARE_BYTES)
        same = code == bytes(self.launch.plan.firmware.data[-_FIRMWARE_BYTES:])
        self.saw("guest", f"reads its reset vector at {RESET_VECTOR:#x}", "as launched" if same else "NOT as launched")
        scratch = self._launched_empty()
        if scratch is not None:
            cpu.store(scratch, SECRET)
            self.saw("guest", f"works on launched memory at {scratch:#x}", _shown(cpu.load(scratch, len(SECRET))))
        cpu.accept(page, PAGE_SIZE)
        cpu.store(page, SECRET)
        self.saw("guest", f"validates its page at {page:#x}, writes", repr(SECRET.decode()))
        cpu.port_out(DOORBELL_PORT, _PRIVATE)
        self.saw("guest", "gives validation up, asks to share the page", "page-state change by GHCB MSR")
        cpu.convert(page, PAGE_SIZE, private=False)
        cpu.store(page, GREETING, shared=True)
        self.saw("guest", "writes to the shared page", repr(GREETING.decode()))
        cpu.port_out(DOORBELL_PORT, _SHARED)
        answer = cpu.load(page, len(ANSWER), shared=True)
        self.saw("guest", "reads the shared page", _shown(answer))
        self.saw("guest", "asks for the page to be private again", "page-state change by GHCB MSR")
        cpu.convert(page, PAGE_SIZE, private=True)
        left = cpu.load(page, len(SECRET))
        self.saw("guest", "validates it again, finds there", _shown(left))
        cpu.store(page, SECRET)
        self.saw("guest", "writes to it, reads it back", _shown(cpu.load(page, len(SECRET))))
        cpu.port_out(DOORBELL_PORT, _TAKEN_BACK)

    def _launched_empty(self) -> int | None:
        """A page that was launched without contents: the guest may use it as it likes."""
        empty = (SnpPageType.ZERO, SnpPageType.UNMEASURED)
        return next((s.gpa for s in self.launch.plan.steps if s.contents is None and s.page_type in empty), None)

    # The VMM

    def _serve(self, exit_: Exit) -> None:
        """What isn't memory's: the doorbell."""
        if exit_.reason is not ExitReason.IO or exit_.io.port != DOORBELL_PORT:
            raise LaunchError(f"the guest came back with {exit_!r}, which nothing here expects")
        step = exit_.io_data()
        self.saw("exit", "KVM_EXIT_IO", f"port {DOORBELL_PORT:#x}: step {step.decode()}")
        (self._exchange if step == _SHARED else self._pry)()

    def seen(self, exit_: Exit) -> None:
        """An exit that the VMM's loop serves."""
        if exit_.reason is ExitReason.MEMORY_FAULT:
            wants = "private" if exit_.wants_private else "shared"
            self.saw("exit", "KVM_EXIT_MEMORY_FAULT", f"gpa {exit_.memory_fault.gpa:#x}, a {wants} access")
            return
        gpa, npages, attributes, *_ = exit_.hypercall.args
        wants = "private" if attributes & KVM_MAP_GPA_RANGE_ENCRYPTED else "shared"
        self.saw("exit", "KVM_EXIT_HYPERCALL, MAP_GPA_RANGE", f"gpa {gpa:#x}, {npages} page, to be {wants}")

    def converted(self, gpa: int, size: int, private: bool) -> None:
        """As the profile's kernel has it: on the guest_memfd, where the page is; or on the VM, to the other pool."""
        call = self.launch.profile.conversion_call
        self.saw("vmm", call, f"{size // PAGE_SIZE} page made {'private' if private else 'shared'}")
        if not private:
            self._look("reads the page as it became shared")

    # The host's software, which the guest doesn't trust

    def _pry(self) -> None:
        """The host tries to see what the guest wrote to its private page."""
        self._look("reads the page through its mapping" if self.in_place else "reads the slot's page in the shared pool")
        pfn = frame_of(self.launch.platform.rmp, RAM.gpa)
        if pfn is not None:
            raw = self.memory.host_read(pfn * PAGE_SIZE, len(SECRET))
            self.saw("host", "reads the page's memory by another way", _shown(raw))

    def _exchange(self) -> None:
        """The host reads the guest's words, and answers."""
        self._look("reads the shared page")
        self.buffer[: len(ANSWER)] = ANSWER
        self.saw("host", "writes to the shared page", repr(ANSWER.decode()))

    def _look(self, what: str) -> None:
        try:
            found = self.buffer[: len(SECRET)]
        except BusError as error:
            self.saw("host", what, f"{error.rule.signal} ({error.rule.id}): {error.rule.text}")
        else:
            self.saw("host", what, _shown(found))


def _shown(found: bytes) -> str:
    """Bytes for people: the words, if somebody here wrote them; else what they look like."""
    for words in (SECRET, GREETING, ANSWER):
        if found.startswith(words):
            return repr(words.decode())
    return f"{found[:6].hex(' ')} .. (simulated ciphertext)" if any(found) else "zeroes"

# SPDX-License-Identifier: GPL-2.0-or-later
"""What every demonstration has: a guest on the first vCPU, the reference VMM around it, and an account of what each saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..uapi.kvm import KVM_MAP_GPA_RANGE_ENCRYPTED, ExitReason
from ..vmm import Observer, VmmError
from .errors import LaunchError

if TYPE_CHECKING:
    from ..api.mapping import Mapping
    from ..api.vcpu import Exit
    from ..hw.cpu import Guest
    from .base import Launch

__all__ = ["ANSWER", "GREETING", "Demo", "Event"]

GREETING, ANSWER = b"hello, host", b"hello, guest"


class Event(NamedTuple):
    """Something that happened: `who` is "guest", "exit" (KVM_RUN came back), "vmm" or "host"."""

    who: str
    what: str
    result: str


class Demo(Observer):
    """A guest that halts once when it has shared a page, and again at its end."""

    def __init__(self, launch: Launch) -> None:
        self.vmm, self.vcpu = launch.vmm, launch.vcpus[0]
        self.events: list[Event] = []

    def saw(self, who: str, what: str, result: str) -> None:
        """Write it down."""
        self.events.append(Event(who, what, result))

    def exchange(self, guest: Guest, buffer: Mapping, at: int) -> list[Event]:
        """Run the guest to its end.  In the middle the host reads the shared page, offset `at` (bytes) of `buffer`, and
        answers.  Raises `LaunchError`."""
        self.vmm.observer = self
        try:
            self._run_to_halt(guest)
            self.look()
            seen = buffer[at : at + len(GREETING)]
            buffer[at : at + len(ANSWER)] = ANSWER
            self.saw("host", "reads the shared page, and answers", repr(seen.decode("ascii", "replace")))
            self._run_to_halt(None)
        except VmmError as error:
            raise LaunchError(str(error)) from error
        finally:
            self.vmm.observer = Observer()
        self.saw("exit", "KVM_EXIT_HLT", "the guest is done")
        return self.events

    def look(self) -> None:
        """What else the host tries while the guest waits."""

    def _run_to_halt(self, guest: Guest | None) -> None:
        exit_ = self.vmm.run(self.vcpu, guest)
        if exit_.reason is not ExitReason.HLT:
            raise LaunchError(f"the guest ended with {exit_.reason.name}")

    # What the VMM's loop tells

    def seen(self, exit_: Exit) -> None:
        if exit_.reason is ExitReason.MEMORY_FAULT:
            fault, kind = exit_.memory_fault, "private" if exit_.wants_private else "shared"
            self.saw("exit", "KVM_EXIT_MEMORY_FAULT", f"gpa {fault.gpa:#x}, {fault.size:#x} bytes, to be {kind}")
            return
        gpa, npages, attributes = exit_.hypercall.args[:3]
        kind = "private" if attributes & KVM_MAP_GPA_RANGE_ENCRYPTED else "shared"
        self.saw("exit", "KVM_EXIT_HYPERCALL, MAP_GPA_RANGE", f"gpa {gpa:#x}, {npages:#x} pages, to be {kind}")

    def converted(self, gpa: int, size: int, private: bool) -> None:
        self.saw("vmm", f"converts {size:#x} bytes at {gpa:#x}", "private" if private else "shared")

    def refused(self, gpa: int, size: int, answer: int, why: VmmError) -> None:
        self.saw("vmm", f"answers with errno {answer}", str(why))

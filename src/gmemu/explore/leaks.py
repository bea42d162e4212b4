# SPDX-License-Identifier: GPL-2.0-or-later
"""What a world may not leave behind: locks that somebody still holds, and whatever outlives the last process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..invariants import Leak
from ..syscalls.emulated import EmulatedDoor

if TYPE_CHECKING:
    from ..kvm.host import Host
    from ..sync.explored import ExploredRuntime

__all__ = ["check_locks", "close_and_check"]


def check_locks(runtime: ExploredRuntime) -> None:
    """With every task ended, nobody may hold a lock or be inside SRCU.  Raises `Leak`."""
    for name, holders in runtime.held():
        raise Leak(f"{', '.join(sorted({str(task) for task in holders}))} ended and still holds {name}")


def close_and_check(host: Host) -> None:
    """Every process exits; no page, VM or page of a trusted entity may be left but what was leaked on purpose.

    A VM in which KVM itself found a bug keeps what it has, as the kernel does.  Raises `Leak` or `InvariantViolation`.
    """
    bugged = any(vm.vm_bugged for vm in host.vms)
    for process in sorted(host.memmap.processes.values(), key=lambda process: process.pid):
        EmulatedDoor(host, process).exit()
    if not bugged:
        host.check_quiet()

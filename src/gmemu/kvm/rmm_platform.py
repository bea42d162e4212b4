# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's side of the machine's RMM: RMI calls with their retries, VMIDs, granules that go there and come back
(Arm CCA series: arch/arm64/kvm/rmi.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hw.memory import HostAccessFault
from ..hw.rmm.rmm import RmiResult, Rmm
from ..invariants import InvariantViolation, Leak
from ..rules import KernelError
from ..rules import cca as rules
from ..uapi.rmi import RMI_ERROR_STATUS_MASK, RmiStatus, rmi_text

if TYPE_CHECKING:
    from .host import Host

__all__ = ["RmmPlatform"]

BUSY_LIMIT = 10_000
"""How often in a row the RMM may be busy.  KVM tries for ever; here somebody has ordered it."""
VMIDS = range(1, 1 << 8)


class RmmPlatform:
    """RMM and VMIDs of one machine.

    `reject_ripas_change` is asked, if set, when a realm wants [base, top) to become another RIPAS: true to have KVM refuse,
    which it never does by itself.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.rmm = Rmm(host.rt, host.memory, host.memmap.nr_pages)
        self.rmm.rmm_activate()
        self.reject_ripas_change: Callable[[int, int], bool] | None = None
        self.warnings: list[str] = []
        """What the kernel's log has of RMI commands that failed."""
        self._vmids: set[int] = set()
        host.memory.guards.append(self._check_host_access)
        host.memmap.free_checks.append(self._check_free)

    def _check_host_access(self, pfn: int, count: int, write: bool) -> None:
        """The host may neither read nor write what is in the realm world: a granule protection fault."""
        if not self.rmm.gpt.allows_host(pfn, count):
            raise HostAccessFault(f"granule protection fault at pfn {pfn:#x}: the GPT has it in the realm world")

    def _check_free(self, pfn: int, count: int) -> None:
        for start, end, _ in self.rmm.gpt.realm.runs(pfn, pfn + count):
            state = self.rmm.granules.entries[start]
            raise InvariantViolation(
                f"pfn {start:#x}-{end:#x}: freed while delegated to the realm world ({state.state.name if state else '?'})"
            )

    def owner(self, pfn: int) -> str:
        """Whose the granule is, in the RMM's words."""
        entry = self.rmm.granules.entries[pfn]
        return "NS" if entry is None else entry.state.name

    def warn(self, what: str) -> None:
        """WARN_ON()."""
        self.warnings.append(what)

    # Calls

    def call(self, command: Callable[[], RmiResult]) -> RmiResult:
        """An RMI command, tried again while the RMM is busy, and gone on with while it's incomplete."""
        for _ in range(BUSY_LIMIT):
            result = command()
            code = result.status & RMI_ERROR_STATUS_MASK
            while code == RmiStatus.INCOMPLETE and result.out:
                result = self.rmm.op_continue(result.out[0])
                code = result.status & RMI_ERROR_STATUS_MASK
            if code not in (RmiStatus.BUSY, RmiStatus.BLOCKED):
                return result
            self.host.rt.resched()
        raise rules.LIVELOCK(f"{BUSY_LIMIT} times")

    def check(self, result: RmiResult, name: str) -> None:
        """rmi_to_errno(): any status but success is ENXIO."""
        if result.status:
            raise rules.COMMAND(f"{name}: {rmi_text(result.status)}")

    # VMIDs

    def vmid_alloc(self) -> int:
        """A free one.  Raises ENXIO."""
        for vmid in VMIDS:
            if vmid not in self._vmids:
                self._vmids.add(vmid)
                return vmid
        raise rules.COMMAND(f"all {len(VMIDS)} VMIDs are in use")

    def vmid_free(self, vmid: int) -> None:
        """Let go of it."""
        self._vmids.discard(vmid)

    # Granules

    def delegate(self, pfn: int, count: int = 1) -> None:
        """rmi_delegate_range(): all of it, or nothing.  Raises ENXIO."""
        done = 0
        while done < count:
            result = self.call(lambda at=pfn + done, n=count - done: self.rmm.granule_range_delegate(at, n))  # type: ignore[misc]
            if result.status:
                if done:
                    self.undelegate(pfn, done)
                raise rules.DELEGATE(f"pfn {pfn + done:#x}: {rmi_text(result.status)}")
            done = result.out[0] - pfn

    def undelegate(self, pfn: int, count: int = 1) -> bool:
        """rmi_undelegate_range(): what can't be had back is leaked, with a warning.  False: some of it is."""
        ok, done = True, 0
        while done < count:
            result = self.call(lambda at=pfn + done, n=count - done: self.rmm.granule_range_undelegate(at, n))  # type: ignore[misc]
            if result.status:
                self.warn(f"RMI_GRANULE_RANGE_UNDELEGATE of pfn {pfn + done:#x}: {rmi_text(result.status)}")
                self.host.memmap.leak(pfn + done, 1)
                ok, done = False, done + 1
            else:
                done = result.out[0] - pfn
        return ok

    def alloc_granules(self, count: int = 1) -> int:
        """Pages that follow each other, aligned to their number, delegated.  Raises ENOMEM, ENXIO."""
        self.host.allocate("rmm-granule")
        memmap = self.host.memmap
        pfn, spare = self._aligned(count)
        for each, n in spare:
            memmap.put(each, n)
        try:
            self.delegate(pfn, count)
        except KernelError:
            memmap.put(pfn, count)
            raise
        return pfn

    def _aligned(self, count: int) -> tuple[int, list[tuple[int, int]]]:
        """`count` pages aligned to their number, and what else was taken for that."""
        memmap = self.host.memmap
        taken: list[tuple[int, int]] = []
        while True:
            for start, have in memmap.alloc(2 * count - 1):
                first = -(-start // count) * count
                if first + count <= start + have:
                    spare = [(start, first - start), (first + count, start + have - first - count)]
                    rest = [run for run in (*taken, *spare) if run[1]]
                    return first, rest
                taken.append((start, have))

    def free_granules(self, pfn: int, count: int = 1) -> None:
        """Undelegate and free; what the RMM keeps is leaked."""
        self.undelegate(pfn, count)
        self.host.memmap.put(pfn, count)

    # What must hold

    def check_quiet(self) -> None:
        """With every VM gone, the realm world has nothing but what was leaked."""
        for start, end, _ in self.rmm.gpt.realm.runs():
            if not self.host.memmap.leaked.covers(start, end, True):
                raise Leak(f"pfn {start:#x}-{end:#x} is still in the realm world")
        for rd in self.rmm.realms:
            if not self.host.memmap.leaked[rd]:
                raise Leak(f"the realm of RD {rd:#x} was never destroyed")

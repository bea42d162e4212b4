# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program may not do, and a kernel neither, whatever fails: watched during the run, looked over at its end."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

from ..check import check_host
from ..hw.memory import PAGE_SHIFT
from ..invariants import InvariantViolation
from ..kvm.arch.cca import CcaState, CcaVm
from ..kvm.arch.snp import SnpVm
from ..kvm.arch.tdx import TdxVm
from ..kvm.guest_memfd.file import GmemFile
from ..syscalls.emulated import EmulatedDoor
from ..uapi.errno import errno_name
from ..uapi.kvm import KVM_MAP_GPA_RANGE_ENCRYPTED, ExitReason, kvm_exit_hypercall
from .engine import Call, Faults, Observer

if TYPE_CHECKING:
    from ..kvm.host import Host
    from ..kvm.vcpu import Vcpu
    from ..kvm.vm import Vm

__all__ = ["Achieved", "Judge", "Verdict"]


_POPULATE = ("SNP_LAUNCH_UPDATE", "KVM_ARM_RMI_POPULATE")
"""Calls that measure all that they say they did, or nothing."""


class Verdict(NamedTuple):
    """Something found.  `kind` is one of: invariant, failed-call, leak, untrue, crashed, hung, killed."""

    kind: str
    why: str


class Achieved(NamedTuple):
    """What a run came to: of each launch that was finished its measurement (simulated) and how many pages the guest has; of
    each guest_memfd, as it was last converted, the runs of private pages."""

    launches: tuple[tuple[str, int], ...]
    private: tuple[tuple[tuple[int, int], ...], ...]


class Judge(Observer):
    """Watches one program.  `faults` has to be set before it runs."""

    faults: Faults

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self._launches: list[tuple[str, int]] = []
        self._private: dict[int, tuple[tuple[int, int], ...]] = {}
        self._before: dict[int, tuple[tuple[int, int], ...]] = {}
        self._digest = ""
        """when the call began; none before a realm's first KVM_ARM_RMI_POPULATE, which makes it"""
        self._active: set[int] = set()
        """realms that have been activated, which is no call of its own"""
        self._last: deque[tuple[str, int]] = deque(maxlen=1_000)
        """the last calls with their errnos, for people"""

    def found(self, kind: str, why: str) -> None:
        """Note it, once."""
        if not any(verdict.kind == kind for verdict in self.verdicts):
            self.verdicts.append(Verdict(kind, why))

    @property
    def achieved(self) -> Achieved:
        """What the run came to so far."""
        return Achieved(tuple(self._launches), tuple(self._private.values()))

    def last_calls(self) -> str:
        """What the program did last, with repetitions counted."""
        calls = Counter(self._last).most_common(3)
        shown = [f"{n:,} {name}{f' ({errno_name(error)})' if error else ''}" for (name, error), n in calls]
        return f"of its last {len(self._last):,} calls the most frequent were {', '.join(shown)}"

    # During the run

    def call_begins(self, call: Call) -> None:
        if call.is_conversion and isinstance(call.file, GmemFile):
            self._before[id(call)] = _private(call.file)
        if call.name in _POPULATE and call.vm is not None:
            self._digest = _measurement(call.vm)[0]
        if call.vcpu is not None and call.name == "KVM_RUN":
            self._check_answer(call.vcpu)

    def call_ends(self, call: Call) -> None:
        errno = getattr(call.error, "errno", 0) or 0
        self._last.append((call.name, errno))
        before = self._before.pop(id(call), None)
        if before is not None and isinstance(call.file, GmemFile):
            after = _private(call.file)
            if errno and after != before:
                self.found("failed-call", f"{call.name} failed with {errno_name(errno)}, and changed attributes")
            if not errno:
                self._private[call.file.gmem_inode.ino] = after
        vm = call.vm
        if vm is not None and not vm.vm_bugged:
            if call.name in _POPULATE and errno and self._digest and _measurement(vm)[0] != self._digest:
                self.found("failed-call", f"{call.name} failed with {errno_name(errno)}, and was measured")
            if call.name in ("SNP_LAUNCH_FINISH", "FINALIZE_VM") and not errno:
                self._launches.append(_measurement(vm))
            if isinstance(vm.arch, CcaVm) and vm.arch.state is CcaState.ACTIVE and vm.number not in self._active:
                self._active.add(vm.number)
                self._launches.append(_measurement(vm))
        if call.fired:
            self._check(call.host, f"after {call.name}")

    def _check_answer(self, vcpu: Vcpu) -> None:
        """A guest that was told 0 relies on it that all it asked for was converted."""
        if vcpu.complete_userspace_io is None or vcpu.exit_reason != ExitReason.HYPERCALL:
            return
        answer = vcpu.exit_details(kvm_exit_hypercall)
        assert isinstance(answer, kvm_exit_hypercall)
        gpa, npages, attributes = answer.args[:3]
        private = bool(attributes & KVM_MAP_GPA_RANGE_ENCRYPTED)
        if answer.ret:
            return
        for gfn in range(gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + npages):
            if vcpu.vm.attributes.is_private(gfn) != private:
                kind = "private" if private else "shared"
                self.found("untrue", f"the guest was told that gfn {gfn:#x} is {kind} now (MAP_GPA_RANGE, 0), and it isn't")
                return

    def _check(self, host: Host, when: str) -> None:
        try:
            check_host(host)
        except InvariantViolation as violation:
            self.found("invariant", f"{when}: {violation}")

    # At its end

    def host_ends(self, host: Host) -> None:
        """The machine is about to be switched off: everybody exits, and nothing may be left."""
        self.faults.cancel()
        self.faults.release()
        self._check(host, "at the end")
        try:
            EmulatedDoor(host, host.init).exit()
            if not any(vm.vm_bugged for vm in host.vms):
                host.check_quiet()
        except InvariantViolation as violation:
            self.found("leak", f"after every process exited: {violation}")


def _private(file: GmemFile) -> tuple[tuple[int, int], ...]:
    return tuple((start, end) for start, end, value in file.gmem_inode.attributes.runs() if value)


def _measurement(vm: Vm) -> tuple[str, int]:
    """The launch measurement of a VM, and how many pages its guest has."""
    if isinstance(vm.arch, SnpVm) and vm.arch.snp_context is not None:
        context = vm.arch.platform.psp.contexts.get(vm.arch.snp_context)
        pages = sum(e - s for s, e, entry in vm.arch.platform.rmp.entries.runs() if entry.asid == vm.arch.asid)
        return (context.ld.value.hex() if context is not None else ""), pages
    if isinstance(vm.arch, CcaVm) and vm.arch.rd in vm.arch.platform.rmm.realms:
        return vm.arch.platform.rmm.realms[vm.arch.rd].measurement.hex(), 0  # its RIM has each page's place
    if isinstance(vm.arch, TdxVm) and vm.arch.tdr in vm.arch.module.tds:
        td = vm.arch.module.tds[vm.arch.tdr]
        return (td.measurement or b"").hex(), sum(e - s for s, e, _ in vm.arch.sept.leaves.runs())
    return "", 0

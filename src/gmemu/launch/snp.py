# SPDX-License-Identifier: GPL-2.0-or-later
"""A reference VMM: carries a launch plan out on the emulated host, as QEMU does on a real one.

Two flows.  *in-place*: contents are written into the guest_memfd while it's shared, converted to private, and populated
with source 0.  *copy*: contents come from another user address.  Kernels with two pools have only the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..api.kvm import Kvm
from ..api.sev import DEFAULT_POLICY
from ..api.vcpu import Vcpu
from ..api.vm import Vm
from ..kvm.snp_platform import SnpPlatform
from ..profiles import Profile
from ..uapi.kvm import VmType
from ..uapi.sev import PspStatus, SnpPageType
from ..vmm import Backoff, Vmm, VmmError, populate_snp
from .errors import LaunchError
from .plan import LaunchPlan, PlanStep, vmsa_step_name
from .vcpu_state import MSR_IA32_CR_PAT

if TYPE_CHECKING:
    from ..hw.snp.digest import Row
    from .pagelog import LogWriter

__all__ = ["FLOWS", "Call", "SnpLaunch", "measure_snp"]

FLOWS = ("in-place", "copy")

PIECE = 64 << 20
"""What one LAUNCH_UPDATE is asked to do at most (bytes): a fraction of a second, and no slower than all at once."""

Progress = Callable[[int, int], None]
"""Called with pages measured so far, and how many there will be."""


class Call(NamedTuple):
    """What one step of the launch did: the system call, and its effect in words."""

    name: str
    effect: str


class SnpLaunch:
    """One SNP VM, from creation to a finished launch.  Close it, or use it in a ``with`` statement.

    `calls` tells what was done, in order.  `measurement` is the launch digest, which is simulated.
    """

    def __init__(
        self,
        kvm: Kvm,
        plan: LaunchPlan,
        *,
        flow: str | None = None,
        policy: int = DEFAULT_POLICY,
        log: LogWriter | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.kvm, self.plan, self.policy = kvm, plan, policy
        self.profile: Profile = kvm.host.profile
        self.flow = flow or ("in-place" if self.profile.null_source else "copy")
        if self.flow not in FLOWS:
            raise LaunchError(f"there is no flow {self.flow!r}; there are {' and '.join(FLOWS)}")
        if self.flow == "in-place" and not self.profile.null_source:
            raise LaunchError(f"profile {self.profile.name} can't populate memory with what is in it; use --flow copy")
        self.platform: SnpPlatform = kvm.host.snp
        self.calls: list[Call] = []
        self._log, self._progress, self._done = log, progress, 0
        self._step, self._step_name = 0, ""
        self._context = -1
        self.vcpus: list[Vcpu] = []
        self.vm: Vm
        self.vmm: Vmm
        self.measurement = b""

    # The launch, in QEMU's order

    def run(self) -> bytes:
        """Everything up to LAUNCH_FINISH.  Returns the launch digest (simulated)."""
        self.create_vm()
        self.create_memory()
        self.create_vcpus()
        others = set(self.platform.psp.contexts)
        self.vm.snp.launch_start(self.policy)
        [self._context] = self.platform.psp.contexts.keys() - others
        self._called("SNP_LAUNCH_START", f"policy {self.policy:#x}; guest context made, ASID bound")
        self.platform.psp.log = self._measured
        for index, step in enumerate(self.plan.steps):
            self._step, self._step_name = index, step.name
            self.populate(step)
        self.finish()
        return self.measurement

    def create_vm(self) -> None:
        """KVM_CREATE_VM and KVM_SEV_INIT2."""
        self.vm = self.kvm.create_vm(VmType.SNP)
        self.vmm = Vmm(self.kvm, self.vm, Backoff.none())
        self._called("KVM_CREATE_VM", "type 4, KVM_X86_SNP_VM")
        features = self.plan.init2_features
        self.platform.supported_vmsa_features |= features
        self.vm.snp.init2(features)
        self._called("KVM_SEV_INIT2", f"vmsa_features {features:#x}; SNP active")
        self.vm.enable_map_gpa_range()

    def create_memory(self) -> None:
        """A guest_memfd and a slot for each region.  In place the memory starts shared; with two pools it's private."""
        what = self.profile.shared_at_first_words
        for region in self.plan.memory_regions():
            self.vmm.add_memory(region.gpa, region.size, mapped=self.flow == "in-place")
            self._called("KVM_CREATE_GUEST_MEMFD", f"{_size(region.size)}, {what}, bound at {region.gpa:#x}")

    def create_vcpus(self) -> None:
        """The vCPUs, with the registers that the VMM gives them."""
        for index, state in enumerate(self.plan.vcpus):
            vcpu = self.vm.create_vcpu(index)
            vcpu.regs, vcpu.sregs = state.regs, state.sregs
            vcpu.set_fpu(state.fpu)
            vcpu.set_xcr0(state.xcr0)
            vcpu.set_msr(MSR_IA32_CR_PAT, state.pat)
            self.vcpus.append(vcpu)
        self._called("KVM_CREATE_VCPU", f"{len(self.vcpus)} with {self.plan.vmm.name}'s initial registers")

    def populate(self, step: PlanStep) -> None:
        """Contents, conversion, LAUNCH_UPDATE; a CPUID table that the firmware corrects is a launch that failed."""
        block = self.vmm.block_at(step.gpa)
        offset = step.gpa - block.gpa
        if step.contents is not None:
            block.buffer[offset : offset + step.size] = step.contents
        try:
            self.vmm.convert(step.gpa, step.size, private=True)
        except VmmError as error:
            raise LaunchError(f"{step.name} at {step.gpa:#x}: {error}") from error
        source = 0 if self.flow == "in-place" else block.buffer.address + offset
        try:
            calls = self._launch_update(step, source)
        except OSError as error:
            status = getattr(error, "fw_error", PspStatus.SUCCESS)
            why = f" (firmware status {status.name})" if status else ""
            raise LaunchError(f"LAUNCH_UPDATE of {step.name} at {step.gpa:#x} failed{why}: {error}") from error
        kind = SnpPageType(step.page_type).name
        took = f" in {calls} calls" if calls > 1 else ""
        where = "in place" if not source else f"from {source:#x}"
        self._called(f"SNP_LAUNCH_UPDATE {step.name}", f"{step.pages} {kind} at {step.gpa:#x}, {where}{took}")

    def _launch_update(self, step: PlanStep, source: int) -> int:
        """LAUNCH_UPDATE of a step, in pieces so that progress can be told.  Returns how many calls it took."""
        calls = 0
        for at in range(0, step.size, PIECE):
            size = min(PIECE, step.size - at)
            calls += populate_snp(self.vm.snp, step.gpa + at, size, step.page_type, source + at if source else 0)
        return calls

    def finish(self) -> None:
        """LAUNCH_FINISH, which adds a VMSA for each vCPU."""
        self._step, self._step_name = len(self.plan.steps), ""
        self.vm.snp.launch_finish()
        self.platform.psp.log = None
        self.measurement = self.platform.psp.contexts[self._context].ld.value
        vmsas = "1 VMSA" if len(self.vcpus) == 1 else f"{len(self.vcpus)} VMSAs"
        self._called("SNP_LAUNCH_FINISH", f"{vmsas} measured; the digest is final")

    def pages_by_state(self) -> dict[str, int]:
        """How many 4 KiB pages the RMP has in each state but HYPERVISOR."""
        counts: dict[str, int] = {}
        rmp = self.platform.rmp
        for start, end, _ in rmp.entries.runs():
            name = rmp.state(start).name
            counts[name] = counts.get(name, 0) + end - start
        return counts

    def close(self) -> None:
        """Take the VM down."""
        for vcpu in self.vcpus:
            vcpu.close()
        self.vmm.close()
        self.vm.close()

    def _called(self, name: str, effect: str) -> None:
        self.calls.append(Call(name, effect))

    def _measured(self, context: int, page_type: int, rows: list[Row]) -> None:
        """The firmware measured pages: log them if they are this guest's, tell how far it got."""
        if context != self._context:
            return
        if self._log is not None:
            kind, first = SnpPageType(page_type), not self._step_name
            for gpa, contents, digest in rows:
                name = vmsa_step_name(self._step - len(self.plan.steps)) if first else self._step_name
                self._log.page(self._step, name, gpa, kind, contents.hex(), digest.hex())
                self._step += first
        self._done += len(rows)
        if self._progress is not None:
            self._progress(self._done, self.plan.pages)

    def __enter__(self) -> SnpLaunch:
        return self

    def __exit__(self, *exc: object) -> None:
        if hasattr(self, "vm"):
            self.close()


def measure_snp(
    plan: LaunchPlan, *, log: LogWriter | None = None, progress: Progress | None = None, profile: str | Profile | None = None
) -> bytes:
    """The launch digest of `plan` (simulated): a launch on an emulated host of its own, which is gone afterwards."""
    from ..profiles import DEFAULT

    with Kvm.open(profile or DEFAULT) as kvm:
        launch = SnpLaunch(kvm, plan, log=log, progress=progress)
        return launch.run()


def _size(nbytes: int) -> str:
    """A size for people."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >> shift and not nbytes & (1 << shift) - 1:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} bytes"

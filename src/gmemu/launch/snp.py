# SPDX-License-Identifier: GPL-2.0-or-later
"""A reference VMM: carries a launch plan out on the emulated host, as QEMU does on a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..api.kvm import Kvm
from ..api.sev import DEFAULT_POLICY
from ..kvm.snp_platform import SnpPlatform
from ..profiles import Profile
from ..uapi.kvm import VmType
from ..uapi.sev import PspStatus, SnpPageType
from ..vmm import VmmError, populate_snp
from .base import Launch, Progress
from .errors import LaunchError
from .plan import LaunchPlan, PlanStep, vmsa_step_name
from .vcpu_state import MSR_IA32_CR_PAT

if TYPE_CHECKING:
    from ..hw.snp.digest import Row
    from .pagelog import LogWriter

__all__ = ["SnpLaunch", "measure_snp"]

PIECE = 64 << 20
"""What one LAUNCH_UPDATE is asked to do at most (bytes): a fraction of a second, and no slower than all at once."""


class SnpLaunch(Launch):
    """One SNP VM, from creation to a finished launch.  `measurement` is the launch digest."""

    vm_type = VmType.SNP

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
        super().__init__(kvm, flow, log, progress)
        self.plan, self.policy = plan, policy
        self.platform: SnpPlatform = kvm.host.snp
        self._step, self._step_name = 0, ""
        self._context = -1

    # The launch, in QEMU's order

    def run(self) -> bytes:
        """Everything up to LAUNCH_FINISH.  Returns the launch digest (simulated)."""
        self.create_vm()
        self.add_memory(self.plan.memory_regions())
        self.create_vcpus()
        others = set(self.platform.psp.contexts)
        self.vm.snp.launch_start(self.policy)
        [self._context] = self.platform.psp.contexts.keys() - others
        self.called("SNP_LAUNCH_START", f"policy {self.policy:#x}; guest context made, ASID bound")
        self.platform.psp.log = self._measured
        for index, step in enumerate(self.plan.steps):
            self._step, self._step_name = index, step.name
            self.populate(step)
        self.finish()
        return self.measurement

    def create_vm(self) -> None:
        """KVM_CREATE_VM and KVM_SEV_INIT2."""
        self.start_vm("type 4, KVM_X86_SNP_VM")
        features = self.plan.init2_features
        self.platform.supported_vmsa_features |= features
        self.vm.snp.init2(features)
        self.called("KVM_SEV_INIT2", f"vmsa_features {features:#x}; SNP active")
        self.vm.enable_map_gpa_range()

    def create_vcpus(self) -> None:
        """The vCPUs, with the registers that the VMM gives them."""
        for index, state in enumerate(self.plan.vcpus):
            vcpu = self.vm.create_vcpu(index)
            vcpu.regs, vcpu.sregs = state.regs, state.sregs
            vcpu.set_fpu(state.fpu)
            vcpu.set_xcr0(state.xcr0)
            vcpu.set_msr(MSR_IA32_CR_PAT, state.pat)
            self.vcpus.append(vcpu)
        self.called("KVM_CREATE_VCPU", f"{len(self.vcpus)} with {self.plan.vmm.name}'s initial registers")

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
        self.called(f"SNP_LAUNCH_UPDATE {step.name}", f"{step.pages} {kind} at {step.gpa:#x}, {where}{took}")

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
        self.called("SNP_LAUNCH_FINISH", f"{vmsas} measured; the digest is final")

    def pages_by_state(self) -> dict[str, int]:
        """How many 4 KiB pages the RMP has in each state but HYPERVISOR."""
        counts: dict[str, int] = {}
        rmp = self.platform.rmp
        for start, end, _ in rmp.entries.runs():
            name = rmp.state(start).name
            counts[name] = counts.get(name, 0) + end - start
        return counts

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
        self.progressed(len(rows), self.plan.pages)


def measure_snp(
    plan: LaunchPlan, *, log: LogWriter | None = None, progress: Progress | None = None, profile: str | Profile | None = None
) -> bytes:
    """The launch digest of `plan` (simulated): a launch on an emulated host of its own, which is gone afterwards."""
    from ..profiles import DEFAULT

    with Kvm.open(profile or DEFAULT) as kvm:
        launch = SnpLaunch(kvm, plan, log=log, progress=progress)
        return launch.run()

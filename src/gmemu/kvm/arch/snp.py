# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_SNP_VM: what svm/sev.c does for an SNP guest's memory, and its KVM_MEMORY_ENCRYPT_OP commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...hw.cpu import Exit, GhcbMsr, Vmgexit
from ...hw.memory import PAGE_SHIFT
from ...hw.snp.guest import SnpMemory
from ...mm.uaccess import UserPointer, copy_from_user, copy_to_user
from ...rules import KernelError
from ...rules import snp as rules
from ...uapi.kvm import ExitReason, VmType, kvm_exit_fail_entry
from ...uapi.kvm_x86 import PFERR_GUEST_ENC_MASK, PFERR_GUEST_RMP_MASK, PFERR_PRIVATE_ACCESS
from ...uapi.sev import SVM_SEV_FEAT_SECURE_TSC, SVM_SEV_FEAT_SNP_ACTIVE, PspStatus, SevCmd, kvm_sev_cmd, kvm_sev_init
from .base import VmArch
from .content import encrypted_content_modes
from .sev_refusals import refused_command
from .snp_ap import GuestVmsa, handle_requests, invalidate_range, may_enter
from .snp_ghcb import handle_ghcb_msr, handle_vmgexit
from .snp_launch import launch_finish, launch_start, launch_update

if TYPE_CHECKING:
    from ..snp_platform import SnpPlatform
    from ..vcpu import Vcpu
    from ..vm import Vm

__all__ = ["SnpVm"]

GHCB_VERSION_MAX = GHCB_VERSION_DEFAULT = 2
SVM_EXIT_ERR = (1 << 64) - 1


class SnpVm(VmArch):
    """struct kvm_sev_info of an SNP guest.  `snp_context` is the page frame of its firmware context, `fd` the descriptor of
    /dev/sev that the launch was started with."""

    vm_type = VmType.SNP
    has_private_mem = True
    has_protected_state = True

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.pre_fault_allowed = False
        self.platform: SnpPlatform = vm.host.snp
        self.active = False
        self.vmsa_features = 0
        self.ghcb_version = 0
        self.asid = 0
        self.policy = 0
        self.fd = 0
        self.snp_context: int | None = None
        self.vmsa_pfns: dict[Vcpu, int] = {}
        """KVM's own VMSA of each vCPU: its first one, until the guest gives it another."""
        self.vmsas: dict[Vcpu, GuestVmsa] = {}
        self.ghcb_gfns: dict[Vcpu, int] = {}
        """Where each guest processor registered its GHCB."""

    # Life

    def vcpu_create(self, vcpu: Vcpu) -> None:
        """sev_vcpu_create(): a page for the VMSA."""
        [(pfn, _)] = self.vm.host.memmap.alloc(1)
        self.vm.host.memory.clear(pfn, 1)
        self.vmsa_pfns[vcpu] = pfn
        self.vmsas[vcpu] = GuestVmsa(vcpu)

    def vm_destroy(self) -> None:
        """sev_free_vcpu(), sev_vm_destroy(): VMSAs go back, then the context, then the ASID.  What can't be had back is
        leaked, and an ASID that the firmware still takes for a guest's with it."""
        for pfn in self.vmsa_pfns.values():
            if self.active:
                self._rmp_make_shared(pfn)
            self.vm.host.memmap.put(pfn)
        self.vmsa_pfns.clear()
        if not self.active:
            return
        if self.decommission():
            self.platform.asid_free(self.asid)
        elif self.snp_context is not None:
            self.vm.host.memmap.leak(self.snp_context, 1)

    def decommission(self) -> bool:
        """snp_decommission_context(): whether there is no context left."""
        if self.snp_context is None:
            return True
        status = self.platform.psp.decommission(self.snp_context)
        if status is not PspStatus.SUCCESS:
            self.platform.warn(f"SNP_DECOMMISSION of context {self.snp_context:#x}: {status.name}")
            return False
        context, self.snp_context = self.snp_context, None
        self.platform.free_firmware_page(context)
        return True

    # Commands

    def mem_enc_op(self, arg: UserPointer) -> int:
        """sev_mem_enc_ioctl(): one command; `kvm_sev_cmd.error` is written back also when it fails."""
        if arg == 0:
            return 0
        mm = self.vm.rt.current.mm
        cmd = copy_from_user(mm, kvm_sev_cmd, arg)
        with self.vm.lock:
            if self.active and cmd.id < SevCmd.SNP_LAUNCH_START:
                raise rules.OLD_COMMAND(f"command {cmd.id}")
            handler = _COMMANDS.get(cmd.id)
            if handler is None:
                raise refused_command(self.vm, cmd.id)
            try:
                handler(self, cmd)
            finally:
                copy_to_user(mm, arg, cmd)
        return 0

    def guest_init2(self, cmd: kvm_sev_cmd) -> None:
        """sev_guest_init2() and __sev_guest_init()."""
        vm = self.vm
        data = copy_from_user(vm.rt.current.mm, kvm_sev_init, cmd.data)
        if vm.created_vcpus:
            raise rules.INIT_VCPUS(f"{vm.created_vcpus} exist")
        if data.flags:
            raise rules.INIT_FLAGS(f"flags {data.flags:#x}")
        supported = self.platform.supported_vmsa_features
        if data.vmsa_features & ~supported:
            raise rules.INIT_FEATURES(f"{data.vmsa_features:#x}, supported {supported:#x}")
        ghcb_version = data.ghcb_version or GHCB_VERSION_DEFAULT
        if not vm.profile.snp_min_ghcb_version <= ghcb_version <= GHCB_VERSION_MAX:
            raise rules.INIT_GHCB(f"{data.ghcb_version}")
        self.asid = self.platform.asid_new()
        self.active = True
        self.vmsa_features = data.vmsa_features | SVM_SEV_FEAT_SNP_ACTIVE
        self.ghcb_version = ghcb_version

    @property
    def secure_tsc(self) -> bool:
        """snp_is_secure_tsc_enabled()."""
        return bool(self.vmsa_features & SVM_SEV_FEAT_SECURE_TSC)

    def check_status(self, cmd: kvm_sev_cmd, status: PspStatus, what: str) -> None:
        """What sev_issue_cmd() makes of the firmware's answer: EIO, and the status in `cmd.error`."""
        cmd.error = int(status)
        if status is not PspStatus.SUCCESS:
            raise rules.FIRMWARE(f"{what}: {status.name} ({int(status):#x})")

    def page_reclaim(self, pfn: int) -> KernelError | None:
        """snp_page_reclaim(): a page that the firmware was given but didn't take comes back to the host.

        One that doesn't is leaked on purpose, and the VM is dead: the error to report.
        """
        status = self.platform.psp.page_reclaim(pfn)
        if status is not PspStatus.SUCCESS:
            self.vm.host.memmap.leak(pfn, 1)
            return self.vm.bug(f"pfn {pfn:#x} can't be reclaimed: {status.name}")
        return self._rmp_make_shared(pfn)

    def _rmp_make_shared(self, pfn: int) -> KernelError | None:
        """kvm_rmp_make_shared(): a page that the RMP won't give back is leaked, and the VM is dead."""
        try:
            self.platform.rmp_make_shared(pfn)
        except KernelError as error:
            self.vm.host.memmap.leak(pfn, 1)
            return self.vm.bug(f"pfn {pfn:#x} can't be made shared: {error}")
        return None

    # Memory

    def synthesize_error_code(self, gfn: int, error_code: int) -> int:
        """npf_interception(): an access with the C-bit is private."""
        return error_code | PFERR_PRIVATE_ACCESS if error_code & PFERR_GUEST_ENC_MASK else error_code

    def make_private(self, gfn: int, pfn: int, count: int) -> None:
        """sev_gmem_make_private(): assign the pages to the guest, which has to validate them before use: those that aren't
        yet, by 2 MiB where nothing stands against it.  Raises EINVAL."""
        if not self.active:
            return
        for start, end in self.platform.rmp.unassigned(pfn, count):
            try:
                self.platform.rmp_make_private_large(start, gfn + start - pfn, self.asid, end - start)
            except KernelError as error:
                raise rules.MAKE_PRIVATE(str(error)) from error

    def firmware_pages(self) -> int:
        """The guest's context, and a save area for each vCPU."""
        return len(self.vmsa_pfns) + (self.snp_context is not None)

    def content_modes(self, private: bool) -> int:
        return encrypted_content_modes(private, final=self.pre_fault_allowed)

    # Running

    def protection(self, vcpu: Vcpu) -> SnpMemory:
        memory = SnpMemory(self.platform.rmp, self.platform.psp.keys)
        memory.asid = self.asid
        return memory

    @property
    def encrypted_default(self) -> bool:
        return True

    def pre_run(self, vcpu: Vcpu) -> int:
        """sev_vcpu_pre_run(): a VM that wasn't initialised is refused."""
        if not self.active:
            raise rules.RUN_NOT_INITIALIZED()
        return 1

    def before_entry(self, vcpu: Vcpu) -> int:
        if handle_requests(self, vcpu) <= 0:
            return 0
        if may_enter(self, vcpu):
            return 1
        details = kvm_exit_fail_entry(hardware_entry_failure_reason=SVM_EXIT_ERR)
        vcpu.set_exit(ExitReason.FAIL_ENTRY, details)
        return 0

    def invalidate_range(self, start: int, end: int) -> None:
        invalidate_range(self, start, end)

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """sev_handle_vmgexit()."""
        if isinstance(exit_, GhcbMsr):
            return handle_ghcb_msr(self, vcpu, exit_.value)
        if isinstance(exit_, Vmgexit):
            return handle_vmgexit(self, vcpu, exit_)
        return None

    def after_page_fault(self, vcpu: Vcpu, gpa: int, error_code: int) -> None:
        """A fault with RMP bits is the RMP's: see `snp_rmp_fault`."""
        if error_code & PFERR_GUEST_RMP_MASK:
            self.vm.host.design.handle_rmp_fault(self, gpa >> PAGE_SHIFT)


_COMMANDS: dict[int, Callable[[SnpVm, kvm_sev_cmd], None]] = {
    SevCmd.INIT2: SnpVm.guest_init2,
    SevCmd.SNP_LAUNCH_START: launch_start,
    SevCmd.SNP_LAUNCH_UPDATE: launch_update,
    SevCmd.SNP_LAUNCH_FINISH: launch_finish,
}

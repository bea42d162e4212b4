# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_TDX_VM: what vmx/tdx.c does for a TD's memory, and its KVM_MEMORY_ENCRYPT_OP commands.

The shared half of the guest's address space has a nested page table of KVM's (`Mmu`).  The private half is the secure EPT,
which only SEAMCALLs change; what KVM knows of it is in `TdxSept`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING

from ...hw.cpu import Exit
from ...hw.memory import PAGE_SHIFT
from ...hw.tdx.cpu import TdxCpu
from ...hw.tdx.guest import EptViolation, PendingPage
from ...mm.uaccess import UserPointer, copy_from_user, copy_to_user
from ...rules import KernelError
from ...rules import tdx as rules
from ...uapi.kvm import VmType
from ...uapi.kvm_x86 import PFERR_GUEST_ENC_MASK, PFERR_PRIVATE_ACCESS
from ...uapi.tdx import TdAttributes, TdxCmd, TdxStatus, kvm_tdx_cmd, status_text, tdx_operand_busy
from ..guest_memfd.invalidate import Filter
from .base import VmArch
from .content import encrypted_content_modes
from .tdx_exits import handle_exit
from .tdx_init import get_capabilities, td_init, vcpu_get_cpuid, vcpu_init
from .tdx_mem import vcpu_init_mem_region
from .tdx_sept import TdxSept

if TYPE_CHECKING:
    from ...hw.tlb import Translation
    from ..mmu import PageFault, RetPf
    from ..tdx_platform import TdxPlatform
    from ..vcpu import Vcpu
    from ..vm import Vm

__all__ = ["TdState", "TdxVcpu", "TdxVm"]


class TdState(Enum):
    """enum kvm_tdx_state."""

    UNINITIALIZED = auto()
    INITIALIZED = auto()
    RUNNABLE = auto()


class TdxVcpu:
    """struct vcpu_tdx.  `has_events`: an interrupt waits for the guest (kvm_vcpu_has_events); nobody but a test sets it."""

    def __init__(self, cpu: TdxCpu) -> None:
        self.cpu = cpu
        self.initialized = False
        self.tdvpr: int | None = None
        self.tdcx_pages: list[int] = []
        self.has_events = False
        self.last_cpu = 0


class TdxVm(VmArch):
    """struct kvm_tdx.  `hkid` is 0 without a key; `tdr` the page frame of the TD's root."""

    vm_type = VmType.TDX
    has_private_mem = True
    has_protected_state = True

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.pre_fault_allowed = False
        self.platform: TdxPlatform = vm.host.tdx
        self.module = self.platform.module
        self.state = TdState.UNINITIALIZED
        self.hkid = 0
        self.tdr = -1
        self.tdcs_pages: list[int] = []
        self.attributes = 0
        self.xfam = 0
        self.gfn_direct_bits = 0
        self.sept = TdxSept(self)
        self.vcpus: dict[Vcpu, TdxVcpu] = {}

    def bug(self, status: int, leaf: str) -> KernelError:
        """TDX_BUG_ON(): a SEAMCALL failed that can't.  The VM is dead; EIO to raise."""
        self.platform.warn(f"SEAMCALL {leaf} failed: {status_text(status)}")
        return self.vm.bug(f"SEAMCALL {leaf}: {status_text(status)}")

    # Life

    def vcpu_precreate(self) -> None:
        """tdx_vcpu_create(), its checks."""
        if self.state is not TdState.INITIALIZED:
            raise rules.VCPU_CREATE_STATE(f"TD state {self.state.name}")

    def vcpu_create(self, vcpu: Vcpu) -> None:
        """tdx_vcpu_create(): registers are out of KVM's reach from the start, unless the TD is to be debugged."""
        vcpu.guest_state_protected = not self.attributes & TdAttributes.DEBUG

    def create_cpu(self, vcpu: Vcpu) -> TdxCpu:
        cpu = TdxCpu(self.vm.rt, self.module, self.vm.mmu.walk, self.platform.machine_check)
        cpu.held_off = lambda: self.sept.wait_for_zap
        self.vcpus[vcpu] = TdxVcpu(cpu)
        return cpu

    def vm_destroy(self) -> None:
        """tdx_mmu_release_hkid(), the freeing of page tables and vCPUs, tdx_vm_destroy()."""
        self.release_hkid()
        self.sept.free_tables()
        for tdx in self.vcpus.values():
            self._vcpu_free(tdx)
        self.reclaim_td_control_pages()
        self.state = TdState.UNINITIALIZED

    def release_hkid(self) -> None:
        """tdx_mmu_release_hkid(): after this the TD's pages can be reclaimed.  A key id that can't be had back is leaked."""
        if not self.hkid:
            return
        for tdx in self.vcpus.values():
            if tdx.initialized and tdx.tdvpr is not None:
                status = self.module.vp_flush(tdx.tdvpr).status
                if status not in (TdxStatus.SUCCESS, TdxStatus.VCPU_NOT_ASSOCIATED):
                    self.bug(status, "TDH_VP_FLUSH")
        with self.platform.tdx_lock:
            status = self.module.mng_vpflushdone(self.tdr).status
            if status == TdxStatus.FLUSHVP_NOT_DONE:
                return
            if status:
                self.bug(status, "TDH_MNG_VPFLUSHDONE")
                return
            for _ in range(self.module.info.packages):
                status = self.module.phymem_cache_wb().status
                if status not in (TdxStatus.SUCCESS, TdxStatus.NO_HKID_READY_TO_WBCACHE):
                    self.platform.warn(f"TDH.PHYMEM.CACHE.WB: {status_text(status)}")
            status = self.module.mng_key_freeid(self.tdr).status
            if status:
                self.bug(status, "TDH_MNG_KEY_FREEID")
                return
            self.platform.hkid_free(self.hkid)
            self.hkid = 0

    def _vcpu_free(self, tdx: TdxVcpu) -> None:
        """tdx_vcpu_free()."""
        pages = [*tdx.tdcx_pages, *([tdx.tdvpr] if tdx.tdvpr is not None else [])]
        for pfn in pages:
            if self.hkid:
                self.platform.leak(pfn)
            else:
                self.platform.reclaim_control_page(pfn)
        tdx.tdcx_pages, tdx.tdvpr = [], None

    def reclaim_td_control_pages(self) -> None:
        """tdx_reclaim_td_control_pages(): TDCS, then the TDR, which the module lets go when it owns no page any more."""
        pages, self.tdcs_pages = self.tdcs_pages, []
        tdr, self.tdr = self.tdr, -1
        if self.hkid:
            for pfn in (*pages, tdr):
                self.platform.leak(pfn)
            return
        for pfn in pages:
            self.platform.reclaim_control_page(pfn)
        if tdr < 0:
            return
        status = self.module.phymem_page_reclaim(tdr).status
        if status:
            self.platform.warn(f"TDH.PHYMEM.PAGE.RECLAIM of the TDR: {status_text(status)}")
            self.platform.leak(tdr)
            return
        status = self.module.phymem_page_wbinvd(tdr).status
        if status:
            self.bug(status, "TDH_PHYMEM_PAGE_WBINVD")
            self.platform.leak(tdr)
            return
        self.platform.quirk_reset(tdr)
        self.platform.free_page(tdr)

    # Commands

    @contextmanager
    def vm_state_locks(self) -> Iterator[None]:
        """tdx_acquire_vm_state_locks(): the VM's mutex, every vCPU's, slots_lock."""
        with self.vm.lock, ExitStack() as stack:
            for vcpu in self.vm.vcpus:
                stack.enter_context(vcpu.mutex)
            with self.vm.slots_lock:
                yield

    def _get_cmd(self, arg: UserPointer) -> kvm_tdx_cmd:
        """tdx_get_cmd()."""
        cmd = copy_from_user(self.vm.rt.current.mm, kvm_tdx_cmd, arg)
        if cmd.hw_error:
            raise rules.HW_ERROR(f"{cmd.hw_error:#x}")
        return cmd

    def mem_enc_op(self, arg: UserPointer) -> int:
        """tdx_vm_ioctl(): the command is written back, also when it fails."""
        cmd = self._get_cmd(arg)
        if cmd.id == TdxCmd.CAPABILITIES:
            get_capabilities(self, cmd)
            return 0
        with self.vm_state_locks():
            handler = _VM_COMMANDS.get(cmd.id)
            if handler is None:
                raise rules.UNKNOWN_VM_COMMAND(f"command {cmd.id}")
            try:
                handler(self, cmd)
            finally:
                copy_to_user(self.vm.rt.current.mm, arg, cmd)
        return 0

    def vcpu_mem_enc_unlocked_op(self, vcpu: Vcpu, arg: UserPointer) -> int | None:
        """tdx_vcpu_unlocked_ioctl()."""
        cmd = self._get_cmd(arg)
        with self.vm_state_locks():
            self._check_vcpu_command()
            if cmd.id == TdxCmd.INIT_MEM_REGION:
                vcpu_init_mem_region(self, vcpu, cmd)
            elif cmd.id == TdxCmd.INIT_VCPU:
                vcpu_init(self, vcpu, cmd)
            else:
                return None
        return 0

    def vcpu_mem_enc_op(self, vcpu: Vcpu, arg: UserPointer) -> int:
        """tdx_vcpu_ioctl()."""
        self._check_vcpu_command()
        cmd = self._get_cmd(arg)
        if cmd.id != TdxCmd.GET_CPUID:
            raise rules.UNKNOWN_VCPU_COMMAND(f"command {cmd.id}")
        vcpu_get_cpuid(self, cmd)
        return 0

    def _check_vcpu_command(self) -> None:
        if not self.hkid or self.state is TdState.RUNNABLE:
            raise rules.VCPU_COMMAND_STATE(f"TD state {self.state.name}")

    def td_finalize(self, cmd: kvm_tdx_cmd) -> None:
        """tdx_td_finalize()."""
        if not self.hkid or self.state is TdState.RUNNABLE:
            raise rules.FINALIZE_STATE(f"TD state {self.state.name}")
        cmd.hw_error = self.module.mr_finalize(self.tdr).status
        if tdx_operand_busy(cmd.hw_error):
            raise rules.FINALIZE_BUSY(status_text(cmd.hw_error))
        if cmd.hw_error:
            raise self.bug(cmd.hw_error, "TDH_MR_FINALIZE")
        self.state = TdState.RUNNABLE
        self.pre_fault_allowed = True

    # Memory

    def is_gfn_alias(self, gfn: int) -> bool:
        """kvm_is_gfn_alias(): the frame number has the shared bit."""
        return bool(gfn & self.gfn_direct_bits)

    def check_gfn(self, gfn: int) -> None:
        if self.is_gfn_alias(gfn):
            raise rules.GFN_ALIAS(f"gfn {gfn:#x}, shared bit {self.gfn_direct_bits:#x}")

    def check_prefault(self, gfn: int) -> None:
        if self.is_gfn_alias(gfn):
            raise rules.PREFAULT_ALIAS(f"gpa {gfn << PAGE_SHIFT:#x}")

    def synthesize_error_code(self, gfn: int, error_code: int) -> int:
        """__vmx_handle_ept_violation(): an address without the shared bit is accessed privately."""
        return error_code | PFERR_PRIVATE_ACCESS if error_code & PFERR_GUEST_ENC_MASK else error_code

    def firmware_pages(self) -> int:
        """TDR, TDCS, each vCPU's TDVPR and TDCX, and the secure EPT."""
        vcpus = sum(len(tdx.tdcx_pages) + (tdx.tdvpr is not None) for tdx in self.vcpus.values())
        return (self.tdr >= 0) + len(self.tdcs_pages) + vcpus + len(self.sept.tables)

    def content_modes(self, private: bool) -> int:
        return encrypted_content_modes(private, final=self.pre_fault_allowed)

    def map(self, fault: PageFault) -> RetPf:
        """A private fault goes into the mirror and the secure EPT."""
        if not fault.private:
            return self.vm.mmu.map(fault)
        return self.sept.map(fault.gfn, fault.pfn)

    def unmap_range(self, start: int, end: int, filter: Filter) -> bool:
        """kvm_tdp_mmu_unmap_gfn_range(): each filter bit has a page table of its own."""
        flush = Filter.SHARED in filter and self.vm.mmu.unmap_range(start, end)
        if Filter.PRIVATE in filter:
            flush |= self.sept.unmap_range(start, end)
        return flush

    def translation(self, frame: int) -> Translation | None:
        if self.is_gfn_alias(frame):
            return self.vm.mmu.walk(frame & ~self.gfn_direct_bits)
        try:
            return self.module.sept_walk(self.module.tds[self.tdr], frame)
        except (EptViolation, PendingPage):
            return None

    def check(self) -> None:
        """The mirror says what the secure EPT says, and every page in it is the guest_memfd's, private, and the TD's."""
        if self.tdr in self.module.tds and not self.vm.vm_bugged:
            self.sept.check(self.module.tds[self.tdr])

    # Running

    @property
    def encrypted_default(self) -> bool:
        return True

    def kick_all(self) -> None:
        """kvm_make_all_cpus_request(KVM_REQ_OUTSIDE_GUEST_MODE): every vCPU has left the guest."""
        for tdx in self.vcpus.values():
            tdx.cpu.kick()

    def pre_run(self, vcpu: Vcpu) -> int:
        """tdx_vcpu_needs_initialization(), tdx_vcpu_load()."""
        tdx = self.vcpus[vcpu]
        if not tdx.initialized or self.state is not TdState.RUNNABLE:
            raise rules.RUN_NOT_INITIALIZED(f"TD state {self.state.name}, {vcpu} initialized: {tdx.initialized}")
        cpu = self.vm.rt.current.cpu
        if tdx.last_cpu != cpu and tdx.tdvpr is not None:
            self.module.vp_flush(tdx.tdvpr)
            tdx.last_cpu = cpu
        return 1

    def handle_exit(self, vcpu: Vcpu, exit_: Exit) -> int | None:
        """tdx_handle_exit()."""
        return handle_exit(self, vcpu, exit_)


_VM_COMMANDS: dict[int, Callable[[TdxVm, kvm_tdx_cmd], None]] = {
    TdxCmd.INIT_VM: td_init,
    TdxCmd.FINALIZE_VM: TdxVm.td_finalize,
}

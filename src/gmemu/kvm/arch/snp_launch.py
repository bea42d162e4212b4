# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SEV_SNP_LAUNCH_START, _UPDATE and _FINISH (arch/x86/kvm/svm/sev.c)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...mm.uaccess import copy_from_user, copy_to_user, read_user
from ...rules import KernelError, MemoryFault
from ...rules import gmem as gmem_rules
from ...rules import snp as rules
from ...uapi.sev import (
    PspStatus,
    SnpPageType,
    kvm_sev_cmd,
    kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
    snp_id_auth,
    snp_id_block,
)
from ..guest_memfd.populate import Source
from .snp_vmsa import build_vmsa

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .snp import SnpVm

__all__ = ["launch_finish", "launch_start", "launch_update"]

INITIAL_VMSA_GFN = 0xFFFFFFFFF000 >> PAGE_SHIFT
DEFAULT_TSC_KHZ = 2_000_000
_POPULATED_TYPES = (
    SnpPageType.NORMAL,
    SnpPageType.ZERO,
    SnpPageType.UNMEASURED,
    SnpPageType.SECRETS,
    SnpPageType.CPUID,
)


def _is_sev_fd(sev: SnpVm, fd: int) -> bool:
    from ..snp_platform import SevDeviceFile

    return isinstance(sev.vm.rt.current.process.files.get(fd), SevDeviceFile)


def _check_sev_fd(sev: SnpVm, fd: int) -> None:
    """__sev_issue_cmd(): commands go through the /dev/sev that user space named.  Raises EBADF."""
    if not _is_sev_fd(sev, fd):
        raise rules.DEVICE_FD(f"fd {fd}")


# START


def launch_start(sev: SnpVm, cmd: kvm_sev_cmd) -> None:
    """snp_launch_start(): a context, the policy, and the ASID bound to it."""
    if not sev.active:
        raise rules.START_TYPE()
    params = copy_from_user(sev.vm.rt.current.mm, kvm_sev_snp_launch_start, cmd.data)
    if sev.snp_context is not None:
        raise rules.START_AGAIN()
    if params.flags:
        raise rules.START_FLAGS(f"flags {params.flags:#x}")
    known, required = sev.vm.profile.snp_policy_bits, sev.vm.profile.snp_policy_required
    if params.policy & ~known:
        raise rules.START_POLICY(f"policy {params.policy:#x}, known {known:#x}")
    if required & ~params.policy:
        raise rules.START_POLICY_REQUIRED(f"policy {params.policy:#x}")
    psp = sev.platform.psp
    sev.snp_context = _context_create(sev, cmd)
    try:
        status = psp.launch_start(
            sev.snp_context,
            params.policy,
            gosvw=params.gosvw,
            desired_tsc_khz=DEFAULT_TSC_KHZ if sev.secure_tsc else 0,
        )
        sev.check_status(cmd, status, "SNP_LAUNCH_START")
        sev.policy, sev.fd = params.policy, cmd.sev_fd
        sev.check_status(cmd, psp.activate(sev.snp_context, sev.asid), "SNP_ACTIVATE")
    except KernelError:
        sev.decommission()
        raise


def _context_create(sev: SnpVm, cmd: kvm_sev_cmd) -> int:
    """snp_context_create(): the page frame of a guest context.  Any failure is ENOTTY."""
    context = sev.platform.alloc_firmware_page()
    if context is None:
        raise rules.START_CONTEXT("no page for it")
    status = sev.platform.psp.gctx_create(context) if _is_sev_fd(sev, cmd.sev_fd) else None
    if status is PspStatus.SUCCESS:
        return context
    sev.platform.free_firmware_page(context)
    if status is None:
        raise rules.START_CONTEXT(f"sev_fd {cmd.sev_fd}")
    cmd.error = int(status)
    raise rules.START_CONTEXT(f"firmware status {status.name}")


# UPDATE


def launch_update(sev: SnpVm, cmd: kvm_sev_cmd) -> None:
    """snp_launch_update(): populate `len` bytes at `gfn_start`, and tell how far it got.

    A call that stops part-way returns success with what is left in the structure; the caller goes on until `len` is 0.
    """
    vm = sev.vm
    mm = vm.rt.current.mm
    if sev.snp_context is None:
        raise rules.UPDATE_CONTEXT()
    params = copy_from_user(mm, kvm_sev_snp_launch_update, cmd.data)
    gup_first = vm.profile.populate == "gup-first"
    if params.len & (PAGE_SIZE - 1) or (gup_first and not params.len):
        raise rules.UPDATE_LENGTH(f"len {params.len:#x}")
    if params.flags:
        raise rules.UPDATE_FLAGS(f"flags {params.flags:#x}")
    if params.type not in _POPULATED_TYPES:
        raise rules.UPDATE_TYPE(f"type {params.type}")
    source = 0 if params.type == SnpPageType.ZERO else params.uaddr
    if gup_first and params.type != SnpPageType.ZERO:
        if not source and not vm.host.design.target_is_source:
            raise rules.UPDATE_NO_SOURCE("uaddr 0")
        if source & (PAGE_SIZE - 1):
            raise rules.UPDATE_SOURCE(f"uaddr {source:#x}")
    with vm.slots_lock:
        slot = vm.find_slot(params.gfn_start)
        if slot is None or not slot.has_gmem:
            raise rules.UPDATE_SLOT(f"gfn {params.gfn_start:#x}")
        populate = _Populate(sev, cmd, SnpPageType(params.type))
        try:
            count = vm.host.design.populate(
                vm,
                params.gfn_start,
                source,
                params.len >> PAGE_SHIFT,
                params.type == SnpPageType.CPUID,
                populate.post_populate,
            )
        except KernelError as error:
            cmd.error = int(populate.fw_error)
            raise rules.UPDATE_FAILED(str(error)) from error
    params.gfn_start += count
    params.len -= count << PAGE_SHIFT
    if source:
        params.uaddr += count << PAGE_SHIFT
    copy_to_user(mm, cmd.data, params)


class _Populate:
    """sev_gmem_post_populate() and what it's told."""

    def __init__(self, sev: SnpVm, cmd: kvm_sev_cmd, page_type: SnpPageType) -> None:
        self.sev, self.cmd, self.page_type = sev, cmd, page_type
        self.fw_error = PspStatus.SUCCESS

    def post_populate(self, gfn: int, pfn: int, count: int, source: Source | None) -> tuple[int, KernelError | None]:
        """Load `count` pages, one after the other as far as anybody can tell: those of a run that can't be refused any more
        than its first was are done together."""
        done = 0
        while done < count:
            n = 1 if not done or self._one_by_one() else count - done
            try:
                n = self._load(gfn + done, pfn + done, n, source and _advance(source, done))
            except KernelError as error:
                return done, error
            done += n
        return done, None

    def _one_by_one(self) -> bool:
        platform = self.sev.platform
        return self.page_type is SnpPageType.CPUID or platform.psp.inject is not None or bool(platform.rmp.in_use)

    def _load(self, gfn: int, pfn: int, count: int, source: Source | None) -> int:
        """Load the pages up to the first that the RMP won't assign: how many.  Raises what went wrong with the first."""
        vm, platform = self.sev.vm, self.sev.platform
        if source is None and self.page_type != SnpPageType.ZERO and not vm.host.design.target_is_source:
            raise gmem_rules.POPULATE_NO_SOURCE(f"gfn {gfn:#x}")
        _, end, entry = platform.rmp.entries.run(pfn)
        vm.rt.reads(("rmp", pfn))
        if entry is not None:
            raise rules.ASSIGNED(f"gfn {gfn:#x}, pfn {pfn:#x}")
        count = min(count, end - pfn)
        if source is not None:
            count = self._copy(pfn, count, source)
        count = platform.rmp_make_private(pfn, gfn, self.sev.asid, immutable=True, count=count)
        error = self._launch_update(gfn, pfn, count)
        if error is not None:
            bugged = self.sev.page_reclaim(pfn)
            if bugged is not None:
                raise bugged from error
            corrected = self.page_type is SnpPageType.CPUID and self.fw_error is PspStatus.INVALID_PARAM
            if corrected and source is not None:
                self._write_back(pfn, source)
            raise error
        return count

    def _launch_update(self, gfn: int, pfn: int, count: int) -> KernelError | None:
        """Have the firmware take the pages: all of them, or the error with which it refuses the only one."""
        if not _is_sev_fd(self.sev, self.cmd.sev_fd):
            return rules.DEVICE_FD(f"fd {self.cmd.sev_fd}")
        assert self.sev.snp_context is not None
        self.fw_error, done = self.sev.platform.psp.launch_update(self.sev.snp_context, pfn, self.page_type, count=count)
        if self.fw_error is not PspStatus.SUCCESS:
            assert count == 1
            status = f"{self.fw_error.name} ({int(self.fw_error):#x})"
            return rules.FIRMWARE(f"SNP_LAUNCH_UPDATE: {status} for gfn {gfn:#x}")
        assert done == count
        return None

    def _copy(self, pfn: int, count: int, source: Source) -> int:
        """Fill the pages from the source; the kernels that read user memory here may be able to fill only some."""
        vm = self.sev.vm
        if source.pfn >= 0:
            vm.host.memory.copy(pfn, source.pfn, count)
            return count
        for i in range(count):
            try:
                page = vm.rt.current.mm.read(source.address + i * PAGE_SIZE, PAGE_SIZE)
            except MemoryFault as fault:
                if i:
                    return i
                raise gmem_rules.POPULATE_SOURCE(str(fault)) from fault
            vm.host.memory.write((pfn + i) << PAGE_SHIFT, page)
        return count

    def _write_back(self, pfn: int, source: Source) -> None:
        """The firmware corrected the CPUID table: let user space see it where it came from."""
        memory = self.sev.vm.host.memory
        if source.pfn >= 0:
            memory.copy(source.pfn, pfn, 1)
            return
        try:
            self.sev.vm.rt.current.mm.write(source.address, memory.read(pfn << PAGE_SHIFT, PAGE_SIZE))
        except MemoryFault:
            return  # KVM only logs it


def _advance(source: Source, pages: int) -> Source:
    if source.pfn >= 0:
        return Source(pfn=source.pfn + pages)
    return Source(address=source.address + pages * PAGE_SIZE)


# FINISH


def launch_finish(sev: SnpVm, cmd: kvm_sev_cmd) -> None:
    """snp_launch_finish(): every vCPU's VMSA is measured and encrypted, then the launch is closed."""
    vm = sev.vm
    mm = vm.rt.current.mm
    if not sev.active:
        raise rules.FINISH_TYPE()
    if sev.snp_context is None:
        raise rules.FINISH_CONTEXT()
    params = copy_from_user(mm, kvm_sev_snp_launch_finish, cmd.data)
    if params.flags:
        raise rules.FINISH_FLAGS(f"flags {params.flags:#x}")
    with ExitStack() as stack:
        for vcpu in vm.vcpus:
            stack.enter_context(vcpu.mutex)
        for vcpu in vm.vcpus:
            _launch_update_vmsa(sev, cmd, vcpu)
    id_block = id_auth = None
    if params.id_block_en:
        id_block = _copy_user_blob(sev, params.id_block_uaddr, snp_id_block.SIZE)
        id_auth = _copy_user_blob(sev, params.id_auth_uaddr, snp_id_auth.SIZE)
    _check_sev_fd(sev, sev.fd)
    status = sev.platform.psp.launch_finish(
        sev.snp_context,
        id_block=id_block,
        id_auth=id_auth,
        auth_key_en=bool(params.id_block_en and params.auth_key_en),
        vcek_disabled=bool(params.vcek_disabled),
        host_data=params.host_data,
    )
    sev.check_status(cmd, status, "SNP_LAUNCH_FINISH")
    sev.pre_fault_allowed = True


def _copy_user_blob(sev: SnpVm, address: int, length: int) -> bytes:
    """psp_copy_user_blob()."""
    if not address:
        raise rules.FINISH_BLOB("address 0")
    return read_user(sev.vm.rt.current.mm, address, length)


def _launch_update_vmsa(sev: SnpVm, cmd: kvm_sev_cmd, vcpu: Vcpu) -> None:
    """snp_launch_update_vmsa() for one vCPU: its registers are the firmware's and the guest's from now on."""
    if vcpu.guest_state_protected or vcpu.debugregs.dr7 & ~0x400:
        raise rules.FINISH_PROTECTED(f"{vcpu}")
    pfn = sev.vmsa_pfns[vcpu]
    sev.vm.host.memory.write(pfn << PAGE_SHIFT, build_vmsa(vcpu, sev.vmsa_features))
    sev.platform.rmp_make_private(pfn, INITIAL_VMSA_GFN, sev.asid, immutable=True)
    assert sev.snp_context is not None
    try:
        _check_sev_fd(sev, cmd.sev_fd)
        status, _ = sev.platform.psp.launch_update(sev.snp_context, pfn, SnpPageType.VMSA)
        sev.check_status(cmd, status, f"SNP_LAUNCH_UPDATE of the VMSA of {vcpu}")
    except KernelError:
        sev.page_reclaim(pfn)
        raise
    vcpu.guest_state_protected = True

# SPDX-License-Identifier: GPL-2.0-or-later
"""A realm's life: created, its RECs made, activated, torn down (Arm CCA series: kvm_create_realm(), kvm_destroy_realm())."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT
from ...hw.rmm.cpu import RecCpu
from ...hw.rmm.rtt import root_tables, start_level
from ...rules import KernelError
from ...rules import cca as rules
from ...uapi.kvm import MpState
from ...uapi.layout import Struct
from ...uapi.rmi import HashAlgorithm, RecFlags, rmi_realm_params, rmi_rec_params
from .arm64_vcpu import PC

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .cca import CcaVm

__all__ = ["activate_realm", "create_realm", "destroy_realm", "need_gic"]


def need_gic(cca: CcaVm) -> None:
    """A realm has an in-kernel GIC, and it's initialised.  Raises EOPNOTSUPP, ENODEV."""
    if cca.vgic is None:
        raise rules.NO_IRQCHIP()
    if not cca.vgic.initialized:
        raise rules.NO_VGIC()


class _Params:
    """A page of the host's with parameters for the RMM to read."""

    def __init__(self, cca: CcaVm, params: Struct) -> None:
        self.memmap = cca.vm.host.memmap
        [(self.pfn, _)] = self.memmap.alloc(1)
        cca.vm.host.memory.host_write(self.pfn << PAGE_SHIFT, params.pack())

    def __enter__(self) -> int:
        return self.pfn

    def __exit__(self, *exc: object) -> None:
        self.memmap.put(self.pfn)


def create_realm(cca: CcaVm) -> None:
    """kvm_create_realm(): RD, root tables, parameters; measured by SHA-256, as KVM always has it.

    Raises ENOMEM, ENXIO; nothing is left then.
    """
    from .cca import CcaState

    vm, platform = cca.vm, cca.platform
    level = start_level(vm.ipa_bits)
    roots = root_tables(vm.ipa_bits, level)
    rd = platform.alloc_granules()
    try:
        root = platform.alloc_granules(roots)
    except KernelError:
        platform.free_granules(rd)
        raise
    vmid = 0
    try:
        vmid = platform.vmid_alloc()
        params = rmi_realm_params(
            s2sz=vm.ipa_bits,
            num_bps=platform.rmm.info.num_bps - 1,
            num_wps=platform.rmm.info.num_wps - 1,
            hash_algo=HashAlgorithm.SHA_256,
            vmid=vmid,
            rtt_base=root << PAGE_SHIFT,
            rtt_level_start=level,
            rtt_num_start=roots,
        )
        with _Params(cca, params) as page:
            platform.check(platform.call(lambda: platform.rmm.realm_create(rd, page)), "RMI_REALM_CREATE")
    except KernelError:
        platform.vmid_free(vmid)
        platform.free_granules(root, roots)
        platform.free_granules(rd)
        raise
    cca.rd, cca.root, cca.roots, cca.vmid, cca.state = rd, root, roots, vmid, CcaState.NEW


def _create_rec(cca: CcaVm, vcpu: Vcpu) -> None:
    """kvm_create_rec(): the REC starts with the vCPU's PC and X0 to X7; only one that isn't off is runnable."""
    platform, state = cca.platform, cca.vcpus[vcpu]
    rec = platform.alloc_granules()
    aux: list[int] = []
    try:
        while len(aux) < platform.rmm.info.rec_aux:
            aux.append(platform.alloc_granules())
        params = rmi_rec_params(
            flags=RecFlags.RUNNABLE if vcpu.mp_state is MpState.RUNNABLE else 0,
            mpidr=state.mpidr,
            pc=state.core[PC],
            gprs=tuple(state.core[:8]),
            num_aux=len(aux),
            aux=tuple(pfn << PAGE_SHIFT for pfn in aux) + (0,) * (16 - len(aux)),
        )
        with _Params(cca, params) as page:
            platform.check(platform.call(lambda: platform.rmm.rec_create(cca.rd, rec, page)), "RMI_REC_CREATE")
    except KernelError:
        for pfn in (rec, *aux):
            platform.free_granules(pfn)
        raise
    cca.recs[vcpu] = rec, aux
    assert isinstance(vcpu.cpu, RecCpu)
    vcpu.cpu.rec = platform.rmm.recs[rec]


def activate_realm(cca: CcaVm) -> None:
    """kvm_activate_realm(): RECs, RIPAS of every slot that has a guest_memfd, activation.  A failure kills the VM.

    Raises EOPNOTSUPP, ENODEV before anything was done; ENOEXEC if a vCPU isn't initialised; ENOMEM, ENXIO, EIO.
    """
    from .cca import CcaState

    need_gic(cca)
    vm, platform = cca.vm, cca.platform
    with vm.slots_lock, cca.config_lock:
        if cca.state is CcaState.ACTIVE:
            return
        try:
            if cca.state is CcaState.NONE:
                create_realm(cca)
            for vcpu in vm.vcpus:
                if not cca.vcpus[vcpu].initialized:
                    from ...rules import arm64 as arm_rules

                    raise arm_rules.NOT_INITIALIZED(f"{vcpu}, and the realm needs a REC for it")
                _create_rec(cca, vcpu)
            for slot in sorted(vm.memslots[0].by_id.values(), key=lambda slot: slot.base_gfn):
                if slot.has_gmem:
                    cca.rtt.init_ripas(slot.base_gfn, slot.end_gfn)
            platform.check(platform.call(lambda: platform.rmm.realm_activate(cca.rd)), "RMI_REALM_ACTIVATE")
        except KernelError:
            vm.vm_dead = True
            raise
        cca.state = CcaState.ACTIVE


def destroy_realm(cca: CcaVm) -> None:
    """kvm_destroy_realm(): nothing runs any more, memory and tables come back, then RECs, then the realm.

    What the RMM keeps is leaked, with a warning.
    """
    from .cca import CcaState

    if cca.state is CcaState.NONE:
        return
    platform, rmm = cca.platform, cca.platform.rmm
    cca.state = CcaState.DYING
    platform.call(lambda: rmm.realm_terminate(cca.rd))
    with cca.vm.mmu_lock.exclusive:
        cca.rtt.unmap_protected(0, cca.protected_end >> PAGE_SHIFT)
        _unmap_shared(cca)
        cca.rtt.destroy_tables()
    for rec, aux in cca.recs.values():
        result = platform.call(lambda at=rec: rmm.rec_destroy(at))  # type: ignore[misc]
        if result.status:
            platform.warn("RMI_REC_DESTROY failed")
        for pfn in (rec, *aux):
            platform.free_granules(pfn)
    cca.recs.clear()
    if platform.call(lambda: rmm.realm_destroy(cca.rd)).status:
        platform.warn("RMI_REALM_DESTROY failed")
    platform.free_granules(cca.root, cca.roots)
    platform.free_granules(cca.rd)
    platform.vmid_free(cca.vmid)
    cca.state = CcaState.DEAD


def _unmap_shared(cca: CcaVm) -> None:
    """Shared mappings that are left: KVM's own account of them went with the VM's memory."""
    rmm, bit = cca.platform.rmm, cca.protected_end >> PAGE_SHIFT
    for start, end, _ in list(rmm.realms[cca.rd].rtt.entries.runs(bit, 2 * bit)):
        for frame in range(start, end):
            cca.platform.call(lambda at=frame: rmm.rtt_unprot_unmap(cca.rd, at << PAGE_SHIFT, 3))  # type: ignore[misc]

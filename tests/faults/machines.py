# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest of each kind on a host with orders, ready for whatever is to go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gmemu import Exit, ExitReason, Kvm, Vcpu, Vm, VmType
from gmemu.api.arm64 import init_vcpu
from gmemu.api.sev import SnpError
from gmemu.api.tdx import TdxError
from gmemu.check import check_host
from gmemu.faults import Faults
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.kvm.arch.cca import CcaVm
from gmemu.kvm.arch.snp import SnpVm
from gmemu.kvm.arch.tdx import TdxVm
from gmemu.rules import KernelError
from gmemu.sync import Lockdep
from gmemu.uapi.rmi import GranuleState
from gmemu.uapi.sev import PspStatus, SnpPageType, kvm_sev_snp_launch_update
from gmemu.uapi.tdx import TdAttributes, kvm_tdx_init_mem_region
from gmemu.vmm import Backoff, Vmm

PAGE = 4096
GPA = 0x40000000
GFN = GPA // PAGE
PAGES = 16


class Machine:
    """`block` is the guest's memory, PAGES pages at GPA, the VMM's until it's converted.  In a ``with`` statement: what must
    hold is looked over at the end, and after everything was closed, unless the test set `lost`: then something is, as KVM
    has it.
    """

    platform = "amd"
    vm_type = VmType.SW_PROTECTED

    def __init__(
        self,
        *orders: str,
        profile: str = "inplace-v13",
        pages: int = PAGES,
        hypercalls: bool = True,
        vcpus: int = 1,
    ) -> None:
        self.faults = Faults(*orders)
        self.kvm = Kvm.open(profile, platform=self.platform, faults=self.faults)
        self.host = self.kvm.host
        self.vm: Vm = self.kvm.create_vm(self.vm_type)
        self.lost = False
        self.init()
        if hypercalls:
            self.vm.enable_map_gpa_range()
        self.vmm = Vmm(self.kvm, self.vm, Backoff.none())
        self.vcpus = [self.make_vcpu(i) for i in range(vcpus)]
        self.add_memory(pages)

    def add_memory(self, pages: int) -> None:
        self.block = self.vmm.add_memory(GPA, pages * PAGE)

    def close_memory(self) -> None:
        """What the guest's memory was made of."""

    def init(self) -> None:
        """What comes before the first vCPU."""

    def make_vcpu(self, number: int) -> Vcpu:
        return self.vm.create_vcpu(number)

    @property
    def vcpu(self) -> Vcpu:
        return self.vcpus[0]

    @property
    def arch(self) -> Any:
        return self.host.vms[0].arch

    @property
    def dead(self) -> bool:
        """KVM_BUG() was met."""
        return self.host.vms[0].vm_bugged

    @property
    def leaked(self) -> int:
        """Pages that are never freed."""
        return sum(end - start for start, end, _ in self.host.memmap.leaked.runs())

    def pfn(self, page: int) -> int:
        inode = next(inode for inode in self.host.gmem_inodes if inode.size == self.block.size)
        pfn = inode.mapping.pfn(page)
        assert pfn is not None
        return pfn

    def fill(self, page: int, pages: int = 1) -> None:
        """The VMM writes to its view of the memory."""
        self.block.buffer[page * PAGE : (page + pages) * PAGE] = b"contents" * (pages * PAGE // 8)

    def convert(self, page: int, pages: int = 1, *, private: bool = True) -> None:
        self.vmm.convert(GPA + page * PAGE, pages * PAGE, private=private)

    def run(self, guest: Callable[[Any], object] | None = None) -> Exit:
        """With the loop of the reference VMM."""
        return self.vmm.run(self.vcpu, guest)

    def warnings(self) -> list[str]:
        """What the kernel would have put into its log."""
        return []

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            return
        self.faults.cancel()
        self.faults.release()
        check_host(self.host)
        for vcpu in self.vcpus:
            vcpu.close()
        self.vmm.close()
        self.vm.close()
        self.close_memory()
        if not self.lost:
            self.host.check_quiet()
        lockdep = self.host.rt.lockdep  # type: ignore[attr-defined]
        assert isinstance(lockdep, Lockdep)
        assert lockdep.cycles() == [], lockdep.report()
        self.kvm.close()


class Reply(NamedTuple):
    """What LAUNCH_UPDATE came to: rule ("": done), errno, the firmware's status, bytes left to do."""

    rule: str
    errno: int
    status: PspStatus
    left: int


class SnpMachine(Machine):
    """An SNP guest after LAUNCH_START."""

    vm_type = VmType.SNP

    def init(self) -> None:
        self.vm.snp.init2()

    def __init__(self, *orders: str, **options: Any) -> None:
        super().__init__(*orders, **options)
        self.vm.snp.launch_start()

    @property
    def arch(self) -> SnpVm:
        arch = super().arch
        assert isinstance(arch, SnpVm)
        return arch

    def update(self, page: int, pages: int = 1, type: int = SnpPageType.NORMAL, source: int = 0) -> Reply:
        """LAUNCH_UPDATE, once."""
        try:
            left: kvm_sev_snp_launch_update = self.vm.snp.launch_update_once(GPA + page * PAGE, pages * PAGE, type, source)
        except SnpError as error:
            return Reply(error.rule.id, error.rule.errno, error.fw_error, pages * PAGE)
        return Reply("", 0, PspStatus.SUCCESS, left.len)

    def finish(self) -> Any:
        """LAUNCH_FINISH."""
        self.vm.snp.launch_finish()
        return self

    @property
    def digest(self) -> bytes:
        """The launch digest so far (simulated)."""
        [context] = self.host.snp.psp.contexts.values()
        return context.ld.value

    def state(self, page: int) -> RmpState:
        return self.host.snp.rmp.state(self.pfn(page))

    def warnings(self) -> list[str]:
        return self.host.snp.warnings


class TdxMachine(Machine):
    """A TD with a vCPU, before its first page."""

    platform = "intel"
    vm_type = VmType.TDX

    def __init__(self, *orders: str, attributes: int = 0, **options: Any) -> None:
        self.attributes = attributes
        super().__init__(*orders, **options)

    def init(self) -> None:
        self.vm.tdx.init_vm(self.attributes)

    def make_vcpu(self, number: int) -> Vcpu:
        vcpu = super().make_vcpu(number)
        vcpu.tdx_init()
        return vcpu

    @property
    def arch(self) -> TdxVm:
        arch = super().arch
        assert isinstance(arch, TdxVm)
        return arch

    def add(self, page: int, pages: int = 1, source: int = 0) -> tuple[str, int, kvm_tdx_init_mem_region | None]:
        """INIT_MEM_REGION, once: rule, errno, and what is left."""
        if not source and not self.host.profile.in_place:
            source = self.block.buffer.address + page * PAGE
        try:
            self.vm.tdx.init_mem_region(self.vcpu, GPA + page * PAGE, pages * PAGE, source)
        except TdxError as error:
            return error.rule.id, error.rule.errno, error.left
        return "", 0, None

    def boot(self, pages: int = 4) -> Any:
        """A page of contents, the first so many pages private, FINALIZE."""
        self.fill(0)
        self.convert(0, pages)
        assert self.add(0) == ("", 0, None)
        self.vm.tdx.finalize_vm()
        return self

    def warnings(self) -> list[str]:
        return self.host.tdx.warnings


class PkvmMachine(Machine):
    """A protected VM of pKVM.  Its memory is anonymous: `memory`, PAGES pages at GPA."""

    platform = "pkvm"
    vm_type = VmType.ARM_PROTECTED

    def __init__(self, *orders: str) -> None:
        super().__init__(*orders, profile="linux-7.3", hypercalls=False)

    def make_vcpu(self, number: int) -> Vcpu:
        vcpu = super().make_vcpu(number)
        init_vcpu(self.vm, vcpu)
        return vcpu

    def add_memory(self, pages: int) -> None:
        self.memory = self.kvm.anonymous(pages * PAGE)
        self.vm.set_user_memory_region2(0, GPA, pages * PAGE, userspace_addr=self.memory.address)

    def close_memory(self) -> None:
        self.memory.close()


SEPT_VE_DISABLE = int(TdAttributes.SEPT_VE_DISABLE)
HLT = ExitReason.HLT


class RealmMachine(Machine):
    """A realm with a vCPU, before its first page; contents come from `source`."""

    platform = "arm"
    vm_type = VmType.ARM_REALM

    def __init__(self, *orders: str, **options: Any) -> None:
        super().__init__(*orders, hypercalls=False, **options)
        self.source = self.kvm.anonymous(PAGES * PAGE)

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.source.close()
        super().__exit__(kind, *exc)

    def init(self) -> None:
        self.vm.cca.create_vgic()

    def make_vcpu(self, number: int) -> Vcpu:
        return self.vm.cca.create_vcpu(number, power_off=number > 0)

    @property
    def arch(self) -> CcaVm:
        arch = super().arch
        assert isinstance(arch, CcaVm)
        return arch

    def populate(self, page: int, pages: int = 1) -> tuple[str, int, int]:
        """RMI_POPULATE, once: rule, errno, and how many bytes are left."""
        try:
            left = self.vm.cca.populate(GPA + page * PAGE, pages * PAGE, self.source.address)
        except KernelError as error:
            return error.rule.id, error.rule.errno, pages * PAGE
        return "", 0, left.size

    def boot(self, pages: int = 4) -> Any:
        """A page of contents, the first so many pages private, the realm active."""
        self.source[:5] = b"image"
        self.convert(0, pages)
        assert self.populate(0) == ("", 0, 0)
        assert self.run(lambda cpu: None).reason is HLT
        return self

    @property
    def rim(self) -> bytes:
        """The RIM so far (simulated)."""
        return self.host.rmm.rmm.realms[self.arch.rd].measurement

    def granule(self, page: int) -> GranuleState:
        return self.host.rmm.rmm.granules.state(self.pfn(page))

    def warnings(self) -> list[str]:
        return self.host.rmm.warnings

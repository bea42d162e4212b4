# SPDX-License-Identifier: GPL-2.0-or-later
"""The worlds that scenarios start from: a VM of some type with a few pages of guest_memfd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ..api.arm64 import init_vcpu
from ..explore.scenario import PAGE, Scenario
from ..kvm.arch.snp import SnpVm
from ..kvm.guest_memfd.large import LargeFolioInode
from ..uapi.kvm import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_PRIVATE,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    GUEST_MEMFD_FLAG_SUPPORT_SHARED,
    GUESTMEM_HUGETLB_FLAG_2MB,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    ExitReason,
    VmType,
)
from ..uapi.sev import SnpPageType

if TYPE_CHECKING:
    from ..api import Vm
    from ..hw.guest_cpu import GuestCpu
    from ..hw.tdx.guest_cpu import TdGuestCpu
    from ..kvm.arch.pkvm_gmem import PkvmGmemVm
    from ..kvm.arch.tdx import TdxVm
    from ..kvm.guest_memfd.inode import GmemInode
    from ..kvm.vm import Vm as KvmVm

__all__ = [
    "BUSY",
    "LARGE_PRIVATE",
    "PAGE",
    "PRIVATE",
    "SHARED",
    "SnpFinal",
    "OneFolio",
    "OnePage",
    "ProtectedPage",
    "RealmLaunch",
    "RealmRunning",
    "SnpLaunch",
    "TdxLaunch",
    "TdxRunning",
]

SHARED = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
LARGE_PRIVATE = (
    GUEST_MEMFD_FLAG_SUPPORT_SHARED | GUEST_MEMFD_FLAG_INIT_PRIVATE | GUEST_MEMFD_FLAG_HUGETLB | GUESTMEM_HUGETLB_FLAG_2MB
)
"""of the RFC of May 2025"""
BUSY = "gmem.attributes.busy"
"""The rule by which a conversion finds that somebody holds a page."""
PRIVATE = "gmem.fault.private"
"""The rule by which the host's access to a private page fails."""


class GuestMemory(Scenario):
    """What the worlds have in common: `vm` with `pages` of `gmem` bound at gpa 0, mapped by the host as `memory`."""

    pages = 1
    flags = SHARED
    vm: Vm

    def make_memory(self) -> None:
        """guest_memfd, the mapping, and slot 0."""
        self.gmem = self.vm.create_guest_memfd(self.pages * PAGE, self.flags)
        self.memory = self.gmem.mmap()
        self.bind()

    def bind(self) -> None:
        """Slot 0: all of the file, at gpa 0."""
        self.vm.set_user_memory_region2(0, 0, self.pages * PAGE, gmem=self.gmem, userspace_addr=self.memory.address)

    def tasks(self) -> None:
        """Add the tasks."""
        raise NotImplementedError

    def convert(self, page: int = 0, pages: int = 1) -> str:
        """The conversion to private: whether it's done, or only begun (in designs with a third state)."""
        self.gmem.make_private(page * PAGE, pages * PAGE)
        return "converted" if self.inode.attributes.covers(page, page + pages, KVM_MEMORY_ATTRIBUTE_PRIVATE) else "pending"

    def share(self, page: int = 0, pages: int = 1) -> str:
        """The conversion to shared."""
        self.gmem.make_shared(page * PAGE, pages * PAGE)
        return "shared"

    def let_go(self, pfn: int) -> None:
        """unpin_user_page(), as a system call does it."""
        previous = self.runtime.enter(self.host.init.task)
        self.host.memmap.unpin(pfn)
        self.runtime.leave(previous)

    @property
    def kvm_vm(self) -> KvmVm:
        """The kernel's struct kvm."""
        return self.host.vms[0]

    @property
    def inode(self) -> GmemInode:
        """The kernel's inode of `gmem`."""
        return next(iter(self.host.gmem_inodes))

    def pfn(self, page: int = 0) -> int:
        """The page frame behind a file page that has one."""
        pfn = self.inode.mapping.pfn(page)
        assert pfn is not None, f"file page {page:#x} has no memory"
        return pfn


class OnePage(GuestMemory):
    """A SW_PROTECTED VM with one page of guest_memfd, shared at first."""

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.SW_PROTECTED)
        self.make_memory()
        self.tasks()


class OneFolio(OnePage):
    """A SW_PROTECTED VM of the RFC of May 2025, whose memory is one large folio: 2 MiB, private and allocated."""

    profile = "rfc-2025-05"
    pages = 512
    flags = LARGE_PRIVATE

    @property
    def is_large(self) -> bool:
        """Whether the folio is in one piece."""
        assert isinstance(self.inode, LargeFolioInode)
        return bool(self.inode.large[0])


class ProtectedPage(GuestMemory):
    """A protected VM of pKVM with one page of guest_memfd, which its guest has written `CONTENTS` to and shared."""

    platform = "pkvm"
    profile = "inplace-v13-pkvm"
    CONTENTS = b"of guest"

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.ARM_PROTECTED)
        self.make_memory()
        self.vcpu = self.vm.create_vcpu()
        init_vcpu(self.vm, self.vcpu)
        exit_ = self.vcpu.run(self.share_it)
        if exit_.reason is ExitReason.MEMORY_FAULT:  # of a design in which user space converts
            self.convert(0)
            self.vcpu.run()
        self.host.lru.lru_add_drain_all()
        self.tasks()

    def share_it(self, cpu: GuestCpu) -> None:
        """The guest writes to its page and shares it."""
        cpu.store(0, self.CONTENTS)
        cpu.convert(0, PAGE, private=False)

    @property
    def pkvm(self) -> PkvmGmemVm:
        """The kernel's half of the VM."""
        arch: Any = self.kvm_vm.arch
        return cast("PkvmGmemVm", arch)


class SnpLaunch(GuestMemory):
    """An SNP VM in launch; page 0 is private and to be populated, the others are shared."""

    pages = 2

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.SNP)
        self.vm.snp.init2()
        self.make_memory()
        self.vm.snp.launch_start()
        self.tasks()

    def populate(self, page: int = 0, source: int = 0, page_type: SnpPageType = SnpPageType.NORMAL) -> str:
        """KVM_SEV_SNP_LAUNCH_UPDATE of one page from user address `source` (0: in place)."""
        self.vm.snp.launch_update(page * PAGE, PAGE, page_type, source)
        return "populated"

    def guest_sees(self, page: int = 0, length: int = 8) -> bytes:
        """The first bytes of a page as the guest would read them."""
        return self.host.memory.read(self.pfn(page) * PAGE, length, self.host.snp.psp.keys[self.sev.asid])

    @property
    def sev(self) -> SnpVm:
        """The kernel's struct kvm_sev_info."""
        arch = self.kvm_vm.arch
        assert isinstance(arch, SnpVm)
        return arch


class SnpFinal(SnpLaunch):
    """An SNP VM whose launch is final, with two vCPUs."""

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.SNP)
        self.vm.snp.init2()
        self.make_memory()
        self.vm.snp.launch_start()
        self.vcpus = [self.vm.create_vcpu(n) for n in range(2)]
        self.vm.snp.launch_finish()
        self.tasks()


class TdxLaunch(GuestMemory):
    """A TD that isn't final, with `vcpus` vCPUs; its pages are shared."""

    platform = "intel"
    pages = 2
    nr_vcpus = 1

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.TDX)
        self.vm.tdx.init_vm()
        self.vcpus = [self.vm.create_vcpu(n) for n in range(self.nr_vcpus)]
        for vcpu in self.vcpus:
            vcpu.tdx_init()
        self.make_memory()
        self.tasks()

    def populate(self, page: int = 0, source: int = 0, pages: int = 1) -> str:
        """KVM_TDX_INIT_MEM_REGION, measured, from user address `source` (0: in place)."""
        self.vm.tdx.init_mem_region(self.vcpus[0], page * PAGE, pages * PAGE, source)
        return "populated"

    @property
    def td(self) -> TdxVm:
        """The kernel's struct kvm_tdx."""
        arch: Any = self.kvm_vm.arch
        return cast("TdxVm", arch)


class TdxRunning(TdxLaunch):
    """A TD that is final; page 0 is private, in the secure EPT and accepted, and holds `CONTENTS`."""

    CONTENTS = b"of guest"

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.TDX)
        self.vm.tdx.init_vm()
        self.vcpus = [self.vm.create_vcpu(n) for n in range(self.nr_vcpus)]
        for vcpu in self.vcpus:
            vcpu.tdx_init()
        self.make_memory()
        self.vm.tdx.finalize_vm()
        self.convert(0)
        self.vcpus[0].run(self.begin)
        self.tasks()

    def begin(self, cpu: TdGuestCpu) -> None:
        """The guest accepts page 0 and writes to it."""
        cpu.accept(0, PAGE)
        cpu.store(0, self.CONTENTS)


class RealmLaunch(GuestMemory):
    """A realm that isn't active; its pages are shared.  Contents are populated from other memory, `contents`."""

    platform = "arm"
    pages = 2

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.ARM_REALM)
        self.vcpu = self.vm.cca.create_vcpu()
        self.vm.cca.create_vgic()
        self.contents = self.kvm.anonymous(PAGE)
        self.make_memory()
        self.tasks()

    def populate(self, page: int = 0) -> str:
        """KVM_ARM_RMI_POPULATE of one page, measured."""
        self.vm.cca.populate(page * PAGE, PAGE, self.contents.address)
        return "populated"


class RealmRunning(RealmLaunch):
    """A realm that is active, with two vCPUs; page 0 holds what was populated, the others are shared."""

    def set_up(self) -> None:
        self.vm = self.kvm.create_vm(VmType.ARM_REALM)
        self.vcpus = [self.vm.cca.create_vcpu(n) for n in range(2)]
        self.vm.cca.create_vgic()
        self.contents = self.kvm.anonymous(PAGE)
        self.make_memory()
        self.convert(0)
        self.populate(0)
        for vcpu in self.vcpus:
            vcpu.run(lambda cpu: None)
        self.tasks()

    def ripas(self, page: int) -> str:
        """The RIPAS of a page."""
        arch: Any = self.kvm_vm.arch
        name: str = arch.platform.rmm.realms[arch.rd].rtt.entry(page).ripas.name
        return name

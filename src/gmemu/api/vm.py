# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ..uapi.kvm import (
    KVM_CAP_GMEM_CONVERSION,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_GUEST_MEMFD,
    KVM_CREATE_VCPU,
    KVM_ENABLE_CAP,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_SET_MEMORY_ATTRIBUTES,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    Cap,
    VmType,
    kvm_create_guest_memfd,
    kvm_enable_cap,
    kvm_memory_attributes,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
)
from .descriptor import Descriptor
from .guest_memfd import GuestMemfd
from .vcpu import Vcpu

if TYPE_CHECKING:
    from ..accounting import MemoryReport
    from ..syscalls.door import Door
    from .cca import Cca
    from .sev import Snp
    from .tdx import Tdx

__all__ = ["Vm"]


class Vm(Descriptor):
    """A VM.  Addresses and sizes are bytes; `gpa` is a guest-physical address."""

    def __init__(self, door: Door, fd: int, vm_type: VmType, vcpu_mmap_size: int) -> None:
        super().__init__(door, fd)
        self.vm_type, self._vcpu_mmap_size = vm_type, vcpu_mmap_size
        self._snp: Snp | None = None
        self._tdx: Tdx | None = None
        self._cca: Cca | None = None

    def check_extension(self, cap: Cap | int) -> int:
        """KVM_CHECK_EXTENSION: 0 if the VM hasn't it."""
        return self.ioctl(KVM_CHECK_EXTENSION, int(cap))

    def enable_cap(self, cap: Cap | int, *args: int) -> None:
        """KVM_ENABLE_CAP."""
        padded = (*args, 0, 0, 0, 0)[:4]
        self.ioctl(KVM_ENABLE_CAP, bytearray(kvm_enable_cap(cap=int(cap), args=padded).pack()))

    def enable_map_gpa_range(self) -> None:
        """Let the guest's KVM_HC_MAP_GPA_RANGE come out as KVM_EXIT_HYPERCALL."""
        self.enable_cap(Cap.EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)

    def create_guest_memfd(self, size: int, flags: int = 0) -> GuestMemfd:
        """KVM_CREATE_GUEST_MEMFD.  Raises EINVAL, EMFILE, ENOMEM."""
        args = kvm_create_guest_memfd(size=size & (1 << 64) - 1, flags=flags)
        fd = self.ioctl(KVM_CREATE_GUEST_MEMFD, bytearray(args.pack()))
        return GuestMemfd(self.door, fd, size, convert_ioctls=self._convert_ioctls)

    @cached_property
    def _convert_ioctls(self) -> bool:
        """The kernel is one of the RFC of May 2025."""
        return bool(self.check_extension(KVM_CAP_GMEM_CONVERSION))

    def set_user_memory_region2(
        self,
        slot: int,
        gpa: int,
        size: int,
        *,
        userspace_addr: int = 0,
        gmem: GuestMemfd | int | None = None,
        offset: int = 0,
        flags: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2.  With `gmem` the slot has KVM_MEM_GUEST_MEMFD and starts at `offset` in the file."""
        if gmem is not None:
            flags |= KVM_MEM_GUEST_MEMFD
        fd = gmem.fd if isinstance(gmem, GuestMemfd) else gmem or 0
        region = kvm_userspace_memory_region2(
            slot=slot,
            flags=flags,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=userspace_addr,
            guest_memfd_offset=offset,
            guest_memfd=fd & 0xFFFFFFFF,
        )
        self.ioctl(KVM_SET_USER_MEMORY_REGION2, bytearray(region.pack()))

    def set_user_memory_region(self, slot: int, gpa: int, size: int, userspace_addr: int, flags: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION, which knows nothing of guest_memfd."""
        region = kvm_userspace_memory_region(
            slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size, userspace_addr=userspace_addr
        )
        self.ioctl(KVM_SET_USER_MEMORY_REGION, bytearray(region.pack()))

    def delete_slot(self, slot: int) -> None:
        """Delete a memslot."""
        self.set_user_memory_region2(slot, 0, 0)

    def set_memory_attributes(self, gpa: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES, on the VM: two-pool kernels."""
        args = kvm_memory_attributes(address=gpa, size=size, attributes=attributes)
        self.ioctl(KVM_SET_MEMORY_ATTRIBUTES, bytearray(args.pack()))

    def make_private(self, gpa: int, size: int) -> None:
        """`set_memory_attributes` with KVM_MEMORY_ATTRIBUTE_PRIVATE."""
        self.set_memory_attributes(gpa, size, KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def make_shared(self, gpa: int, size: int) -> None:
        """`set_memory_attributes` with 0."""
        self.set_memory_attributes(gpa, size, 0)

    def create_vcpu(self, id: int = 0) -> Vcpu:
        """KVM_CREATE_VCPU.  Raises EINVAL, EEXIST."""
        return Vcpu(self.door, self.ioctl(KVM_CREATE_VCPU, id), self._vcpu_mmap_size)

    def memory_report(self) -> MemoryReport:
        """Where the VM's memory is, in bytes; only of an emulated VM."""
        from ..accounting import memory_report
        from ..kvm.vm import VmFile
        from ..syscalls.emulated import EmulatedDoor

        if not isinstance(self.door, EmulatedDoor):
            raise AttributeError("a real kernel doesn't tell where a VM's memory is")
        file = self.door.process.file(self.fd)
        assert isinstance(file, VmFile)
        return memory_report(file.vm)

    @property
    def snp(self) -> Snp:
        """The KVM_SEV_SNP_* commands of an SNP VM."""
        if self._snp is None:
            from .sev import Snp

            self._snp = Snp(self)
        return self._snp

    @property
    def tdx(self) -> Tdx:
        """The KVM_TDX_* commands of a TDX VM and its vCPUs."""
        if self._tdx is None:
            from .tdx import Tdx

            self._tdx = Tdx(self)
        return self._tdx

    @property
    def cca(self) -> Cca:
        """What a realm has beside what every arm64 VM has."""
        if self._cca is None:
            from .cca import Cca

            self._cca = Cca(self)
        return self._cca

    def close(self) -> None:
        """Close the descriptor, and what its platform's commands needed."""
        if self._cca is not None:
            self._cca.close()
        if self._snp is not None:
            self._snp.close()
        if self._tdx is not None:
            self._tdx.close()
        super().close()

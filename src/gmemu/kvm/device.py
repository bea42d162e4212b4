# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm (virt/kvm/kvm_main.c: kvm_dev_ioctl)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..mm.file import File, Inode
from ..mm.uaccess import UserPointer
from ..rules import KernelError
from ..rules import kvm as rules
from ..uapi.kvm import (
    KVM_API_VERSION,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_VCPU_MMAP_SIZE,
    Cap,
    VmType,
)
from ..uapi.kvm_arm64 import KVM_VM_TYPE_ARM_IPA_SIZE_MASK
from .vm import Vm, VmFile

if TYPE_CHECKING:
    from ..mm.process import Process
    from .host import Host

__all__ = ["VCPU_MMAP_SIZE", "KvmDeviceFile"]

VCPU_MMAP_SIZE = 3 * 4096
"""kvm_run, the pio page, the coalesced MMIO ring."""

ARM64_MIN_PARANGE_BITS = 32

S_IFCHR = 0o020000


class KvmDeviceFile(File):
    """An open /dev/kvm."""

    name = "/dev/kvm"
    noexec = False

    def __init__(self, host: Host) -> None:
        super().__init__(Inode(S_IFCHR | 0o660))
        self.host = host

    def pread(self, length: int, offset: int) -> bytes:
        """A file opened by its path has positions, but there is nothing to read."""
        return self.read(length)

    def pwrite(self, data: bytes, offset: int) -> int:
        """Nor to write."""
        return self.write(data)

    def ioctl(self, request: int, arg: UserPointer) -> int:
        """kvm_dev_ioctl()."""
        if request in (KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE):
            if arg != 0:
                raise rules.DEVICE_ARG(f"{arg!r}")
            return KVM_API_VERSION if request == KVM_GET_API_VERSION else VCPU_MMAP_SIZE
        if request == KVM_CHECK_EXTENSION:
            if arg == Cap.VM_TYPES:
                return self.host.vm_types_mask
            caps = self.host.profile.caps.get(int(arg)) if isinstance(arg, int) else None
            return caps.device if caps else 0
        if request == KVM_CREATE_VM:
            return self._create_vm(arg)
        raise rules.DEVICE_IOCTL(f"{request:#x}")

    def _create_vm(self, arg: UserPointer) -> int:
        """kvm_dev_ioctl_create_vm(); the descriptor is close-on-exec."""
        process: Process = self.host.rt.current.process
        fd = process.get_unused_fd()
        try:
            vm = self._new_vm(arg)
        except KernelError:
            process.put_unused_fd(fd)
            raise
        process.fd_install(fd, VmFile(vm))
        return fd

    def _new_vm(self, arg: UserPointer) -> Vm:
        """kvm_create_vm(); on arm64 kvm_init_ipa_range() reads the size of the address space out of the type."""
        if not isinstance(arg, int):
            raise rules.VM_TYPE(f"type {arg!r}")
        vm_type, ipa_bits, limit = arg, 0, 0
        if self.host.platform == "arm":
            vm_type, ipa_bits = arg & ~KVM_VM_TYPE_ARM_IPA_SIZE_MASK, arg & KVM_VM_TYPE_ARM_IPA_SIZE_MASK
            limit = self.host.profile.caps[Cap.ARM_VM_IPA_SIZE].device
        if vm_type not in self.host.vm_types:
            raise rules.VM_TYPE(f"type {arg:#x}; there are {', '.join(t.name for t in self.host.vm_types)}")
        if ipa_bits and not ARM64_MIN_PARANGE_BITS <= ipa_bits <= limit:
            raise rules.VM_IPA_BITS(f"{ipa_bits} bits, limit {limit}")
        self.host.allocate("kvm")
        return Vm(self.host, VmType(vm_type), ipa_bits)

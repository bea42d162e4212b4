# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm (virt/kvm/kvm_main.c: kvm_dev_ioctl)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..mm.file import File, Inode
from ..mm.uaccess import UserPointer, copy_from_user, copy_to_user, read_user, write_user
from ..rules import KernelError
from ..rules import kvm as rules
from ..uapi.kvm import (
    KVM_API_VERSION,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_EMULATED_CPUID,
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSRS,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_X86_GET_MCE_CAP_SUPPORTED,
    Cap,
    VmType,
)
from ..uapi.kvm_arm64 import KVM_VM_TYPE_ARM_IPA_SIZE_MASK
from ..uapi.kvm_x86 import kvm_msr_entry, kvm_msr_list, kvm_msrs
from .mce import get_mce_cap_supported
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
    positioned = True

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
        handler = _X86_IOCTLS.get(request) if self.host.platform != "arm" else None
        if handler is not None:
            return handler(self.host, arg)
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
        if self.host.is_arm64:
            vm_type, ipa_bits = arg & ~KVM_VM_TYPE_ARM_IPA_SIZE_MASK, arg & KVM_VM_TYPE_ARM_IPA_SIZE_MASK
            limit = self.host.profile.caps[Cap.ARM_VM_IPA_SIZE].device
        if vm_type not in self.host.vm_types:
            raise rules.VM_TYPE(f"type {arg:#x}; there are {', '.join(t.name for t in self.host.vm_types)}")
        if ipa_bits and not ARM64_MIN_PARANGE_BITS <= ipa_bits <= limit:
            raise rules.VM_IPA_BITS(f"{ipa_bits} bits, limit {limit}")
        self.host.allocate("kvm")
        return Vm(self.host, VmType(vm_type), ipa_bits)


def _index_list(host: Host, arg: UserPointer, indices: list[int]) -> int:
    """KVM_GET_MSR_INDEX_LIST and its like: the number is told even where there isn't room for all."""
    mm = host.rt.current.mm
    room = copy_from_user(mm, kvm_msr_list, arg).nmsrs
    copy_to_user(mm, arg, kvm_msr_list(nmsrs=len(indices)))
    if room < len(indices):
        raise rules.MSR_LIST_ROOM(f"room for {room}, there are {len(indices)}")
    data = b"".join(index.to_bytes(4, "little") for index in indices)
    if isinstance(arg, int):
        write_user(mm, arg + kvm_msr_list.SIZE, data)
    else:
        arg[kvm_msr_list.SIZE : kvm_msr_list.SIZE + len(data)] = data
    return 0


def _get_supported_cpuid(host: Host, arg: UserPointer) -> int:
    from .cpuid import get_supported_cpuid

    return get_supported_cpuid(host, arg)


def _get_emulated_cpuid(host: Host, arg: UserPointer) -> int:
    from .cpuid import get_emulated_cpuid

    return get_emulated_cpuid(host, arg)


def _msr_indices(host: Host, arg: UserPointer) -> int:
    from .msr import saved_indices

    return _index_list(host, arg, saved_indices())


def _feature_indices(host: Host, arg: UserPointer) -> int:
    from .msr import FEATURE_MSRS

    return _index_list(host, arg, list(FEATURE_MSRS))


def _get_feature_msrs(host: Host, arg: UserPointer) -> int:
    """msr_io() on /dev/kvm: how many feature MSRs were read."""
    from .msr import feature_msr

    mm = host.rt.current.mm
    head = copy_from_user(mm, kvm_msrs, arg)
    if head.nmsrs >= 256:
        raise rules.MSRS_MANY(f"{head.nmsrs} MSRs")
    size = kvm_msr_entry.SIZE
    for i in range(head.nmsrs):
        at = kvm_msrs.SIZE + i * size
        raw = read_user(mm, arg + at, size) if isinstance(arg, int) else bytes(arg[at : at + size])
        entry = kvm_msr_entry.unpack_from(raw)
        value = feature_msr(entry.index)
        if value is None:
            return i
        entry.data = value
        if isinstance(arg, int):
            write_user(mm, arg + at, entry.pack())
        else:
            entry.pack_into(arg, at)
    return head.nmsrs


_X86_IOCTLS: dict[int, Callable[[Host, UserPointer], int]] = {
    KVM_GET_SUPPORTED_CPUID: _get_supported_cpuid,
    KVM_GET_EMULATED_CPUID: _get_emulated_cpuid,
    KVM_GET_MSR_INDEX_LIST: _msr_indices,
    KVM_GET_MSR_FEATURE_INDEX_LIST: _feature_indices,
    KVM_GET_MSRS: _get_feature_msrs,
    KVM_X86_GET_MCE_CAP_SUPPORTED: get_mce_cap_supported,
}

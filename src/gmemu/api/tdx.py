# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_MEMORY_ENCRYPT_OP for a TDX VM and its vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..rules import KernelError
from ..uapi.kvm import KVM_MEMORY_ENCRYPT_OP, KVM_SET_CPUID2
from ..uapi.kvm_x86 import kvm_cpuid2, kvm_cpuid_entry2
from ..uapi.mman import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from ..uapi.tdx import (
    KVM_TDX_MEASURE_MEMORY_REGION,
    TdxCmd,
    kvm_tdx_capabilities,
    kvm_tdx_cmd,
    kvm_tdx_init_mem_region,
    kvm_tdx_init_vm,
    status_text,
)

if TYPE_CHECKING:
    from ..syscalls.door import Door
    from .descriptor import Descriptor
    from .vcpu import Vcpu
    from .vm import Vm

__all__ = ["DEFAULT_XFAM", "Capabilities", "Tdx", "TdxError"]

DEFAULT_XFAM = 0x3
"""x87 and SSE: the least that TDX wants."""
_SCRATCH = 32 << 10
_X2APIC = 1 << 21
_ENTRY = kvm_cpuid_entry2.SIZE


class TdxError(KernelError):
    """A command failed; `hw_error` is a SEAMCALL's status where there was one, `left` what is left of a memory region."""

    def __init__(self, cause: KernelError, hw_error: int, left: kvm_tdx_init_mem_region | None = None) -> None:
        super().__init__(cause.rule, cause.found)
        self.hw_error, self.left = hw_error, left

    def __str__(self) -> str:
        shown = f" (hw_error {status_text(self.hw_error)})" if self.hw_error else ""
        return super().__str__() + shown


class Capabilities(NamedTuple):
    """What KVM_TDX_CAPABILITIES tells."""

    supported_attrs: int
    supported_xfam: int
    cpuid: list[kvm_cpuid_entry2]
    """Leaves with the bits that may be configured."""


class Tdx:
    """The commands, in the order of a launch.  Addresses are bytes; `source` is a user address."""

    def __init__(self, vm: Vm) -> None:
        self._vm, self._door = vm, vm.door
        self._scratch = 0

    @property
    def scratch(self) -> int:
        """User memory for the commands' arguments."""
        if not self._scratch:
            self._scratch = self._door.mmap(0, _SCRATCH, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE)
        return self._scratch

    def close(self) -> None:
        """Unmap that memory."""
        if self._scratch:
            self._door.munmap(self._scratch, _SCRATCH)
            self._scratch = 0

    def command(self, id: TdxCmd | int, data: int = 0, flags: int = 0, on: Descriptor | None = None) -> None:
        """Issue one command on the VM, or on a vCPU.  Raises `TdxError`."""
        cmd = bytearray(kvm_tdx_cmd(id=int(id), flags=flags, data=data).pack())
        try:
            (on or self._vm).ioctl(KVM_MEMORY_ENCRYPT_OP, cmd)
        except KernelError as error:
            raise TdxError(error, kvm_tdx_cmd.unpack_from(cmd).hw_error) from error

    # VM

    def capabilities(self, nent: int = 256) -> Capabilities:
        """KVM_TDX_CAPABILITIES, with room for `nent` leaves."""
        self._door.store(self.scratch, kvm_tdx_capabilities(cpuid=kvm_cpuid2(nent=nent)).pack())
        self.command(TdxCmd.CAPABILITIES, self.scratch)
        raw = self._door.load(self.scratch, kvm_tdx_capabilities.SIZE + nent * _ENTRY)
        caps = kvm_tdx_capabilities.unpack_from(raw)
        entries = _entries(raw, kvm_tdx_capabilities.SIZE, caps.cpuid.nent)
        return Capabilities(caps.supported_attrs, caps.supported_xfam, entries)

    def init_vm(
        self,
        attributes: int = 0,
        xfam: int = DEFAULT_XFAM,
        *,
        gpaw: int = 48,
        cpuid: list[kvm_cpuid_entry2] | None = None,
        mrconfigid: bytes = bytes(48),
        mrowner: bytes = bytes(48),
        mrownerconfig: bytes = bytes(48),
        flags: int = 0,
    ) -> None:
        """KVM_TDX_INIT_VM, before the first vCPU.  `gpaw` is the guest's address width, 48 or 52, if `cpuid` isn't given."""
        if cpuid is None:
            cpuid = [kvm_cpuid_entry2(function=0x80000008, eax=gpaw << 16)]
        init = kvm_tdx_init_vm(
            attributes=attributes,
            xfam=xfam,
            mrconfigid=_words(mrconfigid),
            mrowner=_words(mrowner),
            mrownerconfig=_words(mrownerconfig),
            cpuid=kvm_cpuid2(nent=len(cpuid)),
        )
        self._door.store(self.scratch, init.pack() + b"".join(entry.pack() for entry in cpuid))
        self.command(TdxCmd.INIT_VM, self.scratch, flags)

    def finalize_vm(self) -> None:
        """KVM_TDX_FINALIZE_VM: the measurement is final, the vCPUs may run."""
        self.command(TdxCmd.FINALIZE_VM)

    # vCPU

    def init_vcpu(self, vcpu: Vcpu, rcx: int = 0, flags: int = 0) -> None:
        """KVM_TDX_INIT_VCPU: the vCPU starts with `rcx`, the address of the TD HOB."""
        self.command(TdxCmd.INIT_VCPU, rcx, flags, vcpu)

    def init_mem_region(
        self, vcpu: Vcpu, gpa: int, size: int, source: int = 0, *, measure: bool = True, flags: int | None = None
    ) -> None:
        """KVM_TDX_INIT_MEM_REGION: add `size` bytes at `gpa` from user address `source` (0: from where they are).

        Raises `TdxError`, whose `left` tells what wasn't done.
        """
        region = kvm_tdx_init_mem_region(source_addr=source, gpa=gpa, nr_pages=size >> 12)
        self._door.store(self.scratch, region.pack())
        if flags is None:
            flags = KVM_TDX_MEASURE_MEMORY_REGION if measure else 0
        try:
            self.command(TdxCmd.INIT_MEM_REGION, self.scratch, flags, vcpu)
        except TdxError as error:
            raw = self._door.load(self.scratch, kvm_tdx_init_mem_region.SIZE)
            error.left = kvm_tdx_init_mem_region.unpack_from(raw)
            raise

    def get_cpuid(self, vcpu: Vcpu, nent: int = 256) -> list[kvm_cpuid_entry2]:
        """KVM_TDX_GET_CPUID, with room for `nent` leaves: what the TD's CPUID returns."""
        self._door.store(self.scratch, kvm_cpuid2(nent=nent).pack())
        self.command(TdxCmd.GET_CPUID, self.scratch, on=vcpu)
        count = kvm_cpuid2.unpack_from(self._door.load(self.scratch, kvm_cpuid2.SIZE)).nent
        return _entries(self._door.load(self.scratch, kvm_cpuid2.SIZE + count * _ENTRY), kvm_cpuid2.SIZE, count)


def set_x2apic(vcpu: Vcpu) -> None:
    """KVM_SET_CPUID2 with the least that KVM_TDX_INIT_VCPU asks for."""
    entry = kvm_cpuid_entry2(function=1, ecx=_X2APIC)
    vcpu.ioctl(KVM_SET_CPUID2, bytearray(kvm_cpuid2(nent=1).pack() + entry.pack()))


def init_vcpu(door: Door, vcpu: Vcpu, rcx: int, flags: int) -> None:
    """KVM_TDX_INIT_VCPU on a vCPU of which only the descriptor is known."""
    cmd = bytearray(kvm_tdx_cmd(id=TdxCmd.INIT_VCPU, flags=flags, data=rcx).pack())
    try:
        door.ioctl(vcpu.fd, KVM_MEMORY_ENCRYPT_OP, cmd)
    except KernelError as error:
        raise TdxError(error, 0) from error


def _entries(raw: bytes, offset: int, count: int) -> list[kvm_cpuid_entry2]:
    return [kvm_cpuid_entry2.unpack_from(raw, offset + i * _ENTRY) for i in range(count)]


def _words(digest: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, 48, 8))

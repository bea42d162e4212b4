# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU, and the exits that it comes back with."""

from __future__ import annotations

from errno import EFAULT
from typing import TYPE_CHECKING, TypeVar

from ..rules import KernelError
from ..uapi.errno import EHWPOISON
from ..uapi.kvm import (
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_PRE_FAULT_MEMORY,
    KVM_RUN,
    KVM_RUN_EXIT_OFFSET,
    KVM_RUN_EXIT_SIZE,
    KVM_SET_FPU,
    KVM_SET_MSRS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_XCRS,
    ExitReason,
    kvm_exit_hypercall,
    kvm_exit_io,
    kvm_exit_memory_fault,
    kvm_exit_mmio,
    kvm_exit_system_event,
    kvm_exit_unshare,
    kvm_pre_fault_memory,
    kvm_run,
)
from ..uapi.kvm_x86 import kvm_fpu, kvm_msr_entry, kvm_msrs, kvm_regs, kvm_sregs, kvm_xcr, kvm_xcrs
from ..uapi.layout import Struct
from ..uapi.mman import MAP_SHARED, PROT_READ, PROT_WRITE
from .descriptor import Descriptor
from .mapping import Mapping

if TYPE_CHECKING:
    from ..hw.cpu import Guest
    from ..syscalls.door import Door

__all__ = ["Exit", "Vcpu"]

S = TypeVar("S", bound=Struct)

_EXIT_REASON = kvm_run.OFFSETS["exit_reason"]


class Exit:
    """Why KVM_RUN came back.  `error` is set when it failed with EFAULT or EHWPOISON and told where (MEMORY_FAULT).

    Reason and details are a copy, so an exit can be kept while the vCPU runs on; answers go to kvm_run, to be given before
    that.  The bytes of a KVM_EXIT_IO lie outside the union and are read when asked for.
    """

    def __init__(self, run: Mapping, error: KernelError | None) -> None:
        self._run, self.error = run, error
        raw = run[_EXIT_REASON : KVM_RUN_EXIT_OFFSET + KVM_RUN_EXIT_SIZE]
        self.reason = ExitReason(int.from_bytes(raw[:4], "little"))
        self._union = raw[KVM_RUN_EXIT_OFFSET - _EXIT_REASON :]

    def details(self, layout: type[S]) -> S:
        """The exit's member of kvm_run's union."""
        return layout.unpack_from(self._union)

    @property
    def memory_fault(self) -> kvm_exit_memory_fault:
        """gpa, size (bytes) and flags of a KVM_EXIT_MEMORY_FAULT."""
        self._must_be(ExitReason.MEMORY_FAULT)
        return self.details(kvm_exit_memory_fault)

    @property
    def wants_private(self) -> bool:
        """Whether the access of a KVM_EXIT_MEMORY_FAULT was private."""
        return bool(self.memory_fault.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE)

    @property
    def hypercall(self) -> kvm_exit_hypercall:
        """Number and arguments of a KVM_EXIT_HYPERCALL."""
        self._must_be(ExitReason.HYPERCALL)
        return self.details(kvm_exit_hypercall)

    @property
    def mmio(self) -> kvm_exit_mmio:
        """Address, direction and data of a KVM_EXIT_MMIO."""
        self._must_be(ExitReason.MMIO)
        return self.details(kvm_exit_mmio)

    @property
    def io(self) -> kvm_exit_io:
        """Port, direction and size of a KVM_EXIT_IO."""
        self._must_be(ExitReason.IO)
        return self.details(kvm_exit_io)

    @property
    def system_event(self) -> kvm_exit_system_event:
        """Type and data of a KVM_EXIT_SYSTEM_EVENT."""
        self._must_be(ExitReason.SYSTEM_EVENT)
        return self.details(kvm_exit_system_event)

    @property
    def unshare(self) -> kvm_exit_unshare:
        """gpa and size (bytes) of a KVM_EXIT_UNSHARE."""
        self._must_be(ExitReason.UNSHARE)
        return self.details(kvm_exit_unshare)

    def answer_hypercall(self, ret: int) -> None:
        """What the guest gets when the vCPU runs again: 0, EINVAL or EAGAIN."""
        answer = self.hypercall
        answer.ret = ret
        self._run[KVM_RUN_EXIT_OFFSET : KVM_RUN_EXIT_OFFSET + answer.SIZE] = answer.pack()

    def answer_mmio(self, data: bytes) -> None:
        """What a load gets when the vCPU runs again."""
        answer = self.mmio
        answer.data = data.ljust(8, b"\0")
        self._run[KVM_RUN_EXIT_OFFSET : KVM_RUN_EXIT_OFFSET + answer.SIZE] = answer.pack()

    def io_data(self) -> bytes:
        """The bytes of a KVM_EXIT_IO."""
        io = self.io
        return self._run[io.data_offset : io.data_offset + io.size * io.count]

    def answer_io(self, data: bytes) -> None:
        """What an IN gets when the vCPU runs again."""
        io = self.io
        self._run[io.data_offset : io.data_offset + len(data)] = data

    def _must_be(self, reason: ExitReason) -> None:
        if self.reason is not reason:
            raise AttributeError(f"the exit is {self.reason.name}, not {reason.name}")

    def __repr__(self) -> str:
        shown = f" {self.memory_fault!r}" if self.reason is ExitReason.MEMORY_FAULT else ""
        return f"<Exit {self.reason.name}{shown}>"


class Vcpu(Descriptor):
    """A virtual processor."""

    def __init__(self, door: Door, fd: int, mmap_size: int) -> None:
        super().__init__(door, fd)
        address = door.mmap(0, mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        self.kvm_run = Mapping(door, address, mmap_size)

    def run(self, guest: Guest | None = None) -> Exit:
        """KVM_RUN.  A `guest` given starts from its beginning; without one the last goes on where it exited.

        Returns the exit, also for EFAULT and EHWPOISON with KVM_EXIT_MEMORY_FAULT.  Any other error is raised.
        """
        if guest is not None:
            self.door.load_guest(self.fd, guest)
        try:
            self._ioctl(self.fd, KVM_RUN)
        except KernelError as error:
            exit_ = Exit(self.kvm_run, error)
            if error.errno in (EFAULT, EHWPOISON) and exit_.reason is ExitReason.MEMORY_FAULT:
                return exit_
            raise
        return Exit(self.kvm_run, None)

    @property
    def immediate_exit(self) -> bool:
        """kvm_run->immediate_exit: KVM_RUN finishes what is pending and comes back with EINTR."""
        return bool(self.kvm_run[kvm_run.OFFSETS["immediate_exit"]])

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self.kvm_run[kvm_run.OFFSETS["immediate_exit"]] = int(value)

    def tdx_init(self, rcx: int = 0, *, x2apic: bool = True, flags: int = 0) -> None:
        """KVM_TDX_INIT_VCPU; with `x2apic` KVM_SET_CPUID2 comes first, with the least that TDX asks for."""
        from .tdx import init_vcpu, set_x2apic

        if x2apic:
            set_x2apic(self)
        init_vcpu(self.door, self, rcx, flags)

    def pre_fault(self, gpa: int, size: int, flags: int = 0) -> int:
        """KVM_PRE_FAULT_MEMORY: how many of the `size` bytes from `gpa` are left to do."""
        buffer = bytearray(kvm_pre_fault_memory(gpa=gpa, size=size, flags=flags).pack())
        self._ioctl(self.fd, KVM_PRE_FAULT_MEMORY, buffer)
        return kvm_pre_fault_memory.unpack_from(buffer).size

    def _get(self, request: int, layout: type[S]) -> S:
        buffer = bytearray(layout.SIZE)
        self._ioctl(self.fd, request, buffer)
        return layout.unpack_from(buffer)

    @property
    def regs(self) -> kvm_regs:
        """KVM_GET_REGS, KVM_SET_REGS."""
        return self._get(KVM_GET_REGS, kvm_regs)

    @regs.setter
    def regs(self, value: kvm_regs) -> None:
        self._ioctl(self.fd, KVM_SET_REGS, bytearray(value.pack()))

    @property
    def sregs(self) -> kvm_sregs:
        """KVM_GET_SREGS, KVM_SET_SREGS."""
        return self._get(KVM_GET_SREGS, kvm_sregs)

    @sregs.setter
    def sregs(self, value: kvm_sregs) -> None:
        self._ioctl(self.fd, KVM_SET_SREGS, bytearray(value.pack()))

    def set_fpu(self, value: kvm_fpu) -> None:
        """KVM_SET_FPU."""
        self._ioctl(self.fd, KVM_SET_FPU, bytearray(value.pack()))

    def set_xcr0(self, value: int) -> None:
        """KVM_SET_XCRS with xcr0 alone."""
        first = kvm_xcr(value=value).pack()
        room = kvm_xcrs.SIZE - 16 * 8 - 8 - len(first)
        self._ioctl(self.fd, KVM_SET_XCRS, bytearray(kvm_xcrs(nr_xcrs=1, xcrs=first + bytes(room)).pack()))

    def set_msr(self, index: int, value: int) -> None:
        """KVM_SET_MSRS with one register."""
        buffer = bytearray(kvm_msrs(nmsrs=1).pack() + kvm_msr_entry(index=index, data=value).pack())
        self._ioctl(self.fd, KVM_SET_MSRS, buffer)

    def close(self) -> None:
        """Unmap kvm_run and close the descriptor."""
        self.kvm_run.close()
        super().close()

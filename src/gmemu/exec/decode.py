# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls of the program in words: what each argument is, and what came back."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..kvm.vcpu import VcpuFile
from ..kvm.vm import VmFile
from ..mm.uaccess import read_user
from ..uapi.ioctl import ioctl_layout
from ..uapi.kvm import (
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_MEMORY_ENCRYPT_OP,
    KVM_RUN,
    Cap,
    ExitReason,
    VmType,
    ioctl_name,
    kvm_exit_hypercall,
    kvm_exit_internal_error,
    kvm_exit_io,
    kvm_exit_memory_fault,
    kvm_exit_mmio,
)
from ..uapi.layout import Struct
from ..uapi.mman import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)
from ..uapi.sev import (
    SevCmd,
    kvm_sev_cmd,
    kvm_sev_init,
    kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
)
from ..uapi.tdx import TdxCmd, kvm_tdx_cmd, kvm_tdx_init_mem_region, kvm_tdx_init_vm

if TYPE_CHECKING:
    from .kernel import ExecKernel

__all__ = ["arguments", "exit_of"]

_PROT = {PROT_READ: "PROT_READ", PROT_WRITE: "PROT_WRITE", PROT_EXEC: "PROT_EXEC"}
_MAP = {MAP_SHARED: "MAP_SHARED", MAP_PRIVATE: "MAP_PRIVATE", MAP_FIXED: "MAP_FIXED", MAP_ANONYMOUS: "MAP_ANONYMOUS"}
_FALLOC = {FALLOC_FL_KEEP_SIZE: "FALLOC_FL_KEEP_SIZE", FALLOC_FL_PUNCH_HOLE: "FALLOC_FL_PUNCH_HOLE"}
_ADVICE = {value: name for name, value in vars(mmap).items() if name.startswith("MADV_")}
_U32 = 0xFFFFFFFF

_NAMES: dict[str, tuple[str, ...]] = {
    "open": ("path", "flags"),
    "close": ("fd",),
    "dup": ("fd", "copy"),
    "mmap": ("address", "length", "prot", "flags", "fd", "offset"),
    "munmap": ("address", "length"),
    "mprotect": ("address", "length", "prot"),
    "madvise": ("address", "length", "advice"),
    "mremap": ("address", "old", "new", "flags", "to"),
    "fallocate": ("fd", "mode", "offset", "length"),
    "ftruncate": ("fd", "length"),
    "fstat": ("fd", "buffer"),
    "read": ("fd", "buffer", "length", "offset"),
    "write": ("fd", "buffer", "length", "offset"),
    "fsync": ("fd",),
    "fault": ("address",),
    "replaced": ("address", "length"),
}

_DETAILS: dict[ExitReason, type[Struct]] = {
    ExitReason.IO: kvm_exit_io,
    ExitReason.MMIO: kvm_exit_mmio,
    ExitReason.HYPERCALL: kvm_exit_hypercall,
    ExitReason.MEMORY_FAULT: kvm_exit_memory_fault,
    ExitReason.INTERNAL_ERROR: kvm_exit_internal_error,
}

_SEV: Mapping[int, type[Struct]] = {
    SevCmd.INIT2: kvm_sev_init,
    SevCmd.SNP_LAUNCH_START: kvm_sev_snp_launch_start,
    SevCmd.SNP_LAUNCH_UPDATE: kvm_sev_snp_launch_update,
    SevCmd.SNP_LAUNCH_FINISH: kvm_sev_snp_launch_finish,
}
_TDX: Mapping[int, type[Struct]] = {TdxCmd.INIT_VM: kvm_tdx_init_vm, TdxCmd.INIT_MEM_REGION: kvm_tdx_init_mem_region}
"""what the commands of KVM_MEMORY_ENCRYPT_OP point at"""


def arguments(kernel: ExecKernel, call: str, words: tuple[int, ...]) -> dict[str, Any]:
    """The call's arguments by name: numbers, or text where that says more."""
    if call == "ioctl":
        return _ioctl(kernel, words[0], words[1] & _U32, words[2])
    named: dict[str, Any] = dict(zip(_NAMES.get(call, ()), words, strict=False))
    if "fd" in named:
        named["fd"] = _fd(kernel, named["fd"])
    if "path" in named:
        named["path"] = kernel.path(named["path"])
    if "prot" in named:
        named["prot"] = _flags(named["prot"], _PROT, "PROT_NONE")
    if "advice" in named:
        named["advice"] = _ADVICE.get(named["advice"], named["advice"])
    if "mode" in named:
        named["mode"] = _flags(named["mode"], _FALLOC, "0")
    if call == "mmap":
        named["flags"] = _flags(named["flags"] & _U32, _MAP, "0")
    return named


def _ioctl(kernel: ExecKernel, fd: int, request: int, arg: int) -> dict[str, Any]:
    layout = ioctl_layout(request)
    value: Any = arg
    if request == KVM_CREATE_VM and arg in list(VmType):
        value = VmType(arg).name
    elif request == KVM_CHECK_EXTENSION and arg in list(Cap):
        value = f"KVM_CAP_{Cap(arg).name}"
    elif layout is not None:
        try:
            value = _at(kernel, arg, layout)
        except OSError:
            value = arg
    elif request == KVM_MEMORY_ENCRYPT_OP:
        value = _command(kernel, fd, arg)
    return {"fd": _fd(kernel, fd), "request": ioctl_name(request), "arg": value}


def _fields(struct: Struct) -> dict[str, Any]:
    """Its fields in what JSON has: bytes in hexadecimal digits."""
    return {name: _plain(value) for name, value in vars(struct).items()}


def _plain(value: object) -> object:
    if isinstance(value, Struct):
        return _fields(value)
    return value.hex() if isinstance(value, bytes | bytearray) else value


def _at(kernel: ExecKernel, address: int, layout: type[Struct]) -> dict[str, Any]:
    return _fields(layout.unpack_from(read_user(kernel.door.mm, address, layout.SIZE)))


def _command(kernel: ExecKernel, fd: int, arg: int) -> object:
    """The argument of KVM_MEMORY_ENCRYPT_OP: the command by its name, and its own structure where it has one."""
    file = kernel.process.files.get(fd & _U32)
    vm = file.vm if isinstance(file, VmFile) else file.vcpu.vm if isinstance(file, VcpuFile) else None
    if vm is None or vm.vm_type not in (VmType.SNP, VmType.TDX):
        return arg
    shown: dict[str, Any] = {}
    try:
        if vm.vm_type is VmType.TDX:
            shown = _at(kernel, arg, kvm_tdx_cmd)
            names, layout = {int(c): f"KVM_TDX_{c.name}" for c in TdxCmd}, _TDX.get(shown["id"])
        else:
            shown = _at(kernel, arg, kvm_sev_cmd)
            names, layout = {int(c): f"KVM_SEV_{c.name}" for c in SevCmd}, _SEV.get(shown["id"])
        shown["id"] = names.get(shown["id"], shown["id"])
        shown["data"] = _at(kernel, shown["data"], layout) if layout is not None else shown["data"]
    except OSError:
        return shown or arg
    return shown


def _fd(kernel: ExecKernel, word: int) -> str:
    fd = word & _U32
    fd = fd - (1 << 32) if fd >> 31 else fd
    file = kernel.process.files.get(fd)
    return f"{fd}<{file.name}>" if file is not None else str(fd)


def _flags(word: int, names: dict[int, str], none: str) -> str:
    known = [name for bit, name in names.items() if word & bit]
    rest = word & ~sum(bit for bit in names if word & bit)
    return "|".join([*known, *([hex(rest)] if rest else [])]) or none


def exit_of(kernel: ExecKernel, call: str, words: tuple[int, ...]) -> dict[str, Any] | None:
    """What kvm_run says after KVM_RUN: the reason and its details; None for other calls."""
    if call != "ioctl" or words[1] & _U32 != KVM_RUN:
        return None
    file = kernel.process.files.get(words[0])
    if not isinstance(file, VcpuFile):
        return None
    number = file.vcpu.exit_reason
    try:
        reason = ExitReason(number)
    except ValueError:
        return {"reason": number}
    found: dict[str, Any] = {"reason": reason.name}
    if reason in _DETAILS:
        found |= _fields(file.vcpu.exit_details(_DETAILS[reason]))
    return found

# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that orders may use, taken from where they are declared: leaves, commands, statuses, calls, allocation sites."""

from __future__ import annotations

from collections.abc import Mapping
from errno import EAGAIN, EBUSY, EINTR, EINVAL, ENOMEM, EPERM
from functools import cache

from ..hw.el2.hypervisor import El2Call
from ..hw.snp.rmp import PsmashStatus, PvalidateStatus, RmpAdjustStatus, RmpUpdateStatus
from ..uapi import kvm as uapi
from ..uapi import kvm_arm64
from ..uapi.ioctl import ioctl_type
from ..uapi.rmi import Rmi, RmiStatus
from ..uapi.sev import PspCommand, PspStatus, SevCmd
from ..uapi.tdx import TdcallLeaf, TdxCmd, TdxLeaf, TdxStatus

__all__ = ["ALLOCATION_SITES", "EVENT_KINDS", "call_name", "call_names", "names_of", "result_value", "results_of"]

ALLOCATION_SITES = (
    "gmem-attributes",
    "gmem-bindings",
    "gmem-inode",
    "kvm",
    "page",
    "pkvm-memcache",
    "pkvm-vcpu",
    "pkvm-vm",
    "rmm-granule",
    "td-params",
    "tdx-page",
    "vcpu",
    "vm-attributes",
)
"""What `Host.allocate` is called with, and "page" for page frames."""

EVENT_KINDS = ("alloc", "psp", "rmp", "seamcall", "tdcall", "rmi", "el2", "host")

_RMP = {"RMPUPDATE": RmpUpdateStatus, "PSMASH": PsmashStatus, "PVALIDATE": PvalidateStatus, "RMPADJUST": RmpAdjustStatus}


@cache
def names_of(kind: str) -> tuple[str, ...]:
    """Names of one kind of operation."""
    return {
        "alloc": ALLOCATION_SITES,
        "psp": tuple(c.name for c in PspCommand),
        "rmp": tuple(_RMP),
        "seamcall": tuple(leaf.name for leaf in TdxLeaf),
        "tdcall": tuple(leaf.name for leaf in TdcallLeaf),
        "rmi": tuple(command.name for command in Rmi),
        "el2": tuple(call.name for call in El2Call),
        "host": ("RIPAS_CHANGE",),
        "call": call_names(),
    }.get(kind, ())


@cache
def results_of(kind: str) -> Mapping[str, int]:
    """What operations of one kind can come to: name -> value."""
    if kind == "alloc":
        return {"ENOMEM": 12}
    if kind == "psp":
        return {s.name: int(s) for s in PspStatus if s not in (PspStatus.SUCCESS, PspStatus.NO_FW_CALL)}
    if kind == "rmp":
        return {code.name: int(code) for status in _RMP.values() for code in status if code}
    if kind == "rmi":
        return {s.name: int(s) for s in RmiStatus if s}
    if kind == "el2":
        return {"EPERM": EPERM, "ENOMEM": ENOMEM, "EAGAIN": EAGAIN, "EINVAL": EINVAL}
    if kind == "host":
        return {"REJECT": 1}
    if kind == "call":
        return {"EAGAIN": EAGAIN, "EBUSY": EBUSY, "EINTR": EINTR, "ENOMEM": ENOMEM}
    return {s.name: int(s) for s in TdxStatus if s}


def result_value(kind: str, result: str) -> int:
    """The number of a result; a number stands for itself."""
    return int(result, 16) if result.startswith("0x") else results_of(kind)[result]


_SEV = {int(c): c.name for c in SevCmd}
_TDX = {int(c): c.name for c in TdxCmd}


def call_name(request: int, command: int, platform: str) -> str:
    """What a call is called: the ioctl's name, or that of the command which KVM_MEMORY_ENCRYPT_OP carries."""
    if request == uapi.KVM_MEMORY_ENCRYPT_OP:
        commands = _SEV if platform == "amd" else _TDX
        return commands.get(command, "KVM_MEMORY_ENCRYPT_OP")
    return _arm64_ioctls().get(request) or uapi.ioctl_name(request)


@cache
def _arm64_ioctls() -> Mapping[int, str]:
    return {
        v: n
        for n, v in vars(kvm_arm64).items()
        if n.startswith("KVM_ARM") and type(v) is int and ioctl_type(v) == uapi.KVMIO
    }


@cache
def call_names() -> tuple[str, ...]:
    """Every name that a call can have."""
    magic = (uapi.KVMIO, uapi.KVM_GMEM_IO)
    ioctls = [n for n, v in vars(uapi).items() if n.startswith("KVM_") and type(v) is int and ioctl_type(v) in magic]
    return (*sorted((*ioctls, *_arm64_ioctls().values())), *dict.fromkeys((*_SEV.values(), *_TDX.values())), "fallocate")

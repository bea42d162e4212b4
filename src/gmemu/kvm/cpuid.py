# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID (arch/x86/kvm/cpuid.c): what this KVM supports, what a vCPU was given, and what its guest reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..mm.uaccess import UserPointer, copy_from_user, copy_to_user, read_user, write_user
from ..rules import kvm as rules
from ..uapi.kvm_x86 import KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid2, kvm_cpuid_entry2

if TYPE_CHECKING:
    from ..mm.address_space import AddressSpace
    from .host import Host
    from .vcpu import Vcpu

__all__ = [
    "MAX_ENTRIES",
    "cpuid_of",
    "find_entry",
    "get_cpuid2",
    "get_supported_cpuid",
    "kvm_cpuid",
    "set_cpuid2",
    "supported",
    "cr4_valid",
    "get_emulated_cpuid",
]

MAX_ENTRIES = 256
_HEAD = kvm_cpuid2.SIZE
_ENTRY = kvm_cpuid_entry2.SIZE
_VENDORS = {"amd": b"AuthenticAMD", "intel": b"GenuineIntel"}
_KVM_SIGNATURE = 0x40000000
_KVM_FEATURES = 0x40000001
_DISABLE_EXITS_HLT = 2

# What the engine executes and this KVM virtualizes, by bit.
_1_EDX = sum(1 << n for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26))
_1_ECX = sum(1 << n for n in (0, 1, 9, 13, 19, 20, 21, 22, 23, 24, 25, 26, 30, 31))
_7_EBX = sum(1 << n for n in (0, 1, 3, 7, 8, 9, 19, 20, 23, 24))
_81_EDX = sum(1 << n for n in (11, 20, 26, 27, 29))
_81_EDX_AMD = _1_EDX & 0x0183F3FF
_81_ECX = sum(1 << n for n in (0, 4, 5, 8))
_FEATURES = sum(1 << n for n in (0, 1, 3, 5, 7, 9, 11, 12, 14, 15, 24))
"""KVM_FEATURE_*: clock source, no I/O delay, clock source 2, PV unhalt, PV TLB flush, PV send IPI, poll control..."""
_HC_MAP_GPA_RANGE_BIT = 16
OSXSAVE, APIC_ON, MONITOR = 1 << 27, 1 << 9, 1 << 3
XCR0_SUPPORTED = 3
VIRTUAL_BITS = 48


def _e(function: int, eax: int, ebx: int, ecx: int, edx: int, index: int | None = None) -> kvm_cpuid_entry2:
    flags = 0 if index is None else KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    return kvm_cpuid_entry2(function=function, index=index or 0, flags=flags, eax=eax, ebx=ebx, ecx=ecx, edx=edx)


def _text(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[i : i + 4], "little") for i in range(0, len(text), 4))


def supported(host: Host) -> list[kvm_cpuid_entry2]:
    """KVM_GET_SUPPORTED_CPUID: what a vCPU may be given, for one vendor or the other."""
    vendor = _text(_VENDORS[host.platform])
    amd = host.platform == "amd"
    signature = 0x00830F10 if amd else 0x000606A6
    name = b"gmemu's simulated processor".ljust(48, b"\0")
    highest = 0x8000001F if amd else 0x80000008
    entries = [
        _e(0, 0xD, vendor[0], vendor[2], vendor[1]),
        _e(1, signature, 0x00000800, _1_ECX & ~(1 << 3), _1_EDX),
        _e(2, 1, 0, 0, 0),
        _e(4, 0, 0, 0, 0, 0),
        _e(5, 0, 0, 0, 0),
        _e(6, 4, 0, 0, 0),
        _e(7, 0, _7_EBX, 1 << 22, 0, 0),
        _e(0xD, XCR0_SUPPORTED, 576, 576, 0, 0),
        _e(0xD, 1, 0, 0, 0, 1),
        _e(_KVM_SIGNATURE, _KVM_FEATURES, *_text(b"KVMKVMKVM\0\0\0")),
        _e(_KVM_FEATURES, _FEATURES | 1 << _HC_MAP_GPA_RANGE_BIT, 0, 0, 0),
        _e(0x80000000, highest, *((vendor[0], vendor[2], vendor[1]) if amd else (0, 0, 0))),
        _e(0x80000001, signature if amd else 0, 0, _81_ECX if amd else 0x21, _81_EDX | (_81_EDX_AMD if amd else 0)),
        *(_e(0x80000002 + i, *_text(name[16 * i : 16 * i + 16])) for i in range(3)),
        _e(0x80000006, 0, 0, 0x02006140, 0),
        _e(0x80000007, 0, 0, 0, 1 << 8),
        _e(0x80000008, host.maxphyaddr | VIRTUAL_BITS << 8 | min(host.maxphyaddr, 48) << 16, 0, 0, 0),
    ]
    if amd:
        entries += [_e(0x80000019, 0, 0, 0, 0), _e(0x8000001A, 0, 0, 0, 0), _e(0x8000001F, 0, 0, 0, 0)]
    return entries


def _read(mm: AddressSpace, arg: UserPointer, offset: int, length: int) -> bytes:
    if isinstance(arg, int):
        return read_user(mm, arg + offset, length)
    return bytes(arg[offset : offset + length])


def _give(mm: AddressSpace, arg: UserPointer, entries: list[kvm_cpuid_entry2]) -> int:
    """Write entries out, and their number.  Raises E2BIG if there is less room."""
    head = copy_from_user(mm, kvm_cpuid2, arg)
    if head.nent < len(entries):
        raise rules.CPUID_ROOM(f"room for {head.nent}, there are {len(entries)}")
    data = b"".join(entry.pack() for entry in entries)
    if isinstance(arg, int):
        write_user(mm, arg + _HEAD, data)
    else:
        arg[_HEAD : _HEAD + len(data)] = data
    copy_to_user(mm, arg, kvm_cpuid2(nent=len(entries), padding=head.padding))
    return 0


def get_supported_cpuid(host: Host, arg: UserPointer) -> int:
    """kvm_dev_ioctl_get_cpuid()."""
    return _give(host.rt.current.mm, arg, supported(host))


_CR4_ALWAYS = 0x7FF
_CR4_FEATURES = (
    (11, 7, "ecx", 2),
    (12, 7, "ecx", 16),
    (13, 1, "ecx", 5),
    (16, 7, "ebx", 0),
    (17, 1, "ecx", 17),
    (18, 1, "ecx", 26),
    (20, 7, "ebx", 7),
    (21, 7, "ebx", 20),
    (22, 7, "ecx", 3),
)
"""bit of CR4, and where CPUID says that there is one: leaf, register, bit"""


def cr4_allowed(entries: list[kvm_cpuid_entry2]) -> int:
    """__cr4_reserved_bits(), inverted: the bits of CR4 that go with what `entries` have."""
    words = {(e.function, name): getattr(e, name) for e in entries if e.index == 0 for name in ("ebx", "ecx")}
    found = (1 << bit for bit, leaf, name, at in _CR4_FEATURES if words.get((leaf, name), 0) >> at & 1)
    return _CR4_ALWAYS | sum(found)


def cr4_valid(vcpu: Vcpu, value: int) -> bool:
    """kvm_is_valid_cr4(): what the host has, and what the guest was told, once it was."""
    allowed = cr4_allowed(supported(vcpu.vm.host))
    if vcpu.cpuid:
        allowed &= cr4_allowed(cpuid_of(vcpu))
    return not value & ~allowed


def get_emulated_cpuid(host: Host, arg: UserPointer) -> int:
    """KVM_GET_EMULATED_CPUID: what KVM would emulate though the processor lacks it: MOVBE and RDPID."""
    return _give(host.rt.current.mm, arg, [_e(0, 7, 0, 0, 0), _e(1, 0, 0, 1 << 22, 0), _e(7, 0, 0, 1 << 22, 0, 0)])


def get_cpuid2(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_ioctl_get_cpuid2()."""
    return _give(vcpu.vm.rt.current.mm, arg, _refreshed(vcpu))


def set_cpuid2(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_ioctl_set_cpuid2() and kvm_set_cpuid(): after the vCPU has run it may only be set to what it is."""
    mm = vcpu.vm.rt.current.mm
    head = copy_from_user(mm, kvm_cpuid2, arg)
    if head.nent > MAX_ENTRIES:
        raise rules.CPUID_MANY(f"{head.nent} entries")
    given = [_read(mm, arg, _HEAD + i * _ENTRY, _ENTRY) for i in range(head.nent)]
    entries = [kvm_cpuid_entry2.unpack_from(raw) for raw in given]
    if vcpu.has_run:
        have = [_without_runtime(entry) for entry in cpuid_of(vcpu)]
        if have != [_without_runtime(entry) for entry in entries]:
            raise rules.CPUID_AFTER_RUN(f"{head.nent} entries")
        return 0
    widths = next((entry.eax >> 8 & 0xFF for entry in entries if entry.function == 0x80000008), 0)
    if widths not in (0, 48, 57):
        raise rules.CPUID_VIRTUAL_BITS(f"{widths} bits")
    vcpu.cpuid = [_without_unhalt(vcpu, entry).pack() for entry in entries]
    return 0


def _without_unhalt(vcpu: Vcpu, entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2:
    """kvm_update_pv_runtime(): a guest that halts without an exit can't be woken by a hypercall."""
    if entry.function == _KVM_FEATURES and vcpu.vm.disabled_exits & _DISABLE_EXITS_HLT:
        entry.eax &= ~(1 << 7)
    return entry


def _without_runtime(entry: kvm_cpuid_entry2) -> tuple[int, ...]:
    """An entry without the bits that follow the vCPU's state."""
    ecx = entry.ecx & ~(OSXSAVE | MONITOR) if entry.function == 1 else entry.ecx
    edx = entry.edx & ~APIC_ON if entry.function == 1 else entry.edx
    ebx = 0 if entry.function == 0xD else entry.ebx
    return entry.function, entry.index, entry.flags, entry.eax, ebx, ecx, edx


def cpuid_of(vcpu: Vcpu) -> list[kvm_cpuid_entry2]:
    """The entries that the vCPU was given."""
    return [kvm_cpuid_entry2.unpack_from(raw) for raw in vcpu.cpuid]


def find_entry(vcpu: Vcpu, function: int, index: int) -> kvm_cpuid_entry2 | None:
    """cpuid_entry2_find(): the index counts only where the entry says so."""
    for entry in cpuid_of(vcpu):
        if entry.function == function and (not entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX or entry.index == index):
            return entry
    return None


def _refreshed(vcpu: Vcpu) -> list[kvm_cpuid_entry2]:
    entries = cpuid_of(vcpu)
    for entry in entries:
        _update_runtime(vcpu, entry)
    return entries


def _update_runtime(vcpu: Vcpu, entry: kvm_cpuid_entry2) -> None:
    """kvm_update_cpuid_runtime(): OSXSAVE follows CR4, the APIC its base, MONITOR a MSR, the XSAVE area XCR0."""
    sregs = vcpu.sregs
    if entry.function == 1:
        osxsave = entry.ecx & 1 << 26 and sregs.cr4 & 1 << 18
        entry.ecx = entry.ecx & ~OSXSAVE | (OSXSAVE if osxsave else 0)
        entry.edx = entry.edx & ~APIC_ON | (APIC_ON if sregs.apic_base & 1 << 11 else 0)
        if not vcpu.vm.quirks_disabled & 1 << 4:  # KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
            allowed = vcpu.msrs.get(0x1A0, 0) & 1 << 18
            entry.ecx = entry.ecx & ~MONITOR | (MONITOR if allowed else 0)
    elif (entry.function == 0xD and entry.index == 0) or (entry.function == 0xD and entry.index == 1 and entry.eax & 0xA):
        entry.ebx = 576


def kvm_cpuid(vcpu: Vcpu, function: int, index: int) -> tuple[int, int, int, int]:
    """kvm_cpuid(): what the guest reads."""
    entry = find_entry(vcpu, function, index)
    if entry is None:
        entry = _out_of_range(vcpu, function, index)
    if entry is None:
        return (0, 0, index & 0xFF, 0) if function in (0xB, 0x1F) else (0, 0, 0, 0)
    _update_runtime(vcpu, entry)
    return entry.eax, entry.ebx, entry.ecx, entry.edx


def _out_of_range(vcpu: Vcpu, function: int, index: int) -> kvm_cpuid_entry2 | None:
    """get_out_of_range_cpuid_entry(): beyond its class's highest leaf an Intel guest gets the highest basic one."""
    basic = find_entry(vcpu, 0, 0)
    if basic is None or (basic.ebx, basic.edx, basic.ecx) == _text(b"AuthenticAMD"):
        return None
    of_class = find_entry(vcpu, function & 0xFFFF0000 if function >= 0x40000000 else 0, 0)
    if of_class is not None and function <= of_class.eax:
        return None
    return find_entry(vcpu, basic.eax, index)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes, offsets and numbers of <linux/kvm.h>, written down independently of how they are declared."""

from __future__ import annotations

import pytest

from gmemu.uapi import kvm
from gmemu.uapi.kvm import Cap, ExitReason, MpState, SystemEvent, VmType, ioctl_name
from gmemu.uapi.layout import Struct

SIZES = {
    "kvm_clear_dirty_log": 24,
    "kvm_coalesced_mmio_zone": 16,
    "kvm_create_device": 12,
    "kvm_create_guest_memfd": 64,
    "kvm_device_attr": 24,
    "kvm_dirty_log": 16,
    "kvm_enable_cap": 104,
    "kvm_enc_region": 16,
    "kvm_exit_fail_entry": 16,
    "kvm_exit_hypercall": 72,
    "kvm_exit_internal_error": 136,
    "kvm_exit_io": 16,
    "kvm_exit_memory_fault": 24,
    "kvm_exit_mmio": 24,
    "kvm_exit_msr": 24,
    "kvm_exit_snp_req_certs": 24,
    "kvm_exit_unshare": 16,
    "kvm_exit_system_event": 136,
    "kvm_gmem_convert": 64,
    "kvm_interrupt": 4,
    "kvm_ioeventfd": 64,
    "kvm_irq_level": 8,
    "kvm_irq_routing": 8,
    "kvm_irq_routing_entry": 48,
    "kvm_irqfd": 32,
    "kvm_memory_attributes": 32,
    "kvm_memory_attributes2": 128,
    "kvm_mp_state": 4,
    "kvm_msi": 32,
    "kvm_stats_desc": 64,
    "kvm_stats_header": 24,
    "kvm_pre_fault_memory": 64,
    "kvm_run": 32,
    "kvm_signal_mask": 4,
    "kvm_userspace_memory_region": 32,
    "kvm_userspace_memory_region2": 160,
}

OFFSETS = {
    "kvm_create_guest_memfd": {"size": 0, "flags": 8, "reserved": 16},
    "kvm_userspace_memory_region2": {
        "slot": 0,
        "flags": 4,
        "guest_phys_addr": 8,
        "memory_size": 16,
        "userspace_addr": 24,
        "guest_memfd_offset": 32,
        "guest_memfd": 40,
        "pad1": 44,
        "pad2": 48,
    },
    "kvm_memory_attributes": {"address": 0, "size": 8, "attributes": 16, "flags": 24},
    "kvm_memory_attributes2": {"offset": 0, "size": 8, "attributes": 16, "flags": 24, "error_offset": 32, "reserved": 40},
    "kvm_gmem_convert": {"offset": 0, "size": 8, "error_offset": 16, "reserved": 24},
    "kvm_pre_fault_memory": {"gpa": 0, "size": 8, "flags": 16, "padding": 24},
    "kvm_run": {
        "request_interrupt_window": 0,
        "immediate_exit": 1,
        "padding1": 2,
        "exit_reason": 8,
        "ready_for_interrupt_injection": 12,
        "if_flag": 13,
        "flags": 14,
        "cr8": 16,
        "apic_base": 24,
    },
    "kvm_exit_memory_fault": {"flags": 0, "gpa": 8, "size": 16},
    "kvm_exit_hypercall": {"nr": 0, "args": 8, "ret": 56, "flags": 64},
    "kvm_exit_mmio": {"phys_addr": 0, "data": 8, "len": 16, "is_write": 20},
    "kvm_exit_io": {"direction": 0, "size": 1, "port": 2, "count": 4, "data_offset": 8},
}

REQUESTS = {
    "KVM_CHECK_EXTENSION": 0x0000AE03,
    "KVM_CLEAR_DIRTY_LOG": 0xC018AEC0,
    "KVM_CREATE_DEVICE": 0xC00CAEE0,
    "KVM_CREATE_GUEST_MEMFD": 0xC040AED4,
    "KVM_CREATE_IRQCHIP": 0x0000AE60,
    "KVM_CREATE_PIT2": 0x4040AE77,
    "KVM_CREATE_VCPU": 0x0000AE41,
    "KVM_CREATE_VM": 0x0000AE01,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_GET_API_VERSION": 0x0000AE00,
    "KVM_GET_CLOCK": 0x8030AE7C,
    "KVM_GET_CPUID2": 0xC008AE91,
    "KVM_GET_DEBUGREGS": 0x8080AEA1,
    "KVM_GET_DEVICE_ATTR": 0x4018AEE2,
    "KVM_GET_DIRTY_LOG": 0x4010AE42,
    "KVM_GET_EMULATED_CPUID": 0xC008AE09,
    "KVM_GET_FPU": 0x81A0AE8C,
    "KVM_GET_IRQCHIP": 0xC208AE62,
    "KVM_GET_LAPIC": 0x8400AE8E,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_GET_MSR_FEATURE_INDEX_LIST": 0xC004AE0A,
    "KVM_GET_MSR_INDEX_LIST": 0xC004AE02,
    "KVM_GET_PIT2": 0x8070AE9F,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_GET_SREGS2": 0x8140AECC,
    "KVM_GET_STATS_FD": 0x0000AECE,
    "KVM_X86_SETUP_MCE": 0x4008AE9C,
    "KVM_X86_GET_MCE_CAP_SUPPORTED": 0x8008AE9D,
    "KVM_X86_SET_MCE": 0x4040AE9E,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_GET_TSC_KHZ": 0x0000AEA3,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_GET_VCPU_MMAP_SIZE": 0x0000AE04,
    "KVM_GET_XCRS": 0x8188AEA6,
    "KVM_GET_XSAVE": 0x9000AEA4,
    "KVM_GET_XSAVE2": 0x9000AECF,
    "KVM_GMEM_CONVERT_PRIVATE": 0xC040AF42,
    "KVM_GMEM_CONVERT_SHARED": 0xC040AF41,
    "KVM_HAS_DEVICE_ATTR": 0x4018AEE3,
    "KVM_INTERRUPT": 0x4004AE86,
    "KVM_IOEVENTFD": 0x4040AE79,
    "KVM_IRQFD": 0x4020AE76,
    "KVM_IRQ_LINE": 0x4008AE61,
    "KVM_IRQ_LINE_STATUS": 0xC008AE67,
    "KVM_KVMCLOCK_CTRL": 0x0000AEAD,
    "KVM_MEMORY_ENCRYPT_OP": 0xC008AEBA,
    "KVM_MEMORY_ENCRYPT_REG_REGION": 0x8010AEBB,
    "KVM_MEMORY_ENCRYPT_UNREG_REGION": 0x8010AEBC,
    "KVM_SET_VAPIC_ADDR": 0x4008AE93,
    "KVM_NMI": 0x0000AE9A,
    "KVM_PRE_FAULT_MEMORY": 0xC040AED5,
    "KVM_REGISTER_COALESCED_MMIO": 0x4010AE67,
    "KVM_REINJECT_CONTROL": 0x0000AE71,
    "KVM_RUN": 0x0000AE80,
    "KVM_SET_BOOT_CPU_ID": 0x0000AE78,
    "KVM_SET_CLOCK": 0x4030AE7B,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_SET_DEBUGREGS": 0x4080AEA2,
    "KVM_SET_DEVICE_ATTR": 0x4018AEE1,
    "KVM_SET_FPU": 0x41A0AE8D,
    "KVM_SET_GSI_ROUTING": 0x4008AE6A,
    "KVM_SET_GUEST_DEBUG": 0x4048AE9B,
    "KVM_SET_IDENTITY_MAP_ADDR": 0x4008AE48,
    "KVM_SET_IRQCHIP": 0x8208AE63,
    "KVM_SET_LAPIC": 0x4400AE8F,
    "KVM_SET_MEMORY_ATTRIBUTES": 0x4020AED2,
    "KVM_SET_MEMORY_ATTRIBUTES2": 0xC080AED2,
    "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_NR_MMU_PAGES": 0x0000AE44,
    "KVM_SET_PIT2": 0x4070AEA0,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_SET_SREGS2": 0x4140AECD,
    "KVM_SET_TSC_KHZ": 0x0000AEA2,
    "KVM_SET_TSS_ADDR": 0x0000AE47,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_USER_MEMORY_REGION2": 0x40A0AE49,
    "KVM_SET_VCPU_EVENTS": 0x4040AEA0,
    "KVM_SET_XCRS": 0x4188AEA7,
    "KVM_SET_XSAVE": 0x5000AEA5,
    "KVM_SIGNAL_MSI": 0x4020AEA5,
    "KVM_SMI": 0x0000AEB7,
    "KVM_TPR_ACCESS_REPORTING": 0xC028AE92,
    "KVM_TRANSLATE": 0xC018AE85,
    "KVM_UNREGISTER_COALESCED_MMIO": 0x4010AE68,
    "KVM_X86_SET_MSR_FILTER": 0x4188AEC6,
}


def test_sizes() -> None:
    declared = {n: v.SIZE for n in kvm.__all__ if isinstance(v := getattr(kvm, n), type) and issubclass(v, Struct)}
    assert declared == SIZES


@pytest.mark.parametrize("name", OFFSETS)
def test_offsets(name: str) -> None:
    declared = getattr(kvm, name).OFFSETS
    assert declared == OFFSETS[name]


def test_exit_union() -> None:
    assert kvm.KVM_RUN_EXIT_OFFSET == 32
    assert kvm.KVM_RUN_EXIT_SIZE == 256
    assert all(size <= 256 for name, size in SIZES.items() if name.startswith("kvm_exit_"))


def test_attributes2_continues_attributes() -> None:
    """The series asserts this statically: the first 32 bytes mean the same in both."""
    old, new = kvm.kvm_memory_attributes.OFFSETS, kvm.kvm_memory_attributes2.OFFSETS
    assert list(old.values()) == list(new.values())[: len(old)]
    assert all(old[field] == new[field] for field in ("size", "attributes", "flags"))


def test_attributes2_address_is_offset() -> None:
    request = kvm.kvm_memory_attributes2.unpack_from((0x1000).to_bytes(128, "little"))
    assert request.address == 0x1000
    request.address = 0x2000
    assert request.offset == 0x2000
    assert request.pack()[:8] == (0x2000).to_bytes(8, "little")


@pytest.mark.parametrize("name", REQUESTS)
def test_request(name: str) -> None:
    assert getattr(kvm, name) == REQUESTS[name]
    assert ioctl_name(REQUESTS[name]) == name


def test_every_request_is_listed() -> None:
    assert {value: name for name, value in REQUESTS.items()} == kvm._NAMES


def test_unknown_request_is_shown_as_a_number() -> None:
    assert ioctl_name(0x5401) == "0x00005401"
    assert ioctl_name(0) == "0x00000000"


def test_capabilities() -> None:
    numbers = {
        "USER_MEMORY": 3,
        "NR_VCPUS": 9,
        "NR_MEMSLOTS": 10,
        "SYNC_MMU": 16,
        "MAX_VCPUS": 66,
        "READONLY_MEM": 81,
        "ENABLE_CAP_VM": 98,
        "CHECK_EXTENSION_VM": 105,
        "MULTI_ADDRESS_SPACE": 118,
        "MAX_VCPU_ID": 128,
        "IMMEDIATE_EXIT": 136,
        "EXIT_HYPERCALL": 201,
        "USER_MEMORY2": 231,
        "MEMORY_FAULT_INFO": 232,
        "MEMORY_ATTRIBUTES": 233,
        "GUEST_MEMFD": 234,
        "VM_TYPES": 235,
        "PRE_FAULT_MEMORY": 236,
        "X86_APIC_BUS_CYCLES_NS": 237,
        "X86_GUEST_MODE": 238,
        "GUEST_MEMFD_FLAGS": 244,
        "GUEST_MEMFD_MEMORY_ATTRIBUTES": 250,
    }
    assert {name: Cap[name].value for name in numbers} == numbers
    assert len(Cap) == len(Cap.__members__), "two capabilities share a number"


def test_exit_reasons() -> None:
    published = [reason.value for reason in ExitReason if reason is not ExitReason.UNSHARE]
    assert published == list(range(44))
    numbers = {"HYPERCALL": 3, "MMIO": 6, "MEMORY_FAULT": 39, "TDX": 40, "SNP_REQ_CERTS": 43}
    assert {name: ExitReason[name].value for name in numbers} == numbers


def test_vm_types() -> None:
    assert [t.name for t in VmType] == [
        "DEFAULT",
        "SW_PROTECTED",
        "SEV",
        "SEV_ES",
        "SNP",
        "TDX",
        "ARM_REALM",
        "ARM_PROTECTED",
    ]
    assert [t.value for t in VmType] == [*range(6), 0x100, 0x80000000]


def test_states_and_events() -> None:
    assert (MpState.RUNNABLE.value, MpState.AP_RESET_HOLD.value) == (0, 9)
    assert [state.value for state in MpState] == list(range(11))
    assert [event.value for event in SystemEvent] == list(range(1, 8))


def test_flags() -> None:
    assert (kvm.KVM_MEM_LOG_DIRTY_PAGES, kvm.KVM_MEM_READONLY, kvm.KVM_MEM_GUEST_MEMFD) == (1, 2, 4)
    assert (kvm.GUEST_MEMFD_FLAG_MMAP, kvm.GUEST_MEMFD_FLAG_INIT_SHARED) == (1, 2)
    assert kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE == kvm.KVM_MEMORY_EXIT_FLAG_PRIVATE == 8
    assert (kvm.KVM_SET_MEMORY_ATTRIBUTES2_ZERO, kvm.KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE) == (1, 2)
    assert kvm.KVM_API_VERSION == 12


def test_map_gpa_range() -> None:
    assert kvm.KVM_HC_MAP_GPA_RANGE == 12
    assert (kvm.KVM_MAP_GPA_RANGE_ENCRYPTED, kvm.KVM_MAP_GPA_RANGE_DECRYPTED) == (0x10, 0)
    sizes = (kvm.KVM_MAP_GPA_RANGE_PAGE_SZ_4K, kvm.KVM_MAP_GPA_RANGE_PAGE_SZ_2M, kvm.KVM_MAP_GPA_RANGE_PAGE_SZ_1G)
    assert sizes == (0, 1, 2)

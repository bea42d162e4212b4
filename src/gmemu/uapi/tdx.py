# SPDX-License-Identifier: GPL-2.0-or-later
"""TDX: KVM's commands, and the numbers of the TDX module.

Commands and their arguments are from <asm/kvm.h>, exit qualifications and TD_PARAMS from arch/x86/kvm/vmx/tdx_arch.h, guest
calls from <asm/shared/tdx.h>, all as of Linux 7.3-rc7; leaf numbers, status codes and operand ids are those of Intel's TDX
module 1.5 (ABI specification).  Where Linux and the module disagree about a status code, Linux's value stands here.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from .kvm_x86 import kvm_cpuid2
from .layout import Struct, nested, u8, u16, u32, u64

__all__ = [
    "KVM_MAX_CPUID_ENTRIES",
    "KVM_TDX_MEASURE_MEMORY_REGION",
    "TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT",
    "TDVMCALL_STATUS_ALIGN_ERROR",
    "TDVMCALL_STATUS_INVALID_OPERAND",
    "TDVMCALL_STATUS_RETRY",
    "TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED",
    "TDVMCALL_STATUS_SUCCESS",
    "TDX_CONFIG_FLAGS_MAX_GPAW",
    "TDX_CONFIG_FLAGS_NO_RBP_MOD",
    "TDX_EXTENDMR_CHUNKSIZE",
    "TDX_MAP_GPA_MAX_LEN",
    "TDX_SEAMCALL_STATUS_MASK",
    "EptViolationType",
    "TdAttributes",
    "TdcallLeaf",
    "Tdvmcall",
    "TdxCmd",
    "TdxLeaf",
    "TdxOperand",
    "TdxStatus",
    "kvm_tdx_capabilities",
    "kvm_tdx_cmd",
    "kvm_tdx_init_mem_region",
    "kvm_tdx_init_vm",
    "status_of",
    "status_text",
    "td_params",
    "tdx_error",
    "tdx_non_recoverable",
    "tdx_operand",
    "tdx_operand_busy",
]

# --- KVM ---------------------------------------------------------------------------------------------------------------


class TdxCmd(IntEnum):
    """KVM_TDX_*: the `id` of a `kvm_tdx_cmd`."""

    CAPABILITIES = 0
    INIT_VM = 1
    INIT_VCPU = 2
    INIT_MEM_REGION = 3
    FINALIZE_VM = 4
    GET_CPUID = 5


KVM_TDX_MEASURE_MEMORY_REGION = 1 << 0
"""`kvm_tdx_cmd.flags` of INIT_MEM_REGION: extend MRTD with the contents."""
KVM_MAX_CPUID_ENTRIES = 256
TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT = 1 << 1


class kvm_tdx_cmd(Struct):
    """Argument of KVM_MEMORY_ENCRYPT_OP on a TDX VM or vCPU; `hw_error` must be 0 and comes back with a status."""

    id: int = u32()
    flags: int = u32()
    data: int = u64()
    hw_error: int = u64()


class kvm_tdx_capabilities(Struct):
    """What CAPABILITIES fills in; `cpuid.nent` of `kvm_cpuid_entry2` follow: the bits that user space may configure."""

    supported_attrs: int = u64()
    supported_xfam: int = u64()
    kernel_tdvmcallinfo_1_r11: int = u64()
    user_tdvmcallinfo_1_r11: int = u64()
    kernel_tdvmcallinfo_1_r12: int = u64()
    user_tdvmcallinfo_1_r12: int = u64()
    reserved: tuple[int, ...] = u64(250)
    cpuid: kvm_cpuid2 = nested(kvm_cpuid2)


class kvm_tdx_init_vm(Struct):
    """Argument of INIT_VM; `cpuid.nent` of `kvm_cpuid_entry2` follow.  The three MR* are SHA-384 digests."""

    attributes: int = u64()
    xfam: int = u64()
    mrconfigid: tuple[int, ...] = u64(6)
    mrowner: tuple[int, ...] = u64(6)
    mrownerconfig: tuple[int, ...] = u64(6)
    reserved: tuple[int, ...] = u64(12)
    cpuid: kvm_cpuid2 = nested(kvm_cpuid2)


class kvm_tdx_init_mem_region(Struct):
    """Argument of INIT_MEM_REGION, written back with what is left to do."""

    source_addr: int = u64()
    gpa: int = u64()
    nr_pages: int = u64()


# --- The module --------------------------------------------------------------------------------------------------------

TDX_EXTENDMR_CHUNKSIZE = 256
TDX_CONFIG_FLAGS_MAX_GPAW = 1 << 0
TDX_CONFIG_FLAGS_NO_RBP_MOD = 1 << 2
TDX_SEAMCALL_STATUS_MASK = 0xFFFFFFFF << 32


class TdAttributes(IntFlag):
    """ATTRIBUTES of TD_PARAMS, as far as they bear on memory."""

    DEBUG = 1 << 0
    SEPT_VE_DISABLE = 1 << 28
    MIGRATABLE = 1 << 29


class td_params(Struct):
    """TD_PARAMS, the argument of TDH.MNG.INIT: 1024 bytes.  `cpuid_values` is 768 bytes of configured CPUID registers."""

    attributes: int = u64()
    xfam: int = u64()
    max_vcpus: int = u16()
    reserved0: tuple[int, ...] = u8(6)
    eptp_controls: int = u64()
    config_flags: int = u64()
    tsc_frequency: int = u16()
    reserved1: tuple[int, ...] = u8(38)
    mrconfigid: tuple[int, ...] = u64(6)
    mrowner: tuple[int, ...] = u64(6)
    mrownerconfig: tuple[int, ...] = u64(6)
    reserved2: tuple[int, ...] = u64(4)
    cpuid_values: tuple[int, ...] = u32(192)


class TdxLeaf(IntEnum):
    """SEAMCALL leaf numbers (RAX)."""

    VP_ENTER = 0
    MNG_ADDCX = 1
    MEM_PAGE_ADD = 2
    MEM_SEPT_ADD = 3
    VP_ADDCX = 4
    MEM_PAGE_AUG = 6
    MEM_RANGE_BLOCK = 7
    MNG_KEY_CONFIG = 8
    MNG_CREATE = 9
    VP_CREATE = 10
    MNG_RD = 11
    MEM_PAGE_DEMOTE = 15
    MR_EXTEND = 16
    MR_FINALIZE = 17
    VP_FLUSH = 18
    MNG_VPFLUSHDONE = 19
    MNG_KEY_FREEID = 20
    MNG_INIT = 21
    VP_INIT = 22
    MEM_PAGE_PROMOTE = 23
    PHYMEM_PAGE_RDMD = 24
    VP_RD = 26
    PHYMEM_PAGE_RECLAIM = 28
    MEM_PAGE_REMOVE = 29
    MEM_SEPT_REMOVE = 30
    MEM_TRACK = 38
    MEM_RANGE_UNBLOCK = 39
    PHYMEM_CACHE_WB = 40
    PHYMEM_PAGE_WBINVD = 41
    VP_WR = 43


class TdcallLeaf(IntEnum):
    """TDCALL leaf numbers (RAX), as far as they are executed here."""

    VP_VMCALL = 0
    MR_RTMR_EXTEND = 2
    MEM_PAGE_ACCEPT = 6


class TdxStatus(IntEnum):
    """Completion status of a SEAMCALL or TDCALL: the upper half of RAX.  The lower half says which operand, or level."""

    SUCCESS = 0
    NON_RECOVERABLE_VCPU = 0x40000001 << 32
    NON_RECOVERABLE_TD = 0x40000002 << 32
    INTERRUPTED_RESUMABLE = 0x80000003 << 32
    INTERRUPTED_RESTARTABLE = 0x80000004 << 32
    NON_RECOVERABLE_TD_NON_ACCESSIBLE = 0x60000005 << 32
    NON_RECOVERABLE_TD_WRONG_APIC_MODE = 0x60000007 << 32
    OPERAND_INVALID = 0xC0000100 << 32
    OPERAND_BUSY = 0x80000200 << 32
    PREVIOUS_TLB_EPOCH_BUSY = 0x80000201 << 32
    SYS_BUSY = 0x80000202 << 32
    RND_NO_ENTROPY = 0x80000203 << 32
    OPERAND_BUSY_HOST_PRIORITY = 0x80000204 << 32
    PAGE_METADATA_INCORRECT = 0xC0000300 << 32
    PAGE_ALREADY_FREE = 0x00000301 << 32
    PAGE_NOT_OWNED_BY_TD = 0xC0000302 << 32
    PAGE_NOT_FREE = 0xC0000303 << 32
    TD_ASSOCIATED_PAGES_EXIST = 0xC0000400 << 32
    TD_FATAL = 0xE0000604 << 32
    LIFECYCLE_STATE_INCORRECT = 0xC0000607 << 32
    OP_STATE_INCORRECT = 0xC0000608 << 32
    NO_VCPUS = 0xC0000609 << 32
    TDCX_NUM_INCORRECT = 0xC0000610 << 32
    VCPU_STATE_INCORRECT = 0xC0000700 << 32
    VCPU_ASSOCIATED = 0x80000701 << 32
    VCPU_NOT_ASSOCIATED = 0x80000702 << 32
    MAX_VCPUS_EXCEEDED = 0xC0000705 << 32
    KEY_GENERATION_FAILED = 0x80000800 << 32
    TD_KEYS_NOT_CONFIGURED = 0x80000810 << 32
    KEY_STATE_INCORRECT = 0xC0000811 << 32
    KEY_CONFIGURED = 0x00000815 << 32
    WBCACHE_NOT_COMPLETE = 0x80000817 << 32
    HKID_NOT_FREE = 0xC0000820 << 32
    NO_HKID_READY_TO_WBCACHE = 0x00000821 << 32
    FLUSHVP_NOT_DONE = 0x80000824 << 32
    EPT_WALK_FAILED = 0xC0000B00 << 32
    EPT_ENTRY_FREE = 0xC0000B01 << 32
    EPT_ENTRY_NOT_FREE = 0xC0000B02 << 32
    EPT_ENTRY_NOT_PRESENT = 0xC0000B03 << 32
    EPT_ENTRY_NOT_LEAF = 0xC0000B04 << 32
    EPT_ENTRY_LEAF = 0xC0000B05 << 32
    GPA_RANGE_NOT_BLOCKED = 0xC0000B06 << 32
    GPA_RANGE_ALREADY_BLOCKED = 0x00000B07 << 32
    TLB_TRACKING_NOT_DONE = 0xC0000B08 << 32
    EPT_INVALID_PROMOTE_CONDITIONS = 0xC0000B09 << 32
    PAGE_ALREADY_ACCEPTED = 0x00000B0A << 32
    PAGE_SIZE_MISMATCH = 0xC0000B0B << 32
    GPA_RANGE_BLOCKED = 0xC0000B0C << 32
    EPT_ENTRY_STATE_INCORRECT = 0xC0000B0D << 32
    EPT_PAGE_NOT_FREE = 0xC0000B0E << 32
    METADATA_FIELD_NOT_READABLE = 0xC0000C02 << 32


class TdxOperand(IntEnum):
    """Operand ids: the lower half of a status that blames one."""

    RAX = 0
    RCX = 1
    RDX = 2
    R8 = 8
    R9 = 9
    ATTRIBUTES = 64
    XFAM = 65
    EXEC_CONTROLS = 66
    EPTP_CONTROLS = 67
    MAX_VCPUS = 68
    CPUID_CONFIG = 69
    TSC_FREQUENCY = 70
    TDR = 128
    TDCX = 129
    TDVPR = 130
    TDCS = 144
    TDVPS = 145
    SEPT = 146
    SEPT_ENTRY = 147
    RTMR = 168
    TD_EPOCH = 169


def tdx_error(status: int) -> bool:
    """Bit 63: the call did nothing."""
    return bool(status >> 63 & 1)


def tdx_non_recoverable(status: int) -> bool:
    """Bit 62: trying again won't help."""
    return bool(status >> 62 & 1)


def tdx_operand(status: int) -> int:
    """The lower half: operand id, or the level at which a walk stopped."""
    return status & 0xFFFFFFFF


def tdx_operand_busy(status: int) -> bool:
    """Somebody else holds a lock that the call needs; whose is in `tdx_operand`."""
    return status & TDX_SEAMCALL_STATUS_MASK == TdxStatus.OPERAND_BUSY


def status_of(status: int) -> TdxStatus:
    """The status without its operand.  Raises `ValueError` for one that isn't listed here."""
    return TdxStatus(status & TDX_SEAMCALL_STATUS_MASK)


def status_text(status: int) -> str:
    """Name and number of a status, for messages."""
    try:
        name = status_of(status).name
    except ValueError:
        name = "unknown status"
    return f"{name} ({status:#x})"


class EptViolationType(IntEnum):
    """Type of the extended exit qualification (RDX bits 3:0) of an EPT violation."""

    NONE = 0
    ACCEPT = 1
    GPA_DETAILS = 2
    PENDING = 6


# --- What a guest asks of the VMM (GHCI) -------------------------------------------------------------------------------


class Tdvmcall(IntEnum):
    """TDG.VP.VMCALL sub-functions (R11)."""

    GET_TD_VM_CALL_INFO = 0x10000
    MAP_GPA = 0x10001
    GET_QUOTE = 0x10002
    REPORT_FATAL_ERROR = 0x10003
    SETUP_EVENT_NOTIFY_INTERRUPT = 0x10004


TDVMCALL_STATUS_SUCCESS = 0
TDVMCALL_STATUS_RETRY = 1
TDVMCALL_STATUS_INVALID_OPERAND = 0x8000000000000000
TDVMCALL_STATUS_ALIGN_ERROR = 0x8000000000000002
TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED = 0x8000000000000003

TDX_MAP_GPA_MAX_LEN = 2 << 20
"""KVM hands a MapGPA to user space in pieces of at most this size (bytes)."""

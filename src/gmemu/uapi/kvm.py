# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of KVM's uAPI that every architecture shares: <linux/kvm.h> and <linux/kvm_para.h>.

Checked against Linux 7.3-rc7.  What the in-place conversion series adds beyond that is marked where it stands.  Names are
the kernel's own; where the kernel numbers a closed set (capabilities, exit reasons) the set is an enum without the prefix.
"""

from __future__ import annotations

from enum import IntEnum

from .ioctl import IO, IOR, IOW, IOWR, ioctl_type
from .kvm_x86 import (
    kvm_clock_data,
    kvm_cpuid2,
    kvm_debugregs,
    kvm_fpu,
    kvm_guest_debug,
    kvm_irqchip,
    kvm_lapic_state,
    kvm_msr_filter,
    kvm_msr_list,
    kvm_msrs,
    kvm_pit_config,
    kvm_pit_state2,
    kvm_regs,
    kvm_sregs,
    kvm_sregs2,
    kvm_tpr_access_ctl,
    kvm_translation,
    kvm_vapic_addr,
    kvm_vcpu_events,
    kvm_x86_mce,
    kvm_xcrs,
    kvm_xsave,
)
from .layout import Struct, char, s16, s32, u8, u16, u32, u64

__all__ = [
    "KVM_X86_GET_MCE_CAP_SUPPORTED",
    "KVM_X86_SETUP_MCE",
    "KVM_X86_SET_MCE",
    "KVM_STATS_NAME_SIZE",
    "StatType",
    "StatUnit",
    "kvm_stats_desc",
    "kvm_stats_header",
    "GUEST_MEMFD_FLAG_INIT_SHARED",
    "GUESTMEM_HUGETLB_FLAG_1GB",
    "GUESTMEM_HUGETLB_FLAG_2MB",
    "GUESTMEM_HUGETLB_FLAG_SHIFT",
    "GUEST_MEMFD_FLAG_HUGETLB",
    "GUEST_MEMFD_FLAG_INIT_PRIVATE",
    "GUEST_MEMFD_FLAG_MMAP",
    "GUEST_MEMFD_FLAG_SUPPORT_SHARED",
    "KVMIO",
    "KVM_API_VERSION",
    "KVM_CAP_GMEM_CONVERSION",
    "KVM_CAP_GMEM_SHARED_MEM",
    "KVM_CHECK_EXTENSION",
    "KVM_CLEAR_DIRTY_LOG",
    "KVM_CREATE_GUEST_MEMFD",
    "KVM_CREATE_IRQCHIP",
    "KVM_CREATE_VCPU",
    "KVM_CREATE_VM",
    "KVM_DIRTY_LOG_INITIALLY_SET",
    "KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE",
    "KVM_ENABLE_CAP",
    "KVM_ENOSYS",
    "KVM_EXIT_IO_IN",
    "KVM_EXIT_IO_OUT",
    "KVM_GET_API_VERSION",
    "KVM_GET_CPUID2",
    "KVM_GET_DEBUGREGS",
    "KVM_GET_DIRTY_LOG",
    "KVM_GET_FPU",
    "KVM_GET_MP_STATE",
    "KVM_GET_MSRS",
    "KVM_GET_REGS",
    "KVM_GET_SREGS",
    "KVM_GET_SUPPORTED_CPUID",
    "KVM_GET_VCPU_MMAP_SIZE",
    "KVM_GET_XCRS",
    "KVM_GMEM_CONVERT_PRIVATE",
    "KVM_GMEM_CONVERT_SHARED",
    "KVM_GMEM_IO",
    "KVM_HC_MAP_GPA_RANGE",
    "KVM_INTERNAL_ERROR_DELIVERY_EV",
    "KVM_INTERNAL_ERROR_EMULATION",
    "KVM_INTERNAL_ERROR_SIMUL_EX",
    "KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON",
    "KVM_INTERRUPT",
    "KVM_MAP_GPA_RANGE_DECRYPTED",
    "KVM_MAP_GPA_RANGE_ENCRYPTED",
    "KVM_MAP_GPA_RANGE_PAGE_SZ_1G",
    "KVM_MAP_GPA_RANGE_PAGE_SZ_2M",
    "KVM_MAP_GPA_RANGE_PAGE_SZ_4K",
    "KVM_MEMORY_ATTRIBUTE_PRIVATE",
    "KVM_MEMORY_ENCRYPT_OP",
    "KVM_MEMORY_ENCRYPT_REG_REGION",
    "KVM_MEMORY_ENCRYPT_UNREG_REGION",
    "KVM_MEMORY_EXIT_FLAG_PRIVATE",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "KVM_PRE_FAULT_MEMORY",
    "KVM_RUN",
    "KVM_RUN_EXIT_OFFSET",
    "KVM_RUN_EXIT_SIZE",
    "KVM_SET_CPUID2",
    "KVM_SET_DEBUGREGS",
    "KVM_SET_FPU",
    "KVM_SET_MEMORY_ATTRIBUTES",
    "KVM_SET_MEMORY_ATTRIBUTES2",
    "KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE",
    "KVM_SET_MEMORY_ATTRIBUTES2_ZERO",
    "KVM_SET_MP_STATE",
    "KVM_SET_MSRS",
    "KVM_SET_REGS",
    "KVM_SET_SREGS",
    "KVM_SET_TSS_ADDR",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_SET_USER_MEMORY_REGION2",
    "KVM_SET_XCRS",
    "KVM_X86_SET_MSR_FILTER",
    "Cap",
    "ExitReason",
    "MpState",
    "SystemEvent",
    "VmType",
    "ioctl_name",
    "kvm_clear_dirty_log",
    "kvm_create_guest_memfd",
    "kvm_dirty_log",
    "kvm_enable_cap",
    "kvm_enc_region",
    "kvm_exit_fail_entry",
    "kvm_exit_hypercall",
    "kvm_exit_internal_error",
    "kvm_exit_io",
    "kvm_exit_memory_fault",
    "kvm_exit_mmio",
    "kvm_exit_msr",
    "kvm_exit_snp_req_certs",
    "kvm_exit_system_event",
    "kvm_exit_unshare",
    "kvm_gmem_convert",
    "kvm_interrupt",
    "kvm_memory_attributes",
    "kvm_memory_attributes2",
    "kvm_mp_state",
    "kvm_pre_fault_memory",
    "kvm_run",
    "kvm_userspace_memory_region",
    "kvm_userspace_memory_region2",
    "KVM_GET_MSR_INDEX_LIST",
    "KVM_GET_EMULATED_CPUID",
    "KVM_GET_MSR_FEATURE_INDEX_LIST",
    "KVM_SET_NR_MMU_PAGES",
    "KVM_SET_IDENTITY_MAP_ADDR",
    "KVM_IRQ_LINE",
    "KVM_GET_IRQCHIP",
    "KVM_SET_IRQCHIP",
    "KVM_IRQ_LINE_STATUS",
    "KVM_REGISTER_COALESCED_MMIO",
    "KVM_UNREGISTER_COALESCED_MMIO",
    "KVM_SET_GSI_ROUTING",
    "KVM_REINJECT_CONTROL",
    "KVM_IRQFD",
    "KVM_CREATE_PIT2",
    "KVM_SET_BOOT_CPU_ID",
    "KVM_IOEVENTFD",
    "KVM_SET_CLOCK",
    "KVM_GET_CLOCK",
    "KVM_GET_PIT2",
    "KVM_SET_PIT2",
    "KVM_SIGNAL_MSI",
    "KVM_GET_STATS_FD",
    "KVM_CREATE_DEVICE",
    "KVM_SET_DEVICE_ATTR",
    "KVM_GET_DEVICE_ATTR",
    "KVM_HAS_DEVICE_ATTR",
    "KVM_TRANSLATE",
    "KVM_SET_SIGNAL_MASK",
    "KVM_GET_LAPIC",
    "KVM_SET_LAPIC",
    "KVM_TPR_ACCESS_REPORTING",
    "KVM_SET_VAPIC_ADDR",
    "KVM_NMI",
    "KVM_SET_GUEST_DEBUG",
    "KVM_GET_VCPU_EVENTS",
    "KVM_SET_VCPU_EVENTS",
    "KVM_SET_TSC_KHZ",
    "KVM_GET_TSC_KHZ",
    "KVM_GET_XSAVE",
    "KVM_SET_XSAVE",
    "KVM_KVMCLOCK_CTRL",
    "KVM_SMI",
    "KVM_GET_SREGS2",
    "KVM_SET_SREGS2",
    "KVM_GET_XSAVE2",
    "kvm_irq_level",
    "kvm_coalesced_mmio_zone",
    "kvm_irq_routing",
    "kvm_irq_routing_entry",
    "kvm_irqfd",
    "kvm_ioeventfd",
    "kvm_msi",
    "kvm_signal_mask",
    "kvm_create_device",
    "kvm_device_attr",
]

KVMIO = 0xAE
KVM_API_VERSION = 12

# --- Closed sets ------------------------------------------------------------------------------------------------------


class Cap(IntEnum):
    """KVM_CAP_*: what KVM_CHECK_EXTENSION and KVM_ENABLE_CAP are asked about (those an x86 or arm64 VMM meets)."""

    IRQCHIP = 0
    HLT = 1
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    CLOCKSOURCE = 8
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    PIT = 11
    NOP_IO_DELAY = 12
    MP_STATE = 14
    COALESCED_MMIO = 15
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    REINJECT_CONTROL = 24
    IRQ_ROUTING = 25
    IRQ_INJECT_STATUS = 26
    JOIN_MEMORY_REGIONS_WORKS = 30
    MCE = 31
    IRQFD = 32
    PIT2 = 33
    SET_BOOT_CPU_ID = 34
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    INTR_SHADOW = 49
    DEBUGREGS = 50
    X86_ROBUST_SINGLESTEP = 51
    ENABLE_CAP = 54
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    ONE_REG = 70
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74
    KVMCLOCK_CTRL = 76
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    DEVICE_CTRL = 89
    EXT_EMUL_CPUID = 95
    ENABLE_CAP_VM = 98
    IOEVENTFD_NO_LENGTH = 100
    VM_ATTRIBUTES = 101
    CHECK_EXTENSION_VM = 105
    DISABLE_QUIRKS = 116
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    SPLIT_IRQCHIP = 121
    IOEVENTFD_ANY_LENGTH = 122
    VCPU_ATTRIBUTES = 127
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    GET_MSR_FEATURES = 153
    NESTED_STATE = 157
    MSR_PLATFORM_INFO = 159
    COALESCED_PIO = 162
    EXCEPTION_PAYLOAD = 164
    ARM_VM_IPA_SIZE = 165
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    HALT_POLL = 182
    LAST_CPU = 184
    SMALLER_MAXPHYADDR = 185
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    ENFORCE_PV_FEATURE_CPUID = 190
    DIRTY_LOG_RING = 192
    X86_BUS_LOCK_EXIT = 193
    SET_GUEST_DEBUG2 = 195
    VM_COPY_ENC_CONTEXT_FROM = 197
    SREGS2 = 200
    EXIT_HYPERCALL = 201
    BINARY_STATS_FD = 203
    EXIT_ON_EMULATION_FAILURE = 204
    ARM_MTE = 205
    VM_MOVE_ENC_CONTEXT_FROM = 206
    VM_GPA_BITS = 207
    XSAVE2 = 208
    SYS_ATTRIBUTES = 209
    DISABLE_QUIRKS2 = 213
    VM_TSC_CONTROL = 214
    SYSTEM_EVENT_DATA = 215
    X86_TRIPLE_FAULT_EVENT = 218
    X86_NOTIFY_VMEXIT = 219
    VM_DISABLE_NX_HUGE_PAGES = 220
    DIRTY_LOG_RING_ACQ_REL = 223
    DIRTY_LOG_RING_WITH_BITMAP = 225
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232
    MEMORY_ATTRIBUTES = 233
    GUEST_MEMFD = 234
    VM_TYPES = 235
    PRE_FAULT_MEMORY = 236
    X86_APIC_BUS_CYCLES_NS = 237
    X86_GUEST_MODE = 238
    ARM_EL2 = 240
    ARM_CACHEABLE_PFNMAP_SUPPORTED = 243
    GUEST_MEMFD_FLAGS = 244
    ARM_SEA_TO_USER = 245
    # Arm CCA series: 247 in v12, 248 in v13, 249 in v14; all taken by others meanwhile, so it will move.
    ARM_RMI = 249
    # The conversion series used 249 in v7 and 250 from v8.  7.3-rc7 gives 250 to PPC_COMPAT_CAPS, so a kernel that merges
    # the series may number it otherwise.
    GUEST_MEMFD_MEMORY_ATTRIBUTES = 250


class ExitReason(IntEnum):
    """KVM_EXIT_*: why KVM_RUN returned, in `kvm_run.exit_reason`."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    S390_SIEIC = 13
    S390_RESET = 14
    DCR = 15
    NMI = 16
    INTERNAL_ERROR = 17
    OSI = 18
    PAPR_HCALL = 19
    S390_UCONTROL = 20
    WATCHDOG = 21
    S390_TSCH = 22
    EPR = 23
    SYSTEM_EVENT = 24
    S390_STSI = 25
    IOAPIC_EOI = 26
    HYPERV = 27
    ARM_NISV = 28
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    RISCV_SBI = 35
    RISCV_CSR = 36
    NOTIFY = 37
    LOONGARCH_IOCSR = 38
    MEMORY_FAULT = 39
    TDX = 40
    ARM_SEA = 41
    ARM_LDST64B = 42
    SNP_REQ_CERTS = 43
    UNSHARE = 0x100
    """Proposed for pKVM with guest_memfd; it never had a number, and this one is ours."""


class VmType(IntEnum):
    """What KVM_CREATE_VM is asked for.

    On x86 KVM_X86_*_VM, which are also the bit numbers in what Cap.VM_TYPES returns.  On arm64 a type has its own bits, and
    the size of the guest's address space beside them (`kvm_arm64`); DEFAULT is the ordinary VM of both.
    """

    DEFAULT = 0
    SW_PROTECTED = 1
    SEV = 2
    SEV_ES = 3
    SNP = 4
    TDX = 5
    ARM_REALM = 1 << 8
    """Not in 7.3-rc7: the Arm CCA series, v14."""
    ARM_PROTECTED = 1 << 31


class MpState(IntEnum):
    """KVM_MP_STATE_*: what a vCPU is doing when it isn't in the guest."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
    STOPPED = 5
    CHECK_STOP = 6
    OPERATING = 7
    LOAD = 8
    AP_RESET_HOLD = 9
    SUSPENDED = 10


class SystemEvent(IntEnum):
    """KVM_SYSTEM_EVENT_*: the type of a KVM_EXIT_SYSTEM_EVENT."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6
    TDX_FATAL = 7


# --- Flags ------------------------------------------------------------------------------------------------------------

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEM_GUEST_MEMFD = 1 << 2

GUEST_MEMFD_FLAG_MMAP = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED = 1 << 1

# The RFC of May 2025 only.
GUEST_MEMFD_FLAG_SUPPORT_SHARED = 1 << 0
GUEST_MEMFD_FLAG_INIT_PRIVATE = 1 << 1
GUEST_MEMFD_FLAG_HUGETLB = 1 << 2
GUESTMEM_HUGETLB_FLAG_SHIFT = 58
GUESTMEM_HUGETLB_FLAG_2MB = 21 << GUESTMEM_HUGETLB_FLAG_SHIFT
GUESTMEM_HUGETLB_FLAG_1GB = 30 << GUESTMEM_HUGETLB_FLAG_SHIFT
KVM_CAP_GMEM_SHARED_MEM = 240
KVM_CAP_GMEM_CONVERSION = 241

KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3
KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3

# Content flags of the conversion series' RFC v4 and v5 only; since v6 `flags` must be 0.
KVM_SET_MEMORY_ATTRIBUTES2_ZERO = 1 << 0
KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE = 1 << 1

KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1 << 0
KVM_DIRTY_LOG_INITIALLY_SET = 1 << 1

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4

# Hypercall 12: args[0] gpa, args[1] 4 KiB pages, args[2] the bits below.
KVM_HC_MAP_GPA_RANGE = 12
KVM_MAP_GPA_RANGE_PAGE_SZ_4K = 0
KVM_MAP_GPA_RANGE_PAGE_SZ_2M = 1 << 0
KVM_MAP_GPA_RANGE_PAGE_SZ_1G = 1 << 1
KVM_MAP_GPA_RANGE_ENCRYPTED = 1 << 4
KVM_MAP_GPA_RANGE_DECRYPTED = 0 << 4

KVM_ENOSYS = 1000

# --- Memory -----------------------------------------------------------------------------------------------------------


class kvm_userspace_memory_region(Struct):
    """Argument of KVM_SET_USER_MEMORY_REGION; sizes and addresses in bytes."""

    slot: int = u32()
    flags: int = u32()
    guest_phys_addr: int = u64()
    memory_size: int = u64()
    userspace_addr: int = u64()


class kvm_userspace_memory_region2(Struct):
    """Argument of KVM_SET_USER_MEMORY_REGION2; `slot` bits 31:16 are the address space."""

    slot: int = u32()
    flags: int = u32()
    guest_phys_addr: int = u64()
    memory_size: int = u64()
    userspace_addr: int = u64()
    guest_memfd_offset: int = u64()
    guest_memfd: int = u32()
    pad1: int = u32()
    pad2: tuple[int, ...] = u64(14)


class kvm_memory_attributes(Struct):
    """Argument of KVM_SET_MEMORY_ATTRIBUTES on a VM; a gpa and a size in bytes."""

    address: int = u64()
    size: int = u64()
    attributes: int = u64()
    flags: int = u64()


class kvm_memory_attributes2(Struct):
    """Argument of KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd; a file offset and a size in bytes.

    `error_offset` is output only: where in the file the conversion stopped.  The first member is a union in the kernel; read
    or write it as `address` where the fd is a VM's (RFC v1 to v4).
    """

    offset: int = u64()
    size: int = u64()
    attributes: int = u64()
    flags: int = u64()
    error_offset: int = u64()
    reserved: tuple[int, ...] = u64(11)

    @property
    def address(self) -> int:
        """The union's other name: a gpa in bytes."""
        return self.offset

    @address.setter
    def address(self, gpa: int) -> None:
        self.offset = gpa


class kvm_gmem_convert(Struct):
    """Argument of KVM_GMEM_CONVERT_SHARED and _PRIVATE (the RFC of May 2025 only); bytes within the file."""

    offset: int = u64()
    size: int = u64()
    error_offset: int = u64()
    reserved: tuple[int, ...] = u64(5)


class kvm_create_guest_memfd(Struct):
    """Argument of KVM_CREATE_GUEST_MEMFD; size in bytes."""

    size: int = u64()
    flags: int = u64()
    reserved: tuple[int, ...] = u64(6)


class kvm_pre_fault_memory(Struct):
    """Argument of KVM_PRE_FAULT_MEMORY; `gpa` and `size` advance as pages are mapped (bytes)."""

    gpa: int = u64()
    size: int = u64()
    flags: int = u64()
    padding: tuple[int, ...] = u64(5)


class kvm_dirty_log(Struct):
    """Argument of KVM_GET_DIRTY_LOG; `dirty_bitmap` is a user address, one bit per page."""

    slot: int = u32()
    padding1: int = u32()
    dirty_bitmap: int = u64()


class kvm_clear_dirty_log(Struct):
    """Argument of KVM_CLEAR_DIRTY_LOG; pages, and the user address of a bitmap."""

    slot: int = u32()
    num_pages: int = u32()
    first_page: int = u64()
    dirty_bitmap: int = u64()


class kvm_enc_region(Struct):
    """Argument of KVM_MEMORY_ENCRYPT_REG_REGION and _UNREG_REGION; a user address and bytes."""

    addr: int = u64()
    size: int = u64()


class kvm_enable_cap(Struct):
    """Argument of KVM_ENABLE_CAP on a VM or a vCPU."""

    cap: int = u32()
    flags: int = u32()
    args: tuple[int, ...] = u64(4)
    pad: bytes = char(64)


class kvm_mp_state(Struct):
    """Argument of KVM_GET_MP_STATE and KVM_SET_MP_STATE: an `MpState`."""

    mp_state: int = u32()


class kvm_interrupt(Struct):
    """Argument of KVM_INTERRUPT: a vector."""

    irq: int = u32()


class kvm_irq_level(Struct):
    """Argument of KVM_IRQ_LINE and KVM_IRQ_LINE_STATUS; `irq` is a GSI, and the status in the latter's answer."""

    irq: int = u32()
    level: int = u32()


class kvm_coalesced_mmio_zone(Struct):
    """Argument of KVM_REGISTER_COALESCED_MMIO and its opposite; gpa (or port) and bytes."""

    addr: int = u64()
    size: int = u32()
    pio: int = u32()


class kvm_irq_routing(Struct):
    """Head of the argument of KVM_SET_GSI_ROUTING; `nr` of `kvm_irq_routing_entry` follow."""

    nr: int = u32()
    flags: int = u32()


class kvm_irq_routing_entry(Struct):
    """One route: to a pin (`type` 1; `u` is chip, pin), or a message (`type` 2; `u` is address, its high half, data)."""

    gsi: int = u32()
    type: int = u32()
    flags: int = u32()
    pad: int = u32()
    u: tuple[int, ...] = u32(8)


class kvm_irqfd(Struct):
    """Argument of KVM_IRQFD."""

    fd: int = u32()
    gsi: int = u32()
    flags: int = u32()
    resamplefd: int = u32()
    pad: bytes = char(16)


class kvm_ioeventfd(Struct):
    """Argument of KVM_IOEVENTFD; `addr` is a gpa or a port, `len` bytes."""

    datamatch: int = u64()
    addr: int = u64()
    len: int = u32()
    fd: int = s32()
    flags: int = u32()
    pad: bytes = char(36)


class kvm_msi(Struct):
    """Argument of KVM_SIGNAL_MSI."""

    address_lo: int = u32()
    address_hi: int = u32()
    data: int = u32()
    flags: int = u32()
    devid: int = u32()
    pad: bytes = char(12)


class kvm_signal_mask(Struct):
    """Head of the argument of KVM_SET_SIGNAL_MASK; `len` bytes of a kernel sigset follow."""

    len: int = u32()


KVM_STATS_NAME_SIZE = 48


class StatType(IntEnum):
    """KVM_STATS_TYPE_*: what a value of a stats descriptor is, in its flags."""

    CUMULATIVE = 0
    INSTANT = 1
    PEAK = 2
    LINEAR_HIST = 3
    LOG_HIST = 4


class StatUnit(IntEnum):
    """KVM_STATS_UNIT_*, in the same flags; the base is ten (KVM_STATS_BASE_POW10, 0)."""

    NONE = 0x00
    BYTES = 0x10
    SECONDS = 0x20
    CYCLES = 0x30
    BOOLEAN = 0x40


class kvm_stats_header(Struct):
    """What a descriptor of KVM_GET_STATS_FD begins with; offsets in bytes."""

    flags: int = u32()
    name_size: int = u32()
    num_desc: int = u32()
    id_offset: int = u32()
    desc_offset: int = u32()
    data_offset: int = u32()


class kvm_stats_desc(Struct):
    """One kind of value: `size` words of 8 bytes at `offset` from the data's start (bytes)."""

    flags: int = u32()
    exponent: int = s16()
    size: int = u16()
    offset: int = u32()
    bucket_size: int = u32()
    name: bytes = char(KVM_STATS_NAME_SIZE)


class kvm_create_device(Struct):
    """Argument of KVM_CREATE_DEVICE."""

    type: int = u32()
    fd: int = u32()
    flags: int = u32()


class kvm_device_attr(Struct):
    """Argument of KVM_SET_DEVICE_ATTR and its like; `addr` is a user address."""

    flags: int = u32()
    group: int = u32()
    attr: int = u64()
    addr: int = u64()


# --- The page shared with a vCPU --------------------------------------------------------------------------------------


class kvm_run(Struct):
    """The head of struct kvm_run, up to the exit union (x86 and arm64; s390 puts its PSW in between)."""

    request_interrupt_window: int = u8()
    immediate_exit: int = u8()
    padding1: bytes = char(6)
    exit_reason: int = u32()
    ready_for_interrupt_injection: int = u8()
    if_flag: int = u8()
    flags: int = u16()
    cr8: int = u64()
    apic_base: int = u64()


KVM_RUN_EXIT_OFFSET = kvm_run.SIZE
"""Where the exit union starts in struct kvm_run, in bytes."""
KVM_RUN_EXIT_SIZE = 256
"""What the exit union is padded to, in bytes."""


class kvm_exit_fail_entry(Struct):
    """kvm_run.fail_entry, for KVM_EXIT_FAIL_ENTRY."""

    hardware_entry_failure_reason: int = u64()
    cpu: int = u32()


class kvm_exit_io(Struct):
    """kvm_run.io, for KVM_EXIT_IO; `data_offset` counts bytes from the start of struct kvm_run."""

    direction: int = u8()
    size: int = u8()
    port: int = u16()
    count: int = u32()
    data_offset: int = u64()


class kvm_exit_mmio(Struct):
    """kvm_run.mmio, for KVM_EXIT_MMIO; `len` in bytes."""

    phys_addr: int = u64()
    data: bytes = char(8)
    len: int = u32()
    is_write: int = u8()


class kvm_exit_hypercall(Struct):
    """kvm_run.hypercall, for KVM_EXIT_HYPERCALL; user space answers in `ret`."""

    nr: int = u64()
    args: tuple[int, ...] = u64(6)
    ret: int = u64()
    flags: int = u64()


class kvm_exit_internal_error(Struct):
    """kvm_run.internal, for KVM_EXIT_INTERNAL_ERROR; `ndata` of `data` are valid."""

    suberror: int = u32()
    ndata: int = u32()
    data: tuple[int, ...] = u64(16)


class kvm_exit_system_event(Struct):
    """kvm_run.system_event, for KVM_EXIT_SYSTEM_EVENT; `data[0]` is also called flags."""

    type: int = u32()
    ndata: int = u32()
    data: tuple[int, ...] = u64(16)


class kvm_exit_memory_fault(Struct):
    """kvm_run.memory_fault, for KVM_EXIT_MEMORY_FAULT; a gpa and bytes."""

    flags: int = u64()
    gpa: int = u64()
    size: int = u64()


class kvm_exit_unshare(Struct):
    """kvm_run.unshare, for the proposed KVM_EXIT_UNSHARE: what the guest wants back; a gpa and bytes."""

    gpa: int = u64()
    size: int = u64()


class kvm_exit_msr(Struct):
    """kvm_run.msr, for KVM_EXIT_X86_RDMSR and _WRMSR; user space answers in `error` and `data`."""

    error: int = u8()
    pad: tuple[int, ...] = u8(7)
    reason: int = u32()
    index: int = u32()
    data: int = u64()


class kvm_exit_snp_req_certs(Struct):
    """kvm_run.snp_req_certs, for KVM_EXIT_SNP_REQ_CERTS; user space answers in `ret`."""

    gpa: int = u64()
    npages: int = u64()
    ret: int = u64()


# --- Requests ---------------------------------------------------------------------------------------------------------

# /dev/kvm
KVM_GET_API_VERSION = IO(KVMIO, 0x00)
KVM_CREATE_VM = IO(KVMIO, 0x01)
KVM_CHECK_EXTENSION = IO(KVMIO, 0x03)
KVM_GET_VCPU_MMAP_SIZE = IO(KVMIO, 0x04)
KVM_GET_SUPPORTED_CPUID = IOWR(KVMIO, 0x05, kvm_cpuid2)

# A VM
KVM_CREATE_VCPU = IO(KVMIO, 0x41)
KVM_GET_DIRTY_LOG = IOW(KVMIO, 0x42, kvm_dirty_log)
KVM_SET_USER_MEMORY_REGION = IOW(KVMIO, 0x46, kvm_userspace_memory_region)
KVM_SET_TSS_ADDR = IO(KVMIO, 0x47)
KVM_X86_SET_MSR_FILTER = IOW(KVMIO, 0xC6, kvm_msr_filter)
KVM_SET_USER_MEMORY_REGION2 = IOW(KVMIO, 0x49, kvm_userspace_memory_region2)
KVM_CREATE_IRQCHIP = IO(KVMIO, 0x60)
KVM_MEMORY_ENCRYPT_REG_REGION = IOR(KVMIO, 0xBB, kvm_enc_region)
KVM_MEMORY_ENCRYPT_UNREG_REGION = IOR(KVMIO, 0xBC, kvm_enc_region)
KVM_CLEAR_DIRTY_LOG = IOWR(KVMIO, 0xC0, kvm_clear_dirty_log)
KVM_SET_MEMORY_ATTRIBUTES = IOW(KVMIO, 0xD2, kvm_memory_attributes)
KVM_CREATE_GUEST_MEMFD = IOWR(KVMIO, 0xD4, kvm_create_guest_memfd)

# A VM or a vCPU; the argument of ENCRYPT_OP is one unsigned long, the address of a kvm_sev_cmd or kvm_tdx_cmd
KVM_ENABLE_CAP = IOW(KVMIO, 0xA3, kvm_enable_cap)
KVM_MEMORY_ENCRYPT_OP = IOWR(KVMIO, 0xBA, 8)

# A vCPU
KVM_RUN = IO(KVMIO, 0x80)
KVM_GET_REGS = IOR(KVMIO, 0x81, kvm_regs)
KVM_SET_REGS = IOW(KVMIO, 0x82, kvm_regs)
KVM_GET_SREGS = IOR(KVMIO, 0x83, kvm_sregs)
KVM_SET_SREGS = IOW(KVMIO, 0x84, kvm_sregs)
KVM_INTERRUPT = IOW(KVMIO, 0x86, kvm_interrupt)
KVM_GET_MSRS = IOWR(KVMIO, 0x88, kvm_msrs)
KVM_SET_MSRS = IOW(KVMIO, 0x89, kvm_msrs)
KVM_GET_FPU = IOR(KVMIO, 0x8C, kvm_fpu)
KVM_SET_FPU = IOW(KVMIO, 0x8D, kvm_fpu)
KVM_SET_CPUID2 = IOW(KVMIO, 0x90, kvm_cpuid2)
KVM_GET_CPUID2 = IOWR(KVMIO, 0x91, kvm_cpuid2)
KVM_GET_MP_STATE = IOR(KVMIO, 0x98, kvm_mp_state)
KVM_SET_MP_STATE = IOW(KVMIO, 0x99, kvm_mp_state)
KVM_GET_DEBUGREGS = IOR(KVMIO, 0xA1, kvm_debugregs)
KVM_SET_DEBUGREGS = IOW(KVMIO, 0xA2, kvm_debugregs)
KVM_GET_XCRS = IOR(KVMIO, 0xA6, kvm_xcrs)
KVM_SET_XCRS = IOW(KVMIO, 0xA7, kvm_xcrs)
KVM_PRE_FAULT_MEMORY = IOWR(KVMIO, 0xD5, kvm_pre_fault_memory)

# For machine code and its devices: /dev/kvm, VMs and vCPUs
KVM_GET_MSR_INDEX_LIST = IOWR(KVMIO, 0x02, kvm_msr_list)
KVM_GET_EMULATED_CPUID = IOWR(KVMIO, 0x09, kvm_cpuid2)
KVM_GET_MSR_FEATURE_INDEX_LIST = IOWR(KVMIO, 0x0A, kvm_msr_list)
KVM_SET_NR_MMU_PAGES = IO(KVMIO, 0x44)
KVM_SET_IDENTITY_MAP_ADDR = IOW(KVMIO, 0x48, 8)
KVM_IRQ_LINE = IOW(KVMIO, 0x61, kvm_irq_level)
KVM_GET_IRQCHIP = IOWR(KVMIO, 0x62, kvm_irqchip)
KVM_SET_IRQCHIP = IOR(KVMIO, 0x63, kvm_irqchip)
KVM_IRQ_LINE_STATUS = IOWR(KVMIO, 0x67, kvm_irq_level)
KVM_REGISTER_COALESCED_MMIO = IOW(KVMIO, 0x67, kvm_coalesced_mmio_zone)
KVM_UNREGISTER_COALESCED_MMIO = IOW(KVMIO, 0x68, kvm_coalesced_mmio_zone)
KVM_SET_GSI_ROUTING = IOW(KVMIO, 0x6A, kvm_irq_routing)
KVM_REINJECT_CONTROL = IO(KVMIO, 0x71)
KVM_IRQFD = IOW(KVMIO, 0x76, kvm_irqfd)
KVM_CREATE_PIT2 = IOW(KVMIO, 0x77, kvm_pit_config)
KVM_SET_BOOT_CPU_ID = IO(KVMIO, 0x78)
KVM_IOEVENTFD = IOW(KVMIO, 0x79, kvm_ioeventfd)
KVM_SET_CLOCK = IOW(KVMIO, 0x7B, kvm_clock_data)
KVM_GET_CLOCK = IOR(KVMIO, 0x7C, kvm_clock_data)
KVM_GET_PIT2 = IOR(KVMIO, 0x9F, kvm_pit_state2)
KVM_SET_PIT2 = IOW(KVMIO, 0xA0, kvm_pit_state2)
KVM_SIGNAL_MSI = IOW(KVMIO, 0xA5, kvm_msi)
KVM_GET_STATS_FD = IO(KVMIO, 0xCE)
KVM_CREATE_DEVICE = IOWR(KVMIO, 0xE0, kvm_create_device)
KVM_SET_DEVICE_ATTR = IOW(KVMIO, 0xE1, kvm_device_attr)
KVM_GET_DEVICE_ATTR = IOW(KVMIO, 0xE2, kvm_device_attr)
KVM_HAS_DEVICE_ATTR = IOW(KVMIO, 0xE3, kvm_device_attr)
KVM_TRANSLATE = IOWR(KVMIO, 0x85, kvm_translation)
KVM_SET_SIGNAL_MASK = IOW(KVMIO, 0x8B, kvm_signal_mask)
KVM_GET_LAPIC = IOR(KVMIO, 0x8E, kvm_lapic_state)
KVM_SET_LAPIC = IOW(KVMIO, 0x8F, kvm_lapic_state)
KVM_TPR_ACCESS_REPORTING = IOWR(KVMIO, 0x92, kvm_tpr_access_ctl)
KVM_SET_VAPIC_ADDR = IOW(KVMIO, 0x93, kvm_vapic_addr)
KVM_NMI = IO(KVMIO, 0x9A)
KVM_X86_SETUP_MCE = IOW(KVMIO, 0x9C, 8)
KVM_X86_GET_MCE_CAP_SUPPORTED = IOR(KVMIO, 0x9D, 8)
KVM_X86_SET_MCE = IOW(KVMIO, 0x9E, kvm_x86_mce)
KVM_SET_GUEST_DEBUG = IOW(KVMIO, 0x9B, kvm_guest_debug)
KVM_GET_VCPU_EVENTS = IOR(KVMIO, 0x9F, kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = IOW(KVMIO, 0xA0, kvm_vcpu_events)
KVM_SET_TSC_KHZ = IO(KVMIO, 0xA2)
KVM_GET_TSC_KHZ = IO(KVMIO, 0xA3)
KVM_GET_XSAVE = IOR(KVMIO, 0xA4, kvm_xsave)
KVM_SET_XSAVE = IOW(KVMIO, 0xA5, kvm_xsave)
KVM_KVMCLOCK_CTRL = IO(KVMIO, 0xAD)
KVM_SMI = IO(KVMIO, 0xB7)
KVM_GET_SREGS2 = IOR(KVMIO, 0xCC, kvm_sregs2)
KVM_SET_SREGS2 = IOW(KVMIO, 0xCD, kvm_sregs2)
KVM_GET_XSAVE2 = IOR(KVMIO, 0xCF, kvm_xsave)

# A guest_memfd.  ATTRIBUTES2 shares its nr with ATTRIBUTES; direction and size tell them apart.  The CONVERT pair existed in
# the RFC of May 2025 only.
KVM_SET_MEMORY_ATTRIBUTES2 = IOWR(KVMIO, 0xD2, kvm_memory_attributes2)
KVM_GMEM_IO = 0xAF
KVM_GMEM_CONVERT_SHARED = IOWR(KVM_GMEM_IO, 0x41, kvm_gmem_convert)
KVM_GMEM_CONVERT_PRIVATE = IOWR(KVM_GMEM_IO, 0x42, kvm_gmem_convert)

# By type byte: nothing else named KVM_* here is as large as a request.
_NAMES: dict[int, str] = {
    value: name
    for name, value in globals().items()
    if name.startswith("KVM_") and type(value) is int and ioctl_type(value) in (KVMIO, KVM_GMEM_IO)
}


def ioctl_name(request: int) -> str:
    """The name of a request number for people to read, or the number itself in hexadecimal when it isn't known here."""
    return _NAMES.get(request) or f"{request:#010x}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of /dev/kvm, VMs, vCPUs and memslots."""

from __future__ import annotations

from errno import (
    E2BIG,
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EFAULT,
    EINTR,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ENOSPC,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
)
from typing import TYPE_CHECKING

from ..uapi.kvm import Cap
from .base import rule

if TYPE_CHECKING:
    from ..profiles import Profile

_MAIN = "virt/kvm/kvm_main.c: "
_X86 = "arch/x86/kvm/x86.c: "
_MMU = "arch/x86/kvm/mmu/mmu.c: "
_SLOT = _MAIN + "kvm_set_memory_region()"


def _vm_attributes(profile: Profile) -> bool:
    return profile.vm_attributes


def _no_tdp(profile: Profile) -> bool:
    return not profile.caps[Cap.PRE_FAULT_MEMORY].device


# Any file

DEVICE_ARG = rule("kvm.device.argument", EINVAL, "the argument must be 0", _MAIN + "kvm_dev_ioctl()")
DEVICE_IOCTL = rule("kvm.device.ioctl", EINVAL, "/dev/kvm must know the ioctl", _X86 + "kvm_arch_dev_ioctl()")
VM_IOCTL = rule("kvm.vm.ioctl", ENOTTY, "a VM must know the ioctl", _X86 + "kvm_arch_vm_ioctl()")
VCPU_IOCTL = rule("kvm.vcpu.ioctl", EINVAL, "a vCPU must know the ioctl", _X86 + "kvm_arch_vcpu_ioctl()")
FOREIGN_MM = rule(
    "kvm.foreign-process",
    EIO,
    "a VM and its vCPUs may be used only by the process that created the VM",
    _MAIN + "kvm_vm_ioctl(), kvm_vcpu_ioctl()",
    advice="A child of fork() needs a VM of its own.",
)
VM_DEAD = rule("kvm.vm.dead", EIO, "the VM must not have been marked dead", _MAIN + "kvm_vm_ioctl()")
VM_BUGGED = rule(
    "kvm.vm.bugged",
    EIO,
    "KVM must not have found itself or the trusted entity at fault",
    "include/linux/kvm_host.h: KVM_BUG()",
)

# Creation

VM_TYPE = rule(
    "kvm.create-vm.type",
    EINVAL,
    "the VM type must be one that kernel and processor have (KVM_CAP_VM_TYPES reports them on x86)",
    _X86 + "kvm_arch_init_vm()",
    advice="SEV and SEV-ES are not emulated; use KVM_X86_SNP_VM.",
)
VM_IPA_BITS = rule(
    "kvm.create-vm.ipa-bits",
    EINVAL,
    "a guest's address space has 32 bits at least, and no more than KVM_CAP_ARM_VM_IPA_SIZE reports",
    "arch/arm64/kvm/mmu.c: kvm_init_ipa_range()",
)
VCPU_ID = rule(
    "kvm.create-vcpu.id", EINVAL, "a vCPU id must be below KVM_CAP_MAX_VCPU_ID", _MAIN + "kvm_vm_ioctl_create_vcpu()"
)
VCPU_MANY = rule(
    "kvm.create-vcpu.many",
    EINVAL,
    "a VM may have no more than KVM_CAP_MAX_VCPUS vCPUs",
    _MAIN + "kvm_vm_ioctl_create_vcpu()",
)
VCPU_EXISTS = rule("kvm.create-vcpu.exists", EEXIST, "a vCPU id may be used once", _MAIN + "kvm_vm_ioctl_create_vcpu()")
ENABLE_CAP = rule(
    "kvm.enable-cap.unknown", EINVAL, "the capability must be one that can be enabled", _X86 + "kvm_vm_ioctl_enable_cap()"
)
ENABLE_CAP_FLAGS = rule("kvm.enable-cap.flags", EINVAL, "flags must be 0", _X86 + "kvm_vm_ioctl_enable_cap()")
ENABLE_CAP_ARGS = rule(
    "kvm.enable-cap.argument",
    EINVAL,
    "the argument may have only bits that the capability reports",
    _X86 + "kvm_vm_ioctl_enable_cap()",
)

# Memslots, in the order of the checks

SLOT_ID_USER = rule(
    "kvm.slot.id", EINVAL, "the slot number must be below KVM_CAP_NR_MEMSLOTS", _MAIN + "kvm_vm_ioctl_set_memory_region()"
)
SLOT_V1_FLAGS = rule(
    "kvm.slot.v1-flags",
    EINVAL,
    "KVM_SET_USER_MEMORY_REGION takes only LOG_DIRTY_PAGES and READONLY",
    _MAIN + "kvm_vm_ioctl()",
    advice="Use KVM_SET_USER_MEMORY_REGION2 for guest_memfd.",
)
SLOT_FLAGS = rule(
    "kvm.slot.flags",
    EINVAL,
    "slot flags must be known and go together; GUEST_MEMFD excludes LOG_DIRTY_PAGES and READONLY, and may need a VM with "
    "private memory",
    _MAIN + "check_memory_region_flags()",
)
SLOT_SIZE = rule("kvm.slot.size-unaligned", EINVAL, "memory_size must be a multiple of the page size", _SLOT)
SLOT_GPA = rule("kvm.slot.gpa-unaligned", EINVAL, "guest_phys_addr must be a multiple of the page size", _SLOT)
SLOT_HVA = rule(
    "kvm.slot.hva", EINVAL, "userspace_addr must be page aligned and the whole range must lie in user space", _SLOT
)
SLOT_GMEM_OFFSET = rule(
    "kvm.slot.gmem-offset", EINVAL, "guest_memfd_offset must be page aligned, and with the size must not wrap", _SLOT
)
SLOT_AS = rule("kvm.slot.address-space", EINVAL, "the address space id (slot >> 16) must exist for the VM", _SLOT)
SLOT_GPA_WRAP = rule("kvm.slot.gpa-wrap", EINVAL, "guest_phys_addr + memory_size must not wrap", _SLOT)
SLOT_PAGES = rule("kvm.slot.too-large", EINVAL, "a slot may have no more than 2**31 - 1 pages", _SLOT)
SLOT_DELETE_NONE = rule("kvm.slot.delete-missing", EINVAL, "only an existing slot can be deleted (memory_size 0)", _SLOT)
SLOT_IMMUTABLE = rule("kvm.slot.gmem-immutable", EINVAL, "a slot with a guest_memfd can't be changed, only deleted", _SLOT)
SLOT_MODIFY = rule(
    "kvm.slot.modify", EINVAL, "an existing slot keeps its size, userspace_addr, and READONLY and GUEST_MEMFD flags", _SLOT
)
SLOT_OVERLAP = rule(
    "kvm.slot.overlap", EEXIST, "slots of an address space must not overlap in guest-physical addresses", _SLOT
)
SLOT_MAX_GFN = rule(
    "kvm.slot.max-gfn",
    EINVAL,
    "the slot must end within the machine's MAXPHYADDR (48 bits on AMD's, 52 on others)",
    _X86 + "kvm_arch_prepare_memory_region()",
)
DIRTY_SLOT = rule(
    "kvm.dirty-log.slot", EINVAL, "the slot number and address space must be valid", _MAIN + "kvm_get_dirty_log_protect()"
)
DIRTY_NONE = rule(
    "kvm.dirty-log.none", ENOENT, "the slot must exist and have LOG_DIRTY_PAGES", _MAIN + "kvm_get_dirty_log_protect()"
)
CLEAR_LOG_RANGE = rule(
    "kvm.dirty-log.clear-range",
    EINVAL,
    "KVM_CLEAR_DIRTY_LOG takes whole longs: first_page a multiple of 64, num_pages too unless it ends with the slot",
    _MAIN + "kvm_clear_dirty_log_protect()",
)

# KVM_SET_MEMORY_ATTRIBUTES

_ATTR = _MAIN + "kvm_vm_ioctl_set_mem_attributes()"
ATTR_FLAGS = rule("kvm.attributes.flags", EINVAL, "flags must be 0", _ATTR)
ATTR_UNSUPPORTED = rule(
    "kvm.attributes.unsupported",
    EINVAL,
    "attributes must be among those that KVM_CAP_MEMORY_ATTRIBUTES reports for the VM",
    _ATTR,
    advice="Where conversion is in place, use KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd.",
)
ATTR_RANGE = rule("kvm.attributes.range", EINVAL, "size must not be 0, and address + size must not wrap", _ATTR)
ATTR_UNALIGNED = rule("kvm.attributes.unaligned", EINVAL, "address and size must be multiples of the page size", _ATTR)

# KVM_PRE_FAULT_MEMORY

_PREFAULT = _MAIN + "kvm_vcpu_pre_fault_memory()"
PREFAULT_FLAGS = rule("kvm.pre-fault.flags", EINVAL, "flags must be 0", _PREFAULT)
PREFAULT_RANGE = rule(
    "kvm.pre-fault.range", EINVAL, "gpa and size must be page aligned, size not 0, and the range must not wrap", _PREFAULT
)
PREFAULT_SIGNAL = rule("kvm.pre-fault.signal", EINTR, "no signal may be pending", _PREFAULT)
PREFAULT_EARLY = rule(
    "kvm.pre-fault.early",
    EOPNOTSUPP,
    "memory can be pre-faulted only once the VM's launch is final",
    _MMU + "kvm_arch_vcpu_pre_fault_memory()",
)
PREFAULT_NO_PAGES = rule(
    "kvm.pre-fault.no-mmu-pages",
    ENOSPC,
    "the VM must have had a slot, as the shadow MMU may use so many pages as there is memory",
    _MMU + "make_mmu_pages_available()",
    when=_no_tdp,
)
PREFAULT_NO_TDP = rule(
    "kvm.pre-fault.no-tdp",
    EOPNOTSUPP,
    "memory can be pre-faulted only where the processor pages guests itself (KVM_CAP_PRE_FAULT_MEMORY)",
    _MMU + "kvm_tdp_page_prefault()",
    when=_no_tdp,
)
PREFAULT_NO_SLOT = rule("kvm.pre-fault.no-slot", ENOENT, "the gpa must be in a slot", _MMU + "kvm_tdp_page_prefault()")
PREFAULT_DELETING = rule(
    "kvm.pre-fault.slot-deleted", EAGAIN, "the slot must not be about to be deleted or moved", _MMU + "kvm_mmu_faultin_pfn()"
)

# KVM_RUN and faults by the guest

RUN_ARG = rule("kvm.run.argument", EINVAL, "KVM_RUN takes no argument", _MAIN + "kvm_vcpu_ioctl()")
RUN_IMMEDIATE = rule(
    "kvm.run.immediate-exit", EINTR, "immediate_exit asks to come back without running", _X86 + "kvm_arch_vcpu_ioctl_run()"
)
RUN_SIGNAL = rule("kvm.run.signal", EINTR, "no signal may be pending", _X86 + "vcpu_run()")
RUN_HYPERCALL_RET = rule(
    "kvm.run.hypercall-ret",
    EINVAL,
    "user space may answer an SNP guest's page-state change with 0, EINVAL or EAGAIN only",
    "arch/x86/kvm/x86.h: kvm_is_valid_map_gpa_range_ret()",
    when=lambda p: p.snp_checks_psc_answer,
)
FAULT_MISMATCH = rule(
    "kvm.fault.mismatch",
    EFAULT,
    "the guest's access must be of the kind that the page's attribute says, private or shared",
    _MMU + "kvm_mmu_faultin_pfn()",
    advice="KVM_EXIT_MEMORY_FAULT tells gpa and kind: convert the page and run again.",
)
FAULT_PRIVATE_NO_SLOT = rule(
    "kvm.fault.private-no-slot", EFAULT, "a private access needs a slot", _MMU + "kvm_handle_noslot_fault()"
)
FAULT_NO_GMEM = rule(
    "kvm.fault.no-gmem", EFAULT, "a private access needs a slot with a guest_memfd", _MMU + "kvm_mmu_faultin_pfn_gmem()"
)
FAULT_HVA = rule(
    "kvm.fault.hva",
    EFAULT,
    "the slot's userspace_addr must be mapped and accessible",
    "virt/kvm/kvm_main.c: hva_to_pfn(); " + _MMU + "kvm_handle_error_pfn()",
)
FAULT_HVA_POISON = rule(
    "kvm.fault.hva-hwpoison",
    EINTR,
    "the memory behind the slot's userspace_addr must be good: the vCPU's thread is sent SIGBUS for it",
    _MMU + "kvm_send_hwpoison_signal()",
    signal="SIGBUS",
)
REGS_PROTECTED = rule(
    "kvm.regs.protected",
    EINVAL,
    "the registers of a vCPU whose state is encrypted can't be read or written",
    _X86 + "kvm_arch_vcpu_ioctl_set_regs()",
    advice="Set them before the launch is final.",
)
SREGS_INVALID = rule("kvm.sregs.invalid", EINVAL, "the special registers must be consistent", _X86 + "kvm_is_valid_sregs()")
XCRS_INVALID = rule("kvm.xcrs.invalid", EINVAL, "xcr0 must be valid, and flags 0", _X86 + "kvm_vcpu_ioctl_x86_set_xcrs()")
DEBUGREGS_INVALID = rule(
    "kvm.debugregs.invalid",
    EINVAL,
    "flags must be 0 and the upper halves of dr6 and dr7 clear",
    _X86 + "kvm_vcpu_ioctl_x86_set_debugregs()",
)
MP_STATE_INVALID = rule(
    "kvm.mp-state.invalid",
    EINVAL,
    "the mp_state must be RUNNABLE, or with a local APIC in the kernel one that x86 has",
    _X86 + "kvm_arch_vcpu_ioctl_set_mpstate()",
)
CPUID_ROOM = rule(
    "kvm.cpuid.room",
    E2BIG,
    "the buffer of KVM_GET_SUPPORTED_CPUID or KVM_GET_CPUID2 must have room for every entry",
    "kvm_dev_ioctl_get_cpuid(), kvm_vcpu_ioctl_get_cpuid2()",
    advice="Ask again with more room.",
)
CPUID_AFTER_RUN = rule(
    "kvm.cpuid.after-run",
    EINVAL,
    "once a vCPU has run its CPUID can't be changed",
    "kvm_set_cpuid()",
)
CPUID_VIRTUAL_BITS = rule(
    "kvm.cpuid.virtual-bits",
    EINVAL,
    "leaf 0x80000008 must tell 48 or 57 virtual address bits, or none",
    "kvm_check_cpuid()",
)
CPUID_MANY = rule(
    "kvm.cpuid.many",
    E2BIG,
    "there may be no more than 256 CPUID entries",
    "arch/x86/kvm/cpuid.c: kvm_vcpu_ioctl_set_cpuid2()",
)
MSR_FILTER_FLAGS = rule(
    "kvm.msr-filter.flags",
    EINVAL,
    "KVM_X86_SET_MSR_FILTER has one flag, KVM_MSR_FILTER_DEFAULT_DENY",
    _X86 + "kvm_vm_ioctl_set_msr_filter()",
)
MSR_FILTER_RANGE = rule(
    "kvm.msr-filter.range",
    EINVAL,
    "a range of MSRs must be for reading, writing or both, and no longer than its bitmap may be",
    _X86 + "kvm_add_msr_filter()",
)
MSR_FILTER_EMPTY = rule(
    "kvm.msr-filter.empty",
    EINVAL,
    "a filter that denies by default must have a range",
    _X86 + "kvm_vm_ioctl_set_msr_filter()",
)
IRQCHIP_EXISTS = rule(
    "kvm.irqchip.exists",
    EEXIST,
    "a VM has one set of interrupt controllers",
    _X86 + "kvm_arch_vm_ioctl()",
)
IRQCHIP_VCPUS = rule(
    "kvm.irqchip.vcpus",
    EINVAL,
    "interrupt controllers must be created before the first vCPU",
    _X86 + "kvm_arch_vm_ioctl()",
)
IRQCHIP_SPLIT_VCPUS = rule(
    "kvm.irqchip.split-vcpus",
    EEXIST,
    "local APICs without the other controllers must be asked for before the first vCPU",
    _X86 + "kvm_vm_ioctl_enable_cap()",
)
IRQCHIP_NONE = rule(
    "kvm.irqchip.none",
    ENXIO,
    "the call needs KVM_CREATE_IRQCHIP first",
    _X86 + "kvm_arch_vm_ioctl()",
)
IRQCHIP_ID = rule(
    "kvm.irqchip.id",
    EINVAL,
    "chips are 0 and 1 (PIC) and 2 (I/O APIC)",
    _X86 + "kvm_vm_ioctl_get_irqchip()",
)
GSI_ROUTING = rule(
    "kvm.gsi-routing",
    EINVAL,
    "a routing table needs an irqchip, and for each GSI one message, or a pin of each chip in the kernel, without flags",
    "virt/kvm/irqchip.c: kvm_set_irq_routing()",
)
MSI = rule(
    "kvm.msi",
    EINVAL,
    "a message needs an irqchip, no flag but that of a device's id, and with 32-bit destinations bits 32 to 39 clear",
    "virt/kvm/irqchip.c: kvm_send_userspace_msi()",
)
MSI_NOBODY = rule(
    "kvm.msi.nobody",
    EPERM,
    "a message must find a local APIC: a broadcast any, others a VM that has one",
    "arch/x86/kvm/irq_comm.c: kvm_irq_delivery_to_apic(), whose -1 is told as it is",
    advice="Create a vCPU first.",
)
PIT_NO_IRQCHIP = rule(
    "kvm.pit.no-irqchip",
    ENOENT,
    "a PIT needs interrupt controllers",
    _X86 + "kvm_arch_vm_ioctl()",
)
PIT_EXISTS = rule(
    "kvm.pit.exists",
    EEXIST,
    "a VM has one PIT",
    _X86 + "kvm_arch_vm_ioctl()",
)
PIT_NONE = rule(
    "kvm.pit.none",
    ENXIO,
    "the call needs KVM_CREATE_PIT2 first",
    _X86 + "kvm_arch_vm_ioctl()",
)
TSS_ADDR = rule(
    "kvm.tss-addr",
    EINVAL,
    "three pages of TSS must fit below 4 GiB",
    _X86 + "kvm_vm_ioctl_set_tss_addr()",
)
IDENTITY_MAP = rule(
    "kvm.identity-map",
    EINVAL,
    "the identity map must be placed before the first vCPU is created",
    _X86 + "kvm_arch_vm_ioctl()",
)
BOOT_CPU_ID = rule(
    "kvm.boot-cpu-id",
    EBUSY,
    "which vCPU boots must be said before the first is created",
    _X86 + "kvm_arch_vm_ioctl()",
)
BOOT_CPU_ID_LIMIT = rule(
    "kvm.boot-cpu-id.limit",
    EINVAL,
    "the boot processor's id must be one that a vCPU may have",
    _X86 + "kvm_arch_vm_ioctl()",
)
NR_MMU_PAGES = rule(
    "kvm.nr-mmu-pages",
    EINVAL,
    "there must be at least 64 pages for the MMU",
    _X86 + "kvm_vm_ioctl_set_nr_mmu_pages()",
)
CLOCK_FLAGS = rule(
    "kvm.clock.flags",
    EINVAL,
    "KVM_SET_CLOCK takes the flags that KVM_GET_CLOCK gives",
    _X86 + "kvm_vm_ioctl_set_clock()",
)
TSC_KHZ = rule(
    "kvm.tsc-khz",
    EINVAL,
    "a frequency must be a number of kHz, and a VM's since 6.18 be set before its first vCPU",
    _X86 + "kvm_arch_vm_ioctl()",
)
DEVICE_TYPE = rule(
    "kvm.device.type",
    ENODEV,
    "KVM_CREATE_DEVICE must name a type that there is",
    "virt/kvm/kvm_main.c: kvm_ioctl_create_device()",
)
VCPU_ATTR = rule(
    "kvm.vcpu-attr",
    ENXIO,
    "a vCPU has one attribute, KVM_VCPU_TSC_OFFSET",
    _X86 + "kvm_vcpu_ioctl_device_attr()",
)
LAPIC_NONE = rule(
    "kvm.lapic.none",
    EINVAL,
    "the call needs a local APIC in the kernel",
    _X86 + "kvm_arch_vcpu_ioctl()",
)
LAPIC_ID = rule(
    "kvm.lapic.id",
    EINVAL,
    "in x2APIC mode the id must be the vCPU's",
    "arch/x86/kvm/lapic.c: kvm_apic_state_fixup()",
)
INTERRUPT_VECTOR = rule(
    "kvm.interrupt.vector",
    EINVAL,
    "vectors end at 255",
    _X86 + "kvm_vcpu_ioctl_interrupt()",
)
INTERRUPT_IRQCHIP = rule(
    "kvm.interrupt.irqchip",
    ENXIO,
    "KVM_INTERRUPT is for VMs whose interrupt controllers are in user space",
    _X86 + "kvm_vcpu_ioctl_interrupt()",
)
INTERRUPT_PENDING = rule(
    "kvm.interrupt.pending",
    EEXIST,
    "the interrupt before must have been taken",
    _X86 + "kvm_vcpu_ioctl_interrupt()",
)
EVENTS_INVALID = rule(
    "kvm.events",
    EINVAL,
    "events must be flagged by what was enabled, and exceptions be vectors below 32 other than 2",
    _X86 + "kvm_vcpu_ioctl_x86_set_vcpu_events()",
)
XSAVE_INVALID = rule(
    "kvm.xsave",
    EINVAL,
    "the area must have no components that the guest can't have, and no reserved bits in MXCSR",
    "arch/x86/kernel/fpu/core.c: fpu_copy_uabi_to_guest_fpstate()",
)
MCE_CAP = rule(
    "kvm.mce.cap",
    EINVAL,
    "KVM_X86_SETUP_MCE takes 1 to 32 banks, and what KVM_X86_GET_MCE_CAP_SUPPORTED tells",
    _X86 + "kvm_vcpu_ioctl_x86_setup_mce()",
)
MCE_BANK = rule(
    "kvm.mce.bank",
    EINVAL,
    "an error must be valid (MCI_STATUS_VAL), in a bank that the vCPU has",
    _X86 + "kvm_vcpu_ioctl_x86_set_mce()",
)
GUEST_DEBUG = rule(
    "kvm.guest-debug",
    EINVAL,
    "only a guest of machine code can be debugged",
    _X86 + "kvm_arch_vcpu_ioctl_set_guest_debug()",
)
GUEST_DEBUG_BUSY = rule(
    "kvm.guest-debug.busy",
    EBUSY,
    "no exception can be injected while another is pending",
    _X86 + "kvm_arch_vcpu_ioctl_set_guest_debug()",
)
SIGNAL_MASK = rule(
    "kvm.signal-mask",
    EINVAL,
    "a signal mask has 8 bytes",
    "virt/kvm/kvm_main.c: kvm_vcpu_ioctl()",
)
TPR_ACCESS = rule(
    "kvm.tpr-access",
    EINVAL,
    "KVM_TPR_ACCESS_REPORTING takes no flags",
    _X86 + "vcpu_ioctl_tpr_access_reporting()",
)
VAPIC = rule(
    "kvm.vapic",
    EINVAL,
    "there must be a local APIC in the kernel, and a memslot with the guest's word",
    _X86 + "kvm_arch_vcpu_ioctl(), KVM_SET_VAPIC_ADDR; arch/x86/kvm/lapic.c: kvm_lapic_set_vapic_addr()",
)
KVMCLOCK_NONE = rule(
    "kvm.kvmclock.none",
    EINVAL,
    "the guest must have a clock page to be told that it was paused",
    _X86 + "kvm_set_guest_paused()",
)
MAX_VCPU_ID = rule(
    "kvm.max-vcpu-id",
    EINVAL,
    "the limit of ids must be set once, above the boot processor's, within KVM's own",
    _X86 + "kvm_vm_ioctl_enable_cap()",
)
BUS_CYCLES = rule(
    "kvm.apic-bus-cycles",
    EINVAL,
    "the APIC's bus cycle must be set before the first vCPU, and be neither 0 ns nor so long that its timer overflows",
    _X86 + "kvm_vm_ioctl_enable_cap()",
)
MSR_LIST_ROOM = rule(
    "kvm.msr-list.room",
    E2BIG,
    "the buffer must have room for every index; the number is told",
    _X86 + "kvm_arch_dev_ioctl()",
)
SYNC_REGS = rule(
    "kvm.sync-regs",
    EINVAL,
    "kvm_run may mark general registers, sregs and events as valid or dirty",
    _X86 + "kvm_arch_vcpu_ioctl_run()",
)
RUN_STARTED = rule(
    "kvm.run.started",
    EAGAIN,
    "a vCPU that waited to be started comes back to user space when it is",
    _X86 + "kvm_arch_vcpu_ioctl_run()",
)
EVENTFD = rule(
    "kvm.eventfd.kind",
    EINVAL,
    "the descriptor must be an eventfd's",
    "fs/eventfd.c: eventfd_ctx_fileget()",
)
EVENTFD_NONE = rule(
    "kvm.eventfd.none",
    EBADF,
    "the descriptor must be open",
    "fs/eventfd.c: eventfd_ctx_fdget()",
)
IOEVENTFD = rule(
    "kvm.ioeventfd",
    EINVAL,
    "an ioeventfd has a length of 0, 1, 2, 4 or 8 bytes and known flags, and matches data only where it has a length",
    "virt/kvm/eventfd.c: kvm_assign_ioeventfd()",
)
IOEVENTFD_EXISTS = rule(
    "kvm.ioeventfd.exists",
    EEXIST,
    "nobody else may watch the same address, length and data",
    "virt/kvm/eventfd.c: kvm_assign_ioeventfd_idx()",
)
IOEVENTFD_NONE = rule(
    "kvm.ioeventfd.none",
    ENOENT,
    "only an ioeventfd that was assigned can be taken away",
    "virt/kvm/eventfd.c: kvm_deassign_ioeventfd_idx()",
)
IRQFD = rule(
    "kvm.irqfd",
    EINVAL,
    "an irqfd needs an irqchip and known flags",
    "virt/kvm/eventfd.c: kvm_irqfd()",
)
IRQFD_BUSY = rule(
    "kvm.irqfd.busy",
    EBUSY,
    "an eventfd must not be an irqfd already, for whichever GSI",
    "virt/kvm/eventfd.c: kvm_irqfd_assign()",
)
COALESCED_ZONE = rule(
    "kvm.coalesced",
    EINVAL,
    "a zone is of memory (0) or ports (1)",
    "virt/kvm/coalesced_mmio.c: kvm_vm_ioctl_register_coalesced_mmio()",
)
MSRS_MANY = rule("kvm.msrs.many", E2BIG, "there must be fewer than 256 MSRs", _X86 + "msr_io()")
MEM_ENC_UNSUPPORTED = rule(
    "kvm.mem-enc.unsupported",
    ENOTTY,
    "KVM_MEMORY_ENCRYPT_OP needs a platform with memory encryption",
    _X86 + "kvm_arch_vm_ioctl(), kvm_arch_vcpu_ioctl()",
)
VCPU_MMAP = rule(
    "kvm.vcpu.mmap",
    EINVAL,
    "only the kvm_run page, the pio page and the coalesced ring of a vCPU can be mapped",
    _MAIN + "kvm_vcpu_fault()",
    signal="SIGBUS",
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM and a vCPU are told once: limits, addresses, clocks, CPUID, MSR lists and filters, events, debugging."""

from __future__ import annotations

from ...api.descriptor import Descriptor
from ...uapi.kvm import (
    KVM_CREATE_DEVICE,
    KVM_CREATE_IRQCHIP,
    KVM_GET_CLOCK,
    KVM_GET_CPUID2,
    KVM_GET_DEVICE_ATTR,
    KVM_GET_EMULATED_CPUID,
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSRS,
    KVM_GET_SREGS2,
    KVM_GET_STATS_FD,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_EVENTS,
    KVM_GET_XCRS,
    KVM_GET_XSAVE,
    KVM_HAS_DEVICE_ATTR,
    KVM_KVMCLOCK_CTRL,
    KVM_SET_BOOT_CPU_ID,
    KVM_SET_CLOCK,
    KVM_SET_CPUID2,
    KVM_SET_DEVICE_ATTR,
    KVM_SET_GUEST_DEBUG,
    KVM_SET_IDENTITY_MAP_ADDR,
    KVM_SET_MSRS,
    KVM_SET_NR_MMU_PAGES,
    KVM_SET_SIGNAL_MASK,
    KVM_SET_SREGS2,
    KVM_SET_TSC_KHZ,
    KVM_SET_TSS_ADDR,
    KVM_SET_VCPU_EVENTS,
    KVM_SET_XCRS,
    KVM_SET_XSAVE,
    KVM_TPR_ACCESS_REPORTING,
    KVM_TRANSLATE,
    KVM_X86_GET_MCE_CAP_SUPPORTED,
    KVM_X86_SET_MCE,
    KVM_X86_SET_MSR_FILTER,
    KVM_X86_SETUP_MCE,
    Cap,
    kvm_create_device,
    kvm_device_attr,
    kvm_signal_mask,
    kvm_stats_desc,
    kvm_stats_header,
)
from ...uapi.kvm_x86 import (
    kvm_clock_data,
    kvm_cpuid_entry2,
    kvm_guest_debug,
    kvm_msr_entry,
    kvm_msr_filter,
    kvm_msr_filter_range,
    kvm_msrs,
    kvm_sregs2,
    kvm_tpr_access_ctl,
    kvm_translation,
    kvm_vcpu_events,
    kvm_x86_mce,
    kvm_xcr,
    kvm_xcrs,
    kvm_xsave,
)
from ..bench import PAGE, Bench
from ..case import case

_APIC_BUS_CYCLES_NS = 237


@case("machine", each_vm=False)
def machine_checks(b: Bench) -> None:
    vcpu = b.vcpu(b.vm(0))

    def get(index: int) -> int:
        buffer = bytearray(kvm_msrs(nmsrs=1).pack() + kvm_msr_entry(index=index).pack())
        if not vcpu.ioctl(KVM_GET_MSRS, buffer):
            return -1
        return kvm_msr_entry.unpack_from(buffer, kvm_msrs.SIZE).data

    def put(index: int, value: int) -> int:
        return vcpu.ioctl(KVM_SET_MSRS, bytearray(kvm_msrs(nmsrs=1).pack() + kvm_msr_entry(index=index, data=value).pack()))

    def look(when: str) -> None:
        for name, index in registers.items():
            b.record(f"{name}, {when}", get(index))

    registers = {"MCG_CAP": 0x179, "MCG_STATUS": 0x17A, "MCG_CTL": 0x17B, "MC0_CTL2": 0x280, "MC31_CTL2": 0x29F, "P5": 0}
    registers |= {"MC32_CTL2": 0x2A0, "MC31_MISC": 0x47F, "beyond the banks": 0x480}
    registers |= {
        f"MC{bank}_{name}": 0x400 + 4 * bank + i for bank in (0, 1) for i, name in enumerate(("CTL", "STATUS", "ADDR"))
    }
    look("at first")
    b.probe("an error in the last bank", vcpu.ioctl, KVM_X86_SET_MCE, bytearray(kvm_x86_mce(status=1 << 63, bank=31).pack()))
    b.probe("an error in none", vcpu.ioctl, KVM_X86_SET_MCE, bytearray(kvm_x86_mce(status=1 << 63, bank=32).pack()))
    for cap in (0, 1, 32, 33, 0x200, 0x101, 0x1000001, 0xFF0001, 1 << 32 | 1, 2):
        b.probe(f"banks and features {cap:#x}", vcpu.ioctl, KVM_X86_SETUP_MCE, bytearray(cap.to_bytes(8, "little")))
    b.probe("from an unmapped address", vcpu.ioctl, KVM_X86_SETUP_MCE, 0)
    b.probe("supported, to an unmapped address", b.kvm.ioctl, KVM_X86_GET_MCE_CAP_SUPPORTED, 0)
    look("of two banks")
    ones = (1 << 64) - 1
    for name, index in registers.items():
        for value in (0, 1, ones, ones & ~(1 << 10), 1 << 63 | 5):
            b.record(f"{name} to {value:#x}", put(index, value))
    for index in range(0x400, 0x408):
        put(index, ones if not index & 3 else 0)
    put(0x17B, ones)
    errors = {
        "no VAL": kvm_x86_mce(bank=1),
        "third bank": kvm_x86_mce(status=1 << 63, bank=2),
        "corrected": kvm_x86_mce(status=1 << 63 | 7, addr=0x1000, misc=5, mcg_status=4, bank=0),
        "corrected again": kvm_x86_mce(status=1 << 63 | 8, addr=0x2000, misc=6, mcg_status=4, bank=0),
        "no action": kvm_x86_mce(status=3 << 63 | 1 << 63 | 1 << 61 | 9, addr=0x3000, bank=1),
        "corrected after uncorrected": kvm_x86_mce(status=1 << 63 | 8, addr=0x4000, bank=1),
    }
    for name, error in errors.items():
        error.status &= ones
        b.probe(name, vcpu.ioctl, KVM_X86_SET_MCE, bytearray(error.pack()))
        look(f"after {name}")
    b.probe("an error from an unmapped address", vcpu.ioctl, KVM_X86_SET_MCE, 0)


@case("machine", each_vm=False)
def statistics(b: Bench) -> None:
    vm = b.vm(0)
    for whose, of in (("a VM's", vm), ("a vCPU's", b.vcpu(vm))):
        file = b.keep(Descriptor(b.door, b.door.ioctl(of.fd, KVM_GET_STATS_FD, 0)))
        again = b.keep(Descriptor(b.door, b.door.ioctl(of.fd, KVM_GET_STATS_FD, 1 << 40)))
        head = b.door.read(file.fd, kvm_stats_header.SIZE)
        header = kvm_stats_header.unpack_from(head)
        b.record(f"{whose} header", repr(header))
        name = b.door.read(file.fd, header.name_size).rstrip(b"\0")
        b.record(f"{whose} name", name.partition(b"/")[2] if b"/" in name else name.rpartition(b"-")[0])
        size = kvm_stats_desc.SIZE
        raw = b.door.read(file.fd, header.num_desc * size)
        for i in range(header.num_desc):
            b.record(f"{whose} statistic {i}", repr(kvm_stats_desc.unpack_from(raw, i * size)))
        values = b.door.read(file.fd, 1 << 20)
        b.record(f"{whose} values, in bytes", len(values))
        b.probe(f"{whose} end", b.door.read, file.fd, 8)
        b.probe(f"{whose} header again", b.door.pread, again.fd, 8, 0)
        b.probe(f"{whose} values, beyond", b.door.pread, again.fd, 8, 1 << 40)
        b.probe(f"{whose} values, before", b.door.pread, again.fd, 8, -1)
        b.probe(f"write {whose}", b.door.write, again.fd, b"x")
        b.probe(f"pwrite {whose}", b.door.pwrite, again.fd, b"x", 0)
        b.probe(f"truncate {whose}", b.door.ftruncate, again.fd, 0)
        b.probe(f"an ioctl of {whose}", b.door.ioctl, again.fd, KVM_GET_STATS_FD, 0)
        b.probe(f"map {whose}", b.door.mmap, b.room(PAGE), PAGE, 1, 1, again.fd, 0)


@case("machine", each_vm=False)
def addresses(b: Bench) -> None:
    vm = b.vm(0)
    for address in (0, 1, 0xFFFBD000, 0xFFFFC000, 0xFFFFCFFF, 0xFFFFD000, 0xFFFFF000, 1 << 32):
        b.probe(f"TSS at {address:#x}", vm.ioctl, KVM_SET_TSS_ADDR, address)
    for address in (0, 0xFFFBC000, 1 << 40, 1 << 63, 1):
        b.probe(
            f"identity map at {address:#x}", vm.ioctl, KVM_SET_IDENTITY_MAP_ADDR, bytearray(address.to_bytes(8, "little"))
        )
    b.probe("identity map, unmapped pointer", vm.ioctl, KVM_SET_IDENTITY_MAP_ADDR, 0)
    b.vcpu(vm)
    b.probe("TSS after a vCPU", vm.ioctl, KVM_SET_TSS_ADDR, 0xFFFBD000)
    b.probe("identity map after a vCPU", vm.ioctl, KVM_SET_IDENTITY_MAP_ADDR, bytearray(8))


@case("machine", each_vm=False)
def limits(b: Bench) -> None:
    highest = b.kvm.check_extension(Cap.MAX_VCPU_ID)
    for name, number in {
        "0": 0,
        "1": 1,
        "the highest": highest - 1,
        "one more": highest,
        "two more": highest + 1,
        "-1": (1 << 64) - 1,
    }.items():
        b.probe(f"boot CPU {name}", b.vm(0).ioctl, KVM_SET_BOOT_CPU_ID, number)
    vm = b.vm(0)
    b.vcpu(vm)
    b.probe("boot CPU after a vCPU", vm.ioctl, KVM_SET_BOOT_CPU_ID, 0)
    b.probe("highest id after a vCPU", vm.enable_cap, Cap.MAX_VCPU_ID, 4)
    vm = b.vm(0)
    for value in (0, highest + 1, 4, 4, 5, 1 << 32):
        name = f"highest id {value if value != highest + 1 else 'too high'}"
        b.probe(name if name not in b.probes else f"{name} again", vm.enable_cap, Cap.MAX_VCPU_ID, value)
    b.probe("vCPU 4 of 4", vm.create_vcpu, 4)
    b.probe("vCPU 3 of 4", vm.create_vcpu, 3)
    b.probe("boot CPU 4 of 4", vm.ioctl, KVM_SET_BOOT_CPU_ID, 4)
    vm = b.vm(0)
    vm.ioctl(KVM_SET_BOOT_CPU_ID, 9)
    b.probe("highest id 4, boot CPU 9", vm.enable_cap, Cap.MAX_VCPU_ID, 4)
    for pages in (0, 1, 63, 64, 1000, 1 << 31):
        b.probe(f"{pages} MMU pages", vm.ioctl, KVM_SET_NR_MMU_PAGES, pages)


@case("machine", each_vm=False)
def clocks(b: Bench) -> None:
    """Not frequencies: which ones can be had depends on whether the processor scales its TSC."""
    vm = b.vm(0)
    memory = bytearray(kvm_clock_data().pack())
    b.probe("get", vm.ioctl, KVM_GET_CLOCK, memory)
    b.probe("get at an unmapped address", vm.ioctl, KVM_GET_CLOCK, 0)
    b.probe("set at an unmapped address", vm.ioctl, KVM_SET_CLOCK, 0)
    for bit in range(32):
        data = kvm_clock_data(clock=10**9, flags=1 << bit)
        b.probe(f"set, flag {bit}", vm.ioctl, KVM_SET_CLOCK, bytearray(data.pack()))
    b.probe("set", vm.ioctl, KVM_SET_CLOCK, bytearray(kvm_clock_data(clock=10**9).pack()))
    b.probe("set, 2^63", vm.ioctl, KVM_SET_CLOCK, bytearray(kvm_clock_data(clock=1 << 63).pack()))
    b.probe("TSC of a VM, as it is", vm.ioctl, KVM_SET_TSC_KHZ, 0)
    vcpu = b.vcpu(vm)
    b.probe("TSC of a VM after a vCPU", vm.ioctl, KVM_SET_TSC_KHZ, 0)
    b.probe("TSC of a vCPU, as it is", vcpu.ioctl, KVM_SET_TSC_KHZ, 0)
    b.probe("paused, without a clock page", vcpu.ioctl, KVM_KVMCLOCK_CTRL)
    for value in (0, 1, 1_000_000_000, 1_000_000_001):
        b.probe(f"APIC bus cycle {value} ns, no irqchip", b.vm(0).enable_cap, _APIC_BUS_CYCLES_NS, value)
        whole = b.vm(0)
        whole.ioctl(KVM_CREATE_IRQCHIP)
        b.probe(f"APIC bus cycle {value} ns", whole.enable_cap, _APIC_BUS_CYCLES_NS, value)
        b.vcpu(whole)
        b.probe(f"APIC bus cycle {value} ns, after a vCPU", whole.enable_cap, _APIC_BUS_CYCLES_NS, value)


@case("machine", each_vm=False)
def devices(b: Bench) -> None:
    vm = b.vm(0)
    vcpu = b.vcpu(vm)
    for kind in (0, 1, 2, 5, 99, 0xFFFFFFFF):
        for flags in (0, 1, 2):
            device = kvm_create_device(type=kind, flags=flags)
            if kind != 4:
                b.probe(f"type {kind}, flags {flags}", vm.ioctl, KVM_CREATE_DEVICE, bytearray(device.pack()))
    b.probe("at an unmapped address", vm.ioctl, KVM_CREATE_DEVICE, 0)
    space = b.anonymous()
    for request, name in {KVM_HAS_DEVICE_ATTR: "has", KVM_GET_DEVICE_ATTR: "get", KVM_SET_DEVICE_ATTR: "set"}.items():
        for what, attr in {
            "a wrong group": kvm_device_attr(group=99, addr=space.address),
            "a wrong attribute": kvm_device_attr(attr=99, addr=space.address),
            "flags": kvm_device_attr(flags=1, group=99, addr=space.address),
        }.items():
            b.probe(f"VM: {name} {what}", vm.ioctl, request, bytearray(attr.pack()))
            b.probe(f"vCPU: {name} {what}", vcpu.ioctl, request, bytearray(attr.pack()))
        b.probe(f"VM: {name} at an unmapped address", vm.ioctl, request, 0)
        b.probe(f"vCPU: {name} at an unmapped address", vcpu.ioctl, request, 0)
    for name, address in {"good": space.address, "unmapped": 0}.items():
        tsc = kvm_device_attr(addr=address)
        b.probe(f"TSC offset: has, {name}", vcpu.ioctl, KVM_HAS_DEVICE_ATTR, bytearray(tsc.pack()))
        b.probe(f"TSC offset: get, {name}", vcpu.ioctl, KVM_GET_DEVICE_ATTR, bytearray(tsc.pack()))
        b.probe(f"TSC offset: set, {name}", vcpu.ioctl, KVM_SET_DEVICE_ATTR, bytearray(tsc.pack()))


@case("machine", each_vm=False)
def lists(b: Bench) -> None:
    """How many there are depends on the processor: what is compared is what a buffer too small or missing gives."""
    for name, request in {"MSRs": KVM_GET_MSR_INDEX_LIST, "feature MSRs": KVM_GET_MSR_FEATURE_INDEX_LIST}.items():
        for count in (0, 1):
            b.probe(f"{name}, room for {count}", b.kvm.ioctl, request, b.pointer(count.to_bytes(4, "little")))
        b.probe(f"{name}, room for 1,000", b.kvm.ioctl, request, b.pointer((1000).to_bytes(4, "little") + bytes(4000)))
        b.probe(f"{name}, unmapped", b.kvm.ioctl, request, 0)
    for name, request in {"supported": KVM_GET_SUPPORTED_CPUID, "emulated": KVM_GET_EMULATED_CPUID}.items():
        for count in (0, 1, 256, 257, 1 << 31):
            memory = b.pointer(count.to_bytes(4, "little") + bytes(4 + 40 * 258))
            b.probe(f"{name} CPUID, room for {count}", b.kvm.ioctl, request, memory)
        b.probe(f"{name} CPUID, unmapped", b.kvm.ioctl, request, 0)
    vcpu = b.vcpu(b.vm(0))
    for count in (0, 1):
        b.probe(
            f"a vCPU's CPUID, none set, room for {count}",
            vcpu.ioctl,
            KVM_GET_CPUID2,
            b.pointer(count.to_bytes(8, "little") + bytes(80)),
        )
    leaf = kvm_cpuid_entry2(function=0, eax=1).pack()
    b.probe("set one leaf", vcpu.ioctl, KVM_SET_CPUID2, b.pointer((1).to_bytes(8, "little") + leaf))
    for count in (0, 1, 2):
        b.probe(
            f"a vCPU's CPUID, one set, room for {count}",
            vcpu.ioctl,
            KVM_GET_CPUID2,
            b.pointer(count.to_bytes(8, "little") + bytes(80)),
        )
    for bits in (0, 32, 47, 48, 52, 57, 64):
        wide = kvm_cpuid_entry2(function=0x80000008, eax=bits << 8 | 46).pack()
        fresh = b.vcpu(b.vm(0))
        b.probe(f"{bits} virtual address bits", fresh.ioctl, KVM_SET_CPUID2, b.pointer((1).to_bytes(8, "little") + wide))


@case("machine", each_vm=False)
def msr_filters(b: Bench) -> None:
    vm = b.vm(0)
    bitmap = b.anonymous(4 * PAGE)

    def ranges(*parts: kvm_msr_filter_range) -> bytes:
        return b"".join(part.pack() for part in parts)

    def part(flags: int, count: int, address: int = bitmap.address, base: int = 0x10) -> kvm_msr_filter_range:
        return kvm_msr_filter_range(flags=flags, nmsrs=count, base=base, bitmap=address)

    for name, wanted in {
        "nothing": kvm_msr_filter(),
        "nothing, denied by default": kvm_msr_filter(flags=1),
        "unknown flags": kvm_msr_filter(flags=2),
        "one to read": kvm_msr_filter(raw_ranges=ranges(part(1, 1))),
        "one to write, denied by default": kvm_msr_filter(flags=1, raw_ranges=ranges(part(2, 64))),
        "neither to read nor to write": kvm_msr_filter(raw_ranges=ranges(part(0, 1))),
        "a range's unknown flags": kvm_msr_filter(raw_ranges=ranges(part(4, 1))),
        "as long as can be": kvm_msr_filter(raw_ranges=ranges(part(3, 0x600 * 8))),
        "one too long": kvm_msr_filter(raw_ranges=ranges(part(3, 0x600 * 8 + 1))),
        "unmapped bitmap": kvm_msr_filter(raw_ranges=ranges(part(3, 8, 0))),
        "none with flags": kvm_msr_filter(raw_ranges=ranges(part(4, 0))),
        "second of two bad": kvm_msr_filter(raw_ranges=ranges(part(3, 8), part(4, 8, base=0x100))),
        "two that overlap": kvm_msr_filter(raw_ranges=ranges(part(3, 8), part(3, 8))),
        "at the end": kvm_msr_filter(raw_ranges=ranges(part(3, 64, base=0xFFFFFFFF))),
    }.items():
        b.probe(name, vm.ioctl, KVM_X86_SET_MSR_FILTER, b.pointer(wanted.pack()))
    b.probe("at an unmapped address", vm.ioctl, KVM_X86_SET_MSR_FILTER, 0)


@case("machine", each_vm=False)
def events(b: Bench) -> None:
    vm = b.vm(0)
    vcpu = b.vcpu(vm)

    def told() -> list[int]:
        memory = bytearray(kvm_vcpu_events().pack())
        vcpu.ioctl(KVM_GET_VCPU_EVENTS, memory)
        now = kvm_vcpu_events.unpack_from(memory)
        return [now.flags, now.exception_injected, now.interrupt_injected, now.nmi_injected, now.nmi_pending, now.nmi_masked]

    b.probe("at reset", told)
    for bit in range(32):
        b.probe(f"flag {bit}", vcpu.ioctl, KVM_SET_VCPU_EVENTS, bytearray(kvm_vcpu_events(flags=1 << bit).pack()))
    for vector in (0, 2, 3, 14, 31, 32, 255):
        event = kvm_vcpu_events(exception_injected=1, exception_nr=vector)
        b.probe(f"exception {vector}", vcpu.ioctl, KVM_SET_VCPU_EVENTS, bytearray(event.pack()))
        pending = kvm_vcpu_events(exception_pending=1, exception_nr=vector)
        b.probe(f"exception {vector} pending", vcpu.ioctl, KVM_SET_VCPU_EVENTS, bytearray(pending.pack()))
    b.probe("nothing", vcpu.ioctl, KVM_SET_VCPU_EVENTS, bytearray(kvm_vcpu_events().pack()))
    b.probe("nothing, told", told)
    b.probe("payloads", vm.enable_cap, Cap.EXCEPTION_PAYLOAD, 1)
    b.probe("triple faults", vm.enable_cap, Cap.X86_TRIPLE_FAULT_EVENT, 1)
    b.probe("with them, told", told)
    for name, fields in {
        "pending": {"flags": 16, "exception_pending": 1, "exception_nr": 14},
        "pending 32": {"flags": 16, "exception_pending": 1, "exception_nr": 32},
        "pending and injected": {"flags": 16, "exception_pending": 1, "exception_injected": 1, "exception_nr": 14},
        "triple fault": {"flags": 32, "triple_fault_pending": 1},
        "triple fault 2": {"flags": 32, "triple_fault_pending": 2},
        "INIT latched": {"flags": 8, "smi_latched_init": 1},
        "NMI masked": {"flags": 1, "nmi_masked": 1},
    }.items():
        event = kvm_vcpu_events(**fields)  # type: ignore[arg-type]
        b.probe(name, b.vcpu(vm, len(b.probes)).ioctl, KVM_SET_VCPU_EVENTS, bytearray(event.pack()))
    b.probe("get at an unmapped address", vcpu.ioctl, KVM_GET_VCPU_EVENTS, 0)
    b.probe("set at an unmapped address", vcpu.ioctl, KVM_SET_VCPU_EVENTS, 0)


@case("machine", each_vm=False)
def extended_state(b: Bench) -> None:
    vcpu = b.vcpu(b.vm(0))
    memory = bytearray(kvm_xsave().pack())
    b.probe("get", vcpu.ioctl, KVM_GET_XSAVE, memory)
    b.record("FCW at reset", int.from_bytes(memory[0:2], "little"))
    b.record("MXCSR at reset", int.from_bytes(memory[24:28], "little"))
    b.record("XSTATE_BV at reset", int.from_bytes(memory[512:520], "little"))
    b.probe("set as it was", vcpu.ioctl, KVM_SET_XSAVE, memory)
    for name, component, high in (
        ("component 62", 62, 0),
        ("MXCSR's high half", None, 1),
        ("that and x87", 0, 1),
        ("that and SSE", 1, 1),
    ):
        wrong = bytearray(memory)
        wrong[26] |= high
        if component is not None:
            wrong[512 + component // 8] |= 1 << component % 8
        b.probe(name, vcpu.ioctl, KVM_SET_XSAVE, wrong)
    b.probe("get at an unmapped address", vcpu.ioctl, KVM_GET_XSAVE, 0)
    b.probe("set at an unmapped address", vcpu.ioctl, KVM_SET_XSAVE, 0)
    xcrs = bytearray(kvm_xcrs().pack())
    b.probe("xcrs", vcpu.ioctl, KVM_GET_XCRS, xcrs)
    b.record("xcr0 at reset", int.from_bytes(xcrs[16:24], "little"))
    for name, count, number, value, flags in (
        ("x87", 1, 0, 1, 0),
        ("nothing", 1, 0, 0, 0),
        ("SSE without x87", 1, 0, 2, 0),
        ("a component that isn't", 1, 0, 1 | 1 << 62, 0),
        ("xcr1", 1, 1, 1, 0),
        ("no registers", 0, 0, 1, 0),
        ("17 registers", 17, 0, 1, 0),
        ("flags", 1, 0, 1, 1),
    ):
        raw = count.to_bytes(4, "little") + flags.to_bytes(4, "little") + kvm_xcr(xcr=number, value=value).pack()
        b.probe(f"xcr: {name}", vcpu.ioctl, KVM_SET_XCRS, bytearray(raw.ljust(len(xcrs), b"\0")))
    sregs = bytearray(kvm_sregs2().pack())
    b.probe("sregs2", vcpu.ioctl, KVM_GET_SREGS2, sregs)
    b.probe("sregs2 as they were", vcpu.ioctl, KVM_SET_SREGS2, sregs)
    now = kvm_sregs2.unpack_from(sregs)
    b.record("sregs2's flags", now.flags)
    now.flags = 2
    b.probe("sregs2, unknown flags", vcpu.ioctl, KVM_SET_SREGS2, bytearray(now.pack()))
    b.probe("sregs2 at an unmapped address", vcpu.ioctl, KVM_GET_SREGS2, 0)


@case("machine", each_vm=False)
def watching(b: Bench) -> None:
    vm = b.vm(0)
    vcpu = b.vcpu(vm)
    for control in (0, 1, 3, 1 | 1 << 16, 1 | 1 << 17, 1 << 31):
        debug = kvm_guest_debug(control=control)
        b.probe(f"debug control {control:#x}", vcpu.ioctl, KVM_SET_GUEST_DEBUG, bytearray(debug.pack()))
    b.probe("debug at an unmapped address", vcpu.ioctl, KVM_SET_GUEST_DEBUG, 0)
    for name, control in {"#DB": 1 << 18, "#BP": 1 << 19, "#DB and #BP": 3 << 18}.items():
        fresh = b.vcpu(vm, len(b.probes))
        debug = kvm_guest_debug(control=control)
        b.probe(f"inject {name}", fresh.ioctl, KVM_SET_GUEST_DEBUG, bytearray(debug.pack()))
        b.probe(f"inject {name} again", fresh.ioctl, KVM_SET_GUEST_DEBUG, bytearray(debug.pack()))
        told = bytearray(kvm_vcpu_events().pack())
        b.probe(f"events after {name}", fresh.ioctl, KVM_GET_VCPU_EVENTS, told)
        now = kvm_vcpu_events.unpack_from(told)
        b.record(f"what waits after {name}", (now.exception_injected, now.exception_nr, now.exception_pending))
    for length in (0, 4, 7, 8, 9, 16):
        mask = kvm_signal_mask(len=length).pack() + bytes(16)
        b.probe(f"a signal mask of {length} bytes", vcpu.ioctl, KVM_SET_SIGNAL_MASK, b.pointer(mask))
    b.probe("no signal mask", vcpu.ioctl, KVM_SET_SIGNAL_MASK, 0)
    b.probe("a signal mask at an unmapped address", vcpu.ioctl, KVM_SET_SIGNAL_MASK, 1)
    for flags in (0, 1):
        tpr = kvm_tpr_access_ctl(enabled=1, flags=flags)
        b.probe(f"TPR accesses, flags {flags}, no APIC", vcpu.ioctl, KVM_TPR_ACCESS_REPORTING, bytearray(tpr.pack()))
    b.probe("TPR accesses at an unmapped address", vcpu.ioctl, KVM_TPR_ACCESS_REPORTING, 0)
    for address in (0, 0x1234, 1 << 40):
        memory = bytearray(kvm_translation(linear_address=address).pack())
        b.probe(f"translate {address:#x} without paging", vcpu.ioctl, KVM_TRANSLATE, memory)
        b.record(f"where {address:#x} is", kvm_translation.unpack_from(memory).physical_address)
    b.probe("translate at an unmapped address", vcpu.ioctl, KVM_TRANSLATE, 0)

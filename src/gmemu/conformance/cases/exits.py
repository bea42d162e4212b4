# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_RUN: exits for MMIO, ports, hypercalls, and guest memory that can't be had."""

from __future__ import annotations

from ...uapi.kvm import (
    KVM_GET_DIRTY_LOG,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_RUN,
    kvm_dirty_log,
)
from ..bench import PAGE, Bench
from ..case import case
from ..guests import Hypercall, Load, Out, Store

GPA = 0x1000_0000


@case("exits", "gmem")
def arguments(b: Bench) -> None:
    vm = b.vm()
    vcpu = b.vcpu(vm)
    for arg in (1, 4096, (1 << 64) - 1):
        b.probe(f"KVM_RUN({arg:#x})", vcpu.ioctl, KVM_RUN, arg)
    vcpu.immediate_exit = True
    b.probe("immediate_exit", vcpu.ioctl, KVM_RUN, 0)
    b.probe("immediate_exit again", vcpu.ioctl, KVM_RUN, 0)
    for name, fd in {"/dev/kvm": b.kvm.fd, "the VM": vm.fd, "a guest_memfd": b.gmem(vm).fd}.items():
        b.probe(f"on {name}", b.door.ioctl, fd, KVM_RUN, 0)


@case("exits", "guest-code")
def mmio(b: Bench) -> None:
    vm = b.vm()
    vcpu = b.vcpu(vm)
    for length in (1, 2, 4, 8):
        b.guest(vm, vcpu, f"load {length}", [Load(GPA, length)])
        b.guest(vm, vcpu, f"store {length}", [Store(GPA + 16, bytes(range(1, length + 1)))])
    b.guest(vm, vcpu, "several", [Store(GPA, b"\1"), Load(GPA, 2), Store(2 * GPA, b"\2\3\4\5")])


@case("exits", "guest-code")
def ports(b: Bench) -> None:
    vm = b.vm()
    vcpu = b.vcpu(vm)
    for length in (1, 2, 4):
        b.guest(vm, vcpu, f"out {length}", [Out(0x3F8, bytes(range(0x41, 0x41 + length)))])
    b.guest(vm, vcpu, "three in a row", [Out(0x80, b"\1"), Out(0x81, b"\2"), Out(0xFFFF, b"\3")])
    b.guest(vm, vcpu, "nothing but HLT", [])


@case("exits", "guest-code")
def hypercalls(b: Bench) -> None:
    vm = b.vm()
    vcpu = b.vcpu(vm)
    ask = Hypercall(KVM_HC_MAP_GPA_RANGE, (GPA, 1, 0x10))
    b.guest(vm, vcpu, "MAP_GPA_RANGE not enabled", [ask])
    b.guest(vm, vcpu, "an unknown one", [Hypercall(99, (1, 2, 3))])
    vm.enable_map_gpa_range()
    b.guest(vm, vcpu, "MAP_GPA_RANGE", [ask])
    for args in (
        (GPA + 1, 1, 0),
        (GPA, 0, 0),
        (GPA, 1, 0xFF),
        (0, 0xFFFFFFFF, 0),
        (0xFFFFF000, 1, 0),
        (0xFFFFF000, 2, 0x10),
    ):
        b.guest(vm, vcpu, "MAP_GPA_RANGE " + " ".join(f"{arg:#x}" for arg in args), [Hypercall(KVM_HC_MAP_GPA_RANGE, args)])
    for answer in (11, 22):
        b.guest(vm, vcpu, f"answered {answer}", [ask], on_hypercall=lambda exit_, answer=answer: answer)
    b.guest(vm, vcpu, "an unknown one, enabled", [Hypercall(99, ())])


@case("exits", "guest-code")
def ordinary_memory(b: Bench) -> None:
    vm = b.vm()
    vcpu, memory = b.vcpu(vm), b.anonymous(4 * PAGE)
    vm.set_user_memory_region(1, GPA, 4 * PAGE, memory.address)
    memory[:8] = b"from-vmm"
    b.guest(vm, vcpu, "load and store", [Load(GPA, 8), Store(GPA + PAGE, b"from-gst")])
    b.probe("what the guest stored", lambda: memory[PAGE : PAGE + 8])
    b.guest(vm, vcpu, "across pages", [Store(GPA + 2 * PAGE - 2, b"abcd"), Load(GPA + 2 * PAGE - 2)])
    b.guest(vm, vcpu, "past the slot", [Load(GPA + 4 * PAGE)])
    vm.delete_slot(1)
    b.guest(vm, vcpu, "the slot gone", [Load(GPA)])
    vm.set_user_memory_region(1, GPA, PAGE, memory.address + PAGE)
    b.guest(vm, vcpu, "another address", [Load(GPA, 8)])
    vm.set_user_memory_region(1, 2 * GPA, PAGE, memory.address + PAGE)
    b.guest(vm, vcpu, "moved: old gpa", [Load(GPA)])
    b.guest(vm, vcpu, "moved: new gpa", [Load(2 * GPA, 8)])


@case("exits", "guest-code")
def unusable_memory(b: Bench) -> None:
    vm = b.vm()
    vcpu = b.vcpu(vm)
    gone, read_only, none = b.anonymous(), b.anonymous(), b.anonymous(prot=0)
    gone.close()
    read_only[:4] = b"text"
    read_only.protect(1)
    for i, memory in enumerate((gone, read_only, none)):
        vm.set_user_memory_region(i, GPA + i * PAGE, PAGE, memory.address)
    for i, what in enumerate(("unmapped", "read-only", "PROT_NONE")):
        b.guest(vm, vcpu, f"load, {what}", [Load(GPA + i * PAGE)])
        b.guest(vm, vcpu, f"store, {what}", [Store(GPA + i * PAGE, b"x")])
    memory = b.anonymous()
    vm.set_user_memory_region(5, 2 * GPA, PAGE, memory.address, KVM_MEM_READONLY)
    b.guest(vm, vcpu, "load from a READONLY slot", [Load(2 * GPA)])
    b.guest(vm, vcpu, "store to a READONLY slot", [Store(2 * GPA, b"x")])
    b.guest(vm, vcpu, "unmapped later: before", [Store(2 * GPA + PAGE, b"x")])
    memory.close()
    b.guest(vm, vcpu, "unmapped later: after", [Load(2 * GPA)])


@case("exits", "guest-code")
def dirty_pages(b: Bench) -> None:
    """What a guest's accesses leave in the dirty log, and that getting the log clears it."""
    vm = b.vm()
    vcpu, memory, bitmap = b.vcpu(vm), b.anonymous(8 * PAGE), b.anonymous()

    def dirty() -> int:
        bitmap[:8] = b"\xff" * 8
        vm.ioctl(KVM_GET_DIRTY_LOG, bytearray(kvm_dirty_log(slot=1, dirty_bitmap=bitmap.address).pack()))
        return int.from_bytes(bitmap[:8], "little")

    b.guest(vm, vcpu, "no slot yet", [])
    vm.set_user_memory_region(1, GPA, 8 * PAGE, memory.address, KVM_MEM_LOG_DIRTY_PAGES)
    b.probe("nothing was done", dirty)
    b.guest(vm, vcpu, "store to pages 1 and 4", [Store(GPA + PAGE, b"a"), Store(GPA + 4 * PAGE, b"b")])
    b.probe("after stores", dirty)
    b.probe("asked again", dirty)
    b.guest(vm, vcpu, "store to page 4 again", [Store(GPA + 4 * PAGE, b"c")])
    b.probe("after a store to a page that was clean again", dirty)
    b.guest(vm, vcpu, "load from page 1", [Load(GPA + PAGE)])
    b.probe("after a load", dirty)
    vm.set_user_memory_region(1, GPA, 8 * PAGE, memory.address)
    b.guest(vm, vcpu, "store while nothing is logged", [Store(GPA + 2 * PAGE, b"d")])
    vm.set_user_memory_region(1, GPA, 8 * PAGE, memory.address, KVM_MEM_LOG_DIRTY_PAGES)
    b.probe("logged anew", dirty)
    b.guest(vm, vcpu, "store to page 2, mapped before", [Store(GPA + 2 * PAGE, b"e")])
    b.probe("what was mapped before is logged", dirty)


@case("exits", "guest-code", "init-shared")
def shared_guest_memfd(b: Bench) -> None:
    """A slot of guest_memfd alone: guest and host meet in it."""
    vm = b.vm()
    vcpu, gmem = b.vcpu(vm), b.shared_gmem(vm, 4 * PAGE)
    m = b.map(gmem)
    vm.set_user_memory_region2(1, GPA, 4 * PAGE, gmem=gmem)
    m[:4] = b"host"
    b.guest(vm, vcpu, "the guest sees the host's page", [Load(GPA), Store(GPA + PAGE, b"gues"), Load(GPA + 2 * PAGE)])
    b.probe("the host sees the guest's", lambda: m[PAGE : PAGE + 4])
    gmem.punch_hole(0, PAGE)
    b.guest(vm, vcpu, "a hole", [Load(GPA), Store(GPA, b"anew")])
    b.probe("made new by the guest", lambda: m[:4])
    m.close()
    b.guest(vm, vcpu, "no mapping is needed", [Load(GPA)])
    gmem.close()
    b.guest(vm, vcpu, "the file closed", [Load(GPA)])
    vm.delete_slot(1)
    b.guest(vm, vcpu, "the slot gone", [Load(GPA)])


@case("exits", "guest-code", "mmap")
def mmap_without_init_shared(b: Bench) -> None:
    vm = b.vm()
    vcpu, gmem, memory = b.vcpu(vm), b.gmem(vm, PAGE, 1), b.anonymous()
    memory[:4] = b"anon"
    vm.set_user_memory_region2(1, GPA, PAGE, gmem=gmem, userspace_addr=memory.address)
    b.guest(vm, vcpu, "which backing", [Load(GPA), Store(GPA, b"gues"), Load(GPA)])
    b.probe("the other backing", lambda: memory[:4])
    b.probe("the host's own access", lambda: b.map(gmem)[0])


@case("exits", "guest-code", "gmem")
def guest_memfd_without_flags(b: Bench) -> None:
    vm = b.vm()
    vcpu, gmem, memory = b.vcpu(vm), b.gmem(vm, PAGE), b.anonymous()
    memory[:4] = b"anon"
    vm.set_user_memory_region2(1, GPA, PAGE, gmem=gmem, userspace_addr=memory.address)
    b.guest(vm, vcpu, "which backing", [Load(GPA), Store(GPA, b"gues"), Load(GPA)])
    b.probe("the other backing", lambda: memory[:4])
    vm.delete_slot(1)
    vm.set_user_memory_region2(1, GPA, PAGE, gmem=gmem)
    b.guest(vm, vcpu, "no other backing", [Load(GPA)])


@case("exits", "guest-code", "private-memory", "vm-attributes", each_vm=False)
def private_memory(b: Bench) -> None:
    vm = b.vm(1)
    vcpu = b.vcpu(vm)
    vm.make_private(GPA, 4 * PAGE)
    b.guest(vm, vcpu, "private without a slot: load", [Load(GPA)])
    b.guest(vm, vcpu, "private without a slot: store", [Store(GPA + PAGE, b"x")])
    memory = b.anonymous()
    vm.set_user_memory_region(1, GPA, PAGE, memory.address)
    b.guest(vm, vcpu, "private in an ordinary slot", [Load(GPA)])
    vm.make_shared(GPA, 4 * PAGE)
    b.guest(vm, vcpu, "shared without a slot", [Load(GPA + PAGE)])

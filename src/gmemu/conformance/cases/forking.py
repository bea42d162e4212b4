# SPDX-License-Identifier: GPL-2.0-or-later
"""fork(): what a child may do with its parent's VM, files and mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ...uapi.kvm import (
    KVM_CHECK_EXTENSION,
    KVM_CREATE_GUEST_MEMFD,
    KVM_GET_REGS,
    KVM_RUN,
    kvm_create_guest_memfd,
)
from ...uapi.kvm_x86 import kvm_regs
from ...uapi.mman import MADV_DOFORK, MADV_DONTFORK, MADV_KEEPONFORK, MADV_WIPEONFORK
from ..bench import PAGE, Bench
from ..case import case

Steps = Iterator[Callable[[], Any]]


@case("fork", "fork", "gmem")
def ioctls(b: Bench) -> None:
    vm = b.vm()
    vcpu, gmem = b.vcpu(vm), b.gmem(vm)

    def child(door: Any) -> Steps:
        yield lambda: door.ioctl(vm.fd, KVM_CHECK_EXTENSION, 234)
        yield lambda: door.ioctl(vm.fd, KVM_CREATE_GUEST_MEMFD, bytearray(kvm_create_guest_memfd(size=PAGE).pack()))
        yield lambda: door.ioctl(vm.fd, 0xAEFF, 0)
        yield lambda: door.ioctl(vcpu.fd, KVM_GET_REGS, bytearray(kvm_regs.SIZE))
        yield lambda: door.ioctl(vcpu.fd, KVM_RUN, 0)
        yield lambda: door.ioctl(vcpu.fd, KVM_RUN, 1)
        yield lambda: door.ioctl(b.kvm.fd, KVM_CHECK_EXTENSION, 234)
        yield lambda: door.fallocate(gmem.fd, 1, 0, PAGE)
        yield lambda: door.fallocate(gmem.fd, 3, 0, PAGE)
        yield lambda: door.fstat(gmem.fd).size
        yield lambda: door.close(gmem.fd)
        yield lambda: door.close(gmem.fd)

    steps = b.fork(child)
    for what in (
        "check extension", "create guest_memfd", "an unknown request", "registers", "run", "run with an argument",
        "/dev/kvm", "allocate", "punch", "size", "close", "close again",
    ):  # fmt: skip
        b.record(what, steps.step())
    b.probe("the parent's descriptor is still open", gmem.allocate, 0, PAGE)


@case("fork", "fork", "init-shared")
def mappings(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, 4 * PAGE)
    m, own = b.map(gmem), b.anonymous()
    m[:4], own[:4] = b"both", b"mine"

    def child(door: Any) -> Steps:
        yield lambda: door.load(m.address, 4)
        yield lambda: door.store(m.address + PAGE, b"child")
        yield lambda: door.load(own.address, 4)
        yield lambda: door.store(own.address, b"hers")
        yield lambda: door.load(m.address + 2 * PAGE, 4)
        yield lambda: door.load(m.address, 4)
        yield lambda: door.munmap(m.address, PAGE)
        yield lambda: door.load(m.address, 4)
        yield lambda: door.load(m.address + PAGE, 4)

    steps = b.fork(child)
    for what in ("sees the page", "stores to a page", "sees private memory", "changes private memory"):
        b.record(f"child {what}", steps.step())
    b.probe("parent sees the child's store", lambda: m[PAGE : PAGE + 5])
    b.probe("parent keeps its own memory", lambda: own[:4])
    m[2 * PAGE : 2 * PAGE + 4] = b"late"
    b.record("child sees a page of later", steps.step())
    gmem.punch_hole(0, 2 * PAGE)
    b.record("child sees the hole", steps.step())
    b.record("child unmaps", steps.step())
    b.record("child at what it unmapped", steps.step())
    b.record("child at the next page", steps.step())
    b.probe("the parent's mapping is whole", lambda: m[:4])


@case("fork", "fork", "init-shared")
def the_child_keeps_the_file(b: Bench) -> None:
    vm = b.vm()
    gmem = b.shared_gmem(vm, PAGE)
    m = b.map(gmem)
    m[:4] = b"kept"

    def child(door: Any) -> Steps:
        yield lambda: door.load(m.address, 4)
        yield lambda: door.fallocate(gmem.fd, 3, 0, PAGE)
        yield lambda: door.load(m.address, 4)

    number = gmem.fd
    steps = b.fork(child)
    m.close()
    gmem.close()
    vm.close()
    gmem.fd = number
    for what in ("load", "punch", "load after it"):
        b.record(f"{what}, when the parent has closed all", steps.step())
    gmem.fd = -1


@case("fork", "fork", "init-shared")
def advice(b: Bench) -> None:
    """MADV_DONTFORK, DOFORK, WIPEONFORK and KEEPONFORK."""
    m, own = b.map(b.shared_gmem(b.vm(), 4 * PAGE)), b.anonymous(4 * PAGE)
    for memory in (m, own):
        memory[:] = b"\x33" * len(memory)
        memory.madvise(MADV_DONTFORK, PAGE, 2 * PAGE)
        memory.madvise(MADV_DOFORK, 2 * PAGE, PAGE)
    own.madvise(MADV_WIPEONFORK, 2 * PAGE, 2 * PAGE)
    own.madvise(MADV_KEEPONFORK, 3 * PAGE, PAGE)
    pages = [(name, memory.address + i * PAGE, i) for name, memory in (("guest_memfd", m), ("own", own)) for i in range(4)]

    def child(door: Any) -> Steps:
        for _, address, _ in pages:
            yield partial(door.load, address, 2)

    steps = b.fork(child)
    for name, _, i in pages:
        b.record(f"child at {name} page {i}", steps.step())
    b.probe("the parent has them", lambda: m[PAGE : 2 * PAGE] + own[2 * PAGE : 3 * PAGE])

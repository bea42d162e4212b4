# SPDX-License-Identifier: GPL-2.0-or-later
"""Converting 4 KiB by the Python API, and a terabyte that nobody touched."""

from __future__ import annotations

import time
from collections.abc import Iterator

from gmemu import GuestMemfd, Kvm, Mapping, Vm, VmType
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP

from .figures import Figure, run_here

ROUNDS = 4000
RUNS = 7
TIB = 1 << 40


def _per_conversion(gmem: GuestMemfd, offset: int, size: int) -> float:
    """Microseconds for one conversion, there and back taken together."""
    start = time.perf_counter()
    for _ in range(ROUNDS):
        gmem.make_private(offset, size)
        gmem.make_shared(offset, size)
    return (time.perf_counter() - start) / (2 * ROUNDS) * 1e6


def _touched(gmem: GuestMemfd, memory: Mapping) -> float:
    """The same for a page that the host writes each time before it's converted: the write isn't counted."""
    spent = 0.0
    for _ in range(ROUNDS):
        memory[4096] = 1
        start = time.perf_counter()
        gmem.make_private(4096, 4096)
        gmem.make_shared(4096, 4096)
        spent += time.perf_counter() - start
    return spent / (2 * ROUNDS) * 1e6


def _memory(vm: Vm, slot: int, gpa: int, size: int) -> tuple[GuestMemfd, Mapping]:
    gmem = vm.create_guest_memfd(size, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
    memory = gmem.mmap()
    vm.set_user_memory_region2(slot, gpa, size, gmem=gmem, userspace_addr=memory.address)
    return gmem, memory


def figures() -> Iterator[Figure]:
    """A bound, mapped guest_memfd of an SW_PROTECTED VM."""
    with Kvm.open() as kvm, kvm.create_vm(VmType.SW_PROTECTED) as vm:
        small, memory = _memory(vm, 0, 0, 1 << 30)
        large, _ = _memory(vm, 1, TIB, TIB)
        one = run_here(RUNS, lambda: _per_conversion(small, 4096, 4096))
        yield Figure("convert 4 KiB", one, "us", "<= 10 us", one <= 10)
        touched = run_here(RUNS, lambda: _touched(small, memory))
        yield Figure("convert 4 KiB that the host has just written", touched, "us", "", None)
        whole = run_here(RUNS, lambda: _per_conversion(large, 0, TIB))
        ratio = whole / one
        yield Figure("convert 1 TiB untouched, against 4 KiB", ratio, "x", "<= 2 x", ratio <= 2, f"{whole:.1f} us")

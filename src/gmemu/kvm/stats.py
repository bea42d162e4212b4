# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_STATS_FD: what is counted of a VM and of a vCPU, with its description (virt/kvm/binary_stats.c).

What this KVM has no cause to count (shadow pages, nested guests, halt polling) stays 0, as on a host that does none of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..mm.file import File, Inode
from ..mm.uaccess import UserPointer
from ..uapi.kvm import KVM_STATS_NAME_SIZE, StatType, StatUnit, kvm_stats_desc, kvm_stats_header

if TYPE_CHECKING:
    from ..mm.process import Process
    from .vcpu import Vcpu
    from .vm import Vm

__all__ = ["VCPU_STATS", "Stat", "StatsFile", "vcpu_get_stats_fd", "vm_get_stats_fd", "vm_stats"]

_HALT_POLL_HIST_COUNT = 32


class Stat(NamedTuple):
    """One of them: `size` values of 8 bytes, a power of ten to multiply by."""

    name: str
    type: StatType = StatType.CUMULATIVE
    unit: StatUnit = StatUnit.NONE
    exponent: int = 0
    size: int = 1


def _counters(names: str) -> list[Stat]:
    return [Stat(name) for name in names.split()]


def _instant(names: str, unit: StatUnit = StatUnit.NONE) -> list[Stat]:
    return [Stat(name, StatType.INSTANT, unit) for name in names.split()]


def _nanoseconds(names: str) -> list[Stat]:
    return [Stat(name, unit=StatUnit.SECONDS, exponent=-9) for name in names.split()]


def _histograms(names: str) -> list[Stat]:
    return [Stat(name, StatType.LOG_HIST, StatUnit.SECONDS, -9, _HALT_POLL_HIST_COUNT) for name in names.split()]


_VM_STATS = (
    *_counters("remote_tlb_flush remote_tlb_flush_requests mmu_shadow_zapped mmu_pte_write mmu_pde_zapped mmu_flooded"),
    *_counters("mmu_recycled mmu_cache_miss"),
    *_instant("mmu_unsync pages_4k pages_2m pages_1g nx_lpage_splits"),
    Stat("max_mmu_page_hash_collisions", StatType.PEAK),
    Stat("max_mmu_rmap_size", StatType.PEAK),
)

VCPU_STATS = (
    *_counters("halt_successful_poll halt_attempted_poll halt_poll_invalid halt_wakeup"),
    *_nanoseconds("halt_poll_success_ns halt_poll_fail_ns halt_wait_ns"),
    *_histograms("halt_poll_success_hist halt_poll_fail_hist halt_wait_hist"),
    *_instant("blocking", StatUnit.BOOLEAN),
    *_counters("pf_taken pf_fixed pf_emulate pf_spurious pf_fast pf_mmio_spte_created pf_guest tlb_flush invlpg"),
    *_counters("exits io_exits mmio_exits signal_exits irq_window_exits nmi_window_exits l1d_flush halt_exits"),
    *_counters("request_irq_exits irq_exits host_state_reload fpu_reload insn_emulation insn_emulation_fail hypercalls"),
    *_counters("irq_injections nmi_injections req_event nested_run directed_yield_attempted directed_yield_successful"),
    *_counters("preemption_reported preemption_other"),
    *_instant("guest_mode", StatUnit.BOOLEAN),
    *_counters("notify_window_exits"),
)
"""kvm_vcpu_stats_desc, in the order of struct kvm_vcpu_stat"""


def vm_stats(vm: Vm) -> tuple[Stat, ...]:
    """What is kept of a VM, in the order of struct kvm_vm_stat."""
    if not vm.profile.counts_shadow_pages:
        return _VM_STATS
    at = 1 + [stat.name for stat in _VM_STATS].index("mmu_unsync")
    return (*_VM_STATS[:at], *_instant("mmu_shadow_pages"), *_VM_STATS[at:])


class StatsFile(File):
    """The descriptor: a header, a name, descriptions, and the values as they are when they're read."""

    name = "anon_inode:kvm-stats"
    can_write = False

    def __init__(
        self, vm: Vm, identity: str, stats: Sequence[Stat], described: Sequence[Stat], values: Callable[[], Counter[str]]
    ) -> None:
        super().__init__(Inode(0o600))
        self._vm, self._stats, self._values = vm, stats, values
        self.noexec = vm.profile.anon_inodes_noexec
        offsets, at = {}, 0
        for stat in stats:
            offsets[stat.name] = at
            at += 8 * stat.size
        head, one = kvm_stats_header.SIZE, kvm_stats_desc.SIZE
        header = kvm_stats_header(
            name_size=KVM_STATS_NAME_SIZE,
            num_desc=len(described),
            id_offset=head,
            desc_offset=head + KVM_STATS_NAME_SIZE,
            data_offset=head + KVM_STATS_NAME_SIZE + one * len(described),
        )
        self._head = header.pack() + identity.encode().ljust(KVM_STATS_NAME_SIZE, b"\0")
        for stat in described:
            self._head += kvm_stats_desc(
                flags=stat.type | stat.unit,
                exponent=stat.exponent,
                size=stat.size,
                offset=offsets[stat.name],
                name=stat.name.encode(),
            ).pack()
        vm.get()

    def release(self) -> None:
        self._vm.put()

    def pread(self, length: int, offset: int) -> bytes:
        """kvm_stats_read()."""
        values = self._values()
        data = b"".join(values[stat.name].to_bytes(8, "little") + bytes(8 * (stat.size - 1)) for stat in self._stats)
        return (self._head + data)[offset : offset + length]

    def read(self, length: int) -> bytes:
        """From where the last one ended."""
        data = self.pread(length, self.position)
        self.position += len(data)
        return data


def _install(vm: Vm, file: Callable[[], StatsFile]) -> int:
    process: Process = vm.rt.current.process
    fd = process.get_unused_fd()
    process.fd_install(fd, file())
    return fd


def vm_get_stats_fd(vm: Vm, arg: UserPointer) -> int:
    """kvm_vm_ioctl_get_stats_fd(): a descriptor (close-on-exec) that holds the VM."""

    def values() -> Counter[str]:
        pages = sum(end - start for start, end, _ in vm.mmu.sptes.runs())
        return vm.stat | Counter(pages_4k=pages)

    stats = vm_stats(vm)
    described = (*stats[:-2], stats[-1], stats[-2])  # the one place where kvm_vm_stats_desc isn't in the structure's order
    return _install(vm, lambda: StatsFile(vm, f"kvm-{os.getpid()}", stats, described, values))


def vcpu_get_stats_fd(vcpu: Vcpu, arg: UserPointer) -> int:
    """kvm_vcpu_ioctl_get_stats_fd()."""
    identity = f"kvm-{os.getpid()}/vcpu-{vcpu.id}"
    return _install(vcpu.vm, lambda: StatsFile(vcpu.vm, identity, VCPU_STATS, VCPU_STATS, lambda: vcpu.stat))

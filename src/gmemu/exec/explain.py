# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu exec --explain`: the story behind each KVM_EXIT_MEMORY_FAULT, SIGBUS and EAGAIN.

Who wanted what, what the attribute was and who had set it, who holds the reference, and what to do next.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..hw.memory import PAGE_SHIFT
from ..kvm.guest_memfd.file import GmemFile
from ..kvm.vcpu import VcpuFile
from ..kvm.vm import VmFile
from ..rangemap import RangeMap
from ..uapi.kvm import (
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_SET_MEMORY_ATTRIBUTES,
    KVM_SET_MEMORY_ATTRIBUTES2,
    ExitReason,
    kvm_exit_memory_fault,
    kvm_memory_attributes,
    kvm_memory_attributes2,
)
from ..uapi.mman import GUP_PIN_COUNTING_BIAS

if TYPE_CHECKING:
    from ..kvm.vm import Vm
    from .kernel import ExecKernel

__all__ = ["Explainer"]

_KINDS = {True: "private", False: "shared"}


class Explainer:
    """Remembers who converted what, and tells stories to standard error."""

    def __init__(self, kernel: ExecKernel) -> None:
        self._kernel = kernel
        self._by: WeakKeyDictionary[object, RangeMap[str]] = WeakKeyDictionary()
        self._calls = 0

    def told(self, words: tuple[int, ...], entry: dict[str, Any]) -> None:
        """A call returned; `entry` is what the log says of it."""
        self._calls += 1
        if entry["call"] == "ioctl" and entry["result"] == 0:
            self._remember(words, entry)
        story = self._story(words, entry)
        if story:
            print("gmemu exec: " + "\n  ".join(story), file=sys.stderr, flush=True)

    def _remember(self, words: tuple[int, ...], entry: dict[str, Any]) -> None:
        file, request, args = self._kernel.process.files.get(words[0]), words[1] & 0xFFFFFFFF, entry["args"]["arg"]
        who = f"thread {entry['thread']}, call {self._calls} ({entry['args']['request']})"
        if isinstance(file, VmFile) and request == KVM_SET_MEMORY_ATTRIBUTES:
            wanted = kvm_memory_attributes(**args)
            self._note(file.vm, wanted.address, wanted.size, who)
        elif isinstance(file, GmemFile) and request == KVM_SET_MEMORY_ATTRIBUTES2:
            asked = kvm_memory_attributes2(**args)
            self._note(file.gmem_inode, asked.offset, asked.size, who)

    def _note(self, whose: object, start: int, length: int, who: str) -> None:
        self._by.setdefault(whose, RangeMap()).set(start >> PAGE_SHIFT, start + length >> PAGE_SHIFT, who)

    def _set_by(self, whose: object, page: int) -> str:
        who = self._by[whose][page] if whose in self._by else None
        return f"since {who}" if who else "since the beginning"

    # Stories

    def _story(self, words: tuple[int, ...], entry: dict[str, Any]) -> list[str]:
        if entry["call"] == "fault" and "rule" in entry:
            return self._bus_error(words[0], entry)
        if entry.get("errno") == "EAGAIN" and "rule" in entry:
            return self._busy(words, entry)
        if entry.get("exit", {}).get("reason") == "MEMORY_FAULT":
            return self._memory_fault(words, entry)
        return []

    def _bus_error(self, address: int, entry: dict[str, Any]) -> list[str]:
        vma = self._kernel.door.mm.find_vma(address >> PAGE_SHIFT)
        if vma is None or not isinstance(vma.file, GmemFile):
            return []
        index = vma.pgoff + (address >> PAGE_SHIFT) - vma.start
        inode = vma.file.gmem_inode
        kind = _KINDS[bool(inode.attributes[index])]
        return [
            f"SIGBUS: thread {entry['thread']} touched {address:#x}, page {index:#x} of guest_memfd {inode.ino}",
            f"the page is {kind}, {self._set_by(inode, index)} [{entry['rule']}]",
            "convert it (KVM_SET_MEMORY_ATTRIBUTES2 without PRIVATE) before the VMM touches it, or don't touch it",
        ]

    def _busy(self, words: tuple[int, ...], entry: dict[str, Any]) -> list[str]:
        file, args = self._kernel.process.files.get(words[0]), entry["args"]["arg"]
        story = [f"EAGAIN: {entry['args']['request']} by thread {entry['thread']} [{entry['rule']}]: {entry['why']}"]
        if isinstance(file, GmemFile) and isinstance(args, dict) and "error_offset" in args:
            error_offset = self._kernel.error_offset(words[2])
            story += self._holders(file, error_offset >> PAGE_SHIFT)
            story.append(f"error_offset is {error_offset:#x}; host mappings of the range are gone, no attribute has changed")
            story.append("release the reference (unpin, let I/O end, unmap), then repeat the whole call")
        return story

    def _holders(self, file: GmemFile, index: int) -> list[str]:
        memmap, pfn = self._kernel.host.memmap, file.gmem_inode.mapping.pfn(index)
        if pfn is None:
            return []
        count, mapped = memmap.refcount(pfn), memmap.mapcount(pfn)
        pins, others = divmod(max(count - 1 - mapped, 0), GUP_PIN_COUNTING_BIAS)
        parts = [f"{pins} pins (FOLL_PIN)"] if pins else []
        parts += [f"{mapped} page table entries"] if mapped else []
        parts += [f"{others} short references"] if others else []
        names = [f"held by {holder.name}" for holder in memmap.holders if holder.holds(pfn)]
        if not parts:
            return [f"whoever held page {index:#x} has let it go by now"]
        return [f"page {index:#x} has {count} references: the page cache's and {', '.join(parts)}", *sorted(names)]

    def _memory_fault(self, words: tuple[int, ...], entry: dict[str, Any]) -> list[str]:
        file = self._kernel.process.files.get(words[0])
        if not isinstance(file, VcpuFile) or file.vcpu.exit_reason != ExitReason.MEMORY_FAULT:
            return []
        details = file.vcpu.exit_details(kvm_exit_memory_fault)
        assert isinstance(details, kvm_exit_memory_fault)
        vm, gfn = file.vcpu.vm, details.gpa >> PAGE_SHIFT
        wanted = bool(details.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE)
        is_private = vm.attributes.is_private(gfn)
        story = [
            f"KVM_EXIT_MEMORY_FAULT: vCPU {file.vcpu.id} wanted gpa {details.gpa:#x} as {_KINDS[wanted]}"
            + (f" [{entry['rule']}]" if "rule" in entry else ""),
            f"it is {_KINDS[is_private]}, {self._gfn_set_by(vm, gfn)}; {self._slot(vm, gfn)}",
        ]
        if wanted != is_private:
            story.append(f"convert it to {_KINDS[wanted]} if the guest may have that, and run it again; else stop it")
        else:
            story.append("both agree, so what is behind it is missing: bind a guest_memfd, or make the mapping accessible")
        return story

    def _gfn_set_by(self, vm: Vm, gfn: int) -> str:
        slot = vm.find_slot(gfn)
        if vm.profile.in_place and slot is not None and slot.gmem_file is not None:
            return self._set_by(slot.gmem_file.gmem_inode, slot.gmem_index(gfn))
        return self._set_by(vm, gfn)

    @staticmethod
    def _slot(vm: Vm, gfn: int) -> str:
        slot = vm.find_slot(gfn)
        if slot is None:
            return "no memslot is there"
        if slot.gmem_file is not None:
            return f"memslot {slot.id} is there, with a guest_memfd"
        return f"memslot {slot.id} is there, {'whose guest_memfd was closed' if slot.has_gmem else 'without a guest_memfd'}"

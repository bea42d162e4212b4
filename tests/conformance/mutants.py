# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulation with one check switched off or swapped: each of these must show in the comparison with the golden tables.

``python -m tests.conformance.mutants`` tells for each which probe gave it away.  Checks that aren't here, as nothing changes
without them:

- `index >= inode.nr_pages` in a host's fault: a page beyond the file isn't shared either, so the signal is the same.
- `fault.private != private` in a guest's fault: in a VM of type SW_PROTECTED an access is private if the page is.
- `not slot.has_gmem` in a private fault: a slot without a file is met again where the file is looked up, with the same exit.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

from gmemu.conformance.backends import open_backend
from gmemu.conformance.compare import compare
from gmemu.conformance.runner import run_cases
from gmemu.conformance.table import Table, load

__all__ = ["MUTANTS", "Mutant", "mutated", "reported"]

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


class Mutant(NamedTuple):
    """`old`, found once in the source of gmemu's `module`, becomes `new`, which has as many lines."""

    name: str
    module: str
    old: str
    new: str


def _off(name: str, module: str, condition: str) -> Mutant:
    """The check `if condition:` is never made."""
    return Mutant(f"no {name}", module, f"if {condition}:", "if False:")


_FILE, _BIND, _FAULT = "kvm.guest_memfd.file", "kvm.guest_memfd.binding", "kvm.guest_memfd.fault"
_DIRTY = "kvm.dirty"
_SLOTS, _ATTR, _VM, _VCPU, _RUN, _MMU = "kvm.memslots", "kvm.attributes", "kvm.vm", "kvm.vcpu", "kvm.run", "kvm.mmu"
_MREMAP = "mm.mremap"
_VM_X86, _VCPU_X86, _CAPS, _EVENTFD = "kvm.vm_x86", "kvm.vcpu_x86", "kvm.vm_caps", "kvm.eventfd"
_FILTER, _CHIP, _LAPIC = "kvm.msr_filter", "kvm.irqchip", "kvm.lapic"

MUTANTS = (
    # guest_memfd: creation, mmap, faults, fallocate
    _off("creation flags", _FILE, "args.flags & ~supported"),
    Mutant("creation size unaligned", _FILE, " or args.size & (PAGE_SIZE - 1):", ":"),
    Mutant("creation size 0", _FILE, "args.size >> 63 or not args.size or", "args.size >> 63 or"),
    Mutant("creation size negative", _FILE, "if args.size >> 63 or not", "if not"),
    _off("mmap flag", _FILE, "not self.gmem_inode.flags & GUEST_MEMFD_FLAG_MMAP"),
    _off("mmap MAP_PRIVATE", _FILE, "not vma.shared"),
    Mutant("fault EOF a page early", _FAULT, "if index >= inode.nr_pages:", "if index + 1 >= inode.nr_pages:"),
    Mutant("no fault private", _FAULT, "count = inode.shared_run(index, min(", "count = max(1, min("),
    _off("fallocate KEEP_SIZE", _FILE, "not mode & FALLOC_FL_KEEP_SIZE"),
    _off("fallocate mode", _FILE, "mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)"),
    _off("fallocate alignment", _FILE, "(offset | length) & (PAGE_SIZE - 1)"),
    _off("fallocate EOF", _FILE, "end > inode.nr_pages"),
    Mutant("punch keeps memory", _FILE, "inode.punch(start, end)", "pass"),
    Mutant(
        "punch leaves guests their pages",
        "kvm.guest_memfd.invalidate",
        "flush |= vm.arch.unmap_range(first, last, filter)",
        "pass",
    ),
    Mutant("stat tells blocks", "kvm.guest_memfd.inode", "self.host.profile.fallocate_counts_blocks", "True"),
    Mutant("pages not zeroed for guests", _FAULT, "                mapping.clear_folio(folio)\n", "                pass\n"),
    # guest_memfd: binding
    _off("bind other VM", _BIND, "file.vm is not vm"),
    _off("bind not a guest_memfd", _BIND, "not isinstance(file, GmemFile)"),
    Mutant("bind range", _BIND, "or not _ends_within(vm, offset, size, inode.size):", ":"),
    _off("bind overlap", _BIND, "not file.bindings.empty(start, start + slot.npages)"),
    Mutant(
        "bind overlap's errno",
        _BIND,
        "rules.BIND_OVERLAP if vm.profile.bind_overlap_is_eexist else rules.BIND_OVERLAP_OLD",
        "rules.BIND_OVERLAP_OLD if vm.profile.bind_overlap_is_eexist else rules.BIND_OVERLAP",
    ),
    Mutant("unbind keeps the binding", _BIND, "file.bindings.clear(slot.gmem_pgoff, slot.gmem_pgoff + slot.npages)", "pass"),
    Mutant("no slot is gmem-only", _BIND, "slot.flags |= KVM_MEMSLOT_GMEM_ONLY", "pass"),
    # memslots
    _off("slot flags", _SLOTS, "mem.flags & ~valid"),
    _off("slot size alignment", _SLOTS, "mem.memory_size & (PAGE_SIZE - 1)"),
    _off("slot gpa alignment", _SLOTS, "mem.guest_phys_addr & (PAGE_SIZE - 1)"),
    Mutant("slot hva alignment", _SLOTS, "if mem.userspace_addr & (PAGE_SIZE - 1) or not", "if not"),
    Mutant("slot hva range", _SLOTS, " or not access_ok(mem.userspace_addr, mem.memory_size):", ":"),
    Mutant("slot gmem offset alignment", _SLOTS, "mem.guest_memfd_offset & (PAGE_SIZE - 1) or", ""),
    _off("slot address space", _SLOTS, "mem.slot >> 16 >= vm.arch.nr_memslot_as_ids"),
    _off("slot id", _SLOTS, "mem.slot & 0xFFFF >= KVM_USER_MEM_SLOTS"),
    _off("slot gpa wrap", _SLOTS, "mem.guest_phys_addr + mem.memory_size > _U64"),
    _off("slot pages", _SLOTS, "mem.memory_size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES"),
    Mutant(
        "no slot gmem-immutable",
        _SLOTS,
        "        if mem.flags & KVM_MEM_GUEST_MEMFD:\n            raise",
        "        if False:\n            raise",
    ),
    _off("slot overlap", _SLOTS, "others"),
    Mutant("slot modify hva", _SLOTS, "mem.userspace_addr != old.userspace_addr or npages", "npages"),
    Mutant("slot modify size", _SLOTS, "or npages != old.npages or", "or"),
    Mutant("slot modify flags", _SLOTS, " or (mem.flags ^ old.flags) & fixed:", ":"),
    Mutant("delete of no slot", _SLOTS, "raise rules.SLOT_DELETE_NONE(", "return # ("),
    Mutant(
        "delete doesn't zap",
        _SLOTS,
        "vm.arch.unmap_range(old.base_gfn, old.end_gfn, Filter.SHARED | Filter.PRIVATE)",
        "False",
    ),
    Mutant("delete doesn't unbind", _SLOTS, "    if old.has_gmem:\n", "    if False:\n"),
    _off("max gfn", _SLOTS, "new.end_gfn - 1 >> bits - PAGE_SHIFT"),
    _off("region 1 flags", _VM, "old.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)"),
    # attributes
    _off("attributes flags", _ATTR, "attrs.flags"),
    _off("attributes unsupported", _ATTR, "attrs.attributes & ~supported"),
    Mutant("attributes size 0", _ATTR, "attrs.size == 0 or", ""),
    Mutant("attributes wrap", _ATTR, "attrs.size == 0 or attrs.address + attrs.size > _U64", "attrs.size == 0"),
    _off("attributes alignment", _ATTR, "(attrs.address | attrs.size) & (PAGE_SIZE - 1)"),
    Mutant(
        "conversion leaves guests their pages",
        _ATTR,
        "flush |= vm.arch.unmap_range(s, e, Filter.SHARED if value else Filter.PRIVATE)",
        "pass",
    ),
    # vCPUs: pre-fault, runs, exits
    _off("pre-fault flags", _VCPU, "want.flags"),
    Mutant("pre-fault alignment", _VCPU, "(want.gpa | want.size) & (PAGE_SIZE - 1) or", ""),
    Mutant("pre-fault size 0", _VCPU, "or not want.size or", "or"),
    Mutant("pre-fault wrap", _VCPU, " or want.gpa + want.size > _U64:", ":"),
    Mutant("pre-fault progress not told", _VCPU, "                want.gpa += PAGE_SIZE\n", "                pass\n"),
    _off("vCPU id", _VCPU, "not 0 <= id < limit"),
    _off("vCPU exists", _VCPU, "any(vcpu.id == id for vcpu in vm.vcpus)"),
    Mutant("foreign mm, VM", _VM, "if vm.mm is not vm.rt.current.mm:", "if False:"),
    Mutant("foreign mm, vCPU", _VCPU, "if vm.mm is not vm.rt.current.mm:", "if False:"),
    _off("KVM_RUN arg", _RUN, "arg != 0"),
    _off("immediate exit", _RUN, "immediate"),
    Mutant("private fault without slot", _MMU, "            if fault.private:\n", "            if False:\n"),
    Mutant("memory-fault exit flags", _VCPU, "KVM_MEMORY_EXIT_FLAG_PRIVATE if fault.private else 0", "0"),
    Mutant("memory-fault exit gpa", _VCPU, "gpa=fault.gfn << PAGE_SHIFT, size", "gpa=fault.gfn, size"),
    Mutant(
        "memory-fault exit not filled in",
        _MMU,
        "vcpu.prepare_memory_fault_exit(fault)\n            raise rules.FAULT_NO_GMEM",
        "pass\n            raise rules.FAULT_NO_GMEM",
    ),
    _off("write to read-only slot", _MMU, "slot.flags & KVM_MEM_READONLY and fault.write"),
    Mutant(
        "hypercall without consent",
        _RUN,
        "exit_.nr != KVM_HC_MAP_GPA_RANGE or not vcpu.vm.exits_on_hypercall(exit_.nr)",
        "exit_.nr != KVM_HC_MAP_GPA_RANGE",
    ),
    _off("hypercall arguments", _RUN, "gpa & (PAGE_SIZE - 1) or not npages or (gpa >> PAGE_SHIFT) + npages > _U64"),
    # dirty log, capabilities
    _off("dirty log of no log", _DIRTY, "slot is None or slot.dirty_bitmap is None"),
    Mutant("dirty log isn't cleared", _DIRTY, "old & ~clear", "old"),
    Mutant(
        "dirty log isn't write-protected",
        _DIRTY,
        "vm.mmu.write_protect(base + start, base + end)",
        "pass",
    ),
    Mutant("new dirty log isn't write-protected", _SLOTS, "vm.mmu.write_protect(new.base_gfn, new.end_gfn)", "pass"),
    Mutant("dirty pages aren't counted", _MMU, "fault.slot.dirty_bitmap.mark(fault.gfn - fault.slot.base_gfn)", "pass"),
    _off("capability's flags", "kvm.vm_caps", "cap.flags"),
    _off("capability's arguments", "kvm.vm_caps", "value & ~allowed"),
    # the process's memory
    Mutant("munmap leaves guests their pages", _MMU, "flush |= vm.arch.unmap_range(start, end, Filter.SHARED)", "pass"),
    Mutant(
        "MADV_DONTFORK not heeded",
        "mm.address_space",
        "part.dont_copy = part.dont_copy if dont_copy is None else dont_copy",
        "pass",
    ),
    _off("fallocate range", "mm.file", "offset < 0 or length <= 0"),
    _off("fallocate limit", "mm.file", "offset + length > (1 << 63) - 1"),
    Mutant(
        "write protection", "mm.address_space", "not vma.prot or (write and not vma.prot & PROT_WRITE):", "not vma.prot:"
    ),
    _off("mprotect noexec", "mm.address_space", "prot & PROT_EXEC and vma.file is not None and vma.file.noexec"),
    _off("madvise advice", "mm.madvise", "advice not in _KNOWN"),
    _off("madvise range", "mm.madvise", "address & (PAGE_SIZE - 1) or end > _U64"),
    _off("madvise gap", "mm.madvise", "gap"),
    Mutant("fallocate knows every mode", "mm.file", "mode & ~known\n        or", "mode < 0\n        or"),
    Mutant("neighbours aren't merged", "mm.address_space", "        vma_merge(self, start, end)", "        return"),
    Mutant("what differs is merged", "mm.vma", "return vma.prot, vma.shared, vma.locked,", "return vma.prot, vma.shared,"),
    Mutant("advised memory is merged", "mm.vma", "vma.wipe_on_fork, vma.flags", "vma.wipe_on_fork, 0"),
    Mutant(
        "GUP of what can't be read",
        "mm.address_space",
        "PROT_WRITE if write else PROT_READ):",
        "PROT_WRITE if write else 7):",
    ),
    # mremap, mlock
    _off("mremap flags", _MREMAP, "asked.flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)"),
    _off("mremap MAYMOVE", _MREMAP, "asked.to_new_address and not asked.flags & MREMAP_MAYMOVE"),
    _off("mremap DONTUNMAP resized", _MREMAP, "asked.flags & MREMAP_DONTUNMAP and asked.old_length != asked.new_length"),
    _off("mremap address", _MREMAP, "asked.address & (PAGE_SIZE - 1)"),
    Mutant("mremap target unaligned", _MREMAP, "asked.new_address & (PAGE_SIZE - 1) or", ""),
    _off("mremap overlap", _MREMAP, "asked.overlaps"),
    _off("mremap duplicate", _MREMAP, "not old_length and not vma.shared"),
    _off("mremap across mappings", _MREMAP, "old_length > (vma.end << PAGE_SHIFT) - asked.address"),
    _off("mremap without room", _MREMAP, "not asked.flags & MREMAP_MAYMOVE"),
    Mutant("mremap grows over a neighbour", _MREMAP, " and not mm.overlapping(vma.end, vma.end + delta)", ""),
    Mutant("mremap leaves the pages", _MREMAP, "        mm.move_page_tables(old, old_end, to)", "        pass"),
    Mutant("mremap leaves the mapping", _MREMAP, "        mm.unmap_region(old, old_end)", "        pass"),
    Mutant(
        "guests keep what was moved",
        "mm.address_space",
        "with self._notified(start, end), self.page_table_lock:",
        "with self.page_table_lock:",
    ),
    Mutant("mremap keeps the lock", _MREMAP, "    vma.locked = False\n", "    pass\n"),
    _off("mlock wrap", "mm.mlock", "start + length > _U64"),
    Mutant("mlock doesn't lock", "mm.mlock", "mm.isolate(vma, at, stop).locked = locked", "pass"),
    Mutant("mlock doesn't fault in", "mm.mlock", "        mm_populate(mm, start, end)", "        pass"),
    # pipes, splice, process_vm_readv
    _off("pipe without a reader", "mm.pipe", "not self.readers"),
    Mutant("pipe of no end", "mm.pipe", "return PIPE_BUFFERS - len(self.buffers)", "return 1 << 20"),
    Mutant("pipe fills up no page", "mm.pipe", "not chars or not self.pipe.buffers", "True"),
    Mutant("pipe adds to a page that isn't its own", "mm.pipe", "not last.own or end", "end"),
    _off("splice flags", "mm.splice", "flags & ~_ALL"),
    _off("vmsplice to no pipe", "mm.splice", "not isinstance(file, PipeFile)"),
    _off("splice with a pipe's offset", "mm.splice", "(ipipe and off_in) or (opipe and off_out)"),
    _off("splice of the wrong end", "mm.splice", "not source.can_read or not to.can_write"),
    _off("splice to itself", "mm.splice", "source is to"),
    _off("splice at a position of none", "mm.splice", "position is not None and not file.positioned"),
    Mutant("splice area", "mm.splice", "length >> 63 or at < 0 or at + length >> 63", "False"),
    _off("iovec count", "mm.uaccess", "len(iov) > UIO_MAXIOV"),
    _off("iovec length", "mm.uaccess", "length >> 63"),
    Mutant("iovec not in user space", "mm.uaccess", "return address + length <= TASK_SIZE_MAX", "return True"),
    _off("process_vm_readv of nobody", "mm.process_vm_access", "there is None"),
    _off("process_vm_readv up to a bad local address", "mm.process_vm_access", "done < want and user.count"),
    Mutant(
        "process_vm_readv flags",
        "syscalls.emulated",
        "        if flags:\n            raise rules.PROCESS",
        "        if 0:\n            raise rules.PROCESS",
    ),
    Mutant("hole zeroes no part of a page", "mm.shmem", "0 < last - first < PAGE_SIZE", "False"),
    # a PC's interrupt controllers, clocks and limits
    _off("second irqchip", _VM_X86, "vm.irqchip is not None"),
    _off("second PIT", _VM_X86, "vm.irqchip.pit is not None"),
    _off("routes that don't fit", _VM_X86, "entry.gsi >= _MAX_ROUTES or not _route_fits(vm, entry, others)"),
    Mutant(
        "a route to a chip in user space", _VM_X86, " or vm.irqchip.split:\n        return False", ":\n        return False"
    ),
    _off("message for nobody", _VM_X86, "taken < 0"),
    Mutant("TSS below 4 GiB", _VM_X86, "arg > (1 << 32) - 3 * 4096:", "arg > (1 << 32) - 4 * 4096:"),
    Mutant("boot CPU one too high", _VM_X86, "arg >= limit + (not vm.max_vcpu_id):", "arg > limit + (not vm.max_vcpu_id):"),
    _off("clock flags", _VM_X86, "data.flags & ~(2 | 4 | 8)"),
    Mutant("VM's TSC after vCPUs", _VM_X86, "late = bool(vm.created_vcpus) and not", "late = not"),
    Mutant(
        "line's status",
        _VM_X86,
        "line.irq = vm.irqchip.set_gsi(line.irq, bool(line.level)) & _U32",
        "vm.irqchip.set_gsi(line.irq, bool(line.level))",
    ),
    Mutant("slave's line is a level", _CHIP, "            master.set_line(2, False)\n", "            pass\n"),
    Mutant("masked pin counts", _CHIP, "return -1 if self.imr & bit else status", "return status"),
    _off("KVM_INTERRUPT with an irqchip", _VCPU_X86, "chip is not None and not chip.split"),
    _off("KVM_INTERRUPT twice", _VCPU_X86, "chip is not None and vcpu.interrupt >= 0"),
    _off("vector 2", _VCPU_X86, "exception and (events.exception_nr > 31 or events.exception_nr == 2)"),
    _off("local APIC's id", _VCPU_X86, "apic.x2apic and vcpu.vm.x2apic_format and not apic.id_fits(state)"),
    _off("#DB after #DB", _VCPU_X86, "cpu.event is not None"),
    Mutant("MXCSR without SSE", _VCPU_X86, "(xstate_bv and mxcsr & ~0xFFFF)", "mxcsr & ~0xFFFF"),
    _off("bus cycle", _CAPS, "not 0 < value <= _MAX_BUS_CYCLE_NS"),
    _off("reserved pins", _CAPS, "value > _MAX_RESERVED_PINS"),
    _off("highest vCPU id twice", _CAPS, "vm.max_vcpu_id or vm.bsp_vcpu_id > value"),
    _off("irqfd flags", _EVENTFD, "given.flags & ~_IRQFD_DEASSIGN"),
    Mutant("ioeventfd of 3 bytes", _EVENTFD, "given.len not in (0, 1, 2, 4, 8)", "given.len not in (0, 1, 2, 3, 4, 8)"),
    _off("MSR filter flags", _FILTER, "given.flags & ~DEFAULT_DENY"),
    Mutant("MSR filter a bit too long", _FILTER, "part.nmsrs > _MAX_BITMAP", "part.nmsrs > _MAX_BITMAP + 1"),
    _off(
        "high half of an x2APIC register",
        _LAPIC,
        "(register == _ICR and value & 0xFFF32000) or (register != _ICR and value >> 32)",
    ),
    _off("x2APIC ESR and SELF_IPI", _LAPIC, "(register == _ESR and value) or (register == _SELF_IPI and value > 0xFF)"),
    Mutant("x2APIC reads DFR", _LAPIC, "register in (_ARBPRI, _DFR, _ICR2)", "register in (_ARBPRI, _ICR2)"),
)


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """The functions that the mutation changes run the mutated code in the ``with`` block."""
    module = import_module(f"gmemu.{mutant.module}")
    assert module.__file__
    source = Path(module.__file__).read_text(encoding="utf-8")
    if source.count(mutant.old) != 1 or mutant.old.count("\n") != mutant.new.count("\n"):
        raise ValueError(f"mutant {mutant.name!r}: {mutant.old!r} is {source.count(mutant.old)} times in {mutant.module}")
    before = _functions(compile(source, module.__file__, "exec", dont_inherit=True))
    after = _functions(compile(source.replace(mutant.old, mutant.new), module.__file__, "exec", dont_inherit=True))
    changed = [_live(module, name) for name, code in after.items() if code != before[name]]
    kept = [function.__code__ for function in changed]
    assert changed, mutant.name
    try:
        for function in changed:
            function.__code__ = after[function.__code__.co_qualname]
        yield
    finally:
        for function, code in zip(changed, kept, strict=True):
            function.__code__ = code


def _functions(code: CodeType) -> dict[str, CodeType]:
    """The functions of a module and its classes by qualified name, without those within functions."""
    found: dict[str, CodeType] = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and not inner.co_name.startswith("<"):
            if inner.co_flags & inspect.CO_OPTIMIZED:
                found[inner.co_qualname] = inner
            else:
                found |= _functions(inner)
    return found


def _live(module: ModuleType, name: str) -> FunctionType:
    found: object = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    function = found.fget if isinstance(found, property) else inspect.unwrap(getattr(found, "__func__", found))  # type: ignore[arg-type]
    assert isinstance(function, FunctionType)
    return function


def reported(tables: list[Table]) -> str:
    """The first probe that differs between the emulation and a table, or how a run died; empty if nothing is noticed."""
    for table in tables:
        try:
            with open_backend("emulated", table.profile) as backend:
                here = run_cases(backend._replace(features=table.features)).probes
        except Exception as error:
            return f"the run on {table.profile} ends in {type(error).__name__}: {error}"
        found = compare(here, table.results.probes, table.profile)
        if found.unexplained:
            return f"{table.profile}: {found.unexplained[0].probe} and {len(found.unexplained) - 1} more"
    return ""


def main() -> int:
    """Try every mutant; 1 if any escapes."""
    tables = [load(path) for path in GOLDEN]
    escaped = 0
    for mutant in MUTANTS:
        with mutated(mutant):
            why = reported(tables)
        escaped += not why
        print(f"{mutant.name:40} {why or 'ESCAPES'}", flush=True)
    print(f"{len(MUTANTS)} mutants, {escaped} escape")
    return int(bool(escaped))


if __name__ == "__main__":
    sys.exit(main())

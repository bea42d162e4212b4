# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest_memfd file: one VM's view of the memory, with its bindings; and what can be done to the descriptor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...hw.memory import PAGE_SHIFT, PAGE_SIZE
from ...mm.address_space import Vma
from ...mm.file import File
from ...mm.filemap import Folio
from ...mm.uaccess import UserPointer
from ...rangemap import RangeMap
from ...rules import KernelError
from ...rules import gmem as rules
from ...uapi.kvm import GUEST_MEMFD_FLAG_INIT_PRIVATE, GUEST_MEMFD_FLAG_MMAP, kvm_create_guest_memfd
from ...uapi.mman import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from .fault import kvm_gmem_fault_user_mapping
from .inode import LAST_INDEX, GmemInode
from .invalidate import invalidate_end, invalidate_start

if TYPE_CHECKING:
    from ...mm.process import Process
    from ..memslots import Memslot
    from ..vm import Vm

__all__ = ["GmemFile", "kvm_gmem_create"]


def kvm_gmem_create(vm: Vm, args: kvm_create_guest_memfd) -> int:
    """KVM_CREATE_GUEST_MEMFD: a new inode of `args.size` bytes and a descriptor for it.  Not close-on-exec.

    Raises EINVAL (`gmem.create.flags`, then `gmem.create.size`), EMFILE, ENOMEM.
    """
    supported = vm.profile.gmem_flags_for(vm.arch.has_private_mem)
    if args.flags & ~supported:
        raise rules.CREATE_FLAGS(f"flags {args.flags:#x}, supported {supported:#x}")
    if vm.profile.init_flag == "private" and args.flags == GUEST_MEMFD_FLAG_INIT_PRIVATE:
        raise rules.CREATE_INIT_PRIVATE(f"flags {args.flags:#x}")
    if args.size >> 63 or not args.size or args.size & (PAGE_SIZE - 1):
        raise rules.CREATE_SIZE(f"size {args.size:#x}")
    vm.host.design.check_creation(args.size, args.flags)
    process: Process = vm.rt.current.process
    fd = process.get_unused_fd()
    try:
        vm.host.allocate("gmem-inode")
    except KernelError:
        process.put_unused_fd(fd)
        raise
    process.fd_install(fd, GmemFile(vm, vm.host.design.new_inode(vm.host, args.size, args.flags)))
    return fd


class GmemFile(File):
    """struct gmem_file.  It holds a reference to its VM; a mapping holds a reference to it."""

    def __init__(self, vm: Vm, inode: GmemInode) -> None:
        super().__init__(inode)
        self.vm, self.gmem_inode = vm, inode
        self.name = vm.profile.file_name
        self.noexec = vm.profile.anon_inodes_noexec
        self.gate = inode.attributes
        self.bindings: RangeMap[Memslot] = RangeMap()
        """file page -> the slot that it's bound to"""
        vm.get()
        inode.files.append(self)

    def ioctl(self, request: int, arg: UserPointer) -> int:
        """kvm_gmem_ioctl(): conversion is all there is, by the calls that the kernel has for it."""
        handler = self.vm.host.design.gmem_ioctls.get(request)
        if handler is None:
            raise rules.IOCTL(f"{request:#x}")
        return handler(self, arg)

    @property
    def can_mmap(self) -> bool:
        """Kernels without GUEST_MEMFD_FLAG_MMAP have no kvm_gmem_mmap()."""
        return bool(self.vm.profile.gmem_flags & GUEST_MEMFD_FLAG_MMAP)

    def mmap(self, vma: Vma) -> None:
        """kvm_gmem_mmap()."""
        if not self.gmem_inode.flags & GUEST_MEMFD_FLAG_MMAP:
            raise rules.MMAP_UNSUPPORTED(f"created with flags {self.gmem_inode.flags:#x}")
        if not vma.shared:
            raise rules.MMAP_PRIVATE("MAP_PRIVATE")
        vma.mapping = self.gmem_inode.mapping

    def fault(self, vma: Vma, index: int, count: int, write: bool, address: int) -> Folio:
        """vm_ops->fault()."""
        return kvm_gmem_fault_user_mapping(self.gmem_inode, index, count, address)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """kvm_gmem_fallocate()."""
        if not mode & FALLOC_FL_KEEP_SIZE:
            raise rules.FALLOC_KEEP_SIZE(f"mode {mode:#x}")
        if mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
            raise rules.FALLOC_MODE(f"mode {mode:#x}")
        if (offset | length) & (PAGE_SIZE - 1):
            raise rules.FALLOC_UNALIGNED(f"offset {offset:#x}, length {length:#x}")
        start, end = offset >> PAGE_SHIFT, offset + length >> PAGE_SHIFT
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._punch_hole(start, end)
        else:
            self._allocate(start, end)

    def _punch_hole(self, start: int, end: int) -> None:
        """kvm_gmem_punch_hole(): file pages [start, end) lose their memory.  Attributes stay."""
        inode = self.gmem_inode
        with inode.mapping.invalidate_lock.exclusive:
            invalidate_start(inode.files, start, end, inode.host.design.filter_for_removal(inode))
            inode.punch(start, end)
            inode.host.design.punched(inode, start, end)
            invalidate_end(inode.files, start, end)

    def _allocate(self, start: int, end: int) -> None:
        """kvm_gmem_allocate(): give file pages [start, end) memory; what was done stays when a signal comes."""
        inode = self.gmem_inode
        if end > inode.nr_pages:
            raise rules.FALLOC_EOF(f"file pages {start:#x}-{end:#x} of {inode.nr_pages:#x}")
        rt, mapping = inode.host.rt, inode.mapping
        with mapping.invalidate_lock.shared:
            while start < end:
                if rt.current.pending_signals:
                    raise rules.FALLOC_SIGNAL(f"{end - start} pages still to allocate")
                folio = inode.grab_folio(start, rt.batch(end - start))
                start += folio.count
                mapping.unlock_folio(folio)
                mapping.put_folio(folio)
                rt.resched()

    def release(self) -> None:
        """kvm_gmem_release(): the last reference to the file is gone.  Its slots lose their memory; the VM is let go."""
        vm, inode = self.vm, self.gmem_inode
        with vm.slots_lock, inode.mapping.invalidate_lock.exclusive:
            for _, _, slot in self.bindings.runs():
                vm.rt.writes(("slot-file", slot))
                slot.live().gmem_file = None
            invalidate_start([self], 0, LAST_INDEX, inode.host.design.filter_for_removal(inode))
            invalidate_end([self], 0, LAST_INDEX)
            inode.files.remove(self)
        self.bindings.clear()
        vm.put()
        if not inode.files:
            inode.evict()

# SPDX-License-Identifier: GPL-2.0-or-later
"""process_vm_readv() and process_vm_writev() (mm/process_vm_access.c): memory of a process by way of its page tables."""

from __future__ import annotations

from collections.abc import Sequence

from ..hw.memory import PAGE_SHIFT, PAGE_SIZE
from ..rules import KernelError
from ..rules import mm as rules
from ..uapi.mman import FOLL_WRITE
from .address_space import AddressSpace
from .gup import pin_user_pages_remote
from .uaccess import Iovec, IovIter, check_iovec

__all__ = ["process_vm_readv", "process_vm_writev"]


def process_vm_readv(mm: AddressSpace, local: Sequence[Iovec], remote: Sequence[Iovec], there: AddressSpace | None) -> int:
    """Copy from `remote` in address space `there` to `local` in `mm`: how many bytes, up to the first that can't be had.

    Raises, where there would be none: EINVAL, EFAULT (`mm.iovec.*`, `mm.uaccess`, `mm.gup.fault`), and ESRCH
    (`mm.process.missing`) if `there` is no process's.
    """
    return _process_vm_rw(mm, local, remote, there, write=False)


def process_vm_writev(mm: AddressSpace, local: Sequence[Iovec], remote: Sequence[Iovec], there: AddressSpace | None) -> int:
    """Copy the other way; the rest is as for `process_vm_readv`."""
    return _process_vm_rw(mm, local, remote, there, write=True)


def _process_vm_rw(
    mm: AddressSpace, local: Sequence[Iovec], remote: Sequence[Iovec], there: AddressSpace | None, *, write: bool
) -> int:
    """process_vm_rw(), process_vm_rw_core()."""
    user = IovIter(mm, local)
    total = user.count
    if not total:
        return 0
    check_iovec(remote)
    if not any(length for _, length in remote):
        return 0
    if there is None:
        raise rules.NO_PROCESS("no process has that number")
    try:
        for address, length in remote:
            _single_vec(user, there, address, length, write=write)
    except KernelError:
        if user.count == total:
            raise
    return total - user.count


def _single_vec(user: IovIter, there: AddressSpace, address: int, length: int, *, write: bool) -> None:
    """process_vm_rw_single_vec(): page by page."""
    while length and user.count:
        offset = address & (PAGE_SIZE - 1)
        want = min(PAGE_SIZE - offset, length)
        pfn = pin_user_pages_remote(there, address - offset, FOLL_WRITE if write else 0)
        try:
            _rw_page(user, there, (pfn << PAGE_SHIFT) + offset, want, write=write)
        finally:
            there.memmap.unpin(pfn)
        address, length = address + want, length - want


def _rw_page(user: IovIter, there: AddressSpace, pa: int, want: int, *, write: bool) -> None:
    """process_vm_rw_pages() for one page.  Raises EFAULT if the local side came to an address that can't be had."""
    if write:
        there.rt.writes(("memory", pa >> PAGE_SHIFT))
        data = user.copy_from(want)
        there.memory.kernel_write(pa, data)
        done = len(data)
    else:
        there.rt.reads(("memory", pa >> PAGE_SHIFT))
        done = user.copy_to(there.memory.kernel_read(pa, want))
    if done < want and user.count:
        raise rules.USER_COPY(f"{done} of {want} bytes could be copied")

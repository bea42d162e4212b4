# SPDX-License-Identifier: GPL-2.0-or-later
"""The host kernel's TDX support: the module, private key ids, and pages that go to the module and come back
(arch/x86/virt/vmx/tdx/tdx.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hw.memory import PAGE_SHIFT
from ..hw.tdx.module import Lifecycle, Seamcall, TdxModule
from ..hw.tdx.pamt import PageType
from ..invariants import InvariantViolation, Leak
from ..rangemap import RangeMap
from ..rules import tdx as rules
from ..uapi.tdx import TdxStatus, status_of, status_text

if TYPE_CHECKING:
    from .host import Host

__all__ = ["TdxPlatform", "sc_retry"]

RDRAND_RETRY_LOOPS = 10


def sc_retry(seamcall: Callable[[], Seamcall]) -> Seamcall:
    """sc_retry(): a SEAMCALL that lacked entropy is made again, ten times."""
    for _ in range(RDRAND_RETRY_LOOPS):
        result = seamcall()
        if status_of(result.status) is not TdxStatus.RND_NO_ENTROPY:
            break
    return result


class TdxPlatform:
    """TDX module and private key ids of one machine.

    `partial_write_mce` is the erratum of the parts so far (X86_BUG_TDX_PW_MCE): a partial write to memory that was private
    poisons it, so the kernel zeroes pages that it gets back.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.module = TdxModule(host.rt, host.memory, host.memmap.nr_pages)
        self.partial_write_mce = True
        self.tdx_lock = host.rt.mutex("tdx_lock")
        self.warnings: list[str] = []
        """What the kernel's log has of SEAMCALLs that failed."""
        self.lost: RangeMap[bool] = RangeMap()
        """Pages that were freed while the module had them: their VM or TD was dead, and KVM had no other way."""
        self._hkids: set[int] = set()
        host.memory.watchers.append(self.module.host_wrote)
        host.memmap.free_checks.append(self._check_free)

    # Key ids

    def hkid_alloc(self) -> int:
        """tdx_guest_keyid_alloc(): the lowest free one.  Raises ENOSPC."""
        for hkid in self.module.info.hkids:
            if hkid not in self._hkids:
                self._hkids.add(hkid)
                return hkid
        raise rules.INIT_HKID(f"all {len(self.module.info.hkids)} are in use")

    def hkid_free(self, hkid: int) -> None:
        """tdx_guest_keyid_free()."""
        self._hkids.discard(hkid)

    # Pages

    def alloc_page(self) -> int:
        """A page to give to the module.  Raises ENOMEM."""
        self.host.allocate("tdx-page")
        [(pfn, _)] = self.host.memmap.alloc(1)
        return pfn

    def free_page(self, pfn: int) -> None:
        """A page that the module didn't take, or gave back."""
        self.host.memmap.put(pfn)

    def quirk_reset(self, pfn: int, count: int = 1) -> None:
        """tdx_quirk_reset_paddr(): with the erratum, zeroes are written without reading, which also mends poison."""
        if self.partial_write_mce:
            self.host.memory.clear(pfn, count)
            self.module.heal(pfn, count)

    def reclaim_page(self, pfn: int) -> bool:
        """tdx_reclaim_page(): a page of a TD in teardown comes back.  False: it doesn't."""
        result = self.module.phymem_page_reclaim(pfn)
        if result.status:
            self.warn(f"TDH.PHYMEM.PAGE.RECLAIM of pfn {pfn:#x}: {status_text(result.status)}")
            return False
        self.quirk_reset(pfn)
        return True

    def reclaim_control_page(self, pfn: int) -> None:
        """tdx_reclaim_control_page(): take it back and free it, or leak it."""
        if self.reclaim_page(pfn):
            self.free_page(pfn)
        else:
            self.leak(pfn)

    def leak(self, pfn: int) -> None:
        """A page that the module keeps is never used again."""
        self.host.memmap.leaked.set(pfn, pfn + 1, True)

    def owner(self, pfn: int) -> str:
        """The page's type in the PAMT, and the TD that has it."""
        entry = self.module.pamt.entries[pfn]
        return f"{entry.type.name} TDR {entry.owner:#x}" if entry is not None else "NDA"

    def warn(self, what: str) -> None:
        """WARN_ON_ONCE() and pr_err()."""
        self.warnings.append(what)

    # What must hold

    def machine_check(self, address: int) -> None:
        """A processor in a TD met a poisoned line: the handler takes the page out of use for good."""
        pfn = address >> PAGE_SHIFT
        self.host.memmap.poisoned.add(pfn)
        self.leak(pfn)

    def _check_free(self, pfn: int, count: int) -> None:
        """No page is freed while the module has it, nor with lines of a TD in a cache, while that TD is in order."""
        module = self.module
        if not module.unflushed.empty(pfn, pfn + count):
            raise InvariantViolation(f"pfn {pfn:#x}: freed while lines under a TD's key may be in a cache")
        if not module.pamt.owned(pfn, count):
            return
        for start, end, entry in module.pamt.entries.runs(pfn, pfn + count):
            td = module.tds.get(entry.owner)
            in_order = td is not None and not td.fatal and td.lifecycle is Lifecycle.KEYS_CONFIGURED
            dead = not in_order or any(vm.vm_bugged for vm in self.host.vms)
            if not dead or entry.type is not PageType.REG:
                raise InvariantViolation(f"pfn {start:#x}: freed while the TDX module has it as {entry.type.name}")
            self.lost.set(start, end, True)

    def check_quiet(self) -> None:
        """With every VM gone, the module has no page but what was leaked, and nothing was lost."""
        for start, end, _ in self.lost.runs():
            raise InvariantViolation(f"pfn {start:#x}-{end:#x} was freed while the TDX module had it")
        for start, end, entry in self.module.pamt.entries.runs():
            if not self.host.memmap.leaked.covers(start, end, True):
                raise Leak(f"pfn {start:#x}-{end:#x} is still {entry.type.name} to the TDX module")

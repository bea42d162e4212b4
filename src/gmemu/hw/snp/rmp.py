# SPDX-License-Identifier: GPL-2.0-or-later
"""The instructions on the reverse map table, and the checks that it makes of each access (APM vol. 2, 15.36; vol. 3).

RMPUPDATE and PSMASH are the host's, PVALIDATE and RMPADJUST the guest's.  They answer as the instructions do: a code in EAX.
What would be a nested page fault or a #VC is an exception here.
"""

from __future__ import annotations

from enum import IntEnum

from ...uapi.kvm_x86 import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_ENC_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_RMP_MASK,
    PFERR_GUEST_SIZEM_MASK,
    PFERR_GUEST_VMPL_MASK,
    PFERR_PRESENT_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from .rmp_entry import ASID_MAX, GFN_MAX, PAGES_PER_2M, RmpEntry, RmpState, VmplMask
from .rmp_table import RmpTable

__all__ = [
    "NestedFault",
    "NotValidated",
    "PsmashStatus",
    "PvalidateStatus",
    "Rmp",
    "RmpAdjustStatus",
    "RmpEntry",
    "RmpState",
    "RmpUpdateStatus",
    "VmplMask",
]


class RmpUpdateStatus(IntEnum):
    """RMPUPDATE in EAX."""

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_PERMISSION = 2
    FAIL_INUSE = 3
    FAIL_OVERLAP = 4


class PsmashStatus(IntEnum):
    """PSMASH in EAX."""

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_PERMISSION = 2
    FAIL_INUSE = 3
    FAIL_BADADDR = 4


class PvalidateStatus(IntEnum):
    """PVALIDATE in EAX; NO_UPDATE is the carry flag, for which Linux guests have this number."""

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_SIZEMISMATCH = 6
    NO_UPDATE = 255


class RmpAdjustStatus(IntEnum):
    """RMPADJUST in EAX."""

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_PERMISSION = 2
    FAIL_SIZEMISMATCH = 6


class NestedFault(Exception):
    """#NPF: the guest exits to the hypervisor.  `error` is EXITINFO1 (PFERR_* bits), `why` one sentence for a person."""

    def __init__(self, error: int, gfn: int, pfn: int, why: str) -> None:
        self.error, self.gfn, self.pfn, self.why = error, gfn, pfn, why
        super().__init__(f"#NPF({error:#x}) at gfn {gfn:#x}, pfn {pfn:#x}: {why}")


class NotValidated(Exception):
    """#VC(PAGE_NOT_VALIDATED), raised in the guest: it touched a page that it hasn't accepted."""

    EXIT_CODE = 0x404

    def __init__(self, gfn: int, pfn: int) -> None:
        self.gfn, self.pfn = gfn, pfn
        super().__init__(f"#VC({self.EXIT_CODE:#x}): page at gfn {gfn:#x}, pfn {pfn:#x}, hasn't been validated")


_EXEC = VmplMask.EXEC_USER | VmplMask.EXEC_SUPERVISOR


class Rmp(RmpTable):
    """The table with its instructions."""

    def rmpupdate(
        self,
        pfn: int,
        *,
        count: int = 1,
        assigned: bool,
        asid: int = 0,
        gfn: int = 0,
        immutable: bool = False,
        pagesize: int = 0,
    ) -> tuple[int, int]:
        """RMPUPDATE, `count` times back to back on consecutive pages: the last code, and how many were done.

        Pages of a guest get consecutive guest page numbers from `gfn`; others all get `gfn`.  With `pagesize` 1 each
        instruction is for 2 MiB.  Checks, in order: input; entry held by hardware; entry immutable, or a page given to
        nobody with an ASID or immutable; 4 KiB and 2 MiB overlapping.
        """
        step = PAGES_PER_2M if pagesize else 1
        if not 0 <= asid <= ASID_MAX or not 0 <= gfn <= GFN_MAX or (asid and gfn % step):
            return RmpUpdateStatus.FAIL_INPUT, 0
        if not assigned and (asid or immutable):
            bad_address = pfn % step or not self.covers(pfn) or not self.covers(pfn + step - 1)
            return RmpUpdateStatus.FAIL_INPUT if bad_address else RmpUpdateStatus.FAIL_PERMISSION, 0
        new = RmpEntry(True, False, immutable, asid, gfn - pfn if asid else gfn, pagesize=pagesize) if assigned else None
        fits = min(count, (GFN_MAX + 1 - gfn) // step) if asid else count
        done, code = 0, RmpUpdateStatus.SUCCESS
        while done < fits and not code:
            injected = self._injected("RMPUPDATE", pfn + done * step, gfn + done * step if asid else None)
            if injected is not None:
                return injected, done
            if pagesize:
                code = self._update_2m(pfn + done * PAGES_PER_2M, new)
                done += not code
            else:
                at_once = 1 if self.inject is not None else self._rt.batch(fits - done)
                code, n = self._update_4k(pfn + done, at_once, new)
                done += n
        return RmpUpdateStatus.FAIL_INPUT if not code and done < count else code, done

    def _injected(self, instruction: str, pfn: int, gfn: int | None = None) -> int | None:
        return self.inject(instruction, pfn, gfn) if self.inject is not None else None

    def _update_4k(self, pfn: int, count: int, new: RmpEntry | None) -> tuple[RmpUpdateStatus, int]:
        self._mark(self._rt.writes, pfn, count)
        code, end = RmpUpdateStatus.SUCCESS, pfn + count
        if pfn < 0 or end > self.npages:
            code, end = RmpUpdateStatus.FAIL_INPUT, max(pfn, self.npages) if pfn >= 0 else pfn
        held = self._held(pfn, end)
        if held is not None:
            code, end = RmpUpdateStatus.FAIL_INUSE, held
        changes = []
        for start, stop, old in self.entries.spans(pfn, end):
            if old is not None:
                if old.immutable and not (old.pagesize and start % PAGES_PER_2M):
                    code, end = RmpUpdateStatus.FAIL_PERMISSION, start
                    break
                if old.pagesize:
                    code, end = RmpUpdateStatus.FAIL_OVERLAP, start
                    break
            changes.append((start, stop, _updated(old, new)))
        for change in changes:
            self.entries.set(*change)
        return code, end - pfn

    def _update_2m(self, pfn: int, new: RmpEntry | None) -> RmpUpdateStatus:
        end = pfn + PAGES_PER_2M
        self._mark_2m(pfn)
        if pfn % PAGES_PER_2M or pfn < 0 or end > self.npages:
            return RmpUpdateStatus.FAIL_INPUT
        if self._held(pfn, end) is not None:
            return RmpUpdateStatus.FAIL_INUSE
        old = self.entries[pfn]
        if old is not None and old.immutable:
            return RmpUpdateStatus.FAIL_PERMISSION
        if (old is None or not old.pagesize) and not self.entries.empty(pfn, end):
            return RmpUpdateStatus.FAIL_OVERLAP
        self.entries.set(pfn, end, _updated(old, new))
        return RmpUpdateStatus.SUCCESS

    def psmash(self, pfn: int) -> PsmashStatus:
        """PSMASH: one 2 MiB entry becomes 512 of 4 KiB that say the same, guest page numbers counted up."""
        injected = self._injected("PSMASH", pfn)
        if injected is not None:
            return PsmashStatus(injected)
        end = pfn + PAGES_PER_2M
        self._mark_2m(pfn)
        if pfn % PAGES_PER_2M:
            return PsmashStatus.FAIL_INPUT
        if not self.covers(pfn):
            return PsmashStatus.FAIL_BADADDR
        if self._held(pfn, end) is not None:
            return PsmashStatus.FAIL_INUSE
        entry = self.entries[pfn]
        if entry is None or not entry.pagesize:
            return PsmashStatus.FAIL_BADADDR
        if entry.immutable:
            return PsmashStatus.FAIL_PERMISSION
        self.entries.set(pfn, end, entry._replace(pagesize=0))
        return PsmashStatus.SUCCESS

    def pvalidate(self, pfn: int, gfn: int, asid: int, vmpl: int, validate: bool, pagesize: int = 0) -> PvalidateStatus:
        """PVALIDATE by a guest: accept the page, or give the acceptance up.

        `NestedFault` unless VMPL0 executes it and the entry is the guest's own, for this `gfn`, mutable, and not larger.
        """
        injected = self._injected("PVALIDATE", pfn, gfn)
        if injected is not None:
            return PvalidateStatus(injected)
        if pagesize and gfn % PAGES_PER_2M:
            return PvalidateStatus.FAIL_INPUT
        self._mark_2m(pfn, pagesize)
        error = PFERR_GUEST_RMP_MASK | PFERR_GUEST_ENC_MASK
        if vmpl:
            raise _fault(error | PFERR_GUEST_VMPL_MASK, gfn, pfn, f"PVALIDATE by VMPL{vmpl}; only VMPL0 may")
        entry = self._guests_own(pfn, gfn, asid, error)
        mismatch = self._size_mismatch(entry, pfn, gfn, pagesize, error)
        if mismatch:
            return PvalidateStatus.FAIL_SIZEMISMATCH
        if entry.validated == validate:
            return PvalidateStatus.NO_UPDATE
        self.entries.set(pfn, pfn + (PAGES_PER_2M if pagesize else 1), entry._replace(validated=validate))
        return PvalidateStatus.SUCCESS

    def rmpadjust(
        self,
        pfn: int,
        gfn: int,
        asid: int,
        vmpl: int,
        *,
        target_vmpl: int,
        mask: int,
        vmsa: bool = False,
        pagesize: int = 0,
    ) -> RmpAdjustStatus:
        """RMPADJUST by a guest at `vmpl`: set the rights of a less privileged VMPL, and at VMPL0 the page's VMSA bit.

        Above VMPL0 `vmsa` is ignored.  Faults like an access to the page do.
        """
        injected = self._injected("RMPADJUST", pfn, gfn)
        if injected is not None:
            return RmpAdjustStatus(injected)
        if target_vmpl not in range(4) or mask not in range(VmplMask.ALL + 1) or (pagesize and gfn % PAGES_PER_2M):
            return RmpAdjustStatus.FAIL_INPUT
        if target_vmpl <= vmpl:
            return RmpAdjustStatus.FAIL_PERMISSION
        self._mark_2m(pfn, pagesize)
        error = PFERR_GUEST_RMP_MASK | PFERR_GUEST_ENC_MASK
        entry = self._guests_own(pfn, gfn, asid, error)
        if self._size_mismatch(entry, pfn, gfn, pagesize, error):
            return RmpAdjustStatus.FAIL_SIZEMISMATCH
        if not entry.validated:
            raise NotValidated(gfn, pfn)
        if int(mask) & ~entry.vmpl[vmpl]:
            return RmpAdjustStatus.FAIL_PERMISSION
        masks = list(entry.vmpl)
        masks[target_vmpl] = int(mask)
        adjusted = entry._replace(vmpl=(masks[0], masks[1], masks[2], masks[3]), vmsa=entry.vmsa if vmpl else vmsa)
        self.entries.set(pfn, pfn + (PAGES_PER_2M if pagesize else 1), adjusted)
        return RmpAdjustStatus.SUCCESS

    def check_guest(self, pfn: int, gfn: int, asid: int, vmpl: int, access: int, encrypted: bool, pagesize: int = 0) -> None:
        """What the table has to say to a guest's access, once nested paging has found `pfn` for `gfn`.

        `access` is of `VmplMask`; `encrypted` whether the C-bit was set; `pagesize` that of the nested mapping.  With the
        C-bit, in order: guest page number, assigned, ASID, size, not immutable, else `NestedFault`; validated, else
        `NotValidated`; the VMPL's rights, else `NestedFault`.  Without it the page must be assigned to nobody.
        """
        self._rt.reads(("rmp", pfn))
        error = PFERR_WRITE_MASK if access & VmplMask.WRITE else PFERR_FETCH_MASK if access & _EXEC else 0
        if not encrypted:
            entry = self.entries[pfn]
            if entry is not None and entry.assigned:
                raise _fault(error | PFERR_GUEST_RMP_MASK, gfn, pfn, "shared access to an assigned page")
            return
        error |= PFERR_GUEST_RMP_MASK | PFERR_GUEST_ENC_MASK
        entry = self._guests_own(pfn, gfn, asid, error, pagesize)
        if not entry.validated:
            raise NotValidated(gfn, pfn)
        if int(access) & ~entry.vmpl[vmpl]:
            why = f"VMPL{vmpl} has rights {entry.vmpl[vmpl]:#x}, access needs {int(access):#x}"
            raise _fault(error | PFERR_GUEST_VMPL_MASK, gfn, pfn, why)

    def _guests_own(self, pfn: int, gfn: int, asid: int, error: int, pagesize: int = 0) -> RmpEntry:
        """The page's entry, if it is this guest's and for this page; a nested mapping may not be larger than it."""
        entry = self.entries[pfn] if self.covers(pfn) else None
        if entry is None or not entry.assigned:
            raise _fault(error, gfn, pfn, "page isn't assigned")
        if entry.gfn(pfn) != gfn or entry.asid != asid:
            owner = f"ASID {entry.asid}, gfn {entry.gfn(pfn):#x}"
            raise _fault(error, gfn, pfn, f"page is assigned to {owner}, not to ASID {asid}")
        if pagesize > entry.pagesize:
            raise _fault(error, gfn, pfn, "2 MiB mapping of a page assigned as 4 KiB")
        if entry.immutable:
            raise _fault(error, gfn, pfn, "page is immutable: a firmware command has to finish first")
        return entry

    def _size_mismatch(self, entry: RmpEntry, pfn: int, gfn: int, pagesize: int, error: int) -> bool:
        """Whether 2 MiB were asked of a 4 KiB entry, which the guest is told; the reverse the hypervisor must mend."""
        if pagesize < entry.pagesize:
            raise _fault(error | PFERR_GUEST_SIZEM_MASK, gfn, pfn, "4 KiB asked of a page assigned as 2 MiB")
        return pagesize > entry.pagesize


def _updated(old: RmpEntry | None, new: RmpEntry | None) -> RmpEntry | None:
    """What RMPUPDATE leaves: the same guest page in the same place stays as the guest had it; any other starts anew."""
    if new is None or old is None or not old.assigned or not new.asid:
        return new
    if (old.asid, old.gfn_delta, old.pagesize) != (new.asid, new.gfn_delta, new.pagesize):
        return new
    return old._replace(immutable=new.immutable)


def _fault(error: int, gfn: int, pfn: int, why: str) -> NestedFault:
    return NestedFault(error | PFERR_PRESENT_MASK | PFERR_USER_MASK | PFERR_GUEST_FINAL_MASK, gfn, pfn, why)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's side of the machine's SNP hardware: RMP helpers (arch/x86/virt/svm/sev.c), firmware pages, ASIDs, /dev/sev.

One of these serves all SNP VMs of a host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..hw.memory import HostAccessFault
from ..hw.snp.psp import Psp
from ..hw.snp.rmp import PsmashStatus, Rmp, RmpUpdateStatus
from ..invariants import InvariantViolation, Leak
from ..mm.file import File, Inode
from ..mm.uaccess import UserPointer
from ..rules import KernelError
from ..rules import snp as rules
from ..uapi.sev import PspStatus

if TYPE_CHECKING:
    from .host import Host

__all__ = ["SevDeviceFile", "SnpPlatform"]

FIRST_ASID, LAST_ASID = 1, 99
RETRY_LIMIT = 10_000
"""How often in a row an instruction may come to what KVM tries again.  Only an order, or a bug, brings it so far."""
PAGES_PER_2M = 512


class SnpPlatform:
    """RMP, firmware and ASIDs of one machine."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.rmp = Rmp(host.rt, host.memmap.nr_pages)
        self.psp = Psp(host.rt, host.memory, self.rmp, seed=host.seed)
        self.supported_vmsa_features = host.profile.snp_vmsa_features
        self.warnings: list[str] = []
        """What the kernel would have said by WARN(): it went on, although something can't be right any more."""
        self._asids: set[int] = set()
        host.memory.guards.append(self._check_host_access)
        host.memmap.free_checks.append(self._check_free)

    def _check_host_access(self, pfn: int, count: int, write: bool) -> None:
        """The host may read anything (it sees ciphertext); a write to an assigned page is a page fault."""
        if write and not self.rmp.check_host_write(pfn, count):
            raise HostAccessFault(f"pfn {pfn:#x} is assigned by the RMP")

    def _check_free(self, pfn: int, count: int) -> None:
        if self.rmp.owned(pfn, count):
            raise InvariantViolation(f"pfn {pfn:#x}: freed while the RMP has it in state {self.rmp.state(pfn).name}")

    def check_quiet(self) -> None:
        """With every VM gone, the RMP assigns no page but what was leaked."""
        for start, end, entry in self.rmp.entries.runs():
            if entry.assigned and not self.host.memmap.leaked.covers(start, end, True):
                raise Leak(f"pfn {start:#x}-{end:#x} is still {self.rmp.state(start).name} asid {entry.asid} in the RMP")

    def owner(self, pfn: int) -> str:
        """The page's state in the RMP, and whose it is."""
        entry, state = self.rmp.lookup(pfn), self.rmp.state(pfn).name
        return f"{state} asid {entry.asid}" if entry is not None and entry.asid else state

    def warn(self, what: str) -> None:
        """WARN()."""
        self.warnings.append(what)

    # ASIDs

    def asid_new(self) -> int:
        """sev_asid_new(): the lowest free one.  A flush makes those clean that were used.  Raises EBUSY."""
        for asid in range(FIRST_ASID, LAST_ASID + 1):
            if asid not in self._asids:
                self._asids.add(asid)
                self.psp.wbinvd()
                self.psp.df_flush()
                return asid
        raise rules.INIT_ASID(f"all {LAST_ASID} are in use")

    def asid_free(self, asid: int) -> None:
        """sev_asid_free()."""
        self._asids.discard(asid)

    # RMP

    def _rmpupdate(self, pfn: int, *, count: int = 1, **fields: Any) -> tuple[int, int]:
        """rmpupdate(): FAIL_OVERLAP is tried again until the 2 MiB entry was split; the code, and how far it got."""
        done = 0

        def once() -> tuple[int, int]:
            nonlocal done
            gfn = {"gfn": fields["gfn"] + done} if "gfn" in fields else {}
            code, more = self.rmp.rmpupdate(pfn + done, count=count - done, **{**fields, **gfn})
            done += more
            return code, more

        code, _ = _while(once, RmpUpdateStatus.FAIL_OVERLAP, f"RMPUPDATE of pfn {pfn:#x}")
        return code, done

    def rmp_make_private(self, pfn: int, gfn: int, asid: int, *, immutable: bool, count: int = 1) -> int:
        """rmp_make_private(): assign up to `count` 4 KiB pages to the guest as `gfn` and the frames after it: how many
        before one was refused.  Raises EFAULT if it was the first."""
        code, done = self._rmpupdate(pfn, count=count, assigned=True, asid=asid, gfn=gfn, immutable=immutable)
        if code and not done:
            raise rules.RMPUPDATE(f"code {code} at pfn {pfn:#x}")
        return done

    def rmp_make_private_large(self, pfn: int, gfn: int, asid: int, count: int) -> None:
        """The same for `count` pages, with an entry of 2 MiB for each aligned 2 MiB of them.  Raises EFAULT."""
        end = pfn + count
        while pfn < end:
            large = not pfn % PAGES_PER_2M and not gfn % PAGES_PER_2M and end - pfn >= PAGES_PER_2M
            if large:
                code, _ = self._rmpupdate(pfn, assigned=True, asid=asid, gfn=gfn, pagesize=1)
                if code:
                    raise rules.RMPUPDATE(f"code {code} at pfn {pfn:#x}")
                done = PAGES_PER_2M
            else:
                upto = min(end, (pfn // PAGES_PER_2M + 1) * PAGES_PER_2M)
                done = self.rmp_make_private(pfn, gfn, asid, immutable=False, count=upto - pfn)
            pfn, gfn = pfn + done, gfn + done

    def rmp_make_shared(self, pfn: int) -> None:
        """rmp_make_shared(): give a 4 KiB page back to the hypervisor.  Raises EFAULT."""
        code, _ = self._rmpupdate(pfn, assigned=False)
        if code:
            raise rules.RMPUPDATE(f"code {code} at pfn {pfn:#x}")

    def make_shared(self, pfn: int, count: int) -> None:
        """sev_gmem_make_shared(): whatever of these pages is assigned goes back to the hypervisor; 2 MiB entries that
        aren't wholly covered are split first.  A page that the RMP keeps is one that the kernel only warns about."""
        for start, end, entry in list(self.rmp.entries.runs(pfn, pfn + count)):
            if not entry.assigned:
                continue
            if entry.pagesize:
                for head in range(start // PAGES_PER_2M * PAGES_PER_2M, end, PAGES_PER_2M):
                    self.psmash(head)
            while start < end:
                code, done = self._rmpupdate(start, count=end - start, assigned=False)
                start += done
                if code:
                    self.warn(f"RMPUPDATE of pfn {start:#x} to shared: code {code}")
                    start += 1

    def psmash(self, pfn: int) -> None:
        """snp_rmptable_psmash(): split the 2 MiB entry that covers `pfn`."""
        head = pfn // PAGES_PER_2M * PAGES_PER_2M
        code = _while(lambda: (self.rmp.psmash(head), 0), PsmashStatus.FAIL_INUSE, f"PSMASH of pfn {head:#x}")[0]
        if code:
            self.warn(f"PSMASH of pfn {pfn:#x}: code {code}")

    # Firmware pages

    def alloc_firmware_page(self) -> int | None:
        """snp_alloc_firmware_page(): a page that only the firmware may write, or None; a page that the RMP won't assign is
        lost."""
        try:
            [(pfn, _)] = self.host.memmap.alloc(1)
        except KernelError:
            return None
        self.host.memory.clear(pfn, 1)
        code, _ = self._rmpupdate(pfn, assigned=True, immutable=True)
        if code:
            self.host.memmap.leak(pfn, 1)
            return None
        return pfn

    def free_firmware_page(self, pfn: int) -> None:
        """snp_free_firmware_page(): take it back; a page that can't be had back is leaked."""
        if self.psp.page_reclaim(pfn) is not PspStatus.SUCCESS or self._rmpupdate(pfn, assigned=False)[0]:
            self.host.memmap.leak(pfn, 1)
        self.host.memmap.put(pfn)


def _while(operation: Callable[[], tuple[int, int]], again: int, what: str) -> tuple[int, int]:
    """Once more for as long as it comes to `again`: KVM does so for ever.  After so long nothing else can come of it."""
    for _ in range(RETRY_LIMIT):
        code, done = operation()
        if code != again:
            return code, done
    raise InvariantViolation(f"{what} came to code {again} {RETRY_LIMIT} times in a row: KVM would try for ever")


class SevDeviceFile(File):
    """An open /dev/sev: what KVM's commands are issued through."""

    name = "/dev/sev"

    def __init__(self, host: Host) -> None:
        super().__init__(Inode(0o020600))
        self.host = host

    def ioctl(self, request: int, arg: UserPointer) -> int:
        raise rules.DEVICE_IOCTL(f"{request:#x}")

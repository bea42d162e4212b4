# SPDX-License-Identifier: GPL-2.0-or-later
"""Populating a launch, gone on with where a call stopped.

SNP: success with `len` left means "call again with what is left"; a VMM that looks at the result alone launches a guest with
holes.  TDX: EINTR and EBUSY leave in the structure what is still to be done.
"""

from __future__ import annotations

from errno import EAGAIN, EBUSY, EINTR

from ..api.cca import Cca
from ..api.sev import Snp
from ..api.tdx import Tdx, TdxError
from ..api.vcpu import Vcpu
from ..uapi.sev import SnpPageType
from .backoff import Backoff
from .errors import VmmError

__all__ = ["populate_cca", "populate_snp", "populate_tdx"]


def populate_snp(snp: Snp, gpa: int, size: int, page_type: SnpPageType | int, source: int = 0) -> int:
    """KVM_SEV_SNP_LAUNCH_UPDATE until nothing is left.  Returns how many calls it took.

    A failure is final, as EIO doesn't tell a signal from a page that was populated before: the launch has to be begun anew.
    Raises `SnpError`, or `VmmError` when a call says that it succeeded and did nothing.
    """
    calls = 0
    while True:
        left = snp.launch_update_once(gpa, size, page_type, source)
        calls += 1
        if not left.len:
            return calls
        if left.len >= size:
            raise VmmError(f"LAUNCH_UPDATE at gpa {gpa:#x} succeeded and left all of {left.len:#x} bytes to do")
        gpa, size, source = left.gfn_start << 12, left.len, left.uaddr


def populate_tdx(
    tdx: Tdx, vcpu: Vcpu, gpa: int, size: int, source: int = 0, *, measure: bool = True, backoff: Backoff | None = None
) -> int:
    """KVM_TDX_INIT_MEM_REGION until nothing is left.  Returns how many calls it took.

    Interrupted or busy, it goes on from where it stopped, at most `backoff.attempts` times for one page.  Raises `TdxError`.
    """
    backoff = backoff or Backoff()
    calls = failed = 0
    while True:
        calls += 1
        try:
            tdx.init_mem_region(vcpu, gpa, size, source, measure=measure)
            return calls
        except TdxError as error:
            left = error.left
            if error.errno not in (EINTR, EAGAIN, EBUSY) or left is None:
                raise
            failed = 1 if left.nr_pages << 12 < size else failed + 1
            if failed == backoff.attempts:
                raise
            gpa, size, source = left.gpa, left.nr_pages << 12, left.source_addr
            if not size:
                return calls
            backoff.wait(failed)


def populate_cca(cca: Cca, gpa: int, size: int, source: int, *, measure: bool = True, backoff: Backoff | None = None) -> int:
    """KVM_ARM_RMI_POPULATE until nothing is left.  Returns how many calls it took.

    Interrupted or busy, it goes on from where it stopped, at most `backoff.attempts` times for one page.  Raises what the
    ioctl does, or `VmmError` when a call says that it succeeded and did nothing.
    """
    backoff = backoff or Backoff()
    calls = failed = 0
    while True:
        calls += 1
        try:
            left = cca.populate(gpa, size, source, measure=measure)
        except OSError as error:
            failed += 1
            if error.errno not in (EINTR, EAGAIN) or failed == backoff.attempts:
                raise
            backoff.wait(failed)
            continue
        if not left.size:
            return calls
        if left.size >= size:
            raise VmmError(f"RMI_POPULATE at gpa {gpa:#x} succeeded and left all of {left.size:#x} bytes to do")
        gpa, size, source, failed = left.base, left.size, left.source_uaddr, 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the program that uses KVM decides: the VMM's half of a contract, in components like the kernel's `Design`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..api.sev import Snp
    from ..uapi.sev import SnpPageType

__all__ = ["UserSpace"]


def _until_done(snp: Snp, gpa: int, length: int, page_type: SnpPageType, source: int) -> None:
    """KVM_SEV_SNP_LAUNCH_UPDATE until `len` is 0: only then is all of it loaded."""
    snp.launch_update(gpa, length, page_type, source)


def _call(action: Callable[[], None]) -> None:
    action()


def _convert(convert: Callable[[], None], let_go: Callable[[], None]) -> None:
    convert()


def _let_go(convert: Callable[[], None], let_go: Callable[[], None]) -> None:
    let_go()


def _convert_first(convert: Callable[[], object], populate: Callable[[], object]) -> None:
    convert()
    populate()


class UserSpace(NamedTuple):
    """A VMM that keeps the contract."""

    load: Callable[[Snp, int, int, SnpPageType, int], None] = _until_done
    """(snp, gpa, length in bytes, page type, user address of the source)"""
    on_busy: Callable[[Callable[[], None]], None] = _call
    """(let_go): a conversion was refused as somebody holds the page; `let_go` asks that one to let go of it"""
    on_hypercall: Callable[[Callable[[], None], Callable[[], None]], None] = _convert
    """(convert, let_go): the guest asks for a conversion; `convert` makes the call, `let_go` lets go of the pages"""
    on_unshare: Callable[[Callable[[], None], Callable[[], None]], None] = _let_go
    """(convert, let_go): a protected guest of pKVM wants a page back, which KVM gives it when the vCPU runs again"""
    load_in_place: Callable[[Callable[[], object], Callable[[], object]], None] = _convert_first
    """(convert, populate): shared memory that was written is to be the guest's"""
    before_discard: Callable[[Callable[[], None]], None] = _call
    """(unmap): memory is about to be discarded; `unmap` takes it from devices (RamDiscardManager)"""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches that stop part-way are gone on with, or fail clearly."""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, EINTR, EIO

import pytest

from gmemu.api.sev import SnpError
from gmemu.api.tdx import TdxError
from gmemu.rules import snp as snp_rules
from gmemu.rules import tdx as tdx_rules
from gmemu.uapi.sev import SnpPageType, kvm_sev_snp_launch_update
from gmemu.uapi.tdx import kvm_tdx_init_mem_region
from gmemu.vmm import Backoff, VmmError, populate_snp, populate_tdx

PAGE = 4096


class Snp:
    """LAUNCH_UPDATE that does `steps` pages a call."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.calls = list(steps), []  # type: ignore[var-annotated]

    def launch_update_once(
        self, gpa: int, length: int, page_type: int, source: int = 0, flags: int = 0
    ) -> kvm_sev_snp_launch_update:
        self.calls.append((gpa, length, source))
        done = self.steps.pop(0) * PAGE
        if done < 0:
            raise SnpError(snp_rules.UPDATE_FAILED(), 0)
        return kvm_sev_snp_launch_update(gfn_start=(gpa + done) >> 12, len=length - done, uaddr=source and source + done)


def snp(fake: Snp, size: int, source: int = 0) -> int:
    return populate_snp(fake, 0x100000, size, SnpPageType.NORMAL, source)  # type: ignore[arg-type]


def test_snp_goes_on_until_nothing_is_left() -> None:
    fake = Snp(3, 1, 4)
    assert snp(fake, 8 * PAGE, 0x7000) == 3
    assert fake.calls == [
        (0x100000, 8 * PAGE, 0x7000),
        (0x103000, 5 * PAGE, 0xA000),
        (0x104000, 4 * PAGE, 0xB000),
    ]


def test_snp_in_place_has_no_source_later_either() -> None:
    fake = Snp(3, 5)
    snp(fake, 8 * PAGE)
    assert [source for _, _, source in fake.calls] == [0, 0]


def test_snp_success_without_progress_is_an_error() -> None:
    with pytest.raises(VmmError, match="left all of"):
        snp(Snp(2, 0), 8 * PAGE)


def test_snp_failure_is_final() -> None:
    fake = Snp(2, -1, 6)
    with pytest.raises(SnpError) as caught:
        snp(fake, 8 * PAGE)
    assert caught.value.errno == EIO
    assert len(fake.calls) == 2


class Tdx:
    """INIT_MEM_REGION that does as many pages as the next step says, then fails with its rule; all without one."""

    def __init__(self, *steps: tuple[int, Callable[[], OSError]]) -> None:
        self.steps, self.calls = list(steps), []  # type: ignore[var-annotated]

    def init_mem_region(self, vcpu: object, gpa: int, size: int, source: int = 0, *, measure: bool = True) -> None:
        self.calls.append((gpa, size, source))
        if self.steps:
            done, rule = self.steps.pop(0)
            region = kvm_tdx_init_mem_region(
                source_addr=source and source + done * PAGE, gpa=gpa + done * PAGE, nr_pages=(size >> 12) - done
            )
            raise TdxError(rule(), 0, region)  # type: ignore[arg-type]


def tdx(fake: Tdx, size: int, source: int = 0) -> int:
    return populate_tdx(fake, None, 0x100000, size, source, backoff=Backoff.none(3))  # type: ignore[arg-type]


def test_tdx_goes_on_after_signals() -> None:
    fake = Tdx((3, tdx_rules.REGION_SIGNAL), (0, tdx_rules.ADD_BUSY))
    assert tdx(fake, 8 * PAGE, 0x7000) == 3
    assert fake.calls == [(0x100000, 8 * PAGE, 0x7000), *[(0x103000, 5 * PAGE, 0xA000)] * 2]


def test_tdx_gives_up_where_nothing_moves() -> None:
    fake = Tdx((3, tdx_rules.REGION_SIGNAL), *[(0, tdx_rules.REGION_SIGNAL)] * 9)
    with pytest.raises(TdxError) as caught:
        tdx(fake, 8 * PAGE)
    assert caught.value.errno == EINTR
    assert len(fake.calls) == 3


def test_tdx_other_failures_are_final() -> None:
    fake = Tdx((3, tdx_rules.DOUBLE_ADD))
    with pytest.raises(TdxError) as caught:
        tdx(fake, 8 * PAGE)
    assert caught.value.errno not in (EINTR, EAGAIN)
    assert len(fake.calls) == 1

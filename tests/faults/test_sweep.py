# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: nothing is found in the reference VMM, on any platform; and what is wrong with the others, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gmemu.faults import Order, What
from gmemu.faults import sweep as sweep_module
from gmemu.faults.language import NAMED
from gmemu.faults.names import results_of
from gmemu.faults.points import _RESULTS
from gmemu.faults.pool import Died, run_jobs
from gmemu.faults.sweep import Sweep, SweepError, sweep

ROOT = Path(__file__).parents[2]
REFERENCE = str(ROOT / "examples" / "launch_and_convert.py")
BAD = str(Path(__file__).parent / "bad_vmm.py")

CONVERT = "KVM_SET_MEMORY_ATTRIBUTES2"


@pytest.mark.parametrize(
    "arguments",
    [["software"], ["snp"], ["tdx"], ["cca"], ["pkvm"], ["pkvm", "inplace-v13-pkvm"], ["snp", "linux-7.3"]],
    ids=" ".join,
)
def test_the_reference_vmm(arguments: list[str]) -> None:
    result = sweep(REFERENCE, arguments)
    assert result.findings == ()
    assert result.unmet == 0
    assert result.points > 10
    assert 0 < result.succeeded < result.points


def test_whatever_can_be_ordered_can_be_swept() -> None:
    """All but `call`: a call that is refused outright comes to no point where the kernel could fail."""
    for what in NAMED:
        assert what in (What.RMP, What.CALL) or _RESULTS[what] in results_of(what)


def conversions(order: Order) -> bool:
    return order.during == CONVERT


def found(fault: str, only: Any = conversions) -> dict[str, tuple[str, str]]:
    """Findings by order."""
    result = sweep(BAD, [fault], only=only)
    return {finding.order: (finding.kind, finding.why) for finding in result.findings}


def test_ignores_len() -> None:
    findings = found("ignores_len", lambda order: order.during == "SNP_LAUNCH_UPDATE")
    assert findings["signal during=SNP_LAUNCH_UPDATE call=1 at=page"] == (
        "untrue",
        "it ended as if all had gone well, but the guest has 2 pages after its launch, and 7 when nothing fails",
    )


def test_ignores_size() -> None:
    """A realm that isn't what it was to be, by its RIM."""
    kind, why = found("ignores_size", lambda order: order.what is What.SIGNAL)[
        "signal during=KVM_ARM_RMI_POPULATE call=1 at=page"
    ]
    assert kind == "untrue"
    assert why.startswith("it ended as if all had gone well, but ")
    assert "measurement" in why


def test_ignores_error_offset() -> None:
    findings = found("ignores_error_offset")
    assert findings[f"ref offset=0x0 during={CONVERT} call=4"] == (
        "untrue",
        "the guest was told that gfn 0x100 is private now (MAP_GPA_RANGE, 0), and it isn't",
    )


def test_retries_for_ever() -> None:
    kind, why = found("retries_for_ever")[f"pin offset=0x0 during={CONVERT} call=4 hold=0"]
    assert kind == "hung"
    assert "it goes on for ever: of its last 1,000 calls the most frequent were" in why
    assert f"{CONVERT} (EAGAIN)" in why


def test_trips_over_errors() -> None:
    findings = found("trips_over_errors", lambda order: order.what is What.ALLOC)
    assert findings == {
        "alloc kvm -> ENOMEM": ("crashed", "KeyError: 'mine', which no failed call explains"),
    }


def test_a_program_that_makes_no_more_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "SECONDS", 1)
    findings = found("sleeps", lambda order: order.name == "kvm")
    assert findings == {"alloc kvm -> ENOMEM": ("hung", "no end after 1 s of processor time")}


def test_a_program_has_to_work_first() -> None:
    with pytest.raises(SweepError, match="has to succeed with nothing failing first; it ends with status 1"):
        sweep(BAD, ["fails_anyway"])


def test_the_same_each_time_whatever_the_number_of_processes() -> None:
    results = [sweep(BAD, ["ignores_error_offset"], jobs=jobs, only=conversions) for jobs in (1, 3)]
    assert results[0] == results[1]
    assert isinstance(results[0], Sweep)


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    result = sweep(BAD, ["trips_over_errors"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, result.points) for i in range(1, result.points + 1)]


def test_every_point() -> None:
    def of_rmp(order: Order) -> bool:
        return order.name == "RMPUPDATE"

    some = sweep(BAD, ["ignores_len"], only=of_rmp)
    all_of_them = sweep(BAD, ["ignores_len"], only=of_rmp, every=True)
    assert all_of_them.points > some.points


def test_jobs_come_out_in_order_and_may_die() -> None:
    def die() -> int:
        raise SystemExit(3)

    results = list(run_jobs([lambda: 1, die, lambda: 3], 2, 10))
    assert results == [1, Died("the process that ran it failed"), 3]

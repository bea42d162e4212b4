# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends a run badly is told: a kernel that complains, a case that a call ended."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gmemu.cli.main import main
from gmemu.conformance import backends
from gmemu.conformance.backends import Backend, open_backend
from gmemu.conformance.bench import Bench
from gmemu.conformance.case import Case
from gmemu.conformance.fuzz import campaign
from gmemu.conformance.runner import run_cases

SPLAT = "WARNING: possible circular locking dependency detected"


def complaining(name: str, profile: str = "", version: str = "6.12") -> Any:
    """The emulation; as `vm`, with a log."""

    @contextmanager
    def opened() -> Iterator[Backend]:
        with open_backend("emulated", profile or "linux-6.12") as backend:
            yield backend._replace(name=name, splats=lambda: [SPLAT]) if name == "vm" else backend

    return opened()


def test_a_splat_fails_the_comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends, "open_backend", complaining)
    out = tmp_path / "out"
    arguments = ["conform", "--backend", "vm", "--group", "capabilities", "-o", str(out)]
    assert main(arguments) == 1
    assert f"the kernel complained 1 time\n\n{SPLAT}\n" in out.read_text()
    assert main([*arguments, "--json"]) == 1
    data = json.loads(out.read_text())
    assert data["splats"] == [SPLAT]
    assert data["differences"] == []


def test_a_splat_fails_the_fuzzing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(campaign, "open_backend", complaining)
    out = tmp_path / "out"
    assert main(["conform", "fuzz", "--backend", "vm", "--steps", "60", "-o", str(out)]) == 1
    assert SPLAT in out.read_text()
    assert "0 differences" in out.read_text()


def test_a_quiet_log_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def quiet(name: str, profile: str = "", version: str = "6.12") -> Iterator[Backend]:
        with open_backend("emulated", profile or "linux-6.12") as backend:
            yield backend._replace(name=name, splats=list if name == "vm" else None)

    monkeypatch.setattr(campaign, "open_backend", quiet)
    out = tmp_path / "out"
    assert main(["conform", "fuzz", "--backend", "vm", "--steps", "60", "-o", str(out)]) == 0
    assert "the kernel's log was read" in out.read_text()
    assert main(["conform", "fuzz", "--backend", "host", "--steps", "60", "-o", str(out)]) == 0
    assert "log" not in out.read_text()


def test_a_case_that_a_call_ends_is_a_difference() -> None:
    def run(b: Bench) -> None:
        b.record("before", 1)
        b.vm().delete_slot(1)

    with open_backend("emulated", "linux-6.18") as backend:
        results = run_cases(backend, cases=[Case("made-up", "ending", run, (), each_vm=False)])
    assert {name: outcome.result for name, outcome in results.probes.items()} == {
        "made-up/ending: before": "1",
        "made-up/ending: (what ended the case)": "EINVAL",
    }

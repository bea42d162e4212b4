# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulation against what real kernels were recorded to do; and live, where this machine has a /dev/kvm."""

from pathlib import Path

import pytest

from gmemu.conformance.backends import BackendUnavailable, open_backend
from gmemu.conformance.case import all_cases, groups
from gmemu.conformance.compare import compare
from gmemu.conformance.features import Features
from gmemu.conformance.runner import Results, run_cases
from gmemu.conformance.table import load

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


def emulated(profile: str, features: Features) -> Results:
    """The emulation, running what the kernel with these features ran."""
    with open_backend("emulated", profile) as backend:
        return run_cases(backend._replace(features=features))


def test_there_are_tables() -> None:
    assert GOLDEN


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_emulation_does_what_was_recorded(path: Path) -> None:
    table = load(path)
    found = compare(emulated(table.profile, table.features).probes, table.results.probes, table.profile)
    assert found.unexplained == []
    assert found.stale == []
    assert found.same >= 400


def test_emulation_does_what_this_machine_does() -> None:
    try:
        with open_backend("host") as host:
            real = run_cases(host)
    except BackendUnavailable as why:
        pytest.skip(f"no live comparison: {why}")
    found = compare(emulated(host.profile, host.features).probes, real.probes, host.profile)
    assert found.unexplained == []


def test_recorded_tables_name_no_machine() -> None:
    for path in GOLDEN:
        assert load(path).kernel.replace(".", "").isdigit()


def test_every_case_can_run_on_some_profile() -> None:
    ran: set[str] = set()
    for profile in ("linux-6.12", "linux-6.18", "linux-7.3", "inplace-v13"):
        with open_backend("emulated", profile) as backend:
            ran |= {probe.partition(":")[0] for probe in run_cases(backend).probes}
    for case in all_cases():
        assert any(name.startswith(case.id) for name in ran), case.id
    assert len(groups()) >= 12

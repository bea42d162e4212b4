# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu run`, `gmemu sweep` and --inject."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmemu.cli.main import main
from gmemu.kvm.design import Design
from gmemu.kvm.host import Host
from gmemu.profiles import get

ROOT = Path(__file__).parents[2]
EXAMPLE = str(ROOT / "examples" / "launch_and_convert.py")
BAD = str(ROOT / "tests" / "faults" / "bad_vmm.py")


def test_run_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", EXAMPLE, "software"]) == 0
    assert capsys.readouterr().out == "software: launched, converted both ways, taken down (simulated)\n"


def test_run_with_failures(capsys: pytest.CaptureFixture[str]) -> None:
    orders = ["--inject", "alloc gmem-inode nth=2 -> ENOMEM", "--inject", "psp LAUNCH_START -> ACTIVE"]
    assert main(["run", *orders, EXAMPLE]) == 1
    told = capsys.readouterr().err
    assert "gmemu: note: carried out: alloc gmem-inode nth=2 -> ENOMEM in KVM_CREATE_GUEST_MEMFD\n" in told
    assert "gmemu: note: nothing came of the order 'psp LAUNCH_START -> ACTIVE'\n" in told


@pytest.mark.parametrize("variant", ["convert-in-vcpu-run", "convert-in-vcpu-run-refuse"])
def test_run_on_a_kernel_that_is_built_otherwise(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--variant", variant, EXAMPLE]
    assert main([*words, "pkvm", "inplace-v13-pkvm"]) == 0
    assert main([*words, "software"]) == 1  # its converter is an ioctl that such a kernel hasn't
    assert "gmem.ioctl.unknown" in capsys.readouterr().err
    assert Host().design.map_gpa_range is Design.of(get("inplace-v13")).map_gpa_range


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--variant", "convert", EXAMPLE], "there is no variant 'convert'; there are"),
        (["run", "--inject", "psp -> 3", EXAMPLE], "psp has no (nothing)"),
        (["run", "nowhere.py"], "there is no program nowhere.py"),
        (["sweep", "nowhere.py"], "there is no program nowhere.py"),
        (["sweep", BAD, "fails_anyway"], "has to succeed with nothing failing first"),
        (["launch", "snp", "--inject", "psp LAUNCH_UPDATE"], "with what result?"),
        (["launch", "tdx", "--inject", "what"], "nothing called 'what' can be ordered"),
    ],
)
def test_what_makes_no_sense(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert told.err.count("\n") == 1


def test_sweep_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--jobs", "2", "--only", "alloc", EXAMPLE, "software"]) == 0
    out = capsys.readouterr().out
    assert "nothing found" in out
    assert "simulated" in out


def test_sweep_finds_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--json", "--only", "alloc", BAD, "trips_over_errors"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["simulated"] is True
    assert [finding["kind"] for finding in data["findings"]] == ["crashed"]
    assert main(["sweep", "--only", "alloc", BAD, "trips_over_errors"]) == 1
    assert "alloc kvm -> ENOMEM\ncrashed: KeyError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("platform", "order", "why"),
    [
        ("snp", "psp LAUNCH_UPDATE -> RESOURCE_LIMIT", "RESOURCE_LIMIT"),
        ("tdx", "seamcall MEM_PAGE_ADD nth=2 -> EPT_WALK_FAILED", "EPT_WALK_FAILED"),
        ("cca", "rmi RTT_DATA_MAP_INIT nth=3 -> 0x304", "ERROR_RTT, index 3"),
    ],
)
def test_launch_with_a_failure(platform: str, order: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", platform, "--inject", order, "--profile", "inplace-v13"]) == 2
    assert why in capsys.readouterr().err

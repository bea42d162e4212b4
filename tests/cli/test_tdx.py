# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu measure tdx` and `gmemu launch tdx`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmemu.launch.base import FLOWS
from gmemu.launch.ovmf import Firmware
from gmemu.launch.pagelog import TdxPageType, read_log
from gmemu.launch.td_synth import make_tdvf
from gmemu.launch.tdx import compute_mrtd, plan_tdx

from .conftest import Gmemu


@pytest.fixture(scope="module")
def tdvf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("firmware") / "tdvf.fd"
    path.write_bytes(make_tdvf())
    return path


@pytest.mark.parametrize("two_pass", [False, True])
def test_measure(gmemu: Gmemu, tdvf: Path, two_pass: bool) -> None:
    plan = plan_tdx(Firmware.load(tdvf))
    words = ("measure", "tdx", "--firmware", tdvf, *(("--two-pass",) if two_pass else ()))
    mrtd = compute_mrtd(plan, two_pass=two_pass).hex()
    assert gmemu(*words) == (0, mrtd + "\n", "")
    data = gmemu(*words, "--json").json
    assert (data["measurement"], data["simulated"], data["platform"]) == (mrtd, True, "tdx")
    assert data["parameters"]["two_pass"] is two_pass
    assert data["steps"][0] == {"name": "bfv", "gpa": "0xffff1000", "pages": 15, "measured": True}


def test_measure_what_isnt_tdvf(gmemu: Gmemu, image: Path) -> None:
    done = gmemu("measure", "tdx", "--firmware", image)
    assert (done.code, done.out) == (2, "")
    assert "has no TDX metadata" in done.err


@pytest.mark.parametrize("profile", ["inplace-v13", "linux-7.3", "linux-6.18"])
def test_launch(gmemu: Gmemu, tdvf: Path, profile: str) -> None:
    words = ("launch", "tdx", "--firmware", tdvf, "--profile", profile)
    data = gmemu(*words, "--json").json
    assert data["measurement"] == compute_mrtd(plan_tdx(Firmware.load(tdvf))).hex()
    assert data["flow"] == ("in-place" if profile == "inplace-v13" else "copy")
    assert [(e["who"], e["result"]) for e in data["guest"] if e["who"] in ("guest", "host")] == [
        ("guest", "as launched"),
        ("guest", "'a secret'"),
        ("guest", "'hello, host'"),
        ("host", "'hello, host'"),
        ("guest", "'hello, guest'"),
        ("guest", "zeroes"),
    ]
    done = gmemu(*words)
    assert done.code == 0
    assert data["measurement"] in done.out
    assert "simulated" in done.out


@pytest.mark.parametrize("words", [("measure",), ("measure", "--two-pass"), ("launch",), ("launch", "--flow", "copy")])
def test_log(gmemu: Gmemu, tdvf: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "td.jsonl"
    command, *options = words
    done = gmemu(command, "tdx", "--firmware", tdvf, "--log", path, *options, "--json").json
    log, plan = read_log(path), plan_tdx(Firmware.load(tdvf))
    assert (log.header["platform"], log.header["simulated"]) == ("tdx", True)
    assert (len(log.pages), log.measurement) == (plan.pages, done["measurement"])
    assert sum(page.page_type is TdxPageType.EXTENDED for page in log.pages) == plan.measured_pages
    assert [page.gpa for page in log.pages] == [at for s in plan.steps for at in range(s.gpa, s.gpa + s.size, 4096)]
    assert [page.name for page in log.pages] == [step.name for step in plan.steps for _ in range(step.pages)]


def test_logs_of_two_orders_part_at_the_first_page_that_is_extended(gmemu: Gmemu, tdvf: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    gmemu("measure", "tdx", "--firmware", tdvf, "--log", one)
    gmemu("measure", "tdx", "--firmware", tdvf, "--two-pass", "--log", two)
    done = gmemu("measure", "diff", one, two)
    assert done.code == 1
    assert "page 0" in done.out


@pytest.mark.parametrize(("profile", "flow"), [(p, f) for p in ("rfc-v5", "inplace-v8", "inplace-v13") for f in FLOWS])
def test_both_flows_give_the_same_measurement(gmemu: Gmemu, tdvf: Path, profile: str, flow: str) -> None:
    data = gmemu("launch", "tdx", "--firmware", tdvf, "--profile", profile, "--flow", flow, "--json").json
    assert (data["flow"], data["measurement"]) == (flow, compute_mrtd(plan_tdx(Firmware.load(tdvf))).hex())


def test_launch_where_there_is_no_tdx(gmemu: Gmemu, tdvf: Path) -> None:
    done = gmemu("launch", "tdx", "--firmware", tdvf, "--profile", "linux-6.12")
    assert done.code == 2
    assert "profile linux-6.12 has no TDX" in done.err


def test_launch_without_an_image(gmemu: Gmemu) -> None:
    assert gmemu("launch", "tdx", "--json").json["firmware_origin"] in ("found", "synthetic")

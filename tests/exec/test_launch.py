# SPDX-License-Identifier: GPL-2.0-or-later
"""SNP and TDX launches by a VMM in C, up to the first KVM_RUN: the digest is that of `gmemu measure`."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from gmemu.cli.main import main
from gmemu.launch.ovmf import Firmware
from gmemu.launch.plan import MemoryRegion, plan_snp
from gmemu.launch.synth import make_firmware
from gmemu.launch.td_synth import make_tdvf
from gmemu.launch.tdx import plan_tdx

from .conftest import Compile, Exec

_FLOWS = {"inplace-v13": "in-place", "linux-7.3": "copy"}


def _write_plan(
    directory: Path, lines: list[str], regions: list[MemoryRegion], steps: list[tuple[int, int, int, object]]
) -> Path:
    """The plan of programs/launch.c: `lines` of vCPUs, and the contents of each step in a file of its own."""
    lines = [f"region {region.gpa:#x} {region.size:#x}" for region in regions] + lines
    for number, (gpa, size, kind, contents) in enumerate(steps):
        path = directory / f"step{number}"
        if contents is not None:
            path.write_bytes(bytes(contents))  # type: ignore[call-overload]
        lines.append(f"step {gpa:#x} {size:#x} {kind} {path if contents is not None else '-'}")
    plan = directory / "plan"
    plan.write_text("".join(f"{line}\n" for line in lines))
    return plan


def _snp(directory: Path, vcpus: int) -> tuple[Path, list[str]]:
    image = directory / "firmware"
    image.write_bytes(make_firmware())
    plan = plan_snp(Firmware.load(image), vcpus, "EPYC-v4", 1)
    lines = []
    for number, state in enumerate(plan.vcpus):
        path = directory / f"vcpu{number}"
        words = state.xcr0.to_bytes(8, "little") + state.pat.to_bytes(8, "little")
        path.write_bytes(state.regs.pack() + state.sregs.pack() + state.fpu.pack() + words)
        lines.append(f"vcpu {path}")
    steps = [(step.gpa, step.size, int(step.page_type), step.contents) for step in plan.steps]
    written = _write_plan(directory, lines, plan.memory_regions(), list(steps))
    return written, ["snp", "--firmware", str(image), "--vcpus", str(vcpus), "--vcpu-type", "EPYC-v4"]


def _tdx(directory: Path, vcpus: int) -> tuple[Path, list[str]]:
    image = directory / "firmware"
    image.write_bytes(make_tdvf())
    plan = plan_tdx(Firmware.load(image), vcpus)
    lines = [f"hob {plan.hob_gpa:#x}", *["vcpu -"] * vcpus]
    steps = [(step.gpa, step.size, int(step.measured), step.contents) for step in plan.steps]
    return _write_plan(directory, lines, plan.memory_regions(), list(steps)), ["tdx", "--firmware", str(image)]


def _launch(
    tmp_path: Path, compile_c: Compile, gmemu_exec: Exec, platform: str, profile: str, log: str = "log.jsonl"
) -> tuple[CompletedProcess[str], Path, list[str]]:
    plan, measure = (_snp if platform == "snp" else _tdx)(tmp_path, 2)
    machine = "amd" if platform == "snp" else "intel"
    options = ("--profile", profile, "--platform", machine, "--log", str(tmp_path / log))
    done = gmemu_exec(compile_c("launch"), platform, _FLOWS[profile], plan, options=options)
    return done, tmp_path / log, [*measure, "--profile", profile]


@pytest.mark.parametrize("profile", _FLOWS)
@pytest.mark.parametrize("platform", ["snp", "tdx"])
def test_the_digest_is_the_one_that_gmemu_measure_gives(
    tmp_path: Path,
    compile_c: Compile,
    gmemu_exec: Exec,
    platform: str,
    profile: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done, log, measure = _launch(tmp_path, compile_c, gmemu_exec, platform, profile)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "launched"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    [event] = [entry for entry in entries if entry.get("event") == "measurement"]
    assert event["simulated"] is True
    assert event["platform"] == platform
    assert main(["measure", *measure]) == 0
    assert event["digest"] == capsys.readouterr().out.strip()


@pytest.mark.parametrize("platform", ["snp", "tdx"])
def test_the_guest_isnt_run_and_that_is_gmemus_lack(
    tmp_path: Path, compile_c: Compile, gmemu_exec: Exec, platform: str
) -> None:
    """No machine code of an encrypted guest can be executed: KVM_RUN says so, and isn't said to be the kernel's answer."""
    done, log, _ = _launch(tmp_path, compile_c, gmemu_exec, platform, "inplace-v13")
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    [run] = [entry for entry in entries if entry.get("args", {}).get("request") == "KVM_RUN"]
    assert run["result"] == -1
    assert run["lacking"] is True
    assert run["rule"] == "gmemu.run.no-engine"


def test_the_text_log_has_it(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    _, log, _ = _launch(tmp_path, compile_c, gmemu_exec, "snp", "inplace-v13", "log.txt")
    [line] = [line for line in log.read_text().splitlines() if "* measurement:" in line]
    assert "platform=snp, digest=" in line
    assert "simulated=True" in line

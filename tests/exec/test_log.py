# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written down of a program's calls, and the stories told."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Compile, Exec

HELD = ("--inject", "ref offset=0x2000 during=KVM_SET_MEMORY_ATTRIBUTES2")


def test_json_lines(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    log = tmp_path / "log.jsonl"
    done = gmemu_exec(compile_c("conversions"), "elevated_reference", options=("--log", str(log), *HELD))
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert (head["gmemu"], head["simulated"], head["profile"]) == ("exec", True, "inplace-v13")
    calls = [line for line in lines if "call" in line]
    assert calls[0]["args"]["path"] == "/dev/kvm"
    assert calls[1]["args"]["request"] == "KVM_CREATE_VM"
    assert calls[1]["args"]["arg"] == "SW_PROTECTED"
    [busy] = [call for call in calls if call.get("errno") == "EAGAIN"]
    assert (busy["rule"], busy["result"]) == ("gmem.attributes.busy", -1)
    assert busy["args"]["arg"]["size"] == 0x8000
    events = [line["event"] for line in lines if "event" in line]
    assert events == ["zap", "zap", "convert"]
    faults = [call for call in calls if call["call"] == "fault"]
    assert {call["errno"] for call in faults} == {"SIGBUS"}
    assert {call["rule"] for call in faults} == {"gmem.fault.private"}


def test_lines_in_straces_manner(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    log = tmp_path / "log"
    assert gmemu_exec(compile_c("conversions"), "errors", options=("--log", str(log))).returncode == 0
    head, *lines = log.read_text().splitlines()
    assert head.startswith("# gmemu exec, simulated True")
    text = "\n".join(line.partition(" ")[2] for line in lines)
    assert "open(/dev/kvm, flags=0x80002) = " in text
    assert "KVM_CREATE_GUEST_MEMFD, {size=0x1001, flags=0}) = -1 EINVAL  # gmem.create.size: " in text
    assert "ioctl(4<anon_inode:kvm-vm>, KVM_CREATE_GUEST_MEMFD, {size=0x8000, flags=3}) = 5" in text
    assert "MAP_PRIVATE" in text


def test_stories(compile_c: Compile, gmemu_exec: Exec) -> None:
    done = gmemu_exec(compile_c("conversions"), "elevated_reference", options=("--explain", *HELD))
    assert done.returncode == 0
    assert "EAGAIN: KVM_SET_MEMORY_ATTRIBUTES2 by thread" in done.stderr
    assert "error_offset is 0x2000" in done.stderr
    assert "file page 0x2 with 2 references, 1 expected" in done.stderr
    assert "whoever held page 0x2 has let it go by now" in done.stderr
    assert "the page is private, since thread" in done.stderr
    assert "convert it (KVM_SET_MEMORY_ATTRIBUTES2 without PRIVATE)" in done.stderr


def test_an_order_that_makes_no_sense_is_refused(gmemu_exec: Exec) -> None:
    done = gmemu_exec("true", options=("--inject", "nonsense"))
    assert done.returncode == 2
    assert done.stderr.startswith("gmemu: ")

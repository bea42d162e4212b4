# SPDX-License-Identifier: GPL-2.0-or-later
"""Page logs: what is written is read, and the first difference is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha384
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmemu.launch.errors import LaunchError
from gmemu.launch.ovmf import Firmware
from gmemu.launch.pagelog import PageLog, PageRecord, diff, log_header, read_log, write_log
from gmemu.launch.plan import LaunchPlan, plan_snp, vmsa_step_name
from gmemu.launch.synth import make_firmware
from gmemu.launch.vcpu_state import VMSA_GPA
from gmemu.uapi.sev import SnpPageType

from .oracle import PAGE, extend, plan_digest
from .vmsa_oracle import build_vmsa

IMAGE = Firmware.from_bytes(make_firmware(4 * PAGE), "synthetic.fd")


def launched(plan: LaunchPlan, name: str = "a.jsonl") -> PageLog:
    """The log that a launch by `plan` leaves."""
    pages, digest = [], bytes(48)

    def add(step: int, step_name: str, gpa: int, kind: SnpPageType, contents: bytes) -> None:
        nonlocal digest
        digest = extend(digest, kind, gpa, contents)
        pages.append(PageRecord(step, step_name, gpa, kind, contents.hex(), digest.hex()))

    for index, step in enumerate(plan.steps):
        for offset in range(0, step.size, PAGE):
            source = step.contents if step.page_type is SnpPageType.NORMAL else None
            contents = sha384(source[offset : offset + PAGE]).digest() if source else bytes(48)
            add(index, step.name, step.gpa + offset, step.page_type, contents)
    for index, state in enumerate(plan.vcpus):
        contents = sha384(build_vmsa(state, plan.sev_features)).digest()
        add(len(plan.steps) + index, vmsa_step_name(index), VMSA_GPA, SnpPageType.VMSA, contents)
    return PageLog(name, log_header(plan), pages)


def plan_of(image: Firmware = IMAGE, vcpus: int = 2, cpu: str = "EPYC-v4", **more: Any) -> LaunchPlan:
    return plan_snp(image, vcpus, cpu, 1, **more)


def test_log_reads_back(tmp_path: Path) -> None:
    plan = plan_of()
    log = launched(plan)
    path = tmp_path / "log.jsonl"
    write_log(path, log.header, log.pages)
    again = read_log(path)
    assert (again.header, again.pages) == (log.header, log.pages)
    assert again.measurement == plan_digest(plan)
    assert diff(log, again) is None


def test_lines_are_json_and_say_simulated(tmp_path: Path) -> None:
    plan = plan_of()
    write_log(tmp_path / "log.jsonl", launched(plan).header, launched(plan).pages)
    header, first, *rest = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert header["simulated"] is True
    assert header["parameters"] == {"vmm": "qemu", "vcpus": 2, "guest_features": "0x1", "vcpu_type": "EPYC-v4"}
    assert header["firmware"]["size"] == 4 * PAGE
    assert set(first) == {"step", "name", "gpa", "type", "contents", "digest"}
    assert (first["gpa"], first["type"]) == ("0xffffc000", "normal")
    assert len(rest) + 1 == plan.pages


def test_an_empty_launch_has_no_digest() -> None:
    assert PageLog("a", {}, []).measurement == "0" * 96


def test_other_contents() -> None:
    data = bytearray(make_firmware(4 * PAGE))
    data[PAGE + 7] ^= 1
    other = Firmware.from_bytes(bytes(data), "changed.fd")
    found = diff(launched(plan_of()), launched(plan_of(other), "b.jsonl"))
    assert found is not None
    assert (found.kind, found.page) == ("contents", 1)
    assert "gpa 0xffffd000 in step 0 (firmware, offset 0x1000): the contents differ between a.jsonl and b.jsonl" in found.why
    assert found.parameters["firmware name"] == ("synthetic.fd", "changed.fd")
    assert "firmware sha256" in found.why


def test_other_registers() -> None:
    found = diff(launched(plan_of()), launched(plan_of(cpu="EPYC-Milan"), "b.jsonl"))
    assert found is not None
    assert found.kind == "contents"
    assert "the VMSA of step 8 (vmsa 0): the registers differ" in found.why
    assert "the launches differ in vcpu_type (EPYC-v4 and EPYC-Milan)" in found.why


def test_other_number_of_vcpus() -> None:
    few, many = launched(plan_of()), launched(plan_of(vcpus=4), "b.jsonl")
    for a, b in (few, many), (many, few):
        found = diff(a, b)
        assert found is not None
        assert (found.kind, found.page) == ("end", len(few.pages))
        assert "a.jsonl has 2 vCPUs and b.jsonl has 4; up to vmsa 2" in found.why
        assert (found.a is None) == (a is few)


def test_other_type_and_other_order() -> None:
    log = launched(plan_of())
    found = diff(log, launched(plan_of(vmm="gce"), "b.jsonl"))
    assert found is not None
    assert found.kind == "type"
    assert (
        "gpa 0x800000 in step 1 (sec-mem, offset 0x0) is measured as zero in a.jsonl and as unmeasured in b.jsonl"
        in found.why
    )
    found = diff(log, launched(plan_of(vmm="ec2"), "b.jsonl"))
    assert found is not None
    assert found.kind == "order"
    assert "both launch these pages, in another order" in found.why


def test_a_page_that_only_one_has() -> None:
    more = launched(plan_of())
    fewer = PageLog("b.jsonl", more.header, [p for p in more.pages if p.name != "secrets"])
    for a, b in (more, fewer), (fewer, more):
        found = diff(a, b)
        assert found is not None
        assert found.kind == "page"
        assert "b.jsonl doesn't launch the " + ("former" if a is more else "latter") in found.why
    foreign = [p._replace(gpa=0x1000) if p.name == "secrets" else p for p in more.pages]
    found = diff(more, PageLog("b.jsonl", more.header, foreign))
    assert found is not None
    assert "neither launches the other's page" in found.why


def test_an_end_and_another_start() -> None:
    log = launched(plan_of())
    found = diff(log, PageLog("b.jsonl", log.header, log.pages[:3]))
    assert found is not None
    assert (
        found.why
        == "b.jsonl ends after 3 pages, where a.jsonl goes on with gpa 0xfffff000 in step 0 (firmware, offset 0x3000)"
    )
    seeded = [p._replace(digest="0" * 96) for p in log.pages]
    found = diff(log, PageLog("b.jsonl", log.header, seeded))
    assert found is not None
    assert (found.kind, found.page) == ("digest", 0)


def _spoil(change: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    def spoil(line: str) -> str:
        record = json.loads(line)
        change(record)
        return json.dumps(record)

    return spoil


@pytest.mark.parametrize(
    ("number", "spoil", "sentence"),
    [
        (1, lambda line: "", "line 1: the line isn't JSON"),
        (1, lambda line: "[1]", "line 1: the line isn't a JSON object"),
        (1, lambda line: "{}", "isn't the header of a page log"),
        (1, _spoil(lambda h: h.update(version=9)), "has version 9"),
        (1, _spoil(lambda h: h.update(parameters=1)), 'no object "parameters"'),
        (1, _spoil(lambda h: h.pop("firmware")), 'no object "firmware"'),
        (3, lambda line: line[:40], "line 3: the line isn't JSON; the log is damaged or cut short"),
        (3, lambda line: "[" * 100_000, "line 3"),
        (3, _spoil(lambda p: p.pop("gpa")), "line 3: a page has no 'gpa'"),
        (3, _spoil(lambda p: p.update(gpa="zz")), "gpa isn't a hexadecimal number"),
        (3, _spoil(lambda p: p.update(gpa=4096)), "gpa isn't a hexadecimal number"),
        (3, _spoil(lambda p: p.update(gpa="-0x1000")), "isn't of the right kind"),
        (3, _spoil(lambda p: p.update(type="vmx")), "line 3: a page has no 'vmx'"),
        (3, _spoil(lambda p: p.update(type=[])), "its type no name"),
        (3, _spoil(lambda p: p.update(step="1")), "isn't of the right kind"),
        (3, _spoil(lambda p: p.update(contents="ab")), "96 hexadecimal digits"),
        (3, _spoil(lambda p: p.update(digest="g" * 96)), "96 hexadecimal digits"),
        (3, _spoil(lambda p: p.update(digest=None)), "96 hexadecimal digits"),
    ],
)
def test_bad_logs_are_refused_by_line(number: int, spoil: Callable[[str], str], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = launched(plan_of())
    write_log(path, log.header, log.pages)
    lines = path.read_text().splitlines()
    lines[number - 1] = spoil(lines[number - 1])
    path.write_text("\n".join(lines))
    with pytest.raises(LaunchError, match=sentence):
        read_log(path)


def test_logs_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="can't be read: No such file"):
        read_log(tmp_path / "absent")
    with pytest.raises(LaunchError, match="can't be read"):
        read_log(tmp_path)
    with pytest.raises(LaunchError, match="can't be written: No such file"):
        write_log(tmp_path / "absent" / "log", {}, [])
    (tmp_path / "empty").touch()
    with pytest.raises(LaunchError, match="isn't the header"):
        read_log(tmp_path / "empty")


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_fuzz_logs(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    header = json.dumps(log_header(plan_of())).encode() + b"\n"
    for text in data, header + data:
        path.write_bytes(text)
        try:
            read_log(path)
        except LaunchError:
            continue
        assert not text[len(header) :]

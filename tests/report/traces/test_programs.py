# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces as programs: C that a compiler takes, and syzkaller's notation."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from gmemu.explore import explore
from gmemu.explore.trace import Trace, record
from gmemu.report.traces import FORMATS
from gmemu.report.traces.calls import NotExpressible, fields, named, waits_for
from gmemu.scenarios import CATALOGUE
from gmemu.uapi.kvm import KVM_SET_MEMORY_ATTRIBUTES2, KVM_SET_USER_MEMORY_REGION2


def text(name: str, trace: Trace) -> str:
    written = FORMATS[name].write([trace])
    assert isinstance(written, str)
    return written


def test_names_stand_for_descriptors_and_addresses(private_and_mapped: tuple[Trace, Trace]) -> None:
    calls = named(private_and_mapped[0])
    [bind] = [c for c in calls if c.call.name == "ioctl" and c.call.args[1] == KVM_SET_USER_MEMORY_REGION2]
    assert bind.fd == "vm"
    assert (bind.words[3].memory, bind.words[3].value, bind.words[5].fd) == ("mem0", 0, "gmem")
    [convert] = [c for c in calls if c.call.name == "ioctl" and c.call.args[1] == KVM_SET_MEMORY_ATTRIBUTES2]
    assert (convert.fd, fields(convert.call)) == ("gmem", "size=0x1000, attributes=0x8")


def test_a_descriptor_in_the_upper_half_of_a_word(deadlock: tuple[Trace, Trace]) -> None:
    launch = [c for c in named(deadlock[0]) if any(word.high for word in c.words)]
    assert launch
    assert all([word.fd for word in call.words if word.high] == ["sev"] for call in launch)
    assert "(uint64_t)sev << 32" in text("c", deadlock[0])
    assert "@ANYRES32=r2]) (async)" in text("syz", deadlock[0])


def test_a_call_waits_for_what_came_before_it(private_and_mapped: tuple[Trace, Trace]) -> None:
    """The fault begins while the conversion is under way."""
    calls = named(private_and_mapped[0])
    [touch] = [c for c in calls if c.call.name == "load" and c.call.task == 1]
    assert [(other.call.name, over) for other, over in waits_for(calls, touch)] == [("ioctl", False)]


@pytest.mark.parametrize("pair", ["private_and_mapped", "deadlock"])
@pytest.mark.parametrize("which", [0, 1])
def test_the_c_program_compiles(pair: str, which: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "trace.c"
    source.write_text(text("c", request.getfixturevalue(pair)[which]))
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-pthread", "-o", tmp_path / "trace", source], check=True)


def test_the_c_program_says_where_the_kernel_is_to_be_held_up(private_and_mapped: tuple[Trace, Trace]) -> None:
    notes = re.findall(
        r"hold it up in (\w+)\(\) after step \d+ \(it holds ([^)]*\)?[^)]*)\) while (\w+)", text("c", private_and_mapped[0])
    )
    assert ("folio_mark_uptodate", "mmap_lock (shared), folio_lock", "convert") in notes


def test_syzkaller_notation(private_and_mapped: tuple[Trace, Trace], deadlock: tuple[Trace, Trace]) -> None:
    """One call a line; resources are numbered in order and used only after they are made."""
    value = r"(?:0x[0-9a-f]+|r\d+)"
    part = rf"@ANY(?:BLOB=\"(?:[0-9a-f]{{2}})+\"|RES32={value})"
    pointer = rf"&\(0x[0-9a-f]+(?:/0x[0-9a-f]+)?\)=(?:nil|'[^']*'|ANY=\[{part}(?:, {part})*\])"
    argument = rf"(?:{value}|{pointer})"
    line = re.compile(rf"(?:r(\d+) = )?[a-z_0-9]+(?:\$[A-Za-z_0-9]+)?\({argument}(?:, {argument})*\)(?: \(async\))?")
    for trace in (private_and_mapped[0], deadlock[0]):
        made = 0
        for written in text("syz", trace).splitlines():
            if written.startswith("#"):
                continue
            found = line.fullmatch(written)
            assert found, written
            used = [int(number) for number in re.findall(r"(?<=[=(])r(\d+)", written)]
            assert all(number < made for number in used), written
            if found[1]:
                assert int(found[1]) == made
                made += 1
    assert text("syz", private_and_mapped[0]).count("(async)") == 1


def test_what_syzkaller_cannot_have_is_refused_in_words() -> None:
    scenario = CATALOGUE["guest-fault"]
    build = partial(scenario.recorded(), ("store-after-invalidate",))
    trace = record(build, explore(build).choices, scenario=scenario.name)
    with pytest.raises(NotExpressible, match="a scripted guest"):
        text("syz", trace)
    assert "its code isn't C" in text("c", trace)


def test_without_calls_there_is_no_program(private_and_mapped: tuple[Trace, Trace]) -> None:
    for name in ("c", "syz"):
        with pytest.raises(NotExpressible, match="keeps no system calls"):
            text(name, private_and_mapped[0]._replace(calls=()))

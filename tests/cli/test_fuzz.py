# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the firmware's bytes are, `gmemu measure` and `gmemu launch` give a digest, or one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmemu.cli.main import main
from gmemu.launch.synth import AMDSEV_SECTIONS, OVMF_SECTIONS, make_firmware

IMAGES = [
    make_firmware(4 * 4096),
    make_firmware(2 * 4096, OVMF_SECTIONS, seed=1),
    make_firmware(4096, AMDSEV_SECTIONS[3:5], hash_table_gpa=None),
]
TABLES = 256
"""Bytes at the end in which all that a VMM reads stands."""

DIGEST = re.compile(r"[0-9a-f]{96}\n")
u32s = st.sampled_from([0, 1, 0xFFF, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF]) | st.integers(0, (1 << 32) - 1)
places = st.integers(1, TABLES)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An image with some of its tables' bytes changed, or a part of it cut off or repeated."""
    image = bytearray(draw(st.sampled_from(IMAGES)))
    for _ in range(draw(st.integers(1, 4))):
        at = len(image) - draw(places)
        new = draw(st.binary(min_size=1, max_size=8) | u32s.map(lambda word: word.to_bytes(4, "little")))
        image[at : at + len(new)] = new[: len(image) - at]
    match draw(st.integers(0, 9)):
        case 0:
            del image[: draw(st.sampled_from([1, 4095, 4096, 8192]))]
        case 1:
            del image[-draw(st.sampled_from([1, 4095, 4096])) :]
        case 2:
            image += bytes(draw(st.sampled_from([1, 4096])))
    return bytes(image)


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def check_error(code: int, out: str, err: str) -> None:
    assert (code, out) == (2, "")
    assert err.startswith("gmemu: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@settings(max_examples=400, deadline=None)
@given(image=mutated(), vcpus=st.sampled_from(["1", "2"]))
def test_measure(tmp_path_factory: pytest.TempPathFactory, image: bytes, vcpus: str) -> None:
    path = _written(tmp_path_factory, image)
    code, out, err = run("measure", "snp", "--firmware", path, "--vcpu-type", "EPYC-v4", "--vcpus", vcpus)
    if code:
        check_error(code, out, err)
    else:
        assert DIGEST.fullmatch(out)
        assert all(line.startswith("gmemu: note: ") for line in err.splitlines())


@settings(max_examples=100, deadline=None)
@given(image=mutated(), kernel=st.booleans())
def test_launch(tmp_path_factory: pytest.TempPathFactory, image: bytes, kernel: bool) -> None:
    path = _written(tmp_path_factory, image)
    code, out, err = run("launch", "snp", "--firmware", path, *(("--kernel", path) if kernel else ()))
    if code:
        check_error(code, out, err)
    else:
        assert "KVM_EXIT_HLT" in out
        assert err == ""


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(st.binary(max_size=40) | st.just(b'{"format": "gmemu-page-log", "version": 1}'), max_size=3))
def test_diff(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = _written(tmp_path_factory, b"\n".join(lines))
    check_error(*run("measure", "diff", path, path))


def _written(factory: Any, content: bytes) -> str:
    path = Path(factory.getbasetemp()) / "fuzzed"
    path.write_bytes(content)
    return str(path)

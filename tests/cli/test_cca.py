# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu measure cca` and `gmemu launch cca`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmemu.launch.cca import CcaImage, compute_rim, plan_cca
from gmemu.launch.cca_synth import make_kernel
from gmemu.launch.pagelog import CcaPageType, read_log

from .conftest import Gmemu

KERNEL = make_kernel(3 * 4096)
IMAGE = CcaImage("", kernel=KERNEL, dtb=b"tree")


@pytest.fixture
def words(tmp_path: Path) -> tuple[str | Path, ...]:
    """--kernel and --dtb with files."""
    kernel, dtb = tmp_path / "Image", tmp_path / "virt.dtb"
    kernel.write_bytes(KERNEL)
    dtb.write_bytes(b"tree")
    return "--kernel", kernel, "--dtb", dtb


@pytest.mark.parametrize("rmm", ["1.0", "2.0"])
def test_measure(gmemu: Gmemu, words: tuple[str | Path, ...], rmm: str) -> None:
    version = (1, 0) if rmm == "1.0" else (2, 0)
    rim = compute_rim(plan_cca(IMAGE, ipa_bits=36), version=version).hex()
    call = ("measure", "cca", *words, "--ipa-bits", "36", "--rmm", rmm)
    done = gmemu(*call)
    assert (done.code, done.out) == (0, rim + "\n")
    assert "another VMM's RIM may differ" in done.err
    data = gmemu(*call, "--json").json
    assert (data["measurement"], data["simulated"], data["platform"], data["rmm"]) == (rim, True, "cca", rmm)
    assert data["steps"][0] == {"name": "kernel", "gpa": "0x40200000", "pages": 3}


@pytest.mark.parametrize("profile", ["inplace-v13", "linux-7.3-cca"])
def test_launch(gmemu: Gmemu, words: tuple[str | Path, ...], profile: str) -> None:
    data = gmemu("launch", "cca", *words, "--profile", profile, "--vcpus", "2", "--json").json
    assert data["measurement"] == compute_rim(plan_cca(IMAGE)).hex()
    assert (data["flow"], data["firmware_origin"]) == ("copy", "given")
    assert [e["result"] for e in data["guest"] if e["who"] == "guest"][-1] == "zeroes"
    assert data["launched"] == {"ASSIGNED RAM": 4}


def test_launch_without_an_image(gmemu: Gmemu) -> None:
    done = gmemu("launch", "cca")
    assert done.code == 0
    assert "simulated" in done.out
    assert "synthetic" in done.out


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--flow", "in-place"), "never from the page itself"),
        (("--profile", "linux-6.12"), "has no realms"),
        (("--dtb", "x"), "go with --kernel"),
        (("--firmware", "x", "--kernel", "y"), "with a firmware or with a kernel"),
        (("--firmware", "/nonexistent"), "firmware"),
    ],
)
def test_what_cant_be_launched(gmemu: Gmemu, more: tuple[str, ...], why: str) -> None:
    done = gmemu("launch", "cca", *more)
    assert (done.code, done.out) == (2, "")
    assert why in done.err


def test_measure_nothing(gmemu: Gmemu) -> None:
    done = gmemu("measure", "cca")
    assert (done.code, "nothing to measure" in done.err) == (2, True)


def test_logs_tell_where_two_realms_part(gmemu: Gmemu, words: tuple[str | Path, ...], tmp_path: Path) -> None:
    a, b, old = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "old.jsonl"
    assert gmemu("measure", "cca", *words, "--log", a).code == 0
    log = read_log(a)
    assert [page.page_type for page in log.pages] == [CcaPageType.MEASURED] * 4
    assert log.header["platform"] == "cca"
    assert gmemu("measure", "diff", a, a).code == 0
    other = tmp_path / "other.dtb"
    other.write_bytes(b"TREE")
    assert gmemu("launch", "cca", *words[:3], other, "--log", b).code == 0
    done = gmemu("measure", "diff", a, b)
    assert done.code == 1
    assert "page 3" in done.out
    assert gmemu("measure", "cca", *words, "--rmm", "1.0", "--log", old).code == 0
    assert "page 0" in gmemu("measure", "diff", a, old).out
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(a.read_text().replace(log.pages[0].digest, "0" * 96))
    assert "64 hexadecimal digits" in gmemu("measure", "diff", a, damaged).err

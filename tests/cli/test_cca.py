# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu measure cca` and `gmemu launch cca`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmemu.launch.cca import CcaImage, compute_rim, plan_cca
from gmemu.launch.cca_synth import make_kernel

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

# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu measure`: the digest alone on standard output, the same by every profile; and the first page that differs."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from gmemu.launch.find import find_firmware
from gmemu.launch.ovmf import Firmware
from gmemu.launch.pagelog import read_log
from gmemu.launch.plan import plan_snp
from gmemu.launch.snp import measure_snp
from gmemu.launch.synth import AMDSEV_SECTIONS, OVMF_SECTIONS, make_firmware
from gmemu.profiles import PROFILES

from .conftest import Gmemu

TYPE = ("--vcpu-type", "EPYC-v4")


def snp(image: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("measure", "snp", "--firmware", image, *TYPE, *more)


def test_the_digest_stands_alone(gmemu: Gmemu, image: Path) -> None:
    plan = plan_snp(Firmware.load(image), 2, "EPYC-v4", 0x21)
    done = gmemu(*snp(image, "--vcpus", "2", "--guest-features", "0x21"))
    assert done == (0, measure_snp(plan).hex() + "\n", "")


@pytest.mark.parametrize("profile", PROFILES)
def test_every_kernel_measures_the_same(gmemu: Gmemu, image: Path, profile: str) -> None:
    assert gmemu(*snp(image, "--profile", profile)).out == gmemu(*snp(image)).out


def test_json(gmemu: Gmemu, image: Path) -> None:
    done = gmemu(*snp(image, "--json"))
    data = done.json
    assert done.err == ""
    assert data["measurement"] == gmemu(*snp(image)).out.strip()
    assert data["simulated"] is True
    assert data["parameters"] == {"vmm": "qemu", "vcpus": 1, "guest_features": "0x1", "vcpu_type": "EPYC-v4"}
    assert data["pages"] == sum(step["pages"] for step in data["steps"]) + 1
    assert data["firmware"]["name"] == str(image)
    assert data["notes"] == []


def test_a_signature_serves_as_cpu_type(gmemu: Gmemu, image: Path) -> None:
    words = ("measure", "snp", "--firmware", image, "--vcpu-type", "0x800f12")
    assert gmemu(*words).out == gmemu(*snp(image)).out


def test_kernel_initrd_and_command_line_are_measured(gmemu: Gmemu, image: Path, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"kernel")
    initrd.write_bytes(b"initrd")
    digests = {
        gmemu(*snp(image)).out,
        gmemu(*snp(image, "--kernel", kernel)).out,
        gmemu(*snp(image, "--kernel", kernel, "--initrd", initrd)).out,
        gmemu(*snp(image, "--kernel", kernel, "--initrd", initrd, "--append", "quiet")).out,
    }
    assert len(digests) == 4
    assert "" not in digests


def test_oddities_are_noted_beside_the_digest(gmemu: Gmemu, tmp_path: Path) -> None:
    path = tmp_path / "bare.fd"
    path.write_bytes(make_firmware(sections=None))
    done = gmemu(*snp(path))
    assert done.code == 0
    assert len(done.out) == 97
    assert done.err.startswith("gmemu: note: ")
    assert "no SEV metadata" in done.err
    data = gmemu(*snp(path, "--json"))
    assert data.err == ""
    assert "no SEV metadata" in data.json["notes"][0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_says_that_the_digest_is_simulated(
    gmemu: Gmemu, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert gmemu(*snp(image)).code == 0
    assert "simulated" in terminal.getvalue()


# Bad input


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--vcpu-type", "EPYC-v44"), "did you mean EPYC-v4"),
        (("--vcpu-type", "Xeon"), "vCPU type 'Xeon' isn't known"),
        (("--vcpus", "0"), "from 1 to"),
        (("--vcpus", "-1"), "from 1 to"),
        (("--vcpus", "4097"), "from 1 to"),
        (("--vcpus", "4096"), "kvm.create-vcpu.many"),
        (("--guest-features", "0"), "lack bit 0"),
        (("--guest-features", "-1"), "don't fit"),
        (("--profile", "linux-9.9"), "there is no profile 'linux-9.9'"),
        (("--vmm", "nobody"), "VMM 'nobody' isn't known"),
        (("--kernel", "/nonexistent"), "kernel file /nonexistent can't be read"),
        (("--initrd", "/dev/null"), "without a kernel"),
        (("--append", "quiet"), "without a kernel"),
        (("--log", "/nonexistent/log"), "page log /nonexistent/log can't be written"),
        (("--firmware", "/nonexistent"), "/nonexistent can't be read: No such file"),
        (("--firmware", "/"), "isn't a regular file"),
        (("--firmware", "/dev/zero"), "isn't a regular file"),
        (("--firmware", "/dev/null"), "is empty"),
    ],
)
def test_bad_input_is_one_sentence(gmemu: Gmemu, image: Path, more: tuple[str, ...], sentence: str) -> None:
    done = gmemu(*snp(image, *more))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gmemu: ")
    assert done.err.count("\n") == 1
    assert sentence in done.err


def test_a_cpu_type_must_be_given(gmemu: Gmemu, image: Path) -> None:
    done = gmemu("measure", "snp", "--firmware", image)
    assert done.code == 2
    assert "no vCPU type was given" in done.err
    assert gmemu("measure", "snp", "--firmware", image, "--vmm", "ec2").code == 0


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("cut", make_firmware()[:-5000], "cut short"),
        ("cut-page", make_firmware()[:-4096], "is no OVMF image"),
        ("text", b"not firmware".ljust(4096), "is no OVMF image"),
        ("outside", make_firmware(sections=[(0xFFFFF000, 0x2000, 1)]), "outside guest memory"),
        ("overlap", make_firmware(sections=[(0x800000, 0x2000, 1), (0x801000, 0x1000, 1)]), "overlap"),
        ("on-firmware", make_firmware(sections=[(0xFFFF0000, 0x1000, 1)]), "overlaps the firmware"),
        ("type", make_firmware(sections=[(0x800000, 0x1000, 0x99)]), "has type 0x99"),
        ("unaligned", make_firmware(sections=[(0x800001, 0x1000, 1)]), "whole pages"),
    ],
)
def test_damaged_firmware_is_one_sentence(gmemu: Gmemu, tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for words in snp(path), ("launch", "snp", "--firmware", path):
        done = gmemu(*words)
        assert (done.code, done.out) == (2, "")
        assert done.err.count("\n") == 1
        assert name in done.err
        assert sentence in done.err


# Logs


def test_the_log_ends_with_the_measurement(gmemu: Gmemu, image: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = gmemu(*snp(image, "--vcpus", "3", "--log", path))
    log = read_log(path)
    assert log.measurement == done.out.strip()
    assert log.header["simulated"] is True
    assert [page.name for page in log.pages[-3:]] == ["vmsa 0", "vmsa 1", "vmsa 2"]


def test_equal_logs(gmemu: Gmemu, image: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    gmemu(*snp(image, "--log", a))
    gmemu(*snp(image, "--profile", "linux-6.12", "--log", b))
    done = gmemu("measure", "diff", a, b)
    assert done.code == 0
    assert done.out.startswith("same: ")
    assert gmemu("measure", "diff", a, b, "--json").json["same"] is True


@pytest.mark.parametrize("width", ["40", "120"])
def test_the_first_page_that_differs(
    gmemu: Gmemu, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    other, a, b = tmp_path / "other.fd", tmp_path / "a", tmp_path / "b"
    content = bytearray(make_firmware())
    content[0x3000] ^= 1
    other.write_bytes(content)
    gmemu(*snp(image, "--log", a))
    gmemu(*snp(other, "--log", b))
    done = gmemu("measure", "diff", a, b)
    assert done.code == 1
    assert done.out.startswith("different\npage 3: ")
    assert "contents" in done.out
    data = gmemu("measure", "diff", a, b, "--json")
    assert data.code == 1
    found = data.json["difference"]
    assert (found["page"], found["kind"]) == (3, "contents")
    assert found["a"]["gpa"] == found["b"]["gpa"] == f"{(1 << 32) - 16 * 4096 + 0x3000:#x}"


def test_a_log_that_ends_earlier(gmemu: Gmemu, image: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    gmemu(*snp(image, "--log", a))
    gmemu(*snp(image, "--vcpus", "2", "--log", b))
    done = gmemu("measure", "diff", a, b, "--json")
    assert done.json["difference"]["a"] is None
    assert gmemu("measure", "diff", a, b).code == 1


def test_what_is_no_log(gmemu: Gmemu, image: Path) -> None:
    done = gmemu("measure", "diff", image, image)
    assert (done.code, done.out) == (2, "")
    assert "line 1" in done.err


def test_a_log_that_cant_be_finished(gmemu: Gmemu, image: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    done = gmemu(*snp(image, "--log", "/dev/full"))
    assert (done.code, done.out) == (2, "")
    assert done.err == "gmemu: the page log /dev/full can't be written: No space left on device\n"


def test_the_distributions_firmware(gmemu: Gmemu) -> None:
    path = find_firmware()
    if path is None:
        pytest.skip("no OVMF is installed on this machine")
    done = gmemu(*snp(Path(path)))
    assert done.code == 0
    assert len(done.out) == 97


def test_sections_of_two_firmwares_differ(gmemu: Gmemu, tmp_path: Path) -> None:
    digests = set()
    for sections in OVMF_SECTIONS, AMDSEV_SECTIONS:
        path = tmp_path / "image.fd"
        path.write_bytes(make_firmware(sections=sections))
        digests.add(gmemu(*snp(path)).out)
    assert len(digests) == 2

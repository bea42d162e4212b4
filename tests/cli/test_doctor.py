# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu doctor`, on this machine and on machines that lack things."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gmemu.cli import doctor, probe
from gmemu.launch.synth import make_firmware
from gmemu.uapi.kvm import Cap, VmType

from .conftest import Gmemu


def findings(gmemu: Gmemu) -> dict[str, tuple[bool, str, str]]:
    done = gmemu("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    return {f["what"]: (f["ok"], f["found"], f["meaning"]) for f in done.json}


def test_on_this_machine(gmemu: Gmemu) -> None:
    found = findings(gmemu)
    for what in "Python", "kernel", "CPUs", "memfd", "/dev/kvm", "userfaultfd", "OVMF", "package greenlet":
        assert what in found
    assert found["Python"][0]
    text = gmemu("doctor")
    assert text.code == 0
    for line in text.out.splitlines():
        assert line.startswith(" ") or "  ok  " in line or "  missing  " in line


def without_device(path: str) -> probe.DeviceProbe:
    return probe.DeviceProbe(-1, os.strerror(errno.EACCES))


def test_a_machine_without_anything(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "open_device", without_device)
    monkeypatch.setattr(probe, "userfaultfd_features", lambda: (0, "Function not implemented"))
    monkeypatch.setattr(probe, "read_sysctl", lambda name: None)
    monkeypatch.setattr(doctor, "find_firmware", lambda: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = findings(gmemu)
    for what in "/dev/kvm", "userfaultfd", "OVMF", "package greenlet", "package cryptography":
        assert not found[what][0]
        assert found[what][2]
    assert found["/dev/kvm"][1] == "Permission denied"
    assert "VM types" not in found


def kernel(values: dict[Cap, int]) -> Callable[[int, Cap], int]:
    return lambda fd, cap: values.get(cap, 0)


def test_a_machine_with_in_place_conversion(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "open_device", lambda path: probe.DeviceProbe(os.open(os.devnull, os.O_RDONLY)))
    monkeypatch.setattr(probe, "api_version", lambda fd: 12)
    types = 1 << VmType.DEFAULT | 1 << VmType.SNP
    monkeypatch.setattr(probe, "extension", kernel({Cap.VM_TYPES: types, Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES: 8}))
    found = findings(gmemu)
    assert found["/dev/kvm"][:2] == (True, "API version 12")
    assert found["VM types"][:2] == (True, "DEFAULT, SNP")
    assert found["KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES"][:2] == (True, "8")
    assert not found["KVM_CAP_GUEST_MEMFD"][0]


def test_a_device_that_isnt_kvm(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "open_device", lambda path: probe.DeviceProbe(os.open(os.devnull, os.O_RDONLY)))
    assert findings(gmemu)["/dev/kvm"][2] == "it is there, but isn't KVM"


def test_a_userfaultfd_that_is_too_old(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "userfaultfd_features", lambda: (probe.UFFD_FEATURES["SIGBUS"], ""))
    ok, found, _ = findings(gmemu)["userfaultfd"]
    assert (ok, found) == (False, "without MISSING_SHMEM, MINOR_SHMEM")


def test_firmware_without_metadata(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "bare.fd"
    path.write_bytes(make_firmware(sections=None))
    monkeypatch.setattr(doctor, "find_firmware", lambda: str(path))
    assert findings(gmemu)["OVMF"][:2] == (False, str(path))


def test_probes_answer_on_any_machine() -> None:
    features, problem = probe.userfaultfd_features()
    assert bool(features) != bool(problem)
    assert probe.read_sysctl("no/such/sysctl") is None
    assert probe.open_device("/nonexistent").problem == "there is none"
    with open(os.devnull) as null:
        assert probe.extension(null.fileno(), Cap.GUEST_MEMFD) == 0


def test_an_old_kernel_is_told(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.uname_result(("Linux", "", "4.19.0-1-generic", "", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: old)
    ok, found, meaning = findings(gmemu)["kernel"]
    assert (ok, found) == (False, "4.19.0-1-generic")
    assert "5.14" in meaning

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest

from gmemu.conformance.vm import build
from gmemu.conformance.vm.build import VERSIONS, Unavailable, cached_kernel, main


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_to_run_when_nothing_is_built() -> None:
    for version in VERSIONS:
        with pytest.raises(Unavailable, match=rf"build --version {version}"):
            cached_kernel(version)
    with pytest.raises(Unavailable, match=r"there are 6\.12"):
        cached_kernel("2.4")


def test_the_cache_is_keyed_by_version_and_configuration(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = build._kernel_directory("6.12") / "bzImage"
    image.parent.mkdir(parents=True)
    image.touch()
    assert cached_kernel("6.12") == image
    assert empty_cache in image.parents
    with pytest.raises(Unavailable):
        cached_kernel("7.3")
    monkeypatch.setattr(build, "_resource", lambda name: b"CONFIG_OTHER=y\n")
    with pytest.raises(Unavailable):
        cached_kernel("6.12")


def test_missing_tools_are_named_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None if tool in ("flex", "xz") else "/usr/bin/" + tool)
    assert {"flex", "xz-utils"} <= set(build.missing_packages())
    with pytest.raises(Unavailable, match=r"apt-get install .*xz-utils"):
        build.build_kernel("6.12")


def test_options_that_a_kernel_does_not_grant_are_found(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    wanted = [line for line in build._resource("kernel.config").decode().splitlines() if line.startswith("CONFIG_")]
    config.write_text("\n".join(wanted))
    assert build._refused_options(config) == []
    config.write_text("\n".join(line for line in wanted if line != "CONFIG_KVM_AMD=y"))
    assert build._refused_options(config) == ["CONFIG_KVM_AMD=y"]


APT = """\
#!/bin/sh
echo "$@" >> "{log}"
for last; do :; done
case $last in update) exit {status};; *) touch "$last"_1_all.deb;; esac
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for apt-get that notes its arguments down, and a keyring for it."""
    program, keyring = tmp_path / "apt-get", tmp_path / "debian-archive-keyring.gpg"
    program.write_text(APT.format(log=tmp_path / "log", status=0))
    program.chmod(0o755)
    keyring.touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(build, "_KEYRINGS", (keyring,))
    return program


def test_fetching_leaves_the_systems_apt_alone(apt: Path, tmp_path: Path) -> None:
    room = tmp_path / "room"
    assert build.fetch("7.3", room) == room / "linux-source-7.3_1_all.deb"
    source = (room / "sources.d" / "debian.sources").read_text()
    assert "Suites: experimental sid" in source
    assert f"Signed-By: {tmp_path}" in source
    update, download = (tmp_path / "log").read_text().splitlines()
    assert update.endswith(" update")
    assert download.endswith(" download linux-source-7.3")
    for setting in ("Dir::Etc::SourceList=/dev/null", f"Dir::Etc::SourceParts={room}", f"Dir::State::Lists={room}"):
        assert setting in update
        assert setting in download


def test_what_fetching_needs(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt.write_text(APT.format(log="/dev/stderr", status=100))
    with pytest.raises(Unavailable, match=r"apt-get update failed"):
        build.fetch("6.12", tmp_path / "room")
    monkeypatch.setattr(build, "_KEYRINGS", (tmp_path / "none",))
    with pytest.raises(Unavailable, match="install debian-archive-keyring"):
        build.fetch("6.12", tmp_path / "room")


def test_the_command_says_why_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build, "agent_program", lambda: b"")
    monkeypatch.setattr(build, "missing_packages", lambda: ["bison"])
    assert main(["--version", "6.12"]) == 4
    assert "apt-get install bison" in capsys.readouterr().err

# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every command: help, JSON, -o, and one sentence for whatever goes wrong."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from gmemu import __version__
from gmemu.cli import main as main_module
from gmemu.cli import profiles, rules
from gmemu.rules import gmem

from .conftest import Gmemu

COMMANDS = [
    ("profiles",),
    ("profiles", "diff", "linux-7.3", "inplace-v13"),
    ("rules",),
    ("rules", "gmem.attributes"),
    ("rules", "gmem.attributes.busy"),
    ("doctor",),
]


def test_without_a_command_it_says_what_there_is(gmemu: Gmemu) -> None:
    done = gmemu()
    assert done.code == 0
    for word in "launch", "measure", "profiles", "rules", "doctor", "examples:", "simulated":
        assert word in done.out


def test_version(gmemu: Gmemu) -> None:
    assert gmemu("--version") == (0, f"gmemu {__version__}\n", "")


@pytest.mark.parametrize("words", [(), ("launch",), ("launch", "snp"), ("measure", "diff"), ("rules",)])
def test_help(gmemu: Gmemu, words: tuple[str, ...]) -> None:
    done = gmemu(*words, "--help")
    assert done.code == 0
    assert done.out.startswith(f"usage: {' '.join(('gmemu', *words))}")


@pytest.mark.parametrize("words", COMMANDS)
def test_json_and_text(gmemu: Gmemu, words: tuple[str, ...], tmp_path: Path) -> None:
    text, data = gmemu(*words), gmemu(*words, "--json")
    assert (text.code, text.err, data.code, data.err) == (0, "", 0, "")
    assert text.out.endswith("\n")
    assert "\x1b" not in text.out
    assert data.json
    for name, option, expected in ("text", (), text.out), ("json", ("--json",), data.out):
        path = tmp_path / name
        assert gmemu(*words, *option, "-o", path) == (0, "", "")
        assert path.read_text() == expected


def test_json_may_stand_before_a_subcommand_that_has_it_too(gmemu: Gmemu) -> None:
    done = gmemu("profiles", "--json", "diff", "linux-6.12", "linux-6.18")
    assert done.json["a"] == "linux-6.12"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("launch",), "arguments are required: PLATFORM"),
        (("launch", "vax"), "invalid choice: 'vax'"),
        (("measure", "snp"), "arguments are required: --firmware"),
        (("measure", "diff", "only-one"), "arguments are required: B.jsonl"),
        (("doctor", "--frob"), "unrecognized arguments: --frob"),
        (("doctor", "--js"), "unrecognized arguments: --js"),
        (("launch", "snp", "--flow", "sideways"), "'in-place', 'copy'"),
        (("launch", "snp", "--policy", "0x10000000000000000"), "doesn't fit 64 bits"),
        (("launch", "snp", "--seed", "-1"), "doesn't fit 64 bits"),
        (("launch", "snp", "--vcpus", "some"), "'some' is no number"),
        (("doctor", "-o", "/nonexistent/file"), "/nonexistent/file can't be written: No such file"),
        (("doctor", "-o", "nul\0byte"), "can't be written"),
    ],
)
def test_wrong_use_is_one_sentence(gmemu: Gmemu, words: tuple[str, ...], sentence: str) -> None:
    done = gmemu(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gmemu: ")
    assert done.err.count("\n") == 1
    assert sentence in done.err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "closed before everything was written"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/file"), 2, "/a/file: No such file or directory"),
        (gmem.CREATE_SIZE("size 1"), 2, "EINVAL (gmem.create.size)"),
        (RuntimeError("two\nlines"), 3, "a bug in gmemu (RuntimeError: two)"),
    ],
)
def test_no_error_comes_out_as_a_traceback(
    gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, sentence: str
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.delenv(main_module.DEBUG, raising=False)
    monkeypatch.setattr(profiles, "show", fail)
    done = gmemu("profiles")
    assert (done.code, done.out) == (code, "")
    assert done.err.count("\n") == 1
    assert sentence in done.err


def test_debug_adds_the_traceback(gmemu: Gmemu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("here")

    monkeypatch.setenv(main_module.DEBUG, "1")
    monkeypatch.setattr(rules, "rules", fail)
    done = gmemu("rules")
    assert done.code == 3
    assert "Traceback" in done.err
    assert "in fail" in done.err


def test_names_that_are_no_unicode_can_be_told(gmemu: Gmemu, tmp_path: Path) -> None:
    done = gmemu("measure", "snp", "--firmware", str(tmp_path) + "/\udcff.fd", "--vcpu-type", "EPYC-v4")
    assert done.code == 2
    assert "can't be read: No such file" in done.err


def test_json_output_is_ascii(gmemu: Gmemu) -> None:
    assert gmemu("rules", "--json").out.isascii()
    assert json.loads(gmemu("profiles", "--json").out)[-1]["name"]

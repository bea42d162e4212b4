# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/commands.md has every command and option, and none that doesn't exist; links and file names lead somewhere."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gmemu.cli.outcome import ExitCode
from gmemu.cli.parser import build_parser
from gmemu.profiles import PROFILES
from gmemu.rules import catalogue

from .blocks import ROOT

_OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """`parser` and all below it that can be carried out by themselves."""
    if parser.get_default("handler") is not None:
        yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


def sections() -> dict[str, str]:
    text = (ROOT / "docs/commands.md").read_text()
    head, *rest = text.split("\n## ")
    found = {name: body for name, _, body in (part.partition("\n") for part in rest)}
    found[""] = head
    return found


COMMANDS = {parser.prog: parser for parser in commands(build_parser())}


def test_every_command_has_its_section() -> None:
    assert set(sections()) == {"", *COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command: str) -> None:
    found = sections()
    options = {option for action in COMMANDS[command]._actions for option in action.option_strings}
    described = set(_OPTION.findall(found[command])) | set(_OPTION.findall(found[""]))
    for option in options:
        assert option in described, f"{command} has {option}"
    for option in _OPTION.findall(found[command]):
        assert option in options or "log" in option, f"{command} has no {option}"


def test_exit_codes_are_listed() -> None:
    listed = re.findall(r"^\| (\d+) \|", sections()[""], re.MULTILINE)
    assert [int(code) for code in listed] == [int(code) for code in ExitCode]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_paths_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"
    for name in re.findall(r"`((?:src|tests|docs)/[\w./]+)`", text):
        assert (ROOT / name).exists(), f"{path.name}: {name}"
    for name in re.findall(r"`((?:kvm|mm|hw|sync|syscalls|launch|api)/[\w./]*)`", text):
        assert (ROOT / "src/gmemu" / name).exists(), f"{path.name}: {name}"


def test_every_profile_and_area_is_described() -> None:
    profiles = (ROOT / "docs/profiles.md").read_text()
    for name in PROFILES:
        assert f"`{name}`" in profiles
    rules = (ROOT / "docs/rules.md").read_text()
    for area in {name.partition(".")[0] for name in catalogue()}:
        assert f"`{area}`" in rules

# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/traces.md shows what `gmemu replay` prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gmemu.cli.main import main
from gmemu.report.traces import FORMATS

PAGE = Path(__file__).parents[2] / "docs/traces.md"


def test_the_example_is_in_the_replay(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text()
    [token] = re.findall(r"gmemu replay '([^']+)'", text)
    assert main(["replay", token]) == 1, "the schedule has changed: take the token that gmemu explore prints now"
    printed = capsys.readouterr().out.splitlines()
    [example] = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    for line in example.splitlines():
        assert line == "..." or line in printed


def test_every_format_is_described() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE) == list(FORMATS)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the README shows of a run is what a run shows, where this machine has that firmware."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import pytest

from gmemu.cli.main import main
from gmemu.launch.find import find_firmware

from .blocks import ROOT, blocks

SHOWN = Path("/usr/share/ovmf/OVMF.fd")
SHA256 = "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773"
"""Of Debian's ovmf 2022.11-6+deb12u2."""

_NOISE = re.compile(r"(?:[0-9a-f]{2} ){6}\.\.")


def test_the_first_screen_is_a_real_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    command, *shown = blocks(ROOT / "README.md")[0].text.splitlines()
    assert command == "$ gmemu launch snp"
    if find_firmware() != str(SHOWN) or sha256(SHOWN.read_bytes()).hexdigest() != SHA256:
        pytest.skip("the README shows a launch of Debian 12's OVMF.fd, which isn't what is found here")
    assert main(["launch", "snp"]) == 0
    printed = iter([_NOISE.sub("noise", line) for line in capsys.readouterr().out.splitlines()])
    for line in shown:
        assert line == "..." or _NOISE.sub("noise", line) in printed, line

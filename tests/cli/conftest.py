# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gmemu.cli.main import main
from gmemu.launch.synth import make_firmware


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, parsed."""
        return json.loads(self.out)


Gmemu = Callable[..., Done]


@pytest.fixture
def gmemu(capsys: pytest.CaptureFixture[str]) -> Gmemu:
    """Call it with the words of a command line."""

    def run(*words: str | Path) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image with everything that a VMM reads."""
    path = tmp_path_factory.mktemp("firmware") / "synthetic.fd"
    path.write_bytes(make_firmware())
    return path

# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that are Python, or embed it: theirs and ours know nothing of each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from gmemu.exec.build import BuildError, libpython

from .conftest import PROGRAMS, Compile, Exec

pytest.importorskip("unicorn", reason="guests of machine code need gmemu[exec]")

HELLO = PROGRAMS / "hello.py"
_ASK = "import json, sys; print(json.dumps([sys.version, sys.path, sys.prefix]))"


def _interpreters() -> list[str]:
    """This one, and the distribution's, which is another build and perhaps another version."""
    found = [sys.executable, *filter(os.path.exists, ["/usr/bin/python3"])]
    return [*found, *filter(None, (shutil.which(f"python3.{minor}") for minor in (12, 13, 14)))]


def _runs(interpreter: str) -> bool:
    return subprocess.run([interpreter, "-c", "import ctypes"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("interpreter", _interpreters())
def test_a_vmm_in_python(gmemu_exec: Exec, monkeypatch: pytest.MonkeyPatch, interpreter: str) -> None:
    """Its guests run, in threads and in a fork; its signals, search path, modules and settings are its own."""
    if not _runs(interpreter):
        pytest.skip(f"{interpreter} doesn't run here, or has no ctypes")
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    alone = subprocess.run([interpreter, "-c", _ASK], capture_output=True, text=True, check=True).stdout
    version, path, prefix = json.loads(alone)
    done = gmemu_exec(interpreter, "-W", "ignore", HELLO)  # 3.12 and later deplore fork() where there are threads
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said: dict[str, Any] = json.loads(done.stdout)
    assert (said["guest"], said["thread"]) == ("5\n", ["5\n"])
    assert said["child"] == 3
    assert said["signals"] == [10]
    assert (said["version"], said["prefix"], said["optimize"]) == (version, prefix, 1)
    assert said["path"][1:] == path[1:]
    assert said["modules"] == []
    assert (said["decimal"], said["greenlet"]) == ("0.3", "switched")


def test_pythons_own_settings_dont_reach_the_emulated_kernel(gmemu_exec: Exec, tmp_path: Path) -> None:
    """Those that the environment has by then: a module in the way, a start-up file, no home."""
    (tmp_path / "struct.py").write_text("raise SystemExit('the wrong struct')\n")
    settings = f"PYTHONPATH={tmp_path} PYTHONHOME={tmp_path} PYTHONSTARTUP={tmp_path}/struct.py PYTHONDEVMODE=1"
    hello = f"import os, runpy; os.environ.update(dict(w.split('=', 1) for w in {settings!r}.split())); "
    done = gmemu_exec(sys.executable, "-c", hello + f"runpy.run_path({str(HELLO)!r}, run_name='__main__')")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["guest"] == "5\n"


def test_a_program_that_embeds_python(compile_c: Compile, gmemu_exec: Exec) -> None:
    """With the very library that gmemu uses: it gets a copy of it."""
    try:
        library = libpython()
    except BuildError as error:
        pytest.skip(str(error))
    headers = sysconfig.get_path("include")
    program = compile_c("embeds", f"-I{headers}", str(library), f"-Wl,-rpath,{library.parent}")
    done = gmemu_exec(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Python 12 [] a value from before", "C 12", "0.3"]

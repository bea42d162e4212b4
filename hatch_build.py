# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile the libraries of `gmemu exec` while gmemu is installed.

Where there is no compiler gmemu is installed without them, and `gmemu exec` tries again when it's first used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ExecLibraries(BuildHookInterface):
    """A wheel with the libraries is for one Python on one kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        directory = Path(self.root) / "src/gmemu/exec"
        spec = importlib.util.spec_from_file_location("gmemu_exec_build", directory / "build.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if self.target_name != "wheel":
            return
        try:
            if not module.is_current(directory):
                module.build(directory)
        except module.BuildError as error:
            self.app.display_warning(f"gmemu exec is left out: {error}")
            return
        if version != "editable":
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["artifacts"] += [f"/src/gmemu/exec/{module.PRELOAD}", f"/src/gmemu/exec/{module.KERNEL}"]

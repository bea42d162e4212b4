# SPDX-License-Identifier: GPL-2.0-or-later
"""What `gmemu exec` tells the emulated kernel, which starts in another process: by environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..profiles import DEFAULT

__all__ = ["Settings"]

_PREFIX = "GMEMU_EXEC_"


class Settings(NamedTuple):
    """Which machine the program shall find."""

    profile: str = DEFAULT
    platform: str = "amd"
    log: str = ""
    """where to write each call; JSON Lines if it ends in .jsonl, a Perfetto trace if in .pftrace"""
    explain: str = ""
    """anything: tell the story behind faults on standard error"""
    inject: str = ""
    """orders of `faults`, one a line"""
    points: str = ""
    """where to write, in the end, an order for each point at which something could have failed"""
    plugin: str = ""
    """a module to import before the machine is made; it may change the emulated kernel"""

    def to_environment(self) -> dict[str, str]:
        """The variables to set."""
        return {_PREFIX + name.upper(): value for name, value in self._asdict().items() if value}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """What the variables say."""
        given = {name: environment[_PREFIX + name.upper()] for name in cls._fields if _PREFIX + name.upper() in environment}
        return cls(**given)

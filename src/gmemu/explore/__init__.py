# SPDX-License-Identifier: GPL-2.0-or-later
"""Every interleaving of a small program: search, reduction, replay.

The package can be called: ``gmemu.explore(program)`` runs one's own threads in every order (`program.explore_program`).
"""

from __future__ import annotations

import sys
from types import ModuleType

from .options import Options, Progress, Result, Watch
from .program import Program, explore_program
from .runs import replay
from .saved import Saved
from .search import explore
from .trace import Trace, record
from .verdict import Kind, Outcome

__all__ = [
    "Kind",
    "Options",
    "Outcome",
    "Program",
    "Progress",
    "Result",
    "Saved",
    "Trace",
    "Watch",
    "explore",
    "explore_program",
    "record",
    "replay",
]


class _Callable(ModuleType):
    __call__ = staticmethod(explore_program)


sys.modules[__name__].__class__ = _Callable

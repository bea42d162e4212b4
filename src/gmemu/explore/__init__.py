# SPDX-License-Identifier: GPL-2.0-or-later
"""Every interleaving of a small program: search, reduction, replay."""

from __future__ import annotations

from .search import Result, explore, replay
from .trace import Trace, record
from .verdict import Kind, Outcome

__all__ = ["Kind", "Outcome", "Result", "Trace", "explore", "record", "replay"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Every interleaving of a small program: search, reduction, replay."""

from __future__ import annotations

from .search import Outcome, Result, explore, replay

__all__ = ["Outcome", "Result", "explore", "replay"]

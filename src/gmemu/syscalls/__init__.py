# SPDX-License-Identifier: GPL-2.0-or-later
"""The door: every front end enters a kernel by system calls, the emulated one or this machine's own."""

from __future__ import annotations

from .door import Door

__all__ = ["Door"]

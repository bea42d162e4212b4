# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: which kernel is emulated.  A profile is data; two of them can be compared."""

from __future__ import annotations

from .profile import CapValues, Profile
from .table import DEFAULT, PROFILES, get

__all__ = ["DEFAULT", "PROFILES", "CapValues", "Profile", "get"]

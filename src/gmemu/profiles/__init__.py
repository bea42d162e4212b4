# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: which kernel is emulated.  A profile is data; two of them can be compared."""

from __future__ import annotations

from .arm64 import on_arm64
from .profile import CapValues, Profile
from .table import DEFAULT, PROFILES, get

__all__ = ["DEFAULT", "PROFILES", "CapValues", "Profile", "get", "on_arm64"]

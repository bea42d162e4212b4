# SPDX-License-Identifier: GPL-2.0-or-later
"""Arm processors."""

from __future__ import annotations

# SPDX-License-Identifier: GPL-2.0-or-later
"""Arm CCA: the Realm Management Monitor, and the granule protection table that backs it."""

from __future__ import annotations

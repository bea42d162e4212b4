# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from .machine import machine

__all__ = ["machine"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The same machine as the other tests of KVM have."""

from __future__ import annotations

from ..conftest import world

__all__ = ["world"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""What must always hold.  Checked where it could break, in every mode; a violation is a bug, never a failed call."""

from __future__ import annotations

__all__ = ["InvariantViolation"]


class InvariantViolation(AssertionError):
    """The emulated kernel or a trusted entity is in a state that must not exist."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""What must always hold.  Checked where it could break, in every mode; a violation is a bug, never a failed call."""

from __future__ import annotations

__all__ = ["InvariantViolation", "Leak", "StaleTlb", "UseAfterFree"]


class InvariantViolation(AssertionError):
    """The emulated kernel or a trusted entity is in a state that must not exist."""


class UseAfterFree(InvariantViolation):
    """Something that was freed is used, or freed again."""


class Leak(InvariantViolation):
    """Everything was closed, and something is still held."""


class StaleTlb(InvariantViolation):
    """A processor reached memory by a translation that it should have been told to forget."""

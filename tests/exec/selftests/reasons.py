# SPDX-License-Identifier: GPL-2.0-or-later
"""Why selftests don't pass under `gmemu exec`, in a sentence each, for RESULTS.md."""

__all__ = ["REASONS"]

REASONS: dict[str, str] = {}

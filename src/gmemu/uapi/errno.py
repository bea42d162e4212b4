# SPDX-License-Identifier: GPL-2.0-or-later
"""errno values and names, with the one that Python's own module lacks."""

from __future__ import annotations

import errno

__all__ = ["EHWPOISON", "errno_name"]

EHWPOISON = 133


def errno_name(number: int) -> str:
    """The name of an errno value, such as EINVAL."""
    return "EHWPOISON" if number == EHWPOISON else errno.errorcode.get(number, f"errno {number}")

# SPDX-License-Identifier: GPL-2.0-or-later
"""errno values and names, with the one that Python's own module lacks."""

from __future__ import annotations

import errno

__all__ = ["EHWPOISON", "errno_name"]

EHWPOISON = 133

# Linux gives both ENOTSUP and EOPNOTSUPP the number 95, and speaks of the second.
_NAMES = {EHWPOISON: "EHWPOISON", errno.EOPNOTSUPP: "EOPNOTSUPP"}


def errno_name(number: int) -> str:
    """The name of an errno value, such as EINVAL."""
    return _NAMES.get(number) or errno.errorcode.get(number, f"errno {number}")

# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of twelve philosophers: twenty minutes and more, so it's run only when it's named."""

from __future__ import annotations

from collections.abc import Iterator

from .figures import Figure
from .states import counted


def figures() -> Iterator[Figure]:
    """The one."""
    yield counted(12)

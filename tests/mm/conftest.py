# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with memory and processes, and no KVM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .machine import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Sixteen MiB of memory.  When the test is over, every page that it didn't leak on purpose must be free again."""
    machine = Machine()
    yield machine
    machine.check_quiet()
    machine.memory.close()

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Iterator

import pytest

from .machine import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A fresh machine."""
    machine = Machine()
    yield machine
    machine.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .machine import Machine


@pytest.fixture
def m() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()

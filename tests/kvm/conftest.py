# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with KVM, torn down and looked over after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .world import World


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A machine of the profile that the test is parametrised with; in-place conversion otherwise."""
    world = World(getattr(request, "param", "inplace-v13"))
    yield world
    world.finish()

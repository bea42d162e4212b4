# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Iterator

import pytest

from .snp_world import PROFILES, World


@pytest.fixture(params=PROFILES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A VM before KVM_SEV_INIT2, in each profile; everything is checked at the end."""
    world = World(request.param)
    yield world
    world.close()


@pytest.fixture
def inplace() -> Iterator[World]:
    """... in inplace-v13 alone."""
    world = World("inplace-v13")
    yield world
    world.close()


@pytest.fixture
def two_pool() -> Iterator[World]:
    """... in linux-7.3 alone."""
    world = World("linux-7.3")
    yield world
    world.close()

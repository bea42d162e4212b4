# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated host against a simple model of it, in every profile, in whatever order Hypothesis finds.

GMEMU_STATEFUL_EXAMPLES=5000 makes it long, and random.
"""

from __future__ import annotations

import os
from unittest import TestCase

from hypothesis import HealthCheck, settings

from .guest_rules import GuestRules
from .memory_rules import MemoryRules

ORDERED = int(os.environ.get("GMEMU_STATEFUL_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=ORDERED or 100,
    stateful_step_count=50,
    derandomize=not ORDERED,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class InPlace(MemoryRules, GuestRules):
    """One pool: pages are converted where they are."""

    profile = "inplace-v13"


class TwoPools73(MemoryRules, GuestRules):
    """Two pools, mappable guest_memfd."""

    profile = "linux-7.3"


class TwoPools618(MemoryRules, GuestRules):
    """Two pools, with 6.18's errnos and signed offsets."""

    profile = "linux-6.18"


class TwoPools612(MemoryRules, GuestRules):
    """Two pools, no mapping of guest_memfd."""

    profile = "linux-6.12"


def _case(machine: type[GuestRules]) -> type[TestCase]:
    case: type[TestCase] = machine.TestCase
    case.settings = SETTINGS  # type: ignore[attr-defined]
    return case


TestInPlace = _case(InPlace)
TestTwoPools73 = _case(TwoPools73)
TestTwoPools618 = _case(TwoPools618)
TestTwoPools612 = _case(TwoPools612)

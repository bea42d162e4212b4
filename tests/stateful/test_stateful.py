# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated host against a simple model of it, in every profile, in whatever order Hypothesis finds.

GMEMU_STATEFUL_EXAMPLES=5000 makes it long, and random.
"""

from __future__ import annotations

import os
from unittest import TestCase

from hypothesis import HealthCheck, settings

from .memory_rules import MemoryRules
from .snp_rules import SnpRules

ORDERED = int(os.environ.get("GMEMU_STATEFUL_EXAMPLES", "0"))


class InPlace(MemoryRules, SnpRules):
    """One pool: pages are converted where they are."""

    profile = "inplace-v13"


class TwoPools73(MemoryRules, SnpRules):
    """Two pools, mappable guest_memfd."""

    profile = "linux-7.3"


class TwoPools618(MemoryRules, SnpRules):
    """Two pools, with 6.18's errnos and signed offsets."""

    profile = "linux-6.18"


class TwoPools612(MemoryRules, SnpRules):
    """Two pools, no mapping of guest_memfd."""

    profile = "linux-6.12"


class Starved(MemoryRules, SnpRules):
    """A machine with so little memory that whatever needs a page may find none."""

    profile = "inplace-v13"
    pages = 32
    snp = False


class Starved73(Starved):
    """The same with two pools."""

    profile = "linux-7.3"


def _case(machine: type[SnpRules], examples: int) -> type[TestCase]:
    case: type[TestCase] = machine.TestCase
    case.settings = settings(  # type: ignore[attr-defined]
        max_examples=ORDERED or examples,
        stateful_step_count=50,
        derandomize=not ORDERED,
        report_multiple_bugs=False,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return case


TestInPlace = _case(InPlace, 200)
TestTwoPools73 = _case(TwoPools73, 120)
TestTwoPools618 = _case(TwoPools618, 60)
TestTwoPools612 = _case(TwoPools612, 60)
TestStarved = _case(Starved, 40)
TestStarved73 = _case(Starved73, 30)

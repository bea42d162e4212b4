# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue: one scenario for each known bug or dispute about guest_memfd's locks and lifetimes."""

from __future__ import annotations

from .fault_in_flight import FaultInFlight
from .forked_mapping import ForkedMapping
from .guest_fault import ConversionAgainstGuestFault
from .guest_fault_to_shared import ConversionToSharedAgainstGuestFault
from .lru_batch import LruBatch
from .pin import PinAgainstConversion
from .populate_abba import PopulateAgainstHostFault
from .punch_and_allocate import ConversionAgainstPunch
from .source_converted import SourceConverted

__all__ = ["CATALOGUE"]

CATALOGUE = {
    scenario.name: scenario
    for scenario in sorted(
        (
            ConversionAgainstGuestFault,
            ConversionAgainstPunch,
            ConversionToSharedAgainstGuestFault,
            FaultInFlight,
            ForkedMapping,
            LruBatch,
            PinAgainstConversion,
            PopulateAgainstHostFault,
            SourceConverted,
        ),
        key=lambda scenario: (scenario.number, scenario.name),
    )
}
"""name -> scenario, in the catalogue's order"""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue: one scenario for each known bug or dispute about guest_memfd's locks and lifetimes."""

from __future__ import annotations

from .conversion import (
    ConversionAgainstGuestFault,
    ConversionAgainstPunch,
    ConversionToSharedAgainstGuestFault,
    FaultInFlight,
    ForkedMapping,
    LruBatch,
    PinAgainstConversion,
)
from .populating import PopulateAgainstConversion, PopulateAgainstHostFault

__all__ = ["CATALOGUE"]

CATALOGUE = {
    scenario.name: scenario
    for scenario in (
        PopulateAgainstHostFault,
        LruBatch,
        FaultInFlight,
        PinAgainstConversion,
        ConversionAgainstGuestFault,
        ConversionToSharedAgainstGuestFault,
        PopulateAgainstConversion,
        ForkedMapping,
        ConversionAgainstPunch,
    )
}
"""name -> scenario, in the catalogue's order"""

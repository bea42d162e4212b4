# SPDX-License-Identifier: GPL-2.0-or-later
"""The RMM: RMI commands for the host, one method each, and RSI commands for realms (Arm DEN0137, 1.0 and 2.0 beta).

A command checks in the order in which the specification lists its failures.  Everything is simulated; nothing was compared
with Arm CCA hardware.
"""

from __future__ import annotations

from ...uapi.rmi import Rmi, RmiStatus
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .core import COMMANDS, Inject, RimLog, RmiResult, RmmInfo, error
from .data import DataCommands
from .granules import GranuleCommands
from .realms import RealmCommands
from .rsi import RsiCommands
from .tables import TableCommands
from .tracking import TrackingCommands

__all__ = ["Inject", "RimLog", "RmiResult", "Rmm", "RmmInfo"]

_ONLY_1_0 = frozenset(
    {
        Rmi.GRANULE_DELEGATE,
        Rmi.GRANULE_UNDELEGATE,
        Rmi.DATA_CREATE_UNKNOWN,
        Rmi.DATA_DESTROY,
        Rmi.RTT_MAP_UNPROTECTED,
        Rmi.RTT_UNMAP_UNPROTECTED,
        Rmi.REC_AUX_COUNT,
    }
)
_RANGES = frozenset({Rmi.GRANULE_RANGE_DELEGATE, Rmi.GRANULE_RANGE_UNDELEGATE})


class Rmm(GranuleCommands, TrackingCommands, RealmCommands, TableCommands, DataCommands, RsiCommands):
    """The RMM with all its commands."""

    def smc(self, fid: int, *args: int) -> RmiResult:
        """A command by its number, as the host's SMC has it: granules are addresses, which must be aligned.

        A number that this version hasn't gets ERROR_NOT_SUPPORTED (SMCCC: -1, in which all ones are the same).
        """
        command = COMMANDS.get(Rmi(fid)) if fid in _NUMBERS else None
        old = self.info.version < (2, 0)
        if command is None or ((fid in _ONLY_1_0) is not old and (fid in _ONLY_1_0 or fid >= Rmi.TRACKING_GET)):
            return error(RmiStatus.ERROR_NOT_SUPPORTED)
        values = list(args)
        for index in command.granules:
            if values[index] % PAGE_SIZE:
                return error(RmiStatus.ERROR_INPUT)
            values[index] >>= PAGE_SHIFT
        if fid not in _RANGES:
            result: RmiResult = getattr(self, command.method)(*values)
            return result
        first, top = values[0], values[1] >> PAGE_SHIFT
        if args[1] % PAGE_SIZE or top <= first:
            return error(RmiStatus.ERROR_INPUT)
        result = getattr(self, command.method)(first, top - first)
        return result._replace(out=tuple(pfn << PAGE_SHIFT for pfn in result.out))


_NUMBERS = frozenset(map(int, Rmi))

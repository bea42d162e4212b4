# SPDX-License-Identifier: GPL-2.0-or-later
"""RMI commands about granules, the RMM itself, and stateful operations."""

from __future__ import annotations

from ...uapi.rmi import GranuleState, Rmi, RmiStatus
from .core import RmiResult, RmmCore, command, error
from .granule import Gpi

__all__ = ["GranuleCommands"]


class GranuleCommands(RmmCore):
    """RMI_VERSION, RMI_FEATURES, RMI_GRANULE_*, RMI_OP_*."""

    @command(Rmi.VERSION, granules=())
    def version(self, requested: int = 0) -> RmiResult:
        """RMI_VERSION: the version, major << 16 | minor, twice: the lowest and the highest that there is."""
        major, minor = self.info.version
        return RmiResult(RmiStatus.SUCCESS, (major << 16 | minor, major << 16 | minor))

    @command(Rmi.FEATURES, granules=())
    def features(self, index: int = 0) -> RmiResult:
        """RMI_FEATURES, register 0: how many bits an IPA may have, hash algorithms, break- and watchpoints."""
        if index:
            return RmiResult(RmiStatus.SUCCESS, (0,))
        hashes = sum(1 << algorithm for algorithm in self.info.hashes)
        value = self.info.max_ipa_bits | self.info.num_bps - 1 << 14 | self.info.num_wps - 1 << 20 | hashes << 28
        return RmiResult(RmiStatus.SUCCESS, (value,))

    @command(Rmi.GRANULE_RANGE_DELEGATE)
    def granule_range_delegate(self, pfn: int, count: int = 1) -> RmiResult:
        """RMI_GRANULE_RANGE_DELEGATE: NS granules become the realm world's, contents as they are.

        Out: the first page that wasn't done.  ERROR_INPUT if that is `pfn`, ERROR_TRACKING if it's tracked with others.
        """
        if not self.active:
            return error(RmiStatus.ERROR_GLOBAL)
        if not self.granules.covers(pfn, count):
            return error(RmiStatus.ERROR_INPUT)
        count = self.tracked_run(pfn, count)
        if not count:
            return error(RmiStatus.ERROR_TRACKING)
        done = self.granules.run(pfn, count, GranuleState.NS)
        if not done:
            return error(RmiStatus.ERROR_INPUT)
        self.to_world(pfn, done, Gpi.REALM)
        return RmiResult(RmiStatus.SUCCESS, (pfn + done,))

    @command(Rmi.GRANULE_RANGE_UNDELEGATE)
    def granule_range_undelegate(self, pfn: int, count: int = 1) -> RmiResult:
        """RMI_GRANULE_RANGE_UNDELEGATE: delegated granules that nobody uses are wiped, and the host's again.

        Out: the first page that wasn't done.  ERROR_INPUT if that is `pfn`, ERROR_TRACKING if it's tracked with others.
        """
        if not self.active:
            return error(RmiStatus.ERROR_GLOBAL)
        if not self.granules.covers(pfn, count):
            return error(RmiStatus.ERROR_INPUT)
        count = self.tracked_run(pfn, count)
        if not count:
            return error(RmiStatus.ERROR_TRACKING)
        done = self.granules.run(pfn, count, GranuleState.DELEGATED)
        if not done:
            return error(RmiStatus.ERROR_INPUT)
        self.memory.clear(pfn, done)
        self.to_world(pfn, done, Gpi.NS)
        return RmiResult(RmiStatus.SUCCESS, (pfn + done,))

    @command(Rmi.GRANULE_DELEGATE)
    def granule_delegate(self, pfn: int) -> RmiResult:
        """RMI_GRANULE_DELEGATE of 1.0: one granule."""
        return RmiResult(self.granule_range_delegate(pfn).status)

    @command(Rmi.GRANULE_UNDELEGATE)
    def granule_undelegate(self, pfn: int) -> RmiResult:
        """RMI_GRANULE_UNDELEGATE of 1.0: one granule."""
        return RmiResult(self.granule_range_undelegate(pfn).status)

    @command(Rmi.OP_CONTINUE, granules=())
    def op_continue(self, handle: int) -> RmiResult:
        """RMI_OP_CONTINUE: go on with the stateful operation; its command's own answer.  ERROR_INPUT if there is none."""
        return self.resume(handle, execute=True)

    @command(Rmi.OP_CANCEL, granules=())
    def op_cancel(self, handle: int) -> RmiResult:
        """RMI_OP_CANCEL: as if the operation had never begun.  ERROR_INPUT if there is none."""
        return self.resume(handle, execute=False)

    def check_granules(self) -> list[str]:
        """Where the granule table and the granule protection table disagree; nothing should."""
        wrong = []
        for start, end, _ in self.granules.entries.runs():
            if not self.gpt.realm.covers(start, end, True):
                wrong.append(f"granules {start:#x}-{end:#x} are in use by the RMM, and the host's in the GPT")
        for start, end, _ in self.gpt.realm.runs():
            if any(entry is None for _, _, entry in self.granules.entries.spans(start, end)):
                wrong.append(f"granules {start:#x}-{end:#x} are the realm world's in the GPT, and not all known to the RMM")
        return wrong

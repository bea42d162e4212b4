# SPDX-License-Identifier: GPL-2.0-or-later
"""What every RMI command works on, and how each begins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from ...rangemap import RangeMap
from ...sync import Runtime
from ...uapi.rmi import (
    RMI_OP_CAN_CANCEL,
    GranuleState,
    HashAlgorithm,
    OpMemRequest,
    RealmState,
    Rmi,
    RmiStatus,
    TrackingState,
    rmi_status,
)
from ..memory import PAGE_SHIFT, PhysicalMemory
from .granule import Gpi, Gpt, Granules
from .measurement import RimRow
from .realm import Realm, Rec

__all__ = ["COMMANDS", "OK", "RMM", "Inject", "RimLog", "RmiResult", "RmmCore", "RmmInfo", "Transfer", "command", "error"]

Inject = Callable[[Rmi, int], int | None]
"""Asked before each command with its IPA (bytes), or the page frame that it names where it has none: the status to return
instead of running it, or `None`.  INCOMPLETE makes the command wait for RMI_OP_CONTINUE."""

RimLog = Callable[[int, list[RimRow]], None]
"""Told of pages that entered a RIM: the RD, and a row for each page in order."""


class RmmInfo(NamedTuple):
    """What RMI_VERSION and RMI_FEATURES tell, and what the processor has."""

    version: tuple[int, int] = (2, 0)
    max_ipa_bits: int = 48
    num_bps: int = 6
    num_wps: int = 4
    """As the architecture counts them."""
    rec_aux: int = 4
    """Granules that a REC needs besides its own."""
    preallocated: bool = True
    """The RMM has memory of its own to track every granule for itself (TF-RMM's RMM_ALLOC_TRACKING_DATA).  Without, regions
    are tracked as a whole until the host donates a page for that."""

    @property
    def hashes(self) -> tuple[HashAlgorithm, ...]:
        """The hash algorithms that a realm may be measured by."""
        old = (HashAlgorithm.SHA_256, HashAlgorithm.SHA_512)
        return (*old, HashAlgorithm.SHA_384) if self.version >= (2, 0) else old


class RmiResult(NamedTuple):
    """How a command ended: X0, the values that follow it, and the runs (pfn, count) that it gave back."""

    status: int
    out: tuple[int, ...] = ()
    runs: tuple[tuple[int, int], ...] = ()


OK = RmiResult(RmiStatus.SUCCESS)


class Transfer:
    """What a suspended operation on a region wants of the host: a page, or that one is fetched; `pfn` is that page."""

    def __init__(self, wants: OpMemRequest, region: int, pfn: int = -1) -> None:
        self.wants, self.region, self.pfn = wants, region, pfn

    @property
    def status(self) -> int:
        """INCOMPLETE, with what is wanted next."""
        cancel = RMI_OP_CAN_CANCEL if self.may_cancel else 0
        return RmiStatus.INCOMPLETE | self.wants << 8 | cancel

    @property
    def may_continue(self) -> bool:
        """The page has gone where it was to go."""
        return self.wants is OpMemRequest.NONE

    @property
    def may_cancel(self) -> bool:
        """Nothing has happened yet."""
        return self.wants is OpMemRequest.DONATE


P = ParamSpec("P")
C = TypeVar("C", bound="RmmCore")
Method = Callable[Concatenate[C, P], RmiResult]


class Command(NamedTuple):
    """How a command is called by SMC: its method, and which arguments are addresses of granules."""

    method: str
    granules: tuple[int, ...]


REGION_PAGES = 512
"""Granules in a region that is tracked in one way."""
RMM = ("rmm",)
"""The RMM's state, for who marks accesses to it: granules belong to no realm, so it's one."""

COMMANDS: dict[Rmi, Command] = {}
"""Every command that is emulated."""


def command(fid: Rmi, what: int = 0, granules: tuple[int, ...] = (0,)) -> Callable[[Method[C, P]], Method[C, P]]:
    """An RMI command: argument `what` is told to `inject`; `granules` are passed as page frames, not as addresses."""

    def declare(method: Method[C, P]) -> Method[C, P]:
        COMMANDS[fid] = Command(method.__name__, granules)

        def run(self: C, /, *args: P.args, **kwargs: P.kwargs) -> RmiResult:
            injected = self.begin(fid, args, what)
            if injected is None:
                return method(self, *args, **kwargs)
            if injected == RmiStatus.INCOMPLETE:
                return self.suspend(partial(method, self, *args, **kwargs))
            return RmiResult(injected)

        update_wrapper(run, method)
        return run

    return declare


def error(code: RmiStatus, index: int = 0) -> RmiResult:
    """A command that failed."""
    return RmiResult(rmi_status(code, index))


class RmmCore:
    """State of the RMM.  Pages are named by page frame number, guest addresses are bytes."""

    def __init__(self, rt: Runtime, memory: PhysicalMemory, npages: int | None = None, info: RmmInfo | None = None) -> None:
        self.rt, self.memory = rt, memory
        self.info = info or RmmInfo()
        self.gpt = Gpt()
        self.granules = Granules(npages if npages is not None else memory.size >> PAGE_SHIFT)
        self.realms: dict[int, Realm] = {}
        """Realms by RD."""
        self.recs: dict[int, Rec] = {}
        """RECs by their granule."""
        self.inject: Inject | None = None
        self.log: RimLog | None = None
        self.active = self.info.version < (2, 0)
        """RMI_RMM_ACTIVATE was called, which 1.0 hasn't"""
        self.regions: RangeMap[TrackingState] = RangeMap()
        """how regions of 2 MiB are tracked; those that aren't here, granule by granule"""
        self.tracking_pages: dict[int, int] = {}
        """region that is tracked granule by granule -> the page that the host gave for that, if it had to"""
        self.transfers: dict[int, Transfer] = {}
        """suspended operations that give or take pages, by handle"""
        self._suspended: dict[int, Callable[[], RmiResult]] = {}
        self._next_handle = 1

    def begin(self, fid: Rmi, args: tuple[object, ...], what: int) -> int | None:
        """Every command begins here: one step for all that it does, as if the RMM had one lock.

        Returns what the command is to answer instead of being executed, if it was told to.
        """
        self.rt.writes(RMM)
        if self.inject is None:
            return None
        at = args[what] if len(args) > what else 0
        return self.inject(fid, at if isinstance(at, int) else 0)

    def suspend(self, command: Callable[[], RmiResult], transfer: Transfer | None = None) -> RmiResult:
        """A stateful operation has begun and isn't done: its handle goes to the host, with what it wants first."""
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._suspended[handle] = command
        if transfer is None:
            return RmiResult(RmiStatus.INCOMPLETE, (handle,))
        self.transfers[handle] = transfer
        return RmiResult(transfer.status, (handle, 1))

    def resume(self, handle: int, *, execute: bool) -> RmiResult:
        """Finish a stateful operation, or forget it."""
        transfer = self.transfers.get(handle)
        if transfer is not None and not (transfer.may_continue if execute else transfer.may_cancel):
            return error(RmiStatus.ERROR_INPUT)
        command = self._suspended.pop(handle, None)
        if command is None:
            return error(RmiStatus.ERROR_INPUT)
        self.transfers.pop(handle, None)
        return command() if execute else OK

    def tracked_run(self, pfn: int, count: int) -> int:
        """How many of `count` granules from `pfn` may change their state together as they are tracked: regions that are
        COARSE only as a whole."""
        if self.regions.empty(pfn // REGION_PAGES, (pfn + count - 1) // REGION_PAGES + 1):
            return count
        done = 0
        while done < count:
            region, at = divmod(pfn + done, REGION_PAGES)
            left = min(REGION_PAGES - at, count - done)
            state = self.regions[region]
            whole = not at and left == min(REGION_PAGES, self.granules.npages - region * REGION_PAGES)
            if state is TrackingState.NONE or (state is TrackingState.COARSE and not whole):
                break
            done += left
        return done

    # What commands check and do

    def realm(self, rd: int) -> Realm | None:
        """The realm, if `rd` is an RD."""
        return self.realms.get(rd)

    def delegated(self, pfn: int, count: int = 1) -> bool:
        """Whether these granules are delegated and free."""
        return self.granules.all(pfn, count, GranuleState.DELEGATED)

    def take(self, pfn: int, count: int, state: GranuleState, realm: Realm) -> None:
        """Delegated granules become the realm's."""
        self.granules.set(pfn, count, state, realm.rd)

    def give_back(self, pfn: int, count: int = 1) -> None:
        """Granules of a realm are delegated and free again."""
        self.granules.set(pfn, count, GranuleState.DELEGATED)

    def to_world(self, pfn: int, count: int, gpi: Gpi) -> None:
        """Have EL3 move granules from one world to the other."""
        self.granules.set(pfn, count, GranuleState.DELEGATED if gpi is Gpi.REALM else GranuleState.NS)
        self.gpt.set(pfn, count, gpi)

    def host_page(self, pfn: int) -> bool:
        """Whether the RMM may read its arguments from this page: it must be the host's."""
        return self.granules.all(pfn, 1, GranuleState.NS)

    def tlbi(self, realm: Realm) -> None:
        """No processor uses what it had looked up in the realm's tables."""
        for rec in realm.recs.values():
            if rec.tlb is not None:
                self.rt.writes(("tlb", rec.tlb))
                rec.tlb.flush()

    def runnable(self, realm: Realm) -> int:
        """The status of a command that needs an active realm."""
        if realm.state is RealmState.ACTIVE:
            return RmiStatus.SUCCESS
        return rmi_status(RmiStatus.ERROR_REALM, int(realm.state is RealmState.TERMINATED))

# SPDX-License-Identifier: GPL-2.0-or-later
"""RSI commands, which realms give; and what a realm's processor finds in its tables."""

from __future__ import annotations

from ...uapi.rmi import HashAlgorithm, Hipas, Ripas, RsiResponse, RsiStatus, rsi_realm_config
from ..cpu import ExternalAbort
from ..memory import PAGE_SHIFT, PAGE_SIZE
from ..tlb import Translation
from .core import RMM, RmmCore
from .measurement import NR_REMS, SLOT_SIZE
from .realm import Realm, Rec, RipasChange

__all__ = ["RsiCommands"]

RSI_VERSION = 1 << 16


class RsiCommands(RmmCore):
    """RSI_*.  A status comes first; INPUT is for arguments, STATE for a realm that isn't ready."""

    def walk_protected(self, realm: Realm, gfn: int) -> Translation | None:
        """What a processor finds at a frame of the protected half; `None`: a data abort that the host gets.

        Raises `ExternalAbort` in the realm for what is EMPTY.
        """
        self.rt.reads(RMM)
        entry = realm.rtt.entry(gfn)
        if entry.ripas is Ripas.EMPTY:
            raise ExternalAbort(gfn << PAGE_SHIFT, "its RIPAS is EMPTY")
        if entry.ripas is Ripas.RAM and entry.hipas is Hipas.ASSIGNED:
            return Translation(gfn + entry.delta, True)
        return None

    def walk_shared(self, realm: Realm, gfn: int) -> Translation | None:
        """What a processor finds for frame `gfn` in the shared half (`gfn` comes without the bit that says so)."""
        self.rt.reads(RMM)
        frame = gfn | realm.rtt.shared_bit
        entry = realm.rtt.entry(frame)
        return Translation(frame + entry.delta, entry.writable) if entry.hipas is Hipas.ASSIGNED else None

    def rsi_version(self) -> tuple[int, ...]:
        """RSI_VERSION: 1.0, which realms of both RMMs speak."""
        return RsiStatus.SUCCESS, RSI_VERSION, RSI_VERSION

    def rsi_measurement_read(self, rec: Rec, index: int) -> tuple[int, bytes]:
        """RSI_MEASUREMENT_READ: 0 is the RIM, 1 to 4 are the REMs; 64 bytes, padded with zeroes."""
        realm = rec.realm
        self.rt.reads(RMM)
        if not 0 <= index <= NR_REMS:
            return RsiStatus.ERROR_INPUT, bytes(SLOT_SIZE)
        value = realm.rim.value if index == 0 else realm.rems[index - 1].value
        return RsiStatus.SUCCESS, value.ljust(SLOT_SIZE, b"\0")

    def rsi_measurement_extend(self, rec: Rec, index: int, data: bytes) -> tuple[int, ...]:
        """RSI_MEASUREMENT_EXTEND of REM 1 to 4 by up to 64 bytes."""
        self.rt.writes(RMM)
        if not 1 <= index <= NR_REMS or len(data) > SLOT_SIZE:
            return (RsiStatus.ERROR_INPUT,)
        rec.realm.rems[index - 1].extend(data)
        return (RsiStatus.SUCCESS,)

    def rsi_realm_config(self, rec: Rec) -> rsi_realm_config:
        """What RSI_REALM_CONFIG writes into a page of the realm."""
        realm = rec.realm
        return rsi_realm_config(ipa_width=realm.rtt.s2sz, hash_algo=HashAlgorithm(realm.algorithm), rpv=realm.rpv)

    def rsi_ipa_state_get(self, rec: Rec, base: int, top: int) -> tuple[int, ...]:
        """RSI_IPA_STATE_GET: where the state at `base` ends, at most at `top`, and what it is."""
        realm = rec.realm
        self.rt.reads(RMM)
        if not self._range(realm, base, top):
            return RsiStatus.ERROR_INPUT, 0, 0
        first, last = base >> PAGE_SHIFT, top >> PAGE_SHIFT
        ripas, end = realm.rtt.entry(first).ripas, first
        for _, stop, entry in realm.rtt.entries.spans(first, last):
            if (Ripas.EMPTY if entry is None else entry.ripas) is not ripas:
                break
            end = stop
        return RsiStatus.SUCCESS, end << PAGE_SHIFT, ripas

    def rsi_ipa_state_set(self, rec: Rec, base: int, top: int, ripas: int, flags: int) -> int:
        """RSI_IPA_STATE_SET, up to where the host is asked: a status; SUCCESS leaves the request in the REC."""
        realm = rec.realm
        self.rt.writes(RMM)
        if not self._range(realm, base, top) or ripas not in (Ripas.EMPTY, Ripas.RAM):
            return RsiStatus.ERROR_INPUT
        rec.ripas_change = RipasChange(base, top, Ripas(ripas), bool(flags & 1))
        return RsiStatus.SUCCESS

    def ripas_response(self, rec: Rec, rejected: bool) -> tuple[int, ...]:
        """How RSI_IPA_STATE_SET ends once the host has entered the REC again: status, how far it got, accepted or not.

        Where the host could get no further, as the realm didn't allow to change what is DESTROYED, it's a rejection, too.
        """
        change, rec.ripas_change = rec.ripas_change, None
        assert change is not None
        self.rt.reads(RMM)
        stuck = False
        if change.base < change.top:
            here = rec.realm.rtt.entry(change.base >> PAGE_SHIFT)
            stuck = here.ripas is Ripas.DESTROYED and not change.change_destroyed
            rejected = rejected or stuck
        return RsiStatus.SUCCESS, change.base, RsiResponse.REJECT if rejected else RsiResponse.ACCEPT

    @staticmethod
    def _range(realm: Realm, base: int, top: int) -> bool:
        return not (base | top) % PAGE_SIZE and 0 <= base < top <= realm.protected_end

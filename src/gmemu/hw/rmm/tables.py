# SPDX-License-Identifier: GPL-2.0-or-later
"""RMI commands about translation tables and RIPAS."""

from __future__ import annotations

from collections.abc import Iterator

from ...uapi.rmi import GranuleState, Hipas, RealmState, Ripas, Rmi, RmiStatus, rmi_status
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .core import OK, RmiResult, RmmCore, command, error
from .realm import Realm
from .rtt import EMPTY, LAST_LEVEL, entry_pages

__all__ = ["TableCommands"]

_INPUT = error(RmiStatus.ERROR_INPUT)


class TableCommands(RmmCore):
    """RMI_RTT_CREATE, DESTROY, FOLD, READ_ENTRY, INIT_RIPAS, SET_RIPAS."""

    def _table(self, rd: int, ipa: int, level: int) -> tuple[Realm | None, RmiResult]:
        """For a command about the table of `level` at `ipa`: the realm, if the walk ends where the table hangs."""
        realm = self.realm(rd)
        if realm is None or not realm.rtt.start < level <= LAST_LEVEL:
            return None, _INPUT
        gfn = ipa >> PAGE_SHIFT
        if ipa % (entry_pages(level - 1) << PAGE_SHIFT) or not 0 <= gfn < realm.rtt.nr_frames:
            return None, _INPUT
        walk = realm.rtt.walk(gfn, level - 1)
        if walk.level != level - 1:
            return None, error(RmiStatus.ERROR_RTT, walk.level)
        return realm, OK

    @command(Rmi.RTT_CREATE, what=2, granules=(0, 1))
    def rtt_create(self, rd: int, rtt: int, ipa: int, level: int) -> RmiResult:
        """RMI_RTT_CREATE: a table of `level` for what the entry at `ipa` covers; a block is so unfolded."""
        if not self.delegated(rtt):
            return _INPUT
        realm, result = self._table(rd, ipa, level)
        if realm is None:
            return result
        gfn = ipa >> PAGE_SHIFT
        if realm.rtt.walk(gfn, level - 1).is_table:
            return error(RmiStatus.ERROR_RTT, level - 1)
        self.take(rtt, 1, GranuleState.RTT, realm)
        realm.rtt.add_table(gfn, level, rtt)
        return OK

    @command(Rmi.RTT_DESTROY, what=1)
    def rtt_destroy(self, rd: int, ipa: int, level: int) -> RmiResult:
        """RMI_RTT_DESTROY: the table of `level` at `ipa` is taken away; what it covered in the protected half is DESTROYED.

        Out: the first address after it.  The table's page is given back.
        """
        realm, result = self._table(rd, ipa, level)
        if realm is None:
            return result
        rtt, gfn = realm.rtt, ipa >> PAGE_SHIFT
        if not rtt.walk(gfn, level - 1).is_table:
            return error(RmiStatus.ERROR_RTT, level - 1)
        if rtt.live(gfn, level):
            return error(RmiStatus.ERROR_RTT, level)
        first, last = rtt.span(gfn, level)
        destroyed = EMPTY._replace(ripas=Ripas.DESTROYED) if first < rtt.shared_bit else None
        rtt.entries.set(first, last, destroyed)
        pfn = rtt.remove_table(gfn, level)
        self.give_back(pfn)
        self.tlbi(realm)
        return RmiResult(RmiStatus.SUCCESS, (pfn << PAGE_SHIFT, last << PAGE_SHIFT), ((pfn, 1),))

    @command(Rmi.RTT_FOLD, what=1)
    def rtt_fold(self, rd: int, ipa: int, level: int) -> RmiResult:
        """RMI_RTT_FOLD: a table of `level` that says one thing becomes an entry above; assigned pages become a block.

        The table's page is given back.
        """
        realm, result = self._table(rd, ipa, level)
        if realm is None:
            return result
        rtt, gfn = realm.rtt, ipa >> PAGE_SHIFT
        if not rtt.walk(gfn, level - 1).is_table:
            return error(RmiStatus.ERROR_RTT, level - 1)
        too_large = level == 1 and rtt.entry(gfn).hipas is not Hipas.UNASSIGNED
        if too_large or not rtt.homogeneous(gfn, level):
            return error(RmiStatus.ERROR_RTT, level)
        pfn = rtt.remove_table(gfn, level)
        self.give_back(pfn)
        self.tlbi(realm)
        return RmiResult(RmiStatus.SUCCESS, (pfn << PAGE_SHIFT,), ((pfn, 1),))

    @command(Rmi.RTT_READ_ENTRY, what=1)
    def rtt_read_entry(self, rd: int, ipa: int, level: int) -> RmiResult:
        """RMI_RTT_READ_ENTRY.  Out: where the walk to `level` ended, HIPAS, output address (bytes) or 0, RIPAS."""
        realm = self.realm(rd)
        if realm is None or not realm.rtt.start <= level <= LAST_LEVEL:
            return _INPUT
        gfn = ipa >> PAGE_SHIFT
        if ipa % (entry_pages(level) << PAGE_SHIFT) or not 0 <= gfn < realm.rtt.nr_frames:
            return _INPUT
        walk = realm.rtt.walk(gfn, level)
        if walk.is_table:
            table = realm.rtt.table(gfn, walk.level + 1) or 0
            return RmiResult(RmiStatus.SUCCESS, (walk.level, Hipas.TABLE, table << PAGE_SHIFT, Ripas.EMPTY))
        entry = walk.entry
        first = gfn // entry_pages(walk.level) * entry_pages(walk.level)
        address = (first + entry.delta) << PAGE_SHIFT if entry.hipas is Hipas.ASSIGNED else 0
        return RmiResult(RmiStatus.SUCCESS, (walk.level, entry.hipas, address, entry.ripas))

    # RIPAS

    def _entries(self, realm: Realm, base: int, top: int, level: int) -> Iterator[tuple[int, int]]:
        """The entries of `level` that frames [base, top) consist of, as runs that say one thing: within one table, until
        one leads to another table or isn't covered."""
        rtt, size = realm.rtt, entry_pages(level)
        end = min(top, rtt.table_end(base, level))
        while base + size <= end and rtt.depth(base) == level:
            _, stop, _ = rtt.entries.run(base)
            if level == LAST_LEVEL:
                size = min(stop, end) - base
            yield base, base + size
            base += size

    @command(Rmi.RTT_INIT_RIPAS, what=1)
    def rtt_init_ripas(self, rd: int, base: int, top: int) -> RmiResult:
        """RMI_RTT_INIT_RIPAS: before the realm is active, [base, top) becomes RAM, as far as one table goes.

        Out: the address to go on from.  Measured entry by entry by the rules of 1.0.
        """
        realm = self.realm(rd)
        if realm is None or not self._protected(realm, base, top):
            return _INPUT
        if realm.state is not RealmState.NEW:
            return error(RmiStatus.ERROR_REALM)
        rtt, at, level = realm.rtt, base >> PAGE_SHIFT, realm.rtt.depth(base >> PAGE_SHIFT)
        for first, last in self._entries(realm, at, top >> PAGE_SHIFT, level) if at % entry_pages(level) == 0 else ():
            entry = rtt.entry(first)
            if entry.ripas not in (Ripas.EMPTY, Ripas.RAM):
                break
            rtt.entries.set(first, last, entry._replace(ripas=Ripas.RAM))
            if realm.rim.measures_ripas:
                for each in range(first, last, entry_pages(level)):
                    realm.rim.ripas(each << PAGE_SHIFT, each + entry_pages(level) << PAGE_SHIFT)
            at = last
        if at << PAGE_SHIFT == base:
            return error(RmiStatus.ERROR_RTT, level)
        return RmiResult(RmiStatus.SUCCESS, (at << PAGE_SHIFT,))

    @command(Rmi.RTT_SET_RIPAS, what=2, granules=(0, 1))
    def rtt_set_ripas(self, rd: int, rec: int, base: int, top: int) -> RmiResult:
        """RMI_RTT_SET_RIPAS: serve what the REC asked for, from where it stands (`base`) to at most `top`, within a table.

        Out: the address to go on from.  What is DESTROYED is only changed if the realm allowed that.
        """
        which, realm = self.recs.get(rec), self.realm(rd)
        if which is None or realm is None:
            return _INPUT
        if which.realm is not realm or which.running:
            return RmiResult(rmi_status(RmiStatus.ERROR_REC))
        change = which.ripas_change
        if change is None or base != change.base or not base < top <= change.top or top % PAGE_SIZE:
            return _INPUT
        rtt, at, level = realm.rtt, base >> PAGE_SHIFT, realm.rtt.depth(base >> PAGE_SHIFT)
        for first, last in self._entries(realm, at, top >> PAGE_SHIFT, level) if at % entry_pages(level) == 0 else ():
            entry = rtt.entry(first)
            if entry.ripas is Ripas.DESTROYED and not change.change_destroyed:
                break
            rtt.entries.set(first, last, entry._replace(ripas=change.ripas))
            at = last
        change.base = at << PAGE_SHIFT
        if change.base == base:
            return error(RmiStatus.ERROR_RTT, level)
        self.tlbi(realm)
        return RmiResult(RmiStatus.SUCCESS, (change.base,))

    def _protected(self, realm: Realm, base: int, top: int) -> bool:
        """Whether [base, top) is a range of whole pages of the protected half."""
        return not (base | top) % PAGE_SIZE and 0 <= base < top <= realm.protected_end

# SPDX-License-Identifier: GPL-2.0-or-later
"""RMI commands that give memory to a realm and take it back, and that map the host's memory for it."""

from __future__ import annotations

from ...uapi.rmi import GranuleState, Hipas, RealmState, Ripas, Rmi, RmiStatus
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .core import OK, RmiResult, RmmCore, command, error
from .realm import Realm
from .rtt import LAST_LEVEL, RttEntry, entry_pages

__all__ = ["DataCommands"]

_INPUT = error(RmiStatus.ERROR_INPUT)


class DataCommands(RmmCore):
    """RMI_RTT_DATA_*, RMI_RTT_UNPROT_*, and what 1.0 has for them."""

    @command(Rmi.RTT_DATA_MAP_INIT, what=2, granules=(0, 1, 3))
    def rtt_data_map_init(self, rd: int, data: int, ipa: int, source: int, measure: int = 1, count: int = 1) -> RmiResult:
        """RMI_RTT_DATA_MAP_INIT (1.0: DATA_CREATE): before the realm is active, page `source` of the host is copied into the
        granule `data`, which is mapped at `ipa` as RAM and measured; with its contents if `measure`.

        `count`: as many calls one after the other, while they succeed.  Out: how many did.
        """
        if not self.granules.all(source, count, GranuleState.NS) or not self.delegated(data, count):
            return _INPUT
        realm = self.realm(rd)
        if realm is None or ipa % PAGE_SIZE or not 0 <= ipa < realm.protected_end:
            return _INPUT
        if realm.state is not RealmState.NEW:
            return error(RmiStatus.ERROR_REALM)
        rtt, gfn = realm.rtt, ipa >> PAGE_SHIFT
        level = rtt.depth(gfn)
        if level != LAST_LEVEL or rtt.entry(gfn).hipas is not Hipas.UNASSIGNED:
            return error(RmiStatus.ERROR_RTT, level)
        count = self._free_run(realm, gfn, min(gfn + count, rtt.table_end(gfn, LAST_LEVEL)))
        self.memory.copy(data, source, count)
        self.memory.encrypt_in_place(data, count, realm.key)
        self.take(data, count, GranuleState.DATA, realm)
        rtt.entries.set(gfn, gfn + count, RttEntry(Hipas.ASSIGNED, Ripas.RAM, data - gfn))
        with self.memory.view as view:
            contents = view[source << PAGE_SHIFT : source + count << PAGE_SHIFT]
            self._measure(realm, ipa, contents, bool(measure))
            contents.release()
        return RmiResult(RmiStatus.SUCCESS, (count,))

    def _measure(self, realm: Realm, ipa: int, contents: memoryview, measure: bool) -> None:
        if self.log is None:
            realm.rim.data(ipa, contents, measure=measure)
            return
        rows = []
        for offset in range(0, len(contents), PAGE_SIZE):
            page = contents[offset : offset + PAGE_SIZE]
            realm.rim.data(ipa + offset, page, measure=measure)
            rows.append(realm.rim.row(ipa + offset, bytes(page) if measure else None))
            page.release()
        self.log(realm.rd, rows)

    def _free_run(self, realm: Realm, gfn: int, end: int) -> int:
        """How many frames of [gfn, end) are unassigned in a row."""
        at = gfn
        for _, last, entry in realm.rtt.entries.spans(gfn, end):
            if entry is not None and entry.hipas is not Hipas.UNASSIGNED:
                break
            at = last
        return at - gfn

    @command(Rmi.RTT_DATA_MAP, what=1, granules=(0, 3))
    def rtt_data_map(self, rd: int, base: int, top: int, data: int) -> RmiResult:
        """RMI_RTT_DATA_MAP: granules from `data` on, zeroed, are mapped at [base, top), as far as one table goes.

        RIPAS stays as it is.  A block is mapped where entry and granules are aligned to one.  What is mapped there already
        is no error if it's the same.  Out: the address to go on from.
        """
        realm = self.realm(rd)
        gfn, end = base >> PAGE_SHIFT, top >> PAGE_SHIFT
        if realm is None or (base | top) % PAGE_SIZE or not 0 <= base < top <= realm.protected_end:
            return _INPUT
        rtt = realm.rtt
        level, entry = rtt.depth(gfn), rtt.entry(gfn)
        size = entry_pages(level)
        if entry.hipas is Hipas.ASSIGNED and entry.delta == data - gfn:
            _, stop, _ = rtt.entries.run(gfn)
            return RmiResult(RmiStatus.SUCCESS, (min(stop, end) << PAGE_SHIFT,))
        if not level or gfn % size or gfn + size > end or data % size or entry.hipas is not Hipas.UNASSIGNED:
            return error(RmiStatus.ERROR_RTT, level)
        count = self._free_run(realm, gfn, min(end, rtt.table_end(gfn, level))) if level == LAST_LEVEL else size
        if not self.delegated(data, count):
            return _INPUT
        self.memory.clear(data, count)
        self.memory.encrypt_in_place(data, count, realm.key)
        self.take(data, count, GranuleState.DATA, realm)
        for first, last, old in list(rtt.entries.spans(gfn, gfn + count)):
            ripas = Ripas.EMPTY if old is None else old.ripas
            rtt.entries.set(first, last, RttEntry(Hipas.ASSIGNED, ripas, data - gfn))
        return RmiResult(RmiStatus.SUCCESS, (gfn + count << PAGE_SHIFT,))

    @command(Rmi.RTT_DATA_UNMAP, what=1)
    def rtt_data_unmap(self, rd: int, base: int, top: int) -> RmiResult:
        """RMI_RTT_DATA_UNMAP: what is mapped at [base, top), as far as it goes on in one table, is delegated and free again.

        What was RAM is DESTROYED now.  Out: the address to go on from, also with ERROR_RTT, where nothing is mapped.
        """
        realm = self.realm(rd)
        gfn, end = base >> PAGE_SHIFT, top >> PAGE_SHIFT
        if realm is None or (base | top) % PAGE_SIZE or not 0 <= base < top <= realm.protected_end:
            return _INPUT
        rtt, level = realm.rtt, realm.rtt.depth(gfn)
        end = min(end, rtt.table_end(gfn, level))
        if rtt.entry(gfn).hipas is not Hipas.ASSIGNED:
            skip = max(self._free_run(realm, gfn, min(top >> PAGE_SHIFT, rtt.shared_bit)), 1)
            return RmiResult(error(RmiStatus.ERROR_RTT, level).status, (gfn + skip << PAGE_SHIFT,))
        size = entry_pages(level)
        if gfn % size or gfn + size > end:
            return RmiResult(error(RmiStatus.ERROR_RTT, level).status, (base,))
        stop = end if level == LAST_LEVEL else gfn + size
        runs = []
        for first, last, entry in list(rtt.entries.spans(gfn, stop)):
            if entry is None or entry.hipas is not Hipas.ASSIGNED:
                stop = first
                break
            ripas = Ripas.EMPTY if entry.ripas is Ripas.EMPTY else Ripas.DESTROYED
            rtt.entries.set(first, last, RttEntry(Hipas.UNASSIGNED, ripas))
            self.give_back(first + entry.delta, last - first)
            runs.append((first + entry.delta, last - first))
        self.tlbi(realm)
        return RmiResult(RmiStatus.SUCCESS, (stop << PAGE_SHIFT,), tuple(runs))

    # 1.0

    @command(Rmi.DATA_CREATE_UNKNOWN, what=2, granules=(0, 1))
    def data_create_unknown(self, rd: int, data: int, ipa: int) -> RmiResult:
        """RMI_DATA_CREATE_UNKNOWN of 1.0: one page, which must not be mapped yet."""
        realm, gfn = self.realm(rd), ipa >> PAGE_SHIFT
        if realm is not None and realm.rtt.entry(gfn).hipas is not Hipas.UNASSIGNED:
            return error(RmiStatus.ERROR_RTT, realm.rtt.depth(gfn))
        return RmiResult(self.rtt_data_map(rd, ipa, ipa + PAGE_SIZE, data).status)

    @command(Rmi.DATA_DESTROY, what=1)
    def data_destroy(self, rd: int, ipa: int) -> RmiResult:
        """RMI_DATA_DESTROY of 1.0: one page.  Out: its address, and the address to go on from."""
        result = self.rtt_data_unmap(rd, ipa, ipa + PAGE_SIZE)
        data = result.runs[0][0] << PAGE_SHIFT if result.runs else 0
        return RmiResult(result.status, (data, *result.out), result.runs)

    # The shared half

    def _shared_walk(self, rd: int, ipa: int, level: int) -> tuple[Realm | None, RmiResult]:
        realm = self.realm(rd)
        if realm is None or not max(realm.rtt.start, 1) <= level <= LAST_LEVEL:
            return None, _INPUT
        gfn = ipa >> PAGE_SHIFT
        if ipa % (entry_pages(level) << PAGE_SHIFT) or not realm.rtt.shared_bit <= gfn < realm.rtt.nr_frames:
            return None, _INPUT
        walk = realm.rtt.walk(gfn, level)
        if walk.level != level or walk.is_table:
            return None, error(RmiStatus.ERROR_RTT, walk.level)
        return realm, OK

    @command(Rmi.RTT_UNPROT_MAP, what=1, granules=(0, 3))
    def rtt_unprot_map(self, rd: int, ipa: int, level: int, pfn: int, writable: int = 1) -> RmiResult:
        """RMI_RTT_UNPROT_MAP: the host's memory at `pfn` is mapped by an entry of `level` of the shared half."""
        realm, result = self._shared_walk(rd, ipa, level)
        if realm is None:
            return result
        gfn, size = ipa >> PAGE_SHIFT, entry_pages(level)
        if pfn % size or not self.granules.covers(pfn, size):
            return _INPUT
        if realm.rtt.entry(gfn).hipas is not Hipas.UNASSIGNED:
            return error(RmiStatus.ERROR_RTT, level)
        realm.rtt.entries.set(gfn, gfn + size, RttEntry(Hipas.ASSIGNED, Ripas.EMPTY, pfn - gfn, bool(writable)))
        return OK

    @command(Rmi.RTT_UNPROT_UNMAP, what=1)
    def rtt_unprot_unmap(self, rd: int, ipa: int, level: int) -> RmiResult:
        """RMI_RTT_UNPROT_UNMAP of one entry of `level`.  Out: the address after it."""
        realm, result = self._shared_walk(rd, ipa, level)
        if realm is None:
            return result
        gfn, size = ipa >> PAGE_SHIFT, entry_pages(level)
        if realm.rtt.entry(gfn).hipas is not Hipas.ASSIGNED:
            return error(RmiStatus.ERROR_RTT, level)
        realm.rtt.entries.clear(gfn, gfn + size)
        self.tlbi(realm)
        return RmiResult(RmiStatus.SUCCESS, (gfn + size << PAGE_SHIFT,))

    @command(Rmi.RTT_MAP_UNPROTECTED, what=1)
    def rtt_map_unprotected(self, rd: int, ipa: int, level: int, descriptor: int) -> RmiResult:
        """RMI_RTT_MAP_UNPROTECTED of 1.0: `descriptor` has the output address and S2AP (bit 7: may be written)."""
        return self.rtt_unprot_map(rd, ipa, level, (descriptor & (1 << 48) - 1) >> PAGE_SHIFT, descriptor >> 7 & 1)

    @command(Rmi.RTT_UNMAP_UNPROTECTED, what=1)
    def rtt_unmap_unprotected(self, rd: int, ipa: int, level: int) -> RmiResult:
        """RMI_RTT_UNMAP_UNPROTECTED of 1.0."""
        return self.rtt_unprot_unmap(rd, ipa, level)

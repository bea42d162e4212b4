# SPDX-License-Identifier: GPL-2.0-or-later
"""Translation tables, RIPAS and memory: each command, then random calls against a model that keeps a page at a time."""

from __future__ import annotations

import random

import pytest

from gmemu.hw.cpu import ExternalAbort
from gmemu.hw.rmm.realm import RipasChange
from gmemu.hw.rmm.rtt import root_tables, start_level
from gmemu.uapi.rmi import GranuleState, Hipas, Ripas, RmiStatus, RsiResponse

from .machine import DATA, GIB, MIB, PAGE, RD, SHARED, SOURCE, Machine, rtt_error

INPUT, REALM, REC = RmiStatus.ERROR_INPUT, RmiStatus.ERROR_REALM, RmiStatus.ERROR_REC


@pytest.mark.parametrize(
    ("bits", "level", "roots"), [(32, 2, 4), (34, 2, 16), (36, 1, 1), (40, 1, 2), (43, 1, 16), (44, 0, 1), (48, 0, 1)]
)
def test_where_tables_start(bits: int, level: int, roots: int) -> None:
    """As Linux has it: kvm_get_vtcr() with stage2_pgtable_levels(), up to sixteen tables side by side."""
    assert (start_level(bits), root_tables(bits, start_level(bits))) == (level, roots)


def test_tables_hang_where_they_belong(machine: Machine) -> None:
    rmm, _ = machine.rmm, machine.realm()
    page = machine.granule()
    assert rmm.rtt_create(RD, page, 0, 3).status == rtt_error(1)
    assert rmm.rtt_create(RD, page, 0, 1).status == INPUT
    assert rmm.rtt_create(RD, page, 0, 4).status == INPUT
    assert rmm.rtt_create(RD, page, MIB, 2).status == INPUT
    assert rmm.rtt_create(RD, page, 1 << 40, 2).status == INPUT
    assert rmm.rtt_create(RD, SOURCE, 0, 2).status == INPUT
    assert rmm.rtt_create(SOURCE, page, 0, 2).status == INPUT
    assert rmm.rtt_create(RD, page, 0, 2).status == 0
    assert rmm.rtt_create(RD, machine.granule(), 0, 2).status == rtt_error(1)
    assert rmm.rtt_read_entry(RD, 0, 1).out == (1, Hipas.TABLE, page * PAGE, 0)
    assert rmm.rtt_read_entry(RD, 0, 3).out == (2, Hipas.UNASSIGNED, 0, Ripas.EMPTY)
    assert rmm.rtt_read_entry(RD, 8, 3).status == INPUT


def test_destroying_a_table_destroys_what_it_stood_for(machine: Machine) -> None:
    rmm, _ = machine.rmm, machine.realm()
    machine.tables(0)
    assert rmm.rtt_destroy(RD, 0, 2).status == rtt_error(2)
    assert rmm.rtt_destroy(RD, GIB, 3).status == rtt_error(1)
    assert rmm.rtt_destroy(RD, 2 * MIB, 3).status == rtt_error(2)
    gone = rmm.rtt_destroy(RD, 0, 3)
    assert (gone.status, gone.out[1]) == (0, 2 * MIB)
    assert rmm.granules.state(gone.runs[0][0]) is GranuleState.DELEGATED
    assert rmm.rtt_read_entry(RD, 0, 2).out == (2, Hipas.UNASSIGNED, 0, Ripas.DESTROYED)
    machine.tables(SHARED)
    assert rmm.rtt_destroy(RD, SHARED, 3).status == 0
    assert rmm.rtt_read_entry(RD, SHARED, 2).out[3] == Ripas.EMPTY


def test_blocks_fold_and_unfold(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    machine.tables(0, 2)
    assert rmm.rtt_data_map(RD, 0, 2 * MIB, DATA).out == (2 * MIB,)
    assert rmm.rtt_read_entry(RD, 0, 3).out == (2, Hipas.ASSIGNED, DATA * PAGE, Ripas.EMPTY)
    assert rmm.rtt_data_unmap(RD, 0, PAGE).status == rtt_error(2)
    table = machine.granule()
    assert rmm.rtt_create(RD, table, 0, 3).status == 0
    assert rmm.rtt_read_entry(RD, 5 * PAGE, 3).out[:3] == (3, Hipas.ASSIGNED, (DATA + 5) * PAGE)
    assert rmm.rtt_fold(RD, 0, 3).runs == ((table, 1),)
    assert rmm.rtt_read_entry(RD, 0, 3).out[0] == 2
    assert rmm.rtt_create(RD, table, 0, 3).status == 0
    assert rmm.rtt_data_unmap(RD, 5 * PAGE, 6 * PAGE).runs == ((DATA + 5, 1),)
    assert rmm.rtt_fold(RD, 0, 3).status == rtt_error(3)
    assert rmm.rtt_fold(RD, 2 * MIB, 3).status == rtt_error(2)
    assert rmm.rtt_fold(RD, 0, 2).status == rtt_error(2)
    assert realm.rtt.depth(0) == 3


def test_unaligned_memory_is_no_block(machine: Machine) -> None:
    rmm, _ = machine.rmm, machine.realm()
    machine.tables(0, 2)
    assert rmm.rtt_data_map(RD, 0, 2 * MIB, DATA + 1).status == rtt_error(2)
    assert rmm.rtt_data_map(RD, PAGE, 2 * MIB, DATA).status == rtt_error(2)
    machine.tables(0)
    assert rmm.rtt_data_map(RD, 0, 2 * MIB, DATA + 1).out == (2 * MIB,)
    assert rmm.rtt_fold(RD, 0, 3).status == rtt_error(3)


# Initial contents


def test_initial_contents_are_copied_and_measured(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    machine.memory.write(SOURCE * PAGE, b"A" * PAGE)
    assert rmm.rtt_data_map_init(RD, DATA, PAGE, SOURCE).status == rtt_error(1)
    machine.tables(0)
    realm.rim.value = bytes.fromhex("df8c2fc7f035ba1f9f78747e99b95d419a657d2b70e126efa4441a455ab73dfd")
    assert rmm.rtt_data_map_init(RD, DATA, PAGE, SOURCE).out == (1,)
    assert realm.measurement.hex() == "7227e6107cfbbf23a1f2c4c0b703d2dfc4d853f96f17bbbfb21949cfda822ed0"
    assert rmm.rtt_data_map_init(RD, DATA + 1, 2 * PAGE, SOURCE, 0).out == (1,)
    assert realm.measurement.hex() == "890fc7ac6e31fa2381cfdbcbebc5ab1ccc571ec0a8a655f23d435f07b7d34330"
    assert machine.memory.read(DATA * PAGE, 4, realm.key) == b"AAAA"
    assert machine.memory.read(DATA * PAGE, 4) != b"AAAA"
    assert rmm.rtt_read_entry(RD, PAGE, 3).out == (3, Hipas.ASSIGNED, DATA * PAGE, Ripas.RAM)


def test_what_initial_contents_need(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    machine.tables(0)
    rim = realm.measurement
    assert rmm.rtt_data_map_init(RD, SOURCE, 0, SOURCE).status == INPUT
    assert rmm.rtt_data_map_init(RD, DATA, 0, DATA).status == INPUT
    assert rmm.rtt_data_map_init(SOURCE, DATA, 0, SOURCE).status == INPUT
    assert rmm.rtt_data_map_init(RD, DATA, SHARED, SOURCE).status == INPUT
    assert rmm.rtt_data_map_init(RD, DATA, 5, SOURCE).status == INPUT
    assert rmm.rtt_data_map_init(RD, DATA, 0, SOURCE).status == 0
    assert rmm.rtt_data_map_init(RD, DATA, 0, SOURCE).status == INPUT
    done = realm.measurement
    assert rmm.rtt_data_map_init(RD, DATA + 1, 0, SOURCE).status == rtt_error(3)
    rmm.realm_activate(RD)
    assert rmm.rtt_data_map_init(RD, DATA + 1, PAGE, SOURCE).status == REALM
    assert rmm.granules.state(DATA + 1) is GranuleState.DELEGATED
    assert rim != done == realm.measurement


def test_a_log_has_a_row_for_each_page(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    machine.tables(0)
    rows: list[int] = []
    rmm.log = lambda rd, found: rows.extend(row.ipa for row in found)
    assert rmm.rtt_data_map_init(RD, DATA, 0, SOURCE, 1, 3).out == (3,)
    assert rows == [0, PAGE, 2 * PAGE]
    assert realm.rtt.entry(2).ripas is Ripas.RAM


# Memory at run time


def test_mapping_keeps_ripas_and_zeroes(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    machine.tables(0)
    assert rmm.rtt_init_ripas(RD, PAGE, 2 * PAGE).status == 0
    machine.memory.write(DATA * PAGE, b"stale")
    assert rmm.rtt_data_map(RD, 0, 2 * PAGE, DATA).out == (2 * PAGE,)
    assert machine.memory.read(DATA * PAGE, 5, realm.key) == bytes(5)
    assert [realm.rtt.entry(gfn).ripas for gfn in (0, 1)] == [Ripas.EMPTY, Ripas.RAM]
    assert rmm.rtt_data_map(RD, 0, PAGE, DATA).out == (PAGE,)
    assert rmm.rtt_data_map(RD, 0, PAGE, DATA + 9).status == rtt_error(3)
    assert rmm.rtt_data_map(RD, 2 * PAGE, 3 * PAGE, SOURCE).status == INPUT
    assert rmm.rtt_data_map(RD, SHARED, SHARED + PAGE, DATA + 9).status == INPUT
    gone = rmm.rtt_data_unmap(RD, 0, 2 * PAGE)
    assert (gone.out, gone.runs) == ((2 * PAGE,), ((DATA, 1), (DATA + 1, 1)))
    assert [realm.rtt.entry(gfn).ripas for gfn in (0, 1)] == [Ripas.EMPTY, Ripas.DESTROYED]
    assert rmm.rtt_data_unmap(RD, 0, 2 * PAGE).status == rtt_error(3)


def test_the_names_of_1_0() -> None:
    machine = Machine((1, 0))
    rmm, realm = machine.rmm, machine.realm()
    machine.tables(0)
    machine.tables(SHARED)
    assert rmm.data_create_unknown(RD, DATA, 0).status == 0
    assert rmm.data_create_unknown(RD, DATA, 0).status == rtt_error(3)
    assert rmm.data_destroy(RD, 0).out == (DATA * PAGE, PAGE)
    assert rmm.data_destroy(RD, 0).status == rtt_error(3)
    assert rmm.rtt_map_unprotected(RD, SHARED, 3, SOURCE * PAGE | 1 << 7).status == 0
    assert rmm.walk_shared(realm, 0) == (SOURCE, True)
    assert rmm.rtt_unmap_unprotected(RD, SHARED, 3).status == 0
    machine.memory.close()


def test_the_shared_half(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    assert rmm.rtt_unprot_map(RD, SHARED, 3, SOURCE).status == rtt_error(1)
    machine.tables(SHARED)
    assert rmm.rtt_unprot_map(RD, 0, 3, SOURCE).status == INPUT
    assert rmm.rtt_unprot_map(RD, SHARED, 3, SOURCE, 0).status == 0
    assert rmm.rtt_unprot_map(RD, SHARED, 3, SOURCE).status == rtt_error(3)
    assert rmm.walk_shared(realm, 0) == (SOURCE, False)
    assert rmm.rtt_unprot_unmap(RD, SHARED, 3).out == (SHARED + PAGE,)
    assert rmm.rtt_unprot_unmap(RD, SHARED, 3).status == rtt_error(3)
    assert rmm.walk_shared(realm, 0) is None


# RIPAS


def test_initial_ripas_goes_table_by_table(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    assert rmm.rtt_init_ripas(RD, 0, 4 * MIB).status == rtt_error(1)
    machine.tables(0, 2)
    assert rmm.rtt_init_ripas(RD, 0, 4 * MIB).out == (4 * MIB,)
    assert rmm.rtt_init_ripas(RD, 0, 4 * MIB + PAGE).out == (4 * MIB,)
    assert rmm.rtt_init_ripas(RD, MIB, 4 * MIB).status == rtt_error(2)
    assert rmm.rtt_init_ripas(RD, 4 * MIB, 4 * MIB + PAGE).status == rtt_error(2)
    machine.tables(4 * MIB)
    assert rmm.rtt_init_ripas(RD, 2 * MIB, 8 * MIB).out == (4 * MIB,)
    assert rmm.rtt_init_ripas(RD, 4 * MIB, 8 * MIB).out == (6 * MIB,)
    assert rmm.rtt_init_ripas(RD, SHARED, SHARED + PAGE).status == INPUT
    assert rmm.rtt_init_ripas(RD, PAGE, PAGE).status == INPUT
    assert realm.rtt.entry(0).ripas is Ripas.RAM
    assert rmm.rtt_destroy(RD, 4 * MIB, 3).status == 0
    assert rmm.rtt_init_ripas(RD, 2 * MIB, 6 * MIB).out == (4 * MIB,)
    rmm.realm_activate(RD)
    assert rmm.rtt_init_ripas(RD, 0, 4 * MIB).status == REALM


def test_1_0_measures_each_entry_of_initial_ripas() -> None:
    machine = Machine((1, 0))
    realm = machine.realm()
    machine.tables(0, 2)
    realm.rim.value = bytes.fromhex("df8c2fc7f035ba1f9f78747e99b95d419a657d2b70e126efa4441a455ab73dfd")
    assert machine.rmm.rtt_init_ripas(RD, 0, 2 * MIB).status == 0
    assert realm.measurement.hex() == "0f52f96185ce82798db7c4b22932f657192f6c7c7e8c93ba726d11b0070fe382"
    once = realm.measurement
    assert machine.rmm.rtt_init_ripas(RD, 2 * MIB, 8 * MIB).status == 0
    for block in (1, 2, 3):
        realm2 = realm.rim.__class__(machine.params(), measures_ripas=True)
        realm2.value = once
        realm2.ripas(block * 2 * MIB, (block + 1) * 2 * MIB)
        once = realm2.value
    assert realm.measurement == once
    machine.memory.close()


def test_a_realms_request_is_served_in_pieces(machine: Machine) -> None:
    rmm, _ = machine.rmm, machine.realm()
    rec = machine.rec()
    machine.tables(0)
    assert rmm.rtt_set_ripas(RD, rec.pfn, 0, PAGE).status == INPUT
    assert rmm.rsi_ipa_state_set(rec, 0, 4 * MIB, Ripas.RAM, 1) == 0
    assert rmm.rtt_set_ripas(RD, rec.pfn, PAGE, 2 * PAGE).status == INPUT
    assert rmm.rtt_set_ripas(RD, rec.pfn, 0, 8 * MIB).status == INPUT
    assert rmm.rtt_set_ripas(RD, SOURCE, 0, PAGE).status == INPUT
    rec.running = True
    assert rmm.rtt_set_ripas(RD, rec.pfn, 0, PAGE).status == REC
    rec.running = False
    assert rmm.rtt_set_ripas(RD, rec.pfn, 0, 4 * MIB).out == (2 * MIB,)
    assert rmm.rtt_set_ripas(RD, rec.pfn, 2 * MIB, 4 * MIB).out == (4 * MIB,)
    assert rmm.ripas_response(rec, False) == (0, 4 * MIB, RsiResponse.ACCEPT)
    assert rec.ripas_change is None
    assert rmm.rsi_ipa_state_get(rec, 0, 8 * MIB) == (0, 4 * MIB, Ripas.RAM)


def test_what_was_destroyed_stays_so_unless_the_realm_allows(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    rec = machine.rec()
    machine.tables(0)
    rmm.rtt_init_ripas(RD, 0, 2 * PAGE)
    rmm.rtt_data_map(RD, PAGE, 2 * PAGE, DATA)
    rmm.rtt_data_unmap(RD, PAGE, 2 * PAGE)
    assert realm.rtt.entry(1).ripas is Ripas.DESTROYED
    assert rmm.walk_protected(realm, 1) is None
    assert rmm.rsi_ipa_state_set(rec, 0, 2 * PAGE, Ripas.RAM, 0) == 0
    assert rmm.rtt_set_ripas(RD, rec.pfn, 0, 2 * PAGE).out == (PAGE,)
    assert rmm.rtt_set_ripas(RD, rec.pfn, PAGE, 2 * PAGE).status == rtt_error(3)
    assert rmm.ripas_response(rec, False) == (0, PAGE, RsiResponse.REJECT)
    rec.ripas_change = RipasChange(PAGE, 2 * PAGE, Ripas.RAM, True)
    assert rmm.rtt_set_ripas(RD, rec.pfn, PAGE, 2 * PAGE).out == (2 * PAGE,)


def test_rsi_checks_its_arguments(machine: Machine) -> None:
    rmm = machine.rmm
    realm = machine.realm()
    rec = machine.rec()
    for base, top, ripas in ((0, 0, 1), (1, PAGE, 1), (0, SHARED + PAGE, 1), (0, PAGE, 2)):
        assert rmm.rsi_ipa_state_set(rec, base, top, ripas, 0) == 1
    assert rmm.rsi_ipa_state_get(rec, 0, SHARED + PAGE)[0] == 1
    assert rmm.rsi_measurement_read(rec, 5)[0] == 1
    assert rmm.rsi_measurement_read(rec, 0) == (0, realm.measurement.ljust(64, b"\0"))
    assert rmm.rsi_measurement_extend(rec, 0, b"") == rmm.rsi_measurement_extend(rec, 1, bytes(65)) == (1,)
    with pytest.raises(ExternalAbort):
        rmm.walk_protected(realm, 0)


# A model


class PageModel:
    """What the host and the realm may expect of each of a few pages, kept page by page."""

    def __init__(self) -> None:
        self.mapped: dict[int, int] = {}
        self.ripas: dict[int, Ripas] = {}
        self.tables: set[int] = set()

    def map(self, page: int, data: int) -> bool:
        if page // 512 not in self.tables or (page in self.mapped and self.mapped[page] != data):
            return False
        if page not in self.mapped and data in self.mapped.values():
            return False
        self.mapped[page] = data
        return True

    def unmap(self, page: int) -> bool:
        if page // 512 not in self.tables or page not in self.mapped:
            return False
        del self.mapped[page]
        if self.ripas.get(page, Ripas.EMPTY) is not Ripas.EMPTY:
            self.ripas[page] = Ripas.DESTROYED
        return True

    def init_ripas(self, page: int) -> bool:
        if page // 512 not in self.tables or self.ripas.get(page) is Ripas.DESTROYED:
            return False
        self.ripas[page] = Ripas.RAM
        return True

    def table(self, index: int) -> bool:
        fresh = index not in self.tables
        self.tables.add(index)
        return fresh

    def drop(self, index: int) -> bool:
        if index not in self.tables or any(page // 512 == index for page in self.mapped):
            return False
        self.tables.remove(index)
        self.ripas.update(dict.fromkeys(range(index * 512, index * 512 + 512), Ripas.DESTROYED))
        return True


@pytest.mark.parametrize("seed", range(8))
def test_random_calls_against_a_page_model(machine: Machine, seed: int) -> None:
    rng, model, rmm = random.Random(seed), PageModel(), machine.rmm
    realm = machine.realm()
    machine.tables(0, 2)
    pages = [0, 1, 2, 511, 512, 513, 1023]
    for _ in range(300):
        page, data, index = rng.choice(pages), DATA + rng.randrange(6), rng.randrange(2)
        ipa = page * PAGE
        what = rng.choice(["map", "map", "unmap", "ripas", "table", "drop"])
        if what == "map":
            expected, got = model.map(page, data), rmm.rtt_data_map(RD, ipa, ipa + PAGE, data)
        elif what == "unmap":
            expected, got = model.unmap(page), rmm.rtt_data_unmap(RD, ipa, ipa + PAGE)
        elif what == "ripas":
            expected, got = model.init_ripas(page), rmm.rtt_init_ripas(RD, ipa, ipa + PAGE)
        elif what == "table":
            expected, got = model.table(index), rmm.rtt_create(RD, machine.granule(), index * 2 * MIB, 3)
        else:
            expected, got = model.drop(index), rmm.rtt_destroy(RD, index * 2 * MIB, 3)
        assert (got.status == 0) is expected, (what, page, data, index, got)
        for each in pages:
            entry = realm.rtt.entry(each)
            assert (entry.hipas is Hipas.ASSIGNED) is (each in model.mapped)
            assert entry.ripas is model.ripas.get(each, Ripas.EMPTY)
        owned = {pfn for pfn in range(DATA, DATA + 6) if rmm.granules.state(pfn) is GranuleState.DATA}
        assert owned == set(model.mapped.values())
        machine.check()

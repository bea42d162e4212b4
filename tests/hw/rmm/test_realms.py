# SPDX-License-Identifier: GPL-2.0-or-later
"""Realms and RECs: parameters, states, what must be gone first."""

from __future__ import annotations

import pytest

from gmemu.uapi.kvm_arm64 import Psci, PsciReturn
from gmemu.uapi.rmi import GranuleState, RealmState, RecEnterFlags, RmiStatus, rmi_status

from .machine import DATA, PAGE, PARAMS, RD, ROOTS, SOURCE, Machine

INPUT, REALM, REC = RmiStatus.ERROR_INPUT, RmiStatus.ERROR_REALM, RmiStatus.ERROR_REC


def test_life_of_a_realm(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    assert realm.state is RealmState.NEW
    states = [rmm.granules.state(pfn) for pfn in (RD, ROOTS, ROOTS + 1)]
    assert states == [GranuleState.RD, GranuleState.RTT, GranuleState.RTT]
    assert rmm.realm_activate(RD).status == 0
    assert rmm.realm_activate(RD).status == REALM
    assert rmm.realm_terminate(RD).status == 0
    assert rmm.realm_activate(RD).status == REALM
    assert rmm.realm_destroy(RD).status == 0
    assert {rmm.granules.state(pfn) for pfn in (RD, ROOTS, ROOTS + 1)} == {GranuleState.DELEGATED}
    assert rmm.realm_destroy(RD).status == INPUT


@pytest.mark.parametrize(
    "fields",
    [
        {"flags": 1},
        {"s2sz": 31},
        {"s2sz": 49},
        {"num_bps": 6},
        {"num_wps": 4},
        {"hash_algo": 3},
        {"vmid": 0},
        {"rtt_level_start": 3},
        {"rtt_level_start": -1},
        {"rtt_num_start": 1},
        {"rtt_level_start": 2},
        {"rtt_base": (ROOTS + 1) * PAGE},
        {"rtt_base": 0x50 * PAGE},
        {"rtt_base": (RD & ~1) * PAGE},
    ],
    ids=lambda fields: "-".join(f"{k}-{v}" for k, v in fields.items()),
)
def test_parameters_that_no_realm_can_have(machine: Machine, fields: dict[str, int]) -> None:
    assert machine.create(**fields) == INPUT
    assert machine.rmm.realms == {}


def test_pages_of_the_wrong_kind(machine: Machine) -> None:
    machine.memory.write(PARAMS * PAGE, machine.params().pack())
    assert machine.rmm.realm_create(SOURCE, PARAMS).status == INPUT
    assert machine.rmm.realm_create(RD, DATA).status == INPUT
    for call in (machine.rmm.realm_activate, machine.rmm.realm_terminate, machine.rmm.rec_aux_count):
        assert call(SOURCE).status == INPUT


def test_a_vmid_is_one_realms(machine: Machine) -> None:
    machine.realm()
    other, root = machine.granule(), DATA
    machine.memory.write(PARAMS * PAGE, machine.params(rtt_base=root * PAGE).pack())
    assert machine.rmm.realm_create(other, PARAMS).status == INPUT
    machine.memory.write(PARAMS * PAGE, machine.params(rtt_base=root * PAGE, vmid=8).pack())
    assert machine.rmm.realm_create(other, PARAMS).status == 0


def test_the_hashes_of_each_version() -> None:
    old, new = Machine((1, 0)), Machine()
    assert (old.create(hash_algo=2), new.create(hash_algo=2)) == (INPUT, 0)
    assert len(new.rmm.realms[RD].measurement) == 48
    old.memory.close()
    new.memory.close()


def test_a_realm_that_has_something_isnt_destroyed(machine: Machine) -> None:
    rmm = machine.rmm
    machine.realm()
    rec = machine.rec()
    assert rmm.realm_destroy(RD).status == REALM
    assert rmm.rec_destroy(rec.pfn).status == 0
    machine.tables(0)
    assert rmm.realm_destroy(RD).status == REALM
    assert rmm.rtt_destroy(RD, 0, 3).status == 0
    assert rmm.rtt_destroy(RD, 0, 2).status == 0
    assert rmm.realm_destroy(RD).status == 0


# RECs


def test_recs_come_in_order_with_their_granules(machine: Machine) -> None:
    rmm, realm = machine.rmm, machine.realm()
    pfn = machine.granule()
    assert machine.rec_status(pfn, index=1) == INPUT
    assert machine.rec_status(pfn, flags=2) == INPUT
    assert machine.rec_status(pfn, aux=[machine.granule()]) == INPUT
    assert machine.rec_status(pfn, aux=[pfn, *(machine.granule() for _ in range(3))]) == INPUT
    assert machine.rec_status(pfn, aux=[SOURCE, *(machine.granule() for _ in range(3))]) == INPUT
    assert machine.rec_status(SOURCE) == INPUT
    assert rmm.rec_create(SOURCE, pfn, PARAMS).status == INPUT
    rim = realm.measurement
    assert machine.rec_status(pfn) == 0
    assert realm.measurement != rim
    rec = realm.recs[pfn]
    assert {rmm.granules.state(aux) for aux in rec.aux} == {GranuleState.REC_AUX}
    rmm.realm_activate(RD)
    assert machine.rec_status(machine.granule(), index=1) == REALM
    assert rmm.rec_aux_count(RD).out == (4,)


def test_entering(machine: Machine) -> None:
    rmm = machine.rmm
    machine.realm()
    first, second = machine.rec(), machine.rec(1, flags=0)
    assert rmm.rec_enter(SOURCE).status == INPUT
    assert rmm.rec_enter(first.pfn).status == rmi_status(REALM, 0)
    rmm.realm_activate(RD)
    assert rmm.rec_enter(first.pfn).status == 0
    assert rmm.rec_enter(first.pfn).status == REC
    assert rmm.rec_destroy(first.pfn).status == REC
    rmm.rec_exit(first.pfn)
    assert rmm.rec_enter(second.pfn).status == REC
    assert rmm.rec_enter(first.pfn, RecEnterFlags.RIPAS_RESPONSE).status == REC
    rmm.realm_terminate(RD)
    assert rmm.rec_enter(first.pfn).status == rmi_status(REALM, 1)
    assert rmm.rec_destroy(SOURCE).status == INPUT


def test_psci_completion(machine: Machine) -> None:
    rmm = machine.rmm
    machine.realm()
    caller, target = machine.rec(), machine.rec(1, flags=0)
    rmm.realm_activate(RD)

    def complete(calling: int = caller.pfn, to: int = target.pfn, status: int = 0) -> int:
        return rmm.psci_complete(calling, to, status).status

    assert complete() == INPUT
    caller.psci_pending = (Psci.CPU_ON, 1)
    assert rmm.rec_enter(caller.pfn).status == REC
    assert complete(to=caller.pfn) == INPUT
    assert complete(to=SOURCE) == INPUT
    assert complete(status=7) == INPUT
    assert complete(status=PsciReturn.DENIED) == 0
    assert (caller.psci_status, target.runnable) == (PsciReturn.DENIED, False)
    caller.psci_pending = (Psci.CPU_ON, 1)
    assert complete() == 0
    assert (caller.psci_status, target.runnable) == (PsciReturn.SUCCESS, True)
    caller.psci_pending = (Psci.CPU_ON, 1)
    assert complete() == 0
    assert caller.psci_status == PsciReturn.ALREADY_ON
    caller.psci_pending = (Psci.AFFINITY_INFO, 1)
    assert complete() == 0
    assert caller.psci_status == 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""Delegation, SMC dispatch, versions, stateful operations."""

from __future__ import annotations

from gmemu.hw.rmm.granule import Gpi
from gmemu.uapi.rmi import GranuleState, Rmi, RmiStatus, rmi_index, rmi_status, rmi_text

from .machine import DATA, PAGE, RD, SOURCE, Machine

INPUT = RmiStatus.ERROR_INPUT


def test_delegation_leaves_contents_and_undelegation_wipes(machine: Machine) -> None:
    rmm = machine.rmm
    machine.memory.write(SOURCE * PAGE, b"the host's")
    assert rmm.granule_range_delegate(SOURCE).out == (SOURCE + 1,)
    assert (rmm.granules.state(SOURCE), rmm.gpt.of(SOURCE)) == (GranuleState.DELEGATED, Gpi.REALM)
    assert not rmm.gpt.allows_host(SOURCE - 1, 3)
    assert machine.memory.read(SOURCE * PAGE, 10) == b"the host's"
    assert rmm.granule_range_undelegate(SOURCE).status == 0
    assert (rmm.granules.state(SOURCE), rmm.gpt.of(SOURCE)) == (GranuleState.NS, Gpi.NS)
    assert machine.memory.read(SOURCE * PAGE, 10) == bytes(10)


def test_twice_is_an_error(machine: Machine) -> None:
    rmm = machine.rmm
    assert rmm.granule_range_delegate(DATA).status == INPUT
    assert rmm.granule_range_undelegate(SOURCE).status == INPUT
    assert rmm.granule_range_delegate(1 << 60).status == INPUT


def test_a_range_ends_where_it_has_to(machine: Machine) -> None:
    rmm = machine.rmm
    assert rmm.granule_range_delegate(RD - 3, 8).out == (RD,)
    assert rmm.granule_range_delegate(RD, 4).status == INPUT
    assert rmm.granule_range_undelegate(RD - 3, 10).out == (RD + 1,)


def test_what_is_in_use_isnt_undelegated(machine: Machine) -> None:
    machine.realm()
    assert machine.rmm.granule_range_undelegate(RD).status == INPUT


def test_smc_takes_addresses_and_knows_versions() -> None:
    new, old = Machine(), Machine((1, 0))
    start, top = SOURCE * PAGE, (SOURCE + 2) * PAGE
    assert new.rmm.smc(Rmi.GRANULE_RANGE_DELEGATE, start, top) == (0, (top,), ())
    assert new.rmm.smc(Rmi.GRANULE_RANGE_DELEGATE, top, top).status == INPUT
    assert new.rmm.smc(Rmi.GRANULE_RANGE_UNDELEGATE, start + 1, top).status == INPUT
    assert new.rmm.smc(Rmi.GRANULE_DELEGATE, start).status == RmiStatus.ERROR_NOT_SUPPORTED
    assert old.rmm.smc(Rmi.TRACKING_GET, 0, PAGE).status == RmiStatus.ERROR_NOT_SUPPORTED
    assert new.rmm.smc(0xC4000199).status == RmiStatus.ERROR_NOT_SUPPORTED
    assert old.rmm.smc(Rmi.GRANULE_RANGE_DELEGATE, start, top).status == RmiStatus.ERROR_NOT_SUPPORTED
    assert old.rmm.smc(Rmi.GRANULE_DELEGATE, start).status == 0
    assert old.rmm.smc(Rmi.GRANULE_UNDELEGATE, start).status == 0
    assert old.rmm.smc(Rmi.GRANULE_UNDELEGATE, start).status == INPUT
    assert new.rmm.smc(Rmi.VERSION, 0).out == (0x20000, 0x20000)
    assert old.rmm.smc(Rmi.VERSION, 0).out == (0x10000, 0x10000)
    assert old.rmm.smc(Rmi.FEATURES, 0).out[0] & 0xFF == 48
    assert new.rmm.smc(Rmi.FEATURES, 0).out[0] >> 28 == 7
    assert new.rmm.smc(Rmi.FEATURES, 1).out == (0,)
    for machine in (new, old):
        machine.memory.close()


def test_stateful_operations(machine: Machine) -> None:
    rmm = machine.rmm
    rmm.inject = lambda fid, what: RmiStatus.INCOMPLETE if fid is Rmi.GRANULE_RANGE_DELEGATE else None
    begun, other = rmm.granule_range_delegate(SOURCE), rmm.granule_range_delegate(SOURCE + 1)
    assert begun.status == RmiStatus.INCOMPLETE
    assert rmm.granules.state(SOURCE) is GranuleState.NS
    assert rmm.op_continue(begun.out[0]) == (0, (SOURCE + 1,), ())
    assert rmm.granules.state(SOURCE) is GranuleState.DELEGATED
    assert rmm.op_continue(begun.out[0]).status == INPUT
    assert rmm.op_cancel(other.out[0]).status == 0
    assert rmm.granules.state(SOURCE + 1) is GranuleState.NS
    assert rmm.op_cancel(other.out[0]).status == INPUT


def test_injection_replaces_the_command(machine: Machine) -> None:
    asked = []

    def inject(fid: Rmi, what: int) -> int | None:
        asked.append((fid, what))
        return RmiStatus.BUSY

    machine.rmm.inject = inject
    assert machine.rmm.granule_range_delegate(SOURCE).status == RmiStatus.BUSY
    assert machine.rmm.rtt_create(RD, 1, 0x200000, 3).status == RmiStatus.BUSY
    assert asked == [(Rmi.GRANULE_RANGE_DELEGATE, SOURCE), (Rmi.RTT_CREATE, 0x200000)]
    assert machine.rmm.granules.state(SOURCE) is GranuleState.NS


def test_statuses() -> None:
    assert rmi_status(RmiStatus.ERROR_RTT, 2) == 0x204
    assert (rmi_index(0x204), rmi_index(rmi_status(4, -1))) == (2, -1)
    assert rmi_text(0x204) == "ERROR_RTT, index 2"
    assert (rmi_text(0), rmi_text(0x77)) == ("SUCCESS", "0x77")

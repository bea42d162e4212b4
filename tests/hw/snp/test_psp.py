# SPDX-License-Identifier: GPL-2.0-or-later
"""The platform, guest contexts, ASIDs; and what holds for every command."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from gmemu.hw.snp.cpu import GENOA
from gmemu.hw.snp.guest_context import GuestState, snp_guest_status
from gmemu.hw.snp.psp import PlatformState, Psp
from gmemu.hw.snp.rmp import RmpState
from gmemu.uapi.sev import SNP_POLICY_MASK_SINGLE_SOCKET, PspCommand, PspStatus

from .machine import ASID, COVERED, GCTX, OK, PAGE, POLICY, Machine, Stepping


@pytest.fixture
def cold() -> Iterator[Machine]:
    """A machine on which nobody has called SNP_INIT."""
    machine = Machine(booted=False)
    yield machine
    machine.close()


COMMANDS: dict[PspCommand, Callable[[Psp], PspStatus]] = {
    PspCommand.GCTX_CREATE: lambda p: p.gctx_create(GCTX),
    PspCommand.ACTIVATE: lambda p: p.activate(GCTX, ASID),
    PspCommand.DECOMMISSION: lambda p: p.decommission(GCTX),
    PspCommand.GUEST_STATUS: lambda p: p.guest_status(GCTX, 0x5000),
    PspCommand.LAUNCH_START: lambda p: p.launch_start(GCTX, POLICY),
    PspCommand.LAUNCH_UPDATE: lambda p: p.launch_update(GCTX, PAGE, 1)[0],
    PspCommand.LAUNCH_FINISH: lambda p: p.launch_finish(GCTX),
    PspCommand.PAGE_RECLAIM: lambda p: p.page_reclaim(PAGE),
    PspCommand.PAGE_MOVE: lambda p: p.page_move(GCTX, PAGE, PAGE + 1),
    PspCommand.PAGE_MD_INIT: lambda p: p.md_init(GCTX, PAGE),
    PspCommand.PAGE_UNSMASH: lambda p: p.page_unsmash(PAGE),
}
NEEDS_GUEST = [c for c in COMMANDS if c not in (PspCommand.GCTX_CREATE, PspCommand.PAGE_RECLAIM, PspCommand.PAGE_UNSMASH)]


@pytest.mark.parametrize("command", COMMANDS)
def test_needs_an_initialised_platform(cold: Machine, command: PspCommand) -> None:
    assert COMMANDS[command](cold.psp) == PspStatus.INVALID_PLATFORM_STATE


@pytest.mark.parametrize("command", NEEDS_GUEST)
@pytest.mark.parametrize(
    "page", [{}, {"assigned": True}, {"assigned": True, "immutable": True}, {"assigned": True, "asid": 9}]
)
def test_needs_a_context_page(machine: Machine, command: PspCommand, page: dict[str, bool]) -> None:
    if page:
        machine.rmp.rmpupdate(GCTX, **page)
    assert COMMANDS[command](machine.psp) == PspStatus.INVALID_GUEST


@pytest.mark.parametrize("command", [*COMMANDS, PspCommand.DF_FLUSH, PspCommand.INIT])
def test_a_failure_can_be_ordered(machine: Machine, command: PspCommand) -> None:
    more: dict[PspCommand, Callable[[Psp], PspStatus]] = {
        PspCommand.DF_FLUSH: lambda p: p.df_flush(),
        PspCommand.INIT: lambda p: p.snp_init(),
    }
    call = (COMMANDS | more)[command]
    asked: list[PspCommand] = []

    def inject(command: PspCommand, pfn: int) -> PspStatus | None:
        asked.append(command)
        return PspStatus.HWERROR_UNSAFE

    machine.psp.inject = inject
    assert call(machine.psp) == PspStatus.HWERROR_UNSAFE
    assert asked == [command]
    machine.psp.inject = lambda command, pfn: None
    assert call(machine.psp) != PspStatus.HWERROR_UNSAFE


class TestInit:
    def test_once(self, cold: Machine) -> None:
        assert cold.psp.state == PlatformState.UNINIT
        assert cold.psp.snp_init() == OK
        assert cold.psp.state == PlatformState(1)
        assert cold.psp.snp_init() == PspStatus.INVALID_PLATFORM_STATE

    def test_asids_are_dirty_until_flushed(self, cold: Machine) -> None:
        cold.psp.snp_init()
        cold.context_page()
        assert cold.psp.launch_start(GCTX, POLICY) == OK
        assert cold.psp.activate(GCTX, ASID) == PspStatus.DFFLUSH_REQUIRED
        assert cold.psp.df_flush() == PspStatus.WBINVD_REQUIRED
        cold.psp.wbinvd()
        assert cold.psp.activate(GCTX, ASID) == PspStatus.DFFLUSH_REQUIRED
        assert cold.psp.df_flush() == OK
        assert cold.psp.activate(GCTX, ASID) == OK

    def test_an_asid_that_is_used_again_has_another_key(self, machine: Machine) -> None:
        first = machine.guest().key
        machine.memory.write(PAGE << 12, b"old guest's", key=first)
        assert machine.psp.decommission(GCTX) == OK
        assert ASID not in machine.psp.keys
        machine.psp.wbinvd()
        assert machine.psp.df_flush() == OK
        assert machine.psp.page_reclaim(GCTX) == OK
        assert machine.rmp.rmpupdate(GCTX, assigned=False) == (0, 1)
        assert machine.guest().key != first
        assert not machine.page(PAGE, ASID).startswith(b"old guest's")


class TestGctxCreate:
    def test_firmware_becomes_context(self, machine: Machine) -> None:
        machine.fill(GCTX, b"what was there")
        machine.context_page()
        assert machine.rmp.state(GCTX) is RmpState.CONTEXT
        assert machine.psp.contexts[GCTX].state is GuestState.INIT
        assert not machine.rmp.check_host_write(GCTX)
        assert machine.page(GCTX) != bytes(4096), "the host must not see the firmware's bytes"

    @pytest.mark.parametrize("page", [{}, {"assigned": True}, {"assigned": True, "asid": ASID, "immutable": True}])
    def test_from_no_other_state(self, machine: Machine, page: dict[str, int]) -> None:
        if page:
            machine.rmp.rmpupdate(GCTX, **page)  # type: ignore[arg-type]
        assert machine.psp.gctx_create(GCTX) == PspStatus.INVALID_PAGE_STATE
        assert machine.psp.gctx_create(COVERED) == PspStatus.INVALID_PAGE_STATE

    def test_not_twice(self, machine: Machine) -> None:
        machine.context_page()
        assert machine.psp.gctx_create(GCTX) == PspStatus.INVALID_PAGE_STATE

    def test_4k_only(self, machine: Machine) -> None:
        machine.rmp.rmpupdate(PAGE, assigned=True, immutable=True, pagesize=1)
        assert machine.psp.gctx_create(PAGE) == PspStatus.INVALID_PAGE_SIZE
        assert machine.psp.gctx_create(PAGE + 1) == PspStatus.INVALID_PAGE_STATE

    def test_context_page_belongs_to_the_firmware(self, machine: Machine) -> None:
        machine.context_page()
        assert machine.rmp.rmpupdate(GCTX, assigned=False) == (2, 0)
        assert machine.psp.page_reclaim(GCTX) == PspStatus.INVALID_PAGE_STATE


class TestActivate:
    """Each check wins over the next."""

    def test_binds(self, machine: Machine) -> None:
        guest = machine.guest()
        assert guest.asid == ASID

    def test_guest_state_before_pages(self, machine: Machine) -> None:
        machine.context_page()
        machine.pre_guest()
        assert machine.psp.activate(GCTX, ASID) == PspStatus.INVALID_GUEST_STATE
        machine.psp.launch_start(GCTX, POLICY)
        assert machine.psp.activate(GCTX, ASID) == PspStatus.INVALID_CONFIG

    def test_running_will_do(self, machine: Machine) -> None:
        guest = machine.guest()
        machine.psp.launch_finish(GCTX)
        guest.asid = 0
        assert machine.psp.activate(GCTX, ASID + 1) == OK

    def test_pages_before_socket(self) -> None:
        machine = Machine(cpu=GENOA._replace(sockets=2))
        machine.context_page()
        machine.psp.launch_start(GCTX, POLICY | SNP_POLICY_MASK_SINGLE_SOCKET)
        machine.pre_guest()
        assert machine.psp.activate(GCTX, ASID) == PspStatus.INVALID_CONFIG
        machine.close()

    @pytest.mark.parametrize("asid", [0, GENOA.max_asid + 1])
    def test_socket_before_asid(self, asid: int) -> None:
        machine = Machine(cpu=GENOA._replace(sockets=2))
        machine.context_page()
        machine.psp.launch_start(GCTX, POLICY | SNP_POLICY_MASK_SINGLE_SOCKET)
        assert machine.psp.activate(GCTX, asid) == PspStatus.POLICY_FAILURE
        machine.close()

    @pytest.mark.parametrize("asid", [-1, 0, GENOA.max_asid + 1])
    def test_asid_before_active(self, machine: Machine, asid: int) -> None:
        machine.guest()
        assert machine.psp.activate(GCTX, asid) == PspStatus.INVALID_ASID

    def test_owned_before_active(self, machine: Machine) -> None:
        machine.guest()
        assert machine.psp.activate(GCTX, ASID) == PspStatus.ASID_OWNED

    def test_active_before_dirty(self, machine: Machine) -> None:
        machine.guest(2, ASID + 1)
        machine.psp.decommission(2)
        machine.guest()
        assert machine.psp.activate(GCTX, ASID + 1) == PspStatus.ACTIVE

    def test_asid_of_another(self, machine: Machine) -> None:
        machine.guest()
        machine.context_page(2)
        machine.psp.launch_start(2, POLICY)
        assert machine.psp.activate(2, ASID) == PspStatus.ASID_OWNED
        assert machine.psp.activate(2, GENOA.max_asid) == OK


class TestDecommission:
    @pytest.mark.parametrize("state", GuestState)
    def test_from_any_state(self, machine: Machine, state: GuestState) -> None:
        machine.context_page()
        if state is not GuestState.INIT:
            machine.psp.launch_start(GCTX, POLICY)
            machine.psp.activate(GCTX, ASID)
        if state is GuestState.RUNNING:
            machine.psp.launch_finish(GCTX)
        assert machine.psp.contexts[GCTX].state is state
        assert machine.psp.decommission(GCTX) == OK
        assert machine.rmp.state(GCTX) is RmpState.FIRMWARE
        assert machine.psp.contexts == {}
        assert machine.psp.decommission(GCTX) == PspStatus.INVALID_GUEST
        assert machine.psp.page_reclaim(GCTX) == OK
        assert machine.rmp.rmpupdate(GCTX, assigned=False) == (0, 1)

    def test_asid_needs_a_flush_before_it_is_used_again(self, machine: Machine) -> None:
        machine.guest()
        machine.psp.decommission(GCTX)
        assert machine.psp.gctx_create(GCTX) == OK
        machine.psp.launch_start(GCTX, POLICY)
        assert machine.psp.activate(GCTX, ASID) == PspStatus.DFFLUSH_REQUIRED
        assert machine.psp.df_flush() == PspStatus.WBINVD_REQUIRED
        machine.psp.wbinvd()
        assert machine.psp.df_flush() == OK
        assert machine.psp.activate(GCTX, ASID) == OK

    def test_a_flush_leaves_owned_asids(self, machine: Machine) -> None:
        machine.guest()
        machine.psp.df_flush()
        machine.context_page(2)
        machine.psp.launch_start(2, POLICY)
        assert machine.psp.activate(2, ASID) == PspStatus.ASID_OWNED

    def test_pages_stay(self, machine: Machine) -> None:
        machine.guest()
        machine.pre_guest()
        machine.psp.decommission(GCTX)
        assert machine.rmp.state(PAGE) is RmpState.PRE_GUEST

    def test_a_guest_without_an_asid_dirties_none(self, machine: Machine) -> None:
        machine.context_page()
        machine.psp.decommission(GCTX)
        assert machine.psp.df_flush() == OK


class TestGuestStatus:
    STATUS = 0x5000

    def status(self, machine: Machine) -> snp_guest_status:
        assert machine.psp.guest_status(GCTX, self.STATUS) == OK
        return snp_guest_status.unpack_from(machine.memory.read(self.STATUS, snp_guest_status.SIZE))

    def test_reports(self, machine: Machine) -> None:
        assert snp_guest_status.SIZE == 32
        machine.rmp.rmpupdate(self.STATUS >> 12, assigned=True, immutable=True)
        machine.context_page()
        assert self.status(machine) == snp_guest_status()
        machine.psp.launch_start(GCTX, POLICY)
        machine.psp.activate(GCTX, ASID)
        assert self.status(machine) == snp_guest_status(policy=POLICY, asid=ASID, state=1)
        machine.psp.launch_finish(GCTX, vcek_disabled=True)
        assert self.status(machine) == snp_guest_status(policy=POLICY, asid=ASID, state=2, flags=1)

    def test_page(self, machine: Machine) -> None:
        machine.context_page()
        assert machine.psp.guest_status(GCTX, self.STATUS) == PspStatus.INVALID_PAGE_STATE
        assert machine.psp.guest_status(GCTX, COVERED << 12) == OK  # no RMP entry: DEFAULT

    def test_may_not_cross_a_page(self, cold: Machine) -> None:
        assert cold.psp.guest_status(GCTX, 0x5FE1) == PspStatus.INVALID_PARAM
        assert cold.psp.guest_status(GCTX, 0x5FE0) == PspStatus.INVALID_PLATFORM_STATE


def test_same_seed_same_keys() -> None:
    keys = []
    for seed in (1, 1, 2):
        machine = Machine(seed=seed)
        guest = machine.guest()
        keys.append((guest.vmpck, guest.report_id))
        machine.close()
    assert keys[0] == keys[1] != keys[2]
    assert len(set(keys[0][0])) == 4


def test_a_launch_in_steps_marks_the_context_and_each_page() -> None:
    rt = Stepping()
    machine = Machine(rt)
    machine.guest()
    machine.pre_guest(count=2)
    rt.marks.clear()
    assert machine.psp.launch_update(GCTX, PAGE, 1, count=2) == (OK, 2)
    written = [what for kind, what in rt.marks if kind == "w"]
    assert written == [("gctx", GCTX), ("rmp", PAGE), ("gctx", GCTX), ("rmp", PAGE + 1)]
    assert ("r", ("rmp", GCTX)) in rt.marks
    assert ("r", ("rmp", PAGE)) in rt.marks
    machine.close()

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gmemu.hw.snp.cpu import GENOA
from gmemu.hw.snp.firmware import PlatformState
from gmemu.hw.snp.guest_context import GuestState
from gmemu.uapi.sev import (
    SNP_POLICY_MASK_DEBUG,
    SNP_POLICY_MASK_MIGRATE_MA,
    SNP_POLICY_MASK_PAGE_SWAP_DISABLE,
    SNP_POLICY_MASK_RSVD_MBO,
    SNP_POLICY_MASK_SINGLE_SOCKET,
    SNP_POLICY_MASK_SMT,
    PspStatus,
)

from .machine import GCTX, OK, POLICY, Machine

AGENT = 2


@pytest.fixture
def init(machine: Machine) -> Machine:
    """A machine with a guest in INIT."""
    machine.context_page()
    return machine


def test_init_to_launch(init: Machine) -> None:
    guest = init.psp.contexts[GCTX]
    assert init.psp.launch_start(GCTX, POLICY, gosvw=b"g" * 16, desired_tsc_khz=2_000_000) == OK
    assert guest.state is GuestState.LAUNCH
    assert (guest.policy, guest.gosvw, guest.desired_tsc_khz) == (POLICY, b"g" * 16, 2_000_000)
    assert guest.ld.value == bytes(48)
    assert guest.asid == 0
    assert guest.report_id_ma == b"\xff" * 32
    assert len({guest.oek, guest.vmrk, guest.report_id, *guest.vmpck}) == 7


@pytest.mark.parametrize(
    ("policy", "fine"),
    [
        (POLICY, True),
        (0, False),
        (SNP_POLICY_MASK_SMT, False),  # bit 17 must be one
        (SNP_POLICY_MASK_RSVD_MBO, False),  # SMT is on
        (POLICY | 1 << 8 | 58, True),
        (POLICY | 1 << 8 | 59, False),
        (POLICY | 0xFF, True),  # an older major version, whatever its minor
        (POLICY | 2 << 8, False),
        (POLICY | SNP_POLICY_MASK_DEBUG | SNP_POLICY_MASK_SINGLE_SOCKET | SNP_POLICY_MASK_MIGRATE_MA, True),
        (POLICY | SNP_POLICY_MASK_PAGE_SWAP_DISABLE, True),
        (POLICY | SNP_POLICY_MASK_PAGE_SWAP_DISABLE << 1, False),
        (POLICY | 1 << 63, False),
    ],
)
def test_policy(init: Machine, policy: int, fine: bool) -> None:
    assert init.psp.launch_start(GCTX, policy) == (OK if fine else PspStatus.POLICY_FAILURE)
    assert init.psp.contexts[GCTX].state is (GuestState.LAUNCH if fine else GuestState.INIT)


def test_without_smt() -> None:
    machine = Machine(cpu=GENOA._replace(smt=False))
    machine.context_page()
    assert machine.psp.launch_start(GCTX, SNP_POLICY_MASK_RSVD_MBO) == OK
    machine.close()


def test_order(machine: Machine) -> None:
    psp = machine.psp
    psp.state = PlatformState.UNINIT
    assert psp.launch_start(GCTX, 0, reserved=1) == PspStatus.INVALID_PARAM
    assert psp.launch_start(GCTX, 0) == PspStatus.INVALID_PLATFORM_STATE
    psp.state = PlatformState.INIT
    assert psp.launch_start(GCTX, 0) == PspStatus.INVALID_GUEST
    machine.guest()
    assert psp.launch_start(GCTX, 0, ma_gctx_pfn=AGENT) == PspStatus.INVALID_GUEST_STATE
    psp.decommission(GCTX)
    psp.gctx_create(GCTX)
    assert psp.launch_start(GCTX, 0, ma_gctx_pfn=AGENT) == PspStatus.INVALID_GUEST
    assert psp.launch_start(GCTX, 0) == PspStatus.POLICY_FAILURE


class TestMigrationAgent:
    MIGRATE = POLICY | SNP_POLICY_MASK_MIGRATE_MA

    def test_bound(self, init: Machine) -> None:
        agent = init.guest(AGENT)
        assert init.psp.launch_start(GCTX, self.MIGRATE, ma_gctx_pfn=AGENT, imi=True) == OK
        guest = init.psp.contexts[GCTX]
        assert (guest.ma_gctx_pfn, guest.report_id_ma, guest.imi_en) == (AGENT, agent.report_id, True)

    def test_policy_must_allow_it(self, init: Machine) -> None:
        init.guest(AGENT)
        assert init.psp.launch_start(GCTX, POLICY, ma_gctx_pfn=AGENT) == PspStatus.POLICY_FAILURE

    def test_agent_may_not_have_one(self, init: Machine) -> None:
        init.guest(AGENT).ma_gctx_pfn = 3
        assert init.psp.launch_start(GCTX, self.MIGRATE, ma_gctx_pfn=AGENT) == PspStatus.POLICY_FAILURE

    def test_one_socket_for_both(self, init: Machine) -> None:
        single = self.MIGRATE | SNP_POLICY_MASK_SINGLE_SOCKET
        agent = init.guest(AGENT)
        assert init.psp.launch_start(GCTX, single, ma_gctx_pfn=AGENT) == PspStatus.POLICY_FAILURE
        agent.policy |= SNP_POLICY_MASK_SINGLE_SOCKET
        assert init.psp.launch_start(GCTX, single, ma_gctx_pfn=AGENT) == OK

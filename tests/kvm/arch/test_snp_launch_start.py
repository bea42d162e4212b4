# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SEV_SNP_LAUNCH_START: its checks in order, the policy by profile, and what a failed one leaves."""

from __future__ import annotations

from errno import EFAULT, EINVAL, EIO, ENOTTY
from typing import Any

import pytest

from gmemu.hw.snp.guest_context import GuestState
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.kvm.arch import snp_launch
from gmemu.uapi.sev import (
    SNP_POLICY_MASK_API_MAJOR,
    SNP_POLICY_MASK_CIPHERTEXT_HIDING_DRAM,
    SNP_POLICY_MASK_CXL_ALLOW,
    SNP_POLICY_MASK_DEBUG,
    SNP_POLICY_MASK_MEM_AES_256_XTS,
    SNP_POLICY_MASK_MIGRATE_MA,
    SNP_POLICY_MASK_PAGE_SWAP_DISABLE,
    SNP_POLICY_MASK_RAPL_DIS,
    SNP_POLICY_MASK_RSVD_MBO,
    SNP_POLICY_MASK_SINGLE_SOCKET,
    SNP_POLICY_MASK_SMT,
    SVM_SEV_FEAT_SECURE_TSC,
    PspCommand,
    PspStatus,
    SevCmd,
    kvm_sev_snp_launch_start,
)

from .snp_world import BAD_ADDRESS, POLICY, Flaw, World, in_order, inject

UNCHANGED = 0xABCD
SINCE_7_3 = (
    SNP_POLICY_MASK_CXL_ALLOW
    | SNP_POLICY_MASK_MEM_AES_256_XTS
    | SNP_POLICY_MASK_RAPL_DIS
    | SNP_POLICY_MASK_CIPHERTEXT_HIDING_DRAM
    | SNP_POLICY_MASK_PAGE_SWAP_DISABLE
)

FLAWS = [
    Flaw("snp.start.vm-type"),
    Flaw("mm.uaccess"),
    Flaw("snp.start.again", spoil=lambda world: world.start()),
    Flaw("snp.start.flags", {"flags": 1}),
    Flaw("snp.start.policy", {"policy": POLICY | SNP_POLICY_MASK_MIGRATE_MA}),
    Flaw("snp.start.policy-required", {"policy": SNP_POLICY_MASK_SMT}),
    Flaw("snp.start.context", options={"sev_fd": 999}),
    Flaw("snp.firmware", spoil=lambda world: inject(world, PspCommand.LAUNCH_START, PspStatus.HWERROR_PLATFORM)),
]


IMPOSSIBLE = {"snp.start.vm-type", "snp.start.again"}
ERRNOS = {"snp.start.vm-type": ENOTTY, "snp.start.context": ENOTTY, "mm.uaccess": EFAULT, "snp.firmware": EIO}


@pytest.mark.parametrize("flaws", [f for f in in_order(FLAWS) if {flaw.rule for flaw in f} != IMPOSSIBLE], ids=repr)
def test_checks_in_order(world: World, flaws: list[Flaw]) -> None:
    rules = [flaw.rule for flaw in flaws]
    if "snp.start.vm-type" not in rules:
        assert world.init2()[0] == ""
    fields: dict[str, Any] = {"policy": POLICY}
    options: dict[str, Any] = {}
    for flaw in flaws:
        flaw.spoil(world)
        fields.update(flaw.fields)
        options.update(flaw.options)
    if {"snp.start.policy", "snp.start.policy-required"} <= set(rules):
        fields["policy"] = SNP_POLICY_MASK_MIGRATE_MA
    data = BAD_ADDRESS if "mm.uaccess" in rules else kvm_sev_snp_launch_start(**fields)
    reply = world.command(SevCmd.SNP_LAUNCH_START, data, error=UNCHANGED, **options)
    assert reply.rule == rules[0]
    assert reply.errno == ERRNOS.get(reply.rule, EINVAL)
    assert reply.error == (PspStatus.HWERROR_PLATFORM if reply.rule == "snp.firmware" else UNCHANGED)
    assert len(world.platform.psp.contexts) == rules.count("snp.start.again")


def test_success(world: World) -> None:
    world.init2()
    assert world.command(SevCmd.SNP_LAUNCH_START, kvm_sev_snp_launch_start(policy=POLICY), error=UNCHANGED)[:3] == ("", 0, 0)
    guest = world.context
    assert (guest.state, guest.asid, guest.policy) == (GuestState.LAUNCH, world.arch.asid, POLICY)
    assert guest.desired_tsc_khz == 0
    assert world.arch.snp_context is not None
    assert world.platform.rmp.state(world.arch.snp_context) is RmpState.CONTEXT


def test_gosvw_goes_to_the_firmware(inplace: World) -> None:
    inplace.init2()
    inplace.start(gosvw=bytes(range(16)))
    assert inplace.context.gosvw == bytes(range(16))


def test_secure_tsc_sets_the_frequency(inplace: World) -> None:
    inplace.init2(vmsa_features=SVM_SEV_FEAT_SECURE_TSC)
    inplace.start()
    assert inplace.context.desired_tsc_khz == snp_launch.DEFAULT_TSC_KHZ


@pytest.mark.parametrize("bit", range(64))
def test_policy_bits(world: World, bit: int) -> None:
    """Which the kernel knows; what is left the firmware judges."""
    world.init2()
    narrow = SNP_POLICY_MASK_RSVD_MBO | SNP_POLICY_MASK_SMT | SNP_POLICY_MASK_DEBUG | 0xFFFF
    known = {
        "linux-6.12": narrow,
        "linux-6.18": narrow | SNP_POLICY_MASK_SINGLE_SOCKET,
    }.get(world.profile.name, narrow | SNP_POLICY_MASK_SINGLE_SOCKET | SINCE_7_3)
    rule, _, error = world.start(policy=POLICY | 1 << bit)
    if not known >> bit & 1:
        assert rule == "snp.start.policy"
    elif SNP_POLICY_MASK_API_MAJOR >> bit & 1 and bit > 8:
        assert (rule, error) == ("snp.firmware", PspStatus.POLICY_FAILURE), "the firmware is of version 1"
    else:
        assert (rule, error) == ("", 0)


def test_a_policy_without_smt(world: World) -> None:
    """Linux 6.12 refuses it; later the firmware does, as SMT is on."""
    world.init2()
    rule, errno, error = world.start(policy=SNP_POLICY_MASK_RSVD_MBO)
    if world.profile.name == "linux-6.12":
        assert (rule, errno, error) == ("snp.start.policy-required", EINVAL, 0)
    else:
        assert (rule, errno, error) == ("snp.firmware", EIO, PspStatus.POLICY_FAILURE)
    assert world.start() == ("", 0, 0)


@pytest.mark.parametrize("command", [PspCommand.GCTX_CREATE, PspCommand.LAUNCH_START, PspCommand.ACTIVATE])
def test_a_failed_start_can_be_repeated(world: World, command: PspCommand) -> None:
    world.init2()
    allocated = world.host.memmap.nr_allocated
    inject(world, command, PspStatus.RESOURCE_LIMIT)
    refused = ("snp.start.context", ENOTTY) if command is PspCommand.GCTX_CREATE else ("snp.firmware", EIO)
    assert world.start() == (*refused, PspStatus.RESOURCE_LIMIT)
    assert not world.platform.psp.contexts
    assert world.host.memmap.nr_allocated == allocated
    world.platform.psp.inject = None
    assert world.start() == ("", 0, 0)


def test_no_page_for_the_context(inplace: World) -> None:
    """The processor won't have the page: it's lost, and the errno is that of every failure here."""
    inplace.init2()
    inplace.platform.rmp.in_use.update(range(inplace.host.memmap._next, inplace.host.memmap._next + 100))
    inplace.host.memmap._free.clear()
    assert inplace.start() == ("snp.start.context", ENOTTY, 0)
    inplace.platform.rmp.in_use.clear()
    assert inplace.start() == ("", 0, 0)


def test_out_of_memory_for_the_context(inplace: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inplace.init2()
    with monkeypatch.context() as patch:
        patch.setattr(inplace.host.memmap, "nr_pages", 0)
        assert inplace.start() == ("snp.start.context", ENOTTY, 0)


def test_a_context_that_the_firmware_keeps(inplace: World) -> None:
    """A start that fails has its context decommissioned; if that fails too, the VM has one for good."""
    inplace.init2()
    answers = {PspCommand.ACTIVATE: PspStatus.RESOURCE_LIMIT, PspCommand.DECOMMISSION: PspStatus.HWERROR_UNSAFE}
    inplace.platform.psp.inject = lambda command, pfn: answers.get(command)
    assert inplace.start() == ("snp.firmware", EIO, PspStatus.RESOURCE_LIMIT)
    assert inplace.platform.warnings
    assert inplace.start()[0] == "snp.start.again"


def test_another_guest_may_not_have_the_asid(inplace: World) -> None:
    """KVM hands out an ASID once, so this takes a firmware that was told otherwise."""
    inplace.started()
    other = inplace.create_vm()
    inplace.init2(other)
    [arch] = [vm.arch for vm in inplace.host.vms if isinstance(vm.arch, type(inplace.arch)) and vm.arch.asid == 2]
    arch.asid = 1
    assert inplace.start(other) == ("snp.firmware", EIO, PspStatus.ASID_OWNED)
    arch.asid = 2

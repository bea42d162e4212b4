# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SEV_SNP_LAUNCH_FINISH: its checks in order, what the firmware makes of an ID block, and what comes after."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EFAULT, EINVAL, EIO, ENOTTY, EOPNOTSUPP
from hashlib import sha384
from typing import Any

import pytest

from gmemu import ExitReason, KernelError
from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.guest_context import GuestState
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.uapi.kvm_x86 import kvm_regs, kvm_sregs
from gmemu.uapi.sev import (
    PspCommand,
    PspStatus,
    SevCmd,
    kvm_sev_snp_launch_finish,
    snp_ecdsa_pubkey,
    snp_ecdsa_sig,
    snp_id_auth,
    snp_id_block,
)

from .snp_world import BAD_ADDRESS, BASE, POLICY, Flaw, World, in_order, inject, noise

UNCHANGED = 0xABCD


def protect(world: World) -> None:
    """A FINISH that fails when the vCPU's state was encrypted already."""
    inject(world, PspCommand.LAUNCH_FINISH, PspStatus.HWERROR_PLATFORM)
    assert world.finish()[0] == "snp.firmware"
    world.platform.psp.inject = None


# The flaws of the second half are seen when the VMSAs are done, and so each is tried with none.
FLAWS = [
    Flaw("snp.finish.vm-type"),
    Flaw("snp.finish.context"),
    Flaw("mm.uaccess"),
    Flaw("snp.finish.flags", {"flags": 1}),
    Flaw("snp.finish.vmsa-done", spoil=protect),
    Flaw("snp.finish.no-blob", {"id_block_en": 1}),
    Flaw("snp.firmware", spoil=lambda world: inject(world, PspCommand.LAUNCH_FINISH, PspStatus.HWERROR_PLATFORM)),
]
IMPOSSIBLE = ({"snp.finish.vm-type", "snp.finish.vmsa-done"}, {"snp.finish.context", "snp.finish.vmsa-done"})
ERRNOS = {"snp.finish.vm-type": ENOTTY, "mm.uaccess": EFAULT, "snp.firmware": EIO}


@pytest.mark.parametrize("flaws", [f for f in in_order(FLAWS) if {flaw.rule for flaw in f} not in IMPOSSIBLE], ids=repr)
def test_checks_in_order(world: World, flaws: list[Flaw]) -> None:
    rules = [flaw.rule for flaw in flaws]
    if "snp.finish.vm-type" not in rules:
        world.init2()
        if "snp.finish.vmsa-done" in rules:
            world.add_vcpu()
        if "snp.finish.context" not in rules:
            world.start()
    for flaw in flaws:
        flaw.spoil(world)
    params = kvm_sev_snp_launch_finish(**{k: v for flaw in flaws for k, v in flaw.fields.items()})
    data = BAD_ADDRESS if "mm.uaccess" in rules else params
    reply = world.command(SevCmd.SNP_LAUNCH_FINISH, data, error=UNCHANGED)
    assert reply.rule == rules[0]
    assert reply.errno == ERRNOS.get(reply.rule, EINVAL)
    assert reply.error == (PspStatus.HWERROR_PLATFORM if reply.rule == "snp.firmware" else UNCHANGED)
    assert not world.arch.pre_fault_allowed


def test_success(world: World) -> None:
    world.started(vcpus=2)
    host_data = bytes(range(32))
    assert world.finish(error=UNCHANGED, host_data=host_data, vcek_disabled=1) == ("", 0, 0)
    guest = world.context
    assert (guest.state, guest.host_data, guest.vcek_dis) == (GuestState.RUNNING, host_data, True)
    for pfn in world.arch.vmsa_pfns.values():
        entry = world.platform.rmp.lookup(pfn)
        assert entry is not None
        assert entry.vmsa
        assert entry.gfn(pfn) == 0xFFFFFFFFF
        assert world.platform.rmp.state(pfn) is RmpState.GUEST_VALID


def test_twice(world: World) -> None:
    """With vCPUs it fails on the first of them, without by the firmware."""
    world.finished(vcpus=1)
    assert world.finish(error=UNCHANGED) == ("snp.finish.vmsa-done", EINVAL, UNCHANGED)
    other = World(world.profile.name).finished(vcpus=0)
    assert other.finish() == ("snp.firmware", EIO, PspStatus.INVALID_GUEST_STATE)
    other.close()


def test_debug_registers_must_be_at_rest(inplace: World) -> None:
    inplace.started(vcpus=1)
    [vcpu] = inplace.host.vms[0].vcpus
    vcpu.debugregs.dr7 = 0x401
    assert inplace.finish()[0] == "snp.finish.vmsa-done"
    vcpu.debugregs.dr7 = 0x400
    assert inplace.finish()[0] == ""


# Which /dev/sev


def test_vmsas_go_by_the_commands_descriptor_and_finish_by_that_of_start(world: World) -> None:
    world.started()
    assert world.finish(sev_fd=999) == ("", 0, 0), "without vCPUs it isn't looked at"
    other = World(world.profile.name).started(vcpus=1)
    assert other.finish(sev_fd=999, error=UNCHANGED) == ("snp.sev-fd", EBADF, UNCHANGED)
    [pfn] = other.arch.vmsa_pfns.values()
    assert other.platform.rmp.state(pfn) is RmpState.HYPERVISOR
    assert other.finish() == ("", 0, 0), "nothing was encrypted yet"
    other.close()


def test_the_descriptor_of_start_was_closed(world: World) -> None:
    world.started()
    world.door.close(world.sev_fd)
    fresh = world.door.open("/dev/kvm")
    assert fresh == world.sev_fd
    assert world.finish(error=UNCHANGED) == ("snp.sev-fd", EBADF, UNCHANGED)
    world.door.close(fresh)
    assert world.door.open("/dev/sev") == world.sev_fd
    assert world.finish() == ("", 0, 0), "a number is all that KVM remembers"


# A FINISH that fails when VMSAs are done


def test_failing_after_the_vmsas_is_terminal(world: World) -> None:
    """The registers can't be had back, so they can't be measured again."""
    world.started(vcpus=2)
    inject(world, PspCommand.LAUNCH_FINISH, PspStatus.HWERROR_PLATFORM)
    assert world.finish() == ("snp.firmware", EIO, PspStatus.HWERROR_PLATFORM)
    world.platform.psp.inject = None
    digest = world.context.ld.value
    for _ in range(2):
        assert world.finish() == ("snp.finish.vmsa-done", EINVAL, 0)
    assert world.context.ld.value == digest
    assert world.context.state is GuestState.LAUNCH
    with pytest.raises(KernelError) as refused:
        _ = world.vcpus[0].regs
    assert refused.value.rule.id == "kvm.regs.protected"


def test_failing_at_the_second_vmsa(world: World) -> None:
    """The first is done, the second is the host's again; FINISH stops at the first from then on."""
    world.started(vcpus=3)
    inject(world, PspCommand.LAUNCH_UPDATE, PspStatus.RESOURCE_LIMIT, nth=2)
    assert world.finish() == ("snp.firmware", EIO, PspStatus.RESOURCE_LIMIT)
    states = [world.platform.rmp.state(pfn) for pfn in world.arch.vmsa_pfns.values()]
    assert states == [RmpState.GUEST_VALID, RmpState.HYPERVISOR, RmpState.HYPERVISOR]
    assert [vcpu.guest_state_protected for vcpu in world.host.vms[0].vcpus] == [True, False, False]
    world.platform.psp.inject = None
    assert world.finish()[0] == "snp.finish.vmsa-done"


def test_the_processor_refuses_a_vmsa(world: World) -> None:
    """A page in use, which only hardware can make it: EFAULT."""
    world.started(vcpus=1)
    [pfn] = world.arch.vmsa_pfns.values()
    world.platform.rmp.set_in_use(pfn, True)
    assert world.finish(error=UNCHANGED) == ("snp.rmpupdate", EFAULT, UNCHANGED)
    world.platform.rmp.set_in_use(pfn, False)
    assert world.finish() == ("", 0, 0)


# ID blocks


class Owner:
    """A guest owner with a key, and one who vouches for it."""

    def __init__(self) -> None:
        pytest.importorskip("cryptography")
        from cryptography.hazmat.primitives.asymmetric import ec

        self.id_key = ec.derive_private_key(0x1234567, ec.SECP384R1())
        self.author_key = ec.derive_private_key(0x7654321, ec.SECP384R1())

    @staticmethod
    def public(key: Any) -> snp_ecdsa_pubkey:
        point = key.public_key().public_numbers()
        return snp_ecdsa_pubkey(curve=2, qx=point.x.to_bytes(72, "little"), qy=point.y.to_bytes(72, "little"))

    @staticmethod
    def sign(key: Any, message: bytes) -> snp_ecdsa_sig:
        from cryptography.hazmat.primitives.asymmetric import ec, utils
        from cryptography.hazmat.primitives.hashes import SHA384

        r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(SHA384())))
        return snp_ecdsa_sig(r=r.to_bytes(72, "little"), s=s.to_bytes(72, "little"))

    def papers(self, block: snp_id_block) -> snp_id_auth:
        """The authentication page for `block`."""
        public = self.public(self.id_key)
        return snp_id_auth(
            id_key_algo=1,
            auth_key_algo=1,
            id_block_sig=self.sign(self.id_key, block.pack()),
            id_key=public,
            id_key_sig=self.sign(self.author_key, public.pack()),
            author_key=self.public(self.author_key),
        )


def prepare(world: World) -> tuple[Owner, snp_id_block]:
    """A launch that only needs its papers, and the block that describes it."""
    owner = Owner()
    world.started()
    world.load(0, noise())
    return owner, snp_id_block(ld=world.context.ld.value, policy=POLICY, version=1, guest_svn=3, family_id=b"f" * 16)


def finish_with(world: World, block: snp_id_block, auth: snp_id_auth, **fields: Any) -> tuple[str, int, int]:
    blobs = world.kvm.anonymous(2 * PAGE_SIZE)
    blobs[: block.SIZE] = block.pack()
    blobs[PAGE_SIZE : PAGE_SIZE + auth.SIZE] = auth.pack()
    where = {"id_block_uaddr": blobs.address, "id_auth_uaddr": blobs.address + PAGE_SIZE}
    return world.finish(**{"id_block_en": 1, "auth_key_en": 1, "error": UNCHANGED, **where, **fields})


def test_id_block_accepted(world: World) -> None:
    owner, block = prepare(world)
    auth = owner.papers(block)
    assert finish_with(world, block, auth) == ("", 0, 0)
    guest = world.context
    assert (guest.id_block, guest.id_block_en, guest.auth_key_en) == (block.pack(), True, True)
    assert guest.id_key_digest == sha384(auth.id_key.pack()).digest()
    assert guest.author_key_digest == sha384(auth.author_key.pack()).digest()


def test_id_block_without_an_author(inplace: World) -> None:
    owner, block = prepare(inplace)
    auth = owner.papers(block)
    auth.auth_key_algo, auth.id_key_sig = 7, snp_ecdsa_sig()
    assert finish_with(inplace, block, auth, auth_key_en=0) == ("", 0, 0)
    assert inplace.context.author_key_digest == bytes(48)


def test_auth_key_means_nothing_without_a_block(inplace: World) -> None:
    inplace.started()
    assert inplace.finish(auth_key_en=1, id_block_uaddr=BAD_ADDRESS, id_auth_uaddr=BAD_ADDRESS) == ("", 0, 0)
    assert not inplace.context.auth_key_en


def wrong_digest(block: snp_id_block, auth: snp_id_auth) -> None:
    block.ld = bytes(48)


def wrong_policy(block: snp_id_block, auth: snp_id_auth) -> None:
    block.policy |= 1 << 19


def wrong_algorithm(block: snp_id_block, auth: snp_id_auth) -> None:
    auth.id_key_algo = 2


def wrong_author_algorithm(block: snp_id_block, auth: snp_id_auth) -> None:
    auth.auth_key_algo = 0


def wrong_signature(block: snp_id_block, auth: snp_id_auth) -> None:
    block.guest_svn += 1


def wrong_key(block: snp_id_block, auth: snp_id_auth) -> None:
    auth.id_key.qx = bytes(71) + b"\1"


def wrong_author(block: snp_id_block, auth: snp_id_auth) -> None:
    auth.id_key_sig = auth.id_block_sig


PAPER_FLAWS = [
    (wrong_digest, PspStatus.BAD_MEASUREMENT),
    (wrong_policy, PspStatus.POLICY_FAILURE),
    (wrong_algorithm, PspStatus.INVALID_PARAM),
    (wrong_author_algorithm, PspStatus.INVALID_PARAM),
    (wrong_key, PspStatus.BAD_SIGNATURE),
    (wrong_author, PspStatus.BAD_SIGNATURE),
]


@pytest.mark.parametrize(
    ("flaw", "status"), [*PAPER_FLAWS, (wrong_signature, PspStatus.BAD_SIGNATURE)], ids=lambda v: getattr(v, "__name__", "")
)
def test_id_block_refused(world: World, flaw: Callable[[snp_id_block, snp_id_auth], None], status: PspStatus) -> None:
    """And with no vCPU, so that it isn't terminal, the right papers are accepted afterwards."""
    owner, block = prepare(world)
    auth = owner.papers(block)
    flaw(block, auth)
    assert finish_with(world, block, auth) == ("snp.firmware", EIO, status)
    assert not world.arch.pre_fault_allowed
    right = snp_id_block(ld=world.context.ld.value, policy=POLICY)
    assert finish_with(world, right, owner.papers(right)) == ("", 0, 0)


@pytest.mark.parametrize("first", range(len(PAPER_FLAWS)))
@pytest.mark.parametrize("second", range(len(PAPER_FLAWS)))
def test_id_block_checks_in_order(inplace: World, first: int, second: int) -> None:
    owner, block = prepare(inplace)
    auth = owner.papers(block)
    for flaw, _ in (PAPER_FLAWS[first], PAPER_FLAWS[second]):
        flaw(block, auth)
    assert finish_with(inplace, block, auth)[2] == PAPER_FLAWS[min(first, second)][1]


def test_missing_blobs(world: World) -> None:
    """0 is refused before it's read; KVM reads the block first."""
    owner, block = prepare(world)
    auth = owner.papers(block)
    assert finish_with(world, block, auth, id_block_uaddr=0) == ("snp.finish.no-blob", EINVAL, UNCHANGED)
    assert finish_with(world, block, auth, id_auth_uaddr=0) == ("snp.finish.no-blob", EINVAL, UNCHANGED)
    assert finish_with(world, block, auth, id_block_uaddr=BAD_ADDRESS, id_auth_uaddr=0)[0] == "mm.uaccess"
    assert finish_with(world, block, auth, id_auth_uaddr=BAD_ADDRESS) == ("mm.uaccess", EFAULT, UNCHANGED)


# What FINISH changes


def test_registers_are_out_of_reach(world: World) -> None:
    world.started(vcpus=1)
    vcpu = world.vcpus[0]
    vcpu.regs, vcpu.sregs = vcpu.regs, vcpu.sregs
    assert world.finish()[0] == ""
    calls: list[Callable[[], object]] = [
        lambda: vcpu.regs,
        lambda: vcpu.sregs,
        lambda: setattr(vcpu, "regs", kvm_regs()),
        lambda: setattr(vcpu, "sregs", kvm_sregs()),
    ]
    for call in calls:
        with pytest.raises(KernelError) as refused:
            call()
        assert (refused.value.errno, refused.value.rule.id) == (EINVAL, "kvm.regs.protected")


def test_pre_faulting(world: World) -> None:
    world.started(vcpus=1)
    world.convert(0, 2, private=True)
    vcpu = world.vcpus[0]
    for gpa, size in ((BASE, 2 * PAGE_SIZE), (0, PAGE_SIZE)):
        with pytest.raises(KernelError) as early:
            vcpu.pre_fault(gpa, size)
        assert (early.value.errno, early.value.rule.id) == (EOPNOTSUPP, "kvm.pre-fault.early")
    assert world.finish()[0] == ""
    assert vcpu.pre_fault(BASE, 2 * PAGE_SIZE) == 0
    assert [world.state(page) for page in (0, 1)] == [RmpState.GUEST_INVALID] * 2


def test_a_vcpu_made_after_finish_has_no_vmsa(world: World) -> None:
    world.finished(vcpus=1)
    late = world.add_vcpu(1)
    assert late.run(lambda cpu: None).reason is ExitReason.FAIL_ENTRY
    assert world.vcpus[0].run(lambda cpu: None).reason is ExitReason.HLT

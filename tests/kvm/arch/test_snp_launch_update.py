# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SEV_SNP_LAUNCH_UPDATE: its checks in order, and how every failure of a page comes out as EIO."""

from __future__ import annotations

from errno import EFAULT, EINVAL, EIO
from typing import Any

import pytest

from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.uapi.mman import PROT_NONE, PROT_READ, PROT_WRITE
from gmemu.uapi.sev import PspCommand, PspStatus, SevCmd, SnpPageType, kvm_sev_snp_launch_update

from .snp_world import BAD_ADDRESS, BASE, GFN, Flaw, World, in_order, inject, noise

UNCHANGED = 0xABCD
PLAIN_SLOT = 0x10000
"""A slot without guest_memfd (gfn)."""
NOWHERE = 0x20000


def add_plain_slot(world: World) -> None:
    """Memory without guest_memfd."""
    world.vm.set_user_memory_region2(9, PLAIN_SLOT * PAGE_SIZE, PAGE_SIZE, userspace_addr=world.scratch.address)


# What is wrong with the call

FLAWS = [
    Flaw("snp.update.context"),
    Flaw("mm.uaccess"),
    Flaw("snp.update.length", {"len": PAGE_SIZE + 1}),
    Flaw("snp.update.flags", {"flags": 1}),
    Flaw("snp.update.type", {"type": 2}),
    Flaw("snp.update.no-source", {"uaddr": 0}),
    Flaw("snp.update.source-unaligned", {"uaddr": 8}),
    Flaw("snp.update.slot", {"gfn_start": NOWHERE}),
    Flaw("snp.update.failed", spoil=lambda world: inject(world, PspCommand.LAUNCH_UPDATE, PspStatus.HWERROR_PLATFORM)),
]


def expected_rule(world: World, flaws: list[Flaw]) -> str:
    """The first that this kernel checks: a missing or unaligned source is looked at since 7.2, and 0 is allowed in place."""
    gup_first, in_place = world.profile.populate == "gup-first", world.profile.in_place
    for flaw in flaws:
        if flaw.rule == "snp.update.no-source" and not (gup_first and not in_place):
            continue
        if flaw.rule == "snp.update.source-unaligned" and not gup_first:
            continue
        return flaw.rule
    return ""


IMPOSSIBLE = {"snp.update.no-source", "snp.update.source-unaligned"}


@pytest.mark.parametrize("flaws", [f for f in in_order(FLAWS) if {flaw.rule for flaw in f} != IMPOSSIBLE], ids=repr)
def test_checks_in_order(world: World, flaws: list[Flaw]) -> None:
    rules = [flaw.rule for flaw in flaws]
    world.init2()
    if "snp.update.context" not in rules:
        world.start()
    world.convert(0, private=True)
    fields: dict[str, Any] = {"gfn_start": GFN, "len": PAGE_SIZE, "type": 1, "uaddr": world.source(2).address}
    for flaw in reversed(flaws):
        flaw.spoil(world)
        fields.update(flaw.fields)
    if "snp.update.source-unaligned" in rules and fields["uaddr"] == 8:
        fields["uaddr"] += world.source(2).address
    data = BAD_ADDRESS if "mm.uaccess" in rules else kvm_sev_snp_launch_update(**fields)
    reply = world.command(SevCmd.SNP_LAUNCH_UPDATE, data, error=UNCHANGED)
    rule = expected_rule(world, flaws)
    if not rule and rules == ["snp.update.no-source"] and not world.profile.in_place:
        rule = "snp.update.failed"  # 6.12 finds out when it has the page
    assert reply.rule == rule
    assert reply.errno == {"": 0, "mm.uaccess": EFAULT, "snp.update.failed": EIO}.get(rule, EINVAL)
    if rule == "snp.update.failed":
        no_source = "snp.update.no-source" in rules and not world.profile.in_place
        assert reply.error == (0 if no_source else PspStatus.HWERROR_PLATFORM)
    else:
        assert reply.error == UNCHANGED, "neither success nor a bad argument touches it"
    assert (world.platform.rmp.assigned_to(1) == 1) == (rule == "")


@pytest.mark.parametrize("type", range(9))
def test_types(world: World, type: int) -> None:
    world.started()
    world.convert(0, private=True)
    rule, _, _ = world.update(type=type, uaddr=world.source().address)
    if type in (1, 3, 4, 5):
        assert rule == ""
    elif type == SnpPageType.CPUID:
        assert rule == "snp.update.failed", "noise is no CPUID table"
    else:
        assert rule == "snp.update.type"


def test_length_zero(world: World) -> None:
    """Until 7.2 that is a success which does nothing, but for a slot that must be there."""
    world.started()
    rule, _, after = world.update(pages=0, uaddr=world.source().address)
    if world.profile.populate == "gup-first":
        assert rule == "snp.update.length"
        return
    assert (rule, after.len, after.gfn_start) == ("", 0, GFN)
    assert world.update(page=NOWHERE, pages=0)[0] == "snp.update.slot"
    assert world.update(pages=0, uaddr=3)[0] == ""
    assert world.update(pages=0, type=2)[0] == "snp.update.type"
    assert world.update(pages=0, flags=1)[0] == "snp.update.flags"


def test_a_slot_without_guest_memfd(world: World) -> None:
    world.started()
    add_plain_slot(world)
    assert world.update(page=PLAIN_SLOT - GFN, uaddr=world.source().address)[0] == "snp.update.slot"


def test_the_structure_is_read_only(world: World) -> None:
    """The pages are in, and user space isn't told how many."""
    world.started()
    world.convert(0, private=True)
    page, source = world.kvm.anonymous(PAGE_SIZE), world.source()
    page[: kvm_sev_snp_launch_update.SIZE] = kvm_sev_snp_launch_update(
        gfn_start=GFN, len=PAGE_SIZE, type=1, uaddr=source.address
    ).pack()
    page.protect(PROT_READ)
    reply = world.command(SevCmd.SNP_LAUNCH_UPDATE, page.address, error=UNCHANGED)
    assert (reply.rule, reply.errno, reply.error) == ("mm.uaccess", EFAULT, UNCHANGED)
    assert world.state(0) is RmpState.GUEST_VALID


# What is wrong with a page: EIO, whatever it was


def failed(world: World, **options: Any) -> int:
    """Do an update that must fail as a whole: `kvm_sev_cmd.error`.  Nothing may have changed."""
    digest = world.context.ld.value
    assigned = world.platform.rmp.assigned_to(1)
    rule, error, after = world.update(**{"error": UNCHANGED, **options})
    assert rule == "snp.update.failed"
    assert after.gfn_start == GFN + options.get("page", 0)
    assert after.len == options.get("pages", 1) * PAGE_SIZE
    assert after.uaddr == options.get("uaddr", 0)
    assert world.context.ld.value == digest
    assert world.platform.rmp.assigned_to(1) == assigned
    return error


def test_not_private(world: World) -> None:
    world.started()
    if not world.profile.in_place:
        world.convert(0, private=False)
    assert failed(world, uaddr=world.source().address) == 0


def test_added_twice(world: World) -> None:
    """EEXIST inside, so the firmware isn't asked: by "prepared" until 7.2, by the RMP since."""
    world.started()
    world.load(0, noise())
    assert failed(world, uaddr=world.source().address) == 0
    assert world.raw(0) != noise()


def test_touched_by_the_guest_first(world: World) -> None:
    """Pre-faulting isn't possible before FINISH, nor running; after it the launch is over."""
    world.finished(vcpus=1)
    world.convert(0, private=True)
    world.vcpus[0].pre_fault(BASE, PAGE_SIZE)
    assert failed(world, uaddr=world.source().address) == 0


def test_after_finish(world: World) -> None:
    world.finished()
    world.convert(0, private=True)
    assert failed(world, uaddr=world.source().address) == PspStatus.INVALID_GUEST_STATE
    assert world.state(0) is RmpState.HYPERVISOR


@pytest.mark.parametrize("status", [PspStatus.INVALID_PAGE_STATE, PspStatus.INVALID_PAGE_OWNER, PspStatus.INVALID_PAGE_SIZE])
def test_firmware_refuses(world: World, status: PspStatus) -> None:
    world.started()
    world.convert(0, 2, private=True)
    inject(world, PspCommand.LAUNCH_UPDATE, status)
    assert failed(world, pages=2, uaddr=world.source(2).address) == status
    assert world.state(0) is RmpState.HYPERVISOR
    world.platform.psp.inject = None
    assert world.update(pages=2, uaddr=world.source(2).address)[0] == "", "and it can be had again"


def test_wrong_sev_fd(world: World) -> None:
    """EBADF inside, and the page is the host's again."""
    world.started()
    world.convert(0, private=True)
    for fd in (999, world.gmem.fd, 0xFFFFFFFF):
        assert failed(world, uaddr=world.source().address, sev_fd=fd) == 0
    assert world.state(0) is RmpState.HYPERVISOR


def test_any_open_sev_device_will_do(world: World) -> None:
    world.started()
    world.convert(0, private=True)
    assert world.update(uaddr=world.source().address, sev_fd=world.door.open("/dev/sev"))[:2] == ("", 0)


def test_rmpupdate_refused(world: World) -> None:
    world.started()
    world.convert(0, private=True)
    world.gmem.allocate(0, PAGE_SIZE)
    world.platform.rmp.set_in_use(world.gmem_pfn(0), True)
    assert failed(world, uaddr=world.source().address) == 0
    world.platform.rmp.set_in_use(world.gmem_pfn(0), False)
    assert world.update(uaddr=world.source().address)[:2] == ("", 0)


def test_unreadable_source(world: World) -> None:
    world.started()
    world.convert(0, private=True)
    source = world.source()
    source.protect(PROT_NONE)
    assert failed(world, uaddr=source.address) == 0
    assert failed(world, uaddr=BAD_ADDRESS) == 0
    assert failed(world, uaddr=1 << 62) == 0


def test_a_poisoned_page(world: World) -> None:
    world.started()
    world.convert(0, private=True)
    world.gmem.allocate(0, PAGE_SIZE)
    world.host.memmap.poisoned.add(world.gmem_pfn(0))
    assert failed(world, uaddr=world.source().address) == 0
    world.gmem.punch_hole(0, PAGE_SIZE)
    assert world.update(uaddr=world.source().address)[:2] == ("", 0)


def test_closed_guest_memfd(world: World) -> None:
    """A slot whose file is gone is a slot with guest_memfd still."""
    world.started()
    if world.profile.in_place:
        world.buffer.close()
    world.gmem.close()
    assert failed(world, uaddr=world.source().address) == 0
    world.buffer = world.kvm.anonymous(PAGE_SIZE)


def test_memory_runs_out(world: World) -> None:
    """ENOMEM inside."""
    world.started()
    world.convert(0, private=True)
    source, total = world.source(), world.host.memmap.nr_pages
    world.host.memmap.nr_pages = world.host.memmap.nr_allocated + 1
    assert failed(world, uaddr=source.address) == 0
    world.host.memmap.nr_pages = total


@pytest.mark.parametrize("type", [SnpPageType.NORMAL, SnpPageType.UNMEASURED, SnpPageType.SECRETS])
def test_a_read_only_source_is_enough(world: World, type: SnpPageType) -> None:
    world.started()
    world.convert(0, private=True)
    source = world.source()
    source.protect(PROT_READ)
    assert world.update(type=type, uaddr=source.address)[:2] == ("", 0)


def test_a_source_that_was_never_touched(world: World) -> None:
    """Anonymous memory reads as zeroes; several pages of it are one zero page."""
    world.started()
    world.convert(0, 3, private=True)
    source = world.kvm.anonymous(3 * PAGE_SIZE, prot=PROT_READ | PROT_WRITE)
    assert world.update(pages=3, uaddr=source.address)[:2] == ("", 0)
    zeroes = world.context.ld.value
    other = World(world.profile.name)
    other.started()
    other.load(0, bytes(3 * PAGE_SIZE))
    assert other.context.ld.value == zeroes
    other.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Who sees what: contents across conversion, the firmware's pages, several guests at once, and where pages go in the end."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha384
from itertools import permutations

import pytest

from gmemu import BusError, ExitReason, GuestCpu, GuestMemfd, Host, KernelError, Kvm, Vm
from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.digest import Row
from gmemu.hw.snp.rmp import NestedFault, RmpState, VmplMask
from gmemu.uapi.sev import SnpPageType, snp_secrets_page

from .snp_world import BASE, GFN, PROFILES, World, noise

SECRET = b"what the host must not know"


def page(number: int) -> int:
    return BASE + number * PAGE_SIZE


def guest_writes(world: World, number: int, data: bytes) -> None:
    """The guest takes a page into use and writes to it."""

    def guest(cpu: GuestCpu) -> None:
        cpu.accept(page(number), PAGE_SIZE)
        cpu.store(page(number), data)

    assert world.serve(world.vcpus[0], guest)[-1].reason == "HLT"


def guest_reads(world: World, number: int, length: int = PAGE_SIZE, *, shared: bool = False) -> bytes:
    seen: list[bytes] = []
    stops = world.serve(world.vcpus[0], lambda cpu: seen.append(cpu.load(page(number), length, shared=shared)))
    assert stops[-1].reason == "HLT"
    return seen[0]


# Contents


def test_the_host_sees_ciphertext(world: World) -> None:
    """Past every mapping; and through its own it sees nothing, or the other pool."""
    world.finished()
    guest_writes(world, 0, SECRET)
    assert SECRET not in world.raw(0)
    assert world.raw(0) != bytes(PAGE_SIZE)
    if world.profile.in_place:
        with pytest.raises(BusError) as fault:
            _ = world.buffer[0]
        assert fault.value.rule.id == "gmem.fault.private"
    else:
        assert world.buffer[:PAGE_SIZE] == bytes(PAGE_SIZE)


def test_converted_to_shared_it_stays_ciphertext(inplace: World) -> None:
    """Before FINISH as after; the pages beside it aren't touched."""
    inplace.started(vcpus=1)
    contents = noise(3)
    inplace.load(0, contents)
    inplace.convert(1, private=False)
    seen = inplace.buffer[PAGE_SIZE : 2 * PAGE_SIZE]
    assert seen == inplace.raw(1) != contents[PAGE_SIZE : 2 * PAGE_SIZE]
    assert [inplace.state(number) for number in range(3)] == [
        RmpState.GUEST_VALID,
        RmpState.HYPERVISOR,
        RmpState.GUEST_VALID,
    ]
    inplace.finish()
    assert guest_reads(inplace, 0) == contents[:PAGE_SIZE]
    assert guest_reads(inplace, 2) == contents[2 * PAGE_SIZE :]
    guest_writes(inplace, 3, SECRET)
    inplace.convert(3, private=False)
    assert SECRET not in inplace.buffer[3 * PAGE_SIZE : 4 * PAGE_SIZE]


def test_ciphertext_that_is_loaded_again_is_what_the_guest_gets(inplace: World) -> None:
    """A VMM that converts back and loads once more measures noise, not its firmware."""
    inplace.started(vcpus=1)
    inplace.load(0, noise())
    inplace.convert(0, private=False)
    ciphertext = inplace.buffer[:PAGE_SIZE]
    inplace.convert(0, private=True)
    assert inplace.update()[:2] == ("", 0)
    inplace.finish()
    assert guest_reads(inplace, 0) == ciphertext


def test_data_is_kept_to_private_only_by_launch_update(inplace: World) -> None:
    """After FINISH the guest finds noise where the host had written words."""
    inplace.started(vcpus=1)
    inplace.load(0, SECRET.ljust(PAGE_SIZE, b"\0"))
    inplace.finish()
    inplace.buffer[PAGE_SIZE : PAGE_SIZE + len(SECRET)] = SECRET
    inplace.convert(1, private=True)
    inplace.vcpus[0].run(lambda cpu: cpu.accept(page(1), PAGE_SIZE))
    assert guest_reads(inplace, 0, len(SECRET)) == SECRET
    assert guest_reads(inplace, 1, len(SECRET)) != SECRET


def test_there_and_back_without_touching(inplace: World) -> None:
    """The RMP entry is made on first use, so a page that the guest never used comes back as it was."""
    inplace.finished()
    inplace.buffer[: len(SECRET)] = SECRET
    inplace.convert(0, private=True)
    assert inplace.state(0) is RmpState.HYPERVISOR
    inplace.convert(0, private=False)
    assert inplace.buffer[: len(SECRET)] == SECRET


def test_shared_memory_is_shared(world: World) -> None:
    world.finished()
    world.convert(0, private=False)
    world.buffer[:5] = b"hello"
    assert guest_reads(world, 0, 5, shared=True) == b"hello"
    world.vcpus[0].run(lambda cpu: cpu.store(page(0), b"howdy", shared=True))
    assert world.buffer[:5] == b"howdy"


def test_two_pools_keep_the_stale_private_page(two_pool: World) -> None:
    """A VMM that doesn't punch: the old page is still assigned and validated, and there again on the way back."""
    two_pool.finished()
    guest_writes(two_pool, 0, SECRET)
    two_pool.convert(0, private=False)
    assert guest_reads(two_pool, 0, 4, shared=True) == bytes(4)
    assert two_pool.state(0) is RmpState.GUEST_VALID
    two_pool.convert(0, private=True)
    assert guest_reads(two_pool, 0, len(SECRET)) == SECRET
    two_pool.convert(0, private=False)
    two_pool.gmem.punch_hole(0, PAGE_SIZE)
    two_pool.convert(0, private=True)
    exit_ = two_pool.vcpus[0].run(lambda cpu: cpu.load(page(0)))
    assert exit_.reason is ExitReason.SYSTEM_EVENT, "fresh, so not validated"


# What was measured is what the guest sees


@pytest.mark.parametrize("flow", ["in place", "copy"])
def test_measured_is_seen(world: World, flow: str) -> None:
    """Every page whose contents the firmware measured is, to the guest, a page with that hash."""
    world.started(vcpus=1)
    rows: list[tuple[int, Row]] = []
    world.platform.psp.log = lambda context, kind, new: rows.extend((kind, row) for row in new)
    contents = noise(6)
    if flow == "in place" and world.profile.in_place:
        world.load(0, contents)
    else:
        source = world.kvm.anonymous(len(contents))
        source[:] = contents
        world.convert(0, 6, private=True)
        assert world.update(pages=6, uaddr=source.address)[:2] == ("", 0)
        source[:] = bytes(len(contents))  # too late
    world.convert(6, 2, private=True)
    assert world.update(page=6, type=SnpPageType.ZERO)[0] == ""
    world.finish()
    measured = {gpa: digest for kind, (gpa, digest, _) in rows if kind == SnpPageType.NORMAL}
    assert sorted(measured) == [page(number) for number in range(6)]
    for number in range(6):
        assert sha384(guest_reads(world, number)).digest() == measured[page(number)]
    assert guest_reads(world, 6) == bytes(PAGE_SIZE)
    assert rows[-1][0] == SnpPageType.VMSA
    assert rows[-1][1][2] == world.context.ld.value


# Pages that the firmware makes


def test_secrets_page(world: World) -> None:
    """Whatever the source held; the keys are the guest's alone."""
    world.init2()
    world.add_vcpu()
    world.start(gosvw=b"gosvw" + bytes(11))
    world.load(0, noise(), SnpPageType.SECRETS)
    world.finish()
    secrets = snp_secrets_page.unpack_from(guest_reads(world, 0))
    keys = world.context.vmpck
    assert (secrets.version, secrets.gosvw[:5]) == (3, b"gosvw")
    assert (secrets.vmpck0, secrets.vmpck1, secrets.vmpck2, secrets.vmpck3) == keys
    assert len(set(keys)) == 4
    assert not any(key in world.raw(0) for key in keys)


@pytest.mark.parametrize("kind", [SnpPageType.NORMAL, SnpPageType.UNMEASURED, SnpPageType.ZERO])
def test_what_each_type_leaves(world: World, kind: SnpPageType) -> None:
    world.started(vcpus=1)
    world.load(0, noise(), kind)
    world.finish()
    assert guest_reads(world, 0) == (bytes(PAGE_SIZE) if kind is SnpPageType.ZERO else noise())


# Several guests


def second_guest(world: World) -> tuple[Vm, GuestMemfd]:
    """Another SNP VM, launched with contents of its own at the same addresses."""
    vm = world.create_vm()
    gmem, buffer = world.add_memory(0, BASE, 2, vm)
    assert world.init2(vm)[0] == ""
    world.add_vcpu(0, vm)
    assert world.start(vm)[0] == ""
    if world.profile.in_place:
        buffer[:PAGE_SIZE] = noise(1, seed=2)
        gmem.make_private(0, PAGE_SIZE)
    source = world.source(1, seed=2)
    assert world.update(uaddr=0 if world.profile.in_place else source.address, vm=vm)[0] == ""
    assert world.finish(vm)[0] == ""
    return vm, gmem


def test_guests_cant_read_each_other(world: World) -> None:
    world.started(vcpus=1)
    world.load(0, noise(1, seed=1))
    world.finish()
    vm, gmem = second_guest(world)
    seen: list[bytes] = []
    for vcpu in world.vcpus:
        vcpu.run(lambda cpu: seen.append(cpu.load(page(0), PAGE_SIZE)))
    assert seen == [noise(1, seed=1), noise(1, seed=2)]
    first, second = world.gmem_pfn(0), world.gmem_pfn(0, gmem)
    rmp, memory = world.platform.rmp, world.host.memory
    for pfn, owner, other in ((first, 1, 2), (second, 2, 1)):
        rmp.check_guest(pfn, GFN, owner, 0, VmplMask.READ, True)
        with pytest.raises(NestedFault, match=f"ASID {owner}"):
            rmp.check_guest(pfn, GFN, other, 0, VmplMask.READ, True)
        views = {memory.read(pfn * PAGE_SIZE, PAGE_SIZE, key) for key in (0, 1, 2)}
        assert len(views) == 3
    vm.close()


def test_a_guest_with_a_used_asid_starts_clean(world: World) -> None:
    """The pages of the guest before it were given back empty, so nothing is left for the same key to open."""
    world.finished()
    guest_writes(world, 0, SECRET)
    pfn = world.gmem_pfn(0)
    world.vcpus.pop().close()
    world.buffer.close()
    world.gmem.close()
    world.vm.close()
    world.host.lru.lru_add_drain_all()
    assert not world.platform.rmp.owned(0, world.host.memmap.nr_pages)
    assert world.host.memory.read(pfn * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    world.vm = world.create_vm()
    world.gmem, world.buffer = world.add_memory(0, BASE, 8)
    world.finished()
    assert world.arch.asid == 1
    world.convert(0, 8, private=True)
    world.vcpus[0].run(lambda cpu: cpu.accept(page(0), 8 * PAGE_SIZE))
    assert not any(SECRET in guest_reads(world, number) for number in range(8))


# The end


def test_giving_pages_back_while_running(world: World) -> None:
    world.started(vcpus=1)
    world.load(0, noise(4))
    world.finish()
    guest_writes(world, 5, SECRET)
    assert world.platform.rmp.assigned_to(1) == 6  # and the VMSA
    world.gmem.punch_hole(PAGE_SIZE, 2 * PAGE_SIZE)
    assert world.platform.rmp.assigned_to(1) == 4
    world.gmem.punch_hole(0, 8 * PAGE_SIZE)
    assert world.platform.rmp.assigned_to(1) == 1


@pytest.mark.parametrize("order", list(permutations(["vm", "gmem", "buffer", "vcpu"])), ids="-".join)
@pytest.mark.parametrize("profile", PROFILES)
def test_closing_in_any_order(profile: str, order: tuple[str, ...]) -> None:
    """Whoever is last, the RMP is empty afterwards, the context decommissioned, the ASID free."""
    world = World(profile).started(vcpus=1)
    world.load(0, noise(4))
    world.finish()
    guest_writes(world, 5, SECRET)
    close: dict[str, Callable[[], None]] = {
        "vm": world.vm.close,
        "gmem": world.gmem.close,
        "buffer": world.buffer.close,
        "vcpu": lambda: world.vcpus.pop().close(),
    }
    for name in order:
        close[name]()
    world.host.lru.lru_add_drain_all()
    assert not world.platform.rmp.owned(0, world.host.memmap.nr_pages)
    assert not world.platform.psp.contexts
    assert not world.host.vms
    world.tear_down()
    world.host.close()


def test_a_slot_whose_file_is_gone(world: World) -> None:
    """S32: the guest's pages are given back with the file; its next access is a memory fault."""
    world.finished()
    guest_writes(world, 0, SECRET)
    world.buffer.close()
    world.gmem.close()
    world.host.lru.lru_add_drain_all()
    assert world.platform.rmp.assigned_to(1) == 1
    exit_ = world.vcpus[0].run(lambda cpu: cpu.load(page(0)))
    assert (exit_.reason, exit_.wants_private) == (ExitReason.MEMORY_FAULT, True)
    assert exit_.error is not None
    assert exit_.error.rule.id == ("kvm.fault.mismatch" if world.profile.in_place else "gmem.get-pfn.closed")
    world.buffer = world.kvm.anonymous(PAGE_SIZE)


def test_forks_child_cant_use_the_vm(world: World) -> None:
    world.finished()
    child = world.door.fork()  # type: ignore[attr-defined]
    with pytest.raises(KernelError, match=r"kvm\.foreign-process"):
        child.ioctl(world.vm.fd, 0xC008AEBA, 0)
    child.exit()


def test_a_store_that_runs_into_an_assigned_page_has_written_what_came_before() -> None:
    host = Host("inplace-v13", memory=1 << 24)
    with host:
        kvm = Kvm.open_on(host)
        memory = kvm.anonymous(3 * 4096)
        memory[:] = bytes(3 * 4096)
        pte = host.init.mm.pte((memory.address >> 12) + 1)
        assert pte is not None
        host.snp.rmp_make_private(pte[0], 0, 1, immutable=False)
        with pytest.raises(BusError) as caught:
            memory[:] = b"x" * (3 * 4096)
        assert (caught.value.rule.id, caught.value.address) == ("mm.fault.rmp", memory.address + 4096)
        assert memory[:4096] == b"x" * 4096
        assert memory[8192:] == bytes(4096)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardware never does on demand: pages that the firmware keeps, RMP entries that can't be changed, and how KVM copes.

A page that can't be had back is leaked, never freed; `World.close` finds out whether anything else is left.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, EIO
from typing import Any

import pytest

from gmemu import BusError, InvariantViolation, KernelError
from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.uapi.kvm import KVM_CHECK_EXTENSION, KVM_GET_REGS
from gmemu.uapi.sev import PspCommand, PspStatus, SnpPageType

from .snp_world import BASE, World, inject, noise


def answer(world: World, **statuses: PspStatus) -> None:
    """Have the firmware answer these commands so from now on."""
    table = {PspCommand[name]: status for name, status in statuses.items()}
    world.platform.psp.inject = lambda command, pfn: table.get(command)


def leaked(world: World) -> int:
    return sum(end - start for start, end, _ in world.host.memmap.leaked.runs())


def assert_dead(world: World) -> None:
    """KVM_BUG(): no call on the VM or its vCPUs works any more."""
    vm = next(vm for vm in world.host.vms)
    assert vm.vm_dead
    assert vm.vm_bugged
    calls: list[Any] = [lambda: world.vm.ioctl(KVM_CHECK_EXTENSION, 0)]
    calls += [lambda vcpu=vcpu: vcpu.run() for vcpu in world.vcpus]
    for call in calls:
        with pytest.raises(KernelError) as dead:
            call()
        assert (dead.value.errno, dead.value.rule.id) == (EIO, "kvm.vm.dead")


@pytest.mark.parametrize("status", [PspStatus.INVALID_PAGE_STATE, PspStatus.HWERROR_PLATFORM])
def test_a_refused_page_that_cant_be_reclaimed(world: World, status: PspStatus) -> None:
    """The error that user space sees is the first one's; the VM is dead, the page lost."""
    world.started(vcpus=1)
    world.convert(0, private=True)
    answer(world, LAUNCH_UPDATE=PspStatus.INVALID_PARAM, PAGE_RECLAIM=status)
    rule, error, _ = world.update(uaddr=world.source().address)
    assert (rule, error) == ("snp.update.failed", PspStatus.INVALID_PARAM)
    assert_dead(world)
    assert leaked(world) == 1
    assert world.state(0) is RmpState.PRE_GUEST
    world.platform.psp.inject = None


def test_reclaimed_but_kept_by_the_processor(world: World) -> None:
    """The other half of giving a page back: RMPUPDATE."""
    world.started(vcpus=1)
    world.convert(0, private=True)

    def hook(command: int, pfn: int) -> PspStatus | None:
        if command != PspCommand.LAUNCH_UPDATE:
            return None
        world.platform.rmp.set_in_use(pfn, True)
        return PspStatus.INVALID_PARAM

    world.platform.psp.inject = hook
    assert world.update(uaddr=world.source().address)[:2] == ("snp.update.failed", PspStatus.INVALID_PARAM)
    assert_dead(world)
    assert leaked(world) == 1
    assert world.state(0) is RmpState.GUEST_INVALID


def test_a_cpuid_page_that_cant_be_reclaimed_isnt_written_back(world: World) -> None:
    world.started()
    world.convert(0, private=True)
    source = world.source()
    answer(world, LAUNCH_UPDATE=PspStatus.INVALID_PARAM, PAGE_RECLAIM=PspStatus.HWERROR_PLATFORM)
    assert world.update(type=SnpPageType.CPUID, uaddr=source.address)[0] == "snp.update.failed"
    assert source[:] == noise()
    assert leaked(world) == 1


def test_what_was_loaded_before_stays_loaded(world: World) -> None:
    """Two pages in, the third lost: the call still succeeds with its partial count, on a VM that is dead."""
    world.started()
    world.convert(0, 4, private=True)
    inject(world, PspCommand.LAUNCH_UPDATE, PspStatus.INVALID_PARAM, nth=3)
    refuse = world.platform.psp.inject
    assert refuse is not None
    world.platform.psp.inject = lambda command, pfn: (
        PspStatus.HWERROR_PLATFORM if command == PspCommand.PAGE_RECLAIM else refuse(command, pfn)
    )
    rule, _, after = world.update(pages=4, uaddr=world.source(4).address)
    assert (rule, after.len) == ("", 2 * PAGE_SIZE)
    assert world.platform.rmp.assigned_to(1) == 3
    assert_dead(world)
    world.platform.psp.inject = None


def test_a_vmsa_that_cant_be_reclaimed(world: World) -> None:
    world.started(vcpus=2)
    answer(world, LAUNCH_UPDATE=PspStatus.RESOURCE_LIMIT, PAGE_RECLAIM=PspStatus.HWERROR_PLATFORM)
    assert world.finish() == ("snp.firmware", EIO, PspStatus.RESOURCE_LIMIT)
    assert_dead(world)
    assert leaked(world) == 1
    world.platform.psp.inject = None


def test_a_vmsa_in_use_at_the_end(world: World) -> None:
    """RMPUPDATE answers FAIL_INUSE when the vCPU is freed: its page is lost."""
    world.finished(vcpus=2)
    pfn = next(iter(world.arch.vmsa_pfns.values()))
    world.platform.rmp.set_in_use(pfn, True)
    world.close()
    assert leaked(world) == 1
    assert world.platform.rmp.state(pfn) is RmpState.GUEST_VALID


def test_a_guest_that_cant_be_decommissioned(world: World) -> None:
    """Its context and its ASID are lost; the next guest gets another."""
    world.finished()
    other = world.create_vm()
    answer(world, DECOMMISSION=PspStatus.HWERROR_PLATFORM)
    world.vcpus.pop().close()
    world.gmem.close()
    world.buffer.close()
    world.vm.close()
    assert world.platform.warnings
    assert leaked(world) == 1
    assert world.init2(other) == ("", 0, 0)
    assert world.arch.asid == 2
    world.buffer = world.kvm.anonymous(PAGE_SIZE)


def test_a_context_page_that_cant_be_reclaimed(world: World) -> None:
    """Decommissioned, so the ASID is free; the page is lost."""
    world.finished()
    pfn = world.arch.snp_context
    assert pfn is not None
    answer(world, PAGE_RECLAIM=PspStatus.HWERROR_PLATFORM)
    world.close()
    assert leaked(world) == 1
    assert world.platform.rmp.state(pfn) is RmpState.FIRMWARE
    assert world.platform._asids == set()


def test_a_leaked_page_keeps_its_asid_from_being_activated(inplace: World) -> None:
    """The ASID is free for KVM, but owns a page: the firmware won't have it."""
    inplace.started()
    inplace.convert(0, private=True)
    answer(inplace, LAUNCH_UPDATE=PspStatus.INVALID_PARAM, PAGE_RECLAIM=PspStatus.HWERROR_PLATFORM)
    inplace.update(uaddr=inplace.source().address)
    inplace.platform.psp.inject = None
    inplace.buffer.close()
    inplace.gmem.close()
    inplace.vm.close()
    inplace.vm = inplace.create_vm()
    assert inplace.init2() == ("", 0, 0)
    assert inplace.arch.asid == 1
    assert inplace.start() == ("snp.firmware", EIO, PspStatus.INVALID_CONFIG)


# RMPUPDATE at run time


def test_the_guests_first_access_finds_no_way(world: World) -> None:
    """MEMORY_FAULT with EINVAL inside: KVM_RUN fails with it, and succeeds when the entry is free."""
    world.finished()
    world.convert(0, private=True)
    world.gmem.allocate(0, PAGE_SIZE)
    world.platform.rmp.set_in_use(world.gmem_pfn(0), True)
    with pytest.raises(KernelError) as refused:
        world.vcpus[0].run(lambda cpu: cpu.accept(BASE, PAGE_SIZE))
    assert (refused.value.errno, refused.value.rule.id) == (EINVAL, "snp.make-private")
    world.platform.rmp.set_in_use(world.gmem_pfn(0), False)
    assert world.vcpus[0].run().reason.name == "HLT"
    assert world.state(0) is RmpState.GUEST_VALID


def test_to_shared_although_the_rmp_keeps_the_page(inplace: World) -> None:
    """The point of no return was passed, so KVM warns and goes on: the host may map the page, and may not write it."""
    inplace.started()
    inplace.load(0, noise(3))
    pfn = inplace.gmem_pfn(1)
    inplace.platform.rmp.set_in_use(pfn, True)
    inplace.convert(0, 3, private=False)
    assert inplace.platform.warnings == [f"RMPUPDATE of pfn {pfn:#x} to shared: code 3"]
    assert [inplace.state(page).name for page in range(3)] == ["HYPERVISOR", "GUEST_VALID", "HYPERVISOR"]
    before = inplace.buffer[: 3 * PAGE_SIZE]
    with pytest.raises(BusError) as fault:
        inplace.buffer[PAGE_SIZE] = 1
    assert fault.value.rule.id == "mm.fault.rmp"
    assert fault.value.address == inplace.buffer.address + PAGE_SIZE
    assert inplace.buffer[: 3 * PAGE_SIZE] == before != noise(3)
    inplace.buffer[0] = inplace.buffer[2 * PAGE_SIZE] = 1
    inplace.platform.rmp.set_in_use(pfn, False)
    inplace.convert(1, private=True)
    inplace.convert(1, private=False)
    inplace.buffer[PAGE_SIZE] = 1


def test_a_system_call_that_writes_there_gets_efault(inplace: World) -> None:
    inplace.started(vcpus=1)
    inplace.load(0, noise())
    pfn = inplace.gmem_pfn(0)
    inplace.platform.rmp.set_in_use(pfn, True)
    inplace.convert(0, private=False)
    with pytest.raises(KernelError) as fault:
        inplace.vcpus[0].ioctl(KVM_GET_REGS, inplace.buffer.address)
    assert (fault.value.errno, fault.value.rule.id) == (EFAULT, "mm.uaccess")
    inplace.platform.rmp.set_in_use(pfn, False)
    inplace.convert(0, private=True)
    inplace.convert(0, private=False)
    inplace.vcpus[0].ioctl(KVM_GET_REGS, inplace.buffer.address)


def test_freeing_an_assigned_page_is_noticed(world: World) -> None:
    """KVM only warns, and the page goes to the host's allocator while a guest owns it: an invariant is violated."""
    world.started()
    world.load(0, noise())
    pfn = world.gmem_pfn(0)
    world.platform.rmp.set_in_use(pfn, True)
    world.host.lru.lru_add_drain_all()
    with pytest.raises(InvariantViolation, match=f"{pfn:#x}.*GUEST_VALID"):
        world.gmem.punch_hole(0, PAGE_SIZE)
    assert world.platform.warnings
    world.host.close()
    world.done = True

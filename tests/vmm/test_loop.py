# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop around KVM_RUN: what is served, what is refused, what is given up."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EAGAIN, EINTR, EINVAL

import pytest

from gmemu import ExitReason, GuestCpu
from gmemu.explore.variants import VARIANTS
from gmemu.kvm.design import Design
from gmemu.profiles import get
from gmemu.uapi.kvm import KVM_HC_MAP_GPA_RANGE, KVM_MAP_GPA_RANGE_ENCRYPTED
from gmemu.vmm import GuestStuck, NoMemoryThere, Poisoned, left_to_kvm
from gmemu.vmm.loop import SAME_WISH_LIMIT

from .world import PAGE, World


@pytest.fixture(params=["inplace-v13", "linux-7.3"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(request.param)
    world.vm.enable_map_gpa_range()
    yield world
    world.close()


@pytest.fixture
def in_place() -> Iterator[World]:
    world = World()
    world.vm.enable_map_gpa_range()
    yield world
    world.close()


def ask(world: World, gpa: int, npages: int, attributes: int = KVM_MAP_GPA_RANGE_ENCRYPTED) -> int:
    """A guest asks once: the answer that it got."""
    answers: list[int] = []
    exit_ = world.vmm.run(
        world.vcpu, lambda cpu: answers.append(cpu.hypercall(KVM_HC_MAP_GPA_RANGE, gpa, npages, attributes))
    )
    assert exit_.reason is ExitReason.HLT
    return answers[0]


def test_both_ways(world: World) -> None:
    def guest(cpu: GuestCpu) -> None:
        assert cpu.map_gpa_range(PAGE, 2 * PAGE, private=True) == 0
        cpu.store(PAGE, b"private")
        assert cpu.map_gpa_range(PAGE, PAGE, private=False) == 0

    assert world.vmm.run(world.vcpu, guest).reason is ExitReason.HLT
    assert world.conversions == [(PAGE, 2 * PAGE, True), (PAGE, PAGE, False)]
    assert world.private_pages() == [2]
    assert world.seen_exits == 2


def test_exits_that_are_the_callers(world: World) -> None:
    def guest(cpu: GuestCpu) -> None:
        cpu.port_out(0x80, b"x")
        cpu.triple_fault()

    assert world.vmm.run(world.vcpu, guest).reason is ExitReason.IO
    assert world.vmm.run(world.vcpu).reason is ExitReason.SHUTDOWN
    assert world.seen_exits == 0


@pytest.mark.parametrize(
    ("gpa", "npages", "attributes"),
    [(8 * PAGE, 1, 16), (7 * PAGE, 2, 16), (0, 1, 1 << 9), (0, 1 << 40, 16), ((1 << 64) - PAGE, 2, 16)],
    ids=["no memory", "past the end", "unknown attribute", "much too large", "wraps"],
)
def test_requests_that_make_no_sense(world: World, gpa: int, npages: int, attributes: int) -> None:
    assert ask(world, gpa, npages, attributes) == EINVAL
    assert world.private_pages() == []
    assert [(at, answer) for at, _, answer, _ in world.refusals] == [(gpa, EINVAL)]


def test_a_page_in_use_is_again_for_the_guest(in_place: World) -> None:
    let_go = in_place.pin(3)
    assert ask(in_place, 0, 8) == EAGAIN
    assert in_place.private_pages() == [0, 1, 2]
    let_go()
    assert ask(in_place, 0, 8) == 0
    assert in_place.private_pages() == list(range(8))


def test_signals_are_not_the_guests_affair(world: World) -> None:
    task = world.host.init.task
    task.pending_signals = 1
    real = world.vcpu.run
    calls = []

    def run(guest: object = None) -> object:
        calls.append(guest)
        try:
            return real(guest)  # type: ignore[arg-type]
        finally:
            task.pending_signals = 0

    world.vcpu.run = run  # type: ignore[assignment]
    ran = []
    assert world.vmm.run(world.vcpu, lambda cpu: ran.append(1)).reason is ExitReason.HLT
    assert ran == [1]
    assert len(calls) == 2
    assert calls[1] is None


def test_signals_without_end(world: World) -> None:
    world.host.init.task.pending_signals = 1
    with pytest.raises(OSError) as caught:
        world.vmm.run(world.vcpu, lambda cpu: None)
    assert caught.value.errno == EINTR
    world.host.init.task.pending_signals = 0


def test_bad_memory(in_place: World) -> None:
    pfn = in_place.pfn(1)
    in_place.block.gmem.make_private(PAGE, PAGE)
    with pytest.raises(OSError):
        in_place.host.memory_failure(pfn)
    with pytest.raises(Poisoned, match="0x1000"):
        in_place.vmm.run(in_place.vcpu, lambda cpu: cpu.load(PAGE))


def test_a_fault_that_conversion_does_not_mend(in_place: World) -> None:
    """The guest's memory is converted back behind the VMM's back each time."""
    [vm] = in_place.host.vms
    from gmemu.rules import gmem as rules
    from gmemu.uapi.kvm import kvm_exit_memory_fault

    [vcpu] = vm.vcpus

    class Stuck:
        calls = 0

        def __call__(self, guest: object = None) -> object:
            from gmemu.api.vcpu import Exit

            self.calls += 1
            vcpu.set_exit(ExitReason.MEMORY_FAULT, kvm_exit_memory_fault(flags=8, gpa=PAGE, size=PAGE))
            return Exit(in_place.vcpu.kvm_run, rules.GET_PFN_CLOSED())

    stuck = Stuck()
    in_place.vcpu.run = stuck  # type: ignore[assignment]
    with pytest.raises(GuestStuck, match=f"private {SAME_WISH_LIMIT + 1} times"):
        in_place.vmm.run(in_place.vcpu)
    assert stuck.calls == SAME_WISH_LIMIT + 1


def test_a_fault_where_there_is_no_memory(in_place: World) -> None:
    from gmemu.api.vcpu import Exit
    from gmemu.rules import gmem as rules
    from gmemu.uapi.kvm import kvm_exit_memory_fault

    [vm] = in_place.host.vms
    [vcpu] = vm.vcpus
    vcpu.set_exit(ExitReason.MEMORY_FAULT, kvm_exit_memory_fault(flags=8, gpa=1 << 30, size=PAGE))
    with pytest.raises(NoMemoryThere):
        in_place.vmm.serve(in_place.vcpu, Exit(in_place.vcpu.kvm_run, rules.GET_PFN_CLOSED()))


@pytest.mark.parametrize("variant", ["convert-in-vcpu-run", "convert-in-vcpu-run-refuse"])
def test_a_kernel_that_converts_by_itself(variant: str) -> None:
    """The VMM only lets go of what it holds; it isn't asked twice."""
    world = World(design=VARIANTS[variant].change(Design.of(get("inplace-v13"))), converter=left_to_kvm)
    world.vm.enable_map_gpa_range()
    let_go = [world.pin(1)]

    class Device:
        def let_go(self, gpa: int, size: int) -> None:
            while let_go:
                let_go.pop()()

        def take(self, gpa: int, size: int) -> None:
            pass

    world.vmm.holders.append(Device())
    answers = []

    def guest(cpu: GuestCpu) -> None:
        answers.append(cpu.map_gpa_range(0, 4 * PAGE, private=True))
        cpu.store(PAGE, b"mine")
        answers.append(cpu.map_gpa_range(0, PAGE, private=False))

    assert world.vmm.run(world.vcpu, guest).reason is ExitReason.HLT
    assert (answers, world.seen_exits, world.private_pages()) == ([0, 0], 2, [1, 2, 3])
    world.close()


def test_a_guest_that_asks_for_ever(in_place: World) -> None:
    let_go = in_place.pin(0)

    def guest(cpu: GuestCpu) -> None:
        while cpu.map_gpa_range(0, PAGE, private=True):
            pass

    with pytest.raises(GuestStuck, match=f"gpa 0x0 to be private {SAME_WISH_LIMIT + 1} times in a row"):
        in_place.vmm.run(in_place.vcpu, guest)
    assert {answer for _, _, answer, _ in in_place.refusals} == {EAGAIN}
    let_go()

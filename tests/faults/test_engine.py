# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders are carried out where and when they say, and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from errno import EAGAIN, EBUSY, EINTR, ENOMEM
from typing import Any

import pytest

from gmemu import ConversionRefused, InvariantViolation, Kvm, VmType
from gmemu.check import check_host
from gmemu.faults import Faults, Order
from gmemu.faults.engine import Observer
from gmemu.faults.language import What
from gmemu.faults.runtime import Hung
from gmemu.uapi.mman import MADV_DONTNEED

from .world import CONVERT, PAGE, world


def test_the_nth_time_and_so_many_times() -> None:
    with world("alloc gmem-attributes nth=2 times=2 -> ENOMEM") as w:
        assert [w.convert(page, 1) for page in range(5)] == [0, ENOMEM, ENOMEM, 0, 0]
        assert [fired.call for fired in w.faults.fired] == [CONVERT] * 2
        assert w.faults.unmet() == []


def test_probability_is_drawn_from_the_seed() -> None:
    def run(seed: int) -> tuple[int, ...]:
        with world(f"alloc gmem-attributes p=0.5 seed={seed} times=all -> ENOMEM") as w:
            return tuple(w.convert(page, 1) for page in range(8))

    assert run(1) == run(1)
    assert len({run(seed) for seed in range(6)}) > 2
    assert {result for seed in range(6) for result in run(seed)} == {0, ENOMEM}


def test_between_two_events() -> None:
    with world("alloc gmem-attributes after=fallocate before=KVM_CREATE_VCPU times=all -> ENOMEM") as w:
        results = [w.convert(0, 1)]
        w.gmem.allocate(0, PAGE)
        results.append(w.convert(1, 1))
        w.vm.create_vcpu().close()
        results.append(w.convert(1, 1))
        assert results == [0, ENOMEM, 0]


def test_one_call_of_a_name() -> None:
    with world(f"alloc gmem-attributes during={CONVERT} call=3 -> ENOMEM") as w:
        assert [w.convert(page, 1) for page in range(4)] == [0, 0, ENOMEM, 0]


def test_one_vm_of_several() -> None:
    with world(f"alloc gmem-attributes during={CONVERT} vm=1 -> ENOMEM") as w:
        other = w.kvm.create_vm(VmType.SW_PROTECTED)
        gmem = other.create_guest_memfd(PAGE, 3)
        assert w.convert() == 0
        with pytest.raises(OSError):
            gmem.make_private(0, PAGE)
        gmem.close()
        other.close()


@pytest.mark.parametrize("what", ["ref", "pin"])
@pytest.mark.parametrize("where", ["offset=0x3000", "gfn=0x103", "gpa=0x103000"])
def test_a_page_is_held_during_a_call(what: str, where: str) -> None:
    with world(f"{what} {where} during={CONVERT}") as w:
        with pytest.raises(ConversionRefused) as caught:
            w.gmem.make_private(PAGE, 5 * PAGE)
        assert (caught.value.errno, caught.value.error_offset) == (EAGAIN, 3 * PAGE)
        assert w.convert() == 0


def test_a_page_is_held_for_several_calls_or_until_released() -> None:
    with world(f"pin offset=0 during={CONVERT} hold=3") as w:
        assert [w.convert() for _ in range(4)] == [EAGAIN, EAGAIN, EAGAIN, 0]
    with world(f"pin offset=0 during={CONVERT} hold=0") as w:
        assert [w.convert() for _ in range(20)] == [EAGAIN] * 20
        check_host(w.host, w.faults.held)
        w.faults.release()
        assert w.convert() == 0


def test_a_page_that_is_not_there_is_waited_for() -> None:
    with world(f"ref offset=0x2000 during={CONVERT}") as w:
        w.gmem.punch_hole(2 * PAGE, PAGE)
        assert w.convert() == 0
        assert [str(order) for order in w.faults.unmet()] == [f"ref offset=0x2000 during={CONVERT}"]


def test_a_signal_is_gone_with_the_call() -> None:
    with world("signal during=fallocate at=page nth=3") as w:
        w.faults.cancel()
        w.gmem.punch_hole(0, 8 * PAGE)
        w.faults.order("signal during=fallocate at=page nth=3")
        with pytest.raises(OSError) as caught:
            w.gmem.allocate(0, 8 * PAGE)
        assert caught.value.errno == EINTR
        assert w.gmem.stat().blocks == 3 * 8, "the page that was come to was done"
        w.gmem.allocate(0, 8 * PAGE)
        assert w.gmem.stat().blocks == 64


def test_a_signal_at_a_lock() -> None:
    with world("signal at=lock lock=slots_lock during=KVM_SET_USER_MEMORY_REGION2") as w:
        assert len(w.faults.fired) == 1


def test_poison() -> None:
    with world(f"poison gfn=0x101 during={CONVERT}") as w:
        assert w.convert() == EAGAIN, "the bad page has a reference that it never loses"
        assert len(w.host.memmap.poisoned) == 1
        assert w.convert(2, 6) == 0


def test_page_allocations() -> None:
    with world() as w:
        w.gmem.punch_hole(0, PAGE)
        w.faults.order("alloc page -> ENOMEM")
        with pytest.raises(OSError, match="an allocation ordered to fail: page"):
            w.gmem.allocate(0, PAGE)
        w.gmem.allocate(0, PAGE)


def test_orders_can_be_cancelled() -> None:
    with world("alloc gmem-attributes times=all -> ENOMEM") as w:
        assert w.convert() == ENOMEM
        w.faults.cancel()
        assert w.convert() == 0


def test_invariants_are_checked_when_something_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    monkeypatch.setattr("gmemu.faults.engine.check_host", lambda host, held: checked.append(host))
    with world("alloc gmem-attributes nth=2 -> ENOMEM") as w:
        w.convert(0, 1)
        assert checked == []
        w.convert(1, 1)
        assert checked == [w.host]
    with world("alloc gmem-attributes -> ENOMEM", check=False) as w:
        w.convert()
        assert checked[1:] == []


def test_a_broken_invariant_comes_out_of_the_call() -> None:
    with world() as w:
        w.faults.order("signal during=fallocate")
        [inode] = w.host.gmem_inodes
        inode.attributes.set(0, 4, None)
        with pytest.raises(InvariantViolation, match="no attribute"):
            w.gmem.punch_hole(0, PAGE)
        inode.attributes.set(0, 4, 0)


def for_ever(call: Callable[[], object]) -> None:
    while True:
        call()


def test_too_many_steps() -> None:
    faults = Faults(step_limit=1000)
    with Kvm.open(faults=faults) as kvm:
        with pytest.raises(Hung, match="in KVM_GET_API_VERSION"):
            for_ever(kvm.api_version)
        assert faults.steps < 2000


def test_an_observer_is_told_of_what_could_fail() -> None:
    class Log(Observer):
        def __init__(self) -> None:
            self.points: list[tuple[str, str, int]] = []
            self.pages: list[tuple[str, int]] = []

        def point(self, what: What, name: str, nth: int) -> None:
            self.points.append((what, name, nth))

        def page(self, call: Any, nth: int) -> None:
            self.pages.append((call.name, nth))

    log = Log()
    with world(observer=log) as w:
        w.convert()
        w.gmem.punch_hole(0, 8 * PAGE)
        w.gmem.allocate(0, 2 * PAGE)
    sites = {name for what, name, _ in log.points if what == "alloc"}
    assert sites == {"gmem-attributes", "gmem-bindings", "gmem-inode", "kvm", "page"}
    assert log.pages[-2:] == [("fallocate", 1), ("fallocate", 2)]


def test_a_host_without_faults_has_nothing_of_it() -> None:
    with Kvm.open() as kvm:
        assert kvm.host.faults is None
        assert kvm.host.memmap.inject is None
        assert kvm.host.snp.psp.inject is None
        assert kvm.host.snp.rmp.inject is None


@pytest.mark.parametrize("platform", ["amd", "intel"])
def test_trusted_entities_are_connected_when_they_are_made(platform: str) -> None:
    with Kvm.open(faults=Faults(), platform=platform) as kvm:
        entity: Any = kvm.host.snp.psp if platform == "amd" else kvm.host.tdx.module
        assert entity.inject is not None


def test_orders_are_the_same_in_python() -> None:
    order = Order(What.ALLOC, "kvm", "ENOMEM")
    faults = Faults(order)
    with Kvm.open(faults=faults) as kvm:
        with pytest.raises(OSError):
            kvm.create_vm()
        assert faults.fired[0].order is order
        kvm.create_vm().close()


def test_a_call_that_fails_before_it_has_done_anything() -> None:
    with world(f"call {CONVERT} nth=2 -> EBUSY", f"call {CONVERT} nth=3 -> EINTR") as w:
        assert [w.convert(0, 1), w.convert(1, 1), w.convert(1, 1), w.convert(1, 1)] == [0, EBUSY, EINTR, 0]
        assert [fired.order.result for fired in w.faults.fired] == ["EBUSY", "EINTR"]


def test_calls_that_go_on_side_by_side_are_told_apart() -> None:
    """While a guest runs, another thread's calls begin, and end later than the first one's."""
    with world("ref gfn=0x100 during=KVM_RUN at=page times=all") as w:
        turns = [threading.Event() for _ in range(4)]

        def guest(says: int, waits: int) -> Callable[[Any], None]:
            def body(cpu: Any) -> None:
                turns[says].set()
                assert turns[waits].wait(60)

            return body

        vcpus = [w.vm.create_vcpu(number) for number in range(2)]
        first = threading.Thread(target=vcpus[0].run, args=(guest(0, 1),))
        second = threading.Thread(target=vcpus[1].run, args=(guest(2, 3),))
        first.start()
        assert turns[0].wait(60)
        second.start()
        assert turns[2].wait(60)
        turns[1].set()
        first.join()
        turns[3].set()
        second.join()
        w.memory.madvise(MADV_DONTNEED)
        w.memory[0] = 1  # a page is come to, and in no call
        assert w.faults.fired == []
        for vcpu in vcpus:
            vcpu.close()

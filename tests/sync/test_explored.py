# SPDX-License-Identifier: GPL-2.0-or-later
"""The second runtime: unchanged kernel code under every schedule, or under chosen ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from gmemu import BusError, Host, KernelError, Kvm, VmType
from gmemu.kvm.design import Design
from gmemu.kvm.guest_memfd.populate import populate_locked
from gmemu.profiles import get
from gmemu.sync import Deadlock
from gmemu.sync.explored import ExploredRuntime, Schedule, Thread
from gmemu.uapi.sev import SnpPageType

PAGE = 4096


def every_schedule(world: Callable[[], ExploredRuntime], limit: int = 20_000) -> Iterator[ExploredRuntime | Deadlock]:
    """Depth first through all choices, by running each from the beginning: no reduction, for small programs only."""
    prefix: list[int] = []
    for _ in range(limit):
        widths: list[int] = []

        def choose(able: list[Thread], widths: list[int] = widths, prefix: list[int] = prefix) -> int:
            widths.append(len(able))
            return prefix[len(widths) - 1] if len(widths) <= len(prefix) else 0

        runtime = world()
        try:
            runtime.run(choose)
            yield runtime
        except Deadlock as deadlock:
            yield deadlock
        taken = prefix + [0] * (len(widths) - len(prefix))
        while taken and taken[-1] + 1 >= widths[len(taken) - 1]:
            taken.pop()
        if not taken:
            return
        prefix = [*taken[:-1], taken[-1] + 1]
    raise AssertionError(f"more than {limit} schedules")


def at_random(seed: int) -> Schedule:
    """A random walk."""
    rng = random.Random(seed)
    return lambda able: rng.randrange(len(able))


def test_a_lost_update_is_among_the_schedules() -> None:
    results = []

    def world() -> ExploredRuntime:
        rt = ExploredRuntime()
        counter = rt.atomic("counter")

        def increment() -> None:
            counter.set(counter.read() + 1)
            results.append(counter.name)

        rt.spawn("a", increment)
        rt.spawn("b", increment)
        rt.spawn("end", lambda: None)
        rt.__dict__["counter"] = counter
        return rt

    ends = {rt.__dict__["counter"].value for rt in every_schedule(world) if isinstance(rt, ExploredRuntime)}
    assert ends == {1, 2}


def test_a_mutex_keeps_updates_apart() -> None:
    def world() -> ExploredRuntime:
        rt = ExploredRuntime()
        counter, lock = rt.atomic("counter"), rt.mutex("lock")

        def increment() -> None:
            with lock:
                counter.set(counter.read() + 1)

        rt.spawn("a", increment)
        rt.spawn("b", increment)
        rt.__dict__["counter"] = counter
        return rt

    runs = list(every_schedule(world))
    assert {rt.__dict__["counter"].value for rt in runs if isinstance(rt, ExploredRuntime)} == {2}
    assert not any(isinstance(run, Deadlock) for run in runs)


def test_two_locks_in_two_orders_deadlock_in_some_schedule() -> None:
    def world() -> ExploredRuntime:
        rt = ExploredRuntime()
        a, b = rt.mutex("A"), rt.mutex("B")

        def take(first: object, second: object) -> None:
            with first, second:  # type: ignore[attr-defined]
                pass

        rt.spawn("ab", lambda: take(a, b))
        rt.spawn("ba", lambda: take(b, a))
        return rt

    runs = list(every_schedule(world))
    deadlocks = [run for run in runs if isinstance(run, Deadlock)]
    assert deadlocks
    assert len(deadlocks) < len(runs)
    assert "waits to acquire A" in str(deadlocks[0])


def test_a_reader_does_not_wait_for_a_reader_but_a_writer_does() -> None:
    rt = ExploredRuntime()
    sem, order = rt.rwsem("sem"), list[str]()

    def reader(name: str) -> None:
        with sem.shared:
            order.append(f"{name} in")
            rt.resched()
            order.append(f"{name} out")

    def writer() -> None:
        with sem.exclusive:
            order.append("w")

    for name in ("r1", "r2"):
        rt.spawn(name, lambda name=name: reader(name))  # type: ignore[misc]
    rt.spawn("w", writer)

    def readers_first(able: list[Thread]) -> int:
        entering = [i for i, thread in enumerate(able) if thread.step.kind != "resched"]
        return entering[0] if entering else 0

    rt.run(readers_first)
    assert order[:2] == ["r1 in", "r2 in"]
    assert order.index("w") > 1


def test_synchronize_waits_for_readers_that_were_there() -> None:
    def world() -> ExploredRuntime:
        rt = ExploredRuntime()
        srcu, flag = rt.srcu("srcu"), rt.atomic("freed")

        def reader() -> None:
            with srcu.read:
                before = flag.read()
                after = flag.read()
            rt.__dict__.setdefault("torn", []).append(before != after and before == 0)

        def updater() -> None:
            srcu.synchronize()
            flag.set(1)

        rt.spawn("reader", reader)
        rt.spawn("updater", updater)
        return rt

    torn = [t for rt in every_schedule(world) if isinstance(rt, ExploredRuntime) for t in rt.__dict__["torn"]]
    assert torn.count(True) > 0  # a reader that begins after synchronize() isn't waited for
    assert torn.count(False) > 0


def _kvm_world() -> tuple[ExploredRuntime, Kvm, list[object]]:
    rt = ExploredRuntime()
    host = Host("inplace-v13", memory=1 << 24, runtime=rt)
    return rt, Kvm.open_on(host), []


def test_conversion_against_a_host_fault_never_leaves_a_private_page_mapped() -> None:
    outcomes = set()
    for seed in range(1000):
        rt, kvm, log = _kvm_world()
        vm = kvm.create_vm(VmType.SW_PROTECTED)
        gmem = vm.create_guest_memfd(2 * PAGE, 3)
        memory = gmem.mmap()
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem, userspace_addr=memory.address)

        def convert(gmem: object = gmem, log: list[object] = log) -> None:
            try:
                gmem.make_private(0, PAGE)  # type: ignore[attr-defined]
                log.append("converted")
            except KernelError as error:
                log.append(error.rule.id)

        def touch(memory: object = memory, log: list[object] = log) -> None:
            try:
                memory[0] = 7  # type: ignore[index]
                log.append("touched")
            except BusError as fault:
                log.append(fault.rule.id)

        rt.spawn("convert", convert)
        rt.spawn("touch", touch)
        rt.run(at_random(seed))  # the kernel's own invariant checks the page tables at the end of the conversion
        outcomes.add(tuple(sorted(map(str, log))))
        mapped = not kvm.host.init.mm.ptes.empty(memory.address >> 12, (memory.address >> 12) + 1)
        assert not (mapped and "converted" in log)
        kvm.host.close()
    assert ("converted", "gmem.fault.private") in outcomes
    assert ("converted", "touched") in outcomes
    assert ("gmem.attributes.busy", "touched") in outcomes  # S09: a fault in flight holds a reference


def test_populate_under_the_lock_deadlocks_with_a_host_fault_on_its_source() -> None:
    """S01: the order before 7.2, on a kernel where the source can be guest_memfd memory."""

    def world(design: Design) -> tuple[ExploredRuntime, Kvm]:
        rt = ExploredRuntime()
        kvm = Kvm.open_on(Host("inplace-v13", memory=1 << 24, runtime=rt, design=design))
        vm = kvm.create_vm(VmType.SNP)
        vm.snp.init2()
        gmem = vm.create_guest_memfd(2 * PAGE, 3)
        memory = gmem.mmap()
        vm.set_user_memory_region2(0, 0, 2 * PAGE, gmem=gmem, userspace_addr=memory.address)
        vm.snp.launch_start()
        gmem.make_private(0, PAGE)
        rt.spawn("populate", lambda: vm.snp.launch_update(0, PAGE, SnpPageType.NORMAL, memory.address + PAGE))
        rt.spawn("mmap", lambda: kvm.anonymous(PAGE))
        rt.spawn("fault", lambda: memory[PAGE])
        return rt, kvm

    default = Design.of(get("inplace-v13"))
    for seed in range(40):
        rt, kvm = world(default)
        rt.run(at_random(seed))
        kvm.host.close()

    def search(design: Design) -> None:
        for seed in range(200):
            rt, kvm = world(design)
            rt.run(at_random(seed))
            kvm.host.close()

    with pytest.raises(Deadlock, match=r"mmap_lock|invalidate_lock"):
        search(default._replace(populate=populate_locked))


def test_set_up_outside_a_run_takes_its_steps_at_once() -> None:
    rt = ExploredRuntime()
    lock = rt.mutex("lock")
    with lock:
        lock.assert_held()
        with pytest.raises(Deadlock, match="lock"), lock:
            pass
    assert rt.trace == []
    assert rt.batch(5) == 5


def test_a_task_that_raises_ends_the_run() -> None:
    rt = ExploredRuntime()
    lock = rt.mutex("lock")

    def fails() -> None:
        with lock:
            raise ValueError("as it should")

    def waits() -> None:
        with lock:
            pass

    rt.spawn("fails", fails)
    rt.spawn("waits", waits)
    with pytest.raises(ValueError, match="as it should"):
        rt.run(lambda able: 0)
    with lock:
        pass

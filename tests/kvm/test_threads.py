# SPDX-License-Identifier: GPL-2.0-or-later
"""Python threads on one host: whatever they do to each other, nothing is corrupted and nobody waits for ever."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from errno import EAGAIN

import pytest

from gmemu import ExitReason, GuestCpu, GuestMemfd, KernelError, Mapping, Vcpu
from gmemu.mm.gup import get_user_pages_fast, put_pages
from gmemu.uapi.kvm import KVM_RUN, MpState, kvm_mp_state
from gmemu.uapi.mman import FOLL_PIN, FOLL_WRITE, MADV_DONTNEED

from .world import BOTH, DEFAULT, PAGE, World, errno_of, load, refusal, store

TURNS = 250
LIMIT = 60
"""Seconds after which a thread counts as stuck; none comes anywhere near it."""


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Let Python change threads all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*bodies: Callable[[], None]) -> None:
    """Run each in a thread of its own, all at once; what one raises is raised here."""
    ready = threading.Barrier(len(bodies))
    raised: list[BaseException] = []

    def start(body: Callable[[], None]) -> None:
        try:
            ready.wait(LIMIT)
            body()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=start, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
    if raised:
        raise raised[0]


def convert(gmem: GuestMemfd, page: int) -> None:
    """To private and back, as often as it takes: a fault in flight may hold the page for a moment."""
    for target in (gmem.make_private, gmem.make_shared):
        if errno_of(lambda target=target: target(page * PAGE, PAGE)) not in (0, EAGAIN):  # type: ignore[misc]
            raise AssertionError("a conversion fails with EAGAIN or not at all")


def host_touches(mapping: Mapping, page: int, stamp: int) -> None:
    """Write and read back; if the page is private just now, that's SIGBUS."""
    at = page * PAGE + 8 * stamp

    def touch() -> None:
        mapping[at : at + 8] = stamp.to_bytes(8, "little")
        assert mapping[at : at + 8] == stamp.to_bytes(8, "little")

    assert refusal(touch) in ("", "gmem.fault.private")


def guest_counts(vcpu: Vcpu, page: int, shared: int) -> Callable[[], None]:
    """A guest that counts up in a page of its own and in one that is converted all the time."""

    def guest(cpu: GuestCpu) -> None:
        for turn in range(TURNS):
            for gpa in (page * PAGE, shared * PAGE + 2048):
                before = int.from_bytes(cpu.load(gpa, 8), "little")
                assert before == turn
                cpu.store(gpa, (before + 1).to_bytes(8, "little"))

    def body() -> None:
        assert vcpu.run(guest).reason is ExitReason.HLT

    return body


def test_converting_faulting_and_running_at_once(world: World) -> None:
    """Two vCPUs, a thread that converts their pages back and forth, one that touches them: every byte arrives."""
    vm = world.vm()
    gmem = vm.create_guest_memfd(16 * PAGE, BOTH)
    mapping = gmem.mmap()
    vm.set_user_memory_region2(0, 0, 16 * PAGE, gmem=gmem)
    vcpus = [vm.create_vcpu(i) for i in range(2)]

    def converter() -> None:
        for _ in range(TURNS):
            for page in (4, 5, 6):
                convert(gmem, page)

    def toucher() -> None:
        for turn in range(TURNS):
            for page in (4, 5, 6):
                host_touches(mapping, page, 32 + turn % 32)

    together(guest_counts(vcpus[0], 0, 4), guest_counts(vcpus[1], 1, 5), converter, toucher)
    gmem.make_shared(0, 16 * PAGE)
    for page, offset in ((0, 0), (1, 0), (4, 2048), (5, 2048)):
        assert int.from_bytes(mapping[page * PAGE + offset : page * PAGE + offset + 8], "little") == TURNS


def test_slots_that_come_and_go_under_a_running_guest(world: World) -> None:
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(8 * PAGE)
    memory[:] = b"m" * 8 * PAGE
    vm.set_user_memory_region2(0, 0, 4 * PAGE, userspace_addr=memory.address)
    vcpu = vm.create_vcpu()

    def guest(cpu: GuestCpu) -> None:
        for turn in range(TURNS):
            cpu.store(turn % 4 * PAGE, b"g")
            assert cpu.load(0x10000, 1) in (b"m", b"\0")  # memory, or MMIO that nobody answers

    def runs() -> None:
        exit_ = vcpu.run(guest)
        while exit_.reason is ExitReason.MMIO:
            exit_ = vcpu.run()
        assert exit_.reason is ExitReason.HLT

    def changes() -> None:
        for _ in range(TURNS):
            vm.set_user_memory_region2(1, 0x10000, 4 * PAGE, userspace_addr=memory.address + 4 * PAGE)
            memory.madvise(MADV_DONTNEED, 0, 4 * PAGE)
            vm.delete_slot(1)

    together(runs, changes)


def test_two_threads_want_the_same_vcpu(world: World) -> None:
    """The second waits until the first comes back, and isn't forgotten."""
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(PAGE)
    vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
    vcpu = vm.create_vcpu()
    in_guest = threading.Event()
    order: list[str] = []

    def guest(cpu: GuestCpu) -> None:
        in_guest.set()
        for turn in range(TURNS):
            cpu.store(0, bytes((turn,)))
        order.append("guest")

    def runs() -> None:
        assert vcpu.run(guest).reason is ExitReason.HLT

    def asks() -> None:
        assert in_guest.wait(LIMIT)
        buffer = bytearray(kvm_mp_state().pack())
        vcpu.ioctl(0x8004AE98, buffer)
        assert kvm_mp_state.unpack_from(buffer).mp_state == MpState.RUNNABLE
        order.append("state")

    together(runs, asks)
    assert sorted(order) == ["guest", "state"]


def test_files_and_mappings_of_many_threads(world: World) -> None:
    """Each makes, maps, fills, converts, punches and closes its own; descriptors and pages never get mixed up."""
    vm = world.vm()

    def body(stamp: int) -> Callable[[], None]:
        def works() -> None:
            for _ in range(TURNS // 4):
                with vm.create_guest_memfd(4 * PAGE, BOTH) as gmem, gmem.mmap() as mapping:
                    mapping[:] = bytes((stamp,)) * 4 * PAGE
                    gmem.make_private(PAGE, PAGE)
                    gmem.punch_hole(2 * PAGE, PAGE)
                    gmem.make_shared(PAGE, PAGE)
                    assert mapping[: 2 * PAGE] == bytes((stamp,)) * 2 * PAGE
                    assert mapping[2 * PAGE] == 0
                    assert mapping[3 * PAGE] == stamp

        return works

    together(*(body(stamp) for stamp in range(1, 5)))
    vm.close()
    world.host.check_quiet()


def test_pins_make_conversion_fail_only_while_they_last(world: World) -> None:
    vm = world.vm()
    gmem = vm.create_guest_memfd(PAGE, BOTH)
    mapping = gmem.mmap()
    flags, outcomes = FOLL_PIN | FOLL_WRITE, set[int]()

    def pins() -> None:
        door = world.door
        for _ in range(TURNS):
            previous = world.host.rt.enter(door.task)
            try:
                runs = get_user_pages_fast(world.host.init.mm, mapping.address, 1, flags)
            except KernelError:
                continue
            finally:
                world.host.rt.leave(previous)
            world.host.memory.write(runs[0][0] * PAGE, b"dma")
            previous = world.host.rt.enter(door.task)
            put_pages(world.host.init.mm, runs, flags)
            world.host.rt.leave(previous)

    def converts() -> None:
        for _ in range(TURNS):
            for target in (gmem.make_private, gmem.make_shared):
                try:
                    target(0, PAGE)
                    outcomes.add(0)
                except KernelError as error:
                    outcomes.add(error.rule.errno)

    together(pins, converts)
    assert outcomes <= {0, EAGAIN}
    gmem.make_private(0, PAGE)


def test_a_thread_that_dies_in_its_guest(world: World) -> None:
    """Its exception is its own; other threads go on, and the vCPU can be run again."""
    vm = world.vm(DEFAULT)
    memory = world.kvm.anonymous(2 * PAGE)
    vm.set_user_memory_region2(0, 0, 2 * PAGE, userspace_addr=memory.address)
    doomed, fine = vm.create_vcpu(0), vm.create_vcpu(1)

    def dies() -> None:
        def guest(cpu: GuestCpu) -> None:
            cpu.store(0, b"x")
            raise KeyboardInterrupt

        for _ in range(TURNS):
            with pytest.raises(KeyboardInterrupt):
                doomed.run(guest)

    def lives() -> None:
        for turn in range(TURNS):
            store(fine, PAGE, bytes((turn,)))
            assert load(fine, PAGE, 1) == bytes((turn,))

    together(dies, lives)
    store(doomed, 0, b"y")
    assert world.host.rt.current.name == "swapper"
    assert doomed.ioctl(KVM_RUN) == 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""Two tasks of the kernel in every order: whatever comes of it, all counts are right at the end and nothing is left.

These are races of the emulation's own code, small ones; what the kernel's designs do to each other is in the scenarios.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmemu import Host, Kvm, MemoryFault, VmType
from gmemu.check import check_host
from gmemu.explore import Outcome, explore
from gmemu.mm.gup import get_user_pages_fast, put_pages
from gmemu.rules import KernelError
from gmemu.sync.explored import ExploredRuntime
from gmemu.syscalls.emulated import EmulatedDoor
from gmemu.uapi.mman import FOLL_PIN, FOLL_WRITE, MADV_DONTNEED

from .world import BOTH, DEFAULT, PAGE, SW_PROTECTED

MOST = 3000
"""Schedules after which a search gives up; most end long before."""


class Race:
    """A host, its first process, and tasks that run against each other."""

    def __init__(self, profile: str = "inplace-v13") -> None:
        self.runtime = ExploredRuntime()
        self.host = Host(profile, memory=1 << 24, runtime=self.runtime)
        self.door = EmulatedDoor(self.host)
        self.kvm = Kvm(self.door)
        self.seen: dict[str, object] = {}
        self.doors = [self.door]

    def task(self, name: str, body: Callable[[], object]) -> None:
        """A task; what it returns or breaks is kept under its name."""

        def run() -> None:
            try:
                self.seen[name] = body()
            except (KernelError, MemoryFault) as error:
                self.seen[name] = error.rule.id

        self.runtime.spawn(name, run)

    def syscall(self, body: Callable[[], object]) -> object:
        """Kernel code as a system call of the first process."""
        previous = self.runtime.enter(self.door.task)
        try:
            return body()
        finally:
            self.runtime.leave(previous)

    def check(self) -> None:
        """Every reference accounted for; then everybody exits and nothing is left."""
        check_host(self.host, {})
        self.after()
        for door in reversed(self.doors):
            door.exit()
        self.host.check_quiet()

    def after(self) -> None:
        """What else must hold."""

    def state(self) -> object:
        """What the tasks saw."""
        return tuple(sorted((name, str(value)) for name, value in self.seen.items()))

    def close(self) -> None:
        """Switch the machine off."""
        self.host.close()


def every_order(build: Callable[[], Race]) -> set[object]:
    """Explore; the ends that were reached."""
    result = explore(build, max_schedules=MOST)
    assert result.outcome is not Outcome.VIOLATED, f"{result.kind}: {result.detail}\n{result.choices}"
    return set(result.states)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_two_threads_fault_on_one_page(shared: bool, write: bool) -> None:
    """One entry comes to be, with one reference; the other thread's page or reference is given back."""

    def build() -> Race:
        race = Race()
        memory = race.kvm.anonymous(PAGE, shared=shared)
        for name in ("a", "b"):
            if write:
                race.task(name, lambda name=name: memory.__setitem__(0, ord(name)))  # type: ignore[misc]
            else:
                race.task(name, lambda: memory[0])
        return race

    assert every_order(build)


def test_two_threads_copy_one_page_on_write() -> None:
    """After fork both write: one copies, the other finds it done."""

    def build() -> Race:
        race = Race()
        memory = race.kvm.anonymous(PAGE)
        memory[:2] = b"ab"
        race.doors.append(race.door.fork())
        race.task("a", lambda: memory.__setitem__(0, ord("A")))
        race.task("b", lambda: memory.__setitem__(1, ord("B")))
        race.after = lambda: assert_equal(memory[:2], b"AB")  # type: ignore[method-assign]
        return race

    assert len(every_order(build)) == 1


def assert_equal(found: object, expected: object) -> None:
    """For use in expressions."""
    assert found == expected


@pytest.mark.parametrize("flags", [FOLL_WRITE, FOLL_WRITE | FOLL_PIN])
def test_pinning_what_is_being_unmapped(flags: int) -> None:
    """GUP-fast takes its reference without a lock: the page may be free by then, and must not come back to life."""

    def build() -> Race:
        race = Race()
        memory = race.kvm.anonymous(PAGE)
        memory[0] = 1
        mm = race.host.init.mm

        def pin() -> str:
            put_pages(mm, get_user_pages_fast(mm, memory.address, 1, flags), flags)
            return "pinned"

        race.task("pin", lambda: race.syscall(pin))
        race.task("unmap", lambda: race.door.munmap(memory.address, PAGE))
        return race

    assert every_order(build) == {
        (("pin", "pinned"), ("unmap", "None")),
        (("pin", "mm.gup.fault"), ("unmap", "None")),
    }


def test_a_fault_against_a_hole() -> None:
    """The entry that is left, if any, leads to the page that the file has then."""

    def build() -> Race:
        race = Race()
        vm = race.kvm.create_vm(SW_PROTECTED)
        gmem = vm.create_guest_memfd(PAGE, BOTH)
        memory = gmem.mmap()
        memory[0] = 7
        race.host.lru.lru_add_drain_all()
        memory.madvise(MADV_DONTNEED)
        race.task("touch", lambda: memory[0])
        race.task("punch", lambda: gmem.punch_hole(0, PAGE))
        return race

    assert every_order(build) == {(("punch", "None"), ("touch", "7")), (("punch", "None"), ("touch", "0"))}


@pytest.mark.parametrize("profile", ["linux-7.3", "inplace-v13"])
def test_a_fault_against_a_hole_without_and_with_the_invalidate_lock(profile: str) -> None:
    """Until conversion, a fault takes no lock but the folio's; truncation must wait for that one."""

    def build() -> Race:
        race = Race(profile)
        gmem = race.kvm.create_vm(DEFAULT).create_guest_memfd(PAGE, BOTH)
        memory = gmem.mmap()
        race.task("touch", lambda: memory.__setitem__(0, 7))
        race.task("punch", lambda: gmem.punch_hole(0, PAGE))
        return race

    assert every_order(build)


def test_converting_a_page_whose_mapping_is_being_split() -> None:
    """munmap() of the first page splits the mapping; the second page's entry must be found all the while."""

    def build() -> Race:
        race = Race()
        vm = race.kvm.create_vm(SW_PROTECTED)
        gmem = vm.create_guest_memfd(2 * PAGE, BOTH)
        memory = gmem.mmap()
        memory[:] = b"x" * 2 * PAGE
        race.host.lru.lru_add_drain_all()
        race.task("unmap", lambda: race.door.munmap(memory.address, PAGE))
        race.task("convert", lambda: gmem.make_private(PAGE, PAGE))
        return race

    assert every_order(build) == {(("convert", "None"), ("unmap", "None"))}


def test_protecting_what_is_being_converted() -> None:
    def build() -> Race:
        race = Race()
        gmem = race.kvm.create_vm(SW_PROTECTED).create_guest_memfd(PAGE, BOTH)
        memory = gmem.mmap()
        memory[0] = 1
        race.host.lru.lru_add_drain_all()
        race.task("protect", lambda: memory.protect(1))
        race.task("convert", lambda: gmem.make_private(0, PAGE))
        return race

    assert every_order(build) == {(("convert", "None"), ("protect", "None"))}


def test_a_guests_fault_against_closing_the_file() -> None:
    """The fault may have the last reference; the file is then released on the vCPU's way out, with no lock held."""

    def build() -> Race:
        race = Race()
        vm = race.kvm.create_vm(SW_PROTECTED)
        gmem = vm.create_guest_memfd(PAGE, BOTH)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
        vcpu = vm.create_vcpu()
        race.task("fault", lambda: vcpu.pre_fault(0, PAGE))
        race.task("close", gmem.close)
        return race

    assert every_order(build) == {
        (("close", "None"), ("fault", "0")),
        (("close", "None"), ("fault", "gmem.get-pfn.closed")),
    }


def test_a_guests_fault_against_deleting_the_slot() -> None:
    def build() -> Race:
        race = Race()
        vm = race.kvm.create_vm(SW_PROTECTED)
        gmem = vm.create_guest_memfd(PAGE, BOTH)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
        vcpu = vm.create_vcpu()
        race.task("fault", lambda: vcpu.pre_fault(0, PAGE))
        race.task("delete", lambda: vm.delete_slot(0))
        return race

    found = every_order(build)
    assert {dict(end)["fault"] for end in found} == {"0", "kvm.pre-fault.no-slot", "kvm.pre-fault.slot-deleted"}  # type: ignore[call-overload]


def test_closing_the_file_against_deleting_the_slot() -> None:
    """Both unbind, and whoever comes first leaves nothing for the other to trip over."""

    def build() -> Race:
        race = Race()
        vm = race.kvm.create_vm(SW_PROTECTED)
        gmem = vm.create_guest_memfd(PAGE, BOTH)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
        race.task("close", gmem.close)
        race.task("delete", lambda: vm.delete_slot(0))
        return race

    assert every_order(build) == {(("close", "None"), ("delete", "None"))}


def test_unmapping_guest_memory_against_deleting_its_slot() -> None:
    """An invalidation that began with the slot ends with it, so that it's counted down where it was counted up."""

    def build() -> Race:
        race = Race("linux-7.3")
        vm = race.kvm.create_vm(DEFAULT)
        memory = race.kvm.anonymous(PAGE)
        memory[0] = 1
        vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
        vm.create_vcpu().pre_fault(0, PAGE)
        race.task("unmap", lambda: memory.madvise(MADV_DONTNEED))
        race.task("delete", lambda: vm.delete_slot(0))
        return race

    assert every_order(build) == {(("delete", "None"), ("unmap", "None"))}


def test_a_guests_fault_against_unmapping_its_memory() -> None:
    def build() -> Race:
        race = Race("linux-7.3")
        vm = race.kvm.create_vm(DEFAULT)
        memory = race.kvm.anonymous(PAGE)
        memory[0] = 1
        vm.set_user_memory_region2(0, 0, PAGE, userspace_addr=memory.address)
        vcpu = vm.create_vcpu()
        race.task("unmap", lambda: memory.madvise(MADV_DONTNEED))
        race.task("fault", lambda: vcpu.pre_fault(0, PAGE))
        return race

    assert every_order(build) == {(("fault", "0"), ("unmap", "None"))}


def test_two_conversions_of_one_page() -> None:
    def build() -> Race:
        race = Race()
        vm = race.kvm.create_vm(VmType.SW_PROTECTED)
        gmem = vm.create_guest_memfd(PAGE, BOTH)
        vm.set_user_memory_region2(0, 0, PAGE, gmem=gmem)
        vm.create_vcpu().pre_fault(0, PAGE)
        race.host.lru.lru_add_drain_all()
        race.task("private", lambda: gmem.make_private(0, PAGE))
        race.task("shared", lambda: gmem.make_shared(0, PAGE))
        return race

    assert every_order(build) == {(("private", "None"), ("shared", "None"))}


def test_forking_while_the_memory_is_written() -> None:
    def build() -> Race:
        race = Race()
        memory = race.kvm.anonymous(PAGE)
        memory[0] = 1
        race.task("fork", lambda: race.doors.append(race.door.fork()))
        race.task("write", lambda: memory.__setitem__(0, 2))
        race.after = lambda: assert_equal(memory[0], 2)  # type: ignore[method-assign]
        return race

    assert every_order(build) == {(("fork", "None"), ("write", "None"))}


def test_a_call_against_closing_its_descriptor() -> None:
    """Either the call has the file before it's closed, and keeps it, or there is no such descriptor."""

    def build() -> Race:
        race = Race()
        vm = race.kvm.create_vm(SW_PROTECTED)
        gmem = vm.create_guest_memfd(PAGE, BOTH)
        fd = gmem.fd
        race.task("allocate", lambda: race.door.fallocate(fd, 1, 0, PAGE))
        race.task("close", gmem.close)
        return race

    assert every_order(build) == {(("allocate", "None"), ("close", "None")), (("allocate", "fs.fd"), ("close", "None"))}

# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machine's frame: the model and the emulation side by side, and how a step is taken on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from gmemu import BusError, ConversionRefused, Host, MemoryFault, VmType
from gmemu.api import GuestMemfd, Mapping
from gmemu.api import Vm as ApiVm
from gmemu.kvm.vm import VmFile as RealVmFile
from gmemu.syscalls.emulated import EmulatedDoor
from gmemu.uapi.mman import MAP_ANONYMOUS, MAP_FIXED, MAP_SHARED

from .kvm_objects import KERNELS, SNP, Exit, Gmem, VcpuFile, Vm, VmFile
from .pages import PAGE, Errno, File, Process, Signal
from .snp_world import SnpWorld
from .twins import Twins

T = TypeVar("T")

KVM_RUN_SIZE = 3 * PAGE
KVM_RUN_AREA = 1 << 40
SCRATCH = 1 << 41
SMALL = st.integers(0, 40)
"""Picks one of several things: any number will do."""
FEW_PAGES = st.integers(1, 5)
FRAME = st.integers(0, 15)
SELDOM = st.sampled_from([False] * 14 + [True])
OFTEN = st.sampled_from([True] * 4 + [False])
ODD = st.integers(0, 219)
"""Whether to use an odd argument, and which: mostly none."""


def pick(things: Sequence[T], n: int) -> T:
    """One of `things`."""
    return things[n % len(things)]


def pick_odd(things: Sequence[T], odd: int) -> T:
    """The first of `things` most of the time."""
    return things[0 if odd < 190 else (odd - 190) % len(things)]


def outcome(call: Callable[[], object]) -> object:
    """What a step came to, in words that the model and the emulation share."""
    try:
        return call()
    except Errno as error:
        return ("errno", error.number, error.offset)
    except Signal as signal:
        return ("signal", signal.name, signal.address)
    except ConversionRefused as refused:
        return ("errno", refused.errno, refused.error_offset)
    except OSError as error:
        return ("errno", error.errno, None)
    except MemoryFault as fault:
        return ("signal", "SIGBUS" if isinstance(fault, BusError) else "SIGSEGV", fault.address)


class Machine(RuleBasedStateMachine):
    """One emulated host, one model of it, and what rules share."""

    profile = "inplace-v13"
    pages = 1 << 14
    """How much memory the machine has."""
    snp = True
    """Whether there are SNP VMs."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Host(self.profile, memory=self.pages * PAGE)
        self.world = SnpWorld(KERNELS[self.profile])
        self.world.capacity = self.pages - 1
        self.twins = Twins(self.world, self.host)
        self.doors: dict[Process, list[EmulatedDoor]] = {}
        self.runs: dict[VcpuFile, Mapping] = {}
        self.exits: dict[VcpuFile, Exit] = {}
        self.seed = 0
        self.sound = True
        """Whether the last step ended well; if not, the end would only hide what went wrong."""
        self._meet(self.world.processes[0], EmulatedDoor(self.host))

    def best_flags(self, kind: int) -> int:
        """The creation flags that make the most useful guest_memfd for a VM of that type.

        In two pools an SNP guest's shared memory is elsewhere; it would hang on a slot that has guest_memfd alone.
        """
        return 0 if kind == SNP and not self.world.kernel.in_place else self.world.kernel.flags_private

    # Steps

    def agree(self, expected: Callable[[], object], actual: Callable[[], object]) -> bool:
        """Take a step on both sides, and compare what came of it.  True if it's not an error."""
        want = outcome(expected)
        have = outcome(actual)
        assert have == want, f"the emulation says {have}, the model {want}"
        return not (isinstance(want, tuple) and want and want[0] in ("errno", "signal"))

    def made(self, expected: Callable[[], int], actual: Callable[[], int], process: Process) -> int | None:
        """A step that makes a descriptor: pair the two files."""
        fd = -1

        def make() -> int:
            nonlocal fd
            fd = actual()
            return fd

        if not self.agree(expected, make):
            return None
        self.twins.files[process.fds[fd]] = self.twins.processes[process].files[fd]
        return fd

    def door(self, process: Process, cpu: int | bool = 0) -> EmulatedDoor:
        """The thread of `process` on CPU 0 or 1.  The model is told who calls."""
        self.sound = False
        self.world.cpu = int(cpu)
        return self.doors[process][int(cpu)]

    def _meet(self, process: Process, door: EmulatedDoor) -> None:
        self.doors[process] = [door, door.thread("other", 1)]
        self.twins.processes[process] = door.process

    # What there is to choose from

    def process(self, n: int) -> Process:
        return pick(self.world.processes, n)

    def opened(self, kind: type[File]) -> list[tuple[Process, int]]:
        """Every descriptor of a file of that kind, in every process."""
        return [(p, fd) for p in self.world.processes for fd, file in p.fds.items() if isinstance(file, kind)]

    def vm_at(self, n: int) -> tuple[Process, int, Vm, ApiVm]:
        """A VM's descriptor, seldom in a process that may not use it."""
        all_ = self.opened(VmFile)
        usable = [(p, fd) for p, fd in all_ if getattr(p.fds[fd], "vm").owner is p]  # noqa: B009
        process, fd = pick(usable if usable and n < 38 else all_, n)
        file = process.fds[fd]
        assert isinstance(file, VmFile)
        return process, fd, file.vm, ApiVm(self.door(process), fd, VmType(file.vm.kind), KVM_RUN_SIZE)

    def gmem_at(self, n: int, cpu: int | bool = 0) -> tuple[Process, int, Gmem, GuestMemfd]:
        process, fd = pick(self.opened(Gmem), n)
        file = process.fds[fd]
        assert isinstance(file, Gmem)
        return process, fd, file, GuestMemfd(self.door(process, cpu), fd, file.npages * PAGE)

    def area_at(self, process: Process, n: int) -> int:
        """The user address of a page that is mapped, seldom of one that isn't.  Never one that the test needs."""
        vpns = [vpn for vpn in sorted(process.areas) if not self.meets_ours(vpn * PAGE, 1)]
        if not vpns or n == 40:
            return ((vpns[-1] if vpns else 0x1234) + 1) * PAGE
        return pick(vpns, n) * PAGE

    def mapped_from(self, process: Process, address: int, pages: int) -> int:
        """How many of the pages from `address` are mapped; at least one."""
        gap = next((i for i in range(pages) if address // PAGE + i not in process.areas), pages)
        return max(gap, 1)

    def meets_ours(self, address: int, pages: int) -> bool:
        """Whether the range has a page that the test itself needs: of a kvm_run, or that of SNP commands."""
        runs = [run.address for file, run in self.runs.items() if file in self.world.files]
        if address <= SCRATCH < address + pages * PAGE:
            return True
        return any(address < run + 3 * PAGE and run < address + pages * PAGE for run in runs)

    # Setting out

    @initialize(
        seed=st.integers(0, 1000),
        kinds=st.sampled_from([[1], [4], [1, 1, 0], [1, 4], [4, 1], [0, 1], []]),
        npages=st.integers(6, 10),
        bound=FRAME,
        waiting=st.sampled_from([0, 0, 20, 28, 30]),
    )
    def set_out(self, seed: int, npages: int, bound: int, waiting: int, kinds: list[int]) -> None:
        """Open /dev/kvm; mostly, make VMs with guest_memfds, mapped and partly bound, for steps to meet.

        Some pages `waiting` in the LRU batch, of memory that's gone, make it fill up sooner.
        """
        self.seed = seed
        process = self.world.processes[0]
        self.open_device(process)
        if waiting:
            door = self.door(process)
            address = door.mmap(0, waiting * PAGE, 3, MAP_SHARED | MAP_ANONYMOUS)
            self.world.map_anonymous(process, waiting, 3, True, address)
            self.agree(
                lambda: self.world.store(process, address, bytes(waiting * PAGE)),
                lambda: door.store(address, bytes(waiting * PAGE)),
            )
            self.agree(
                lambda: self.world.unmap_range(process, address, waiting), lambda: door.munmap(address, waiting * PAGE)
            )
        for kind in kinds if self.snp else [1 if kind == SNP else kind for kind in kinds]:
            self.make_vm(process, 3, kind)
            self.set_up_vm(npages, min(bound, npages))

    def open_device(self, process: Process) -> None:
        self.made(lambda: self.world.open_device(process), lambda: self.door(process).open("/dev/kvm"), process)

    def set_up_vm(self, npages: int, bound: int) -> None:
        raise NotImplementedError

    def make_vm(self, process: Process, fd: int, kind: int) -> None:
        raise NotImplementedError

    def adopt_vm(self, process: Process, fd: int) -> None:
        """Pair a VM that was made."""
        file, real = process.fds[fd], self.twins.processes[process].files[fd]
        assert isinstance(file, VmFile)
        assert isinstance(real, RealVmFile)
        self.twins.vms[file.vm] = real.vm

    def adopt_vcpu(self, process: Process, fd: int) -> None:
        """Map the kvm_run of a vCPU that was made: far from all else, as no slot should happen to be there."""
        file = process.fds[fd]
        assert isinstance(file, VcpuFile)
        address, door = KVM_RUN_AREA + len(self.runs) * (1 << 24), self.door(process)
        self.agree(
            lambda: self.world.map_file(process, fd, 0, 3, 3, True, address),
            lambda: door.mmap(address, KVM_RUN_SIZE, 3, MAP_SHARED | MAP_FIXED, fd, 0) and None,
        )
        self.runs[file] = Mapping(door, address, KVM_RUN_SIZE)

    # After every step, and at the end

    @invariant()
    def same_state(self) -> None:
        """The model and the emulation are in the same state, and the emulation's own invariants hold."""
        self.twins.check()
        self.sound = True

    def teardown(self) -> None:
        """Everything ends, in an order of its own each time; nothing may be left."""
        if not self.sound:
            return
        random = Random(self.seed)
        while self.world.processes or self.world.holds:
            if self.world.holds and (not self.world.processes or random.random() < 0.3):
                self.drop_hold(random.randrange(len(self.world.holds)))
            else:
                process = random.choice(self.world.processes)
                if process.fds and random.random() < 0.8:
                    fd = random.choice(list(process.fds))
                    self.agree(lambda: self.world.close(process, fd), lambda: self.door(process).close(fd))  # noqa: B023
                else:
                    self.agree(lambda: self.world.exit(process), lambda: self.door(process).exit())  # noqa: B023
            self.twins.check()
        assert not self.world.vms
        assert not self.world.files
        self.host.check_quiet()
        self.host.close()

    def drop_hold(self, n: int) -> None:
        raise NotImplementedError

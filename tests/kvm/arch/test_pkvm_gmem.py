# SPDX-License-Identifier: GPL-2.0-or-later
"""The proposal for pKVM: a protected VM in guest_memfd, whose guest's MEM_UNSHARE ends KVM_RUN until the host has let go."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EFAULT, EIO, ENOMEM, ENOTTY, EPERM
from functools import partial

import pytest

from gmemu import BusError, Cap, Exit, ExitReason, GuestMemfd, Mapping, SegmentationFault, Vcpu, Vm, VmType
from gmemu.api.pin import Pin
from gmemu.check import check_host
from gmemu.explore.variants import apply
from gmemu.hw.el2.guest_cpu import PkvmGuestCpu
from gmemu.hw.el2.hypervisor import El2Call, Hypervisor, PageState
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, KVM_MEMORY_ATTRIBUTE_PRIVATE
from gmemu.vmm import GuestStuck, Vmm
from gmemu.vmm.memory import left_to_kvm

from ..world import PAGE, errno_of, refusal
from .arm_world import ArmWorld

GPA = 1 << 30
GFN = GPA // PAGE
SHARED = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
INVALID = -3
PAGES = 4


class GmemWorld(ArmWorld):
    """A protected VM with a vCPU, and four pages of guest_memfd at GPA, mapped by the VMM."""

    platform = "pkvm"

    def __init__(self, *variants: str) -> None:
        super().__init__("inplace-v13-pkvm")
        self.host.design = apply(self.host.design, variants)
        self.protected: Vm = self.vm(VmType.ARM_PROTECTED)
        self.file: GuestMemfd = self.protected.create_guest_memfd(PAGES * PAGE, SHARED)
        self.memory: Mapping = self.file.mmap()
        address = self.memory.address
        self.protected.set_user_memory_region2(0, GPA, PAGES * PAGE, gmem=self.file, userspace_addr=address)
        self.run_by: Vcpu = self.vcpu(self.protected)

    @property
    def hypervisor(self) -> Hypervisor:
        return self.host.pkvm.hypervisor

    def state(self, page: int = 0) -> PageState:
        """The host's state of a page at EL2."""
        [inode] = self.host.gmem_inodes
        pfn = inode.mapping.pfn(page)
        assert pfn is not None
        return self.hypervisor.host_state(pfn)

    def share_pages(self, pages: int = 1) -> None:
        """The guest writes "guest" to its first pages and shares them."""

        def guest(cpu: PkvmGuestCpu) -> None:
            for page in range(pages):
                cpu.store(GPA + page * PAGE, b"guest")
                cpu.convert(GPA + page * PAGE, PAGE, private=False)

        assert self.run_by.run(guest).reason is ExitReason.HLT

    def pin(self, page: int = 0) -> Pin:
        """A device has a page."""
        return Pin(self.door, self.memory.address + page * PAGE, PAGE)


@pytest.fixture
def world() -> Iterator[GmemWorld]:
    world = GmemWorld()
    yield world
    world.finish()


def wants_it_back(cpu: PkvmGuestCpu) -> None:
    """A guest that unshares its first page and looks at what is in it."""
    cpu.convert(GPA, PAGE, private=True)
    assert cpu.load(GPA, 5) == b"guest"


class TestOnce:
    """Continuation 1: user space lets go, and it's done."""

    def test_the_image_is_what_the_vmm_wrote_and_the_vmm_loses_it(self, world: GmemWorld) -> None:
        world.memory[0:5] = b"image"
        seen: list[bytes] = []
        assert world.run_by.run(lambda cpu: seen.append(cpu.load(GPA, 5))).reason is ExitReason.HLT
        assert seen == [b"image"]
        assert world.state() is PageState.NOPAGE
        with pytest.raises(BusError) as caught:
            world.memory[0]
        assert caught.value.rule.id == "gmem.fault.private"
        assert world.memory[PAGE] == 0  # the guest never touched that one
        check_host(world.host)

    def test_both_ways_and_the_bytes_stay(self, world: GmemWorld) -> None:
        def guest(cpu: PkvmGuestCpu) -> None:
            cpu.store(GPA, b"from the guest")
            cpu.convert(GPA, PAGE, private=False)
            cpu.halt()
            cpu.convert(GPA, PAGE, private=True)
            assert cpu.load(GPA, 13) == b"From the VMM!"

        assert world.run_by.run(guest).reason is ExitReason.HLT
        assert world.state() is PageState.SHARED_BORROWED
        assert world.memory[0:14] == b"from the guest"
        world.memory[0:13] = b"From the VMM!"
        exit_ = world.run_by.run()
        assert exit_.reason is ExitReason.UNSHARE
        assert (exit_.unshare.gpa, exit_.unshare.size) == (GPA, PAGE)
        assert world.state() is PageState.SHARED_BORROWED  # nothing was taken yet
        assert world.host.init.mm.pte(world.memory.address // PAGE) is None  # but it's unmapped
        assert world.memory[0:4] == b"From"  # and may be had again until the vCPU runs (discussion A)
        assert world.run_by.run().reason is ExitReason.HLT
        assert world.state() is PageState.NOPAGE
        with pytest.raises(BusError):
            world.memory[0]
        check_host(world.host)

    def test_what_isnt_the_guests_to_take_never_leaves_the_hypervisor(self, world: GmemWorld) -> None:
        answers: list[int] = []

        def guest(cpu: PkvmGuestCpu) -> None:
            answers.append(cpu.mem_unshare(GPA))  # nothing is there
            cpu.load(GPA, 1)
            answers.append(cpu.mem_unshare(GPA))  # its own
            answers.append(cpu.mem_unshare(GPA + 1))
            answers.append(cpu.mem_share(GPA))
            answers.append(cpu.mem_share(GPA))

        assert world.run_by.run(guest).reason is ExitReason.HLT
        assert answers == [INVALID, INVALID, INVALID, 0, INVALID]

    def test_user_space_has_no_call_for_it(self, world: GmemWorld) -> None:
        vm, gmem = world.protected, world.file
        assert vm.check_extension(Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES) == 0
        for attributes in (0, KVM_MEMORY_ATTRIBUTE_PRIVATE):
            call = partial(gmem.set_memory_attributes, 0, PAGE, attributes)
            assert errno_of(call) == ENOTTY
            assert refusal(call) == "pkvm.attributes.guest-converts"

    def test_a_slot_without_guest_memfd_is_pinned_memory_as_ever(self, world: GmemWorld) -> None:
        memory = world.kvm.anonymous(PAGE)
        world.protected.set_user_memory_region2(1, 2 * GPA, PAGE, userspace_addr=memory.address)

        def guest(cpu: PkvmGuestCpu) -> None:
            cpu.store(2 * GPA, b"mine")
            cpu.convert(2 * GPA, PAGE, private=False)
            cpu.convert(2 * GPA, PAGE, private=True)
            assert cpu.load(2 * GPA, 4) == b"mine"

        assert world.run_by.run(guest).reason is ExitReason.HLT
        with pytest.raises(SegmentationFault):
            memory[0]
        assert world.host.init.mm.locked_vm == 1

    def test_nothing_of_guest_memfd_is_pinned(self, world: GmemWorld) -> None:
        world.run_by.run(lambda cpu: cpu.store(GPA, b"x"))
        report = world.protected.memory_report()
        assert (report.private, report.pinned, world.host.init.mm.locked_vm) == (PAGE, 0, 0)


class TestAgain:
    """Continuation 2a, the default: as long as somebody holds the page, the vCPU exits again."""

    def test_it_exits_until_the_page_is_let_go(self, world: GmemWorld) -> None:
        world.share_pages()
        pin = world.pin()
        exits = [world.run_by.run(wants_it_back)]
        exits += [world.run_by.run() for _ in range(3)]
        assert [(e.reason, e.unshare.gpa) for e in exits] == [(ExitReason.UNSHARE, GPA)] * 4
        assert world.state() is PageState.SHARED_BORROWED
        pin.release()
        assert world.run_by.run().reason is ExitReason.HLT
        assert world.state() is PageState.NOPAGE

    def test_meanwhile_no_vcpu_of_the_guest_reaches_the_page(self, world: GmemWorld) -> None:
        """Who touches it takes it, as soon as nobody holds it; the one that asked finds it done."""
        world.share_pages()
        other = world.vcpu(world.protected, 1)
        pin = world.pin()
        assert world.run_by.run(wants_it_back).reason is ExitReason.UNSHARE
        seen: list[bytes] = []
        exit_ = other.run(lambda cpu: seen.append(cpu.load(GPA, 5)))
        assert (exit_.reason, exit_.wants_private, exit_.memory_fault.gpa) == (ExitReason.MEMORY_FAULT, True, GPA)
        assert exit_.error is not None
        assert exit_.error.rule.id == "pkvm.fault.held"
        pin.release()
        assert other.run().reason is ExitReason.HLT
        assert seen == [b"guest"]
        assert world.run_by.run().reason is ExitReason.HLT
        check_host(world.host)

    def test_a_first_touch_of_what_a_device_has(self, world: GmemWorld) -> None:
        world.memory[0:5] = b"guest"
        pin = world.pin()
        exit_ = world.run_by.run(lambda cpu: cpu.load(GPA, 1))
        assert (exit_.reason, exit_.wants_private) == (ExitReason.MEMORY_FAULT, True)
        assert world.state() is PageState.OWNED
        pin.release()
        assert world.run_by.run().reason is ExitReason.HLT


class TestRefuseLater:
    """Continuation 2b: the guest goes on, and is refused its page when it touches it."""

    @pytest.fixture
    def world(self) -> Iterator[GmemWorld]:
        world = GmemWorld("convert-in-vcpu-run-refuse")
        yield world
        world.finish()

    def test_the_guest_goes_on_and_faults(self, world: GmemWorld) -> None:
        world.share_pages(2)
        pin = world.pin()
        done: list[str] = []

        def guest(cpu: PkvmGuestCpu) -> None:
            cpu.convert(GPA, PAGE, private=True)
            done.append("answered")
            assert cpu.mem_unshare(GPA) == INVALID  # it has asked already
            cpu.load(GPA + PAGE, 1)
            done.append("another page")
            assert cpu.load(GPA, 5) == b"guest"

        assert world.run_by.run(guest).reason is ExitReason.UNSHARE
        exit_ = world.run_by.run()
        assert done == ["answered", "another page"]
        assert (exit_.reason, exit_.memory_fault.gpa, exit_.wants_private) == (ExitReason.MEMORY_FAULT, GPA, True)
        assert world.run_by.run().reason is ExitReason.MEMORY_FAULT
        pin.release()
        assert world.run_by.run().reason is ExitReason.HLT
        assert world.state() is PageState.NOPAGE
        check_host(world.host)

    def test_at_once_where_nobody_holds_it(self, world: GmemWorld) -> None:
        world.share_pages()
        assert world.run_by.run(wants_it_back).reason is ExitReason.UNSHARE
        assert world.run_by.run().reason is ExitReason.HLT


class TestByIoctl:
    """The other design, for pKVM: user space converts, and KVM looks whether it did."""

    @pytest.fixture
    def world(self) -> Iterator[GmemWorld]:
        world = GmemWorld("unshare-by-ioctl")
        yield world
        world.finish()

    def test_the_vcpu_exits_until_user_space_has_converted(self, world: GmemWorld) -> None:
        world.file.make_private(0, PAGE)
        world.share_pages()
        pin = world.pin()
        assert world.run_by.run(wants_it_back).reason is ExitReason.UNSHARE
        assert refusal(lambda: world.file.make_private(0, PAGE)) == "gmem.attributes.busy"
        pin.release()
        assert world.run_by.run().reason is ExitReason.UNSHARE
        world.file.make_private(0, PAGE)
        assert world.state() is PageState.SHARED_BORROWED
        assert world.run_by.run().reason is ExitReason.HLT
        assert world.state() is PageState.NOPAGE

    def test_only_the_guest_shares(self, world: GmemWorld) -> None:
        world.file.make_private(0, PAGE)
        world.run_by.run(lambda cpu: cpu.load(GPA, 1))
        assert errno_of(lambda: world.file.make_shared(0, PAGE)) == EPERM
        assert refusal(lambda: world.file.make_shared(0, PAGE)) == "pkvm.attributes.guest-shares"


class TestLoss:
    """The guest loses a page: the host's kernel touches it, or it leaves the file."""

    def test_the_hosts_kernel_touches_it(self, world: GmemWorld) -> None:
        world.run_by.run(lambda cpu: cpu.store(GPA, b"secret"))
        [inode] = world.host.gmem_inodes
        pfn = inode.mapping.pfn(0)
        assert pfn is not None
        world.host.memory.copy(pfn, pfn + 100, 1)
        assert world.host.memory.read(pfn * PAGE, 6) == bytes(6)
        assert errno_of(lambda: world.run_by.run(lambda cpu: cpu.load(GPA, 1))) == EFAULT
        assert refusal(world.run_by.run) == "pkvm.fault.poisoned"
        with pytest.raises(BusError):
            world.memory[0]

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_punched_page_is_poisoned(self, world: GmemWorld, shared: bool) -> None:
        world.share_pages()
        if not shared:
            world.run_by.run(wants_it_back)
            world.run_by.run()
        world.file.punch_hole(0, PAGE)
        check_host(world.host)
        assert errno_of(lambda: world.run_by.run(lambda cpu: cpu.load(GPA, 1))) == EFAULT
        assert refusal(world.run_by.run) == "pkvm.fault.poisoned"

    def test_punched_while_the_guest_waits_for_it(self, world: GmemWorld) -> None:
        world.share_pages()
        answers: list[int] = []
        assert world.run_by.run(lambda cpu: answers.append(cpu.mem_unshare(GPA))).reason is ExitReason.UNSHARE
        world.file.punch_hole(0, PAGE)
        assert world.run_by.run().reason is ExitReason.HLT
        assert answers == [INVALID]
        check_host(world.host)

    def test_the_file_is_closed(self, world: GmemWorld) -> None:
        world.share_pages()
        answers: list[int] = []
        assert world.run_by.run(lambda cpu: answers.append(cpu.mem_unshare(GPA))).reason is ExitReason.UNSHARE
        world.memory.close()
        world.file.close()
        assert world.run_by.run().reason is ExitReason.HLT
        assert answers == [INVALID]
        assert errno_of(lambda: world.run_by.run(lambda cpu: cpu.load(GPA, 1))) == EFAULT

    def test_what_the_hypervisor_keeps_is_leaked(self, world: GmemWorld) -> None:
        world.dirty = True
        world.run_by.run(lambda cpu: cpu.load(GPA, 1))
        world.hypervisor.inject = lambda call, what: EPERM if call is El2Call.RECLAIM_GUEST_PAGE else None
        world.file.punch_hole(0, PAGE)
        assert sum(end - start for start, end, _ in world.host.memmap.leaked.runs()) == 1


class TestFailures:
    def test_the_hypervisor_doesnt_give_it_back(self, world: GmemWorld) -> None:
        world.share_pages()
        answers: list[int] = []
        world.run_by.run(lambda cpu: answers.append(cpu.mem_unshare(GPA)))
        world.hypervisor.inject = lambda call, what: EPERM if call is El2Call.COMPLETE_UNSHARE else None
        assert world.run_by.run().reason is ExitReason.HLT
        world.hypervisor.inject = None
        assert answers == [INVALID]
        assert world.memory[0:5] == b"guest"
        assert world.state() is PageState.SHARED_BORROWED
        check_host(world.host)

    def test_no_memory_to_note_that_it_is_shared(self, world: GmemWorld) -> None:
        world.run_by.run(lambda cpu: cpu.store(GPA, b"guest"))
        world.host.failing_allocations["gmem-attributes"] = 1
        assert errno_of(lambda: world.run_by.run(lambda cpu: cpu.convert(GPA, PAGE, private=False))) == ENOMEM
        assert world.run_by.run().reason is ExitReason.HLT
        assert world.memory[0:5] == b"guest"

    def test_no_memory_to_note_that_it_is_private(self, world: GmemWorld) -> None:
        """It's as if somebody held the page."""
        world.share_pages()
        assert world.run_by.run(wants_it_back).reason is ExitReason.UNSHARE
        world.host.failing_allocations["gmem-attributes"] = 1
        assert world.run_by.run().reason is ExitReason.UNSHARE
        assert world.run_by.run().reason is ExitReason.HLT

    def test_memory_that_the_upstream_kernel_would_refuse(self) -> None:
        """inplace-v13 itself has no such thing: guest_memfd can't be pinned for a protected VM."""
        world = ArmWorld.__new__(GmemWorld)
        ArmWorld.__init__(world, "inplace-v13")
        vm = world.vm(VmType.ARM_PROTECTED)
        gmem = vm.create_guest_memfd(PAGE, SHARED)
        memory = gmem.mmap()
        vm.set_user_memory_region2(0, GPA, PAGE, userspace_addr=memory.address)
        assert errno_of(lambda: world.vcpu(vm).run(lambda cpu: cpu.load(GPA, 1))) == EIO
        world.finish()


class Device:
    """Something that holds pages until it's asked."""

    def __init__(self, pin: Pin) -> None:
        self.pin = pin

    def let_go(self, gpa: int, size: int) -> None:
        self.pin.release()

    def take(self, gpa: int, size: int) -> None:
        """Pages that are shared."""


class TestReferenceVmm:
    def vmm(self, world: GmemWorld) -> Vmm:
        vmm = Vmm(world.kvm, world.protected)
        assert vmm._convert is left_to_kvm
        world.protected.delete_slot(0)
        vmm.add_memory(2 * GPA, PAGE)
        return vmm

    def guest(self, cpu: PkvmGuestCpu) -> None:
        cpu.store(2 * GPA, b"guest")
        cpu.convert(2 * GPA, PAGE, private=False)
        cpu.halt()
        cpu.convert(2 * GPA, PAGE, private=True)
        assert cpu.load(2 * GPA, 5) == b"guest"

    def test_it_lets_go(self, world: GmemWorld) -> None:
        vmm = self.vmm(world)
        assert vmm.run(world.run_by, self.guest).reason is ExitReason.HLT
        [block] = vmm.blocks
        vmm.holders.append(Device(Pin(world.door, block.buffer.address, PAGE)))
        assert vmm.run(world.run_by).reason is ExitReason.HLT
        vmm.close()

    def test_somebody_elses_hold_ends_in_words(self, world: GmemWorld) -> None:
        vmm = self.vmm(world)
        exit_: Exit = vmm.run(world.run_by, self.guest)
        assert exit_.reason is ExitReason.HLT
        [block] = vmm.blocks
        with Pin(world.door, block.buffer.address, PAGE), pytest.raises(GuestStuck, match="private 17 times in a row"):
            vmm.run(world.run_by)
        vmm.close()

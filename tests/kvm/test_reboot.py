# SPDX-License-Identifier: GPL-2.0-or-later
"""A reboot: the VMM takes the slots away, makes all memory private again while nothing is bound, and starts afresh.

It's what a conversion addressed to the memory can do, and one that takes a vCPU can't (discussion A).
"""

from __future__ import annotations

import pytest

from gmemu import PROFILES, BusError, ExitReason, GuestMemfd, Host, Kvm, Mapping, Vm, VmType
from gmemu.check import check_host
from gmemu.explore.variants import apply
from gmemu.kvm.design import Design
from gmemu.profiles import get
from gmemu.sync import Deadlock

from .world import PAGE, load, refusal, store, touch

PAGES = 4
WAYS: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name in PROFILES]
WAYS += [("inplace-v13", (variant,)) for variant in ("refcount-wait", "refcount-third-state")]


class Machine:
    """A software-protected VM of four pages, mapped where the kernel lets them be."""

    def __init__(self, profile: str, variants: tuple[str, ...]) -> None:
        self.host = Host(profile, memory=1 << 32, design=apply(Design.of(get(profile)), variants))
        self.kvm = Kvm.open_on(self.host)
        self.vm: Vm = self.kvm.create_vm(VmType.SW_PROTECTED)
        self.in_place = self.host.profile.in_place
        self.gmem: GuestMemfd = self.vm.create_guest_memfd(PAGES * PAGE, self.host.profile.shared_at_first)
        self.memory: Mapping = self.gmem.mmap() if self.in_place else self.kvm.anonymous(PAGES * PAGE)
        self.bind()

    def bind(self) -> None:
        self.vm.set_user_memory_region2(0, 0, PAGES * PAGE, gmem=self.gmem, userspace_addr=self.memory.address)

    def convert(self, page: int, pages: int, private: bool) -> None:
        owner = self.gmem if self.in_place else self.vm
        (owner.make_private if private else owner.make_shared)(page * PAGE, pages * PAGE)

    def private(self) -> list[bool]:
        [vm] = self.host.vms
        return [vm.attributes.is_private(gfn) for gfn in range(PAGES)]


@pytest.mark.parametrize(("profile", "variants"), WAYS)
def test_memory_is_reset_to_private_while_no_slot_is_bound(profile: str, variants: tuple[str, ...]) -> None:
    machine = Machine(profile, variants)
    vcpu = machine.vm.create_vcpu()
    machine.convert(0, PAGES, private=True)
    store(vcpu, 0, b"old")
    machine.convert(1, 2, private=False)
    machine.memory[PAGE : PAGE + 3] = b"io!"
    assert load(vcpu, PAGE, 3) == b"io!"
    assert machine.private() == [True, False, False, True]

    machine.vm.delete_slot(0)
    machine.convert(0, PAGES, private=True)  # nothing is bound, and no vCPU runs
    machine.gmem.punch_hole(0, PAGES * PAGE)
    machine.bind()
    assert machine.private() == [True] * PAGES
    assert load(vcpu, 0, 3) == bytes(3)
    assert load(vcpu, PAGE, 3) == bytes(3)
    if machine.in_place:
        with pytest.raises(BusError):
            machine.memory[PAGE]
    check_host(machine.host)


@pytest.mark.parametrize("profile", [name for name, p in PROFILES.items() if p.in_place])
def test_without_it_the_guest_finds_its_old_attributes(profile: str) -> None:
    """Attributes are the file's: they outlive the slot, so a VMM that doesn't reset them boots into what was left."""
    machine = Machine(profile, ())
    vcpu = machine.vm.create_vcpu()
    machine.convert(0, 1, private=True)
    machine.vm.delete_slot(0)
    assert machine.private() == [False] * PAGES  # a gfn without a slot is shared
    assert touch(vcpu, 0).reason is ExitReason.MMIO
    machine.bind()
    assert machine.private() == [True, False, False, False]


def test_conversion_in_vcpu_run_has_no_way_to_do_it() -> None:
    """There is no call, and no vCPU whose guest would ask: the guest has to mend its state itself."""
    machine = Machine("inplace-v13", ("convert-in-vcpu-run",))
    machine.vm.delete_slot(0)
    assert refusal(lambda: machine.convert(0, PAGES, private=True)) == "gmem.ioctl.unknown"


def test_a_wait_for_a_reference_that_nobody_drops_is_told_of() -> None:
    """refcount-wait in one thread: the real kernel would hang here."""
    machine = Machine("inplace-v13", ("refcount-wait",))
    machine.memory[0] = 1
    with machine.memory.pin(0, PAGE), pytest.raises(Deadlock, match="references to go: file page 0x0"):
        machine.convert(0, 1, True)
    machine.convert(0, 1, True)
    check_host(machine.host)

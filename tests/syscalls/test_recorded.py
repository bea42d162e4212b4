# SPDX-License-Identifier: GPL-2.0-or-later
"""The door that writes down what goes through it."""

from __future__ import annotations

from errno import EBADF

import pytest

from gmemu import BusError, Host, KernelError
from gmemu.syscalls.door import Door
from gmemu.syscalls.recorded import RecordedDoor
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_MMAP, KVM_CREATE_GUEST_MEMFD, KVM_CREATE_VM, VmType, kvm_create_guest_memfd
from gmemu.uapi.mman import MAP_SHARED, PROT_READ


def test_calls_with_their_results() -> None:
    with Host() as host:
        door = RecordedDoor(host)
        kvm = door.open("/dev/kvm")
        vm = door.ioctl(kvm, KVM_CREATE_VM, int(VmType.SW_PROTECTED))
        argument = bytearray(kvm_create_guest_memfd(size=4096, flags=GUEST_MEMFD_FLAG_MMAP).pack())
        before = bytes(argument)
        gmem = door.ioctl(vm, KVM_CREATE_GUEST_MEMFD, argument)
        with pytest.raises(KernelError):
            door.ioctl(99, KVM_CREATE_VM)
        address = door.mmap(0, 4096, PROT_READ, MAP_SHARED, gmem, 0)
        with pytest.raises(BusError):
            door.load(address, 1)
        made = [(call.name, call.result) for call in door.calls]
        assert made == [
            ("open", kvm),
            ("ioctl", vm),
            ("ioctl", gmem),
            ("ioctl", -EBADF),
            ("mmap", address),
            ("load", "SIGBUS"),
        ]
        assert door.calls[2].args == (vm, KVM_CREATE_GUEST_MEMFD, before)
        assert door.calls[5].rule == "gmem.fault.private"
        assert all(call.task == -1 for call in door.calls)


def test_children_and_threads_write_into_the_same_list() -> None:
    with Host() as host:
        door = RecordedDoor(host)
        child = door.fork()
        child.open("/dev/kvm")
        door.thread("other").open("/dev/kvm")
        child.exit()
        assert [(call.name, call.process) for call in door.calls] == [("fork", 0), ("open", 1), ("open", 0)]


def test_every_call_of_the_protocol_is_recorded() -> None:
    calls = [name for name, member in vars(Door).items() if callable(member) and not name.startswith("_")]
    assert calls
    assert all(getattr(RecordedDoor, name).__qualname__ == "_record.<locals>.method" for name in calls)

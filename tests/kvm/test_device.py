# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm: capabilities, arguments, VM types, descriptors."""

from __future__ import annotations

from errno import EINVAL, EMFILE

import pytest

from gmemu import Cap, VmType
from gmemu.kvm.device import VCPU_MMAP_SIZE
from gmemu.uapi.kvm import (
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_RUN,
)

from .world import BOTH, DEFAULT, MMAP, PRIVATE, SW_PROTECTED, World, errno_of, every_profile, refusal


def test_version_and_sizes(world: World) -> None:
    assert world.kvm.api_version() == 12
    assert world.kvm.ioctl(KVM_GET_VCPU_MMAP_SIZE) == VCPU_MMAP_SIZE == 0x3000


@pytest.mark.parametrize("request_", [KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE])
def test_an_argument_where_none_is_taken(world: World, request_: int) -> None:
    assert refusal(lambda: world.kvm.ioctl(request_, 1)) == "kvm.device.argument"
    assert refusal(lambda: world.kvm.ioctl(request_, bytearray(8))) == "kvm.device.argument"


def test_an_unknown_ioctl(world: World) -> None:
    assert refusal(lambda: world.kvm.ioctl(KVM_RUN)) == "kvm.device.ioctl"
    assert errno_of(lambda: world.kvm.ioctl(0x1234)) == EINVAL


CAPS: dict[str, dict[Cap, tuple[int, int, int]]] = {
    "linux-6.12": {
        Cap.MEMORY_ATTRIBUTES: (8, 0, 8),
        Cap.GUEST_MEMFD: (1, 0, 1),
        Cap.GUEST_MEMFD_FLAGS: (0, 0, 0),
        Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES: (0, 0, 0),
    },
    "linux-6.18": {
        Cap.MEMORY_ATTRIBUTES: (8, 0, 8),
        Cap.GUEST_MEMFD: (1, 1, 1),
        Cap.GUEST_MEMFD_FLAGS: (BOTH, BOTH, MMAP),
        Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES: (0, 0, 0),
    },
    "linux-7.3": {
        Cap.USER_MEMORY2: (1, 1, 1),
        Cap.MEMORY_FAULT_INFO: (1, 1, 1),
        Cap.MEMORY_ATTRIBUTES: (8, 0, 8),
        Cap.GUEST_MEMFD: (1, 1, 1),
        Cap.PRE_FAULT_MEMORY: (1, 1, 1),
        Cap.GUEST_MEMFD_FLAGS: (BOTH, BOTH, MMAP),
        Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES: (0, 0, 0),
    },
    "inplace-v13": {
        Cap.MEMORY_ATTRIBUTES: (0, 0, 0),
        Cap.GUEST_MEMFD: (1, 1, 1),
        Cap.GUEST_MEMFD_FLAGS: (BOTH, BOTH, BOTH),
        Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES: (PRIVATE, 0, PRIVATE),
    },
}


@pytest.mark.parametrize(("world", "caps"), CAPS.items(), indirect=["world"], ids=list(CAPS))
def test_capabilities_of_device_and_vms(world: World, caps: dict[Cap, tuple[int, int, int]]) -> None:
    default, private = world.vm(DEFAULT), world.vm(SW_PROTECTED)
    for cap, values in caps.items():
        found = (world.kvm.check_extension(cap), default.check_extension(cap), private.check_extension(cap))
        assert found == values, cap


def test_an_unknown_capability_is_zero(world: World) -> None:
    assert world.kvm.check_extension(9999) == 0
    assert world.vm().check_extension(9999) == 0
    assert world.kvm.ioctl(KVM_CHECK_EXTENSION, bytearray(8)) == 0


@every_profile
def test_vm_types(world: World) -> None:
    mask = world.kvm.check_extension(Cap.VM_TYPES)
    assert mask & 3 == 3
    for vm_type in range(8):
        expected = "" if mask >> vm_type & 1 else "kvm.create-vm.type"
        assert refusal(lambda vm_type=vm_type: world.kvm.ioctl(KVM_CREATE_VM, vm_type)) == expected  # type: ignore[misc]


def test_a_type_that_isnt_a_number(world: World) -> None:
    assert refusal(lambda: world.kvm.ioctl(KVM_CREATE_VM, bytearray(8))) == "kvm.create-vm.type"


def test_no_descriptor_left_comes_before_the_type(world: World) -> None:
    """get_unused_fd_flags() is the first thing that KVM_CREATE_VM does."""
    process = world.host.init
    process.nofile = len(process.files) + 3
    assert errno_of(lambda: world.kvm.ioctl(KVM_CREATE_VM, 99)) == EMFILE
    assert world.host.vms == []
    process.nofile += 1
    assert errno_of(lambda: world.kvm.ioctl(KVM_CREATE_VM, 99)) == EINVAL
    assert world.vm().fd == process.nofile - 1


def test_no_memory_for_a_vm(world: World) -> None:
    world.host.failing_allocations["kvm"] = 1
    assert refusal(lambda: world.vm()) == "mm.page.oom"
    assert world.vm().vm_type is VmType.SW_PROTECTED


def test_reading_and_writing(world: World) -> None:
    assert refusal(lambda: world.door.read(world.kvm.fd, 1)) == "fs.read.unsupported"
    assert refusal(lambda: world.door.fallocate(world.kvm.fd, 0, 0, 4096)) == "fs.fallocate.type"


def test_paths(world: World) -> None:
    assert refusal(lambda: world.door.open("/dev/null")) == "fs.open.missing"
    vm = world.vm()
    assert refusal(lambda: world.door.open(f"/proc/self/fd/{vm.fd}")) == "fs.open.no-device"

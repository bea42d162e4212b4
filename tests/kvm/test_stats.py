# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_STATS_FD: that what it tells is what happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gmemu import ExitReason, Vcpu, Vm
from gmemu.uapi.kvm import KVM_GET_STATS_FD, kvm_stats_desc, kvm_stats_header

from .test_memslots import plain
from .world import PAGE, World, store


@contextmanager
def statistics(of: Vm | Vcpu) -> Iterator[int]:
    """The descriptor."""
    fd = of.door.ioctl(of.fd, KVM_GET_STATS_FD, 0)
    yield fd
    of.door.close(fd)


def values(of: Vm | Vcpu) -> dict[str, int]:
    """All that is told, by name; of a histogram the first value."""
    with statistics(of) as fd:
        header = kvm_stats_header.unpack_from(of.door.pread(fd, kvm_stats_header.SIZE, 0))
        size, found = kvm_stats_desc.SIZE, {}
        for i in range(header.num_desc):
            desc = kvm_stats_desc.unpack_from(of.door.pread(fd, size, header.desc_offset + i * size))
            raw = of.door.pread(fd, 8, header.data_offset + desc.offset)
            found[desc.name.rstrip(b"\0").decode()] = int.from_bytes(raw, "little")
        return found


def test_what_a_vcpu_did(world: World) -> None:
    vm, vcpu, _ = plain(world)
    before = values(vcpu)
    store(vcpu, 0, b"x")
    store(vcpu, PAGE, b"x")
    after = values(vcpu)
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {"exits": 4, "pf_taken": 2, "pf_fixed": 2, "halt_exits": 2}
    assert values(vm)["pages_4k"] == 2


def test_a_device_is_an_emulated_instruction(world: World) -> None:
    _, vcpu, _ = plain(world, 1)
    assert vcpu.run(lambda cpu: cpu.store(0x100000, b"x")).reason is ExitReason.MMIO
    now = values(vcpu)
    assert (now["mmio_exits"], now["insn_emulation"], now["pf_emulate"]) == (1, 1, 1)


def test_a_shared_read_does_not_move_the_data(world: World) -> None:
    """Reads go on from where the last ended; what says where it reads from doesn't move that."""
    vm, _, _ = plain(world)
    with statistics(vm) as fd:
        whole = vm.door.pread(fd, 1 << 20, 0)
        assert vm.door.read(fd, 24) + vm.door.read(fd, 48) == whole[:72]
        assert vm.door.pread(fd, 4, 4) == whole[4:8]
        assert len(vm.door.read(fd, 1 << 20)) == len(whole) - 72
        assert vm.door.read(fd, 1) == b""


def test_it_holds_the_vm(world: World) -> None:
    vm, vcpu, _ = plain(world)
    kvm = world.kvm_vm(vm)
    fd = vcpu.door.ioctl(vcpu.fd, KVM_GET_STATS_FD, 0)
    vcpu.close()
    vm.close()
    assert kvm in kvm.host.vms
    assert world.kvm.door.pread(fd, 4, 4) == (48).to_bytes(4, "little")
    world.kvm.door.close(fd)
    assert kvm not in kvm.host.vms

# SPDX-License-Identifier: GPL-2.0-or-later
"""Each platform from its launch to its end by the reference VMM, every invariant looked over at every exit; and what
comes of it when the host touches what is the guest's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gmemu import BusError, Exit, ExitReason, Kvm, Mapping, SegmentationFault, Vcpu, Vm, VmType
from gmemu.api.arm64 import init_vcpu
from gmemu.check import check_host
from gmemu.hw.memory import PAGE_SHIFT, HostAccessFault, HostStage2Fault
from gmemu.uapi.sev import SnpPageType
from gmemu.vmm import Backoff, Block, Observer, Vmm, populate_cca, populate_snp, populate_tdx

PAGE = 4096
FIRMWARE, RAM, PAGES = 0x100000, 0x200000, 4
CONTENTS = b"the guest's first instructions".ljust(PAGE, b"\x90")
SECRET, PUBLIC = b"the guest's secret", b"for the host to see"


class Machine(Observer):
    """One VM that has been launched, with a page of firmware and four of memory."""

    platform, vm_type, profile = "amd", VmType.SW_PROTECTED, "inplace-v13"

    def __init__(self) -> None:
        self.kvm = Kvm.open(self.profile, platform=self.platform)
        self.host = self.kvm.host
        self.vm: Vm = self.kvm.create_vm(self.vm_type)
        self.init()
        self.vmm = Vmm(self.kvm, self.vm, Backoff.none())
        self.vmm.observer = self
        self.vcpu: Vcpu = self.make_vcpu()
        self.others: list[Mapping] = []
        self.ram = self.add_ram()
        self.launch()
        self.exits = 0
        self.shared: list[bytes] = []

    def init(self) -> None:
        self.vm.enable_map_gpa_range()

    def make_vcpu(self) -> Vcpu:
        return self.vm.create_vcpu()

    def add_ram(self) -> Mapping:
        """The guest's memory: where the VMM has it."""
        block: Block = self.vmm.add_memory(RAM, PAGES * PAGE)
        self.vmm.convert(RAM, PAGES * PAGE, private=True)
        return block.buffer

    def launch(self) -> None:
        """What the platform wants before the first KVM_RUN."""

    def firmware(self, *, in_place: bool = True) -> int:
        """Contents for the launch, private by now: the user address to populate from, 0 if they are there already."""
        block = self.vmm.add_memory(FIRMWARE, PAGE, mapped=in_place)
        block.buffer[:] = CONTENTS
        self.vmm.convert(FIRMWARE, PAGE, private=True)
        return 0 if in_place else block.buffer.address

    # The guest

    def take(self, cpu: Any) -> None:
        """Private memory that's new is accepted."""
        cpu.accept(RAM, PAGE)

    def change(self, cpu: Any, *, private: bool) -> None:
        cpu.convert(RAM, PAGE, private=private)

    def guest(self, cpu: Any) -> None:
        """Use a page, share it, take it back."""
        self.take(cpu)
        cpu.store(RAM, SECRET)
        self.change(cpu, private=False)
        cpu.store(RAM, PUBLIC, **({"shared": True} if self.two_halves else {}))
        cpu.halt()
        self.change(cpu, private=True)
        cpu.store(RAM, SECRET)
        cpu.halt()
        assert cpu.load(RAM, len(SECRET)) == SECRET

    two_halves = True
    """the guest says at each access which of its views it means"""

    def seen(self, exit_: Exit) -> None:
        self.exits += 1
        check_host(self.host)

    def run(self, guest: Callable[[Any], object] | None = None) -> Exit:
        exit_ = self.vmm.run(self.vcpu, guest)
        check_host(self.host)
        return exit_

    @property
    def address(self) -> int:
        """The physical address of the page of memory that the guest uses."""
        inode = next(inode for inode in self.host.gmem_inodes if inode.size == PAGES * PAGE)
        pfn = inode.mapping.pfn(0)
        assert pfn is not None
        return pfn << PAGE_SHIFT

    def touch_by_mapping(self) -> None:
        """What the host's user space meets."""
        with pytest.raises(BusError) as caught:
            self.ram[0]
        assert caught.value.rule.id == "gmem.fault.private"

    def touch_memory(self) -> None:
        """What whoever gets past all page tables meets."""
        assert self.host.memory.host_read(self.address, len(SECRET)) == SECRET  # nobody guards it

    def close(self) -> None:
        self.vcpu.close()
        self.vmm.close()
        for mapping in self.others:
            mapping.close()
        self.vm.close()
        self.host.check_quiet()
        self.kvm.close()


class Software(Machine):
    two_halves = False

    def take(self, cpu: Any) -> None:
        pass

    def change(self, cpu: Any, *, private: bool) -> None:
        assert cpu.map_gpa_range(RAM, PAGE, private=private) == 0


class Snp(Machine):
    vm_type = VmType.SNP

    def init(self) -> None:
        self.vm.snp.init2()
        super().init()

    def launch(self) -> None:
        self.vm.snp.launch_start()
        populate_snp(self.vm.snp, FIRMWARE, PAGE, SnpPageType.NORMAL, self.firmware())
        self.vm.snp.launch_finish()

    def touch_memory(self) -> None:
        """The RMP refuses stores; loads see ciphertext."""
        with pytest.raises(HostAccessFault, match="RMP"):
            self.host.memory.host_write(self.address, b"oops")
        assert self.host.memory.host_read(self.address, len(SECRET)) != SECRET


class Tdx(Machine):
    platform, vm_type = "intel", VmType.TDX

    def init(self) -> None:
        self.vm.tdx.init_vm()
        super().init()

    def make_vcpu(self) -> Vcpu:
        vcpu = self.vm.create_vcpu()
        vcpu.tdx_init()
        return vcpu

    def launch(self) -> None:
        populate_tdx(self.vm.tdx, self.vcpu, FIRMWARE, PAGE, self.firmware(), backoff=self.vmm.backoff)
        self.vm.tdx.finalize_vm()

    def touch_memory(self) -> None:
        """A store goes through, and poisons the line: what the TD meets then is a machine check.  Here it's mended first."""
        assert self.host.memory.host_read(self.address, len(SECRET)) != SECRET
        self.host.memory.host_write(self.address + 0x100, b"oops")
        assert any(True for _ in self.host.tdx.module.poisoned.runs())


class Cca(Machine):
    platform, vm_type = "arm", VmType.ARM_REALM

    def init(self) -> None:
        pass

    def make_vcpu(self) -> Vcpu:
        vcpu = self.vm.cca.create_vcpu()
        self.vm.cca.create_vgic()
        return vcpu

    def launch(self) -> None:
        populate_cca(self.vm.cca, FIRMWARE, PAGE, self.firmware(in_place=False), backoff=self.vmm.backoff)

    def touch_memory(self) -> None:
        with pytest.raises(HostAccessFault, match="granule protection fault"):
            self.host.memory.host_read(self.address, 1)
        with pytest.raises(HostAccessFault, match="granule protection fault"):
            self.host.memory.host_write(self.address, b"oops")


class PkvmGmem(Machine):
    platform, vm_type, profile = "pkvm", VmType.ARM_PROTECTED, "inplace-v13-pkvm"
    two_halves = False

    def init(self) -> None:
        pass

    def take(self, cpu: Any) -> None:
        pass

    def make_vcpu(self) -> Vcpu:
        vcpu = self.vm.create_vcpu()
        init_vcpu(self.vm, vcpu)
        return vcpu

    def touch_memory(self) -> None:
        with pytest.raises(HostStage2Fault, match="NOPAGE, GUEST"):
            self.host.memory.host_read(self.address, 1)
        with pytest.raises(HostStage2Fault, match="NOPAGE, GUEST"):
            self.host.memory.host_write(self.address, b"oops")


class Pkvm(PkvmGmem):
    profile = "linux-7.3"

    def add_ram(self) -> Mapping:
        memory = self.kvm.anonymous(PAGES * PAGE)
        self.others.append(memory)
        self.vm.set_user_memory_region2(0, RAM, PAGES * PAGE, userspace_addr=memory.address)
        return memory

    @property
    def address(self) -> int:
        entry = self.host.init.mm.pte(self.ram.address >> PAGE_SHIFT)
        assert entry is not None
        return entry[0] << PAGE_SHIFT

    def touch_by_mapping(self) -> None:
        with pytest.raises(SegmentationFault) as caught:
            self.ram[0]
        assert caught.value.rule.id == "pkvm.host-stage2"


@pytest.mark.parametrize("make", [Software, Snp, Tdx, Cca, Pkvm, PkvmGmem])
def test_from_launch_to_teardown(make: Callable[[], Machine]) -> None:
    machine = make()
    assert machine.run(machine.guest).reason is ExitReason.HLT
    assert machine.ram[: len(PUBLIC)] == PUBLIC
    assert machine.run().reason is ExitReason.HLT
    machine.touch_by_mapping()
    machine.touch_memory()
    assert machine.run().reason is ExitReason.HLT
    assert machine.exits >= (0 if make is Pkvm else 1)
    machine.close()

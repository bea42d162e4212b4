# SPDX-License-Identifier: GPL-2.0-or-later
"""Booting: with a stand-in for QEMU that is only the agent, and with QEMU where a kernel has been built."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from errno import EFAULT
from pathlib import Path

import pytest

from gmemu import BusError, Cap, Exit, ExitReason, KernelError, Kvm, Vcpu, Vm, VmType
from gmemu.conformance.vm import Unavailable, boot
from gmemu.conformance.vm import machine as machine_module
from gmemu.conformance.vm.build import VERSIONS, cached_kernel
from gmemu.conformance.vm.machine import MachineDoor
from gmemu.syscalls.channel import AgentLost
from gmemu.uapi.kvm import KVM_CHECK_EXTENSION, KVM_MEMORY_EXIT_FLAG_PRIVATE, KVM_RUN
from gmemu.uapi.kvm_x86 import kvm_regs, kvm_segment
from gmemu.uapi.mman import MADV_HWPOISON
from gmemu.uapi.unistd import Sys

PAGE = 4096

STAND_IN = """\
#!{python}
import os, sys
value = {{arg.split(":")[0].split(",")[0]: arg for arg in sys.argv}}
fd = int(value["socket"].rpartition("fd=")[2])
with open(value["file"].removeprefix("file:"), "w") as console:
    console.write("[    0.1] Linux version 0.0\\n" + {log!r})
print("started", flush=True)
os.dup2(fd, 0)
os.dup2(fd, 1)
os.close(fd)
{then}
"""


@pytest.fixture
def stand_in(agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `boot` starts instead of QEMU."""
    program = tmp_path / "qemu-system-x86_64"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(machine_module, "cached_kernel", lambda version: tmp_path / "bzImage")
    write(program, then=f"os.execv({str(agent)!r}, ['agent'])")
    return program


def write(program: Path, *, log: str = "", then: str) -> None:
    program.write_text(STAND_IN.format(python=sys.executable, log=log, then=then))
    program.chmod(0o755)


class TestStandIn:
    def test_the_door_leads_to_the_machine(self, stand_in: Path) -> None:
        with boot() as door:
            assert door.name == "vm"
            assert door.syscall(Sys.GETPID) != os.getpid()
            assert "Linux version" in door.log()
            assert door.splats() == []

    def test_the_machine_is_gone_afterwards(self, stand_in: Path) -> None:
        with boot() as door:
            pid = door.syscall(Sys.GETPID)
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(AgentLost):
            door.syscall(Sys.GETPID)

    def test_also_when_the_block_fails(self, stand_in: Path) -> None:
        pid = 0

        def fail() -> None:
            nonlocal pid
            with boot() as door:
                pid = door.syscall(Sys.GETPID)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert not Path(f"/proc/{pid}").exists()

    def test_a_machine_that_ends_tells_its_last_words(self, stand_in: Path) -> None:
        write(stand_in, log="[    0.2] Kernel panic - not syncing: no init\n", then="sys.exit(1)")
        with pytest.raises(AgentLost, match="no init") as caught, boot():
            pass
        assert "started" in str(caught.value)

    def test_a_machine_that_says_nothing(self, stand_in: Path) -> None:
        write(stand_in, then="sys.stdin.read(1000)\nsys.stdin.read()")
        with pytest.raises(AgentLost, match=r"for 0\.2 s"), boot(timeout=0.2):
            pass

    def test_complaints_are_found_in_the_log(self, stand_in: Path, agent: Path) -> None:
        log = "[    0.2] WARNING: possible circular locking dependency detected\n"
        write(stand_in, log=log, then=f"os.execv({str(agent)!r}, ['agent'])")
        with boot() as door:
            assert len(door.splats()) == 1

    def test_without_qemu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unavailable, match="install qemu-system-x86"), boot():
            pass


@pytest.fixture(scope="module", params=list(VERSIONS))
def kernel(request: pytest.FixtureRequest) -> Iterator[MachineDoor]:
    """A machine for all tests of one version."""
    try:
        cached_kernel(request.param)
        machine = boot(request.param)
        door = machine.__enter__()
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield door
    machine.__exit__(None, None, None)


def private_vm(door: MachineDoor, code: bytes) -> Vm:
    """A VM with 16 private pages at 1 MiB, and `code` at 64 KiB."""
    kvm = Kvm(door)
    vm = kvm.create_vm(VmType.SW_PROTECTED)
    ordinary, private = kvm.anonymous(16 * PAGE), vm.create_guest_memfd(16 * PAGE)
    vm.set_user_memory_region2(0, 0x100000, 16 * PAGE, userspace_addr=ordinary.address, gmem=private)
    program = kvm.anonymous(PAGE)
    program[: len(code)] = code
    vm.set_user_memory_region2(1, 0x10000, PAGE, userspace_addr=program.address)
    vm.make_private(0x100000, 16 * PAGE)
    return vm


def start(vcpu: Vcpu) -> None:
    """In flat 32-bit protected mode at 64 KiB."""
    sregs = vcpu.sregs
    sregs.ds = sregs.es = sregs.ss = kvm_segment(limit=0xFFFFFFFF, selector=0x10, type=3, present=1, db=1, s=1, g=1)
    sregs.cs = kvm_segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, db=1, s=1, g=1)
    sregs.cr0 = 0x11
    vcpu.sregs, vcpu.regs = sregs, kvm_regs(rip=0x10000, rflags=2)


def stopped_by_fault(vcpu: Vcpu, result: Callable[[], int]) -> tuple[int, int, int]:
    """gpa, size and flags of the memory fault that a KVM_RUN ends in."""
    with pytest.raises(KernelError) as caught:
        result()
    assert caught.value.errno == EFAULT
    fault = Exit(vcpu.kvm_run, caught.value).memory_fault
    return fault.gpa, fault.size, fault.flags


@pytest.mark.skipif(
    os.environ.get("GMEMU_VM_TESTS") != "1",
    reason="boots kernels in QEMU; set GMEMU_VM_TESTS=1, with kernels built by gmemu.conformance.vm.build",
)
class TestKernel:
    """Needs a kernel built by gmemu.conformance.vm.build, and QEMU."""

    def test_is_the_one_asked_for(self, kernel: MachineDoor, request: pytest.FixtureRequest) -> None:
        assert kernel.release.startswith(request.node.callspec.params["kernel"])

    def test_a_guest_uses_private_memory(self, kernel: MachineDoor) -> None:
        # mov eax, 0x5eac0de; mov [0x100000], eax; mov ecx, [0x100000]; mov [0x10800], ecx; hlt
        code = bytes.fromhex("b8dec0ea05 a300001000 8b0d00001000 890d00080100 f4")
        vcpu = private_vm(kernel, code).create_vcpu()
        start(vcpu)
        assert vcpu.run().reason is ExitReason.HLT
        assert vcpu.regs.rcx == 0x5EAC0DE

    def test_pages_that_cannot_be_had(self, kernel: MachineDoor) -> None:
        fd = kernel.memfd_create("short")
        address = kernel.mmap(0, PAGE, 3, 1, fd)
        with pytest.raises(BusError) as caught:
            kernel.load(address, 1)
        assert caught.value.address == address
        with pytest.raises(KernelError):
            kernel.open("/nowhere")

    def test_poisoned_memory(self, kernel: MachineDoor) -> None:
        with Kvm(kernel).anonymous(PAGE) as memory:
            memory[0] = 1
            with pytest.raises(BusError):  # madvise() itself returns 0, but its caller gets the signal
                memory.madvise(MADV_HWPOISON)
            with pytest.raises(BusError) as caught:
                memory[0]
            assert caught.value.address == memory.address

    def test_a_guest_that_runs_while_its_memory_is_converted(self, kernel: MachineDoor) -> None:
        vm = private_vm(kernel, bytes.fromhex("ff0500001000 ebf8"))  # inc dword [0x100000], again and again
        vcpu = vm.create_vcpu()
        start(vcpu)
        thread = kernel.thread()
        result = thread.begin(Sys.IOCTL, vcpu.fd, KVM_RUN, 0)
        for _ in range(10):
            vm.make_shared(0x100000, PAGE)
            vm.make_private(0x100000, PAGE)
        vm.make_private(0x10000, PAGE)  # its code, and there is no guest_memfd for that
        faults = [stopped_by_fault(vcpu, result)]
        while faults[-1] == (0x100000, PAGE, KVM_MEMORY_EXIT_FLAG_PRIVATE):
            # Converted while KVM was handling a fault: the VMM is to run the vCPU again.
            faults.append(stopped_by_fault(vcpu, thread.begin(Sys.IOCTL, vcpu.fd, KVM_RUN, 0)))
        assert faults[-1] == (0x10000, PAGE, KVM_MEMORY_EXIT_FLAG_PRIVATE)
        assert len(faults) <= 2
        thread.exit()

    def test_a_fork_may_not_use_its_parents_vm(self, kernel: MachineDoor) -> None:
        vm = Kvm(kernel).create_vm(VmType.SW_PROTECTED)
        child = kernel.fork()
        with pytest.raises(KernelError) as caught:
            child.ioctl(vm.fd, KVM_CHECK_EXTENSION, Cap.GUEST_MEMFD)
        assert caught.value.rule.id == "vm.ioctl.EIO"
        child.exit()

    def test_lockdep_has_nothing_to_say(self, kernel: MachineDoor) -> None:
        stats = kernel.read(kernel.open("/proc/lockdep_stats"), PAGE).decode()
        assert re.search(r"debug_locks: +1", stats), "lockdep is off"
        assert kernel.splats() == []

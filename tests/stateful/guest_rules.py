# SPDX-License-Identifier: GPL-2.0-or-later
"""What vCPUs do: run scripted guests, stop and go on, pre-fault."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, ENOMEM

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from gmemu import Exit as ApiExit
from gmemu import ExitReason, GuestCpu, KernelError, VmmCommunication
from gmemu.uapi.kvm import KVM_CREATE_VCPU, KVM_PRE_FAULT_MEMORY, KVM_RUN, kvm_pre_fault_memory, kvm_run

from .kvm_objects import (
    SNP,
    BadAddressExit,
    Exit,
    FailedEntry,
    Halted,
    Heard,
    Hypercall,
    HypercallExit,
    Load,
    MemoryFaultExit,
    MmioExit,
    Op,
    PageStateChange,
    Store,
    Validate,
    VcpuFile,
)
from .kvm_rules import KvmRules
from .machine import FEW_PAGES, ODD, SELDOM, SMALL, pick, pick_odd
from .memory_rules import BYTE
from .pages import PAGE, Process

PLACE = st.tuples(SMALL, st.integers(0, 4), st.sampled_from([0, 8, 4090, 4095]))
"""Which slot (or none), which page of it, where in the page."""
ACCESS = st.tuples(st.sampled_from(["load", "store", "store", "call"]), PLACE, st.sampled_from([1, 8, 20, 5000]), BYTE)


class GuestRules(KvmRules):
    """The rules of vCPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.last_exits: dict[VcpuFile, ApiExit] = {}
        self.heard: dict[VcpuFile, list[Heard]] = {}

    def make_vcpu(self, n: int, number: int) -> None:
        process, fd, _, vm = self.vm_at(n)
        made = self.made(
            lambda: self.world.create_vcpu(process, fd, number), lambda: vm.ioctl(KVM_CREATE_VCPU, number), process
        )
        if made is not None:
            self.adopt_vcpu(process, made)

    def vcpu_at(self, n: int) -> tuple[Process, int, VcpuFile]:
        all_ = self.opened(VcpuFile)
        usable = [(p, fd) for p, fd in all_ if getattr(p.fds[fd], "vm").owner is p]  # noqa: B009
        process, fd = pick(usable if usable and n < 38 else all_, n)
        file = process.fds[fd]
        assert isinstance(file, VcpuFile)
        return process, fd, file

    @precondition(lambda self: self.opened(VcpuFile))
    @rule(n=SMALL, accesses=st.lists(ACCESS, min_size=1, max_size=5), cpu=st.booleans())
    def run_guest(self, n: int, accesses: list[tuple[str, tuple[int, int, int], int, int]], cpu: bool) -> None:
        """Load a guest and run it to its first exit.  One that waits for user space isn't replaced."""
        process, fd, vcpu = self.vcpu_at(n)
        if isinstance(vcpu.pending, MmioExit | HypercallExit) or vcpu.vm.owner is not process:
            self.go_on(n, 0, cpu, False, False)
            return
        ops = [self._op(vcpu, *access) for access in accesses]
        if self.world.stuck(vcpu, ops):
            return
        vcpu.results = []
        heard: list[Heard] = []
        self.heard[vcpu] = heard
        vcpu.guest, vcpu.ops, vcpu.pending = self.world.guest(vcpu, ops), ops, None
        self.door(process).load_guest(fd, _script(ops, heard))
        self._run(process, fd, vcpu, cpu)

    def _op(self, vcpu: VcpuFile, kind: str, place: tuple[int, int, int], length: int, byte: int) -> Op:
        """An operation, in a slot for most places.  An SNP guest has its own ways to ask, and may want the shared view."""
        which, page, within = place
        slots = [slot for slot in vcpu.vm.slots.values() if slot.gfn < 64]
        gpa = (which + page) * PAGE + within
        if slots and which < 36:
            slot = pick(slots, which)
            gpa = (slot.gfn + page % slot.npages) * PAGE + within
        snp = vcpu.vm.kind == SNP
        shared = snp and byte % 4 == 0
        if kind == "load":
            return Load(gpa, length, shared)
        if kind == "store":
            return Store(gpa, bytes([byte]) * length, shared)
        if snp:
            return PageStateChange(gpa - within, bool(byte & 1)) if byte % 8 == 0 else Validate(gpa - within, byte % 8 != 1)
        return Hypercall(gpa if which % 5 == 0 else gpa - within, page, bool(byte & 1))

    @precondition(lambda self: self.opened(VcpuFile))
    @rule(n=SMALL, answer=BYTE, cpu=st.booleans(), immediate=SELDOM, signal=SELDOM)
    def go_on(self, n: int, answer: int, cpu: bool, immediate: bool, signal: bool) -> None:
        """Run what is loaded, after answering the exit before; or find that another process may not."""
        process, fd, vcpu = self.vcpu_at(n)
        if vcpu.vm.owner is not process:
            door = self.door(process)
            self.agree(lambda: self.world.run(process, fd, None, False, False), lambda: door.ioctl(fd, KVM_RUN))
        elif vcpu.guest is not None and not self.world.stuck(vcpu, vcpu.ops):
            self._run(process, fd, vcpu, cpu, answer, immediate, signal)

    def _run(
        self,
        process: Process,
        fd: int,
        vcpu: VcpuFile,
        cpu: bool,
        byte: int = 0,
        immediate: bool = False,
        signal: bool = False,
    ) -> None:
        door, last = self.door(process, cpu), vcpu.pending
        answer: bytes | int = bytes([byte]) * 8
        if isinstance(last, HypercallExit):
            answer = (0, 11, 22)[byte % 3] if vcpu.vm.kind == SNP else byte & 15
            self.last_exits[vcpu].answer_hypercall(answer)
        elif isinstance(last, MmioExit) and not last.write:
            self.last_exits[vcpu].answer_mmio(bytes([byte]) * 8)
        self.world.touch(process, self.runs[vcpu].address, True)
        self.runs[vcpu][kvm_run.OFFSETS["immediate_exit"]] = int(immediate)
        door.task.pending_signals = int(signal)

        def run() -> Exit:
            self.last_exits[vcpu] = exit_ = self._enter(door.ioctl, vcpu, fd)
            return _as_model(exit_)

        self.agree(lambda: self.world.run(process, fd, answer, immediate, signal), run)
        door.task.pending_signals = 0
        heard = [None if want is None else have for want, have in zip(vcpu.results, self.heard[vcpu], strict=True)]
        assert heard == vcpu.results, "what the guest saw"

    def _enter(self, ioctl: Callable[[int, int], int], vcpu: VcpuFile, fd: int) -> ApiExit:
        """KVM_RUN, by the thread that `ioctl` belongs to.  The exit carries the error, as `Vcpu.run` has it."""
        run = self.runs[vcpu]
        try:
            ioctl(fd, KVM_RUN)
        except KernelError as error:
            if error.errno in (EFAULT, ENOMEM):
                return ApiExit(run, error)
            raise
        return ApiExit(run, None)

    @precondition(lambda self: self.opened(VcpuFile))
    @rule(n=SMALL, frame=st.integers(0, 15), pages=FEW_PAGES, odd=ODD, cpu=st.booleans(), signal=SELDOM)
    def pre_fault(self, n: int, frame: int, pages: int, odd: int, cpu: bool, signal: bool) -> None:
        """KVM_PRE_FAULT_MEMORY."""
        process, fd, _ = self.vcpu_at(n)
        odds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, -pages * PAGE, 0), (0, 0, 1), ((1 << 64) - PAGE * (frame + 1), 0, 0)]
        more, longer, flags = pick_odd(odds, odd)
        gpa, size = frame * PAGE + more, pages * PAGE + longer
        door = self.door(process, cpu)
        door.task.pending_signals = int(signal)
        self.agree(
            lambda: self.world.pre_fault(process, fd, gpa, size, flags, signal),
            lambda: _pre_fault(door.ioctl, fd, gpa, size, flags),
        )
        door.task.pending_signals = 0


def _pre_fault(ioctl: Callable[[int, int, bytearray], int], fd: int, gpa: int, size: int, flags: int) -> int:
    buffer = bytearray(kvm_pre_fault_memory(gpa=gpa, size=size, flags=flags).pack())
    try:
        ioctl(fd, KVM_PRE_FAULT_MEMORY, buffer)
    finally:
        left = kvm_pre_fault_memory.unpack_from(buffer)
        assert left.gpa + left.size == gpa + size
    return left.size


def _script(ops: list[Op], heard: list[Heard]) -> Callable[[GuestCpu], None]:
    def guest(cpu: GuestCpu) -> None:
        for op in ops:
            try:
                heard.extend(_do(cpu, op))
            except VmmCommunication:
                heard.append("#VC")

    return guest


def _do(cpu: GuestCpu, op: Op) -> list[Heard]:
    if isinstance(op, Load):
        return [cpu.load(op.gpa, op.length, shared=op.shared)]
    if isinstance(op, Store):
        cpu.store(op.gpa, op.data, shared=op.shared)
        return []
    if isinstance(op, Validate):
        return [cpu.pvalidate(op.gpa, validate=op.on)]
    if isinstance(op, PageStateChange):
        return [cpu.page_state_change_msr(op.gpa, private=op.private)]
    return [cpu.map_gpa_range(op.gpa, op.npages * PAGE, private=op.private)]


def _as_model(exit_: ApiExit) -> Exit:
    """An exit of the emulation, in the model's words."""
    if exit_.reason is ExitReason.MEMORY_FAULT:
        fault = exit_.memory_fault
        assert fault.size == PAGE
        assert exit_.error is not None
        assert exit_.error.errno is not None
        return MemoryFaultExit(fault.flags, fault.gpa, exit_.error.errno)
    if exit_.error is not None:
        assert exit_.reason is ExitReason.UNKNOWN
        assert exit_.error.errno == EFAULT
        return BadAddressExit()
    if exit_.reason is ExitReason.MMIO:
        mmio = exit_.mmio
        return MmioExit(mmio.phys_addr, bool(mmio.is_write), mmio.data[: mmio.len])
    if exit_.reason is ExitReason.HYPERCALL:
        assert exit_.hypercall.nr == 12
        a, b, c = exit_.hypercall.args[:3]
        return HypercallExit((a, b, c))
    if exit_.reason is ExitReason.FAIL_ENTRY:
        return FailedEntry()
    assert exit_.reason is ExitReason.HLT
    return Halted()

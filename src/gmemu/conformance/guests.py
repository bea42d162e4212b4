# SPDX-License-Identifier: GPL-2.0-or-later
"""A probe's guest: a few operations, run as a scripted guest by the emulation and as machine code by a real KVM.

Both run the same operations, cut to what one instruction can do, so that their exits can be compared one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..api import Exit, Vcpu, Vm
from ..rules import KernelError
from ..uapi.errno import errno_name
from ..uapi.kvm import ExitReason, kvm_exit_internal_error
from .outcome import Outcome

if TYPE_CHECKING:
    from .bench import Bench

__all__ = ["CODE_GPA", "CODE_SLOT", "REPORT_PORT", "GuestRun", "Hypercall", "Load", "Op", "Out", "Store", "lower"]

CODE_GPA, CODE_SLOT, _CODE_SIZE = 0x7000_0000, 90, 4 * 4096
REPORT_PORT = 0x5A0
_LIMIT = 64


class Load(NamedTuple):
    """Read `length` bytes at `gpa`, and report them."""

    gpa: int
    length: int = 4


class Store(NamedTuple):
    """Write `data` at `gpa`."""

    gpa: int
    data: bytes


class Hypercall(NamedTuple):
    """VMMCALL; what it answered is reported."""

    nr: int
    args: tuple[int, ...] = ()


class Out(NamedTuple):
    """OUT of 1, 2 or 4 bytes."""

    port: int
    data: bytes


Op = Load | Store | Hypercall | Out


def _cuts(length: int) -> list[tuple[int, int]]:
    """(start, size) of the pieces of 4, 2 and 1 bytes that `length` bytes are moved in."""
    pieces, at = [], 0
    for size in (4, 2, 1):
        while length - at >= size:
            pieces.append((at, size))
            at += size
    return pieces


def lower(ops: list[Op]) -> list[Op]:
    """The same with no load or store larger than 4 bytes."""
    lowered: list[Op] = []
    for op in ops:
        if isinstance(op, Load):
            lowered += [Load(op.gpa + at, size) for at, size in _cuts(op.length)]
        elif isinstance(op, Store):
            lowered += [Store(op.gpa + at, op.data[at : at + size]) for at, size in _cuts(len(op.data))]
        else:
            lowered.append(op)
    return lowered


def scripted(ops: list[Op]) -> Callable[[Any], None]:
    """The operations as a scripted guest of the emulation."""

    def guest(cpu: Any) -> None:
        for op in lower(ops):
            match op:
                case Load(gpa, length):
                    cpu.port_out(REPORT_PORT, cpu.load(gpa, length))
                case Store(gpa, data):
                    cpu.store(gpa, data)
                case Hypercall(nr, args):
                    answer = cpu.hypercall(nr, *args)
                    cpu.port_out(REPORT_PORT, (answer & 0xFFFFFFFF).to_bytes(4, "little"))
                case Out(port, data):
                    cpu.port_out(port, data)

    return guest


class GuestRun:
    """A guest run by a VMM of its own.

    `on_hypercall(exit)` gives the answer (0 without it); `on_fault(exit)` mends a memory fault and says whether to go on;
    `mmio` is what a load gets where there is no memory.
    """

    def __init__(
        self,
        bench: Bench,
        vm: Vm,
        vcpu: Vcpu,
        *,
        on_hypercall: Callable[[Exit], int] | None = None,
        on_fault: Callable[[Exit], bool] | None = None,
        mmio: bytes = b"\xee\xdd\xcc\xbb\xaa\x99\x88\x77",
    ) -> None:
        self.bench, self.vm, self.vcpu = bench, vm, vcpu
        self._on_hypercall, self._on_fault, self._mmio = on_hypercall, on_fault, mmio
        self.story: list[str] = []

    def run(self, ops: list[Op]) -> Outcome:
        """From the first operation to HLT, an exit that stops it, or too many exits."""
        guest = self._load(ops)
        for _ in range(_LIMIT):
            try:
                exit_ = self.vcpu.run(guest)
            except KernelError as error:
                reason = ExitReason(int.from_bytes(self.vcpu.kvm_run[8:12], "little"))
                self.story.append(f"{errno_name(error.errno or 0)} with exit reason {reason.name}")
                return Outcome("; ".join(self.story), error.rule.id)
            guest = None
            if not self._handle(exit_):
                return Outcome("; ".join(self.story), exit_.error.rule.id if exit_.error else "")
        self.story.append("too many exits")
        return Outcome("; ".join(self.story))

    def _load(self, ops: list[Op]) -> Callable[[Any], None] | None:
        """Put the program where the vCPU finds it.  The emulation has the code's slot too, though it fetches nothing."""
        code = self.bench.code_of(self.vm)
        if self.bench.door.name == "emulated":
            return scripted(ops)
        from .machine_code import assemble, enter

        program = assemble(ops)
        assert len(program) <= _CODE_SIZE, "the guest's program is too long"
        code[: len(program)] = program
        enter(self.vcpu, CODE_GPA)
        return None

    def _handle(self, exit_: Exit) -> bool:
        """Note the exit down and do what a VMM does; whether to run on."""
        say = self.story.append
        match exit_.reason:
            case ExitReason.IO:
                say(f"{'loaded' if exit_.io.port == REPORT_PORT else f'out {exit_.io.port:#x}'} {exit_.io_data().hex()}")
            case ExitReason.MMIO:
                return self._mmio_exit(exit_)
            case ExitReason.HYPERCALL:
                call = exit_.hypercall
                say(f"hypercall {call.nr} {' '.join(f'{arg:#x}' for arg in call.args[:3])}")
                exit_.answer_hypercall(self._on_hypercall(exit_) if self._on_hypercall else 0)
            case ExitReason.MEMORY_FAULT:
                fault = exit_.memory_fault
                error = errno_name(exit_.error.errno or 0) if exit_.error else "no error"
                say(f"{error}, memory fault gpa {fault.gpa:#x} size {fault.size:#x} flags {fault.flags:#x}")
                return self._on_fault is not None and self._on_fault(exit_)
            case ExitReason.INTERNAL_ERROR:
                say(f"internal error {exit_.details(kvm_exit_internal_error).suberror}")
                return False
            case _:
                say(exit_.reason.name)
                return False
        return True

    def _mmio_exit(self, exit_: Exit) -> bool:
        mmio = exit_.mmio
        if mmio.is_write:
            self.story.append(f"mmio write {mmio.phys_addr:#x} {mmio.data[: mmio.len].hex()}")
        else:
            self.story.append(f"mmio read {mmio.phys_addr:#x} {mmio.len}")
            exit_.answer_mmio(self._mmio[: mmio.len])
        return True

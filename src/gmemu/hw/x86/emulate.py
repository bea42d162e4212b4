# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that leave the guest: what they ask of KVM, and what becomes of its answer.

Also `DeviceStep`: an instruction whose operand isn't memory is tried with that page replaced by one that tells what was
accessed.  A load is answered by KVM, and the instruction tried again from its beginning with all answers so far, until it
gets through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..cpu import (
    Access,
    Cpuid,
    CrAccess,
    DeviceAccess,
    Exit,
    GuestException,
    Hlt,
    MsrAccess,
    Mwait,
    PortIo,
    Vmmcall,
    Xsetbv,
)
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .breakpoints import DR6_BD, DR7_GD
from .engine import DEVICE_PADDR, DEVICE_PAGES
from .env import Env
from .paging import READ, WRITE, GuestFault
from .sensitive import Insn, Kind

if TYPE_CHECKING:
    from .cpu import MachineCpu

__all__ = ["DeviceStep", "Instruction", "begin_instruction"]

_UD, _GP = 6, 13
_RAX, _RCX, _RDX, _RBX, _RSI, _RDI = 0, 1, 2, 3, 6, 7
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_DF = 0x400
_CR4_TSD, _CR4_DE, _CR4_PCE = 1 << 2, 1 << 3, 1 << 8
_VM86 = 1 << 17
_DONE = -1
_MAX_INS = 1024
"""How many bytes one exit of INS asks for at most."""

_PRIVILEGED = frozenset(
    (Kind.HLT, Kind.RDMSR, Kind.WRMSR, Kind.XSETBV, Kind.WBINVD, Kind.FROM_CR, Kind.TO_CR, Kind.FROM_DR, Kind.TO_DR)
)


class Instruction(NamedTuple):
    """One that waits for KVM's answer: where it stands, the exit that it makes, and how it's finished by the answer.

    `answer` is set when finishing it had to wait for memory.
    """

    rip: int
    exit: Exit
    then: Callable[[MachineCpu, Env, object], Exit | None]
    answer: object = None

    @property
    def done(self) -> bool:
        """Whether it's over and only its exit is left, as with HLT: what comes then comes after it."""
        return self.rip == _DONE

    def finish(self, cpu: MachineCpu, env: Env, completion: object) -> Exit | None:
        """Write the results and go on to the next instruction.  Raises `GuestFault` if that's KVM's answer."""
        completion = self.answer if completion is None else completion
        if isinstance(completion, GuestException):
            raise GuestFault(completion.vector, completion.error_code)
        return self.then(cpu, env, completion)


def begin_instruction(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction | None:
    """Carry out `insn`, or as much of it as needs nobody.  Raises `GuestFault` where it isn't allowed."""
    if insn.kind in _PRIVILEGED and env.cpl:
        raise GuestFault(_GP, 0)
    return _BEGIN[insn.kind](cpu, env, insn)


def _retire(cpu: MachineCpu, env: Env, insn: Insn) -> None:
    """The instruction is done."""
    mask = {16: 0xFFFF, 32: _U32, 64: _U64}[env.code_bits]
    env.set_rip(env.rip + insn.length & mask)
    env.clear_shadow()


def _exit(env: Env, insn: Insn, exit_: Exit, results: Callable[[Env, object], None] | None = None) -> Instruction:
    def then(cpu: MachineCpu, env: Env, completion: object) -> None:
        if results is not None:
            results(env, completion)
        _retire(cpu, env, insn)

    return Instruction(env.rip, exit_, then)


def _set_pair(env: Env, value: object) -> None:
    """EDX:EAX."""
    assert isinstance(value, int)
    env.set_gpr(_RAX, value & _U32)
    env.set_gpr(_RDX, value >> 32 & _U32)


def _pair(env: Env) -> int:
    return env.gpr(_RAX) & _U32 | (env.gpr(_RDX) & _U32) << 32


def _ecx(env: Env) -> int:
    return env.gpr(_RCX) & _U32


# Ports


def _check_io(cpu: MachineCpu, env: Env, port: int, size: int) -> None:
    """IOPL, and the bitmap in the TSS for those below it."""
    if not env.control(0) & 1:
        return
    if env.cpl <= env.rflags_system >> 12 & 3 and not env.rflags_system & _VM86:
        return
    base, limit, flags = env.table("tr")
    if not flags >> 11 & 1 or limit < 103:
        raise GuestFault(_GP, 0)
    at = int.from_bytes(cpu.load_linear(env, base + 102, 2, False), "little") + (port >> 3)
    if at + 1 > limit:
        raise GuestFault(_GP, 0)
    bits = int.from_bytes(cpu.load_linear(env, base + at, 2, False), "little") >> (port & 7)
    if bits & (1 << size) - 1:
        raise GuestFault(_GP, 0)


def _port(env: Env, insn: Insn) -> int:
    return insn.operand if insn.operand >= 0 else env.gpr(_RDX) & 0xFFFF


def _in(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    port = _port(env, insn)
    _check_io(cpu, env, port, insn.size)

    def results(env: Env, data: object) -> None:
        assert isinstance(data, bytes)
        old, value = env.gpr(_RAX), int.from_bytes(data[: insn.size], "little")
        env.set_gpr(_RAX, value if insn.size == 4 else old & ~((1 << 8 * insn.size) - 1) | value)

    return _exit(env, insn, PortIo(port, False, bytes(insn.size)), results)


def _out(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    port = _port(env, insn)
    _check_io(cpu, env, port, insn.size)
    return _exit(env, insn, PortIo(port, True, (env.gpr(_RAX) & _U32).to_bytes(4, "little")[: insn.size]))


def _count(env: Env, insn: Insn) -> int:
    return env.gpr(_RCX) & (1 << 8 * insn.address_size) - 1 if insn.repeated else 1


def _index(env: Env, insn: Insn, register: int) -> int:
    return env.gpr(register) & (1 << 8 * insn.address_size) - 1


def _advance(env: Env, insn: Insn, register: int) -> None:
    """One element of a string instruction is done: its index and, if repeated, RCX."""
    mask = (1 << 8 * insn.address_size) - 1
    step = -insn.size if env.backwards else insn.size
    for number, delta in ((register, step), (_RCX, -1 if insn.repeated else 0)):
        old = env.gpr(number)
        new = old + delta & mask
        env.set_gpr(number, new if insn.address_size >= 4 else old & ~mask | new)


def _outs(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction | None:
    """One element at each exit."""
    if not _count(env, insn):
        _retire(cpu, env, insn)
        return None
    port = env.gpr(_RDX) & 0xFFFF
    _check_io(cpu, env, port, insn.size)
    base = env.segment_base(insn.segment or "ds")
    data = cpu.load_linear(env, base + _index(env, insn, _RSI), insn.size, env.cpl == 3)

    def then(cpu: MachineCpu, env: Env, completion: object) -> None:
        _advance(env, insn, _RSI)
        if not insn.repeated or not _count(env, insn):
            _retire(cpu, env, insn)

    return Instruction(env.rip, PortIo(port, True, data), then)


def _ins(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction | None:
    """As many elements at one exit as fit the page that they go to."""
    count = _count(env, insn)
    if not count:
        _retire(cpu, env, insn)
        return None
    port = env.gpr(_RDX) & 0xFFFF
    _check_io(cpu, env, port, insn.size)
    base = env.segment_base("es")
    at = base + _index(env, insn, _RDI)
    cpu.linear(env, at & cpu.linear_mask(env), WRITE, env.cpl == 3)
    offset = at & (PAGE_SIZE - 1)
    room = (offset if env.backwards else PAGE_SIZE - offset) // insn.size
    count = max(min(count, room, _MAX_INS // insn.size), 1)

    def then(cpu: MachineCpu, env: Env, completion: object) -> None:
        assert isinstance(completion, bytes)
        for start in range(0, len(completion), insn.size):
            if insn.repeated and not _count(env, insn):
                break
            element = completion[start : start + insn.size]
            cpu.store_linear(env, base + _index(env, insn, _RDI), element, env.cpl == 3)
            _advance(env, insn, _RDI)
        if not insn.repeated or not _count(env, insn):
            _retire(cpu, env, insn)

    return Instruction(env.rip, PortIo(port, False, bytes(count * insn.size), insn.size), then)


# The rest


def _hlt(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    """It's done before the exit: what wakes the processor comes after it."""
    _retire(cpu, env, insn)
    cpu.engine.restore()
    return Instruction(_DONE, Hlt(), lambda cpu, env, completion: None)


def _cpuid(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    def results(env: Env, values: object) -> None:
        assert isinstance(values, tuple)
        for register, value in zip((_RAX, _RBX, _RCX, _RDX), values, strict=True):
            env.set_gpr(register, value)

    return _exit(env, insn, Cpuid(env.gpr(_RAX) & _U32, _ecx(env)), results)


def _rdmsr(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    return _exit(env, insn, MsrAccess(_ecx(env), None), _set_pair)


def _wrmsr(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    return _exit(env, insn, MsrAccess(_ecx(env), _pair(env)))


def _rdtsc(cpu: MachineCpu, env: Env, insn: Insn) -> None:
    if env.control(4) & _CR4_TSD and env.cpl:
        raise GuestFault(_GP, 0)
    _set_pair(env, cpu.read_tsc())
    if insn.kind is Kind.RDTSCP:
        env.set_gpr(_RCX, cpu.registers.msrs.get(0xC0000103, 0) & _U32)
    _retire(cpu, env, insn)


def _rdpmc(cpu: MachineCpu, env: Env, insn: Insn) -> None:
    raise GuestFault(_GP, 0)  # there are no counters


def _vmcall(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    mask = _U64 if env.code_bits == 64 else _U32
    nr, *args = (env.gpr(register) & mask for register in (_RAX, _RBX, _RCX, _RDX, _RSI))

    def results(env: Env, value: object) -> None:
        assert isinstance(value, int)
        env.set_gpr(_RAX, value & mask)

    vendor = "intel" if insn.kind is Kind.VMCALL else "amd"
    return _exit(env, insn, Vmmcall(nr, tuple(args), env.cpl, env.code_bits == 64, vendor), results)


def _xsetbv(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    return _exit(env, insn, Xsetbv(_ecx(env), _pair(env)))


def _mwait(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction:
    return _exit(env, insn, Mwait(insn.kind is Kind.MONITOR))


def _nothing(cpu: MachineCpu, env: Env, insn: Insn) -> None:
    _retire(cpu, env, insn)


def _from_cr(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction | None:
    def results(env: Env, value: object) -> None:
        assert isinstance(value, int)
        env.set_gpr(insn.register, value)

    if insn.operand == 8:
        return _exit(env, insn, CrAccess(8, None), results)
    if insn.operand not in (0, 2, 3, 4):
        raise GuestFault(_UD)
    results(env, env.control(insn.operand))
    _retire(cpu, env, insn)
    return None


def _to_cr(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction | None:
    value = env.gpr(insn.register)
    if insn.operand in (2, 3):
        env.set_control(insn.operand, value & ~(1 << 63))
        if insn.operand == 3:
            cpu.forget_translations()
        _retire(cpu, env, insn)
        return None
    if insn.operand not in (0, 4, 8):
        raise GuestFault(_UD)

    def results(env: Env, completion: object) -> None:
        if insn.operand != 8:
            env.put_control(insn.operand, value)
            cpu.forget_translations()

    return _exit(env, insn, CrAccess(insn.operand, value), results)


def _debug_register(env: Env, insn: Insn) -> int:
    number = insn.operand
    if number > 7 or (number in (4, 5) and env.control(4) & _CR4_DE):
        raise GuestFault(_UD)
    return number + 2 if number in (4, 5) else number


def _guarded(cpu: MachineCpu, env: Env) -> Instruction | None:
    """DR7.GD: the access doesn't take place; a guest's own #DB clears the bit."""
    debug, exit_ = cpu.registers.debugregs, cpu.debug_exception(DR6_BD)
    if exit_ is None:
        debug.dr7 &= ~DR7_GD
        cpu.arm_breakpoints()
        return None
    return Instruction(env.rip, exit_, lambda cpu, env, completion: None)


def _from_dr(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction | None:
    if cpu.guarded_debug_registers:
        return _guarded(cpu, env)
    number, debug = _debug_register(env, insn), cpu.registers.debugregs
    env.set_gpr(insn.register, {6: debug.dr6, 7: debug.dr7}.get(number) or debug.db[number & 3])
    _retire(cpu, env, insn)
    return None


def _to_dr(cpu: MachineCpu, env: Env, insn: Insn) -> Instruction | None:
    if cpu.guarded_debug_registers:
        return _guarded(cpu, env)
    number, debug, value = _debug_register(env, insn), cpu.registers.debugregs, env.gpr(insn.register)
    if number >= 6:
        if env.code_bits == 64 and value >> 32:
            raise GuestFault(_GP, 0)
        if number == 6:
            debug.dr6 = value & 0xE00F | 0xFFFF0FF0
        else:
            debug.dr7 = value & 0xFFFF2FFF | 0x400
    else:
        debug.db = tuple(value if i == number else old for i, old in enumerate(debug.db))
    cpu.arm_breakpoints()
    _retire(cpu, env, insn)
    return None


_BEGIN: dict[Kind, Callable[[MachineCpu, Env, Insn], Instruction | None]] = {
    Kind.IN: _in,
    Kind.OUT: _out,
    Kind.INS: _ins,
    Kind.OUTS: _outs,
    Kind.HLT: _hlt,
    Kind.CPUID: _cpuid,
    Kind.RDMSR: _rdmsr,
    Kind.WRMSR: _wrmsr,
    Kind.RDTSC: _rdtsc,
    Kind.RDTSCP: _rdtsc,
    Kind.RDPMC: _rdpmc,
    Kind.VMCALL: _vmcall,
    Kind.VMMCALL: _vmcall,
    Kind.XSETBV: _xsetbv,
    Kind.MONITOR: _mwait,
    Kind.MWAIT: _mwait,
    Kind.WBINVD: _nothing,
    Kind.FROM_CR: _from_cr,
    Kind.TO_CR: _to_cr,
    Kind.FROM_DR: _from_dr,
    Kind.TO_DR: _to_dr,
}


class DeviceStep:
    """One instruction being tried.  `devices` are the frames that KVM said aren't memory.

    What the instruction accesses at once is one exit, however the engine splits it; at a page's end it's two, as KVM does.
    """

    def __init__(self, devices: set[int]) -> None:
        self._devices = devices
        self._pages: list[int] = []
        self._answers: list[bytes] = []
        self._writes: list[Access] = []
        self.failed_at: int | None = None
        self.missing: Exit | None = None
        self.done = False
        self.begin()

    def begin(self) -> None:
        """Another try."""
        self._used = 0
        self._writes.clear()
        self._at, self._data = 0, b""
        self._rest: bytes | int = 0
        self.missing = None

    def map(self, gfn: int, fetch: bool) -> tuple[int, int] | None:
        """What stands in for the frame: a page of the engine's device."""
        if fetch:
            self.failed_at = gfn << PAGE_SHIFT
            return None
        if gfn not in self._pages:
            self._pages.append(gfn)
        return DEVICE_PADDR + (self._pages.index(gfn) % DEVICE_PAGES << PAGE_SHIFT), READ | WRITE

    def _gpa(self, offset: int) -> int:
        return (self._pages[offset >> PAGE_SHIFT] << PAGE_SHIFT) + (offset & (PAGE_SIZE - 1))

    def access(self, offset: int, size: int, stored: bytes | None) -> None:
        """The instruction begins an access: what of it lies on this page; the rest waits until its page is touched."""
        here = min(size, PAGE_SIZE - (offset & (PAGE_SIZE - 1)))
        if stored is None:
            self._rest = size - here
            self._load(offset, here)
        else:
            self._rest = stored[here:]
            self._store(offset, stored[:here])

    def _load(self, offset: int, size: int) -> None:
        """A load: what KVM answered, or nothing and this try doesn't count."""
        self._at, self._data = offset, bytes(size)
        if self.missing is not None:
            return
        if self._used < len(self._answers):
            self._used, self._data = self._used + 1, self._answers[self._used]
        else:
            self.missing = DeviceAccess(Access(self._gpa(offset), False, self._data))

    def _store(self, offset: int, data: bytes) -> None:
        self._at, self._data = offset, data
        if self.missing is None:
            self._writes.append(Access(self._gpa(offset), True, data))

    def _elsewhere(self, offset: int) -> bool:
        """Whether this is the page after that of the access that was begun."""
        return not self._data or offset >> PAGE_SHIFT != self._at >> PAGE_SHIFT

    def read(self, offset: int, size: int) -> int:
        """A piece of a load, which may reach beyond it where the engine aligns it."""
        if self._elsewhere(offset):
            self._load(offset, self._rest if isinstance(self._rest, int) and self._rest else size)
        piece = bytes(self._data[at] if 0 <= (at := offset + i - self._at) < len(self._data) else 0 for i in range(size))
        return int.from_bytes(piece, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A piece of a store, known already unless it's on the next page."""
        if self._elsewhere(offset):
            known = self._rest if isinstance(self._rest, bytes) and self._rest else value.to_bytes(8, "little")[:size]
            self._store(offset, known)

    def next_write(self) -> Exit | None:
        """The instruction got through: what it stored, one after the other."""
        self.done = True
        return DeviceAccess(self._writes.pop(0)) if self._writes else None

    def answer(self, completion: object) -> Exit | None:
        """KVM's answer to the last access; the next exit, if the instruction is done."""
        if self.done:
            return self.next_write()
        if isinstance(completion, bytes):
            self._answers.append(completion)
        return None

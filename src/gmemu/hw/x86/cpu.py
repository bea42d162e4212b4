# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual processor that runs machine code.

Instructions are executed by an `Engine`; whatever a hypervisor has a say in comes out of it as an exit, with RIP at the
instruction, as from SVM or VMX.  Nothing of the guest is kept here between entries but what hardware keeps too:
an event that could not be delivered yet, and the instruction whose result KVM is to supply.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from ctypes import c_uint32, c_uint64, memmove, string_at
from typing import Any

from ...sync import Runtime
from ...uapi.kvm_x86 import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_WRITE_MASK,
    kvm_fpu,
    kvm_regs,
    kvm_sregs,
)
from ..cpu import (
    Access,
    Cpu,
    EmulationFailure,
    ExceptionIntercept,
    Exit,
    ExternalInterrupt,
    GuestMemory,
    NestedPageFault,
    RmpFault,
    Shutdown,
)
from ..memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from ..registers import Registers
from ..tlb import Tlb, Translation
from .breakpoints import DR6_BS, breakpoints
from .emulate import DeviceStep, Instruction, begin_instruction
from .engine import DEVICE_PADDR, Engine, available
from .env import Env
from .events import Event, deliver, second_fault
from .paging import EXEC, READ, WRITE, GuestFault, walk
from .sensitive import Kind, candidates, decode

__all__ = ["MachineCpu", "NotMemory"]

_KINDS = {16: READ, 17: WRITE, 18: EXEC}
_OFFSET = PAGE_SIZE - 1
_DB, _UD = 1, 6
_RF, _IF = 1 << 16, 1 << 9
_WINDOW_STEPS = 2


class NotMemory(Exception):
    """A guest-physical address that the nested page table doesn't have."""

    def __init__(self, fault: NestedPageFault) -> None:
        super().__init__(fault)
        self.fault = fault


class _EngineTlb(Tlb):
    """What the engine's own TLB may hold.  A flush isn't done before the engine has forgotten it too."""

    __slots__ = ("_cpu",)

    def __init__(self, cpu: MachineCpu) -> None:
        super().__init__()
        self._cpu = cpu

    def flush(self) -> None:
        super().flush()
        self._cpu.shoot_down()


class MachineCpu(Cpu):
    """A `Cpu` that runs the code its registers point to, unless a scripted guest was loaded."""

    def __init__(
        self,
        rt: Runtime,
        memory: PhysicalMemory,
        walk: Callable[[int], Translation | None],
        protection: GuestMemory,
        registers: Registers,
    ) -> None:
        super().__init__(rt, memory, walk, protection)
        self.tlb: Tlb = _EngineTlb(self)
        self.registers = registers
        self.maxphyaddr = 48
        self.window_wanted = False
        """leave with `ExternalInterrupt` as soon as the guest can take an interrupt"""
        self.single_step = False
        """leave after each instruction"""
        self.event: Event | None = None
        """to be delivered at the next entry"""
        self.intercepts: frozenset[int] = frozenset()
        """exceptions that KVM wants to see instead of the guest"""
        self.read_tsc: Callable[[], int] = time.monotonic_ns
        self._engine: Engine | None = None
        self._gate = threading.Lock()
        self._thread = 0
        self._in_guest = self._stepping = self._flush_wanted = self._kicked = False
        self._fault: GuestFault | NestedPageFault | None = None
        self._vector: int | None = None
        self._failure: BaseException | None = None
        self._instruction: Instruction | None = None
        self._step: DeviceStep | None = None
        self.host_breakpoints: tuple[Sequence[int], int] | None = None
        """DR0 to DR3 and DR7 of who debugs the guest, which take the place of the guest's"""
        self._breakpoints = breakpoints((), 0)
        self._watched: dict[int, int] = {}
        self._hits = 0
        self._window_steps = 0
        self._probe = -1
        self._probed: int | None = None
        self._devices: set[int] = set()
        self._live_code: dict[int, int] = {}
        self._scanned: dict[int, bytes] = {}
        self._code_changed = self._code_written = False

    @property
    def has_guest(self) -> bool:
        return self._guest is not None or available()

    @property
    def machine(self) -> MachineCpu:
        return self

    @property
    def runs_code(self) -> bool:
        return self._guest is None

    @property
    def engine_handle(self) -> int:
        """The engine's address (uc_engine *), 0 if it never ran; uc_emu_stop() may be called on it from a signal handler."""
        return self._engine.handle if self._engine else 0

    def close(self) -> None:
        """The processor is taken away."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # From other threads

    def shoot_down(self) -> None:
        """Have the engine forget its TLB, and wait until it can't use it any more (kvm_flush_remote_tlbs)."""
        with self._gate:
            self._flush_wanted = True
        self._wait_out()

    def kick(self) -> None:
        """kvm_vcpu_kick(): have the guest left with `ExternalInterrupt`, now or at the next entry."""
        with self._gate:
            self._kicked = True
        self._wait_out()

    def _wait_out(self) -> None:
        while self._in_guest and self._engine is not None:
            self.rt.stop_guest(self._thread, self._engine.stop)
            time.sleep(0.00002)

    # Entering

    def enter(self, completion: object = None) -> Exit:
        """Run until an exit.  `completion` is KVM's answer to the last one."""
        if self._guest is not None:
            return super().enter(completion)
        self.task = self.rt.current
        self._thread = threading.get_ident()
        if self._engine is None:
            self._start()
        self._load_registers()
        self.arm_breakpoints()
        self._check_code()
        exit_ = self._complete(completion)
        while exit_ is None:
            exit_ = self._deliver() if self.event is not None else self._run()
        self.registers.changed_by_engine()
        return exit_

    def finish_instruction(self, completion: object) -> Exit | None:
        """Finish the instruction that exited last, and go no further: the next exit if it makes another."""
        self._load_registers()
        exit_ = self._complete(completion)
        self.registers.changed_by_engine()
        return exit_

    def _start(self) -> None:
        self._base = self.memory.base
        self._engine = Engine(self._on_fill, self._on_exception, _Devices(self))
        self.registers.source = _Source(self)

    @property
    def engine(self) -> Engine:
        """The engine, which was started."""
        assert self._engine is not None
        return self._engine

    def _load_registers(self) -> None:
        registers, engine = self.registers, self.engine
        if not registers.dirty:
            return
        env = engine.save()
        if "msrs" in registers.dirty:
            env.put_msrs(registers.msrs)
        if "regs" in registers.dirty:
            env.put_regs(registers.regs)
        if "sregs" in registers.dirty:
            env.put_sregs(registers.sregs)
            self._flush_wanted = True
        elif "regs" in registers.dirty:
            env.compute_mode()
        if "xcr0" in registers.dirty:
            env.set_xcr0(registers.xcr0)
        if "fpu" in registers.dirty:
            env.put_fpu(registers.fpu)
        if "shadow" in registers.dirty:
            env.put_shadow(registers.shadow)
        env.forget_exception()
        engine.restore()
        if "fpu" in registers.dirty:
            engine.set_fpu_control(registers.fpu.fcw, registers.fpu.mxcsr)
        registers.dirty.clear()

    def _check_code(self) -> None:
        """Code that the host has changed since it was translated is translated again."""
        for page, address in self._live_code.items():
            with self._gate:  # whoever takes memory away comes by `shoot_down` first
                if self._flush_wanted:
                    break
                now = string_at(address, PAGE_SIZE)
            if now != self._scanned[page]:
                self._code_changed = True
        if self._flush_wanted:  # where the code was may not be memory any more; it's looked at when it's fetched again
            self._live_code.clear()
        if self._code_changed:
            self._forget_code()

    def _forget_code(self) -> None:
        self._code_changed = False
        self._live_code.clear()
        self._scanned.clear()
        self.engine.flush_code()
        self._flush_wanted = True

    @property
    def interruptible(self) -> bool:
        """Whether an external interrupt would be taken before the next instruction."""
        if self._engine is None or self._guest is not None or self.registers.dirty & {"regs", "sregs"}:
            return bool(self.registers.regs.rflags & _IF) and not self.registers.shadow
        if self.in_instruction:
            return False
        env = self.engine.save()
        return bool(env.rflags_system & _IF) and not env.shadow

    @property
    def interrupt_flag(self) -> bool:
        """RFLAGS.IF."""
        if self._engine is None or "regs" in self.registers.dirty:
            return bool(self.registers.regs.rflags & _IF)
        return bool(self.engine.save().rflags_system & _IF)

    @property
    def in_instruction(self) -> bool:
        """Whether an instruction is half done, or an event is on its way: nothing else may be injected."""
        waits = self._instruction is not None and not self._instruction.done
        return self.event is not None or waits or self._step is not None

    # Events

    def _deliver(self) -> Exit | None:
        """Deliver the event that is due; an exit if it can't be."""
        event = self.event
        if event is None:
            return None
        engine = self.engine
        env = engine.save()
        rflags = engine.rflags
        if not event.external and not event.software:
            rflags |= _RF
        try:
            deliver(env, _Supervisor(self, env), event, rflags)
        except GuestFault as fault:
            self.event = second_fault(event, fault)
            return Shutdown() if self.event is None else None
        except NotMemory as missing:
            return self._not_memory(missing.fault)
        self.event = None
        env.forget_exception()
        engine.restore()
        self._devices.clear()
        return None

    def _not_memory(self, fault: NestedPageFault) -> Exit:
        """What the processor itself needs (tables, code, a stack) isn't there: KVM may find it, or can't help any more."""
        if fault.gpa >> PAGE_SHIFT not in self._devices:
            return fault
        self._end_step()
        return EmulationFailure(fault.gpa)

    def _raise(
        self, vector: int, error_code: int | None, *, software: bool = False, address: int | None = None
    ) -> Exit | None:
        """The guest's code raised an exception: deliver it, or show it to KVM."""
        self.event = Event(vector, error_code, software=software, address=address)
        if vector in self.intercepts:
            self.event = None
            return ExceptionIntercept(vector, error_code, software, self.registers.debugregs.dr6 & 0xE00F)
        return None

    def forget_translations(self) -> None:
        """The guest's page tables, or how they are walked, changed."""
        self._flush_wanted = True

    # Running

    def _run(self) -> Exit | None:
        """Run the engine until it stops, and find out why."""
        engine = self.engine
        env = engine.save()
        step = self._step
        single = step is not None or self._steps or (self.window_wanted and self._window_step())
        if single and not step and self._at_sensitive():
            return self._intercepted(0)  # a single instruction is run without a look at where to stop
        if step:
            if self._at_sensitive():
                self._end_step()  # a string instruction between a port and a device
                return EmulationFailure(min(self._devices, default=0) << PAGE_SHIFT)
            engine.checkpoint()
            step.begin()
        error, ran = self._go(env.rip, single)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if step:
            return self._after_step(step)
        return self._why(error, ran, single)

    def _go(self, rip: int, single: bool) -> tuple[int, bool]:
        """Guest mode, for one instruction or until something happens.  Unicorn's error, and whether the guest ran at all."""
        engine = self.engine
        self._fault = self._vector = None
        self._hits = 0
        self._watched.clear()
        with self.rt.guest_mode():
            with self._gate:
                if self._flush_wanted:
                    engine.flush_tlb()
                    self._live_code.clear()
                    self._flush_wanted = False
                if self._kicked:
                    return 0, False
                self._in_guest, self._stepping = True, single
            try:
                error = (engine.step if single else engine.run)(rip)
            finally:
                self._in_guest = self._stepping = False
        if self._code_written:
            self._code_written = False
            self._check_code()
        return error, True

    def _window_step(self) -> bool:
        """An interrupt waits for the guest to be ready: go by single steps at first, then look every now and then."""
        self._window_steps -= 1
        return self._window_steps >= 0

    def _why(self, error: int, ran: bool, stepped: bool) -> Exit | None:
        """Why the engine stopped: an exit for KVM, or None to go on."""
        fault, self._fault = self._fault, None
        if self._vector is not None:
            return self._exception(self._vector)
        if self._kicked:
            self._kicked = False
            return ExternalInterrupt()
        if self._code_changed:
            self._forget_code()
            return None
        if isinstance(fault, NestedPageFault):
            return fault
        if isinstance(fault, GuestFault):
            return self._raise(fault.vector, fault.error_code, address=self._exact(fault))
        if not ran or (error == 0 and stepped):
            return self._stepped() if stepped and ran else None
        if self._flush_wanted:
            return None
        return self._intercepted(error)

    def _stepped(self) -> Exit | None:
        if self._steps and (trap := self._trap()) is not None:
            return trap
        return ExternalInterrupt() if self.window_wanted and self.interruptible else None

    def _at_sensitive(self) -> bool:
        insn = decode(self.code_at_rip(), self.engine.save().code_bits)
        return insn is not None and insn.kind is not Kind.OPENING

    def _exception(self, vector: int) -> Exit | None:
        """The engine raised an exception by itself."""
        env = self.engine.save()
        software = env.is_int
        error_code = None if software else env.error_code
        if vector == _DB:
            self.registers.debugregs.dr6 |= env.debug(6) & 0xE00F
        env.forget_exception()
        self.engine.restore()
        return self._raise(vector, error_code, software=software)

    def _intercepted(self, error: int) -> Exit | None:
        """The engine stands before an instruction that hypervisors intercept, or one that isn't any."""
        env = self.engine.save()
        number = self._breakpoints.instructions.get(self.linear_rip(env))
        if number is not None and not error:
            if not (self.host_breakpoints is None and self.engine.rflags & _RF):
                return self.debug_exception(1 << number)
            self.engine.passing = self.linear_rip(env)
            return None
        try:
            code = self._fetch(env)
        except GuestFault as fault:
            return self._raise(fault.vector, fault.error_code, address=fault.address)
        except NotMemory as missing:
            return self._not_memory(missing.fault)
        insn = decode(code, env.code_bits)
        if insn is None and error:
            return self._raise(_UD, None)
        if insn is None:  # a prefix of 64-bit code is an instruction in other code
            self.engine.passing = self.linear_rip(env)
            return None
        if insn.kind is Kind.OPENING:
            return self._pass_opening(env)
        try:
            outcome = begin_instruction(self, env, insn)
        except GuestFault as fault:
            return self._raise(fault.vector, fault.error_code, address=fault.address)
        except NotMemory as missing:
            return self._not_memory(missing.fault)
        if isinstance(outcome, Instruction):
            self._instruction = outcome
            return outcome.exit
        self.engine.restore()
        return self._trap()

    def _pass_opening(self, env: Env) -> Exit | None:
        """Interrupts may be open after this instruction: if one waits, go on by single steps until it can be taken."""
        self.engine.passing = self.linear_rip(env)
        self._window_steps = _WINDOW_STEPS if self.window_wanted else 0
        return None

    def _fetch(self, env: Env) -> bytes:
        """The bytes at RIP, as far as the page goes and one page more if it's there."""
        address = self.linear_rip(env)
        code = b""
        for start in (address, (address & ~_OFFSET) + PAGE_SIZE):
            want = min(15 - len(code), PAGE_SIZE - (start & _OFFSET))
            try:
                code += string_at(self.linear(env, start, EXEC, env.cpl == 3), want)
            except (GuestFault, NotMemory):
                if not code:
                    raise
            if len(code) >= 15:
                break
        return code

    @staticmethod
    def linear_rip(env: Env) -> int:
        """Where RIP points to in linear address space."""
        return env.rip if env.code_bits == 64 else env.segment("cs")[1] + env.rip & 0xFFFFFFFF

    # What KVM said

    def _complete(self, completion: object) -> Exit | None:
        """Finish the instruction that exited last."""
        if self._step is not None:
            more = self._step.answer(completion)
            if not self._step.done or more is not None:
                return more
            self._end_step()
            return self._trap()
        instruction, self._instruction = self._instruction, None
        if instruction is None:
            return None
        env = self.engine.save()
        if not instruction.done and instruction.rip != env.rip:
            return None  # user space has moved on
        try:
            exit_ = instruction.finish(self, env, completion)
        except GuestFault as fault:
            self._raise(fault.vector, fault.error_code, address=fault.address)
            return None
        except NotMemory as missing:
            self._instruction = instruction._replace(answer=completion if completion is not None else instruction.answer)
            return self._not_memory(missing.fault)
        self.engine.restore()
        return exit_ or self._trap()

    def patch(self, code: bytes) -> None:
        """Write other code where the instruction is that exited last, and let it run instead."""
        env = self.engine.save()
        self._instruction = None
        try:
            self.store_linear(env, self.linear_rip(env), code, False)
        except (GuestFault, NotMemory):
            self._raise(_UD, None)
        self._code_changed = True

    def _trap(self) -> Exit | None:
        """An instruction is done: the trap after it, if KVM steps through the guest, or data was watched."""
        hits, self._hits = self._hits, 0
        dr6 = hits | (DR6_BS if self.single_step else 0)
        return self.debug_exception(dr6) if dr6 else None

    def debug_exception(self, dr6: int) -> Exit | None:
        """#DB, for who debugs the guest or for the guest itself."""
        if self.single_step or self.host_breakpoints is not None:
            return ExceptionIntercept(_DB, None, False, dr6)
        self.registers.debugregs.dr6 |= dr6
        return self._raise(_DB, None)

    @property
    def _steps(self) -> bool:
        """Whether each instruction must be looked at after it's done."""
        return self.single_step or bool(self._breakpoints.data)

    def translate_linear(self, vaddr: int) -> int | None:
        """Where the guest's page tables, as supervisor, have a linear address; None if they don't."""
        if self._engine is None:
            self._start()
        self._load_registers()
        try:
            gpa, _ = self._walk(self.engine.save(), vaddr, READ, False)
        except (GuestFault, NotMemory):
            return None
        return gpa | vaddr & _OFFSET

    def arm_breakpoints(self) -> None:
        """Watch what the debug registers say now."""
        debug = self.registers.debugregs
        wanted = breakpoints(*(self.host_breakpoints or (debug.db, debug.dr7)))
        if wanted != self._breakpoints:
            self._breakpoints = wanted
            for address in wanted.instructions:
                self.engine.stop_at(address)

    @property
    def guarded_debug_registers(self) -> bool:
        """DR7.GD."""
        return self._breakpoints.guarded

    def code_at_rip(self) -> bytes:
        """The bytes of the instruction at RIP and what follows, at most 15."""
        try:
            return self._fetch(self.engine.save())
        except (GuestFault, NotMemory):
            return b""

    def _is_x87(self) -> bool:
        """Whether the instruction at RIP is one of the x87's, which KVM's emulator can't take apart."""
        code = self.code_at_rip().lstrip(b"\x66\x67\x2e\x36\x3e\x26\x64\x65" + bytes(range(0x40, 0x50)))
        return bool(code) and 0xD8 <= code[0] <= 0xDF

    def emulate(self, gpa: int) -> None:
        """KVM found that `gpa` isn't memory: take the instruction apart at the next entry (x86_emulate_instruction)."""
        self._devices.add(gpa >> PAGE_SHIFT)
        if self.event is None and self._instruction is None and self._step is None and self._is_x87():
            self._step = DeviceStep(self._devices)
            self._step.failed_at = gpa
        elif self.event is None and self._instruction is None and self._step is None:
            self._step = DeviceStep(self._devices)

    def _after_step(self, step: DeviceStep) -> Exit | None:
        """One instruction was tried with devices' accesses caught."""
        engine, fault = self.engine, self._fault
        if self._kicked or step.missing is not None or isinstance(fault, NestedPageFault) or step.failed_at is not None:
            engine.roll_back()
            if step.failed_at is not None:
                self._end_step()
                return EmulationFailure(step.failed_at)
            if step.missing is not None:
                return step.missing
            if isinstance(fault, NestedPageFault):
                return self._not_memory(fault)
            self._kicked = False
            return ExternalInterrupt()
        self._fault = None
        if isinstance(fault, GuestFault):
            self._end_step()
            return self._raise(fault.vector, fault.error_code, address=fault.address)
        if self._vector is not None:
            self._end_step()
            return self._exception(self._vector)
        written = step.next_write()
        if written is not None:
            return written
        self._end_step()
        return self._trap()

    def _end_step(self) -> None:
        self._step = None
        self._devices.clear()

    # The engine's callbacks.  They are in guest mode: the kernel's state may only be read through its door.

    def _on_exception(self, vector: int) -> None:
        self._vector = vector

    def _on_fill(self, vaddr: int, kind: int) -> tuple[int, int] | None:
        self._in_guest = False
        try:
            previous = self.rt.enter(self.task)
            try:
                found = self._fill(vaddr, _KINDS.get(kind, READ))
            finally:
                self.rt.leave(previous)
        except BaseException as failure:
            self._failure = failure
            return None
        with self._gate:
            if self._flush_wanted or self._code_changed:
                return None
            self._in_guest = found is not None
        return found

    def _fill(self, vaddr: int, access: int) -> tuple[int, int] | None:
        """What the engine's TLB is to hold for a linear page; None with `_fault` set if there is nothing to hold."""
        env = self.engine.save()
        page = vaddr & ~_OFFSET
        if page == self._probe:
            return DEVICE_PADDR, READ | WRITE
        try:
            gpa, perms = self._walk(env, vaddr, access, env.cpl == 3)
            if gpa >> PAGE_SHIFT in self._devices and self._step is not None:
                found = self._step.map(gpa >> PAGE_SHIFT, access == EXEC)
                if found is not None:
                    return found
            host = self._translate(gpa, access, PFERR_GUEST_FINAL_MASK)
        except GuestFault as fault:
            self._fault = fault
            return None
        except NotMemory as missing:
            self._fault = missing.fault
            return None
        if page in self._breakpoints.pages():
            self._watched[host & ~_OFFSET] = page
        hit = self.tlb.entries[gpa >> PAGE_SHIFT]
        if not hit.writable:
            perms &= ~WRITE
        if access == EXEC:
            if not self._scan(page, host):
                return None
            perms &= ~WRITE
        elif self._stepping:
            self._code_written |= access == WRITE and page in self._live_code
            perms &= ~EXEC
        elif access == WRITE or page not in self._live_code:
            self._live_code.pop(page, None)
            perms &= ~EXEC
        else:
            perms &= ~WRITE
        return host & ~_OFFSET, perms

    def _scan(self, page: int, host: int) -> bool:
        """Look through a page of code before it's translated.  False if it isn't what was translated before."""
        code = string_at(host & ~_OFFSET, PAGE_SIZE)
        known = self._scanned.get(page)
        if known is None:
            for offset in candidates(code):
                self.engine.stop_at(page + offset)
            self._scanned[page] = code
        elif known != code:
            self._code_changed = True
            return False
        self._live_code[page] = host & ~_OFFSET
        return True

    # Memory

    def _walk(self, env: Env, vaddr: int, access: int, user: bool) -> tuple[int, int]:
        """The guest's page tables."""
        return walk(env, vaddr, access, user, self._table_entry, self.maxphyaddr)

    def _table_entry(self, gpa: int, size: int, bits: int, old: int) -> int:
        """Read an entry of the guest's page tables, or set bits in it unless it has changed since it was `old`."""
        host = self._translate(gpa, WRITE if bits else READ, PFERR_GUEST_PAGE_MASK)
        cell: Any = (c_uint64 if size == 8 else c_uint32).from_address(host)
        value: int = cell.value
        if bits and value == old:
            cell.value = value = value | bits
        return value

    def _translate(self, gpa: int, access: int, stage: int) -> int:
        """The host address of `gpa`.  Raises `NotMemory`."""
        try:
            pfn = self.translate(gpa >> PAGE_SHIFT, access == WRITE, False)
        except RmpFault as missing:
            bits = missing.error_code | stage
            bits |= PFERR_WRITE_MASK if access == WRITE else PFERR_FETCH_MASK if access == EXEC else 0
            page = gpa & ~_OFFSET
            raise NotMemory(NestedPageFault(page, bits, Access(page, access == WRITE, b""))) from None
        return self._base + (pfn << PAGE_SHIFT) + (gpa & _OFFSET)

    def linear(self, env: Env, vaddr: int, access: int, user: bool) -> int:
        """The host address of a linear one.  Raises `GuestFault`, `NotMemory`."""
        gpa, _ = self._walk(env, vaddr, access, user)
        return self._translate(gpa | vaddr & _OFFSET, access, PFERR_GUEST_FINAL_MASK)

    @staticmethod
    def linear_mask(env: Env) -> int:
        """Linear addresses wrap at 4 GiB outside of 64-bit code."""
        return (1 << 64) - 1 if env.code_bits == 64 else 0xFFFFFFFF

    def load_linear(self, env: Env, vaddr: int, length: int, user: bool) -> bytes:
        """`length` bytes at a linear address.  Raises `GuestFault`, `NotMemory`."""
        pieces, mask = [], self.linear_mask(env)
        while length:
            n = min(length, PAGE_SIZE - (vaddr & _OFFSET))
            pieces.append(string_at(self.linear(env, vaddr & mask, READ, user), n))
            vaddr, length = vaddr + n, length - n
        return b"".join(pieces)

    def store_linear(self, env: Env, vaddr: int, data: bytes, user: bool) -> None:
        """Write at a linear address, all or nothing.  Raises `GuestFault`, `NotMemory`."""
        pieces, at, mask = [], 0, self.linear_mask(env)
        while at < len(data):
            n = min(len(data) - at, PAGE_SIZE - (vaddr + at & _OFFSET))
            pieces.append((self.linear(env, vaddr + at & mask, WRITE, user), data[at : at + n]))
            at += n
        for host, piece in pieces:
            memmove(host, piece, len(piece))

    def _exact(self, fault: GuestFault) -> int | None:
        """Where the access began.  The engine tells only its page, so let the instruction access one that tells the rest."""
        if fault.address is None or fault.error_code is None:
            return fault.address
        engine, page = self.engine, fault.address & ~_OFFSET
        rip = engine.save().rip
        if fault.error_code & PFERR_FETCH_MASK or self.linear_rip(engine.env) & ~_OFFSET == page:
            here = self.linear_rip(engine.env)
            return here if here & ~_OFFSET == page else page
        engine.checkpoint()
        self._probe, self._probed = page, None
        self._go(rip, True)
        self._probe, self._fault, self._vector = -1, None, None
        engine.roll_back()
        return page if self._probed is None else page + self._probed


class _Devices:
    """Who is told of accesses to what isn't memory (`engine.Devices`)."""

    def __init__(self, cpu: MachineCpu) -> None:
        self._cpu = cpu

    def memory(self, paddr: int, size: int, write: bool) -> None:
        cpu = self._cpu
        page = cpu._watched.get(paddr & ~_OFFSET)
        if page is not None:
            cpu._hits |= cpu._breakpoints.hits(page | paddr & _OFFSET, size, write)

    def access(self, offset: int, size: int, stored: bytes | None) -> None:
        cpu = self._cpu
        if cpu._probe >= 0:
            cpu._probed = offset if cpu._probed is None else cpu._probed
        elif cpu._step:
            cpu._step.access(offset, size, stored)

    def read(self, offset: int, size: int) -> int:
        cpu = self._cpu
        return cpu._step.read(offset, size) if cpu._step and cpu._probe < 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        cpu = self._cpu
        if cpu._step and cpu._probe < 0:
            cpu._step.write(offset, size, value)


class _Supervisor:
    """Memory as the processor itself reaches it while it delivers an event."""

    def __init__(self, cpu: MachineCpu, env: Env) -> None:
        self._cpu, self._env = cpu, env

    def read(self, address: int, length: int) -> int:
        return int.from_bytes(self._cpu.load_linear(self._env, address, length, False), "little")

    def write(self, address: int, length: int, value: int, user: bool = False) -> None:
        self._cpu.store_linear(self._env, address, value.to_bytes(length, "little"), user)


class _Source:
    """Where `Registers` fetches what the engine has changed."""

    def __init__(self, cpu: MachineCpu) -> None:
        self._cpu = cpu

    def fetch_regs(self) -> kvm_regs:
        engine = self._cpu.engine
        return engine.save().get_regs(engine.rflags)

    def fetch_sregs(self, old: kvm_sregs) -> kvm_sregs:
        return self._cpu.engine.save().get_sregs(old)

    def fetch_fpu(self) -> kvm_fpu:
        return self._cpu.engine.save().get_fpu()

    def fetch_shadow(self) -> int:
        return self._cpu.engine.save().shadow

    def fetch_msrs(self) -> dict[int, int]:
        return self._cpu.engine.save().get_msrs()

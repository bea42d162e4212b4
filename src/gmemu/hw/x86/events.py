# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions and interrupts through the guest's IDT, in real, protected and long mode (Intel SDM 3, chapters 6 and 20)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from .env import Env
from .paging import GuestFault

__all__ = ["Event", "LinearMemory", "deliver", "has_error_code", "second_fault"]

_DE, _DB, _DF, _TS, _NP, _SS, _GP, _PF = 0, 1, 8, 10, 11, 12, 13, 14
_CONTRIBUTORY = frozenset((_DE, _TS, _NP, _SS, _GP))
_WITH_ERROR_CODE = frozenset((_DF, _TS, _NP, _SS, _GP, _PF, 17, 21, 29, 30))
_TF, _IF, _NT, _RF, _VM, _AC = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17, 1 << 18
_CS, _SS_INDEX = 1, 2
_PRESENT, _CODE = 1 << 15, 0x1800


class Event(NamedTuple):
    """What is to be delivered.  `external` for an interrupt or NMI, `software` for INT n and its like."""

    vector: int
    error_code: int | None = None
    external: bool = False
    software: bool = False
    address: int | None = None
    """of a page fault"""
    pending: bool = False
    """KVM may still have to look at it (`exception.pending`); one that isn't is on its way into the guest."""


class LinearMemory(Protocol):
    """Memory by linear addresses, as the processor itself reaches it."""

    def read(self, address: int, length: int) -> int:
        """A number of `length` bytes, as supervisor."""

    def write(self, address: int, length: int, value: int, user: bool = False) -> None:
        """Store one."""


def has_error_code(vector: int) -> bool:
    """Whether the exception pushes an error code."""
    return vector in _WITH_ERROR_CODE


def second_fault(first: Event, second: GuestFault) -> Event | None:
    """What two exceptions at once make: the second alone, a double fault, or (None) a triple fault: shutdown."""
    if first.vector == _DF and not first.external and not first.software:
        return None
    serious = not first.external and not first.software
    if serious and second.vector in _CONTRIBUTORY and (first.vector in _CONTRIBUTORY or first.vector == _PF):
        return Event(_DF, 0)
    if serious and first.vector == _PF and second.vector == _PF:
        return Event(_DF, 0)
    return Event(second.vector, second.error_code, address=second.address)


def deliver(env: Env, memory: LinearMemory, event: Event, rflags: int) -> None:
    """Change `env` to where the handler begins, its frame pushed.  `rflags` is what is to be saved.

    Raises `GuestFault` for an exception on the way, with nothing changed but what was pushed.
    """
    if not env.control(0) & 1:
        _deliver_real(env, memory, event, rflags)
    elif env.efer & 1 << 10:
        _deliver_long(env, memory, event, rflags)
    else:
        _deliver_protected(env, memory, event, rflags)
    if event.vector == _PF and event.address is not None and not event.external and not event.software:
        env.set_control(2, event.address)
    env.put_shadow(0)


def _deliver_real(env: Env, memory: LinearMemory, event: Event, rflags: int) -> None:
    base, limit, _ = env.table("idt")
    if event.vector * 4 + 3 > limit:
        raise GuestFault(_GP)
    target = memory.read(base + event.vector * 4, 4)
    _, stack, _, ss = env.segment("ss")
    mask = 0xFFFFFFFF if ss & 1 << 22 else 0xFFFF
    sp = env.gpr(4)
    selector = env.segment("cs")[0]
    for value in (rflags, selector, env.rip):
        sp = sp & ~mask | (sp - 2 & mask)
        memory.write(stack + (sp & mask), 2, value & 0xFFFF)
    env.set_gpr(4, sp)
    env.set_rip(target & 0xFFFF)
    env.put_rflags(rflags & ~(_IF | _TF | _AC | _RF))
    segment = env.get_sregs_segment(_CS)
    segment.selector, segment.base = target >> 16, target >> 16 << 4
    env.put_segment(_CS, segment)
    env.compute_mode()


def _gate(env: Env, memory: LinearMemory, event: Event, size: int) -> tuple[int, int]:
    """The gate in the IDT, checked: its low and high eight bytes."""
    base, limit, _ = env.table("idt")
    ext = 0 if event.software else 1
    selector_error = event.vector * 8 + 2
    if event.vector * size + size - 1 > limit:
        raise GuestFault(_GP, selector_error | ext)
    low = memory.read(base + event.vector * size, 8)
    high = memory.read(base + event.vector * size + 8, 8) if size == 16 else 0
    kinds = (14, 15) if size == 16 else (6, 7, 14, 15)
    if low >> 40 & 0x1F not in kinds:
        raise GuestFault(_GP, selector_error | ext)
    if event.software and low >> 45 & 3 < env.cpl:
        raise GuestFault(_GP, selector_error)
    if not low >> 47 & 1:
        raise GuestFault(_NP, selector_error | ext)
    return low, high


def _descriptor(env: Env, memory: LinearMemory, selector: int, vector: int, ext: int) -> int:
    """The descriptor that `selector` names; `vector` is the exception if there is none."""
    base, limit, _ = env.table("ldt" if selector & 4 else "gdt")
    if not selector & ~3 or (selector | 7) > limit:
        raise GuestFault(vector, selector & ~3 | ext)
    return memory.read(base + (selector & ~7), 8)


def _code_segment(env: Env, memory: LinearMemory, selector: int, ext: int) -> tuple[int, int]:
    """The handler's code segment, checked: its descriptor, and the privilege level that it runs at."""
    descriptor = _descriptor(env, memory, selector, _GP, ext)
    flags, dpl = descriptor >> 32, descriptor >> 45 & 3
    if flags & _CODE != _CODE or dpl > env.cpl:
        raise GuestFault(_GP, selector & ~3 | ext)
    if not flags & _PRESENT:
        raise GuestFault(_NP, selector & ~3 | ext)
    return descriptor, env.cpl if flags & 0x400 else dpl


def _load_code(env: Env, selector: int, descriptor: int, cpl: int) -> None:
    segment = env.segment_of_descriptor(selector & ~3 | cpl, descriptor)
    env.put_segment(_CS, segment)


def _deliver_long(env: Env, memory: LinearMemory, event: Event, rflags: int) -> None:
    low, high = _gate(env, memory, event, 16)
    ext = 0 if event.software else 1
    selector = low >> 16 & 0xFFFF
    descriptor, cpl = _code_segment(env, memory, selector, ext)
    if not descriptor >> 53 & 1:
        raise GuestFault(_GP, selector & ~3 | ext)
    ss = env.segment("ss")[0]
    rsp, ist = env.gpr(4), low >> 32 & 7
    tss, limit, _ = env.table("tr")
    slot = 36 + 8 * (ist - 1) if ist else 4 + 8 * cpl if cpl < env.cpl else 0
    if slot:
        if slot + 7 > limit:
            raise GuestFault(_TS, 0 | ext)
        rsp = memory.read(tss + slot, 8)
    rsp &= ~15
    frame = [ss, env.gpr(4), rflags, env.segment("cs")[0], env.rip]
    frame += [event.error_code or 0] if has_error_code(event.vector) and not event.external and not event.software else []
    for value in frame:
        rsp = rsp - 8 & (1 << 64) - 1
        memory.write(rsp, 8, value)
    if cpl < env.cpl:
        env.put_segment(_SS_INDEX, env.null_segment(cpl))
    env.set_gpr(4, rsp)
    env.set_rip(low & 0xFFFF | low >> 48 << 16 | (high & 0xFFFFFFFF) << 32)
    _load_code(env, selector, descriptor, cpl)
    env.put_rflags(rflags & ~(_TF | _NT | _RF | _VM | (_IF if low >> 40 & 1 == 0 else 0)))
    env.compute_mode()


def _deliver_protected(env: Env, memory: LinearMemory, event: Event, rflags: int) -> None:
    low, _ = _gate(env, memory, event, 8)
    ext = 0 if event.software else 1
    selector, wide = low >> 16 & 0xFFFF, bool(low >> 43 & 1)
    descriptor, cpl = _code_segment(env, memory, selector, ext)
    size = 4 if wide else 2
    vm86 = bool(rflags & _VM)
    _, stack, _, ss_flags = env.segment("ss")
    sp, frame, new_stack = env.gpr(4), [], None
    if cpl < env.cpl or vm86:
        tss, _, tss_flags = env.table("tr")
        if tss_flags >> 11 & 1:
            sp, new_ss = memory.read(tss + 4 + 8 * cpl, 4), memory.read(tss + 8 + 8 * cpl, 2)
        else:
            sp, new_ss = memory.read(tss + 2 + 4 * cpl, 2), memory.read(tss + 4 + 4 * cpl, 2)
        stack_descriptor = _descriptor(env, memory, new_ss, _TS, ext)
        new_stack = env.segment_of_descriptor(new_ss, stack_descriptor)
        stack, ss_flags = new_stack.base, new_stack.db << 22
        if vm86:
            frame += [env.segment(name)[0] for name in ("gs", "fs", "ds", "es")]
        frame += [env.segment("ss")[0], env.gpr(4)]
    frame += [rflags, env.segment("cs")[0], env.rip]
    frame += [event.error_code or 0] if has_error_code(event.vector) and not event.external and not event.software else []
    mask = 0xFFFFFFFF if ss_flags & 1 << 22 else 0xFFFF
    for value in frame:
        sp = sp & ~mask | (sp - size & mask)
        memory.write(stack + (sp & mask) & 0xFFFFFFFF, size, value & (1 << 8 * size) - 1)
    if vm86:
        for index in (0, 3, 4, 5):
            env.put_segment(index, env.null_segment(0))
    if new_stack is not None:
        env.put_segment(_SS_INDEX, new_stack)
    env.set_gpr(4, sp)
    env.set_rip(low & 0xFFFF | (low >> 48 << 16 if wide else 0))
    _load_code(env, selector, descriptor, cpl)
    env.put_rflags(rflags & ~(_TF | _NT | _RF | _VM | (_IF if low >> 40 & 1 == 0 else 0)))
    env.compute_mode()

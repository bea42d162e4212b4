# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's own page tables, walked as the processor walks them (Intel SDM 3, chapter 5; AMD APM 2, chapter 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...uapi.kvm_x86 import PFERR_FETCH_MASK, PFERR_PRESENT_MASK, PFERR_RSVD_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from .env import Env

__all__ = ["EXEC", "READ", "WRITE", "GuestFault", "PageWalk", "linear_is_canonical", "walk"]

READ, WRITE, EXEC = 1, 2, 4

_P, _W, _U, _A, _D, _PS, _NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
_CR0_PG, _CR0_WP = 1 << 31, 1 << 16
_CR4_PSE, _CR4_PAE, _CR4_LA57, _CR4_SMEP, _CR4_SMAP = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21
_EFER_LMA, _EFER_NXE = 1 << 10, 1 << 11
_RFLAGS_AC = 1 << 18
_ADDRESS = (1 << 52) - 1 & ~0xFFF
VECTOR_GP, VECTOR_PF = 13, 14


class GuestFault(Exception):
    """An exception for the guest: its vector, its error code if it has one, and for a page fault the address for CR2."""

    def __init__(self, vector: int, error_code: int | None = None, address: int | None = None) -> None:
        super().__init__(vector, error_code, address)
        self.vector, self.error_code, self.address = vector, error_code, address


class PageWalk(NamedTuple):
    """Where a linear page lies, and what may be done there at the privilege that was asked for."""

    gpa: int
    perms: int


def linear_is_canonical(env: Env, address: int) -> bool:
    """Whether a long-mode address has all of its high bits alike."""
    top = address >> (56 if env.control(4) & _CR4_LA57 else 47)
    return not env.efer & _EFER_LMA or top in (0, (1 << (8 if env.control(4) & _CR4_LA57 else 17)) - 1)


def walk(
    env: Env, address: int, access: int, user: bool, entry: Callable[[int, int, int, int], int], maxphyaddr: int
) -> PageWalk:
    """Translate linear `address` for `access` (READ, WRITE or EXEC), by a user or a supervisor.

    `entry(gpa, size, set, old)` reads a table's entry of `size` bytes, or sets bits in one that was read as `old`.  Raises
    `GuestFault`; whatever `entry` raises goes through.
    """
    if not env.control(0) & _CR0_PG:
        return PageWalk(address & 0xFFFFF000, READ | WRITE | EXEC)
    if not linear_is_canonical(env, address):
        raise GuestFault(VECTOR_GP, 0)
    cr3, cr4, efer = env.control(3), env.control(4), env.efer
    nxe = efer & _EFER_NXE
    if efer & _EFER_LMA:
        size, bits, table = 8, 9, cr3 & _ADDRESS
        shifts: tuple[int, ...] = (48, 39, 30, 21, 12) if cr4 & _CR4_LA57 else (39, 30, 21, 12)
    elif cr4 & _CR4_PAE:
        size, bits, shifts, table = 8, 9, (21, 12), 0
        pdpte = entry((cr3 & 0xFFFFFFE0) + (address >> 30 & 3) * 8, 8, 0, 0)
        if not pdpte & _P:
            raise _fault(env, address, access, user, 0)
        table = pdpte & _ADDRESS
    else:
        size, bits, shifts, table, nxe = 4, 10, (22, 12), cr3 & 0xFFFFF000, 0
    reserved = (1 << 52) - (1 << maxphyaddr) if size == 8 else 0
    reserved |= 0 if nxe or size == 4 else _NX
    combined, visited = _W | _U, []
    for shift in shifts:
        gpa = table + (address >> shift & (1 << bits) - 1) * size
        value = entry(gpa, size, 0, 0)
        if not value & _P:
            raise _fault(env, address, access, user, 0)
        large = value & _PS and ((shift in (21, 30) and size == 8) or (shift == 22 and cr4 & _CR4_PSE))
        wrong = value & reserved
        if value & _PS and shift >= 39:
            wrong |= _PS
        if large and size == 8:
            wrong |= value & (1 << shift) - 1 & ~0x1FFF
        if wrong:
            raise _fault(env, address, access, user, PFERR_PRESENT_MASK | PFERR_RSVD_MASK)
        combined = combined & value | (combined | value) & _NX
        visited.append((gpa, value))
        table = value & (_ADDRESS if size == 8 else 0xFFFFF000)
        if large or shift == 12:
            break
    allowed = _allowed(env, combined, user)
    if not allowed & access:
        raise _fault(env, address, access, user, PFERR_PRESENT_MASK)
    for gpa, value in visited[:-1]:
        if not value & _A:
            entry(gpa, size, _A, value)
    gpa, value = visited[-1]
    used = _A | (_D if access == WRITE else 0)
    if used & ~value:
        value = entry(gpa, size, used, value)
    if not value & _D:
        allowed &= ~WRITE  # the first write has to come by here
    base = table & ~((1 << shift) - 1) | (address & (1 << shift) - 1 & ~0xFFF)
    if large and size == 4:
        base |= (value >> 13 & 0xFF) << 32
    return PageWalk(base, allowed)


def _allowed(env: Env, combined: int, user: bool) -> int:
    """READ, WRITE and EXEC as the combined bits of all levels give them."""
    cr4 = env.control(4)
    allowed = 0 if combined & _NX else EXEC
    if user:
        if not combined & _U:
            return 0
        return allowed | READ | (WRITE if combined & _W else 0)
    if not combined & _U or not cr4 & _CR4_SMAP or env.rflags_system & _RFLAGS_AC:
        allowed |= READ | (WRITE if combined & _W or not env.control(0) & _CR0_WP else 0)
    if combined & _U and cr4 & _CR4_SMEP:
        allowed &= ~EXEC
    return allowed


def _fault(env: Env, address: int, access: int, user: bool, bits: int) -> GuestFault:
    bits |= PFERR_WRITE_MASK if access == WRITE else 0
    bits |= PFERR_USER_MASK if user else 0
    if access == EXEC and (env.efer & _EFER_NXE or env.control(4) & _CR4_SMEP):
        bits |= PFERR_FETCH_MASK
    return GuestFault(VECTOR_PF, bits, address)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Unicorn, by its C interface: one engine for one virtual processor.

What the engine takes for physical addresses are addresses of this process, all of them, mapped once.  What a guest may reach
is what its TLB is given: `UC_TLB_VIRTUAL` asks `on_fill` at each miss.  So a refused access stops at its instruction, and
neither memslots nor conversions cost the engine anything but a flush.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    PyDLL,
    Structure,
    byref,
    c_bool,
    c_int,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..memory import PAGE_SHIFT
from .env import Env

__all__ = ["DEVICE_PAGES", "DEVICE_PADDR", "Devices", "Engine", "available", "stop_function"]

_ARCH_X86, _MODE_64 = 4, 8
_HOOK_INTR, _HOOK_CODE, _HOOK_INSN_INVALID, _HOOK_TLB_FILL = 1 << 0, 1 << 2, 1 << 14, 1 << 17
_HOOK_MEM_READ, _HOOK_MEM_WRITE = 1 << 10, 1 << 11
_MEM_WRITE = 17
_CTL_USE_EXITS, _CTL_CPU_MODEL, _CTL_TB_FLUSH, _CTL_TLB_FLUSH, _CTL_TLB_TYPE = 4, 7, 10, 11, 12
_TLB_VIRTUAL = 1
_CPU_EPYC_ROME = 37
_PROT_ALL = 7
_REG_EFLAGS, _REG_FPCW, _REG_MXCSR = 25, 246, 249

_USER_SPACE = 1 << 47
DEVICE_PADDR = 1 << 48
DEVICE_PAGES = 8
"""Where in the engine's physical space accesses land that some device must answer, and how many pages of it."""

_CONTEXT_DATA = 40
"""Offset (bytes) of the processor's state in a saved context."""


class TlbEntry(Structure):
    """uc_tlb_entry."""

    _fields_ = (("paddr", c_uint64), ("perms", c_int))


_FILL = CFUNCTYPE(c_bool, c_void_p, c_uint64, c_int, POINTER(TlbEntry), c_void_p)
_CODE = CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_void_p)
_INTR = CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
_INVALID = CFUNCTYPE(c_bool, c_void_p, c_void_p)
_ACCESS = CFUNCTYPE(None, c_void_p, c_int, c_uint64, c_int, c_int64, c_void_p)
_DEVICE_READ = CFUNCTYPE(c_uint64, c_void_p, c_uint64, ctypes.c_uint, c_void_p)
_DEVICE_WRITE = CFUNCTYPE(None, c_void_p, c_uint64, ctypes.c_uint, c_uint64, c_void_p)


_Fill = Callable[[int, int], tuple[int, int] | None]


class Devices(Protocol):
    """Who is told what an instruction accesses.  Offsets are bytes from `DEVICE_PADDR`."""

    def memory(self, paddr: int, size: int, write: bool) -> None:
        """It accesses memory."""

    def access(self, offset: int, size: int, stored: bytes | None) -> None:
        """It begins an access of `size` bytes, with what it stores, or None if it loads."""

    def read(self, offset: int, size: int) -> int:
        """A piece of a load is needed."""

    def write(self, offset: int, size: int, value: int) -> None:
        """A piece of a store arrives."""


class _Library:
    """libunicorn.  `run` lets other threads go on; the rest are short and don't."""

    def __init__(self, path: Path) -> None:
        short, long = PyDLL(str(path), _binding()), ctypes.CDLL(str(path), _binding())
        self.open = _function(short.uc_open, c_int, c_int, POINTER(c_void_p))
        self.close = _function(short.uc_close, c_void_p)
        self.ctl = short.uc_ctl
        self.map_ptr = _function(short.uc_mem_map_ptr, c_void_p, c_uint64, c_uint64, c_uint32, c_void_p)
        self.mmio_map = _function(
            short.uc_mmio_map, c_void_p, c_uint64, c_size_t, _DEVICE_READ, c_void_p, _DEVICE_WRITE, c_void_p
        )
        self.hook_add = short.uc_hook_add  # variadic: arguments are given their types at the call
        self.reg_read = _function(short.uc_reg_read, c_void_p, c_int, c_void_p)
        self.reg_write = _function(short.uc_reg_write, c_void_p, c_int, c_void_p)
        self.context_alloc = _function(short.uc_context_alloc, c_void_p, POINTER(c_void_p))
        self.context_free = _function(short.uc_context_free, c_void_p)
        self.context_save = _function(short.uc_context_save, c_void_p, c_void_p)
        self.context_restore = _function(short.uc_context_restore, c_void_p, c_void_p)
        self.context_size = _function(short.uc_context_size, c_void_p)
        self.context_size.restype = c_size_t
        self.stop = _function(short.uc_emu_stop, c_void_p)
        self.run = _function(long.uc_emu_start, c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)


def _function(function: Any, *argtypes: Any) -> Any:
    function.argtypes = argtypes
    return function


def _binding() -> int:
    """How the library's own names are bound: to itself.

    It is made of QEMU and exports its functions' names, so that in a program that has them as well (QEMU) it would
    call the program's.  Programs that AddressSanitizer watches refuse that, and go without.
    """
    return os.RTLD_NOW | (0 if hasattr(ctypes.CDLL(None), "__asan_init") else os.RTLD_DEEPBIND)


@cache
def _library() -> _Library | None:
    unicorn = find_spec("unicorn")
    if unicorn is None or unicorn.origin is None:
        return None
    return _Library(Path(unicorn.origin).parent / "lib" / "libunicorn.so.2")


def available() -> bool:
    """Whether machine code can be run here: Unicorn is installed."""
    return _library() is not None


def stop_function() -> int:
    """The address of uc_emu_stop(), for who has to stop an engine (`Engine.handle`) without Python."""
    library = _library()
    return (ctypes.cast(library.stop, c_void_p).value or 0) if library is not None else 0


class _Processor:
    """One uc_engine, with all of this process for its memory.  Its callbacks must not raise."""

    def __init__(self, library: _Library, on_fill: _Fill, on_exception: Callable[[int], None]) -> None:
        self._lib = library
        handle = c_void_p()
        _must(library.open(_ARCH_X86, _MODE_64, byref(handle)), "uc_open")
        self.handle = handle.value or 0
        self.ctl(_CTL_CPU_MODEL, c_int(_CPU_EPYC_ROME))
        self.ctl(_CTL_TLB_TYPE, c_int(_TLB_VIRTUAL))
        self.ctl(_CTL_USE_EXITS, c_int(1))
        _must(library.map_ptr(self.handle, 4096, _USER_SPACE - 4096, _PROT_ALL, 4096), "uc_mem_map_ptr")
        self.callbacks: list[Any] = []
        stop, this = library.stop, self.handle

        def fill(uc: int, vaddr: int, kind: int, entry: Any, data: int) -> bool:
            found = on_fill(vaddr, kind)
            if found is None:
                return False
            entry[0].paddr, entry[0].perms = found
            return True

        def exception(uc: int, vector: int, data: int) -> None:
            on_exception(vector)
            stop(this)

        self.hook(_HOOK_TLB_FILL, _FILL(fill))
        self.hook(_HOOK_INTR, _INTR(exception))
        self.hook(_HOOK_INSN_INVALID, _INVALID(lambda uc, data: False))

    def hook(self, kind: int, callback: Any, first: int = 1, last: int = 0) -> None:
        """Have `callback` called for addresses from `first` to `last`, or all."""
        self.callbacks.append(callback)
        hook = c_size_t()
        arguments = (c_void_p(self.handle), byref(hook), c_int(kind), callback, None, c_uint64(first), c_uint64(last))
        _must(self._lib.hook_add(*arguments), "uc_hook_add")

    def ctl(self, control: int, *args: Any) -> None:
        """uc_ctl() that sets something."""
        request = c_uint32(control | len(args) << 26 | 1 << 30)
        _must(self._lib.ctl(c_void_p(self.handle), request, *args), "uc_ctl")

    def close(self) -> None:
        """Give it back."""
        self._lib.close(self.handle)


def _must(error: int, what: str) -> None:
    """Unicorn can't fail here."""
    if error:
        raise RuntimeError(f"{what}: Unicorn's error {error}")


class Engine:
    """What runs one virtual processor's code.  The callbacks given to it must not raise.

    `on_fill(vaddr, kind)` (kind 16 read, 17 write, 18 fetch) gives (paddr, perms), perms 1 read, 2 write, 4 execute, or
    None to refuse.  `on_exception(vector)` tells of an exception.  `devices` is told of what an instruction accesses in
    `step`: memory, or the stand-in for devices at `DEVICE_PADDR`, which may be reached only there.

    There are two processors of Unicorn in it, with one state.  One runs freely.  The other executes one instruction at a
    time and tells of each access what the instruction asked for, not how it's split: Unicorn counts instructions exactly
    only in code that it has translated for counting, and would translate all code anew at each change.
    """

    def __init__(self, on_fill: _Fill, on_exception: Callable[[int], None], devices: Devices) -> None:
        library = _library()
        assert library is not None
        self._lib = library
        self._callers = on_fill, on_exception, devices
        self._free = _Processor(library, on_fill, on_exception)
        self._single: _Processor | None = None
        self.handle = self._state_of = self._free.handle
        self.passing = -1
        """an address not to stop at, once"""
        self._hooked: set[int] = set()
        self._code = _CODE(self._stop_here)
        self._context, self.env = self._new_context()
        self._shadow, _ = self._new_context()
        self.save()

    def _stop_here(self, uc: int, address: int, size: int, data: int) -> None:
        if address == self.passing:
            self.passing = -1
        else:
            self._lib.stop(self.handle)

    def _stepper(self) -> _Processor:
        """The processor for single instructions."""
        if self._single is None:
            on_fill, on_exception, devices = self._callers
            self._single = single = _Processor(self._lib, on_fill, on_exception)
            read = _DEVICE_READ(lambda uc, offset, n, data: devices.read(offset, n))
            write = _DEVICE_WRITE(lambda uc, offset, n, value, data: devices.write(offset, n, value))
            single.callbacks += (read, write)
            length = DEVICE_PAGES << PAGE_SHIFT
            _must(self._lib.mmio_map(single.handle, DEVICE_PADDR, length, read, None, write, None), "uc_mmio_map")

            def access(uc: int, kind: int, address: int, n: int, value: int, data: int) -> None:
                if address < DEVICE_PADDR:
                    devices.memory(address, n, kind == _MEM_WRITE)
                    return
                stored = value.to_bytes(8, "little", signed=True)[:n] if kind == _MEM_WRITE else None
                devices.access(address - DEVICE_PADDR, n, stored)

            single.hook(_HOOK_MEM_READ | _HOOK_MEM_WRITE, _ACCESS(access))
        return self._single

    def _new_context(self) -> tuple[int, Env]:
        context = c_void_p()
        _must(self._lib.context_alloc(self.handle, byref(context)), "uc_context_alloc")
        size = self._lib.context_size(self.handle) - _CONTEXT_DATA
        buffer = (ctypes.c_char * size).from_address((context.value or 0) + _CONTEXT_DATA)
        return context.value or 0, Env(memoryview(buffer).cast("B"))

    def close(self) -> None:
        """Give everything back.  The engine isn't running."""
        if self.handle:
            self.env.state.release()
            self._lib.context_free(self._context)
            self._lib.context_free(self._shadow)
            self._free.close()
            if self._single is not None:
                self._single.close()
            self.handle = 0

    # State

    def save(self) -> Env:
        """The state as it now is, in `env`, to be read or changed; a change counts after `restore`."""
        self._lib.context_save(self._state_of, self._context)
        return self.env

    def restore(self) -> None:
        """Let `env` be the state."""
        self._lib.context_restore(self.handle, self._context)

    def checkpoint(self) -> None:
        """Remember the state for `roll_back`."""
        self._lib.context_save(self.handle, self._shadow)

    def roll_back(self) -> None:
        """The state of the last `checkpoint`."""
        self._lib.context_restore(self.handle, self._shadow)

    @property
    def rflags(self) -> int:
        """RFLAGS, arithmetic flags and all."""
        return self._read(_REG_EFLAGS)

    def set_fpu_control(self, fcw: int, mxcsr: int) -> None:
        """The x87 control word and MXCSR, with the rounding that follows."""
        self._write(_REG_FPCW, fcw)
        self._write(_REG_MXCSR, mxcsr)

    def _read(self, register: int) -> int:
        value = c_uint64()
        self._lib.reg_read(self.handle, register, byref(value))
        return value.value

    def _write(self, register: int, value: int) -> None:
        self._lib.reg_write(self.handle, register, byref(c_uint64(value)))

    # Running

    def stop_at(self, address: int) -> None:
        """Stop before an instruction at linear `address` whenever one is about to run.  Once is enough."""
        if address not in self._hooked:
            self._hooked.add(address)
            self._free.hook(_HOOK_CODE, self._code, address, address)

    def run(self, rip: int) -> int:
        """Run from `rip`.  Unicorn's error, 0 when something stopped it."""
        error: int = self._lib.run(self.handle, rip, 0, 0, 0)
        return error

    def step(self, rip: int) -> int:
        """Execute the one instruction at `rip`, wherever `stop_at` would stop.  Unicorn's error or 0."""
        single = self._stepper().handle
        self._lib.context_save(self.handle, self._context)
        self._lib.context_restore(single, self._context)
        self._stepper().ctl(_CTL_TLB_FLUSH)
        self._state_of = single
        error: int = self._lib.run(single, rip, 0, 0, 1)
        self._lib.context_save(single, self._context)
        self._state_of = self.handle
        self.restore()
        return error

    def stop(self) -> None:
        """Stop at the next block of code.  From any thread, or a signal handler."""
        self._lib.stop(self.handle)

    def flush_tlb(self) -> None:
        """Forget every translation.  The engine isn't running."""
        self._free.ctl(_CTL_TLB_FLUSH)

    def flush_code(self) -> None:
        """Forget every block of translated code: memory that it came from has changed."""
        self._free.ctl(_CTL_TB_FLUSH)
        if self._single is not None:
            self._single.ctl(_CTL_TB_FLUSH)

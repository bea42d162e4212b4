# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace's system calls with names instead of numbers: which descriptor, which mapping, and who waits for whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ...uapi.ioctl import ioctl_layout
from ...uapi.kvm import (
    KVM_CREATE_GUEST_MEMFD,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_MEMORY_ENCRYPT_OP,
)
from ...uapi.sev import kvm_sev_cmd

if TYPE_CHECKING:
    from ...explore.trace import Trace
    from ...syscalls.recorded import Call
    from ...uapi.layout import Struct

__all__ = ["Named", "NotExpressible", "Word", "fields", "named", "waits_for"]

_MAKES = {KVM_CREATE_VM: "vm", KVM_CREATE_VCPU: "vcpu", KVM_CREATE_GUEST_MEMFD: "gmem"}
_DESCRIPTORS = frozenset({"guest_memfd", "sev_fd", "fd"})
"""Members of structures that are file descriptors."""
_ON_DESCRIPTOR = frozenset(
    {"ioctl", "fallocate", "fstat", "ftruncate", "fsync", "read", "write", "pread", "pwrite", "close", "dup", "load_guest"}
)
WORD = 8


class NotExpressible(ValueError):
    """The format can't say what the trace does.  The message is one sentence for a person."""


class Word(NamedTuple):
    """Eight bytes of a buffer: a number, an address in mapping `memory` at offset `value`, or descriptor `fd` in one half
    (the upper one if `high`) with `value` in the other."""

    value: int
    memory: str = ""
    fd: str = ""
    high: bool = False


class Named(NamedTuple):
    """A call: `fd` names the descriptor that it's made on, `makes` the descriptor or mapping that it makes; `memory` and
    `offset` are its address; `words` is its buffer, `tail` what is left of that after whole words."""

    call: Call
    number: int
    fd: str = ""
    makes: str = ""
    memory: str = ""
    offset: int = 0
    words: tuple[Word, ...] = ()
    tail: bytes = b""


def named(trace: Trace) -> list[Named]:
    """Every call in the order in which they began.  Raises `NotExpressible` if the trace has none."""
    if not trace.calls:
        raise NotExpressible(f"{trace.scenario or 'this program'} keeps no system calls, so no program can be made of it")
    names = _Names()
    return [names.name(number, call) for number, call in enumerate(trace.calls)]


def fields(call: Call) -> str:
    """An ioctl's structure as ``slot=0, size=0x1000``, without what is zero."""
    layout = _layout(call)
    if layout is None or len(call.args[2]) < layout.SIZE:
        return ""
    value = layout.unpack_from(call.args[2])
    found = ((name, getattr(value, name)) for name in layout.OFFSETS)
    return ", ".join(f"{name}={number:#x}" for name, number in found if isinstance(number, int) and number)


def waits_for(calls: list[Named], this: Named) -> Iterator[tuple[Named, bool]]:
    """The last call of each other task that must have begun (False) or be over (True) when `this` is made."""
    for task in sorted({other.call.task for other in calls} - {this.call.task, -1}):
        before = [o for o in calls if o.call.task == task and o.call.begin < this.call.begin]
        if before:
            last = before[-1].call
            yield before[-1], last.end != -1 and last.end <= this.call.begin


def _layout(call: Call) -> type[Struct] | None:
    if call.name != "ioctl" or len(call.args) < 3 or not isinstance(call.args[2], bytes):
        return None
    return kvm_sev_cmd if call.args[1] == KVM_MEMORY_ENCRYPT_OP else ioctl_layout(call.args[1])


class _Names:
    """Follows which descriptor and which mapping is which; a number may be used again after a close."""

    def __init__(self) -> None:
        self._fds: dict[tuple[int, int], str] = {}
        self._maps: list[tuple[int, int, str]] = []
        self._made: dict[str, int] = {}

    def name(self, number: int, call: Call) -> Named:
        args = call.args
        fd = memory = ""
        offset = 0
        if call.name in _ON_DESCRIPTOR:
            fd = self._fd(call, args[0])
        if call.name in ("munmap", "mprotect", "madvise", "load", "store"):
            memory, offset = self._address(args[0])
        if call.name == "mmap" and len(args) > 4:
            fd = self._fd(call, args[4])
        if call.name == "store":
            words, tail = self._words(args[1], {})
        elif call.name == "ioctl" and len(args) > 2 and isinstance(args[2], bytes):
            layout = _layout(call)
            at = {o: self._fd(call, int.from_bytes(args[2][o : o + 4], "little", signed=True))
                  for name, o in (layout.OFFSETS.items() if layout else ()) if name in _DESCRIPTORS}  # fmt: skip
            words, tail = self._words(args[2], {o: name for o, name in at.items() if name})
        else:
            words, tail = (), b""
        return Named(call, number, fd, self._makes(call), memory, offset, words, tail)

    def _fd(self, call: Call, fd: object) -> str:
        return self._fds.get((call.process, fd), "") if isinstance(fd, int) else ""

    def _makes(self, call: Call) -> str:
        if not isinstance(call.result, int) or call.result < 0:
            return ""
        kind = ""
        if call.name == "open":
            kind = str(call.args[0]).rpartition("/")[2]
        elif call.name == "memfd_create":
            kind = "memfd"
        elif call.name == "dup":
            kind = "copy"
        elif call.name == "ioctl":
            kind = _MAKES.get(call.args[1], "")
        elif call.name == "mmap":
            kind = "mem"
        if not kind:
            return ""
        number = self._made.get(kind, 0)
        self._made[kind] = number + 1
        name = f"{kind}{number}" if number or kind in ("mem", "vcpu") else kind
        if kind == "mem":
            self._maps.insert(0, (call.result, call.args[1], name))
        else:
            self._fds[call.process, call.result] = name
        return name

    def _address(self, address: int) -> tuple[str, int]:
        for start, length, name in self._maps:
            if start <= address < start + length:
                return name, address - start
        return "", address

    def _words(self, data: bytes, fds: dict[int, str]) -> tuple[tuple[Word, ...], bytes]:
        found = []
        for at in range(0, len(data) // WORD * WORD, WORD):
            value = int.from_bytes(data[at : at + WORD], "little")
            if at in fds:
                found.append(Word(value >> 32, fd=fds[at]))
            elif at + 4 in fds:
                found.append(Word(value & 0xFFFFFFFF, fd=fds[at + 4], high=True))
            else:
                memory, offset = self._address(value)
                found.append(Word(offset, memory=memory))
        return tuple(found), data[len(data) // WORD * WORD :]

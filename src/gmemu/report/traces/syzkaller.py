# SPDX-License-Identifier: GPL-2.0-or-later
"""A syzkaller program with the trace's calls; those that another task's overlapped are `(async)`.

Buffers are given as bytes (ANY), so that calls which syzkaller has no description of yet can be made too.  A store is the
copying-in of a buffer for a call that fails; a load is MADV_POPULATE_READ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...uapi.kvm import ioctl_name
from ...uapi.mman import MADV_POPULATE_READ, MAP_FIXED
from .calls import WORD, Named, NotExpressible, named
from .story import title, token, verdict

if TYPE_CHECKING:
    from ...explore.trace import Trace

__all__ = ["write"]

BUFFERS, MEMORY = 0x20000000, 0x20100000
"""Where buffers and mappings are put in syzkaller's own 16 MiB of data, which it writes as 0x7f0000000000."""
DATA = 0x7F0000000000 - BUFFERS
BUFFER_SIZE = 0x400
PAGE = 0x1000
NOWHERE = 0xFFFFFFFFFFFFFFFF


def write(traces: Sequence[Trace]) -> str:
    """The first trace.  Raises `NotExpressible`."""
    return _Program(traces[0]).text()


class _Program:
    def __init__(self, trace: Trace) -> None:
        self._trace, self._calls = trace, named(trace)
        self._resources: dict[str, str] = {}
        self._memory: dict[str, int] = {}
        self._next = MEMORY

    def text(self) -> str:
        lines = [
            f"# {title(self._trace)}: made by gmemu from a simulated run",
            f"# {verdict(self._trace)}".replace("\n", " "),
            f"# gmemu replay '{token(self._trace)}'",
            f"# addresses inside of buffers suppose that the executor's data is at {BUFFERS:#x}",
        ]
        for call in self._calls:
            text = self._line(call)
            resource = ""
            if call.makes and call.call.name != "mmap":
                resource = self._resources[call.makes] = f"r{len(self._resources)}"
            lines.append((f"{resource} = " if resource else "") + text + (" (async)" if self._overlapped(call) else ""))
        return "\n".join(lines) + "\n"

    def _overlapped(self, this: Named) -> bool:
        """Whether another task began a call before this one was over."""
        call = this.call
        return call.task >= 0 and any(
            other.call.task not in (-1, call.task)
            and other.call.begin > call.begin
            and (call.end < 0 or other.call.begin < call.end)
            for other in self._calls
        )

    def _line(self, this: Named) -> str:
        call, a = this.call, this.call.args
        if call.process or call.name in ("fork", "load_guest"):
            what = "a scripted guest" if call.name == "load_guest" else "another process"
            raise NotExpressible(f"a syzkaller program can't have {what}, which this trace has; --format c has a note there")
        fd = self._resources.get(this.fd, f"{NOWHERE:#x}")
        match call.name:
            case "open":
                name = str(a[0]).rpartition("/")[2]
                return f"openat${name}(0xffffffffffffff9c, &({self._at(this)})='{a[0]}\\x00', 0x80002, 0x0)"
            case "ioctl":
                argument = self._buffer(this) if this.words or this.tail else f"{a[2] if len(a) > 2 else 0:#x}"
                return f"ioctl${ioctl_name(a[1])}({fd}, {a[1]:#x}, {argument})"
            case "mmap":
                return self._mmap(this, fd)
            case "load":
                address, length = self._pages(this, a[1])
                return f"madvise(&({address:#x}/{length:#x})=nil, {length:#x}, {MADV_POPULATE_READ:#x})"
            case "store":
                return f"write({NOWHERE:#x}, {self._buffer(this, self._address(this))}, 0x0)"
            case "munmap":
                return f"munmap(&({self._address(this):#x}/{a[1]:#x})=nil, {a[1]:#x})"
            case "mprotect" | "madvise":
                return f"{call.name}(&({self._address(this):#x}/{a[1]:#x})=nil, {a[1]:#x}, {a[2]:#x})"
            case "fallocate":
                return f"fallocate({fd}, {a[1]:#x}, {a[2]:#x}, {a[3]:#x})"
            case "ftruncate":
                return f"ftruncate({fd}, {a[1]:#x})"
            case "close" | "dup" | "fsync":
                return f"{call.name}({fd})"
            case "memfd_create":
                return f"memfd_create(&({self._at(this)})='{a[0]}\\x00', 0x0)"
            case other:
                raise NotExpressible(f"a syzkaller program isn't made of {other}(); --format c has a note there")

    def _mmap(self, this: Named, fd: str) -> str:
        _, length, prot, flags, *rest = this.call.args
        address = self._next
        self._next += length + PAGE - 1 & ~(PAGE - 1)
        if self._next > BUFFERS + (16 << 20):
            raise NotExpressible("the mappings of this trace don't fit into syzkaller's 16 MiB of data")
        if this.makes:
            self._memory[this.makes] = address
        address += DATA
        offset = rest[1] if len(rest) > 1 else 0
        return f"mmap(&({address:#x}/{length:#x})=nil, {length:#x}, {prot:#x}, {flags | MAP_FIXED:#x}, {fd}, {offset:#x})"

    def _at(self, this: Named) -> str:
        return f"{DATA + BUFFERS + this.number * BUFFER_SIZE:#x}"

    def _address(self, this: Named) -> int:
        return DATA + self._memory[this.memory] + this.offset if this.memory else this.offset

    def _pages(self, this: Named, length: int) -> tuple[int, int]:
        address = self._address(this)
        start = address & ~(PAGE - 1)
        return start, (address + length + PAGE - 1 & ~(PAGE - 1)) - start

    def _buffer(self, this: Named, address: int | None = None) -> str:
        """The call's buffer: bytes, with descriptors between them."""
        parts, blob = [], b""
        for word in this.words:
            if word.fd:
                other = word.value.to_bytes(4, "little")
                resource = f"@ANYRES32={self._resources.get(word.fd, f'{NOWHERE:#x}')}"
                parts += [_blob(blob + other) if word.high else _blob(blob), resource]
                blob = b"" if word.high else other
            else:
                value = word.value + (self._memory[word.memory] if word.memory else 0)
                blob += value.to_bytes(WORD, "little")
        parts.append(_blob(blob + this.tail))
        where = self._at(this) if address is None else f"{address:#x}"
        return f"&({where})=ANY=[{', '.join(part for part in parts if part)}]"


def _blob(data: bytes) -> str:
    return f'@ANYBLOB="{data.hex()}"' if data else ""

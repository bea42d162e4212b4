# SPDX-License-Identifier: GPL-2.0-or-later
"""Declare a C struct once: fields in order, natural alignment, little endian.

A structure of the kernel's uAPI is a class whose attributes are fields::

    class kvm_create_guest_memfd(Struct):
        size: int = u64()
        flags: int = u64()
        reserved: tuple[int, ...] = u64(6)

From that declaration come the constructor, `pack`, `unpack_from`, `SIZE` and `OFFSETS`.  Padding that C would insert is
inserted here too, and reads as nothing and writes as zero.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

if TYPE_CHECKING:
    from mmap import mmap

__all__ = ["Field", "Struct", "char", "nested", "s8", "s16", "s32", "s64", "u8", "u16", "u32", "u64"]


class Field:
    """One member: a `struct` format character, how many of it, and what it aligns to (bytes)."""

    __slots__ = ("align", "code", "count", "inner", "size")

    def __init__(self, code: str, size: int, count: int = 0, inner: type[Struct] | None = None) -> None:
        self.code, self.count, self.inner = code, count, inner
        self.align = inner.ALIGN if inner else (1 if code == "s" else size)
        self.size = size * max(count, 1)


def u8(count: int = 0) -> Any:
    """An unsigned byte, or a tuple of `count` of them."""
    return Field("B", 1, count)


def u16(count: int = 0) -> Any:
    """A 16-bit unsigned integer, or a tuple of `count` of them."""
    return Field("H", 2, count)


def u32(count: int = 0) -> Any:
    """A 32-bit unsigned integer, or a tuple of `count` of them."""
    return Field("I", 4, count)


def u64(count: int = 0) -> Any:
    """A 64-bit unsigned integer, or a tuple of `count` of them."""
    return Field("Q", 8, count)


def s8(count: int = 0) -> Any:
    """A signed byte, or a tuple of `count` of them."""
    return Field("b", 1, count)


def s16(count: int = 0) -> Any:
    """A 16-bit signed integer, or a tuple of `count` of them."""
    return Field("h", 2, count)


def s32(count: int = 0) -> Any:
    """A 32-bit signed integer, or a tuple of `count` of them."""
    return Field("i", 4, count)


def s64(count: int = 0) -> Any:
    """A 64-bit signed integer, or a tuple of `count` of them."""
    return Field("q", 8, count)


def char(count: int) -> Any:
    """A byte string of exactly `count` bytes."""
    return Field("s", 1, count)


def nested(inner: type[Struct]) -> Any:
    """Another structure, in place."""
    return Field("s", inner.SIZE, 0, inner)


def _first_use(cls: type[Struct], method: str) -> Any:
    """Stand in for `method` until it is called: most programs use few of the structures they import."""

    def compile_then_call(self: Struct, *args: Any, **kwargs: Any) -> Any:
        cls._compile()
        return getattr(cls, method)(self, *args, **kwargs)

    return compile_then_call


# No field_specifiers: a type checker then takes `= u32()` for a default, so that a field may be left out.
@dataclass_transform(kw_only_default=True)
class Struct:
    """Base of every declared structure.  Fields not given to the constructor are zero."""

    SIZE: ClassVar[int] = 0
    ALIGN: ClassVar[int] = 1
    OFFSETS: ClassVar[dict[str, int]] = {}
    _fields: ClassVar[dict[str, Field]] = {}
    _codec: ClassVar[struct.Struct]

    def __init_subclass__(cls) -> None:
        fields = {name: f for name, f in vars(cls).items() if isinstance(f, Field)}
        code, offset, align, offsets = "<", 0, 1, {}
        for name, f in fields.items():
            delattr(cls, name)
            pad = -offset % f.align
            code += f"{pad}x" if pad else ""
            offsets[name] = offset + pad
            code += f"{f.size}s" if f.code == "s" else f"{f.count or ''}{f.code}"
            offset += pad + f.size
            align = max(align, f.align)
        tail = -offset % align
        cls._codec = struct.Struct(code + (f"{tail}x" if tail else ""))
        cls.SIZE, cls.ALIGN, cls.OFFSETS, cls._fields = offset + tail, align, offsets, fields
        for method in ("__init__", "pack", "pack_into", "_load"):
            setattr(cls, method, _first_use(cls, method))

    @classmethod
    def _compile(cls) -> None:
        """Write out the constructor and the two codecs, as a C compiler would: these run on every system call."""
        args, inits, flat, out, at = [], [], [], [], 0
        names: dict[str, Any] = {
            "_pack": cls._codec.pack,
            "_into": cls._codec.pack_into,
            "_from": cls._codec.unpack_from,
            "_new": object.__new__,
        }
        for name, f in cls._fields.items():
            names[f"_t_{name}"] = f.inner
            many = f.count and f.code != "s"
            default = f"_t_{name}()" if f.inner else repr((0,) * f.count if many else bytes(f.size) if f.code == "s" else 0)
            args.append(f"{name}=None" if f.inner else f"{name}={default}")
            inits.append(f"self.{name} = " + (f"{default} if {name} is None else {name}" if f.inner else name))
            flat.append(f"self.{name}.pack()" if f.inner else f"*self.{name}" if many else f"self.{name}")
            value = f"t[{at}:{at + f.count}]" if many else f"t[{at}]"
            out.append(f"self.{name} = " + (f"_t_{name}.unpack_from({value})" if f.inner else value))
            at += f.count if many else 1
        source = (
            f"def __init__(self, *, {', '.join(args)}):\n    " + "\n    ".join(inits) + "\n"
            f"def pack(self):\n    return _pack({', '.join(flat)})\n"
            f"def pack_into(self, buffer, offset=0):\n    _into(buffer, offset, {', '.join(flat)})\n"
            "def _load(self, buffer, offset=0):\n    t = _from(buffer, offset)\n    " + "\n    ".join(out) + "\n"
            "def unpack_from(cls, buffer, offset=0):\n    self = _new(cls)\n    t = _from(buffer, offset)\n    "
            + "\n    ".join(out)
            + "\n    return self\n"
        )
        exec(source, names)
        setattr(cls, "unpack_from", classmethod(names["unpack_from"]))  # noqa: B010 (to a type checker it's the one below)
        for method in ("__init__", "pack", "pack_into", "_load"):
            setattr(cls, method, names[method])

    def pack(self) -> bytes:
        """The structure's bytes, `SIZE` of them."""
        raise AssertionError("written by _compile()")  # pragma: no cover

    def pack_into(self, buffer: bytearray | memoryview, offset: int = 0) -> None:
        """Write the structure's bytes into `buffer` at `offset` (bytes)."""
        raise AssertionError("written by _compile()")  # pragma: no cover

    def _load(self, buffer: bytes | bytearray | memoryview | mmap, offset: int = 0) -> None:
        raise AssertionError("written by _compile()")  # pragma: no cover

    @classmethod
    def unpack_from(cls, buffer: bytes | bytearray | memoryview | mmap, offset: int = 0) -> Self:
        """Read a structure from `buffer` at `offset` (bytes)."""
        self = cls.__new__(cls)
        self._load(buffer, offset)
        return self

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v:#x}" if isinstance(v, int) else f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({shown})"

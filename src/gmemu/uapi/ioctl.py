# SPDX-License-Identifier: GPL-2.0-or-later
"""How an ioctl number is put together (asm-generic/ioctl.h): dir << 30 | size << 16 | type << 8 | nr."""

from __future__ import annotations

from .layout import Struct

__all__ = ["IO", "IOR", "IOW", "IOWR", "ioctl_layout", "ioctl_nr", "ioctl_size", "ioctl_type"]

_LAYOUTS: dict[int, type[Struct]] = {}


def _ioc(direction: int, type_: int, nr: int, size: int) -> int:
    return direction << 30 | size << 16 | type_ << 8 | nr


def _with(direction: int, type_: int, nr: int, of: int | type[Struct]) -> int:
    if isinstance(of, int):
        return _ioc(direction, type_, nr, of)
    request = _ioc(direction, type_, nr, of.SIZE)
    _LAYOUTS.setdefault(request, of)
    return request


def IO(type_: int, nr: int) -> int:
    """A request that carries no structure."""
    return _ioc(0, type_, nr, 0)


def IOW(type_: int, nr: int, of: int | type[Struct]) -> int:
    """A request whose structure the kernel reads; `of` is the structure or its size in bytes."""
    return _with(1, type_, nr, of)


def IOR(type_: int, nr: int, of: int | type[Struct]) -> int:
    """A request whose structure the kernel writes; `of` is the structure or its size in bytes."""
    return _with(2, type_, nr, of)


def IOWR(type_: int, nr: int, of: int | type[Struct]) -> int:
    """A request whose structure the kernel reads and writes; `of` is the structure or its size in bytes."""
    return _with(3, type_, nr, of)


def ioctl_type(request: int) -> int:
    """The type byte (0xAE for KVM)."""
    return request >> 8 & 0xFF


def ioctl_nr(request: int) -> int:
    """The number within the type."""
    return request & 0xFF


def ioctl_size(request: int) -> int:
    """The structure's size in bytes."""
    return request >> 16 & 0x3FFF


def ioctl_layout(request: int) -> type[Struct] | None:
    """The structure that a request was declared with.  Where two have the same number it's the one declared first."""
    return _LAYOUTS.get(request)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a probe came to, in words that mean the same on every kernel: no addresses, descriptors or inode numbers."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from itertools import groupby
from typing import Any, NamedTuple

from ..api import Mapping
from ..api.descriptor import Descriptor
from ..rules import KernelError, MemoryFault
from ..uapi.errno import errno_name

__all__ = ["Outcome", "describe", "observe"]

_MANY = 6
"""Runs of equal bytes that are written out; more of them become a digest."""


class Outcome(NamedTuple):
    """`result` is compared; `rule` is gmemu's own word for a refusal and empty where a real kernel gave it."""

    result: str
    rule: str = ""


def describe(value: object) -> str:
    """A value that a call returned: numbers as numbers, bytes by their runs or their digest."""
    if value is None:
        return "ok"
    if isinstance(value, Descriptor):
        return "a descriptor"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:#x}" if abs(value) > 0xFFFF else str(value)
    if isinstance(value, bytes | bytearray):
        return _describe_bytes(bytes(value))
    if isinstance(value, tuple | list):
        return " ".join(describe(part) for part in value)
    return str(value)


def _describe_bytes(data: bytes) -> str:
    runs = [(byte, sum(1 for _ in run)) for byte, run in groupby(data)]
    if len(runs) <= _MANY:
        return "bytes " + " ".join(f"{byte:02x}*{count}" for byte, count in runs)
    if len(data) <= 16:
        return "bytes " + data.hex()
    return f"bytes {len(data)} sha256:{sha256(data).hexdigest()[:16]}"


def observe(call: Callable[..., Any], *args: Any, locate: Callable[[int], str] = hex) -> tuple[Outcome, Any]:
    """Make the call: its outcome, and the value it returned if it did.  `locate` names a faulting address."""
    try:
        value = call(*args)
    except MemoryFault as fault:
        return Outcome(f"{fault.rule.signal} at {locate(fault.address)}", fault.rule.id), None
    except KernelError as error:
        return Outcome(errno_name(error.errno or 0), error.rule.id), None
    return Outcome(describe(value)), value

# SPDX-License-Identifier: GPL-2.0-or-later
"""Expecting a call to fail: with the same errno on both kernels, and with the rule that the emulated one names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from gmemu import BusError, KernelError, MemoryFault, SegmentationFault
from gmemu.uapi.errno import errno_name


@contextmanager
def refused(errno: int, rule: str) -> Iterator[None]:
    """The block fails with `errno`; where the kernel is emulated, because of `rule`."""
    with pytest.raises(KernelError) as caught:
        yield
    error = caught.value
    assert error.errno == errno, str(error)
    if error.rule.id.startswith("host."):
        assert error.rule.id.endswith(errno_name(errno))
    else:
        assert error.rule.id == rule


@contextmanager
def _signalled(kind: type[MemoryFault], address: int, rule: str) -> Iterator[None]:
    with pytest.raises(MemoryFault) as caught:
        yield
    fault = caught.value
    assert type(fault) is kind, str(fault)
    assert fault.address == address, str(fault)
    assert fault.rule.id == rule or fault.rule.id.startswith("host.")


def bus_error(address: int, rule: str) -> AbstractContextManager[None]:
    """The block's memory access ends in SIGBUS at `address`."""
    return _signalled(BusError, address, rule)


def segmentation_fault(address: int, rule: str) -> AbstractContextManager[None]:
    """The block's memory access ends in SIGSEGV at `address`."""
    return _signalled(SegmentationFault, address, rule)

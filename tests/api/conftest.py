# SPDX-License-Identifier: GPL-2.0-or-later
"""The same objects over two doors: the emulated Linux 6.18, and this machine's kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gmemu import GuestMemfd, Kvm, Mapping, Vm
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP

SIZE = 0x4000


@pytest.fixture(params=["emulated", "host"])
def kvm(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    """/dev/kvm, of the emulated kernel and of the real one in turn."""
    if request.param == "host":
        yield request.getfixturevalue("real_kvm")
        return
    with Kvm.open("linux-6.18") as kvm:
        yield kvm
        kvm.host.check_quiet()


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    """A VM of the default type: the only one that both kernels have."""
    with kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def gmem(vm: Vm) -> Iterator[GuestMemfd]:
    """Four pages that the host may map and touch."""
    with vm.create_guest_memfd(SIZE, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED) as gmem:
        yield gmem


@pytest.fixture
def mapping(gmem: GuestMemfd) -> Iterator[Mapping]:
    """All of `gmem`, mapped."""
    with gmem.mmap() as mapping:
        yield mapping


@pytest.fixture
def only_6_18(kvm: Kvm) -> None:
    """For what later kernels do otherwise (and stable ones may, some day)."""
    if kvm.door.name == "host" and not os.uname().release.startswith("6.18."):
        pytest.skip(f"holds on Linux 6.18, and this is {os.uname().release}")

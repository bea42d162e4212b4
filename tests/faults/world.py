# SPDX-License-Identifier: GPL-2.0-or-later
"""A software-protected VM with eight pages, all of them touched, on a host with orders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gmemu import GuestMemfd, Kvm, Vm, VmType
from gmemu.check import check_host
from gmemu.faults import Faults

PAGE = 4096
CONVERT = "KVM_SET_MEMORY_ATTRIBUTES2"


class World:
    """The VM's memory is at gfn 0x100."""

    def __init__(self, *orders: str, profile: str = "inplace-v13", **options: Any) -> None:
        self.faults = Faults(*orders, **options)
        self.kvm = Kvm.open(profile, faults=self.faults)
        self.host = self.kvm.host
        self.vm: Vm = self.kvm.create_vm(VmType.SW_PROTECTED)
        self.gmem: GuestMemfd = self.vm.create_guest_memfd(8 * PAGE, 3)
        self.memory = self.gmem.mmap()
        self.memory[:] = bytes([1]) * (8 * PAGE)
        self.vm.set_user_memory_region2(0, 0x100000, 8 * PAGE, gmem=self.gmem, userspace_addr=self.memory.address)

    def convert(self, page: int = 0, pages: int = 8) -> int:
        """errno of a conversion to private; 0 for success."""
        try:
            self.gmem.make_private(page * PAGE, pages * PAGE)
        except OSError as error:
            return error.errno or -1
        return 0

    def close(self) -> None:
        self.faults.release()
        check_host(self.host, {})
        self.memory.close()
        self.gmem.close()
        self.vm.close()
        self.host.check_quiet()
        self.kvm.close()


@contextmanager
def world(*orders: str, **options: Any) -> Iterator[World]:
    """A world, looked over at its end."""
    made = World(*orders, **options)
    yield made
    made.close()

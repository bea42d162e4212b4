# SPDX-License-Identifier: GPL-2.0-or-later
"""What every launch on an emulated host has: a VM and its VMM, a flow, an account of what was done, progress.

Two flows.  *in-place*: contents are written into the guest_memfd while it's shared, converted to private, and populated
with source 0.  *copy*: contents come from another user address.  Kernels with two pools have only the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from ..api.vcpu import Vcpu
from ..api.vm import Vm
from ..profiles import Profile
from ..uapi.kvm import VmType
from ..vmm import Backoff, Vmm
from .errors import LaunchError

if TYPE_CHECKING:
    from ..api.kvm import Kvm
    from .pagelog import LogWriter
    from .plan import MemoryRegion

__all__ = ["FLOWS", "Call", "Launch", "Progress"]

FLOWS = ("in-place", "copy")

Progress = Callable[[int, int], None]
"""Called with pages done so far, and how many there will be."""


class Call(NamedTuple):
    """What one step of the launch did: the system call, and its effect in words."""

    name: str
    effect: str


class Launch:
    """One VM, from creation to where it may run.  Close it, or use it in a ``with`` statement.

    `calls` tells what was done, in order.  `measurement` is simulated.
    """

    vm_type: VmType
    only_copies: ClassVar[str] = ""
    """why the trusted entity takes contents from another page only, if it does"""

    def __init__(self, kvm: Kvm, flow: str | None, log: LogWriter | None, progress: Progress | None) -> None:
        """Raises `LaunchError` for a flow that there isn't, or that the kernel or the trusted entity hasn't."""
        self.kvm = kvm
        self.profile: Profile = kvm.host.profile
        in_place = self.profile.null_source and not self.only_copies
        self.flow = flow or ("in-place" if in_place else "copy")
        if self.flow not in FLOWS:
            raise LaunchError(f"there is no flow {self.flow!r}; there are {' and '.join(FLOWS)}")
        if self.flow == "in-place" and self.only_copies:
            raise LaunchError(f"{self.only_copies}; use copy")
        if self.flow == "in-place" and not in_place:
            raise LaunchError(f"profile {self.profile.name} can't populate memory with what is in it; use --flow copy")
        self.calls: list[Call] = []
        self._log, self._progress, self._done = log, progress, 0
        self.vcpus: list[Vcpu] = []
        self.vm: Vm
        self.vmm: Vmm
        self.measurement = b""

    def start_vm(self, effect: str, ipa_bits: int = 0) -> None:
        """KVM_CREATE_VM, and the VMM for it."""
        self.vm = self.kvm.create_vm(self.vm_type, ipa_bits)
        self.vmm = Vmm(self.kvm, self.vm, Backoff.none())
        self.called("KVM_CREATE_VM", effect)

    def add_memory(self, regions: Iterable[MemoryRegion]) -> None:
        """A guest_memfd and a slot for each region.  In place the memory starts shared; with two pools it's private."""
        what = self.profile.shared_at_first_words
        for region in regions:
            self.vmm.add_memory(region.gpa, region.size, mapped=self.flow == "in-place")
            self.called("KVM_CREATE_GUEST_MEMFD", f"{_size(region.size)}, {what}, bound at {region.gpa:#x}")

    def called(self, name: str, effect: str) -> None:
        """A step was taken."""
        self.calls.append(Call(name, effect))

    def progressed(self, pages: int, of: int) -> None:
        """So many more pages are done."""
        self._done += pages
        if self._progress is not None:
            self._progress(self._done, of)

    def close(self) -> None:
        """Take the VM down."""
        for vcpu in self.vcpus:
            vcpu.close()
        self.vmm.close()
        self.vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if hasattr(self, "vm"):
            self.close()


def _size(nbytes: int) -> str:
    """A size for people."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >> shift and not nbytes & (1 << shift) - 1:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} bytes"

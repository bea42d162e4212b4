# SPDX-License-Identifier: GPL-2.0-or-later
"""What the program finds under the paths that the preloaded library asks about."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..kvm.device import KvmDeviceFile
from ..mm.file import File
from ..rules import mm as rules

if TYPE_CHECKING:
    from .kernel import ExecKernel

__all__ = ["module_parameters", "open_path", "rdev"]

_PARAMETERS = "/sys/module/kvm"
_MODULES = {
    "amd": ("kvm_amd", ("npt", "nrips", "sev", "sev_es", "sev_snp")),
    "intel": ("kvm_intel", ("ept", "unrestricted_guest", "vpid")),
}
"""platform -> KVM's module for it, and those of its parameters that are on; all others are off or not there"""
_KVM_MINOR = (10 << 8) | 232


def open_path(kernel: ExecKernel, path: str) -> int | None:
    """A descriptor for `path`, or None if this machine's own kernel is to be asked.  Raises ENOENT."""
    if path.startswith(_PARAMETERS):
        return _parameter(kernel, path)
    return kernel.door.open(path)


def _parameter(kernel: ExecKernel, path: str) -> int:
    """A parameter of a KVM module, as the emulated machine has it: the text in a file of its own."""
    module, _, name = path.removeprefix("/sys/module/").partition("/parameters/")
    value = module_parameters(kernel).get(module, {}).get(name)
    if value is None:
        raise rules.NO_SUCH_FILE(path)
    fd = os.memfd_create("parameter", os.MFD_CLOEXEC)
    os.pwrite(fd, f"{value}\n".encode(), 0)
    return fd


def module_parameters(kernel: ExecKernel) -> dict[str, dict[str, str]]:
    """The parameters that KVM's modules have: module -> name -> value."""
    vendor, on = _MODULES[kernel.host.platform]
    common = dict.fromkeys(("enable_pmu", "nx_huge_pages"), "N") | {"tdp_mmu": "Y", "force_emulation_prefix": "0"}
    if kernel.host.profile.in_place:
        common["gmem_in_place_conversion"] = "Y"
    off = dict.fromkeys(("nested", "avic", "pml", "enable_apicv", "emulate_invalid_guest_state"), "N")
    return {"kvm": common, vendor: off | dict.fromkeys(on, "Y")}


def rdev(file: File) -> int:
    """st_rdev: the device number of /dev/kvm; of other files 0."""
    return _KVM_MINOR if isinstance(file, KvmDeviceFile) else 0

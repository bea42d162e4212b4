# SPDX-License-Identifier: GPL-2.0-or-later
"""Asking this machine what it has.  Nothing is changed, and nothing is held open afterwards."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..uapi.kvm import KVM_CHECK_EXTENSION, KVM_GET_API_VERSION, Cap

__all__ = ["UFFD_FEATURES", "DeviceProbe", "extension", "open_device", "read_sysctl", "userfaultfd_features"]

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "loongarch64": 282}
UFFD_USER_MODE_ONLY = 1
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F

UFFD_FEATURES = {
    "MISSING_SHMEM": 1 << 5,
    "SIGBUS": 1 << 7,
    "MINOR_SHMEM": 1 << 10,
}
"""The features of userfaultfd that running unmodified programs needs (linux/userfaultfd.h)."""


class DeviceProbe:
    """What opening a device gave: a descriptor, or why not."""

    def __init__(self, fd: int, problem: str = "") -> None:
        self.fd, self.problem = fd, problem

    def close(self) -> None:
        """Close it, if it's open."""
        if self.fd >= 0:
            os.close(self.fd)


def open_device(path: str) -> DeviceProbe:
    """Open a device for reading and writing, or say in a few words why that can't be done."""
    try:
        return DeviceProbe(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return DeviceProbe(-1, "there is none")
    except OSError as error:
        return DeviceProbe(-1, error.strerror or str(error))


def api_version(fd: int) -> int:
    """KVM_GET_API_VERSION."""
    return fcntl.ioctl(fd, KVM_GET_API_VERSION, 0)


def extension(fd: int, cap: Cap) -> int:
    """KVM_CHECK_EXTENSION: 0 where the kernel doesn't know it, or refuses to say."""
    try:
        return fcntl.ioctl(fd, KVM_CHECK_EXTENSION, int(cap))
    except OSError:
        return 0


def read_sysctl(name: str) -> str | None:
    """The value of a sysctl, given as vm/name; `None` if there is none that can be read."""
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return None


def userfaultfd_features() -> tuple[int, str]:
    """The feature bits of a userfaultfd in user mode, or 0 and why there is none."""
    number = _SYS_USERFAULTFD.get(os.uname().machine)
    if number is None:
        return 0, f"its number on {os.uname().machine} isn't known here"
    from ctypes import CDLL, get_errno

    fd = CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC | UFFD_USER_MODE_ONLY)
    if fd < 0:
        return 0, os.strerror(get_errno())
    try:
        api = bytearray(_UFFD_API.to_bytes(8, "little") + bytes(16))
        fcntl.ioctl(fd, _UFFDIO_API, api)
        return int.from_bytes(api[8:16], "little"), ""
    except OSError as error:
        return 0, error.strerror or str(error)
    finally:
        os.close(fd)

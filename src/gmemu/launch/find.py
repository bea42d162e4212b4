# SPDX-License-Identifier: GPL-2.0-or-later
"""Where distributions put OVMF."""

from __future__ import annotations

import os

from .errors import LaunchError
from .ovmf import Firmware

__all__ = ["FIRMWARE_PATHS", "find_firmware"]

FIRMWARE_PATHS = (
    # Debian, Ubuntu
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/ovmf/OVMF.amdsev.fd",
    "/usr/share/OVMF/OVMF.amdsev.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    # Fedora, CentOS, RHEL
    "/usr/share/edk2/ovmf/OVMF.amdsev.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/ovmf-4m/OVMF_CODE.fd",
    # Arch
    "/usr/share/edk2/x64/OVMF.4m.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    "/usr/share/edk2-ovmf/x64/OVMF.fd",
    "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
    # openSUSE, SLES
    "/usr/share/qemu/ovmf-x86_64-sev.bin",
    "/usr/share/qemu/ovmf-x86_64-4m.bin",
    "/usr/share/qemu/ovmf-x86_64.bin",
    # Gentoo
    "/usr/share/edk2-ovmf/OVMF_CODE.fd",
)
"""In order of preference."""


def find_firmware(paths: tuple[str, ...] = FIRMWARE_PATHS) -> str | None:
    """The path of an image on this machine that can be loaded: the first with SEV metadata, else the first, else `None`."""
    second = None
    for path in filter(os.path.isfile, paths):
        try:
            firmware = Firmware.load(path)
        except LaunchError:
            continue
        if firmware.has_sev_metadata:
            return path
        second = second or path
    return second

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from gmemu.uapi.ioctl import IO, IOR, IOW, IOWR, ioctl_nr, ioctl_size, ioctl_type
from gmemu.uapi.kvm_x86 import kvm_regs


def test_encoding() -> None:
    assert IO(0xAE, 0x80) == 0xAE80
    assert IOW(0xAE, 0x82, kvm_regs) == 0x4090AE82
    assert IOR(0xAE, 0x81, 144) == 0x8090AE81
    assert IOWR(0xAE, 0xBA, 8) == 0xC008AEBA


def test_decoding() -> None:
    assert (ioctl_type(0xC040AED4), ioctl_nr(0xC040AED4), ioctl_size(0xC040AED4)) == (0xAE, 0xD4, 64)

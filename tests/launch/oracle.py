# SPDX-License-Identifier: GPL-2.0-or-later
"""What plans are checked against: a digest by hashlib alone, sev-snp-measure, and the firmware images that are installed."""

from __future__ import annotations

import os
import struct
from hashlib import sha384

import pytest
from sevsnpmeasure import guest
from sevsnpmeasure.vmm_types import VMMType

from gmemu.launch.plan import LaunchPlan, PlanStep
from gmemu.launch.vcpu_state import VMSA_GPA
from gmemu.uapi.sev import SnpPageType

from .vmsa_oracle import build_vmsa

PAGE = 4096
VMM_TYPES = {"qemu": VMMType.QEMU, "ec2": VMMType.ec2, "gce": VMMType.gce}

IMAGES = {
    "OVMF.fd": ("/usr/share/ovmf/OVMF.fd",),
    "OVMF_CODE_4M.fd": ("/usr/share/OVMF/OVMF_CODE_4M.fd",),
    "OVMF.amdsev.fd": (
        "/usr/share/ovmf/OVMF.amdsev.fd",
        "/usr/share/OVMF/OVMF.amdsev.fd",
        "/usr/share/edk2/ovmf/OVMF.amdsev.fd",
    ),
}


def installed_image(name: str) -> str:
    """The path of a distribution's image; skips the test where there is none."""
    for path in filter(os.path.isfile, IMAGES[name]):
        return path
    pytest.skip(f"{name} isn't installed (Debian package ovmf): looked for {' and '.join(IMAGES[name])}")


def extend(digest: bytes, kind: int, gpa: int, contents: bytes) -> bytes:
    """One PAGE_INFO."""
    return sha384(digest + contents + struct.pack("<HBB4xQ", 0x70, kind, 0, gpa)).digest()


def extend_step(digest: bytes, step: PlanStep) -> bytes:
    """All pages of one step."""
    for offset in range(0, step.size, PAGE):
        contents = bytes(48)
        if step.page_type is SnpPageType.NORMAL:
            assert step.contents is not None
            contents = sha384(step.contents[offset : offset + PAGE]).digest()
        digest = extend(digest, step.page_type, step.gpa + offset, contents)
    return digest


def plan_digest(plan: LaunchPlan, firmware_digest: bytes | None = None) -> str:
    """Hex.  `firmware_digest`, if given, stands for the digest after the firmware's step."""
    digest = bytes(48)
    for index, step in enumerate(plan.steps):
        digest = firmware_digest if not index and firmware_digest else extend_step(digest, step)
    for state in plan.vcpus:
        digest = extend(digest, SnpPageType.VMSA, VMSA_GPA, sha384(build_vmsa(state, plan.sev_features)).digest())
    return digest.hex()


def peer_digest(
    path: str,
    vcpus: int,
    signature: int,
    features: int,
    vmm: str = "qemu",
    kernel: str | None = None,
    initrd: str | None = None,
    append: str | None = None,
) -> str:
    """What sev-snp-measure says.  Hex."""
    ld: bytes = guest.snp_calc_launch_digest(vcpus, signature, path, kernel, initrd, append, features, "", VMM_TYPES[vmm])
    return ld.hex()

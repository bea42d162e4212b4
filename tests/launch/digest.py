# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch digest of a plan, by the shortest way: hashlib and nothing of the emulation."""

from __future__ import annotations

import struct
from hashlib import sha384

from gmemu.launch.plan import LaunchPlan, PlanStep
from gmemu.launch.vmsa import VMSA_GPA, build_vmsa
from gmemu.uapi.sev import SnpPageType

PAGE = 4096


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

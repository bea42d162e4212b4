# SPDX-License-Identifier: GPL-2.0-or-later
"""What gmemu itself lacks or refuses: not the kernel's rules, and named so."""

from __future__ import annotations

from errno import EOPNOTSUPP

from .base import rule

NO_ENGINE = rule(
    "gmemu.run.no-engine",
    EOPNOTSUPP,
    "a vCPU needs a guest to run: a scripted one (vcpu.run(guest)), as machine code can't be executed here",
    "gmemu",
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What gmemu itself lacks or refuses: not the kernel's rules, and named so."""

from __future__ import annotations

from errno import EAGAIN, EBUSY, EINTR, ENOMEM, ENOTTY, EOPNOTSUPP

from .base import rule

NO_ENGINE = rule(
    "gmemu.run.no-engine",
    EOPNOTSUPP,
    "a vCPU needs a guest to run: a scripted one (vcpu.run(guest)), as machine code can't be executed here",
    "gmemu",
    advice="To execute machine code of a guest without encrypted memory, install gmemu[exec].",
)
SNP_REQ_CERTS = rule(
    "gmemu.snp.req-certs",
    EOPNOTSUPP,
    "KVM_SEV_SNP_ENABLE_REQ_CERTS isn't emulated, as no guest here asks for attestation reports",
    "gmemu",
    when=lambda p: p.snp_req_certs,
)
SNP_GHCB_MSR = rule(
    "gmemu.snp.ghcb-msr",
    EOPNOTSUPP,
    "of the GHCB MSR protocol CPUID and AP reset hold aren't emulated",
    "gmemu",
    advice="A scripted guest knows what it runs on, and its APs start when they are run.",
)
SNP_VMGEXIT = rule(
    "gmemu.snp.vmgexit",
    EOPNOTSUPP,
    "of the VMGEXITs with a GHCB only page-state change, termination and hypervisor features are emulated",
    "gmemu",
    advice="A scripted guest has methods for port access and hypercalls.",
)
NO_USERFAULTFD = rule(
    "gmemu.exec.userfaultfd",
    EOPNOTSUPP,
    "this machine's kernel must have userfaultfd, which alone keeps mapped private memory from a real process",
    "gmemu exec",
    advice="Linux 5.14 has all of it; a container's seccomp profile may refuse it.",
)
IOCTL = rule(
    "gmemu.ioctl",
    ENOTTY,
    "KVM has this call, and gmemu doesn't",
    "gmemu",
    advice="Nothing that it concerns is emulated; a VMM that can do without it will.",
)
ORDERED_EAGAIN = rule("gmemu.ordered.again", EAGAIN, "the call mustn't have been ordered to fail", "docs/faults.md")
ORDERED_EBUSY = rule("gmemu.ordered.busy", EBUSY, "the call mustn't have been ordered to fail", "docs/faults.md")
ORDERED_EINTR = rule("gmemu.ordered.interrupted", EINTR, "the call mustn't have been ordered to fail", "docs/faults.md")
ORDERED_ENOMEM = rule("gmemu.ordered.memory", ENOMEM, "the call mustn't have been ordered to fail", "docs/faults.md")

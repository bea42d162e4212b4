# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of SEV-SNP VMs: the KVM_SEV_* commands, and the RMP and firmware calls behind them."""

from __future__ import annotations

from errno import EBADF, EBUSY, EEXIST, EFAULT, EINVAL, EIO, ENOTTY, EPERM
from typing import TYPE_CHECKING

from .base import rule

if TYPE_CHECKING:
    from ..profiles import Profile

_SEV = "arch/x86/kvm/svm/sev.c: "


def _gup_first(profile: Profile) -> bool:
    return profile.populate == "gup-first"


DEVICE_IOCTL = rule("sev.device.ioctl", EINVAL, "/dev/sev must know the ioctl", "drivers/crypto/ccp/sev-dev.c: sev_ioctl()")
DEVICE_FD = rule(
    "snp.sev-fd", EBADF, "sev_fd must be an open /dev/sev", "drivers/crypto/ccp/sev-dev.c: sev_issue_cmd_external_user()"
)
OLD_COMMAND = rule(
    "snp.cmd.not-snp",
    EPERM,
    "once a VM is an active SNP guest only KVM_SEV_SNP_* commands are allowed",
    _SEV + "sev_mem_enc_ioctl()",
)
UNKNOWN_COMMAND = rule("snp.cmd.unknown", EINVAL, "the command must be known", _SEV + "sev_mem_enc_ioctl()")
SEV_COMMAND = rule(
    "snp.cmd.sev-guest",
    ENOTTY,
    "a command of SEV and SEV-ES guests needs such a guest",
    _SEV + "sev_launch_start() and its like",
    advice="An SNP VM has to be initialised with KVM_SEV_INIT2, and takes SNP's commands then.",
)
SEV_INIT = rule(
    "snp.cmd.sev-init",
    EINVAL,
    "KVM_SEV_INIT and KVM_SEV_ES_INIT are for VMs of the default type",
    _SEV + "sev_guest_init()",
    advice="Use KVM_SEV_INIT2.",
)

SEV_ASID = rule(
    "snp.cmd.sev-asid",
    ENOTTY,
    "there must be an ASID for SEV guests; on this machine all are SNP's",
    _SEV + "sev_asid_new()",
    advice="SEV and SEV-ES are not emulated; use a VM of type KVM_X86_SNP_VM.",
)
INIT_TYPE = rule(
    "snp.init2.vm-type",
    EINVAL,
    "KVM_SEV_INIT2 is for VMs created as SEV, SEV-ES or SNP ones",
    _SEV + "sev_guest_init2()",
    advice="Create the VM with type KVM_X86_SNP_VM.",
)
INIT_VCPUS = rule("snp.init2.vcpus", EINVAL, "KVM_SEV_INIT2 comes before the first vCPU", _SEV + "__sev_guest_init()")
INIT_FLAGS = rule("snp.init2.flags", EINVAL, "flags must be 0", _SEV + "__sev_guest_init()")
INIT_FEATURES = rule(
    "snp.init2.vmsa-features",
    EINVAL,
    "vmsa_features must be among those that the host supports",
    _SEV + "__sev_guest_init()",
)
INIT_GHCB = rule(
    "snp.init2.ghcb-version",
    EINVAL,
    "ghcb_version must be 0 (for 2) or 2; 6.12 takes 1 as well",
    _SEV + "__sev_guest_init()",
)
INIT_ASID = rule("snp.init2.asid", EBUSY, "there must be a free ASID", _SEV + "sev_asid_new()")

START_TYPE = rule(
    "snp.start.vm-type", ENOTTY, "KVM_SEV_SNP_LAUNCH_START needs an initialised SNP VM", _SEV + "snp_launch_start()"
)
START_AGAIN = rule("snp.start.again", EINVAL, "a VM has one launch", _SEV + "snp_launch_start()")
START_FLAGS = rule("snp.start.flags", EINVAL, "flags must be 0", _SEV + "snp_launch_start()")
START_POLICY = rule("snp.start.policy", EINVAL, "policy bits must be known", _SEV + "snp_launch_start()")
START_POLICY_REQUIRED = rule(
    "snp.start.policy-required",
    EINVAL,
    "policy bit 17 must be one; 6.12 demands bit 16 (SMT) too",
    _SEV + "snp_launch_start()",
)
START_CONTEXT = rule(
    "snp.start.context",
    ENOTTY,
    "the firmware must make a guest context (sev_fd must be /dev/sev)",
    _SEV + "snp_context_create()",
)

UPDATE_CONTEXT = rule("snp.update.context", EINVAL, "the launch must have been started", _SEV + "snp_launch_update()")
UPDATE_LENGTH = rule(
    "snp.update.length", EINVAL, "len must be a multiple of the page size, and since 7.2 not 0", _SEV + "snp_launch_update()"
)
UPDATE_FLAGS = rule("snp.update.flags", EINVAL, "flags must be 0", _SEV + "snp_launch_update()")
UPDATE_TYPE = rule(
    "snp.update.type", EINVAL, "type must be NORMAL, ZERO, UNMEASURED, SECRETS or CPUID", _SEV + "snp_launch_update()"
)
UPDATE_NO_SOURCE = rule(
    "snp.update.no-source",
    EINVAL,
    "uaddr must not be 0 unless the type is ZERO",
    _SEV + "snp_launch_update()",
    advice="With in-place conversion 0 means that the page already holds the data.",
    when=lambda p: p.populate == "gup-first" and not p.null_source,
)
UPDATE_SOURCE = rule(
    "snp.update.source-unaligned", EINVAL, "uaddr must be page aligned", _SEV + "snp_launch_update()", when=_gup_first
)
UPDATE_SLOT = rule("snp.update.slot", EINVAL, "gfn_start must be in a slot with a guest_memfd", _SEV + "snp_launch_update()")
UPDATE_FAILED = rule(
    "snp.update.failed",
    EIO,
    "every page must be populated; whatever the reason, KVM answers EIO",
    _SEV + "snp_launch_update()",
)
ASSIGNED = rule(
    "snp.populate.assigned",
    EEXIST,
    "a page can be added once: the RMP must not assign it yet",
    _SEV + "sev_gmem_post_populate()",
)
FIRMWARE = rule(
    "snp.firmware",
    EIO,
    "the firmware must accept the command",
    "drivers/crypto/ccp/sev-dev.c: __sev_do_cmd_locked()",
    advice="kvm_sev_cmd.error holds its status.",
)
RMPUPDATE = rule("snp.rmpupdate", EFAULT, "the processor must accept the RMPUPDATE", "arch/x86/virt/svm/sev.c: rmpupdate()")
MAKE_PRIVATE = rule(
    "snp.make-private",
    EINVAL,
    "the RMP must let the page be assigned to the guest",
    _SEV + "sev_gmem_make_private()",
)

FINISH_TYPE = rule(
    "snp.finish.vm-type", ENOTTY, "KVM_SEV_SNP_LAUNCH_FINISH needs an initialised SNP VM", _SEV + "snp_launch_finish()"
)
FINISH_CONTEXT = rule("snp.finish.context", EINVAL, "the launch must have been started", _SEV + "snp_launch_finish()")
FINISH_FLAGS = rule("snp.finish.flags", EINVAL, "flags must be 0", _SEV + "snp_launch_finish()")
FINISH_BLOB = rule(
    "snp.finish.no-blob",
    EINVAL,
    "with id_block_en neither id_block_uaddr nor id_auth_uaddr may be 0",
    "drivers/crypto/ccp/sev-dev.c: psp_copy_user_blob()",
)
FINISH_PROTECTED = rule(
    "snp.finish.vmsa-done",
    EINVAL,
    "a vCPU's state can be encrypted once, and without a debugger attached",
    _SEV + "sev_es_sync_vmsa()",
    advice="A launch whose FINISH failed after that can't be finished: start again with a new VM.",
)
RUN_NOT_INITIALIZED = rule(
    "snp.run.not-initialized",
    EINVAL,
    "KVM_SEV_INIT2 must come before KVM_RUN",
    "arch/x86/kvm/svm/sev.c: sev_vcpu_needs_init",
)
UNSUPPORTED_EVENT = rule(
    "snp.vmgexit.unsupported-event",
    EINVAL,
    "the guest must not report a #VC that it can't handle (VMGEXIT 0x8000ffff)",
    _SEV + "sev_handle_vmgexit()",
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of realms: KVM_ARM_RMI_POPULATE, activation, faults, and the RMM behind them."""

from __future__ import annotations

from errno import EBUSY, EINTR, EINVAL, EIO, ENODEV, ENXIO, EOPNOTSUPP

from .base import rule

_RMI = "Arm CCA series v14, arch/arm64/kvm/rmi.c: "
_POPULATE = _RMI + "kvm_arm_rmi_populate()"

VCPU_LATE = rule(
    "cca.create-vcpu.active",
    EBUSY,
    "a realm's vCPUs are created before it's active, as RECs can't be made later",
    "Arm DEN0137, RMI_REC_CREATE (inferred for KVM)",
)
DIRTY_LOG = rule(
    "cca.slot.dirty-log",
    EINVAL,
    "a realm's memory can't be logged: KVM can't write-protect what the RMM maps",
    "Arm DEN0137, RMI_RTT_UNPROT_MAP (inferred for KVM)",
)

POPULATE_RESERVED = rule("cca.populate.reserved", EINVAL, "reserved must be 0", _POPULATE)
POPULATE_FLAGS = rule("cca.populate.flags", EINVAL, "of flags only MEASURE exists", _POPULATE)
POPULATE_RANGE = rule(
    "cca.populate.range", EINVAL, "base, size and source must be whole pages, and not wrap around", _POPULATE
)
POPULATE_SOURCE = rule(
    "cca.populate.no-source",
    EINVAL,
    "there must be a source: the RMM copies from other memory, never from the page itself",
    _POPULATE,
    advice="Give the address of a copy of the contents.",
)
POPULATE_PROTECTED = rule(
    "cca.populate.protected", EINVAL, "the range must lie in the protected half of the address space", _POPULATE
)
NO_IRQCHIP = rule("cca.populate.irqchip", EOPNOTSUPP, "a realm needs an in-kernel GIC", _POPULATE)
NO_VGIC = rule("cca.populate.vgic", ENODEV, "the GIC must be initialised (KVM_DEV_ARM_VGIC_CTRL_INIT)", _POPULATE)
POPULATE_STATE = rule(
    "cca.populate.state",
    EBUSY,
    "contents are populated before the realm is active, that is, before any vCPU has run",
    _POPULATE,
)
REALM_DEAD = rule("cca.realm.dead", ENXIO, "the realm must not be dead", _RMI + "kvm_arm_rmi_populate(), kvm_rec_enter()")

DELEGATE = rule(
    "cca.rmi.delegate", ENXIO, "the RMM must take the page (RMI_GRANULE_RANGE_DELEGATE)", _RMI + "rmi_delegate_range()"
)
COMMAND = rule("cca.rmi.failed", ENXIO, "the RMI command must succeed", _RMI + "rmi_to_errno()")
LAST_LEVEL = rule(
    "cca.rmi.last-level",
    EIO,
    "where the RMM misses a table, there must be a level below to make it for",
    _RMI + "realm_create_rtt_levels()",
)
LIVELOCK = rule(
    "cca.rmi.busy",
    EBUSY,
    "the RMM must not be busy for ever",
    "gmemu: KVM would try without end",
    advice="Whoever ordered that can have it stop.",
)
DESTROYED = rule(
    "cca.run.destroyed",
    EINTR,
    "the realm touched memory whose RIPAS is DESTROYED: it faults again however often KVM maps it, until a signal comes",
    "Arm DEN0137, A5.2 (what KVM does is inferred)",
    advice="The realm has to ask for RAM with CHANGE_DESTROYED; a VMM mustn't take private memory from a running realm.",
)
ENTER = rule("cca.run.rec-enter", ENXIO, "RMI_REC_ENTER must succeed", _RMI + "handle_rec_exit()")

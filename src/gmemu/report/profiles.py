# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles for people: what there is, and what differs between two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..profiles import CapValues, Profile
from ..rules import Rule, catalogue
from ..uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, Cap
from .table import paragraph, table

if TYPE_CHECKING:
    from .style import Style

__all__ = ["FIELDS", "ProfileDiff", "capabilities", "differences", "profiles_text"]

_YES_NO = {True: "yes", False: "no"}
_FLAGS = {GUEST_MEMFD_FLAG_MMAP: "MMAP", GUEST_MEMFD_FLAG_INIT_SHARED: "INIT_SHARED"}
_GMEM_ONLY = {"never": "none", "mmap": "those whose guest_memfd has MMAP", "always": "every slot with a guest_memfd"}
_POPULATE = {
    "locked": "read under the invalidate lock, for the whole range",
    "gup-first": "pinned page by page, before the lock",
}
_CONVERSION = {
    "vm": "KVM_SET_MEMORY_ATTRIBUTES on the VM",
    "attributes2": "KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd",
    "convert": "KVM_GMEM_CONVERT_SHARED and _PRIVATE on the guest_memfd",
    "content": "KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd, with ZERO or PRESERVE",
}
_PROTECTED = {"pinned": "the process's own, pinned", "guest_memfd": "guest_memfd's, converted inside KVM_RUN"}
_REMOVAL = {"init": "the view that the file started with", "both": "both views"}
_BLOCKS = {True: "what is allocated", False: "always 0"}
_OVERLAP = {True: "EEXIST", False: "EINVAL"}
_SIGN = {True: "without sign", False: "as a signed number"}


def _flags(value: int) -> str:
    return " | ".join(name for bit, name in _FLAGS.items() if value & bit) or "none"


FIELDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "in_place": ("pages are converted in place, by an ioctl on the guest_memfd", _YES_NO.__getitem__),
    "vm_attributes": ("private and shared are tracked for the VM, in two pools", _YES_NO.__getitem__),
    "vm_attributes_ioctl": ("KVM_SET_MEMORY_ATTRIBUTES is known on a VM", _YES_NO.__getitem__),
    "conversion": ("pages are converted by", lambda v: _CONVERSION.get(v, v)),
    "null_source": ("population without a source takes what is in the page", _YES_NO.__getitem__),
    "removal_filter": ("a punch takes from the guest", lambda v: _REMOVAL.get(v, v)),
    "gmem_flags": ("creation flags", _flags),
    "init_flag": ("the second creation flag asks for memory that starts", str),
    "init_shared_with_private_memory": ("INIT_SHARED for VMs with private memory", _YES_NO.__getitem__),
    "gmem_for_default_vm": ("a default VM may have a guest_memfd", _YES_NO.__getitem__),
    "gmem_only_slots": ("slots served from guest_memfd alone", lambda v: _GMEM_ONLY.get(v, v)),
    "populate": ("the source of a launch update is", lambda v: _POPULATE.get(v, v)),
    "bind_overlap_is_eexist": ("binding a page twice fails with", _OVERLAP.__getitem__),
    "bind_offset_is_unsigned": ("the offset of a binding is compared", _SIGN.__getitem__),
    "fallocate_counts_blocks": ("st_blocks of a guest_memfd tells", _BLOCKS.__getitem__),
    "fallocate_modes": ("bits of fallocate()'s mode that are known for any file", hex),
    "mremap_moves_many": ("mremap() moves several mappings at once", _YES_NO.__getitem__),
    "mremap_splits_locked": ("MREMAP_DONTUNMAP unlocks only what it moves", _YES_NO.__getitem__),
    "counts_shadow_pages": ("a VM's statistics count shadow pages", _YES_NO.__getitem__),
    "vm_tsc_after_vcpus": ("KVM_SET_TSC_KHZ on a VM that has vCPUs", _YES_NO.__getitem__),
    "file_name": ("a guest_memfd's name in /proc", str),
    "snp_policy_bits": ("bits of an SNP guest's policy that KVM knows", hex),
    "snp_policy_required": ("policy bits that must be set", hex),
    "snp_vmsa_features": ("SEV_FEATURES that KVM_SEV_INIT2 may ask for", hex),
    "snp_min_ghcb_version": ("lowest GHCB version that KVM_SEV_INIT2 may ask for", str),
    "snp_checks_psc_answer": ("user space's answer to a page-state change is checked", _YES_NO.__getitem__),
    "snp_req_certs": ("KVM_SEV_SNP_ENABLE_REQ_CERTS exists", _YES_NO.__getitem__),
    "anon_inodes_noexec": ("KVM's own files can be mapped PROT_EXEC", lambda v: _YES_NO[not v]),
    "vcpu_encrypt_op": ("KVM_MEMORY_ENCRYPT_OP exists on a vCPU", _YES_NO.__getitem__),
    "protected_memory": ("a protected VM of pKVM has memory that is", lambda v: _PROTECTED.get(v, v)),
    "vm_types": ("VM types", lambda v: ", ".join(t.name for t in v)),
}
"""How each field of a profile is worded; a field that isn't here is named as it is in the code."""

_NOT_COMPARED = {"name", "title", "source", "caps", "cap_names"}


def profiles_text(profiles: Iterable[Profile], default: str, style: Style) -> str:
    """Each with its name, what it is, and where that comes from."""
    parts = []
    for profile in profiles:
        mark = "  (default)" if profile.name == default else ""
        parts.append(style.bold(profile.name) + mark + "\n")
        parts += [paragraph(profile.title, style, "  "), paragraph(f"source: {profile.source}", style, "  ")]
    return "".join(parts)


def capabilities(profile: Profile) -> dict[str, dict[str, int]]:
    """What KVM_CHECK_EXTENSION answers, by name of the capability."""
    return {_cap_name(number, profile): values._asdict() for number, values in sorted(profile.caps.items())}


class ProfileDiff(NamedTuple):
    """What differs between `a` and `b`: fields in words, capabilities (`None`: absent), rules that only one has."""

    a: Profile
    b: Profile
    fields: list[tuple[str, str, str]]
    caps: list[tuple[str, CapValues | None, CapValues | None]]
    only_a: list[Rule]
    only_b: list[Rule]

    def data(self) -> dict[str, Any]:
        """For JSON."""
        a, b = self.a.name, self.b.name
        return {
            "a": a,
            "b": b,
            "same": not (self.fields or self.caps or self.only_a or self.only_b),
            "behaviour": [{"what": what, "a": left, "b": right} for what, left, right in self.fields],
            "capabilities": [
                {"name": name, "a": left and left._asdict(), "b": right and right._asdict()}
                for name, left, right in self.caps
            ],
            "rules": {"only_a": [r.id for r in self.only_a], "only_b": [r.id for r in self.only_b]},
        }

    def text(self, style: Style) -> str:
        """For people."""
        if self.data()["same"]:
            return f"{self.a.name} and {self.b.name} are the same\n"
        heads = (self.a.name, self.b.name)
        parts = []
        if self.fields:
            parts.append(_grouped(self.fields, heads, style))
        if self.caps:
            rows = [(name, _cap(left), _cap(right)) for name, left, right in self.caps]
            parts.append(table(rows, ("capability", *heads), style=style))
            parts.append(style.dim("(one number, or: on /dev/kvm / on a default VM / on a VM with private memory)") + "\n")
        for name, rules in (self.a.name, self.only_a), (self.b.name, self.only_b):
            if rules:
                rows = [(rule.id, rule.outcome, rule.text) for rule in rules]
                parts.append(table(rows, (f"rules of {name} alone", "result", "what must hold"), style=style))
        return "\n".join(parts)


def differences(a: Profile, b: Profile) -> ProfileDiff:
    """Compare two profiles."""
    fields = []
    for field in Profile._fields:
        left, right = getattr(a, field), getattr(b, field)
        if field not in _NOT_COMPARED and left != right:
            what, words = FIELDS.get(field, (field, str))
            fields.append((what, words(left), words(right)))
    left_caps, right_caps = _by_name(a), _by_name(b)
    caps = [
        (name, left_caps.get(name), right_caps.get(name))
        for name in dict.fromkeys([*left_caps, *right_caps])
        if left_caps.get(name) != right_caps.get(name)
    ]
    rules = list(catalogue().values())
    only_a = [r for r in rules if r.applies(a) and not r.applies(b)]
    only_b = [r for r in rules if r.applies(b) and not r.applies(a)]
    return ProfileDiff(a, b, fields, caps, only_a, only_b)


def _grouped(fields: list[tuple[str, str, str]], heads: tuple[str, str], style: Style) -> str:
    """Each difference, with both sides below it: they are sentences, too long for columns."""
    width = max(map(len, heads))
    lines = []
    for what, left, right in fields:
        lines.append(paragraph(what, style))
        lines += [
            table([(f"  {name.ljust(width)}", value)], style=style) for name, value in zip(heads, (left, right), strict=True)
        ]
    return style.bold("behaviour") + "\n" + "".join(lines)


def _by_name(profile: Profile) -> dict[str, CapValues]:
    return {_cap_name(number, profile): values for number, values in sorted(profile.caps.items())}


def _cap_name(number: int, profile: Profile) -> str:
    if number in profile.cap_names:
        return f"KVM_CAP_{profile.cap_names[number]}"
    return f"KVM_CAP_{Cap(number).name}" if number in Cap._value2member_map_ else f"KVM_CAP {number}"


def _cap(values: CapValues | None) -> str:
    if values is None:
        return "absent"
    return str(values[0]) if len(set(values)) == 1 else " / ".join(map(str, values))

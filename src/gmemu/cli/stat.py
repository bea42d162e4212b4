# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu stat`: where a guest's memory is while it goes from shared to private, kernel by kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..launch.footprint import Stage, footprint
from .guest import profile_named
from .outcome import Outcome

if TYPE_CHECKING:
    from argparse import Namespace

    from ..profiles import Profile
    from ..report.style import Style

__all__ = ["DEFAULT_PROFILES", "stat"]

DEFAULT_PROFILES = ("linux-7.3", "inplace-v13")
_THAT_CAN = {"cca": ("linux-7.3-cca", "inplace-v13"), "pkvm": ("linux-7.3", "inplace-v13-pkvm")}
_COLUMNS = ("shared", "private", "in_both_pools", "pinned", "firmware", "peak")


def stat(args: Namespace) -> Outcome:
    """`gmemu stat`."""
    profiles = [profile_named(name) for name in args.profile or _THAT_CAN.get(args.platform, DEFAULT_PROFILES)]
    runs = [(profile, footprint(profile, args.platform, args.size)) for profile in profiles]
    data = {
        "simulated": True,
        "platform": args.platform,
        "size": args.size,
        "profiles": [_run_data(profile, stages) for profile, stages in runs],
    }

    def text(style: Style) -> str:
        from ..report.table import table

        parts = []
        for profile, stages in runs:
            how = "the guest's touch" if args.platform == "pkvm" else profile.conversion_call
            head = f"{args.platform}, {_size(args.size)}, {profile.name}: {how}"
            rows = [(s.name, *(_size(getattr(s.report, column)) for column in _COLUMNS)) for s in stages]
            parts.append(style.bold(head) + "\n")
            parts.append(table(rows, ("when", "shared", "private", "in both", "pinned", "firmware", "peak"), style=style))
        return "\n".join(parts)

    return Outcome(data, text)


def _run_data(profile: Profile, stages: list[Stage]) -> dict[str, Any]:
    return {
        "profile": profile.name,
        "in_place": profile.in_place,
        "stages": [{"when": s.name, **s.report._asdict(), "total": s.report.total} for s in stages],
    }


def _size(nbytes: int) -> str:
    """A size for people, to a tenth."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << shift:
            return f"{nbytes / (1 << shift):.1f}".removesuffix(".0") + f" {unit}"
    return str(nbytes)

# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu measure`: a launch digest, and where two launches part."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .outcome import ExitCode, Outcome

if TYPE_CHECKING:
    from argparse import Namespace

    from ..launch.pagelog import Difference, PageLog, PageRecord
    from ..report.style import Style

__all__ = ["diff", "snp"]


def snp(args: Namespace) -> Outcome:
    """`gmemu measure snp`."""
    from ..launch.ovmf import Firmware
    from ..launch.snp import measure_snp
    from ..report.progress import Progress
    from ..report.style import is_terminal
    from .guest import open_log, plan_data, plan_from, profile_named

    profile = profile_named(args.profile)
    plan = plan_from(args, Firmware.load(args.firmware))
    with open_log(args.log, plan) as log, Progress("measuring") as progress:
        digest = measure_snp(plan, log=log, progress=progress, profile=profile).hex()
    data = {"measurement": digest, **plan_data(plan, profile)} if args.json else {}
    remarks = plan.notes
    if is_terminal(sys.stderr):
        remarks = (*remarks, "this digest is simulated: no hardware has vouched for it")
    return Outcome(data, lambda style: digest + "\n", remarks=remarks)


def diff(args: Namespace) -> Outcome:
    """`gmemu measure diff`."""
    from ..launch.pagelog import diff as first_difference
    from ..launch.pagelog import read_log

    a, b = read_log(args.a), read_log(args.b)
    difference = first_difference(a, b)
    data = {
        "same": difference is None,
        "simulated": True,
        "a": {"log": a.name, "pages": len(a.pages), "measurement": a.measurement},
        "b": {"log": b.name, "pages": len(b.pages), "measurement": b.measurement},
        "difference": _difference_data(difference) if difference else None,
    }
    code = ExitCode.MISMATCH if difference else ExitCode.PASS
    return Outcome(data, lambda style: _diff_text(a, b, difference, style), code)


def _difference_data(found: Difference) -> dict[str, Any]:
    return {
        "page": found.page,
        "kind": found.kind,
        "why": found.why,
        "a": _record_data(found.a),
        "b": _record_data(found.b),
        "parameters": {name: {"a": left, "b": right} for name, (left, right) in found.parameters.items()},
    }


def _record_data(record: PageRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "step": record.step,
        "name": record.name,
        "gpa": f"{record.gpa:#x}",
        "type": record.page_type.name.lower(),
        "contents": record.contents,
        "digest": record.digest,
    }


def _diff_text(a: PageLog, b: PageLog, found: Difference | None, style: Style) -> str:
    from ..report.table import paragraph, table

    if found is None:
        return paragraph(f"same: {len(a.pages)} pages, measurement {a.measurement} (simulated)", style)
    rows = [(label, _cell(found.a, field), _cell(found.b, field)) for label, field in _ROWS]
    shown = table(rows, ("", a.name, b.name), style=style) if style.width >= 76 else ""
    return style.red("different") + "\n" + paragraph(found.why, style) + shown


_ROWS = (("step", "name"), ("gpa", "gpa"), ("type", "page_type"), ("contents", "contents"), ("digest", "digest"))


def _cell(record: PageRecord | None, field: str) -> str:
    if record is None:
        return "-"
    value = getattr(record, field)
    if field == "gpa":
        return f"{value:#x}"
    if field == "page_type":
        return str(value.name.lower())
    return f"{value[:24]}..." if field in ("contents", "digest") else str(value)

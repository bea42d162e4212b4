# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu conform fuzz`: random sequences of calls on two kernels in lockstep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .conform import splats_text
from .outcome import ExitCode, Outcome, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from ..conformance.fuzz.campaign import JobResult
    from ..report.style import Style

__all__ = ["fuzz"]


def fuzz(args: Namespace) -> Outcome:
    """Carry the command out."""
    from ..conformance.fuzz.campaign import EngineMissing, Job, run_jobs

    if args.steps < 1 or args.jobs < 1:
        raise UsageError("--steps and --jobs must be at least 1")
    each = -(-args.steps // args.jobs)
    jobs = [Job(args.backend, args.profile or "", args.kernel, args.seed + i, each) for i in range(args.jobs)]
    try:
        return _outcome(args.backend, args.kernel, list(run_jobs(jobs, args.engine)))
    except (EngineMissing, ValueError) as error:
        raise UsageError(str(error)) from None


def _outcome(backend: str, kernel: str, results: list[JobResult]) -> Outcome:
    from ..conformance.fuzz.script import as_c, as_python

    unavailable = next((r.unavailable for r in results if r.unavailable), "")
    if unavailable:
        data: dict[str, Any] = {"backend": backend, "skipped": unavailable}
        return Outcome(data, lambda style: f"backend {backend} isn't available: {unavailable}\n", ExitCode.SKIPPED)
    total = sum(r.steps for r in results)
    found = [(r, r.finding) for r in results if r.finding is not None]
    findings = [
        {
            "seed": result.seed,
            "emulated": finding.emulated._asdict(),
            "real": finding.real._asdict(),
            "python": as_python(finding, result.profile, backend, kernel),
            "c": as_c(finding),
        }
        for result, finding in found
    ]
    logs = [result.splats for result in results if result.splats is not None]
    splats = [splat for log in logs for splat in log] if logs else None
    seeds = sorted(r.seed for r in results)
    data = {"backend": backend, "steps": total, "seeds": seeds, "findings": findings, "splats": splats}

    def text(style: Style) -> str:
        out = ""
        for finding in findings:
            out += f"{finding['python']}\n{finding['c']}\n"
        verdict = f"{total:,} steps, {len(findings)} difference{'s' * (len(findings) != 1)}"
        out += splats_text(style, splats)
        return out + (style.red if findings or splats else style.green)(verdict) + "\n"

    return Outcome(data, text, ExitCode.MISMATCH if findings or splats else ExitCode.PASS)

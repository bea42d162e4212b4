# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu conform`: run the conformance cases on a kernel, and compare."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_profile, command, finish
from .outcome import ExitCode, Outcome, UsageError

if TYPE_CHECKING:
    from ..conformance.compare import Comparison, Difference
    from ..conformance.coverage import Coverage
    from ..conformance.runner import Results
    from ..conformance.table import Table
    from ..report.style import Style
    from .arguments import Commands

__all__ = ["add_parser", "conform"]

_ABOUT = "run the same programs on the emulation and on a real kernel, and compare"
_EPILOG = """\
examples:
  gmemu conform                                 the emulation alone: what the cases reach
  gmemu conform --backend host                  this machine's /dev/kvm against the emulation
  gmemu conform --backend vm --record t.json    a kernel in QEMU; keep what it did
  gmemu conform --against t.json                the emulation against what was kept
  gmemu conform fuzz --backend host --seed 1 --steps 20000

exit codes: 0 alike, 1 a difference that nobody explained, 2 usage, 4 the backend isn't to be had
"""


def add_parser(commands: Commands) -> None:
    """Enter the command."""
    conform = command(commands, "conform", _ABOUT, _EPILOG)
    _add_backend(conform)
    conform.add_argument("--group", metavar="G", default="", help="only this group of cases")
    conform.add_argument("--record", metavar="FILE", help="write the backend's table there")
    conform.add_argument("--against", metavar="FILE", help="compare with a table that was written")
    conform.add_argument("--rules", action="store_true", help="list the rules that were reached, and those that weren't")
    finish(conform, "conform:conform")
    actions = conform.add_subparsers(title="what else to do", metavar="ACTION", dest="action")
    fuzz = command(actions, "fuzz", "random sequences of calls on both kernels in lockstep; a difference is made small")
    _add_backend(fuzz, default="host")
    fuzz.add_argument("--seed", metavar="S", type=int, default=0, help="where the sequences start from (default: 0)")
    fuzz.add_argument("--steps", metavar="N", type=int, default=10_000, help="calls to make (default: 10000)")
    fuzz.add_argument("--jobs", metavar="J", type=int, default=1, help="processes, each with a seed of its own (default: 1)")
    fuzz.add_argument("--engine", choices=("local", "ray"), default="local", help="ray spreads the jobs over a cluster")
    finish(fuzz, "conform_fuzz:fuzz")


def _add_backend(parser: argparse.ArgumentParser, default: str = "emulated") -> None:
    parser.add_argument(
        "--backend", choices=("emulated", "host", "vm"), default=default, help=f"which kernel to ask (default: {default})"
    )
    add_profile(parser, "what to emulate (default: what the real kernel is)")
    parser.add_argument(
        "--kernel", metavar="V", default="6.12", help="the version that the vm backend boots (default: 6.12)"
    )


def conform(args: argparse.Namespace) -> Outcome:
    """`gmemu conform`."""
    from ..conformance.backends import BackendUnavailable, open_backend
    from ..conformance.case import groups
    from ..conformance.runner import run_cases
    from ..conformance.table import TableError, load, of_results, save

    if args.group and args.group not in groups():
        raise UsageError(f"there is no group {args.group!r}; there are {', '.join(groups())}")
    try:
        reference = load(Path(args.against)) if args.against else None
        profile = args.profile or (reference.profile if reference else "")
        with open_backend(args.backend, profile, args.kernel) as backend:
            if reference and backend.name == "emulated":
                backend = backend._replace(features=reference.features)
            table = of_results(backend, run_cases(backend, args.group, progress=_progress))
            splats = backend.splats() if backend.splats else None
    except BackendUnavailable as why:
        return _unavailable(args.backend, why)
    except (TableError, ValueError) as error:
        raise UsageError(str(error)) from None
    finally:
        _progress("")
    if args.record:
        save(table, Path(args.record))
    return _report(args, table, reference, splats)


def _report(args: argparse.Namespace, table: Table, reference: Table | None, splats: list[str] | None) -> Outcome:
    """Compare with the table given; a real kernel without one, with the emulation.  The emulation's rules come along."""
    from ..conformance.compare import compare

    other = reference or table
    emulated, coverage = _emulated(table.profile, other, args.group)
    rules = {probe: outcome.rule for probe, outcome in emulated.probes.items()}
    comparison, against = None, ""
    if reference:
        there = {p: o for p, o in reference.results.probes.items() if not args.group or p.startswith(f"{args.group}/")}
        comparison = compare(table.results.probes, there, table.profile, rules)
        against = f"{reference.backend} {reference.kernel}, recorded {reference.date}"
    elif table.backend != "emulated":
        comparison = compare(emulated.probes, table.results.probes, table.profile)
        against = f"{table.backend} {table.kernel}"
    here = f"emulated {table.profile}" if table.backend == "emulated" or not reference else f"{table.backend} {table.kernel}"
    data = {**_data(table, comparison, coverage, against), "splats": splats}
    passed = (comparison is None or comparison.passed) and not splats

    def text(style: Style) -> str:
        return _text(style, table, comparison, coverage, here, against, args.rules) + splats_text(style, splats)

    return Outcome(data, text, ExitCode.PASS if passed else ExitCode.MISMATCH)


def splats_text(style: Style, splats: list[str] | None) -> str:
    """What the kernel complained of while it was probed: no emulation would, so it's a difference.  None: its log isn't ours
    to read."""
    if splats is None:
        return ""
    if not splats:
        return "the kernel's log was read: no warning, no report of lockdep's\n"
    title = f"the kernel complained {len(splats)} time{'s' * (len(splats) > 1)}"
    return style.red(title) + "\n\n" + "\n\n".join(splats) + "\n"


def _emulated(profile: str, like: Table, group: str) -> tuple[Results, Coverage]:
    """The emulation, running the cases that ran on the kernel of `like`."""
    from ..conformance.backends import open_backend
    from ..conformance.coverage import measure
    from ..conformance.runner import run_cases
    from ..profiles import get

    with open_backend("emulated", profile) as backend, measure(get(profile)) as coverage:
        results = run_cases(backend._replace(features=like.features), group)
    return results, coverage


def _data(table: Table, comparison: Comparison | None, coverage: Coverage, against: str) -> dict[str, Any]:
    return {
        "backend": table.backend,
        "kernel": table.kernel,
        "profile": table.profile,
        "probes": {probe: outcome._asdict() for probe, outcome in table.results.probes.items()},
        "skipped": table.results.skipped,
        "against": against or None,
        "same": comparison.same if comparison else None,
        "differences": [d.data() for d in comparison.unexplained + comparison.deliberate] if comparison else None,
        "stale": [entry._asdict() for entry in comparison.stale] if comparison else None,
        "rules": coverage.data(),
    }


def _text(
    style: Style, table: Table, comparison: Comparison | None, coverage: Coverage, here: str, against: str, rules: bool
) -> str:
    from ..report.table import paragraph
    from ..report.table import table as columns

    counts: dict[str, int] = {}
    for probe in table.results.probes:
        group = probe.partition("/")[0]
        counts[group] = counts.get(group, 0) + 1
    out = columns([(group, str(n)) for group, n in counts.items()], ("group", "probes"), style=style, right=(1,))
    out += f"\n{len(table.results.probes)} probes on {table.backend} {table.kernel}"
    out += (
        f"; {len(table.results.skipped)} cases not run ({'; '.join(sorted(set(table.results.skipped.values())))})\n"
        * bool(table.results.skipped)
    )
    out += "\n" * (not table.results.skipped)
    out += f"{len(coverage.reached)} rules reached, {len(coverage.missed)} not, "
    out += f"{len(coverage.emulation_only)} that only the emulation can reach\n"
    if rules:
        for what, ids in coverage.data().items():
            out += f"\n{style.bold(what.replace('_', ' '))}\n" + paragraph(", ".join(ids) or "none", style, "  ")
    if comparison is None:
        return out
    out += _differences(style, "deliberate", comparison.deliberate, here, against)
    out += _differences(style, "unexplained", comparison.unexplained, here, against)
    for entry in comparison.stale:
        out += style.red(
            f"stale: nothing differs at {entry.probes} any more; take the entry out of conformance/deliberate.py\n"
        )
    meant, unexplained = len(comparison.deliberate), len(comparison.unexplained)
    verdict = f"{comparison.same} alike, {meant} deliberately different, {unexplained} unexplained"
    paint = style.green if comparison.passed else style.red
    return out + paint(f"{here} against {against}: {verdict}") + "\n"


def _differences(style: Style, what: str, differences: list[Difference], here: str, there: str) -> str:
    from ..report.table import table as columns

    if not differences:
        return ""
    rows = [(d.probe, d.here, d.there, d.deliberate.reason if d.deliberate else d.rule or "-") for d in differences]
    title = style.bold(f"{len(differences)} {what} difference{'s' * (len(differences) > 1)}")
    last = "reason" if what == "deliberate" else "gmemu's rule"
    return f"\n{title}\n" + columns(rows, ("probe", here, there, last), style=style) + "\n"


def _unavailable(name: str, why: Exception) -> Outcome:
    return Outcome(
        {"backend": name, "skipped": str(why)}, lambda style: f"backend {name} isn't available: {why}\n", ExitCode.SKIPPED
    )


def _progress(what: str) -> None:
    """The case that's running, on a terminal; nothing wipes the line."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"\r{what}\x1b[K")
        sys.stderr.flush()

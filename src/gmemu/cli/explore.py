# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu explore` and `gmemu variants`."""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from ..explore import Options, Result
from ..explore import Outcome as Verdict
from ..explore import explore as search
from ..explore.parallel import explore_parallel
from ..explore.token import Token
from ..explore.variants import VARIANTS
from ..report.explore import verdicts_text, violation_text
from ..report.progress import Progress
from ..report.table import table
from ..scenarios import CATALOGUE
from .outcome import ExitCode, Outcome, UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable

    from ..explore.scenario import Scenario
    from ..report.style import Style

__all__ = ["explore", "scenario_named", "variant_named", "variants"]


def explore(args: Namespace) -> Outcome:
    """`gmemu explore`: each scenario by default, or with variants; every variant that it says
    something about with --all-variants."""
    chosen = [scenario_named(name) for name in args.scenario] or list(CATALOGUE.values())
    asked = tuple(variant_named(name) for name in args.variant)
    wanted = [(scenario, v) for scenario in chosen for v in (scenario.stated() if args.all_variants else [asked])]
    runs = []
    with Progress("exploring") as progress:
        for number, (scenario, variants) in enumerate(wanted):
            progress(number, len(wanted))
            result = _search(partial(scenario, variants), args)
            runs.append(_Run(scenario, variants, result))
    return Outcome([run.data() for run in runs], lambda style: _explored(runs, style), _code(runs))


def _search(build: Callable[[], Scenario], args: Namespace) -> Result:
    """One search, as the options have it."""
    options = Options(max_seconds=args.seconds, max_preemptions=args.preemptions, seed=args.seed)
    if args.strategy:
        return search(build, options, strategy=args.strategy)
    return search(build, options) if args.jobs < 2 else explore_parallel(build, args.jobs, options)


class _Run:
    """One search, and whether it came out as the catalogue says."""

    def __init__(self, scenario: type[Scenario], variants: tuple[str, ...], result: Result) -> None:
        self.scenario, self.variants, self.result = scenario, variants, result
        self.token = str(Token(scenario.name, variants, result.choices)) if result.kind else ""

    @property
    def as_stated(self) -> bool:
        """Variants that must break it did, as they must; nothing else did."""
        kinds = self.scenario.kinds_with(self.variants)
        return self.result.kind in kinds if kinds else self.result.outcome is not Verdict.VIOLATED

    def data(self) -> dict[str, Any]:
        """For --json."""
        r = self.result
        return {
            "scenario": self.scenario.name,
            "variants": list(self.variants),
            "verdict": r.outcome.value,
            "kind": r.kind or None,
            "detail": r.detail or None,
            "schedules": r.schedules,
            "steps": r.steps,
            "seconds": round(r.seconds, 3),
            "token": self.token or None,
            "as_stated": self.as_stated,
            "simulated": True,
        }

    def row(self) -> tuple[str, ...]:
        """For the table."""
        r = self.result
        verdict = r.outcome.value if self.as_stated else f"{r.outcome.value} (not as stated)"
        return (
            self.scenario.name,
            ", ".join(self.variants) or "-",
            verdict,
            f"{r.schedules:,}",
            f"{r.seconds:.2f} s",
            r.kind or self.scenario.question,
        )


def _code(runs: list[_Run]) -> ExitCode:
    if any(not run.as_stated for run in runs):
        return ExitCode.MISMATCH
    return ExitCode.INCOMPLETE if any(run.result.outcome is Verdict.INCOMPLETE for run in runs) else ExitCode.PASS


def _explored(runs: list[_Run], style: Style) -> str:
    text = verdicts_text([run.row() for run in runs], style)
    for run in runs:
        if run.token:
            text += "\n" + violation_text(run.result.detail, run.token, style)
    return text


def variants(args: Namespace) -> Outcome:
    """`gmemu variants`: what can be decided otherwise, where that was discussed, and what it breaks."""
    rows = []
    for variant in VARIANTS.values():
        breaks = [name for name, scenario in CATALOGUE.items() if any(variant.name in v for v in scenario.broken_with())]
        rows.append({"name": variant.name, "text": variant.text, "source": variant.source, "breaks": breaks})
    lines = [(str(r["name"]), ", ".join(r["breaks"]) or "-", f"{r['text']} ({r['source']})") for r in rows]
    return Outcome(rows, lambda style: table(lines, ("variant", "breaks", "what it is"), style=style))


def scenario_named(name: str) -> type[Scenario]:
    """The scenario of that name.  Raises `UsageError`."""
    if name not in CATALOGUE:
        raise UsageError(_unknown("scenario", name, CATALOGUE))
    return CATALOGUE[name]


def variant_named(name: str) -> str:
    """The name, if there is such a variant.  Raises `UsageError`."""
    if name not in VARIANTS:
        raise UsageError(_unknown("variant", name, VARIANTS))
    return name


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no {what} {name!r}; there are {', '.join(known)}{hint}"

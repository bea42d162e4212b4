# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu explore` and `gmemu variants`."""

from __future__ import annotations

import signal
import threading
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..cluster import EngineMissing, connected
from ..explore import Options, Result, Watch
from ..explore import Outcome as Verdict
from ..explore.checkpoint import Checkpoint, CheckpointError, Run
from ..explore.on_ray import on_ray
from ..explore.parallel import explore_parallel
from ..explore.search import explore as search
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

    from ..explore import Progress as HowFar
    from ..explore.scenario import Scenario
    from ..report.style import Style

    Searcher = Callable[..., Result]

__all__ = ["CHECKPOINT", "explore", "scenario_named", "variant_named", "variants"]


SECONDS = 60.0
"""The bound for each search, unless --seconds says otherwise."""
CHECKPOINT = "gmemu-explore.checkpoint"
"""Where a search that is interrupted is left, unless --checkpoint says otherwise."""


def explore(args: Namespace) -> Outcome:
    """`gmemu explore`: each scenario by default, or with variants; every variant that it says
    something about with --all-variants; or what a checkpoint has left."""
    asked = _resumed(args) if args.resume else _asked(args)
    if asked.options.hashing and (args.jobs > 1 or args.engine == "ray"):
        raise UsageError("--hash remembers states in one process: leave it out, or --jobs and --engine")
    try:
        with connected(args.jobs if args.jobs > 1 else None) if args.engine == "ray" else nullcontext() as ray:
            return _explore(args, asked, _searcher(args, ray))
    except EngineMissing as error:
        raise UsageError(str(error)) from None


def _explore(args: Namespace, asked: Checkpoint, search: Searcher) -> Outcome:
    """Carry out what was asked, until it's done or interrupted."""
    runs: list[Run] = []
    interrupted = False
    with Progress("exploring", unit="searches") as progress, _Interrupt() as interrupt:
        for number, run in enumerate(asked.runs):
            if not run.over and not interrupted:
                begin = run.result.left if run.result is not None else None
                watch = Watch(partial(_tell, progress, number, len(asked.runs), run.scenario), interrupt)
                build = partial(scenario_named(run.scenario), run.variants)
                run = run._replace(result=search(build, options=asked.options, begin=begin, watch=watch))
                interrupted = run.result is not None and run.result.bound == "interrupted"
            runs.append(run)
    return _outcome(args, asked._replace(runs=tuple(runs)), interrupted)


def _asked(args: Namespace) -> Checkpoint:
    chosen = [scenario_named(name) for name in args.scenario] or list(CATALOGUE.values())
    variants = tuple(variant_named(name) for name in args.variant)
    wanted = [(scenario, v) for scenario in chosen for v in (scenario.stated() if args.all_variants else [variants])]
    options = Options(
        reduce=args.reduction,
        hashing=args.hash,
        symmetry=args.symmetry,
        restore=args.restore,
        max_schedules=args.schedules,
        max_seconds=SECONDS if args.seconds is None else args.seconds,
        max_preemptions=args.preemptions,
        max_depth=args.depth,
        strategy=args.strategy or "exhaustive",
        seed=args.seed,
    )
    return Checkpoint(options, tuple(Run(scenario.name, v) for scenario, v in wanted))


def _resumed(args: Namespace) -> Checkpoint:
    """What the file has; bounds may be others now."""
    if args.scenario or args.variant or args.all_variants:
        raise UsageError("--resume goes on with what the checkpoint has: name no scenarios or variants beside it")
    try:
        asked = Checkpoint.load(Path(args.resume))
    except CheckpointError as error:
        raise UsageError(str(error)) from None
    for run in asked.runs:
        scenario_named(run.scenario)
        for name in run.variants:
            variant_named(name)
    bounds = {"max_seconds": args.seconds, "max_schedules": args.schedules}
    return asked._replace(options=asked.options._replace(**{n: v for n, v in bounds.items() if v is not None}))


class _Interrupt:
    """Ctrl-C stops the search between two runs; a second one stops everything."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._stop)
        return self

    def _stop(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def _tell(progress: Progress, number: int, total: int, name: str, now: HowFar) -> None:
    share = f"about {100 * now.share:.0f} % done"
    note = f"{name}: {now.schedules:,} schedules, {now.rate:,.0f}/s, depth {now.depth}, {share}"
    progress(number, total, note)


def _searcher(args: Namespace, ray: Any) -> Searcher:
    """Who searches: this process, several of this machine, or a cluster."""
    if ray is not None:
        workers = args.jobs if args.jobs > 1 else int(ray.cluster_resources().get("CPU", 1))
        return partial(explore_parallel, jobs=workers, engine=on_ray(ray))
    return partial(explore_parallel, jobs=args.jobs) if args.jobs > 1 else search


def _outcome(args: Namespace, done: Checkpoint, interrupted: bool) -> Outcome:
    """What to say; what is left goes to a file if it was interrupted, or if one was asked for."""
    runs = [_Run(scenario_named(run.scenario), run.variants, run.result) for run in done.runs if run.result is not None]
    file = args.checkpoint or args.resume or CHECKPOINT
    remarks: tuple[str, ...] = ()
    left = not all(run.over for run in done.runs)
    if left and (interrupted or args.checkpoint):
        done.save(Path(file))
        remarks = (f"what is left is in {file}: go on with gmemu explore --resume {file}",)
    rows = [{**run.data(), "checkpoint": file if remarks and run.result.left is not None else None} for run in runs]
    code = ExitCode.INTERRUPTED if interrupted else _code(runs)
    return Outcome(rows, lambda style: _explored(runs, style), code, remarks)


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
            "bound": r.bound or None,
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
            r.kind or (f"stopped by {r.bound}" if r.bound else self.scenario.question),
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""A fuzz campaign: jobs with a seed each, on this machine's cores or on a Ray cluster, with progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ...cluster import EngineMissing, connected
from ..backends import BackendUnavailable, open_backend

if TYPE_CHECKING:
    from .engine import Finding

__all__ = ["EngineMissing", "Job", "JobResult", "run_job", "run_jobs"]


class Job(NamedTuple):
    """What one process does."""

    backend: str
    profile: str
    kernel: str
    seed: int
    steps: int


class JobResult(NamedTuple):
    """How many steps were made, the finding, and what the kernel complained of (None: its log can't be read); or why the
    backend isn't there."""

    seed: int
    steps: int
    profile: str = ""
    finding: Finding | None = None
    unavailable: str = ""
    splats: tuple[str, ...] | None = None


def run_job(job: Job, progress: Callable[[int], None] = lambda done: None) -> JobResult:
    """Fuzz with one seed."""
    from .engine import fuzz

    try:
        with open_backend(job.backend, job.profile, job.kernel) as real, open_backend("emulated", real.profile) as emulation:
            done, finding = fuzz(emulation, real, job.seed, job.steps, progress)
            splats = tuple(real.splats()) if real.splats else None
            return JobResult(job.seed, done, real.profile, finding, splats=splats)
    except BackendUnavailable as why:
        return JobResult(job.seed, 0, unavailable=str(why))


class _Ticker:
    """Steps done, on standard error, now and then."""

    def __init__(self, total: int) -> None:
        self._total, self._next = total, time.monotonic() + 1

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now >= self._next and sys.stderr is not None:
            tty = sys.stderr.isatty()
            self._next, end = (now + 1, "\r") if tty else (now + 10, "\n")
            print(f"gmemu: fuzz: {done:,} of {self._total:,} steps", end=end, file=sys.stderr, flush=True)


def _locally(jobs: list[Job]) -> Iterator[JobResult]:
    if len(jobs) == 1:
        yield run_job(jobs[0], _Ticker(jobs[0].steps))
        return
    from multiprocessing import get_context

    with get_context("spawn").Pool(len(jobs)) as pool:
        yield from pool.imap_unordered(run_job, jobs)


def _on_ray(jobs: list[Job]) -> Iterator[JobResult]:
    """On the cluster that RAY_ADDRESS names; else on one that's made for the campaign, of this machine alone."""
    with connected() as ray:
        remote: Any = ray.remote(run_job)
        waiting = [remote.remote(job) for job in jobs]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield ray.get(ready[0])


def run_jobs(jobs: list[Job], engine: str = "local") -> Iterator[JobResult]:
    """The jobs' results as they come in.  Raises `EngineMissing`."""
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise EngineMissing("fuzzing needs Hypothesis: pip install 'gmemu[fuzz]'") from None
    for result in (_on_ray if engine == "ray" else _locally)(jobs):
        yield result
        if len(jobs) > 1 and sys.stderr is not None:
            print(f"gmemu: fuzz: seed {result.seed}: {result.steps:,} steps", file=sys.stderr, flush=True)

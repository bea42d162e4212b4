# SPDX-License-Identifier: GPL-2.0-or-later
"""pytest: a test with the marker ``gmemu_explore`` is a program whose threads run in every order.

::

    @pytest.mark.gmemu_explore(profile="inplace-v13", max_seconds=10)
    def test_my_vmm(program):
        ...
        program.thread("a", ...)

The marker takes what `gmemu.explore` takes.  The test fails with what went wrong, step by step; it fails, too, if a
bound kept the search from being exhaustive, unless the marker says ``bounded=True``.
"""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["program", "pytest_configure", "pytest_pyfunc_call"]

_MARKER = "gmemu_explore"


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the marker."""
    config.addinivalue_line("markers", f"{_MARKER}(**options): run the test's threads in every order (gmemu)")


@pytest.fixture
def program() -> None:
    """The program under exploration: another one for each run, so this is only a place for it."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> bool | None:
    """Explore a marked test instead of calling it once."""
    marker = pyfuncitem.get_closest_marker(_MARKER)
    if marker is None:
        return None
    from .explore import Outcome, record
    from .explore.program import Program, explore_program
    from .report.traces import FORMATS  # noqa: F401  (the formats that a trace can be had in)

    options = dict(marker.kwargs)
    bounded = options.pop("bounded", False)
    host = {name: options.pop(name) for name in ("profile", "platform") if name in options}
    others = {name: value for name, value in pyfuncitem.funcargs.items() if name in pyfuncitem._fixtureinfo.argnames}

    def body(program: Program) -> None:
        pyfuncitem.obj(**{**others, "program": program})

    result: Any = explore_program(body, **host, **options)
    if result.outcome is Outcome.VIOLATED:
        trace = record(lambda: Program(body, **host), result.choices, scenario=pyfuncitem.name)
        steps = "\n".join(f"  {trace.tasks[s.task]:>12}: {s.kind} {s.object}  {s.where or ''}" for s in trace.steps)
        pytest.fail(f"{result.kind}: {result.detail}\n{steps}\n(simulated; choices {result.choices})", pytrace=False)
    if result.outcome is Outcome.INCOMPLETE and not bounded:
        pytest.fail(f"not exhausted: stopped by {result.bound} after {result.schedules} schedules", pytrace=False)
    return True

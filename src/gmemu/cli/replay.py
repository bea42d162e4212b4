# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu replay`: a run again, from its token, in the format that's asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..explore import replay as run_again
from ..explore.beside import follow
from ..explore.token import Token
from ..explore.trace import record
from ..report.traces import FORMATS
from ..report.traces.calls import NotExpressible
from ..sync.explored import NotDeterministic
from .explore import scenario_named, variant_named
from .outcome import ExitCode, Outcome, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from ..explore.trace import Trace
    from ..report.style import Style

__all__ = ["replay"]


def replay(args: Namespace) -> Outcome:
    """`gmemu replay TOKEN [TOKEN]`: exits with 1 if something is violated in the first."""
    tokens = [_token(text) for text in args.token]
    traces = [_recorded(token) for token in tokens]
    chosen = FORMATS[args.format]
    if args.format in ("html", "perfetto") and len(tokens) == 1 and tokens[0].variants:
        traces.append(_by_default(tokens[0]))

    def text(style: Style) -> str | bytes:
        try:
            return chosen.write(traces)
        except ImportError as missing:
            raise UsageError(f"{chosen.name} needs {missing.name}, which isn't installed: {chosen.needs}") from missing
        except NotExpressible as why:
            raise UsageError(str(why)) from why

    data = [trace.data() for trace in traces]
    return Outcome(data if len(tokens) > 1 else data[0], text, ExitCode.MISMATCH if traces[0].kind else ExitCode.PASS)


def _token(text: str) -> Token:
    try:
        token = Token.parse(text)
    except ValueError as malformed:
        raise UsageError(str(malformed)) from malformed
    scenario_named(token.scenario)
    return token._replace(variants=tuple(variant_named(name) for name in token.variants))


def _recorded(token: Token) -> Trace:
    build = partial(scenario_named(token.scenario).recorded(), token.variants)
    try:
        return record(build, token.choices, scenario=token.scenario, variants=token.variants)
    except NotDeterministic as other:
        raise UsageError(f"the token doesn't fit this version of gmemu: {other}") from other


def _by_default(token: Token) -> Trace:
    """The same order of events without the variants."""
    scenario = scenario_named(token.scenario)
    steps, _ = run_again(partial(scenario, token.variants), token.choices)
    return _recorded(token._replace(variants=(), choices=follow(scenario, steps)))

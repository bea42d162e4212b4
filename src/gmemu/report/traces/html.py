# SPDX-License-Identifier: GPL-2.0-or-later
"""A page on its own to step through a trace, or two side by side: everything is in the file, nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .story import changes, event, function, title, token, verdict

if TYPE_CHECKING:
    from ...explore.trace import Trace

__all__ = ["page_data", "write"]


def write(traces: Sequence[Trace]) -> str:
    """One pane for each trace."""
    here = files(__package__)
    data = json.dumps([page_data(trace) for trace in traces], separators=(",", ":")).replace("</", "<\\/")
    return _PAGE.format(
        title=escape(title(traces[0])),
        css=here.joinpath("page.css").read_text(),
        js=here.joinpath("page.js").read_text(),
        data=data,
        other=_OTHER if len(traces) > 1 else "",
    )


def page_data(trace: Trace) -> dict[str, Any]:
    """What the page's script reads: the trace, with each step in words."""
    data = trace.data()
    for step, plain in zip(trace.steps, data["steps"], strict=True):
        plain["event"], plain["says"] = event(step), function(step)
        plain["changes"] = changes(trace.before_step(step.number), step.after)
    return {**data, "title": title(trace), "token": token(trace), "verdict": verdict(trace)}


_OTHER = """<span><kbd>&larr;</kbd> <kbd>&rarr;</kbd> other trace</span> <span><kbd>s</kbd> each on its own</span>"""

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - gmemu (simulated)</title>
<style>
{css}</style>
</head>
<body>
<noscript>This page steps through a trace with a script of its own; nothing is fetched.</noscript>
<main id="panes"></main>
<footer>
<span><kbd>&uarr;</kbd> <kbd>&darr;</kbd> step</span>
<span><kbd>[</kbd> <kbd>]</kbd> where another task goes on</span>
<span><kbd>Home</kbd> <kbd>End</kbd> ends</span>
{other}
<span class="legend"><i class="shared"></i>shared <i class="private"></i>private <i class="none"></i>no memory</span>
<span>H host PTE, G guest SPTE, T TLB, the number: references</span>
<strong>Simulated by gmemu: no kernel and no hardware took part.</strong>
</footer>
<script type="application/json" id="traces">{data}</script>
<script>
{js}</script>
</body>
</html>
"""

# SPDX-License-Identifier: GPL-2.0-or-later
"""A `Trace` written out: for a mail, a diagram, a trace viewer, a browser, or as programs for a real kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ...explore.trace import Trace

__all__ = ["FORMATS", "Format"]


class Format(NamedTuple):
    """One way to write a trace.  `module` is imported when it's used."""

    name: str
    suffix: str
    text: str
    """what it is, for --help"""
    module: str
    needs: str = ""
    """how to install what the module imports"""

    def write(self, traces: Sequence[Trace]) -> str | bytes:
        """The first trace; a format that can show two side by side shows the second too.

        Raises `ImportError` if what it's written with isn't installed, `calls.NotExpressible` if the format can't say it.
        """
        writer: Callable[[Sequence[Trace]], str | bytes] = import_module(f".{self.module}", __package__).write
        return writer(traces)


FORMATS = {
    made.name: made
    for made in (
        Format("text", ".txt", "in ftrace's shape, for a mail", "ftrace"),
        Format("mermaid", ".mmd", "a sequence diagram", "mermaid"),
        Format("perfetto", ".pftrace", "for ui.perfetto.dev", "perfetto", "pip install 'gmemu[perfetto]'"),
        Format("html", ".html", "a page to step through, the variant beside the default", "html"),
        Format("c", ".c", "a program in the manner of the KVM selftests, to be filled in", "selftest"),
        Format("syz", ".syz", "a syzkaller program, where one can be made", "syzkaller"),
    )
}

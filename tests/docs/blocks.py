# SPDX-License-Identifier: GPL-2.0-or-later
"""Fenced blocks of the documentation, and running them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line on which that starts."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a Markdown file."""
    text = path.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in _FENCE.finditer(text)]


def examples(path: Path) -> Iterator[tuple[Block, str]]:
    """Each block of Python with what it is said to print: the text block that follows it, else nothing."""
    found = blocks(path)
    for block, following in zip(found, [*found[1:], Block("", "", 0)], strict=True):
        if block.language == "python":
            yield block, following.text if following.language == "text" else ""


def printed(block: Block, path: Path, namespace: dict[str, Any]) -> str:
    """Run a block in `namespace`; what it printed.  Line numbers in a traceback are the document's."""
    code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
    out = io.StringIO()
    with redirect_stdout(out):
        exec(code, namespace)
    return out.getvalue()

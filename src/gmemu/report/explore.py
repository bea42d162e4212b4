# SPDX-License-Identifier: GPL-2.0-or-later
"""Exploration results for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .table import paragraph, table

if TYPE_CHECKING:
    from .style import Style

__all__ = ["verdicts_text", "violation_text"]


def verdicts_text(rows: Sequence[Sequence[str]], style: Style) -> str:
    """A line for each scenario and variant."""
    headings = ("scenario", "variant", "verdict", "schedules", "time", "what")
    return table(rows, headings, style=style, right=(3, 4))


def violation_text(detail: str, token: str, style: Style) -> str:
    """What went wrong, and how to see it again."""
    return paragraph(detail, style) + f"gmemu replay '{token}'\n"

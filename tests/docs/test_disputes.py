# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/disputes/: the tables say what exploration shows now, and the traces decide what they are said to decide."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import pytest

from gmemu.explore import replay
from gmemu.explore.token import Token
from gmemu.explore.verdict import kind_of
from gmemu.scenarios import CATALOGUE

from .disputes import PAGES, blocks, rows

TOLD = [(page, *found) for page in PAGES for found in blocks(page.read_text())]


def test_every_dispute_has_its_page() -> None:
    assert {page.stem for page in PAGES} == {"D1", "D2", "D3", "D4", "D5", "D6", "D12"}
    for page in PAGES:
        kinds = [kind for kind, _, _ in blocks(page.read_text())]
        assert "explored" in kinds, page
        assert "trace" in kinds, page


@pytest.mark.parametrize(
    ("page", "kind", "what", "text"), TOLD, ids=[f"{page.stem}-{kind}-{what}" for page, kind, what, _ in TOLD]
)
def test_what_a_page_shows(page: Path, kind: str, what: str, text: str) -> None:
    """A table is made anew; a token is replayed, as it may be any that leads there."""
    scenario, *designs = what.split()
    if kind == "explored":
        assert text.splitlines() == rows(scenario, designs), f"python -m tests.docs.disputes writes {page.name} anew"
        return
    token = Token.parse(shlex.split(text)[2])
    assert (token.scenario, "+".join(token.variants)) == (scenario, designs[0])
    _, error = replay(partial(CATALOGUE[scenario], token.variants), token.choices)
    assert error is not None
    assert kind_of(error) in CATALOGUE[scenario].kinds_with(token.variants)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemu.explore.token import Token

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1)


@given(NAMES, st.lists(NAMES).map(tuple), st.lists(st.integers(0, 20)).map(tuple))
def test_round_trip(scenario: str, variants: tuple[str, ...], choices: tuple[int, ...]) -> None:
    token = Token(scenario, variants, choices)
    assert Token.parse(str(token)) == token


def test_runs_are_counted() -> None:
    assert str(Token("pin", ("no-check",), (0, 0, 0, 1, 0))) == "pin+no-check:0x3,1,0"


@pytest.mark.parametrize("text", ["", "pin", ":0", "pin:0y3", "pin:x"])
def test_anything_else_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is no replay token"):
        Token.parse(text)

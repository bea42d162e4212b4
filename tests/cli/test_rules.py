# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu rules`."""

from __future__ import annotations

import pytest

from gmemu.profiles import PROFILES
from gmemu.rules import catalogue

from .conftest import Gmemu


def test_all_are_listed(gmemu: Gmemu) -> None:
    out = gmemu("rules").out
    data = gmemu("rules", "--json").json
    assert [rule["id"] for rule in data] == list(catalogue())
    for rule in data:
        assert rule["id"] in out


@pytest.mark.parametrize("prefix", ["gmem", "gmem.", "gmem.attributes"])
def test_a_prefix_chooses(gmemu: Gmemu, prefix: str) -> None:
    ids = [rule["id"] for rule in gmemu("rules", prefix, "--json").json]
    start = prefix.rstrip(".") + "."
    assert ids == [name for name in catalogue() if name.startswith(start)]
    assert ids


def test_one_is_explained(gmemu: Gmemu) -> None:
    out = gmemu("rules", "gmem.attributes.busy").out
    for part in "EAGAIN", "reference", "guest_memfd.c", "inplace-v13", "error_offset":
        assert part in out
    data = gmemu("rules", "gmem.attributes.busy", "--json").json
    assert (data["outcome"], data["errno"], data["profiles"]) == (
        "EAGAIN",
        11,
        [p.name for p in PROFILES.values() if p.in_place],
    )


def test_a_signal_is_named(gmemu: Gmemu) -> None:
    data = gmemu("rules", "gmem.fault.private", "--json").json
    assert data["signal"] == data["outcome"] == "SIGBUS"


def test_every_rule_can_be_explained(gmemu: Gmemu) -> None:
    for name, rule in catalogue().items():
        done = gmemu("rules", name)
        assert done.code == 0
        assert rule.outcome in done.out


@pytest.mark.parametrize("profile", PROFILES)
def test_a_kernels_rules(gmemu: Gmemu, profile: str) -> None:
    ids = {rule["id"] for rule in gmemu("rules", "--profile", profile, "--json").json}
    assert ids == {name for name, rule in catalogue().items() if rule.applies(PROFILES[profile])}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("gmem.attributes.bussy",), "did you mean gmem.attributes.busy?"),
        (("quux",), "gmemu rules lists all"),
        (("gmem.attributes.busy", "--profile", "linux-6.12"), "doesn't exist in profile linux-6.12"),
        (("gmem", "--profile", "linux"), "there is no profile 'linux'"),
    ],
)
def test_what_isnt_there(gmemu: Gmemu, words: tuple[str, ...], sentence: str) -> None:
    done = gmemu("rules", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert sentence in done.err

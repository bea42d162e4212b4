# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu profiles`."""

from __future__ import annotations

from itertools import permutations

import pytest

from gmemu.profiles import DEFAULT, PROFILES, Profile
from gmemu.report.profiles import FIELDS

from .conftest import Gmemu


def test_all_are_listed_and_one_is_the_default(gmemu: Gmemu) -> None:
    out = gmemu("profiles").out
    for profile in PROFILES.values():
        assert f"{profile.name}  (default)\n" in out if profile.name == DEFAULT else f"{profile.name}\n" in out
    data = gmemu("profiles", "--json").json
    assert [p["name"] for p in data] == list(PROFILES)
    assert [p["name"] for p in data if p["default"]] == [DEFAULT]
    assert data[-1]["capabilities"]["KVM_CAP_GUEST_MEMFD"]["device"] == 1


@pytest.mark.parametrize(("a", "b"), list(permutations(PROFILES, 2)))
def test_any_two_can_be_compared(gmemu: Gmemu, a: str, b: str) -> None:
    done = gmemu("profiles", "diff", a, b)
    assert (done.code, done.err) == (0, "")
    there, back = (gmemu("profiles", "diff", *pair, "--json").json for pair in ((a, b), (b, a)))
    assert there["same"] is False
    assert there["rules"]["only_a"] == back["rules"]["only_b"]
    assert {c["name"]: c["a"] for c in there["capabilities"]} == {c["name"]: c["b"] for c in back["capabilities"]}


def test_what_in_place_conversion_changes(gmemu: Gmemu) -> None:
    data = gmemu("profiles", "diff", "linux-7.3", "inplace-v13", "--json").json
    caps = {c["name"]: (c["a"], c["b"]) for c in data["capabilities"]}
    assert caps["KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES"][0] is None
    assert "gmem.attributes.busy" in data["rules"]["only_b"]
    assert "gmem.attributes.disabled" in data["rules"]["only_a"]
    text = gmemu("profiles", "diff", "linux-7.3", "inplace-v13").out
    assert "pages are converted in place" in text
    assert "8 / 0 / 8" in text
    assert "absent" in text


def test_flags_are_named(gmemu: Gmemu) -> None:
    text = gmemu("profiles", "diff", "linux-6.12", "linux-6.18").out
    assert "MMAP | INIT_SHARED" in text


def test_one_is_the_same_as_itself(gmemu: Gmemu) -> None:
    assert gmemu("profiles", "diff", DEFAULT, DEFAULT).out == f"{DEFAULT} and {DEFAULT} are the same\n"
    assert gmemu("profiles", "diff", DEFAULT, DEFAULT, "--json").json["same"] is True


@pytest.mark.parametrize("words", [("linux-6.12", "linux-6.13"), ("inplace", "linux-6.12")])
def test_unknown_profiles(gmemu: Gmemu, words: tuple[str, str]) -> None:
    done = gmemu("profiles", "diff", *words)
    assert (done.code, done.out) == (2, "")
    assert "there is no profile" in done.err
    assert "inplace-v13" in done.err


def test_every_field_has_words() -> None:
    told = set(FIELDS) | {"name", "title", "source", "caps", "cap_names"}
    assert set(Profile._fields) == told, "a field of Profile has no words in gmemu.report.profiles.FIELDS, or one is gone"
    for profile in PROFILES.values():
        for field, (_, words) in FIELDS.items():
            assert words(getattr(profile, field))

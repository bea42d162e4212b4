# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparing two runs; tables as files."""

from pathlib import Path

import pytest

from gmemu.conformance.backends import open_backend
from gmemu.conformance.compare import compare
from gmemu.conformance.deliberate import DELIBERATE, Deliberate
from gmemu.conformance.outcome import Outcome, describe
from gmemu.conformance.runner import run_cases
from gmemu.conformance.table import TableError, load, of_results, save

ENTRY = Deliberate("a/*", "linux-*", "because", "later")


def test_alike() -> None:
    found = compare({"a/x": Outcome("ok")}, {"a/x": Outcome("ok", "")}, "linux-6.12", deliberate=())
    assert (found.same, found.passed) == (1, True)


def test_a_difference_has_the_emulations_rule() -> None:
    found = compare({"a/x": Outcome("EINVAL", "gmem.create.size")}, {"a/x": Outcome("ok")}, "linux-6.12", deliberate=())
    [difference] = found.unexplained
    assert difference.rule == "gmem.create.size"
    assert not found.passed


def test_what_ran_on_one_side_only_is_a_difference() -> None:
    found = compare({"a/x": Outcome("ok")}, {}, "linux-6.12", deliberate=())
    assert found.unexplained[0].there == "not run"


def test_a_deliberate_difference_passes() -> None:
    found = compare({"a/x": Outcome("1")}, {"a/x": Outcome("2")}, "linux-6.12", deliberate=(ENTRY,))
    assert found.passed
    assert found.deliberate[0].deliberate is ENTRY


def test_a_deliberate_difference_that_is_gone_is_stale() -> None:
    found = compare({"a/x": Outcome("1")}, {"a/x": Outcome("1")}, "linux-6.12", deliberate=(ENTRY,))
    assert found.stale == [ENTRY]
    assert not found.passed


@pytest.mark.parametrize("profile", ["inplace-v13"])
def test_an_entry_for_another_profile_is_not_stale(profile: str) -> None:
    assert compare({"a/x": Outcome("1")}, {"a/x": Outcome("1")}, profile, deliberate=(ENTRY,)).passed


def test_a_table_survives_the_file(tmp_path: Path) -> None:
    with open_backend("emulated", "linux-7.3") as backend:
        table = of_results(backend, run_cases(backend, "capabilities"))
    save(table, tmp_path / "t.json")
    again = load(tmp_path / "t.json")
    assert again.features == table.features
    assert {p: o.result for p, o in again.results.probes.items()} == {p: o.result for p, o in table.results.probes.items()}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"what": "gmemu conformance table", "version": 99}'])
def test_what_is_no_table_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(TableError, match=r"t\.json"):
        load(path)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "ok"),
        (3, "3"),
        (1 << 40, "0x10000000000"),
        (True, "yes"),
        (b"\0" * 4096, "bytes 00*4096"),
        (b"ab", "bytes 61*1 62*1"),
        ((1, 2), "1 2"),
    ],
)
def test_values_in_words(value: object, shown: str) -> None:
    assert describe(value) == shown


def test_many_runs_become_a_digest() -> None:
    assert describe(bytes(range(256))).startswith("bytes 256 sha256:")


def test_the_docs_show_every_deliberate_difference() -> None:
    text = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    for entry in DELIBERATE:
        assert f"| `{entry.probes}` | `{entry.profiles}` | {entry.reason} | {entry.until} |" in text

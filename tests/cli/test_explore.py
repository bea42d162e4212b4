# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu explore`, `replay` and `variants`."""

from __future__ import annotations

import json

import pytest

from gmemu.cli.main import main


def test_a_scenario_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "pin", "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)
    assert (run["verdict"], run["kind"], run["token"], run["simulated"]) == ("exhausted", None, None, True)


def test_a_variant_that_breaks_it_as_stated_and_its_replay(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "pin", "--variant", "check-before-unmap", "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)
    assert (run["verdict"], run["kind"], run["as_stated"]) == ("violated", "assertion", True)
    assert main(["replay", run["token"]]) == 1
    text = capsys.readouterr().out
    assert "lock_acquire: gmem:invalidate_lock" in text
    assert "the page is private, and pinned as shared" in " ".join(text.split())


def test_all_variants_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "fault-in-flight", "--all-variants"]) == 0
    assert "violated" in capsys.readouterr().out


def test_variants_that_do_harm_only_together(capsys: pytest.CaptureFixture[str]) -> None:
    pins, check = ["--variant", "tdx-pins-private"], ["--variant", "check-both-ways"]
    verdicts = []
    for variants in (pins, check, pins + check):
        assert main(["explore", "tdx-pins", *variants, "--json"]) == 0
        [run] = json.loads(capsys.readouterr().out)
        verdicts.append((run["verdict"], run["kind"]))
    assert verdicts == [("exhausted", None), ("exhausted", None), ("violated", "assertion")]


def test_a_variant_of_the_vmm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "masked-error", "--variant", "vmm-ignores-len", "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)
    assert (run["kind"], run["variants"]) == ("assertion", ["vmm-ignores-len"])
    assert main(["replay", run["token"]]) == 1


def test_a_bound_makes_it_incomplete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "populate-abba", "--seconds", "0", "--json"]) == 10
    [run] = json.loads(capsys.readouterr().out)
    assert run["verdict"] == "incomplete"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["explore", "pim"], "did you mean pin"),
        (["explore", "pin", "--variant", "no-lru-drian"], "did you mean no-lru-drain"),
        (["replay", "nonsense"], "is no replay token"),
        (["replay", "pin:9"], "doesn't fit"),
    ],
)
def test_bad_input_is_one_sentence(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_variants_say_what_they_break(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "--json"]) == 0
    listed = {v["name"]: v for v in json.loads(capsys.readouterr().out)}
    assert "populate-abba" in listed["populate-gup-under-lock"]["breaks"]


def test_two_processes_and_few_preemptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "pin", "--json"]) == 0
    [one] = json.loads(capsys.readouterr().out)
    assert main(["explore", "pin", "--jobs", "2", "--json"]) == 0
    [two] = json.loads(capsys.readouterr().out)
    assert (two["verdict"], two["schedules"]) == (one["verdict"], one["schedules"])
    assert main(["explore", "pin", "--preemptions", "0", "--json"]) == 10
    [few] = json.loads(capsys.readouterr().out)
    assert few["schedules"] < one["schedules"]


def test_drawn_schedules_find_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["explore", "fault-in-flight", "--variant", "no-reference-check", "--strategy", "pct", "--seed", "1", "--json"]
    assert main(asked) == 0
    [run] = json.loads(capsys.readouterr().out)
    assert (run["verdict"], run["kind"]) == ("violated", "invariant")

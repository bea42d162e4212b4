# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu explore`, `replay` and `variants`."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from gmemu.cli.explore import CHECKPOINT, _Interrupt
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


def explored(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    code = main(["explore", *argv, "--json"])
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return code, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_is_interrupted_can_be_gone_on_with(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["error-offset", "pin-retry", "attribute-lookup", "--no-symmetry"]
    _, whole = explored(asked, capsys)
    runs = itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr(_Interrupt, "__call__", lambda self: next(runs) == 12)
        code, part = explored(asked, capsys)
    assert (code, [row["verdict"] for row in part]) == (130, ["exhausted", "incomplete"])
    assert (part[1]["bound"], part[1]["checkpoint"]) == ("interrupted", CHECKPOINT)
    code, rest = explored(["--resume", CHECKPOINT, "--jobs", jobs], capsys)
    assert (code, rest) == (0, whole)


def test_a_bound_leaves_a_checkpoint_if_one_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "left")
    _, [whole] = explored(["source-converted"], capsys)
    code, [part] = explored(["source-converted", "--schedules", "20", "--checkpoint", file], capsys)
    assert (code, part["bound"], part["schedules"], part["checkpoint"]) == (10, "schedules", 20, file)
    code, [more] = explored(["--resume", file, "--schedules", "30"], capsys)
    assert (code, more["schedules"]) == (10, 30)
    code, [rest] = explored(["--resume", file, "--schedules", "10000"], capsys)
    assert (code, rest) == (0, whole)


@pytest.mark.parametrize(
    ("text", "argv", "said"),
    [
        ("{}", [], "isn't a checkpoint of gmemu explore"),
        ("[", [], "isn't a checkpoint of gmemu explore"),
        ('{"gmemu": "explore checkpoint 99"}', [], "is of another version"),
        ("{}", ["pin"], "name no scenarios"),
    ],
)
def test_what_is_no_checkpoint(
    text: str, argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text(text)
    assert main(["explore", *argv, "--resume", str(tmp_path / "file")]) == 2
    assert said in capsys.readouterr().err


def test_the_second_interrupt_is_meant() -> None:
    with _Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_reductions_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    _, [reduced] = explored(["slot-release"], capsys)
    code, [full] = explored(["slot-release", "--no-reduction", "--no-symmetry", "--no-restore", "--schedules", "50"], capsys)
    assert (code, full["schedules"]) == (10, 50)
    assert reduced["schedules"] < 50

# SPDX-License-Identifier: GPL-2.0-or-later
"""What was asked of `gmemu explore` and how far it is, in a file.

JSON: ``gmemu`` names the format, ``options`` are `Options` by name, and ``runs`` has for each search the scenario, its
variants, and the result: none if it hasn't begun, one with ``left`` if it can be gone on with (`saved.Saved`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from .options import Options, Result
from .saved import Saved
from .verdict import Kind, Outcome

__all__ = ["Checkpoint", "CheckpointError", "Run"]

_FORMAT = "explore checkpoint 1"


class CheckpointError(ValueError):
    """The file is no checkpoint, or one of another version: a sentence."""


class Run(NamedTuple):
    """One search."""

    scenario: str
    variants: tuple[str, ...]
    result: Result | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.result is not None and self.result.left is None


class Checkpoint(NamedTuple):
    """All that was asked for."""

    options: Options
    runs: tuple[Run, ...]

    def save(self, path: Path) -> None:
        """Write it; a file that is there is replaced by the whole of it or not at all."""
        runs = [
            {"scenario": run.scenario, "variants": list(run.variants), "result": run.result and _result_data(run.result)}
            for run in self.runs
        ]
        text = json.dumps({"gmemu": _FORMAT, "options": self.options._asdict(), "runs": runs}, indent=1)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(text + "\n")
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read one.  Raises `CheckpointError`, or `OSError`."""
        try:
            data = json.loads(path.read_text())
            if data["gmemu"] != _FORMAT:
                raise CheckpointError(f"{path} is of another version: {data['gmemu']!r}, and this one reads {_FORMAT!r}")
            runs = tuple(
                Run(str(run["scenario"]), tuple(map(str, run["variants"])), _result(run["result"])) for run in data["runs"]
            )
            return cls(Options(**data["options"]), runs)
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
            raise CheckpointError(f"{path} isn't a checkpoint of gmemu explore ({type(error).__name__}: {error})") from None


_PLAIN = ("schedules", "steps", "seconds", "detail", "bound", "preemptions")


def _result_data(result: Result) -> dict[str, Any]:
    """A result without its trace and its states, which nobody is told of later."""
    data = {name: getattr(result, name) for name in _PLAIN}
    data.update(outcome=result.outcome, kind=result.kind, choices=list(result.choices))
    data["left"] = result.left.data() if result.left is not None else None
    return data


def _result(data: dict[str, Any] | None) -> Result | None:
    if data is None:
        return None
    return Result(
        outcome=Outcome(data["outcome"]),
        states=frozenset(),
        kind=Kind(data["kind"]) if data["kind"] else None,
        choices=tuple(map(int, data["choices"])),
        left=Saved.of_data(data["left"]) if data["left"] is not None else None,
        **{name: data[name] for name in _PLAIN},
    )

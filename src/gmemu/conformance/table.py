# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of probe -> result as JSON: what a kernel did, which kernel that was, how it was built, and when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..uapi.kvm import VmType
from .backends import Backend
from .features import Features
from .outcome import Outcome
from .runner import Results

__all__ = ["Table", "TableError", "load", "of_results", "save"]

_WHAT = "gmemu conformance table"
_VERSION = 1


class TableError(ValueError):
    """The file is no table, or not one of this version; the message says which."""


@dataclass
class Table:
    """One run.  `kernel` is x.y, or the profile's name for the emulation; `profile` is what should behave alike."""

    backend: str
    kernel: str
    profile: str
    date: str
    features: Features
    results: Results = field(default_factory=Results)


def of_results(backend: Backend, results: Results) -> Table:
    """The table of a run that was made now."""
    today = datetime.now(UTC).date().isoformat()
    return Table(backend.name, backend.kernel, backend.profile, today, backend.features, results)


def save(table: Table, path: Path) -> None:
    """Write the table; results only, as a real kernel gives no rules."""
    data = {
        "what": _WHAT,
        "version": _VERSION,
        "backend": table.backend,
        "kernel": table.kernel,
        "profile": table.profile,
        "date": table.date,
        "configuration": _features_to_json(table.features),
        "probes": {probe: outcome.result for probe, outcome in table.results.probes.items()},
        "skipped": table.results.skipped,
    }
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Table:
    """Read a table.  Raises `TableError` or OSError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["what"] != _WHAT or data["version"] != _VERSION:
            raise TableError(f"{path} is {data['what']!r} version {data['version']}, not {_WHAT!r} version {_VERSION}")
        probes = {probe: Outcome(result) for probe, result in data["probes"].items()}
        return Table(
            data["backend"],
            data["kernel"],
            data["profile"],
            data["date"],
            _features_from_json(data["configuration"]),
            Results(probes, dict(data["skipped"])),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise TableError(f"{path} isn't a {_WHAT}: {error}") from None


def _features_to_json(features: Features) -> dict[str, Any]:
    data = features._asdict()
    data["gmem_flags"] = {vm_type.name.lower(): flags for vm_type, flags in features.gmem_flags.items()}
    return data


def _features_from_json(data: Mapping[str, Any]) -> Features:
    flags = {VmType[name.upper()]: value for name, value in data["gmem_flags"].items()}
    return Features(**{**data, "gmem_flags": flags})

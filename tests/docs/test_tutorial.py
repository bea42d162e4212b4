# SPDX-License-Identifier: GPL-2.0-or-later
"""Every block of Python in the tutorial and the README runs, and prints what stands below it."""

from __future__ import annotations

from typing import Any

import pytest

from .blocks import ROOT, examples, printed


@pytest.mark.parametrize(
    "name", ["README.md", "docs/tutorial.md", "docs/rules.md", "docs/profiles.md", "docs/faults.md", "docs/vmm.md"]
)
def test_examples_print_what_they_say(name: str) -> None:
    path = ROOT / name
    namespace: dict[str, Any] = {}
    found = list(examples(path))
    assert found, f"{name} has no example"
    for block, said in found:
        assert printed(block, path, namespace) == said, f"{name}, line {block.line}"

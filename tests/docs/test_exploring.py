# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/exploring.md: its program is exhausted, as it says."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/exploring.md"


def test_the_program_runs() -> None:
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(program, str(PAGE), "exec"), names)
    assert getattr(names["result"], "kind", "") is None

# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m bench [NAME...]`: run the benchmarks and print the figures.  Nothing fails for being slow."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = ("launch_digest", "mrtd", "rim", "conversion", "footprint", "start_up", "exec", "explorer", "promela", "states")
WHEN_NAMED = ("states_12",)


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all but those that take too long."""
    unknown = [name for name in names if name not in NAMES + WHEN_NAMED]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES + WHEN_NAMED)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        print(f"# {name}", flush=True)
        for figure in import_module(f"bench.{name}").figures():
            verdict = {True: "met", False: "missed", None: "no goal"}[figure.met]
            goal = f"goal {figure.goal}: {verdict}" if figure.goal else verdict
            note = f"  ({figure.note})" if figure.note else ""
            print(f"{figure.what}: {figure.value:.2f} {figure.unit}  [{goal}]{note}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

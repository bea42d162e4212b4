# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the soak: vCPU threads that convert, touch, map, punch and run a guest at random, with failures on order.

python -m tests.exec.soak --seconds 600
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["ORDERS", "command"]

ORDERS = (
    "ref offset=0x1000 p=0.05 seed=1 times=all during=KVM_SET_MEMORY_ATTRIBUTES2",
    "call KVM_SET_MEMORY_ATTRIBUTES2 p=0.02 seed=2 times=all -> EBUSY",
    "call KVM_SET_MEMORY_ATTRIBUTES2 p=0.02 seed=3 times=all -> EAGAIN",
    "call KVM_RUN p=0.02 seed=4 times=all -> EBUSY",
    "call KVM_RUN p=0.02 seed=5 times=all -> EINTR",
    "alloc gmem-attributes p=0.02 seed=6 times=all -> ENOMEM",
)


def command(program: Path, seconds: int) -> list[str]:
    """What to run."""
    orders = [word for order in ORDERS for word in ("--inject", order)]
    return [sys.executable, "-m", "gmemu", "exec", *orders, "--", str(program), str(seconds)]


def main() -> int:
    """Compile and run it; its own exit status is the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "soak"
        source = Path(__file__).parent / "programs/soak.c"
        subprocess.run(["cc", "-O1", "-o", str(program), str(source), "-pthread"], check=True)
        try:
            return subprocess.run(command(program, args.seconds), check=False, timeout=args.seconds + 120).returncode
        except subprocess.TimeoutExpired:
            print("soak: it hangs", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())

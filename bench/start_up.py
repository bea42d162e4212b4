# SPDX-License-Identifier: GPL-2.0-or-later
"""How long it takes to begin: importing gmemu, and `gmemu measure` as a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .figures import Figure, fresh_process, run_here

RUNS = 9

IMPORT = """
import time
start = time.perf_counter()
import gmemu
gmemu.Kvm
print((time.perf_counter() - start) * 1e3)
"""

IMAGE = """
import sys
from gmemu.launch.synth import make_firmware
open(sys.argv[1], "wb").write(make_firmware(2 << 20, seed=1))
print(0)
"""


def _measure(image: str) -> float:
    """Milliseconds of wall time of one `gmemu measure snp`."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "gmemu", "measure", "snp", "--firmware", image]
    start = time.perf_counter()
    subprocess.run([*command, "--vcpus", "4", "--vcpu-type", "EPYC-v4"], env=env, check=True, capture_output=True)
    return (time.perf_counter() - start) * 1e3


def figures() -> Iterator[Figure]:
    """With the distribution's OVMF where there is one, else with a synthetic image of the same size."""
    imported = run_here(RUNS, lambda: fresh_process(IMPORT))
    yield Figure("import gmemu and its Kvm", imported, "ms", "< 60 ms", imported < 60)
    distribution = Path("/usr/share/ovmf/OVMF.fd")
    with tempfile.TemporaryDirectory() as folder:
        image = str(distribution if distribution.exists() else Path(folder) / "image.fd")
        if not distribution.exists():
            fresh_process(IMAGE, image)
        wall = run_here(RUNS, lambda: _measure(image))
    what = "OVMF.fd" if distribution.exists() else "a synthetic 2 MiB image"
    yield Figure(f"gmemu measure snp of {what}, whole process", wall, "ms", "< 150 ms", wall < 150)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The RIM of a realm with 256 MiB to load: by a launch on the emulated host, and computed alone, beside bare hashing."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .figures import Figure, fresh_process

SIZE = 256 << 20
RUNS = 5

_IMAGE = """
import sys, time
from gmemu.launch.cca import CcaImage, compute_rim, measure_cca, plan_cca
from gmemu.launch.cca_synth import make_kernel
size = int(sys.argv[1])
initrd = bytes(range(256)) * (size >> 8)
plan = plan_cca(CcaImage("image", kernel=make_kernel(4096), initrd=initrd))
"""

LAUNCH = _IMAGE + "t = time.perf_counter(); rim = measure_cca(plan); print(time.perf_counter() - t)"
COMPUTE = _IMAGE + "t = time.perf_counter(); rim = compute_rim(plan); print(time.perf_counter() - t)"

BARE = """
import sys, time
from hashlib import sha256
size = int(sys.argv[1])
view, descriptor = memoryview(bytes(range(256)) * (size >> 8)), bytes(256)
t = time.perf_counter()
for at in range(0, size, 4096):
    sha256(view[at : at + 4096]).digest()
    sha256(descriptor).digest()
print(time.perf_counter() - t)
"""


def figures() -> Iterator[Figure]:
    """Bare hashing is what can't be saved: each page and each descriptor through SHA-256, on one core."""
    launches, computed, bare = [], [], []
    for _ in range(RUNS):
        launches.append(fresh_process(LAUNCH, str(SIZE)))
        computed.append(fresh_process(COMPUTE, str(SIZE)))
        bare.append(fresh_process(BARE, str(SIZE)))
    limit = median(bare)
    for what, took in (("computed", median(computed)), ("by a launch", median(launches))):
        yield Figure(
            f"RIM, 256 MiB, {what}, against bare hashing",
            limit / took,
            "x",
            ">= 0.8 x",
            limit / took >= 0.8,
            f"{took:.3f} s ({(SIZE >> 12) / took:,.0f} pages/s) against {limit:.3f} s",
        )

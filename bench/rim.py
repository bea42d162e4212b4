# SPDX-License-Identifier: GPL-2.0-or-later
"""The RIM of a realm with 256 MiB to load: by a launch on the emulated host, and computed alone, beside bare hashing."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .figures import Figure, against, fresh_process

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

LAUNCH = _IMAGE + "t = time.process_time(); rim = measure_cca(plan); print(time.process_time() - t)"
COMPUTE = _IMAGE + "t = time.process_time(); rim = compute_rim(plan); print(time.process_time() - t)"

BARE = """
import sys, time
from hashlib import sha256
size = int(sys.argv[1])
view, descriptor = memoryview(bytes(range(256)) * (size >> 8)), bytes(256)
t = time.process_time()
for at in range(0, size, 4096):
    sha256(view[at : at + 4096]).digest()
    sha256(descriptor).digest()
print(time.process_time() - t)
"""


COPY = """
import os, sys, time
size = int(sys.argv[1])
contents = memoryview(bytes(range(256)) * (size >> 8))
fd = os.memfd_create("bench")
os.ftruncate(fd, size)
t = time.process_time()
for at in range(0, size, 2 << 20):
    os.pwrite(fd, contents[at : at + (2 << 20)], at)
print(time.process_time() - t)
"""


def figures() -> Iterator[Figure]:
    """Bare hashing is what can't be saved: each page and each descriptor through SHA-256, on one core.  A launch also has to
    put the pages into memory that is new; the last figure has that on both sides.  All is done by one thread, so
    processor time is what's compared."""
    launches, computed, bare, copied = [], [], [], []
    for _ in range(RUNS):
        launches.append(fresh_process(LAUNCH, str(SIZE)))
        computed.append(fresh_process(COMPUTE, str(SIZE)))
        bare.append(fresh_process(BARE, str(SIZE)))
        copied.append(fresh_process(COPY, str(SIZE)))
    yield from against("RIM", SIZE, median(computed), median(launches), median(bare), median(copied))

# SPDX-License-Identifier: GPL-2.0-or-later
"""MRTD of a TD with 256 MiB to load: by a launch on the emulated host, and computed alone, beside bare hashing."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .figures import Figure, against, fresh_process
from .rim import COPY, RUNS, SIZE

_IMAGE = """
import sys, time
from gmemu.launch.ovmf import Firmware
from gmemu.launch.td_synth import make_tdvf, tdvf_sections
from gmemu.launch.tdx import compute_mrtd, measure_tdx, plan_tdx
size = int(sys.argv[1])
plan = plan_tdx(Firmware.from_bytes(make_tdvf(size), "image"))
"""

LAUNCH = _IMAGE + "t = time.process_time(); measure_tdx(plan); print(time.process_time() - t)"
COMPUTE = _IMAGE + "t = time.process_time(); compute_mrtd(plan); print(time.process_time() - t)"

BARE = """
import sys, time
from hashlib import sha384
size = int(sys.argv[1])
page, stream = bytes(128 + 16 * (128 + 256)), sha384()
t = time.process_time()
for at in range(0, size, 4096):
    stream.update(page)
stream.digest()
print(time.process_time() - t)
"""


def figures() -> Iterator[Figure]:
    """Bare hashing is what can't be saved: what a page puts into MRTD, 6272 bytes, through SHA-384.  All is
    done by one thread, so processor time is what's compared."""
    launches, computed, bare, copied = [], [], [], []
    for _ in range(RUNS):
        launches.append(fresh_process(LAUNCH, str(SIZE)))
        computed.append(fresh_process(COMPUTE, str(SIZE)))
        bare.append(fresh_process(BARE, str(SIZE)))
        copied.append(fresh_process(COPY, str(SIZE)))
    yield from against("MRTD", SIZE, median(computed), median(launches), median(bare), median(copied))

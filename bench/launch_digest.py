# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch digest of a 256 MiB image: through the emulated host, with a per-page log, beside sev-snp-measure."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from .figures import Figure, fresh_process

SIZE = 256 << 20
RUNS = 7

IMAGE = """
import sys
from gmemu.launch.synth import make_firmware
open(sys.argv[1], "wb").write(make_firmware(int(sys.argv[2]), seed=1))
print(0)
"""

OURS = """
import sys, time
from gmemu.launch.ovmf import Firmware
from gmemu.launch.plan import plan_snp
from gmemu.launch.snp import SnpLaunch
from gmemu import Kvm
rows = []
start = time.perf_counter()
plan = plan_snp(Firmware.load(sys.argv[1]), 1, "EPYC-v4", 0x1)
with Kvm.open() as kvm:
    launch = SnpLaunch(kvm, plan, progress=lambda done, total: None)
    digest = launch.run()
    took = time.perf_counter() - start
print(digest.hex(), file=sys.stderr)
print(took)
"""

PEER = """
import sys, time
from sevsnpmeasure.guest import snp_calc_launch_digest
from sevsnpmeasure.vcpu_types import CPU_SIGS
start = time.perf_counter()
digest = snp_calc_launch_digest(1, CPU_SIGS["EPYC-v4"], sys.argv[1], None, None, None, 1, "")
took = time.perf_counter() - start
print(digest.hex(), file=sys.stderr)
print(took)
"""


def figures() -> Iterator[Figure]:
    """Whole job each: read the file, plan, launch or compute; processes of their own, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        image = str(Path(folder) / "image.fd")
        fresh_process(IMAGE, image, str(SIZE))
        ours, peer = [], []
        for _ in range(RUNS):
            ours.append(fresh_process(OURS, image))
            peer.append(fresh_process(PEER, image))
    ratio = median(peer) / median(ours)
    pages = SIZE >> 12
    yield Figure(
        "launch digest, 256 MiB, against sev-snp-measure",
        ratio,
        "x",
        ">= 1.5 x",
        ratio >= 1.5,
        f"{median(ours):.3f} s ({pages / median(ours):,.0f} pages/s) against {median(peer):.3f} s",
    )

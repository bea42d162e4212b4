# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on Ray: the jobs' results come back as from processes of this machine.  In a process of its own: Ray leaves
sockets and threads behind that pytest would complain of."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="Ray isn't installed: pip install 'gmemu[ray]'")

CAMPAIGN = """
import json
from gmemu.conformance.fuzz.campaign import Job, run_jobs

if __name__ == "__main__":
    jobs = [Job("emulated", "linux-6.18", "", seed, 60) for seed in (1, 2)]
    results = [list(run_jobs(jobs, engine)) for engine in ("ray", "local")]
    print(json.dumps([sorted((r.seed, r.steps, r.finding is None, r.unavailable) for r in found) for found in results]))
"""


def test_a_campaign_on_ray_is_the_same_campaign() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    done = subprocess.run([sys.executable, "-c", CAMPAIGN], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    on_ray, here = json.loads(done.stdout.splitlines()[-1])
    assert on_ray == here
    assert [(seed, found, why) for seed, _, found, why in on_ray] == [(1, True, ""), (2, True, "")]
    assert all(steps >= 60 for _, steps, _, _ in on_ray)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on a Ray cluster of two nodes comes to what one process comes to, though one of them is lost on the way.

The cluster is one of this machine, on its loopback interface, in a process of its own: Ray leaves sockets and threads behind
that pytest would complain of."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="Ray isn't installed: pip install 'gmemu[ray]'")

CAMPAIGN = """
import json

import ray
from ray.cluster_utils import Cluster

from gmemu.conformance.fuzz.campaign import Job, run_jobs

HERE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
machines = Cluster(initialize_head=True, connect=True, head_node_args=HERE)
second = machines.add_node(num_cpus=1, node_ip_address="127.0.0.1")
jobs = [Job("emulated", "linux-6.18", "", seed, 60) for seed in (1, 2, 3, 4)]
on_ray = []
for result in run_jobs(jobs, "ray"):
    on_ray.append(result)
    if second is not None:
        machines.remove_node(second, allow_graceful=False)
        second = None
ray.shutdown()
machines.shutdown()
here = [result for job in jobs for result in run_jobs([job])]
print("RESULT", json.dumps([
    sorted((r.seed, r.steps, r.finding is None, r.unavailable) for r in results) for results in (on_ray, here)
]))
"""


def test_a_campaign_on_ray_is_the_same_campaign() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # loopback only
    done = subprocess.run([sys.executable, "-c", CAMPAIGN], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    on_ray, here = json.loads(done.stdout.partition("RESULT")[2])
    assert on_ray == here
    assert [(seed, found, why) for seed, _, found, why in on_ray] == [(seed, True, "") for seed in (1, 2, 3, 4)]
    assert all(steps >= 60 for _, steps, _, _ in on_ray)

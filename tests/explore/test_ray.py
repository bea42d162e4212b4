# SPDX-License-Identifier: GPL-2.0-or-later
"""A search on a Ray cluster of two nodes comes to what one process comes to, also when one of them is lost.

The cluster is one of this machine, on its loopback interface, in a process of its own: Ray leaves sockets and threads behind
that pytest would complain of.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="Ray isn't installed: pip install 'gmemu[ray]'")

SEARCHES = """
import json
from functools import partial

import ray
from ray.cluster_utils import Cluster

from gmemu.explore import Watch, explore
from gmemu.explore.on_ray import on_ray
from gmemu.explore.parallel import explore_parallel
from gmemu.scenarios import CATALOGUE

HERE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
machines = Cluster(initialize_head=True, connect=True, head_node_args=HERE)
second = machines.add_node(num_cpus=1, node_ip_address="127.0.0.1")
nodes = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


def told(result):
    return [result.outcome, result.kind, result.schedules, result.steps, sorted(map(repr, result.states)), result.choices]


def small_parts(build, options, workers):
    engine = on_ray(ray)(build, options, workers)
    engine.seconds = 0.01
    return engine


def compare(name, variants=(), watch=None, **options):
    build = partial(CATALOGUE[name], variants)
    there = explore_parallel(build, 2, engine=small_parts, alone=0, watch=watch, **options)
    return told(explore(build, **options)) == told(there)


def lose(progress):
    global second
    if second is not None:
        machines.remove_node(second, allow_graceful=False)
        second = None


same = [
    compare("source-converted"),
    compare("guest-fault-to-shared", ("no-seq-retry",)),
    compare("populate-abba", strategy="pct", seed=2, max_schedules=120),
    compare("populate-abba", watch=Watch(lose, every=0)),
]
ray.shutdown()
machines.shutdown()
print("RESULT", json.dumps([nodes, same, second is None]))
"""


def environment() -> dict[str, str]:
    """Loopback only: Ray else takes an address that other machines could reach."""
    mine = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**mine, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def test_two_nodes_of_which_one_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", SEARCHES], capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    nodes, same, lost = json.loads(done.stdout.partition("RESULT")[2])
    assert nodes == ["127.0.0.1"] * 2
    assert same == [True] * 4
    assert lost


def test_the_command() -> None:
    command = [sys.executable, "-m", "gmemu", "explore", "source-converted", "--json", "--engine"]
    done = [
        subprocess.run([*command, engine], capture_output=True, text=True, timeout=300, env=environment())
        for engine in ("ray", "local")
    ]
    assert [run.returncode for run in done] == [0, 0], done[0].stderr
    [[there], [here]] = (json.loads(run.stdout) for run in done)
    assert {**there, "seconds": 0} == {**here, "seconds": 0}

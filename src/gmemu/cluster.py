# SPDX-License-Identifier: GPL-2.0-or-later
"""Ray (extra ``gmemu[ray]``): the cluster that RAY_ADDRESS names, or one of this machine, on its loopback interface."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["EngineMissing", "connected"]


class EngineMissing(Exception):
    """A package is needed that isn't installed; the message says which."""


@contextmanager
def connected(workers: int | None = None) -> Iterator[Any]:
    """The module `ray`, connected.  A cluster of our own has so many `workers` (default: one for each CPU), and is gone with
    the block; who is connected already stays it.  Raises `EngineMissing`.
    """
    try:
        import ray  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise EngineMissing("--engine ray needs Ray: pip install 'gmemu[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        own = {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "num_cpus": workers}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        yield ray
    finally:
        ray.shutdown()

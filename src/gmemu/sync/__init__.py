# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks, atomics, tasks and scheduling points."""

from __future__ import annotations

from .direct import DirectRuntime
from .lockdep import Lockdep
from .runtime import Atomic, Deadlock, Lock, Runtime, RWLock, Srcu, Task

__all__ = ["Atomic", "Deadlock", "DirectRuntime", "Lock", "Lockdep", "RWLock", "Runtime", "Srcu", "Task"]

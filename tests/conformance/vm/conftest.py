# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent as a process of this machine: all of the door but QEMU."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gmemu.conformance.vm.build import Unavailable, agent_program
from gmemu.syscalls.agent import AgentDoor
from gmemu.syscalls.channel import SocketChannel


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path.parent))
        try:
            path.write_bytes(agent_program())
        except Unavailable as reason:
            pytest.skip(str(reason))
    path.chmod(0o755)
    return path


@pytest.fixture
def door(agent: Path) -> Iterator[AgentDoor]:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen([str(agent)], stdin=theirs.fileno(), stdout=theirs.fileno())
        try:
            channel = SocketChannel(ours, timeout=30)
            yield AgentDoor(channel, "local")
            channel.close()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots a kernel in QEMU, with software emulation of the processor (SVM and nested paging too), and reaches its agent.

Nothing is shared with the machine but one virtio-serial port, which is a socket pair here, and the serial console, which is
a file.  The machine ends when the socket is closed, when QEMU is killed, and when this process dies.

Time in the machine is the count of its instructions (16 ns each), so that how busy this machine is doesn't matter there:
with QEMU's usual clocks, calibration of the TSC failed on a loaded machine, and then KVM_RUN never enters the guest.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ...syscalls.agent import AgentDoor
from ...syscalls.channel import AgentLost, Channel, SocketChannel
from .build import Unavailable, agent_program, cached_kernel
from .cpio import initramfs
from .klog import find_splats

__all__ = ["MachineDoor", "boot"]

_QEMU = "qemu-system-x86_64"
_CMDLINE = "console=ttyS0 loglevel=6 panic=-1 reboot=t norandmaps pci=conf1 tsc=reliable tsc_early_khz=1000000 lpj=1000000"
_ACCELERATION = ("-accel", "tcg,thread=single", "-icount", "shift=4")
_CPU = "max,la57=off,phys-bits=48"
"""With LA57, user space would end at 2^56; most machines haven't got it, and the emulation is like them.  Physical addresses
end where the emulated machine's do (`Host.maxphyaddr`), and so do slots."""

_PR_SET_PDEATHSIG = 1
_GOODBYE = 10.0
"""Seconds that a machine has to end by itself."""


class MachineDoor(AgentDoor):
    """The door to a booted kernel, with its log."""

    def __init__(self, channel: Channel, log: Path) -> None:
        self._log = log
        super().__init__(channel)

    def log(self) -> str:
        """What the kernel has said on its console."""
        return self._log.read_text(errors="replace")

    def splats(self) -> list[str]:
        """Warnings, bugs and lockdep's reports so far; there should be none."""
        return find_splats(self.log())


@contextmanager
def boot(version: str = "6.12", *, cpus: int = 1, memory: int = 768, timeout: float = 60.0) -> Iterator[MachineDoor]:
    """A machine that runs Linux `version` (see `build.VERSIONS`), built before.

    `memory` is in MiB; `timeout` (seconds) bounds the boot, and later each answer of the agent.  Raises `Unavailable` where
    the kernel or a tool is missing, `AgentLost` if the machine doesn't come up.
    """
    qemu = shutil.which(_QEMU)
    if qemu is None:
        raise Unavailable(f"{_QEMU} isn't here: install qemu-system-x86")
    kernel, agent = cached_kernel(version), agent_program()
    with TemporaryDirectory(prefix="gmemu-vm-") as scratch:
        room = Path(scratch)
        (room / "initrd").write_bytes(initramfs(agent))
        ours, theirs = socket.socketpair()
        command = [qemu, *_arguments(kernel, room, theirs.fileno(), cpus, memory)]
        with ours, (room / "qemu.log").open("wb") as said:
            with theirs:
                process = _start(command, theirs.fileno(), said.fileno())
            try:
                channel = SocketChannel(ours, timeout, lambda: _obituary(room))
                door = MachineDoor(channel, room / "console")
                yield door
                with suppress(AgentLost):
                    door.exit()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GOODBYE)
            finally:
                process.kill()
                process.wait()


def _arguments(kernel: Path, room: Path, fd: int, cpus: int, memory: int) -> list[str]:
    return [
        *("-machine", "q35", *_ACCELERATION, "-cpu", _CPU, "-smp", str(cpus), "-m", str(memory)),
        *("-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-monitor", "none"),
        *("-kernel", str(kernel), "-initrd", str(room / "initrd"), "-append", _CMDLINE),
        *("-serial", f"file:{room / 'console'}", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,fd={fd}", "-device", "virtserialport,chardev=agent,name=agent"),
    ]


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _start(command: list[str], fd: int, output: int) -> subprocess.Popen[bytes]:
    """QEMU, killed by the kernel if the thread that started it dies."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(fd,),
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


def _obituary(room: Path) -> str:
    """The ends of QEMU's and the kernel's logs."""
    said = [(name, room / file) for name, file in (("QEMU", "qemu.log"), ("the kernel", "console"))]
    tails = [(name, path.read_text(errors="replace")[-2000:].strip()) for name, path in said if path.exists()]
    return "\n".join(f"{name} said last:\n{tail}" for name, tail in tails if tail)

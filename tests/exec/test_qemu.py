# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's QEMU, as it is: `-accel kvm` gets the emulated KVM, and guests print on its serial port.

The guests are a few bytes of machine code: a firmware image, whose reset vector is all there is of a firmware, and a boot
sector that SeaBIOS starts.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from .conftest import Exec

pytest.importorskip("unicorn", reason="guests of machine code need gmemu[exec]")
if shutil.which("qemu-system-x86_64") is None:
    pytest.skip("qemu-system-x86_64 isn't installed (Debian: qemu-system-x86)", allow_module_level=True)

HELLO = b"hello from the guest\r\n"
EXITED = 33
"""QEMU's exit status when a guest stores 16 at isa-debug-exit"""
_SERIAL = b"\xba\xf8\x03"  # mov dx, 0x3f8
_LOOP = b"\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # again: lodsb; test al, al; jz out; out dx, al; jmp again
_EXIT = b"\xb0\x10\xe6\xf4\xf4\xeb\xfd"  # out: mov al, 16; out 0xf4, al; hlt; jmp
_DEBUG_EXIT = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4")


def _printer(segment: bytes, origin: int) -> bytes:
    """Code in real mode that prints HELLO, when loaded at `origin` of a segment that `segment` has put into DS."""
    body = _SERIAL + _LOOP + _EXIT
    text = origin + len(segment) + 4 + len(body)
    return segment + b"\xfc\xbe" + text.to_bytes(2, "little") + body + HELLO + b"\0"  # cld; mov si, text


def firmware() -> bytes:
    """64 KiB below 4 GiB and below 1 MiB; the reset vector is 16 bytes before the end."""
    code = _printer(b"\x8c\xc8\x8e\xd8", 0)  # mov ax, cs; mov ds, ax
    return code.ljust(0xFFF0, b"\xf4") + b"\xea\x00\x00\x00\xf0" + bytes(11)  # jmp f000:0000


def boot_sector() -> bytes:
    """What a BIOS loads at 0x7c00."""
    return _printer(b"\x31\xc0\x8e\xd8", 0x7C00).ljust(510, b"\0") + b"\x55\xaa"


def _qemu(gmemu_exec: Exec, *arguments: str, options: tuple[str, ...] = ()) -> CompletedProcess[str]:
    common = ("-accel", "kvm", "-m", "64", "-nodefaults", "-display", "none", "-serial", "stdio", *_DEBUG_EXIT)
    return gmemu_exec("qemu-system-x86_64", *common, *arguments, options=options)


@pytest.mark.parametrize(
    "machine",
    [
        ("-machine", "pc"),
        ("-machine", "q35", "-smp", "2"),
        ("-machine", "microvm"),
        ("-machine", "pc,kernel-irqchip=split", "-cpu", "host"),
        ("-machine", "pc,kernel-irqchip=off", "-cpu", "max"),
    ],
    ids=lambda words: "-".join(word.strip("-") for word in words[1:]),
)
def test_a_guest_prints(tmp_path: Path, gmemu_exec: Exec, machine: tuple[str, ...]) -> None:
    image = tmp_path / "firmware"
    image.write_bytes(firmware())
    done = _qemu(gmemu_exec, *machine, "-bios", str(image))
    assert done.returncode == EXITED, done.stderr
    assert HELLO.decode().strip() in done.stdout


def test_seabios_boots_a_disk(tmp_path: Path, gmemu_exec: Exec) -> None:
    """QEMU's own firmware runs from the reset vector to a disk, and starts what stands there."""
    disk = tmp_path / "disk"
    disk.write_bytes(boot_sector().ljust(1 << 20, b"\0"))
    debug = tmp_path / "debug"
    console = ("-chardev", f"file,id=debug,path={debug}", "-device", "isa-debugcon,iobase=0x402,chardev=debug")
    done = _qemu(gmemu_exec, "-drive", f"file={disk},format=raw", *console, options=("--profile", "linux-6.12"))
    assert done.returncode == EXITED, done.stderr
    assert "SeaBIOS" in debug.read_text()
    assert HELLO.decode().strip() in done.stdout

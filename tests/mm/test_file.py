# SPDX-License-Identifier: GPL-2.0-or-later
"""Files: what one refuses that knows nothing, the checks before fallocate, references, descriptors."""

from __future__ import annotations

import pytest

from gmemu.mm.address_space import Vma
from gmemu.mm.file import S_IFREG, File, Inode, fput, vfs_fallocate
from gmemu.rules import KernelError
from gmemu.uapi.mman import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_UNSHARE_RANGE,
    FALLOC_FL_WRITE_ZEROES,
    FALLOC_FL_ZERO_RANGE,
)

from .machine import Machine, refusal


class Released(File):
    """Says when it was released."""

    def __init__(self) -> None:
        super().__init__(Inode(S_IFREG))
        self.released = 0

    def release(self) -> None:
        self.released += 1


def test_a_plain_file_refuses_everything(machine: Machine) -> None:
    file = File(Inode(S_IFREG | 0o600))
    vma = Vma(machine.process().mm, 0, 1, 3, True, file, 0)
    refusals = {
        "fs.ioctl.unknown": lambda: file.ioctl(0xAE00, 0),
        "mm.mmap.unsupported": lambda: file.mmap(vma),
        "fs.fallocate.unsupported": lambda: file.fallocate(0, 0, 4096),
        "fs.read.unsupported": lambda: file.read(1),
        "fs.seek.unsupported": lambda: file.pread(1, 0),
        "fs.truncate.unsupported": lambda: file.truncate(0),
        "fs.fsync.unsupported": file.fsync,
    }
    assert [refusal(call) for call in refusals.values()] == list(refusals)
    assert refusal(lambda: file.write(b"x")) == "fs.read.unsupported"
    assert refusal(lambda: file.pwrite(b"x", 0)) == "fs.seek.unsupported"
    assert refusal(lambda: file.fault(vma, 0, 1, False, 0)) == "mm.mmap.unsupported"
    assert not file.can_mmap
    assert file.stat().mode == S_IFREG | 0o600


MODES = {
    "fs.fallocate.mode": [
        FALLOC_FL_PUNCH_HOLE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_INSERT_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_WRITE_ZEROES | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE,
        4,
        0x100,
    ],
    "fs.fallocate.unsupported": [
        0,
        FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_ZERO_RANGE,
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_COLLAPSE_RANGE,
        FALLOC_FL_UNSHARE_RANGE,
    ],
}


@pytest.mark.parametrize(("rule", "mode"), [(rule, mode) for rule, modes in MODES.items() for mode in modes])
def test_fallocate_modes(rule: str, mode: int) -> None:
    assert refusal(lambda: vfs_fallocate(File(Inode(S_IFREG)), mode, 0, 4096)) == rule


def test_fallocate_checks_in_order() -> None:
    """Range, mode, type, limit, then the file's own: each call breaks that one and all that come after it."""
    regular, device = File(Inode(S_IFREG)), File(Inode(0o020600))
    most = (1 << 63) - 1
    assert refusal(lambda: vfs_fallocate(device, 0x100, -1, most)) == "fs.fallocate.range"
    assert refusal(lambda: vfs_fallocate(device, 0x100, most, 0)) == "fs.fallocate.range"
    assert refusal(lambda: vfs_fallocate(device, 0x100, most, most)) == "fs.fallocate.mode"
    assert refusal(lambda: vfs_fallocate(device, 0, most, most)) == "fs.fallocate.type"
    assert refusal(lambda: vfs_fallocate(regular, 0, most, most)) == "fs.fallocate.limit"
    assert refusal(lambda: vfs_fallocate(regular, 0, 0, most)) == "fs.fallocate.unsupported"


class TestReferences:
    def test_the_last_one_releases(self) -> None:
        file = Released()
        file.get()
        file.put()
        assert file.released == 0
        file.put()
        assert file.released == 1

    def test_a_released_file_cant_be_had_again(self) -> None:
        file = Released()
        assert file.get_active()
        file.put()
        file.put()
        assert not file.get_active()
        assert file.released == 1

    def test_fput_waits_until_the_task_leaves(self, machine: Machine) -> None:
        file, task = Released(), machine.process().task
        previous = machine.rt.enter(task)
        fput(machine.rt, file)
        assert (file.count, file.released) == (0, 0)
        machine.rt.leave(previous)
        assert file.released == 1


class TestDescriptors:
    def test_the_lowest_free_number(self, machine: Machine) -> None:
        process = machine.process()
        fds = [process.install_fd(Released()) for _ in range(4)]
        assert fds == [3, 4, 5, 6]
        process.close(4)
        process.close(3)
        assert [process.install_fd(Released()) for _ in range(3)] == [3, 4, 7]

    def test_a_reserved_number_isnt_given_again(self, machine: Machine) -> None:
        process = machine.process()
        first = process.get_unused_fd()
        assert process.install_fd(Released()) == first + 1
        assert refusal(lambda: process.file(first)) == "fs.fd"
        process.put_unused_fd(first)
        assert process.install_fd(Released()) == first

    def test_the_limit(self, machine: Machine) -> None:
        process = machine.process()
        process.nofile = 5
        files = [Released() for _ in range(3)]
        assert [process.install_fd(file) for file in files[:2]] == [3, 4]
        with pytest.raises(KernelError) as caught:
            process.install_fd(files[2])
        assert caught.value.rule.id == "fs.fd-limit"
        assert files[2].released == 1

    def test_closing_what_isnt_open(self, machine: Machine) -> None:
        process = machine.process()
        fd = process.install_fd(file := Released())
        process.close(fd)
        assert file.released == 1
        assert refusal(lambda: process.close(fd)) == "fs.fd"

    def test_exit_closes_everything(self, machine: Machine) -> None:
        process = machine.process()
        files = [Released() for _ in range(3)]
        for file in files:
            process.install_fd(file)
        process.exit()
        assert [file.released for file in files] == [1, 1, 1]
        assert process.files == {}

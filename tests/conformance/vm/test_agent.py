# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent and its door, the agent being a process of this machine."""

from __future__ import annotations

import os
import pickle
from errno import EBADF, EBADMSG, ECHILD, EEXIST, EFAULT, EINTR, ENOENT, ENOTTY, ESPIPE
from pathlib import Path

import pytest

from gmemu import BusError, KernelError, SegmentationFault
from gmemu.api import Mapping
from gmemu.syscalls.agent import AgentDoor
from gmemu.syscalls.channel import BUFFER, AgentLost, ChildChannel, Op
from gmemu.uapi.mman import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
)
from gmemu.uapi.unistd import Sys

PAGE = 4096
RW = PROT_READ | PROT_WRITE


def anonymous(door: AgentDoor, pages: int = 1, flags: int = MAP_PRIVATE) -> Mapping:
    return Mapping(door, door.mmap(0, pages * PAGE, RW, MAP_ANONYMOUS | flags), pages * PAGE)


def pipe(door: AgentDoor) -> tuple[int, int]:
    ends = bytearray(8)
    door.syscall(Sys.PIPE, ends)
    return int.from_bytes(ends[:4], "little"), int.from_bytes(ends[4:], "little")


class TestFiles:
    def test_a_file_in_memory(self, door: AgentDoor) -> None:
        fd = door.memfd_create("x")
        door.ftruncate(fd, 3 * PAGE)
        assert door.pwrite(fd, b"hello", PAGE) == 5
        assert door.pread(fd, 7, PAGE - 1) == b"\0hello\0"
        stat = door.fstat(fd)
        assert (stat.size, stat.blksize, stat.blocks) == (3 * PAGE, PAGE, 8)
        door.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, PAGE, PAGE)
        assert door.fstat(fd).blocks == 0
        door.fsync(fd)
        assert door.dup(fd) != fd
        door.close(fd)
        with pytest.raises(KernelError) as caught:
            door.fstat(fd)
        assert caught.value.errno == EBADF

    def test_read_and_write(self, door: AgentDoor) -> None:
        out, into = pipe(door)
        assert door.write(into, b"abc") == 3
        assert door.read(out, 100) == b"abc"

    def test_open(self, door: AgentDoor, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"contents")
        assert door.read(door.open(str(path)), 100) == b"contents"
        with pytest.raises(KernelError) as caught:
            door.open(str(tmp_path / "none"))
        assert caught.value.errno == ENOENT
        assert "none" in str(caught.value)

    def test_own_descriptors_are_out_of_the_way(self, door: AgentDoor) -> None:
        assert door.memfd_create("first") == 3

    def test_the_error_names_call_kernel_and_errno(self, door: AgentDoor) -> None:
        with pytest.raises(KernelError) as caught:
            door.pread(pipe(door)[0], 1, 0)
        error = caught.value
        assert error.errno == ESPIPE
        assert error.rule.id == "local.pread64.ESPIPE"
        assert error.rule.source == f"Linux {os.uname().release}"
        assert pickle.loads(pickle.dumps(error)).rule is error.rule


class TestBuffers:
    FIONREAD = 0x541B

    def test_an_ioctl_fills_the_callers_buffer(self, door: AgentDoor) -> None:
        out, into = pipe(door)
        door.write(into, b"12345")
        buffer = bytearray(4)
        door.ioctl(out, self.FIONREAD, buffer)
        assert int.from_bytes(buffer, "little") == 5

    def test_numbers_go_as_they_are(self, door: AgentDoor) -> None:
        out, _ = pipe(door)
        for pointer in (0, 1, -1, 1 << 63, (1 << 47) - PAGE):
            with pytest.raises(KernelError) as caught:
                door.ioctl(out, self.FIONREAD, pointer)
            assert caught.value.errno == EFAULT
        with pytest.raises(KernelError) as caught:
            door.ioctl(out, 0xC0FFEE, bytearray(8))
        assert caught.value.errno == ENOTTY

    def test_memory_ends_where_the_buffer_does(self, door: AgentDoor) -> None:
        with pytest.raises(KernelError) as caught:
            door.ioctl(pipe(door)[0], self.FIONREAD, bytearray(3))
        assert caught.value.errno == EFAULT

    def test_several_in_one_call(self, door: AgentDoor) -> None:
        memory = anonymous(door)
        memory[:5] = b"there"
        into, size = bytearray(5), (5).to_bytes(8, "little")
        local = anonymous(door)
        iov = bytearray(local.address.to_bytes(8, "little") + size)
        remote = memory.address.to_bytes(8, "little") + size
        assert door.syscall(Sys.PROCESS_VM_READV, door.syscall(Sys.GETPID), iov, 1, remote, 1, 0) == 5
        into[:] = local[:5]
        assert into == b"there"

    def test_too_large(self, door: AgentDoor) -> None:
        with pytest.raises(ValueError, match="too large"):
            door.ioctl(0, 0, bytearray(BUFFER + 1))


class TestMemory:
    def test_load_and_store(self, door: AgentDoor) -> None:
        memory = anonymous(door, 2)
        data = bytes(i * 7 & 0xFF for i in range(PAGE + 1000))
        for at in (0, 1, 7, 1000):
            memory[at : at + len(data)] = data
            assert memory[at : at + len(data)] == data

    def test_more_than_one_request_takes(self, door: AgentDoor) -> None:
        memory = anonymous(door, 2 * BUFFER // PAGE + 1)
        data = os.urandom(len(memory))
        memory[:] = data
        assert memory[:] == data
        memory.madvise(MADV_DONTNEED)
        assert not any(memory[:])

    @pytest.mark.parametrize("start", [PAGE - 1, PAGE - 8, PAGE - 13, 5])
    def test_sigsegv_at_the_first_byte_that_cannot_be_had(self, door: AgentDoor, start: int) -> None:
        memory = anonymous(door, 2)
        door.munmap(memory.address + PAGE, PAGE)
        for access in (
            lambda: door.load(memory.address + start, PAGE),
            lambda: door.store(memory.address + start, bytes(PAGE)),
        ):
            with pytest.raises(SegmentationFault) as caught:
                access()
            assert caught.value.address == memory.address + PAGE
        door.store(memory.address, b"the agent lives on")

    def test_a_protection_is_sigsegv(self, door: AgentDoor) -> None:
        memory = anonymous(door)
        door.mprotect(memory.address, PAGE, PROT_READ)
        assert memory[:4] == bytes(4)
        with pytest.raises(SegmentationFault):
            memory[0] = 1

    def test_beyond_the_end_of_a_file_is_sigbus(self, door: AgentDoor) -> None:
        fd = door.memfd_create("short")
        door.ftruncate(fd, PAGE)
        address = door.mmap(0, 2 * PAGE, RW, MAP_SHARED, fd, 0)
        with pytest.raises(BusError) as caught:
            door.load(address + PAGE - 4, 8)
        assert caught.value.address == address + PAGE
        assert caught.value.rule.id == "local.load.SIGBUS"

    @pytest.mark.parametrize("address", [0, 1 << 47, 1 << 63, (1 << 64) - 1])
    def test_where_no_program_has_memory(self, door: AgentDoor, address: int) -> None:
        with pytest.raises(SegmentationFault) as caught:
            door.load(address, 1)
        assert caught.value.address == address

    def test_mmap_passes_flags_and_address(self, door: AgentDoor) -> None:
        taken = anonymous(door)
        with pytest.raises(KernelError) as caught:
            door.mmap(taken.address, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE)
        assert caught.value.errno == EEXIST


class TestProcesses:
    def test_a_fork_has_memory_of_its_own(self, door: AgentDoor) -> None:
        private, shared = anonymous(door), anonymous(door, flags=MAP_SHARED)
        child = door.fork()
        assert child.syscall(Sys.GETPID) != door.syscall(Sys.GETPID)
        child.store(private.address, b"child")
        child.store(shared.address, b"child")
        assert private[:5] == bytes(5)
        assert shared[:5] == b"child"
        with pytest.raises(SegmentationFault):
            child.load(0, 1)
        child.exit()
        with pytest.raises(AgentLost):
            child.load(private.address, 1)

    def test_a_fork_of_a_fork(self, door: AgentDoor) -> None:
        child = door.fork()
        grandchild = child.fork()
        assert len({d.syscall(Sys.GETPID) for d in (door, child, grandchild)}) == 3
        grandchild.exit()
        child.exit()

    def test_large_requests_get_through(self, door: AgentDoor) -> None:
        child = door.fork()
        memory = anonymous(child, BUFFER // PAGE)
        data = os.urandom(BUFFER)
        memory[:] = data
        assert memory[:] == data
        child.exit()

    def test_children_can_be_had_again_and_again(self, door: AgentDoor) -> None:
        for spawn in (door.fork, door.thread):
            for _ in range(20):
                spawn().exit()

    def test_too_many(self, door: AgentDoor) -> None:
        children = [door.thread() for _ in range(8)]
        with pytest.raises(KernelError):
            door.thread()
        for child in children:
            child.exit()

    def test_a_thread_shares_memory_and_files(self, door: AgentDoor) -> None:
        memory = anonymous(door)
        thread = door.thread()
        assert thread.syscall(Sys.GETPID) == door.syscall(Sys.GETPID)
        assert thread.syscall(Sys.GETTID) != door.syscall(Sys.GETTID)
        thread.store(memory.address, b"thread")
        assert memory[:6] == b"thread"
        fd = thread.memfd_create("ours")
        assert door.fstat(fd).size == 0
        with pytest.raises(SegmentationFault):
            thread.load(0, 1)
        thread.exit()

    def test_a_call_that_waits_for_another(self, door: AgentDoor) -> None:
        out, into = pipe(door)
        thread = door.thread()
        buffer = bytearray(4)
        result = thread.begin(Sys.READ, out, buffer, 4)
        door.write(into, b"done")
        assert result() == 4
        assert buffer == b"done"
        thread.exit()

    def test_a_call_that_hangs_is_interrupted(self, door: AgentDoor) -> None:
        door.patience = 20
        with pytest.raises(KernelError) as caught:
            door.read(pipe(door)[0], 1)
        assert caught.value.errno == EINTR

    def test_a_fork_that_hangs_can_be_killed(self, door: AgentDoor) -> None:
        out, into = pipe(door)
        child = door.fork()
        child.begin(Sys.READ, out, bytearray(1), 1)
        child.kill()
        door.write(into, b"x")
        assert door.read(out, 1) == b"x"

    def test_only_children_can_be_waited_for(self, door: AgentDoor) -> None:
        with pytest.raises(ValueError, match="thread"):
            door.begin(Sys.GETPID)


class TestMovingAndCopying:
    def test_mremap_and_mlock(self, door: AgentDoor) -> None:
        memory = anonymous(door, 2).address
        door.store(memory, b"moved")
        there = door.mmap(0, PAGE, 1, MAP_PRIVATE | MAP_ANONYMOUS)
        assert door.mremap(memory, PAGE, PAGE, 3, there) == there
        assert door.load(there, 5) == b"moved"
        door.mlock(there, PAGE)
        with pytest.raises(KernelError, match="EINVAL"):
            door.madvise(there, PAGE, 4)
        door.munlock(there, PAGE)
        door.madvise(there, PAGE, 4)

    def test_pipes(self, door: AgentDoor) -> None:
        memory = anonymous(door).address
        reads, writes = door.pipe()
        door.store(memory, b"by reference")
        assert door.vmsplice(writes, [(memory, 3), (memory + 3, 9)], 2) == 12
        file, where = door.memfd_create("x"), bytearray((5).to_bytes(8, "little"))
        assert door.splice(reads, 0, file, where, 100) == 12
        assert int.from_bytes(where, "little") == 17
        assert door.pread(file, 12, 5) == b"by reference"
        with pytest.raises(KernelError, match="EAGAIN"):
            door.read(reads, 1)

    def test_a_process_by_its_number(self, door: AgentDoor) -> None:
        memory = anonymous(door).address
        door.store(memory, b"own")
        assert door.process_vm_readv(door.getpid(), [(memory + 8, 3)], [(memory, 3)]) == 3
        assert door.process_vm_writev(door.getpid(), [(memory, 2)], [(memory + 20, 2)]) == 2
        assert door.load(memory, 22) == b"own" + bytes(5) + b"own" + bytes(9) + b"ow"


class TestProtocol:
    @pytest.mark.parametrize("request_", [b"\x63", b"\x00", bytes((Op.CALL,)), bytes((Op.LOAD, 1)), bytes((Op.STORE, 1))])
    def test_what_is_not_understood_is_refused(self, door: AgentDoor, request_: bytes) -> None:
        assert door.channel.ask(request_).result == -EBADMSG
        assert door.syscall(Sys.GETPID) > 0

    def test_a_child_that_is_not_there(self, door: AgentDoor) -> None:
        assert door.channel.ask(bytes((Op.ASK, 99, 0, 0, 0))).result == -ECHILD
        with pytest.raises(AgentLost):
            ChildChannel(door.channel, 5).ask(b"\x01")
        assert door.syscall(Sys.GETPID) > 0

    def test_an_agent_that_ends_is_lost(self, door: AgentDoor) -> None:
        door.exit()
        with pytest.raises(AgentLost):
            door.syscall(Sys.GETPID)

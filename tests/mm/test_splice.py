# SPDX-License-Identifier: GPL-2.0-or-later
"""splice() and vmsplice(): pages by reference."""

from __future__ import annotations

import pytest

from gmemu.mm.pipe import PIPE_BUFFERS, Pipe, PipeFile
from gmemu.mm.splice import check_splice_flags, do_splice, do_vmsplice
from gmemu.uapi.mman import PROT_READ, PROT_WRITE, SPLICE_F_NONBLOCK

from .machine import PAGE, RW, Machine, refusal

BASE = 0x100 * PAGE
NOW = SPLICE_F_NONBLOCK


def pipe(machine: Machine) -> tuple[PipeFile, PipeFile]:
    return Pipe(machine.memmap).ends(noexec=True)


def close(*files: PipeFile) -> None:
    for file in files:
        file.put()


def test_a_page_in_a_pipe_is_the_programs_own(machine: Machine) -> None:
    mm = machine.process().mm
    reads, writes = pipe(machine)
    mm.map_region(BASE // PAGE, 2, RW, False, None, 0)
    mm.write(BASE, b"before")
    assert do_vmsplice(mm, writes, [(BASE, 6), (BASE + PAGE - 1, 3)], NOW) == 9
    entry = mm.pte(BASE // PAGE)
    assert entry is not None
    assert machine.memmap.refcount(entry[0]) == 3  # the entry's, and one for each buffer
    mm.write(BASE, b"behind")
    mm.unmap_region(BASE // PAGE, BASE // PAGE + 2)
    assert reads.read(PAGE) == b"behind" + bytes(3)
    close(reads, writes)


def test_a_hole_in_the_file_leaves_the_pipe_its_page(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(1)
    reads, writes = pipe(machine)
    mm.map_region(BASE // PAGE, 1, RW, True, file, 0)
    mm.write(BASE, b"kept")
    do_vmsplice(mm, writes, [(BASE, 4)], NOW)
    file.fallocate(3, 0, PAGE)
    assert (mm.read(BASE, 4), reads.read(4)) == (bytes(4), b"kept")
    file.put()
    close(reads, writes)


def test_what_vmsplice_refuses(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(1)
    reads, writes = pipe(machine)
    mm.map_region(BASE // PAGE, 1, PROT_WRITE, False, None, 0)
    assert refusal(lambda: do_vmsplice(mm, file, [(BASE, 1)], NOW)) == "fs.splice.no-pipe"
    assert do_vmsplice(mm, file, [], NOW) == 0
    assert refusal(lambda: do_vmsplice(mm, writes, [(BASE, 1)], NOW)) == "mm.gup.fault"
    assert refusal(lambda: do_vmsplice(mm, writes, [(1 << 63, 1)], NOW)) == "mm.uaccess"
    assert refusal(lambda: do_vmsplice(mm, writes, [(BASE, 1 << 63)], NOW)) == "mm.iovec.length"
    assert refusal(lambda: do_vmsplice(mm, writes, [(BASE, 1)] * 1025, NOW)) == "mm.iovec.count"
    assert refusal(lambda: do_vmsplice(mm, reads, [(BASE, 1)], NOW)) == "fs.pipe.empty"
    file.put()
    close(reads, writes)


def test_the_zero_page_takes_the_slow_way(machine: Machine) -> None:
    """Which asks the mapping; a page of the process's own, once there, is had whatever the mapping says."""
    mm = machine.process().mm
    reads, writes = pipe(machine)
    mm.map_region(BASE // PAGE, 2, PROT_WRITE, False, None, 0)
    assert mm.read(BASE, 1) == bytes(1)
    mm.write(BASE + PAGE, b"x")
    assert refusal(lambda: do_vmsplice(mm, writes, [(BASE, 1)], NOW)) == "mm.gup.fault"
    assert do_vmsplice(mm, writes, [(BASE + PAGE, 1)], NOW) == 1
    close(reads, writes)


def test_until_it_is_full_or_a_page_is_missing(machine: Machine) -> None:
    mm = machine.process().mm
    reads, writes = pipe(machine)
    mm.map_region(BASE // PAGE, 20, PROT_READ, False, None, 0)
    assert do_vmsplice(mm, writes, [(BASE + 19 * PAGE, 2 * PAGE)], NOW) == PAGE
    assert do_vmsplice(mm, writes, [(BASE, 20 * PAGE)], NOW) == (PIPE_BUFFERS - 1) * PAGE
    assert refusal(lambda: do_vmsplice(mm, writes, [(BASE, 1)], NOW)) == "fs.pipe.full"
    close(reads, writes)


def test_pages_are_faulted_in_before_there_is_found_to_be_no_room(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(20)
    reads, writes = pipe(machine)
    mm.map_region(BASE // PAGE, 20, RW, True, file, 0)
    assert do_vmsplice(mm, writes, [(BASE, 20 * PAGE)], NOW) == PIPE_BUFFERS * PAGE
    assert file.cache.nrpages == 20
    file.put()
    close(reads, writes)


def test_out_of_a_pipe_into_memory(machine: Machine) -> None:
    """A buffer that can't be stored as a whole stays, though its beginning was stored."""
    mm = machine.process().mm
    reads, writes = pipe(machine)
    mm.map_region(BASE // PAGE, 1, RW, False, None, 0)
    writes.write(b"0123456789")
    assert do_vmsplice(mm, reads, [(BASE, 2), (BASE + 100, 3)], NOW) == 5
    assert (mm.read(BASE, 2), mm.read(BASE + 100, 3)) == (b"01", b"234")
    assert refusal(lambda: do_vmsplice(mm, reads, [(BASE + PAGE - 2, 5)], NOW)) == "mm.uaccess"
    assert mm.read(BASE + PAGE - 2, 2) == b"56"
    assert reads.read(10) == b"56789"
    close(reads, writes)


def test_from_a_file_without_copying(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(3)
    reads, writes = pipe(machine)
    file.pwrite(b"x" * PAGE, 0)
    assert do_splice(mm, file, bytearray((100).to_bytes(8, "little")), writes, 0, 3 * PAGE) == 3 * PAGE - 100
    file.pwrite(b"y" * 200, 0)
    assert reads.read(3 * PAGE) == b"y" * 100 + b"x" * (PAGE - 200) + bytes(2 * PAGE)
    assert file.stat().blocks == 8
    assert do_splice(mm, file, 0, writes, 0, 10) == 10
    assert file.position == 10
    file.put()
    close(reads, writes)


def test_into_a_file(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(0)
    reads, writes = pipe(machine)
    writes.write(b"ab" * PAGE)
    where = bytearray((5).to_bytes(8, "little"))
    assert do_splice(mm, reads, 0, file, where, PAGE + 1) == PAGE + 1
    assert int.from_bytes(where, "little") == PAGE + 6
    assert file.pread(1 << 20, 0) == bytes(5) + b"ab" * (PAGE // 2) + b"a"
    file.put()
    close(reads, writes)


def test_from_pipe_to_pipe(machine: Machine) -> None:
    mm = machine.process().mm
    reads, writes = pipe(machine)
    after, before = pipe(machine)
    writes.write(b"0123456789")
    assert do_splice(mm, reads, 0, before, 0, 4) == 4
    before.write(b"|")  # the page is shared now: nothing is added to it
    assert do_splice(mm, reads, 0, before, 0, 100) == 6
    before.write(b"!")
    assert after.read(100) == b"0123|456789!"
    close(reads, writes, after, before)


def test_what_splice_refuses(machine: Machine) -> None:
    mm, file = machine.process().mm, machine.shmem(1)
    reads, writes = pipe(machine)
    offset = bytearray(8)
    for rule, call in {
        "fs.splice.pipes": lambda: do_splice(mm, file, 0, file, 0, 1),
        "fs.splice.self": lambda: do_splice(mm, reads, 0, writes, 0, 1),
        "fs.splice.pipe-offset": lambda: do_splice(mm, reads, offset, file, 0, 1),
        "fs.mode": lambda: do_splice(mm, writes, 0, file, 0, 1),
        "mm.uaccess": lambda: do_splice(mm, file, 1, writes, 0, 1),
        "fs.splice.area": lambda: do_splice(mm, file, bytearray(b"\xff" * 8), writes, 0, 1),
        "fs.pipe.empty": lambda: do_splice(mm, reads, 0, file, 0, 1),
        "fs.splice.flags": lambda: check_splice_flags(16),
    }.items():
        assert refusal(call) == rule
    assert refusal(lambda: do_splice(mm, reads, 0, writes, offset, 1)) == "fs.splice.pipe-offset"
    file.put()
    close(reads, writes)


@pytest.mark.parametrize("end", [0, 1])
def test_a_file_that_knows_no_splice(machine: Machine, end: int) -> None:
    from gmemu.mm.file import File, Inode

    mm, file = machine.process().mm, File(Inode(0))
    ends = pipe(machine)
    ends[1].write(b"x")
    source, to = (file, ends[1]) if end else (ends[0], file)
    assert refusal(lambda: do_splice(mm, source, 0, to, 0, 1)) == "fs.splice.unsupported"
    where = bytearray(8)
    offsets = (where, 0) if end else (0, where)
    assert refusal(lambda: do_splice(mm, source, offsets[0], to, offsets[1], 1)) == "fs.splice.position"
    close(*ends)

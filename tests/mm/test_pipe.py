# SPDX-License-Identifier: GPL-2.0-or-later
"""Pipes: what goes in comes out, and what they hold of memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmemu.mm.pipe import PIPE_BUFFERS, Pipe, PipeFile
from gmemu.sync import Deadlock

from .machine import PAGE, Machine, refusal

Ends = tuple[PipeFile, PipeFile]


@pytest.fixture
def ends(machine: Machine) -> Iterator[Ends]:
    reads, writes = Pipe(machine.memmap).ends(noexec=True)
    yield reads, writes
    for end in (reads, writes):
        if end.count:
            end.put()


def test_in_order(ends: Ends) -> None:
    reads, writes = ends
    assert writes.write(b"one") + writes.write(b"two" * PAGE) == 3 + 3 * PAGE
    assert reads.read(4) == b"onet"
    assert reads.read(1 << 20) == b"wo" + b"two" * (PAGE - 1)
    assert reads.read(0) == b""
    assert writes.write(b"") == 0


def test_small_writes_share_a_page(machine: Machine, ends: Ends) -> None:
    """The bytes beyond whole pages fill up the last page, if they fit."""
    before = machine.memmap.nr_allocated
    ends[1].write(b"a" * 100)
    ends[1].write(b"b" * (PAGE + 100))
    assert machine.memmap.nr_allocated == before + 2
    ends[1].write(b"c" * (PAGE - 50))
    assert machine.memmap.nr_allocated == before + 3
    ends[0].read(1 << 20)
    assert machine.memmap.nr_allocated == before


def test_full_and_empty(ends: Ends) -> None:
    reads, writes = ends
    assert refusal(lambda: reads.read(1)) == "fs.pipe.empty"
    assert writes.write(b"x" * 100 * PAGE) == PIPE_BUFFERS * PAGE
    assert refusal(lambda: writes.write(b"x")) == "fs.pipe.full"
    assert reads.read(PAGE) == b"x" * PAGE
    assert writes.write(b"y" * PAGE) == PAGE


def test_without_a_reader(ends: Ends) -> None:
    ends[0].put()
    assert refusal(lambda: ends[1].write(b"x")) == "fs.pipe.readers"


def test_without_a_writer_it_ends(ends: Ends) -> None:
    ends[1].write(b"last")
    ends[1].put()
    assert [ends[0].read(10), ends[0].read(10)] == [b"last", b""]


def test_what_nobody_reads_is_freed(machine: Machine, ends: Ends) -> None:
    before = machine.memmap.nr_allocated
    ends[1].write(b"x" * PAGE)
    ends[1].put()
    ends[0].put()
    assert machine.memmap.nr_allocated == before


def test_what_would_wait_for_ever_says_so(ends: Ends) -> None:
    pipe = ends[0].pipe
    with pytest.raises(Deadlock, match="empty"):
        pipe.wait_for_data(nonblock=False)
    ends[1].write(b"x" * PIPE_BUFFERS * PAGE)
    with pytest.raises(Deadlock, match="full"):
        pipe.wait_for_space(nonblock=False)

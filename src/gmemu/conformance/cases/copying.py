# SPDX-License-Identifier: GPL-2.0-or-later
"""splice(), vmsplice() and process_vm_readv(): the kernel takes pages, or copies, on a program's behalf."""

from __future__ import annotations

from ...api import GuestMemfd, Mapping, Vm
from ...uapi.mman import (
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SPLICE_F_GIFT,
    SPLICE_F_MORE,
    SPLICE_F_MOVE,
    SPLICE_F_NONBLOCK,
)
from ..bench import PAGE, Bench
from ..case import case

NOW = SPLICE_F_NONBLOCK
GIFT = SPLICE_F_GIFT | SPLICE_F_MOVE | SPLICE_F_MORE | NOW
BAD = {
    "null": 0,
    "end of user space": (1 << 47) - PAGE,
    "not canonical": 1 << 47,
    "kernel half": 0xFFFF800000000000,
    "-1": (1 << 64) - 1,
}


def _fill(mapping: Mapping) -> None:
    for page in range(mapping.length // PAGE):
        mapping[page * PAGE : (page + 1) * PAGE] = bytes((0x41 + page,)) * PAGE


# Pipes and files


def _descriptors(b: Bench, gmem: GuestMemfd, vm: Vm) -> dict[str, int]:
    reads, writes = b.pipe()
    return {
        "guest_memfd": gmem.fd,
        "VM": vm.fd,
        "/dev/kvm": b.kvm.fd,
        "memfd": b.memfd(PAGE).fd,
        "read end": reads.fd,
        "write end": writes.fd,
        "not open": 9999,
        "-1": -1,
    }


@case("splice", "gmem")
def files(b: Bench) -> None:
    vm = b.vm()
    fds = _descriptors(b, b.gmem(vm), vm)
    b.door.write(fds["write end"], b"in the pipe")
    for source, fd_in in fds.items():
        for to, fd_out in fds.items():
            if (source, to) != ("read end", "memfd"):
                b.probe(f"{source} to {to}", b.door.splice, fd_in, 0, fd_out, 0, PAGE, NOW)
    b.probe("read the pipe", b.door.read, fds["read end"], PAGE)
    for what, fd in fds.items():
        b.probe(f"nothing from {what}", b.door.splice, fd, 0, fds["write end"], 0, 0, 0x10)
        b.probe(f"{what} with an offset", b.door.splice, fd, bytearray(8), fds["write end"], 0, PAGE, NOW)
        b.probe(f"to {what} with an offset", b.door.splice, fds["read end"], 0, fd, bytearray(8), PAGE, NOW)
        b.probe(f"a bad offset of {what}", b.door.splice, fd, 1, fds["write end"], 0, PAGE, NOW)
        b.probe(f"write to {what}", b.door.write, fd, b"w" if what == "write end" else b"")
        b.probe(f"read from {what}", b.door.read, fd, 0)
    b.door.write(fds["write end"], b"full" * (1 << 20))
    for what, fd in fds.items():
        b.probe(f"{what} into a full pipe", b.door.splice, fd, 0, fds["write end"], 0, PAGE, NOW)
        b.probe(f"{what} with an offset, into a full pipe", b.door.splice, fd, bytearray(8), fds["write end"], 0, PAGE, NOW)
    for bit in range(32):
        b.probe(f"flag {bit}", b.door.splice, fds["guest_memfd"], 0, fds["write end"], 0, PAGE, 1 << bit)


@case("splice", each_vm=False)
def pipes(b: Bench) -> None:
    reads, writes = b.pipe()
    other_reads, other_writes = b.pipe()
    b.probe("read of nothing", b.door.read, reads.fd, 1)
    b.probe("read the write end", b.door.read, writes.fd, 1)
    b.probe("write the read end", b.door.write, reads.fd, b"x")
    for name, fd in (("read", reads.fd), ("write", writes.fd)):
        b.probe(f"allocate in the {name} end", b.door.fallocate, fd, 0, 0, PAGE)
        b.probe(f"punch the {name} end", b.door.fallocate, fd, 3, 0, PAGE)
        b.probe(f"truncate the {name} end", b.door.ftruncate, fd, 0)
        b.probe(f"fsync the {name} end", b.door.fsync, fd)
        b.probe(f"pread of the {name} end", b.door.pread, fd, 1, 0)
        b.probe(f"an unknown ioctl on the {name} end", b.door.ioctl, fd, 0xAEFF, 0)
        for prot in (PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC):
            for kind in (MAP_SHARED, MAP_PRIVATE):
                b.probe(f"map the {name} end, protection {prot}, type {kind}", b.door.mmap, 0, PAGE, prot, kind, fd)
        stat = b.door.fstat(fd)
        b.record(f"what the {name} end is", (oct(stat.mode), stat.size, stat.blksize, stat.blocks))
    b.probe("write", b.door.write, writes.fd, b"x" * 100)
    b.probe("write more", b.door.write, writes.fd, b"y" * 5000)
    b.probe("splice to itself", b.door.splice, reads.fd, 0, writes.fd, 0, PAGE, NOW)
    b.probe("splice a part", b.door.splice, reads.fd, 0, other_writes.fd, 0, 50, NOW)
    b.probe("splice the rest", b.door.splice, reads.fd, 0, other_writes.fd, 0, 1 << 20, NOW)
    b.probe("splice from nothing", b.door.splice, reads.fd, 0, other_writes.fd, 0, 1, NOW)
    b.probe("append to what was spliced", b.door.write, other_writes.fd, b"z")
    b.probe("read half", b.door.read, other_reads.fd, 60)
    b.probe("read it", b.door.read, other_reads.fd, 1 << 16)
    b.probe("write too much", b.door.write, writes.fd, b"w" * 100000)
    b.probe("write to a full one", b.door.write, writes.fd, b"w")
    b.probe("splice from a full one", b.door.splice, reads.fd, 0, other_writes.fd, 0, 40000, NOW)
    b.probe("splice to a full one", lambda: [b.door.splice(reads.fd, 0, other_writes.fd, 0, 1 << 20, NOW) for _ in range(3)])
    b.door.read(reads.fd, 1 << 20)
    b.probe("many small ones", lambda: sum(b.door.write(writes.fd, b"s" * 100) for _ in range(60)))
    b.probe("all of them", lambda: len(b.door.read(reads.fd, 1 << 20)))
    reads.close()
    b.probe("write without a reader", b.door.write, writes.fd, b"w")
    b.probe("splice without a reader", b.door.splice, other_reads.fd, 0, writes.fd, 0, 1, NOW)
    other_writes.close()
    b.probe("read without a writer", lambda: len(b.door.read(other_reads.fd, 1 << 20)))
    b.probe("read all without a writer", b.door.read, other_reads.fd, 1)
    b.probe("splice nothing without a writer", b.door.splice, other_reads.fd, 0, b.pipe()[1].fd, 0, 1, NOW)


@case("splice", each_vm=False)
def memfd(b: Bench) -> None:
    file, (reads, writes) = b.memfd(3 * PAGE), b.pipe()
    m = b.map_file(file, 3 * PAGE)
    m[:PAGE] = b"f" * PAGE
    b.probe("write", b.door.write, file.fd, b"12345678")
    b.probe("pwrite at the end", b.door.pwrite, file.fd, b"tail", 3 * PAGE - 2)
    b.probe("size then", lambda: b.door.fstat(file.fd).size)
    b.probe("read", b.door.read, file.fd, 8)
    b.probe("pread at the end", b.door.pread, file.fd, PAGE, 3 * PAGE - 4)
    b.probe("pread beyond the end", b.door.pread, file.fd, PAGE, 4 * PAGE)
    b.probe("splice from the position", b.door.splice, file.fd, 0, writes.fd, 0, PAGE, NOW)
    b.probe("what came", b.door.read, reads.fd, PAGE)
    for offset in (0, 100, PAGE, 3 * PAGE - 1, 3 * PAGE + 2, -1, 1 << 62):
        where = bytearray((offset & (1 << 64) - 1).to_bytes(8, "little"))
        b.probe(f"splice from {offset:#x}", b.door.splice, file.fd, where, writes.fd, 0, PAGE, NOW)
        b.record(f"position after {offset:#x}", hex(int.from_bytes(where, "little")))
    b.probe("what came of them", b.door.read, reads.fd, 1 << 16)
    b.probe("splice, then store", b.door.splice, file.fd, bytearray(8), writes.fd, 0, PAGE, NOW)
    m[:PAGE] = b"n" * PAGE
    b.probe("what is in the pipe", b.door.read, reads.fd, PAGE)
    b.door.write(writes.fd, b"into the file")
    where = bytearray((4 * PAGE).to_bytes(8, "little"))
    b.probe("splice into the file", b.door.splice, reads.fd, 0, file.fd, where, PAGE, NOW)
    b.record("position after it", hex(int.from_bytes(where, "little")))
    b.probe("the file then", lambda: b.door.pread(file.fd, 6 * PAGE, 3 * PAGE))
    b.probe("an empty pipe into the file", b.door.splice, reads.fd, 0, file.fd, 0, PAGE, NOW)
    for size in (PAGE + 100, 3 * PAGE):
        b.door.ftruncate(file.fd, size)
        b.probe(f"after truncation to {size:#x}", b.door.pread, file.fd, 4 * PAGE, 0)
    b.probe("punch parts of pages", b.door.fallocate, file.fd, 3, 50, PAGE)
    b.probe("after that", b.door.pread, file.fd, 4 * PAGE, 0)
    b.probe("blocks", lambda: b.door.fstat(file.fd).blocks)
    b.probe("fsync", b.door.fsync, file.fd)


# vmsplice


def _vmsplice(b: Bench, what: str, m: Mapping) -> None:
    """Four filled pages at `m`."""
    reads, writes = b.pipe()
    for name, iov in {
        "a page": [(m.address, PAGE)],
        "a byte": [(m.address + PAGE - 1, 1)],
        "nothing": [],
        "no bytes": [(m.address, 0)],
        "across pages": [(m.address + 100, PAGE)],
        "two parts": [(m.address, 10), (m.address + 2 * PAGE, 10)],
        "beyond": [(m.address + 3 * PAGE, 2 * PAGE)],
        "unmapped": [(m.address - PAGE, PAGE)],
        "good, then bad": [(m.address, 4), (m.address - PAGE, 4)],
        "a negative part": [(m.address, 1 << 63)],
        "1025 parts": [(m.address, 1)] * 1025,
    }.items():
        b.probe(f"{what}: {name}", b.door.vmsplice, writes.fd, iov, NOW)
        b.probe(f"{what}: {name}, read", b.door.read, reads.fd, 1 << 16)
    for name, address in BAD.items():
        b.probe(f"{what}: {name}", b.door.vmsplice, writes.fd, [(address, PAGE)], NOW)
    b.probe(f"{what}: more than fits", lambda: b.door.vmsplice(writes.fd, [(m.address, 4 * PAGE)] * 5, NOW))
    b.probe(f"{what}: into a full one", b.door.vmsplice, writes.fd, [(m.address, 1)], NOW)
    b.probe(f"{what}: read all", lambda: len(b.door.read(reads.fd, 1 << 20)))
    b.probe(
        f"{what}: a gift",
        b.door.vmsplice,
        writes.fd,
        [(m.address, PAGE)],
        SPLICE_F_GIFT | SPLICE_F_MOVE | SPLICE_F_MORE | NOW,
    )
    m[:4] = b"late"
    b.door.vmsplice(writes.fd, [(m.address, 4)], NOW)
    b.probe(f"{what}: written behind it", b.door.write, writes.fd, b"!!!")
    b.probe(f"{what}: which it isn't in memory", lambda: m[:8])
    b.probe(f"{what}: stored to afterwards", lambda: b.door.read(reads.fd, PAGE)[:6])
    b.door.write(writes.fd, b"from the pipe" * 400)
    b.probe(
        f"{what}: out of the pipe", b.door.vmsplice, reads.fd, [(m.address + PAGE, 100), (m.address + 2 * PAGE, 3000)], NOW
    )
    b.probe(f"{what}: what came out", lambda: m[PAGE : PAGE + 110] + m[2 * PAGE : 2 * PAGE + 3010])
    b.probe(f"{what}: out to nothing mapped", b.door.vmsplice, reads.fd, [(m.address - PAGE, 10)], NOW)
    b.probe(f"{what}: out to the last bytes", b.door.vmsplice, reads.fd, [(m.address + 4 * PAGE - 10, 100)], NOW)
    b.probe(f"{what}: out, the rest", b.door.vmsplice, reads.fd, [(m.address, 4 * PAGE)], NOW)
    b.probe(f"{what}: out of an empty one", b.door.vmsplice, reads.fd, [(m.address, 1)], NOW)
    for prot, rights in ((0, "none"), (PROT_READ, "r"), (PROT_WRITE, "w")):
        b.door.mprotect(m.address, PAGE, prot)
        b.door.madvise(m.address + PAGE, PAGE, 4)
        b.door.mprotect(m.address + PAGE, PAGE, prot)
        b.probe(f"{what}: present, under {rights}", b.door.vmsplice, writes.fd, [(m.address, 4)], NOW)
        b.probe(f"{what}: not present, under {rights}", b.door.vmsplice, writes.fd, [(m.address + PAGE, 4)], NOW)
        b.probe(f"{what}: out to {rights}", b.door.vmsplice, reads.fd, [(m.address, 2)], NOW)
        b.probe(f"{what}: read under {rights}", b.door.read, reads.fd, PAGE)


@case("vmsplice", each_vm=False)
def ordinary(b: Bench) -> None:
    for what, shared in (("private", False), ("shared", True)):
        m = b.anonymous(4 * PAGE, shared=shared)
        _fill(m)
        _vmsplice(b, what, m)


@case("vmsplice", "init-shared")
def shared_pages(b: Bench) -> None:
    m = b.map(b.shared_gmem(b.vm()))
    _fill(m)
    _vmsplice(b, "guest_memfd", m)


@case("vmsplice", "init-shared")
def a_page_in_a_pipe(b: Bench) -> None:
    """It stays what it was, whatever becomes of the file."""
    gmem, (reads, writes) = b.shared_gmem(b.vm()), b.pipe()
    m = b.map(gmem)
    _fill(m)
    b.probe("two pages and a byte", b.door.vmsplice, writes.fd, [(m.address, 2 * PAGE + 1)], NOW)
    b.probe("punch", gmem.punch_hole, 0, PAGE)
    m[:4] = b"anew"
    b.probe("unmap", m.close)
    gmem.close()
    b.probe("what is in the pipe", b.door.read, reads.fd, 1 << 16)


@case("vmsplice", "mmap")
def private_pages(b: Bench) -> None:
    m, (reads, writes) = b.map(b.gmem(b.vm(), 4 * PAGE, 1)), b.pipe()
    b.probe("in", b.door.vmsplice, writes.fd, [(m.address, PAGE)], NOW)
    b.door.write(writes.fd, b"x" * PAGE)
    b.probe("out", b.door.vmsplice, reads.fd, [(m.address, PAGE)], NOW)


@case("vmsplice", "gmem")
def descriptors(b: Bench) -> None:
    vm, m = b.vm(), b.anonymous(PAGE)
    fds = _descriptors(b, b.gmem(vm), vm)
    for what, fd in fds.items():
        b.probe(f"into {what}", b.door.vmsplice, fd, [(m.address, 4)], NOW)
        b.probe(f"nothing into {what}", b.door.vmsplice, fd, [], NOW)
        b.probe(f"a bad address into {what}", b.door.vmsplice, fd, [(1 << 63, 4)], NOW)
    for bit in range(32):
        b.probe(f"flag {bit}", b.door.vmsplice, fds["guest_memfd"], [(m.address, 4)], 1 << bit)


# process_vm_readv and _writev


def _process_vm(b: Bench, what: str, m: Mapping) -> None:
    """Four filled pages at `m`, from and to which is copied."""
    own, pid = b.anonymous(4 * PAGE), b.door.getpid()
    calls = {"read": b.door.process_vm_readv, "write": b.door.process_vm_writev}
    for name, call in calls.items():
        for which, local, remote in (
            ("a page", [(own.address, PAGE)], [(m.address, PAGE)]),
            ("all", [(own.address, 4 * PAGE)], [(m.address, 4 * PAGE)]),
            ("unaligned", [(own.address + 3, PAGE)], [(m.address + 100, PAGE)]),
            ("in parts", [(own.address, 5), (own.address + PAGE, 7)], [(m.address, 3), (m.address + 2 * PAGE, 20)]),
            ("more there", [(own.address, 5)], [(m.address, 100)]),
            ("more here", [(own.address, 100)], [(m.address, 5)]),
            ("nothing here", [], [(m.address, 5)]),
            ("nothing there", [(own.address, 5)], []),
            ("no bytes there", [(own.address, 5)], [(m.address, 0)]),
            ("beyond there", [(own.address, 4 * PAGE)], [(m.address + 3 * PAGE, 4 * PAGE)]),
            ("beyond here", [(own.address + 3 * PAGE, 4 * PAGE)], [(m.address, 4 * PAGE)]),
            ("unmapped there", [(own.address, 8)], [(m.address - PAGE, 8)]),
            ("unmapped here", [(own.address - PAGE, 8)], [(m.address, 8)]),
            ("good, then bad", [(own.address, 16)], [(m.address, 4), (m.address - PAGE, 4), (m.address, 4)]),
            ("negative here", [(own.address, 1 << 63)], [(m.address, 8)]),
            ("negative there", [(own.address, 8)], [(m.address, 1 << 63)]),
            ("too many here", [(own.address, 1)] * 1025, [(m.address, 8)]),
            ("too many there", [(own.address, 8)], [(m.address, 1)] * 1025),
        ):
            b.probe(f"{what}: {name} {which}", call, pid, local, remote)
            b.probe(f"{what}: {name} {which}, here", lambda: own[:])
            b.probe(f"{what}: {name} {which}, there", lambda: m[:])
            own[:] = b"o" * 4 * PAGE
            _fill(m)
        for bad, address in BAD.items():
            b.probe(f"{what}: {name} at {bad}", call, pid, [(own.address, 8)], [(address, 8)])
            b.probe(f"{what}: {name} with {bad} here", call, pid, [(address, 8)], [(m.address, 8)])
        for prot, rights in ((0, "none"), (PROT_READ, "r"), (PROT_WRITE, "w")):
            b.door.mprotect(m.address, PAGE, prot)
            b.probe(f"{what}: {name} under {rights}", call, pid, [(own.address, 8)], [(m.address, 8)])
            b.probe(
                f"{what}: {name} up to {rights}",
                call,
                pid,
                [(own.address, 3 * PAGE)],
                [(m.address + PAGE, PAGE), (m.address, 8)],
            )
        b.door.mprotect(m.address, PAGE, 3)


@case("process-vm", each_vm=False)
def ordinary_memory(b: Bench) -> None:
    for what, shared in (("private", False), ("shared", True)):
        m = b.anonymous(4 * PAGE, shared=shared)
        _fill(m)
        _process_vm(b, what, m)


@case("process-vm", "init-shared")
def shared_memory(b: Bench) -> None:
    m = b.map(b.shared_gmem(b.vm()))
    _fill(m)
    _process_vm(b, "guest_memfd", m)


@case("process-vm", "mmap")
def private_memory(b: Bench) -> None:
    m, own, pid = b.map(b.gmem(b.vm(), 4 * PAGE, 1)), b.anonymous(PAGE), b.door.getpid()
    b.probe("read", b.door.process_vm_readv, pid, [(own.address, 8)], [(m.address, 8)])
    b.probe("write", b.door.process_vm_writev, pid, [(own.address, 8)], [(m.address, 8)])
    b.probe("read to it", b.door.process_vm_readv, pid, [(m.address, 8)], [(own.address, 8)])


@case("process-vm", each_vm=False)
def processes(b: Bench) -> None:
    own, pid = b.anonymous(2 * PAGE), b.door.getpid()
    here, there = [(own.address, 8)], [(own.address + PAGE, 8)]
    for name, number in (("0", 0), ("-1", -1), ("nobody", 0x7FFFFFFF)):
        b.probe(f"process {name}", b.door.process_vm_readv, number, here, there)
        b.probe(f"process {name}, nothing", b.door.process_vm_readv, number, [], there)
        b.probe(f"process {name}, nothing there", b.door.process_vm_readv, number, here, [])
    for bit in range(32):
        b.probe(f"flag {bit}", b.door.process_vm_readv, pid, here, there, 1 << bit)

# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of a sequence, and how calls are drawn: mostly valid, often nearly so.

Numbers are the same on both kernels: mappings lie at fixed addresses in an arena that no program uses, and descriptors are
named by their kind and the order in which they were made.  What would eat the machine's memory, run guest code or poison
pages isn't drawn.  Needs Hypothesis.
"""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from ...uapi import kvm, mman
from .calls import ARENA, ARENA_PAGES, KINDS, PAGE, Ref, Step

__all__ = ["prologue", "steps"]

U64 = (1 << 64) - 1

_pages = st.sampled_from(range(0, 9 * PAGE, PAGE))
_some_pages = st.sampled_from(range(PAGE, 9 * PAGE, PAGE))
_odd = st.sampled_from((1, 8, 512, 4095, 4097, 1 << 62, 1 << 63, (1 << 63) - PAGE, U64 - PAGE + 1, U64))
# Attributes are stored page by page: a real kernel spends all its memory, and hours, on a large range that's valid.
_bad_size = st.sampled_from((0, 1, 8, 512, 4095, 4097, U64))
_bits64 = st.sampled_from([1 << bit for bit in range(64)])


def _mostly(usual: st.SearchStrategy[int], other: st.SearchStrategy[int], times: int = 8) -> st.SearchStrategy[int]:
    return st.sampled_from((usual,) * times + (other,)).flatmap(lambda chosen: chosen)


def _ref(kind: str) -> st.SearchStrategy[Ref]:
    numbers = st.sampled_from(range(4))
    right = numbers.map(lambda n: Ref(kind, n))
    wrong = st.builds(Ref, st.sampled_from((*KINDS, "none")), numbers)
    return st.sampled_from((right,) * 25 + (wrong,)).flatmap(lambda chosen: chosen)


_any_ref = st.sampled_from(KINDS).flatmap(_ref)
_arena = st.sampled_from(range(ARENA, ARENA + ARENA_PAGES * PAGE, PAGE))
_address = _mostly(_arena, st.builds(lambda a, o: a + o, _arena, st.sampled_from((1, 8, 2048, 4095, 4090))), 5)
_pointer = _mostly(_address, st.sampled_from((0, 1, (1 << 47) - PAGE, 1 << 47, 1 << 63, U64 - PAGE + 1, U64)), 6)
_length = _mostly(_some_pages, st.sampled_from((0, 1, 4095, 4097, 64 * PAGE, 1 << 24)), 5)
# Of the far ones each is allowed by any MAXPHYADDR, or by none.
_gpa = _mostly(
    st.sampled_from(range(0, 24 * PAGE, PAGE)),
    st.sampled_from((1, 4095, 1 << 32, (1 << 36) - PAGE, 1 << 52, 1 << 63, U64 - PAGE + 1)),
)
_slot = _mostly(
    st.sampled_from(range(5)), st.sampled_from((32763, 32764, 0xFFFF, 0x10000, 0x10001, 0x20000, 1 << 31, (1 << 32) - 1))
)
_slot_size = _mostly(_some_pages, st.sampled_from((0, 0, 0, 1, 4095, 4097, 1 << 43, 1 << 63, U64 - PAGE + 1, U64)), 4)
_slot_flags = st.sampled_from((0, 4, 4, 4, 1, 2, 3, 5, 6, 7, 8, 1 << 16, 1 << 17, 1 << 31))
_hva = _mostly(_arena, st.sampled_from((0, 0, 1, 2048, (1 << 47) - PAGE, 1 << 47, 1 << 63, U64 - PAGE + 1)), 3)
_gmem_size = _mostly(
    _some_pages, st.sampled_from((0, 1, 4095, 4097, 1 << 30, 1 << 40, 1 << 62, 1 << 63, U64 - PAGE + 1, U64))
)
_gmem_flags = st.sampled_from((3, 3, 3, 1, 0, 0, 2, 4, 8, 1 << 63, U64))
_gmem_offset = _mostly(_pages, _odd)
# PROT_EXEC alone isn't drawn: whether it can be read depends on the processor (protection keys).
_prot = st.sampled_from((3, 3, 3, 1, 2, 0, 5, 7, 8, 1 << 24))
_map_kind = st.sampled_from((1, 1, 1, 1, 2, 3, 0, 4))
_map_how = st.sampled_from((mman.MAP_FIXED, mman.MAP_FIXED, mman.MAP_FIXED_NOREPLACE))
_map_more = st.sampled_from((0,) * 8 + (mman.MAP_POPULATE, mman.MAP_NORESERVE, mman.MAP_LOCKED, mman.MAP_SYNC, 0x100, 0x800))
_advice = st.sampled_from(
    (0, 1, 2, 3, 4, 4, 4, 9, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 22, 23, 23, 24, 25, 26, 99)
)
# A large length only where nothing can be allocated for it: it's negative, or the mode punches, or the kernel refuses.
_falloc = st.one_of(
    st.tuples(st.sampled_from((1, 1, 3, 3, 0, 2, 8, 9, 16, 17, 32, 64, 65, 128, 4, 1 << 30)), _pages, _some_pages),
    st.tuples(st.sampled_from((1, 3)), _pages, st.sampled_from((0, 1, 2048, 4097))),
    st.tuples(st.just(3), _pages, st.sampled_from((1 << 40, 1 << 62, (1 << 63) - PAGE))),
    st.tuples(st.sampled_from((1, 3)), st.sampled_from((1, 512, 1 << 62, (1 << 63) - PAGE, -1, -PAGE)), _some_pages),
    st.tuples(st.sampled_from((1, 3)), _pages, st.sampled_from((-1, -PAGE))),
)
_requests = st.sampled_from(
    (
        kvm.KVM_CREATE_GUEST_MEMFD,
        kvm.KVM_SET_USER_MEMORY_REGION,
        kvm.KVM_SET_USER_MEMORY_REGION2,
        kvm.KVM_SET_MEMORY_ATTRIBUTES,
        kvm.KVM_SET_MEMORY_ATTRIBUTES2,
        kvm.KVM_PRE_FAULT_MEMORY,
        kvm.KVM_GET_DIRTY_LOG,
        kvm.KVM_ENABLE_CAP,
        0xAEFF,
    )
)


# Whether neighbours of several pages are one mapping depends on who touched them first (anon_vma): mostly one page goes.
_old_length = st.sampled_from((PAGE, PAGE, PAGE, PAGE, 2 * PAGE, 4 * PAGE))
_splice_flags = _mostly(st.sampled_from((0, 1, 4, 8)), st.sampled_from((16, 1 << 31)), 12)


def _call(name: str, /, **args: st.SearchStrategy[object]) -> st.SearchStrategy[Step]:
    keys = tuple(args)
    return st.tuples(*args.values()).map(lambda values: Step(name, dict(zip(keys, values, strict=True))))


class _Weighted(NamedTuple):
    weight: int
    call: st.SearchStrategy[Step]


_TABLE = (
    _Weighted(6, _call("create_gmem", vm=_ref("vm"), size=_gmem_size, flags=_gmem_flags)),
    _Weighted(1, _call("create_vcpu", vm=_ref("vm"), id=st.sampled_from((0, 1, 4095, 4096, U64)))),
    _Weighted(1, _call("create_memfd", size=_pages)),
    _Weighted(3, _call("close", fd=_any_ref)),
    _Weighted(2, _call("dup", fd=_any_ref)),
    _Weighted(
        14,
        _call(
            "set_region2",
            vm=_ref("vm"),
            slot=_slot,
            flags=_slot_flags,
            gpa=_gpa,
            size=_slot_size,
            hva=_hva,
            gmem=_ref("gmem"),
            offset=_gmem_offset,
        ),
    ),
    _Weighted(4, _call("set_region", vm=_ref("vm"), slot=_slot, flags=_slot_flags, gpa=_gpa, size=_slot_size, hva=_hva)),
    _Weighted(
        2,
        _call(
            "set_attributes",
            vm=_ref("vm"),
            gpa=_gpa,
            size=_mostly(_some_pages, _bad_size),
            attributes=st.sampled_from((0, 8, 8, 1, 16)),
            flags=_mostly(st.just(0), _bits64),
        ),
    ),
    _Weighted(1, _call("dirty_log", vm=_ref("vm"), slot=_slot, bitmap=_pointer)),
    _Weighted(1, _call("pre_fault", vcpu=_ref("vcpu"), gpa=_gpa, size=_length, flags=_mostly(st.just(0), _bits64))),
    _Weighted(
        1, _call("check_extension", fd=_ref("vm"), cap=st.sampled_from((10, 16, 81, 231, 232, 233, 234, 236, 244, 250)))
    ),
    _Weighted(3, _call("ioctl", fd=_any_ref, request=_requests, arg=_pointer)),
    _Weighted(
        12,
        _call(
            "mmap",
            address=_mostly(_arena, _address, 9),
            length=_length,
            prot=_prot,
            flags=st.builds(lambda *parts: sum(parts), _map_kind, _map_how, _map_more),
            fd=st.sampled_from(("gmem", "gmem", "gmem", "memfd", "vm")).flatmap(_ref),
            offset=_mostly(_pages, st.sampled_from((1, 4095, 1 << 40, (1 << 63) - PAGE)), 9),
        ),
    ),
    _Weighted(2, _call("anonymous", address=_arena, length=_some_pages, shared=st.booleans())),
    _Weighted(3, _call("munmap", address=_mostly(_arena, _address, 9), length=_length)),
    _Weighted(4, _call("mprotect", address=_mostly(_arena, _address, 9), length=_length, prot=_prot)),
    _Weighted(7, _call("madvise", address=_mostly(_arena, _address, 9), length=_length, advice=_advice)),
    _Weighted(
        8,
        _falloc.flatmap(
            lambda f: _call("fallocate", fd=_ref("gmem"), mode=st.just(f[0]), offset=st.just(f[1]), length=st.just(f[2]))
        ),
    ),
    _Weighted(1, _call("ftruncate", fd=_ref("gmem"), length=_pages)),
    _Weighted(1, _call("resize_memfd", fd=_ref("memfd"), length=_pages)),
    _Weighted(3, _call("fstat", fd=_ref("gmem"))),
    _Weighted(1, _call("read", fd=_ref("gmem"), length=_pages, positioned=st.booleans())),
    _Weighted(10, _call("load", address=_address, length=st.sampled_from((1, 8, PAGE, 3 * PAGE)))),
    _Weighted(
        12, _call("store", address=_address, byte=st.integers(1, 255), length=st.sampled_from((1, 8, PAGE, 2 * PAGE)))
    ),
    _Weighted(
        6,
        _call(
            "mremap",
            address=_mostly(_arena, _address, 9),
            old=_mostly(_old_length, st.sampled_from((0, 1, 4097, 1 << 46, U64)), 9),
            new=_mostly(_old_length, st.sampled_from((0, 1, 4097, 1 << 46, 1 << 63, U64)), 9),
            flags=st.sampled_from((3, 3, 3, 3, 1, 1, 0, 0, 7, 7, 5, 2, 4, 8, 1 << 31)),
            to=_mostly(_arena, st.sampled_from((0x800, 1 << 47, (1 << 47) - PAGE, 1 << 63)), 12),
        ),
    ),
    _Weighted(2, _call("mlock", address=_address, length=_length)),
    _Weighted(2, _call("munlock", address=_address, length=_length)),
    _Weighted(1, _call("create_pipe")),
    _Weighted(
        1, _call("pipe_write", fd=_ref("writes"), byte=st.integers(1, 255), length=st.sampled_from((1, 100, PAGE, 5 * PAGE)))
    ),
    _Weighted(
        2,
        _call(
            "splice",
            fd_in=st.sampled_from(("reads", "reads", "memfd", "gmem")).flatmap(_ref),
            fd_out=st.sampled_from(("writes", "writes", "memfd", "gmem")).flatmap(_ref),
            length=_length,
            flags=_splice_flags,
        ),
    ),
    _Weighted(
        3,
        _call(
            "vmsplice",
            fd=st.sampled_from(("writes", "writes", "reads", "gmem")).flatmap(_ref),
            address=_pointer,
            length=_length,
            flags=_splice_flags,
        ),
    ),
    _Weighted(2, _call("read", fd=_ref("reads"), length=_length, positioned=st.just(False))),
    _Weighted(3, _call("process_vm", local=_pointer, remote=_pointer, length=_length, write=st.booleans())),
    _Weighted(1, _call("in_child", vm=_ref("vm"), gmem=_ref("gmem"), address=_address)),
)


def steps(vm_types: tuple[int, ...]) -> st.SearchStrategy[Step]:
    """One step, where VMs of these types can be made."""
    vm_type = _mostly(st.sampled_from(vm_types), st.sampled_from((6, 9, 31, 1 << 40)))
    table = (_Weighted(3, _call("create_vm", vm_type=vm_type)), *_TABLE)
    return st.sampled_from([entry.call for entry in table for _ in range(entry.weight)]).flatmap(lambda call: call)


def _shared(address: int, number: int) -> Step:
    where = {"address": address, "length": 8 * PAGE, "prot": 3, "flags": 0x11, "fd": Ref("gmem", number), "offset": 0}
    return Step("mmap", where)


def _bound(slot: int, gmem: int) -> Step:
    gpa, hva = slot * 8 * PAGE, ARENA + 24 * PAGE
    return Step(
        "set_region2",
        {
            "vm": Ref("vm", 0),
            "slot": slot,
            "flags": 4,
            "gpa": gpa,
            "size": 4 * PAGE,
            "hva": hva,
            "gmem": Ref("gmem", gmem),
            "offset": 0,
        },
    )


_PROLOGUE: tuple[Step, ...] = (
    Step("create_gmem", {"vm": Ref("vm", 0), "size": 8 * PAGE, "flags": 3}),
    Step("create_gmem", {"vm": Ref("vm", 0), "size": 8 * PAGE, "flags": 3}),
    Step("create_gmem", {"vm": Ref("vm", 0), "size": 8 * PAGE, "flags": 1}),
    Step("create_gmem", {"vm": Ref("vm", 1), "size": 4 * PAGE, "flags": 0}),
    Step("create_vcpu", {"vm": Ref("vm", 0), "id": 0}),
    Step("create_memfd", {"size": 4 * PAGE}),
    Step("create_pipe", {}),
    _shared(ARENA, 0),
    _shared(ARENA + 8 * PAGE, 1),
    _shared(ARENA + 16 * PAGE, 2),
    _shared(ARENA + 20 * PAGE, 0),
    Step("anonymous", {"address": ARENA + 28 * PAGE, "length": 8 * PAGE, "shared": False}),
    Step(
        "mmap",
        {"address": ARENA + 36 * PAGE, "length": 8 * PAGE, "prot": 3, "flags": 0x11, "fd": Ref("memfd", 0), "offset": 0},
    ),
    _bound(0, 0),
    _bound(1, 1),
    Step("store", {"address": ARENA, "byte": 0xA1, "length": 4 * PAGE}),
    Step("store", {"address": ARENA + 8 * PAGE, "byte": 0xA2, "length": 2 * PAGE}),
)
"""What a sequence mostly starts with once it has two VMs, so that the rest meets something."""


def prologue(vm_types: tuple[int, ...]) -> tuple[Step, ...]:
    """The first steps of a sequence: VMs of the richest type there is, and what they need.  Each may be left out."""
    create = Step("create_vm", {"vm_type": vm_types[-1]})
    return (create, create, *_PROLOGUE)

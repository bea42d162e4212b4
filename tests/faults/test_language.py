# SPDX-License-Identifier: GPL-2.0-or-later
"""The language of orders: what it reads, what it writes, and what it says about what it can't read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gmemu
from gmemu.faults import Order, OrderError, What
from gmemu.faults.language import ALL, NAMED, ON_PAGES, At
from gmemu.faults.names import ALLOCATION_SITES, call_names, names_of, result_value, results_of


@pytest.mark.parametrize(
    ("text", "order"),
    [
        (
            "psp LAUNCH_UPDATE gfn=0x800 -> INVALID_PAGE_STATE",
            Order(What.PSP, "LAUNCH_UPDATE", "INVALID_PAGE_STATE", gfn=0x800),
        ),
        ("psp LAUNCH_UPDATE gpa=0x800000 → RESOURCE_LIMIT", Order(What.PSP, "LAUNCH_UPDATE", "RESOURCE_LIMIT", gfn=0x800)),
        (
            "seamcall MEM_PAGE_AUG nth=2 times=3 -> OPERAND_BUSY",
            Order(What.SEAMCALL, "MEM_PAGE_AUG", "OPERAND_BUSY", nth=2, times=3),
        ),
        ("alloc page p=0.25 seed=7 times=all -> ENOMEM", Order(What.ALLOC, "page", "ENOMEM", p=0.25, seed=7, times=ALL)),
        (
            "signal during=SNP_LAUNCH_UPDATE at=page nth=3",
            Order(What.SIGNAL, during="SNP_LAUNCH_UPDATE", at=At.PAGE, nth=3),
        ),
        (
            "pin offset=0x2000 during=KVM_SET_MEMORY_ATTRIBUTES2 call=2 hold=0",
            Order(What.PIN, offset=0x2000, during="KVM_SET_MEMORY_ATTRIBUTES2", call=2, hold=0),
        ),
        (
            "rmp RMPUPDATE after=psp:LAUNCH_START before=KVM_RUN vm=0 vcpu=1 -> FAIL_INUSE",
            Order(What.RMP, "RMPUPDATE", "FAIL_INUSE", after="psp:LAUNCH_START", before="KVM_RUN", vm=0, vcpu=1),
        ),
        ("ref gfn=3 at=lock lock=slots_lock", Order(What.REF, gfn=3, at=At.LOCK, lock="slots_lock")),
        ("tdcall MEM_PAGE_ACCEPT -> 0x8000020000000001", Order(What.TDCALL, "MEM_PAGE_ACCEPT", "0x8000020000000001")),
    ],
)
def test_reads_and_writes(text: str, order: Order) -> None:
    assert Order.parse(text) == order
    assert Order.parse(str(order)) == order


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "an empty order; begin with alloc"),
        ("-> ENOMEM", "an empty order"),
        ("firmware LAUNCH_UPDATE", "nothing called 'firmware' can be ordered; there are alloc"),
        ("psp", r"psp has no \(nothing\); there are INIT"),
        ("psp LAUNCH", "psp has no LAUNCH; there are INIT"),
        ("psp LAUNCH_UPDATE", "with what result"),
        ("psp LAUNCH_UPDATE -> ENOMEM", "psp can't come to ENOMEM; it can to INVALID_PLATFORM_STATE"),
        ("psp LAUNCH_UPDATE -> SUCCESS", "can't come to SUCCESS"),
        ("psp LAUNCH_UPDATE ->", "after -> comes one result, not 'nothing'"),
        ("psp LAUNCH_UPDATE 3 -> ACTIVE", "'3' isn't key=value"),
        ("psp LAUNCH_UPDATE n=3 -> ACTIVE", "n= means nothing; the keys are gpa, gfn"),
        ("psp LAUNCH_UPDATE nth=x -> ACTIVE", "nth=x isn't a number"),
        ("psp LAUNCH_UPDATE nth=0 -> ACTIVE", "both count from 1"),
        ("psp LAUNCH_UPDATE p=2 -> ACTIVE", "isn't a probability"),
        ("psp LAUNCH_UPDATE p=often -> ACTIVE", "p=often isn't a number"),
        ("psp LAUNCH_UPDATE at=page -> ACTIVE", "psp fails where it stands"),
        ("psp LAUNCH_UPDATE offset=0 -> ACTIVE", "offset= is for ref, pin and poison"),
        ("alloc page gfn=1 -> ENOMEM", "alloc isn't about a guest page"),
        ("tdcall MEM_PAGE_ACCEPT pfn=1 -> OPERAND_BUSY", "tdcall knows no pfn"),
        ("signal SIGTERM", "signal has no name and no result"),
        ("signal call=2", "call=2 of what"),
        ("signal during=SET_MEMORY", "there is no call SET_MEMORY; there are KVM_SET_MEMORY_ATTRIBUTES"),
        ("signal after=psp:NOTHING", "psp has no NOTHING"),
        ("signal after=lock:slots_lock", "there are no events lock:NAME"),
        ("signal at=once", "at=once isn't a point of a call"),
        ("signal at=lock", "go together"),
        ("signal lock=mmap_lock", "go together"),
        ("pin during=KVM_RUN", "pin on which page"),
        ("pin offset=5", "isn't the start of a page"),
        ("pin offset=0 gfn=0", "instead of gfn="),
    ],
)
def test_says_what_would_make_sense(text: str, sentence: str) -> None:
    with pytest.raises(OrderError, match=sentence):
        Order.parse(text)


_small = st.integers(0, 1 << 40)
_calls = st.sampled_from(call_names())
_when = {"vm": _small, "vcpu": _small, "seed": _small, "before": _calls, "after": st.just("alloc:page")}


@st.composite
def orders(draw: st.DrawFn) -> Order:
    what = draw(st.sampled_from(What))
    values: dict[str, object] = {key: draw(values) for key, values in _when.items() if draw(st.booleans())}
    values |= {"nth": draw(st.integers(1, 99)), "times": draw(st.integers(1, 9) | st.just(ALL))}
    values |= {"p": draw(st.sampled_from((1.0, 0.5)))}
    if draw(st.booleans()):
        values |= {"during": draw(_calls), "call": draw(st.integers(0, 5))}
    if what in NAMED:
        values |= {"name": draw(st.sampled_from(names_of(what))), "result": draw(st.sampled_from(list(results_of(what))))}
    if what in ON_PAGES:
        values |= draw(st.fixed_dictionaries({"gfn": _small}) | st.fixed_dictionaries({"offset": st.just(8192)}))
    return Order(what, **values)  # type: ignore[arg-type]


@given(orders())
def test_what_is_written_can_be_read(order: Order) -> None:
    assert Order.parse(str(order)) == order


@given(st.text(alphabet="psp alocfgn=->0x13,SNP_LUHDTEKVM", max_size=40))
def test_never_anything_but_its_own_error(text: str) -> None:
    try:
        order = Order.parse(text)
    except OrderError:
        return
    assert Order.parse(str(order)) == order


def test_allocation_sites_are_those_of_the_source() -> None:
    source = Path(gmemu.__file__).parent
    files = [path for floor in ("kvm", "mm", "hw") for path in (source / floor).rglob("*.py")]
    found = {site for path in files for site in re.findall(r'\.allocate\("([\w-]+)"\)', path.read_text())}
    assert found | {"page"} == set(ALLOCATION_SITES)


def test_results_have_values() -> None:
    assert result_value("psp", "INVALID_PAGE_STATE") == 0x1A
    assert result_value("rmp", "FAIL_OVERLAP") == 4
    assert result_value("tdcall", "0x10") == 16

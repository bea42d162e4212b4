# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu stat`."""

from __future__ import annotations

from .conftest import Gmemu

MIB = 1 << 20


def test_doubling_can_be_seen_beside_in_place(gmemu: Gmemu) -> None:
    data = gmemu("stat", "--size", "0x100000", "--json").json
    assert (data["simulated"], data["size"]) == (True, MIB)
    two, one = data["profiles"]
    assert (two["profile"], one["profile"]) == ("linux-7.3", "inplace-v13")
    used = [{s["when"]: s for s in run["stages"]}["used"] for run in (two, one)]
    assert [s["in_both_pools"] for s in used] == [MIB, 0]
    assert [s["total"] for s in used] == [2 * MIB, MIB]
    assert used[0]["peak"] >= 2 * MIB > used[1]["peak"]


def test_text(gmemu: Gmemu) -> None:
    done = gmemu("stat", "--size", "0x100000", "--platform", "snp", "--profile", "inplace-v13")
    assert (done.code, done.err) == (0, "")
    assert "snp, 1 MiB, inplace-v13: KVM_SET_MEMORY_ATTRIBUTES2, guest_memfd" in done.out
    for word in "created", "written", "converted", "used", "given back", "firmware":
        assert word in done.out


def test_what_cant_be_asked(gmemu: Gmemu) -> None:
    for words in (("--platform", "tdx", "--profile", "linux-6.12"), ("--size", "5"), ("--profile", "linux-1.0")):
        done = gmemu("stat", *words)
        assert (done.code, done.out) == (2, "")
        assert done.err.count("\n") == 1

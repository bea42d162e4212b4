# SPDX-License-Identifier: GPL-2.0-or-later
"""SNP_LAUNCH_UPDATE: the order of its checks, what it leaves in memory and in the RMP, and what it measures."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import sha384

import pytest

from gmemu.hw.snp.cpu import GENOA
from gmemu.hw.snp.digest import BLANK, LaunchDigest, Row, vmsa_contents
from gmemu.hw.snp.firmware import PlatformState
from gmemu.hw.snp.guest_context import GuestState
from gmemu.hw.snp.rmp import RmpState
from gmemu.hw.snp.special_pages import tsc_scale
from gmemu.uapi.sev import (
    SVM_SEV_FEAT_SECURE_TSC,
    SVM_SEV_FEAT_SNP_ACTIVE,
    SVM_SEV_FEAT_VMSA_REG_PROT,
    PspCommand,
    PspStatus,
    SnpPageType,
    sev_es_save_area,
    snp_cpuid_entry,
    snp_cpuid_table,
    snp_secrets_page,
)

from .machine import ASID, COVERED, GCTX, GFN, OK, PAGE, POLICY, Machine, Stepping

NORMAL, VMSA, ZERO, UNMEASURED, SECRETS, CPUID = SnpPageType
GPA = GFN << 12
S = PspStatus


@pytest.fixture
def launched(machine: Machine) -> Machine:
    """A machine with a guest in LAUNCH and a PRE_GUEST page of `P`s."""
    machine.guest()
    machine.fill(PAGE, b"P" * 4096)
    machine.pre_guest()
    return machine


# Each of these breaks one rule.  "special" asks for a 2 MiB VMSA, "type" for a type that doesn't exist.
RULES = {
    "reserved": S.INVALID_PARAM,
    "platform": S.INVALID_PLATFORM_STATE,
    "context": S.INVALID_GUEST,
    "page state": S.INVALID_PAGE_STATE,
    "page size": S.INVALID_PAGE_SIZE,
    "special": S.INVALID_PAGE_SIZE,
    "type": S.INVALID_PARAM,
    "guest state": S.INVALID_GUEST_STATE,
    "inactive": S.INACTIVE,
    "owner": S.INVALID_PAGE_OWNER,
    "imi": S.INVALID_PARAM,
}
ORDER = [
    ("reserved", "platform"),
    ("platform", "context"),
    ("context", "page state"),
    ("page state", "page size"),
    ("page size", "type"),
    ("page size", "special"),
    ("special", "guest state"),
    ("type", "guest state"),
    ("guest state", "inactive"),
    ("inactive", "owner"),
    ("owner", "imi"),
]


def update_breaking(machine: Machine, broken: set[str]) -> PspStatus:
    machine.guest(imi="imi" in broken)
    guest = machine.psp.contexts[GCTX]
    huge = "special" in broken
    machine.pre_guest(asid=ASID + 1 if "owner" in broken else ASID, pagesize=int(huge))
    if "page state" in broken:
        assert machine.psp.page_reclaim(PAGE, int(huge)) == OK
    if "guest state" in broken:
        guest.state = GuestState.RUNNING
    if "inactive" in broken:
        guest.asid = 0
    if "platform" in broken:
        machine.psp.state = PlatformState.UNINIT
    status, done = machine.psp.launch_update(
        3 if "context" in broken else GCTX,
        PAGE,
        VMSA if huge else 0 if "type" in broken else NORMAL,
        pagesize=int(huge) ^ ("page size" in broken),
        reserved=int("reserved" in broken),
    )
    assert done == 0
    assert guest.ld.value == BLANK
    return status


@pytest.mark.parametrize("rule", RULES)
def test_each_check(machine: Machine, rule: str) -> None:
    assert update_breaking(machine, {rule}) == RULES[rule]


@pytest.mark.parametrize(("first", "second"), ORDER)
def test_the_earlier_check_wins(machine: Machine, first: str, second: str) -> None:
    assert update_breaking(machine, {first, second}) == RULES[first]


@pytest.mark.parametrize("page_type", [0, 7, 8, -1])
def test_types_that_do_not_exist(launched: Machine, page_type: int) -> None:
    assert launched.psp.launch_update(GCTX, PAGE, page_type) == (S.INVALID_PARAM, 0)


@pytest.mark.parametrize("page_type", [VMSA, SECRETS, CPUID])
def test_types_of_4k_only(machine: Machine, page_type: int) -> None:
    machine.guest()
    machine.pre_guest(pagesize=1)
    assert machine.psp.launch_update(GCTX, PAGE, page_type, pagesize=1) == (S.INVALID_PAGE_SIZE, 0)


@pytest.mark.parametrize("state", [GuestState.INIT, GuestState.RUNNING])
def test_a_late_or_early_update(launched: Machine, state: GuestState) -> None:
    launched.psp.contexts[GCTX].state = state
    assert launched.psp.launch_update(GCTX, PAGE, NORMAL) == (S.INVALID_GUEST_STATE, 0)


def test_the_same_page_twice(launched: Machine) -> None:
    assert launched.psp.launch_update(GCTX, PAGE, NORMAL) == (OK, 1)
    assert launched.psp.launch_update(GCTX, PAGE, NORMAL) == (S.INVALID_PAGE_STATE, 0)


def test_pages_without_a_usable_entry(launched: Machine) -> None:
    assert launched.psp.launch_update(GCTX, PAGE + 1, NORMAL) == (S.INVALID_PAGE_STATE, 0)
    assert launched.psp.launch_update(GCTX, COVERED, NORMAL) == (S.INVALID_PAGE_STATE, 0)


def test_below_a_huge_page(machine: Machine) -> None:
    machine.guest()
    machine.pre_guest(pagesize=1)
    assert machine.psp.launch_update(GCTX, PAGE, NORMAL) == (S.INVALID_PAGE_SIZE, 0)
    assert machine.psp.launch_update(GCTX, PAGE + 1, NORMAL) == (S.INVALID_PAGE_STATE, 0)
    assert machine.psp.launch_update(GCTX, PAGE + 1, NORMAL, pagesize=1) == (S.INVALID_PAGE_STATE, 0)


class TestPages:
    """What the guest finds."""

    @pytest.mark.parametrize("page_type", SnpPageType)
    def test_becomes_guest_valid(self, launched: Machine, page_type: SnpPageType) -> None:
        launched.memory.write(PAGE << 12, bytes(4096))
        assert launched.psp.launch_update(GCTX, PAGE, page_type, vmpl_masks=(1, 2, 4)) == (OK, 1)
        entry = launched.rmp.lookup(PAGE)
        assert entry is not None
        assert launched.rmp.state(PAGE) is RmpState.GUEST_VALID
        assert (entry.vmsa, entry.vmpl, entry.gfn(PAGE)) == (page_type == VMSA, (31, 1, 2, 4), GFN)
        launched.rmp.check_guest(PAGE, GFN, ASID, 0, 2, True)

    @pytest.mark.parametrize("page_type", [NORMAL, UNMEASURED])
    def test_source_bytes_encrypted_in_place(self, launched: Machine, page_type: SnpPageType) -> None:
        launched.psp.launch_update(GCTX, PAGE, page_type)
        assert launched.page(PAGE, ASID) == b"P" * 4096
        assert launched.page(PAGE) != b"P" * 4096

    def test_zero(self, launched: Machine) -> None:
        launched.psp.launch_update(GCTX, PAGE, ZERO)
        assert launched.page(PAGE, ASID) == bytes(4096)

    def test_secrets(self, machine: Machine) -> None:
        guest = machine.guest(gosvw=b"G" * 16)
        machine.fill(PAGE, b"P" * 4096)
        machine.pre_guest()
        machine.psp.launch_update(GCTX, PAGE, SECRETS)
        page = snp_secrets_page.unpack_from(machine.page(PAGE, ASID))
        assert page == snp_secrets_page(
            version=3,
            fms=GENOA.signature,
            gosvw=b"G" * 16,
            vmpck0=guest.vmpck[0],
            vmpck1=guest.vmpck[1],
            vmpck2=guest.vmpck[2],
            vmpck3=guest.vmpck[3],
            tsc_factor=200,
        )
        raw = machine.page(PAGE, ASID)
        assert raw[0x20:0xA0] == b"".join(guest.vmpck)
        assert int.from_bytes(raw[0x160:0x164], "little") == 200

    def test_secrets_of_a_migration_image(self, machine: Machine) -> None:
        machine.guest(imi=True)
        machine.pre_guest()
        machine.psp.launch_update(GCTX, PAGE, SECRETS, imi=True)
        assert machine.page(PAGE, ASID)[4] == 1

    def test_vmsa(self, launched: Machine) -> None:
        vmsa = bytearray(random.Random(3).randbytes(4096))
        vmsa[0x3B0:0x3B8] = SVM_SEV_FEAT_SNP_ACTIVE.to_bytes(8, "little")
        launched.memory.write(PAGE << 12, vmsa)
        launched.psp.launch_update(GCTX, PAGE, VMSA)
        assert launched.page(PAGE, ASID) == vmsa
        assert launched.psp.contexts[GCTX].ld.value == LaunchDigest().extend(VMSA, GPA, vmsa_contents(vmsa))

    def test_vmsa_with_secure_tsc(self, launched: Machine) -> None:
        guest = launched.psp.contexts[GCTX]
        guest.desired_tsc_khz = 2_450_001
        area = sev_es_save_area(sev_features=SVM_SEV_FEAT_SECURE_TSC, tsc_scale=1, tsc_offset=2)
        launched.memory.write(PAGE << 12, area.pack())
        before = launched.page(PAGE)
        launched.psp.launch_update(GCTX, PAGE, VMSA)
        after = sev_es_save_area.unpack_from(launched.page(PAGE, ASID))
        assert (after.tsc_scale, after.tsc_offset) == (tsc_scale(2_450_001, 100_000), 0)
        assert after.tsc_scale >> 32 == 24
        assert guest.ld.value == LaunchDigest().extend(VMSA, GPA, vmsa_contents(before))

    def test_vmsa_with_register_protection(self) -> None:
        machine = Machine(cpu=GENOA._replace(vmsa_tweak_bitmap=(1 << (0x178 // 8)).to_bytes(64, "little")))
        machine.guest()
        area = sev_es_save_area(sev_features=SVM_SEV_FEAT_VMSA_REG_PROT, rip=0xFFF0, rsp=5)
        machine.fill(PAGE, area.pack())
        before = machine.page(PAGE)
        machine.pre_guest()
        machine.psp.launch_update(GCTX, PAGE, VMSA)
        page = machine.page(PAGE, ASID)
        after, nonce = sev_es_save_area.unpack_from(page), int.from_bytes(page[0x300:0x308], "little")
        assert nonce
        assert (after.rip, after.rsp) == (0xFFF0 ^ nonce, 5)
        assert machine.psp.contexts[GCTX].ld.value == LaunchDigest().extend(VMSA, GPA, vmsa_contents(before))
        machine.close()

    def test_tsc_scale_rounds_up(self) -> None:
        assert tsc_scale(0, 100_000) == 0
        assert tsc_scale(250_000, 100_000) == 2 << 32 | 1 << 31
        assert tsc_scale(1, 100_000) == -(-(1 << 32) // 100_000)

    @pytest.mark.parametrize("page_type", [NORMAL, UNMEASURED])
    def test_a_page_with_a_foreign_key_is_read_as_the_host_sees_it(self, machine: Machine, page_type: SnpPageType) -> None:
        guest = machine.guest()
        machine.memory.write(PAGE << 12, b"secret" * 100, key=99)
        seen = machine.page(PAGE)
        machine.pre_guest()
        machine.psp.launch_update(GCTX, PAGE, page_type)
        assert machine.page(PAGE, ASID) == seen
        contents = sha384(seen).digest() if page_type == NORMAL else BLANK
        assert guest.ld.value == LaunchDigest().extend(page_type, GPA, contents)


class TestMeasurement:
    @pytest.mark.parametrize("page_type", SnpPageType)
    def test_contents(self, launched: Machine, page_type: SnpPageType) -> None:
        if page_type == CPUID:
            launched.memory.write(PAGE << 12, bytes(4096))
        page = launched.page(PAGE)
        contents = {NORMAL: sha384(page).digest(), VMSA: vmsa_contents(page)}.get(page_type, BLANK)
        launched.psp.launch_update(GCTX, PAGE, page_type)
        assert launched.psp.contexts[GCTX].ld.value == LaunchDigest().extend(page_type, GPA, contents)

    def test_masks_and_imi_are_measured(self, machine: Machine) -> None:
        guest = machine.guest(imi=True)
        machine.pre_guest(count=2)
        machine.psp.launch_update(GCTX, PAGE, ZERO, imi=True, vmpl_masks=(1, 2, 3))
        machine.psp.launch_update(GCTX, PAGE + 1, NORMAL, imi=True)
        ld = LaunchDigest()
        ld.extend(ZERO, GPA, BLANK, imi=True, vmpl_masks=(1, 2, 3))
        ld.extend(NORMAL, GPA + 4096, sha384(bytes(4096)).digest(), imi=True)
        assert guest.ld.value == guest.imd.value == ld.value

    def test_imi_digest_has_only_flagged_pages(self, machine: Machine) -> None:
        guest = machine.guest()
        machine.pre_guest(count=2)
        machine.psp.launch_update(GCTX, PAGE, ZERO)
        assert guest.imd.value == BLANK
        machine.psp.launch_update(GCTX, PAGE + 1, ZERO, imi=True)
        assert guest.imd.value == LaunchDigest().extend(ZERO, GPA + 4096, BLANK, imi=True) != guest.ld.value

    @pytest.mark.parametrize("page_type", [NORMAL, ZERO, UNMEASURED])
    def test_2m_is_512_successive_pages(self, machine: Machine, page_type: SnpPageType) -> None:
        image = random.Random(4).randbytes(512 * 4096)
        small, large = machine.guest(2, 6), machine.guest()
        for pfn in (PAGE, PAGE + 512):
            machine.memory.write(pfn << 12, image)
        machine.pre_guest(PAGE, 512, asid=6)
        machine.pre_guest(PAGE + 512, pagesize=1)
        assert machine.psp.launch_update(2, PAGE, page_type, count=512) == (OK, 512)
        assert machine.psp.launch_update(GCTX, PAGE + 512, page_type, pagesize=1) == (OK, 1)
        assert small.ld.value == large.ld.value
        entry = machine.rmp.lookup(PAGE + 1023)
        assert entry is not None
        assert (entry.pagesize, machine.rmp.state(PAGE + 1023)) == (1, RmpState.GUEST_VALID)
        assert machine.page(PAGE + 1023, ASID) == machine.page(PAGE + 511, 6)

    def test_several_2m_pages(self, machine: Machine) -> None:
        machine.guest()
        machine.pre_guest(count=3, pagesize=1)
        assert machine.psp.launch_update(GCTX, PAGE, ZERO, count=4, pagesize=1) == (S.INVALID_PAGE_STATE, 3)
        assert machine.rmp.state(PAGE + 1535) is RmpState.GUEST_VALID


def table(*entries: snp_cpuid_entry, **head: int) -> bytes:
    packed = snp_cpuid_table(**({"count": len(entries)} | head)).pack()
    return (packed + b"".join(e.pack() for e in entries)).ljust(4096, b"\0")


class TestCpuid:
    GOOD = snp_cpuid_entry(eax_in=7, ebx=0x20)
    BAD = snp_cpuid_entry(eax_in=7, ebx=0x20 | 1 << 1)

    def update(self, machine: Machine, page: bytes) -> PspStatus:
        machine.memory.write(PAGE << 12, page)
        status, done = machine.psp.launch_update(GCTX, PAGE, CPUID)
        assert done == (status == OK)
        return status

    def test_accepted(self, launched: Machine) -> None:
        page = table(self.GOOD)
        assert self.update(launched, page) == OK
        assert launched.page(PAGE, ASID) == page

    def test_corrected_in_plain_and_not_measured(self, launched: Machine) -> None:
        log: list[object] = []
        launched.psp.log = lambda *what: log.append(what)
        assert self.update(launched, table(self.BAD, self.GOOD, self.BAD)) == S.INVALID_PARAM
        assert launched.page(PAGE) == table(self.GOOD, self.GOOD, self.GOOD)
        assert launched.rmp.state(PAGE) is RmpState.PRE_GUEST
        assert launched.psp.contexts[GCTX].ld.value == BLANK
        assert log == []

    def test_the_corrected_table_is_accepted(self, launched: Machine) -> None:
        assert self.update(launched, table(self.BAD)) == S.INVALID_PARAM
        assert launched.psp.launch_update(GCTX, PAGE, CPUID) == (OK, 1)
        assert launched.page(PAGE, ASID) == table(self.GOOD)

    @pytest.mark.parametrize("head", [{"count": 65}, {"reserved1": 1}, {"reserved2": 1}])
    def test_a_bad_head_is_not_corrected(self, launched: Machine, head: dict[str, int]) -> None:
        page = table(self.BAD, **head)
        assert self.update(launched, page) == S.INVALID_PARAM
        assert launched.page(PAGE) == page
        assert launched.rmp.state(PAGE) is RmpState.PRE_GUEST

    def test_the_cpu_can_be_another(self) -> None:
        machine = Machine(cpu=GENOA._replace(features7=(0, 0, 0, 0)))
        machine.guest()
        machine.pre_guest()
        assert self.update(machine, table(self.GOOD)) == S.INVALID_PARAM
        machine.close()


class TestBackToBack:
    PAGES = 200

    @pytest.fixture
    def image(self) -> bytes:
        return random.Random(5).randbytes(self.PAGES * 4096)

    def load(
        self, machine: Machine, image: bytes, count: int
    ) -> tuple[list[tuple[int, int, list[Row]]], list[tuple[int, int]]]:
        """NORMAL, ZERO and UNMEASURED pages and then one of each other kind, `count` commands to a call."""
        log: list[tuple[int, int, list[Row]]] = []
        results: list[tuple[int, int]] = []
        machine.guest(policy=POLICY)
        machine.psp.log = lambda *what: log.append(what)
        machine.memory.write(PAGE << 12, image)
        machine.memory.write((PAGE + 3) << 12, b"foreign", key=77)
        pages = self.PAGES
        machine.pre_guest(count=2 * pages + 53)
        plan = [
            (NORMAL, 0, pages),
            (ZERO, pages, 30),
            (UNMEASURED, pages + 30, 20),
            (SECRETS, pages + 50, 2),
            (VMSA, pages + 52, 1),
        ]
        for page_type, first, n in plan:
            for at in range(first, first + n, count):
                results.append(machine.psp.launch_update(GCTX, PAGE + at, page_type, count=min(count, first + n - at)))
        return log, results

    @pytest.mark.parametrize(("count", "stepping"), [(1, False), (7, False), (1000, True)])
    def test_equals_one_by_one(self, image: bytes, count: int, stepping: bool) -> None:
        fast, slow = Machine(), Machine(Stepping() if stepping else None)
        log, results = self.load(fast, image, 1000)
        other_log, _ = self.load(slow, image, count)
        assert all(status == OK for status, _ in results)
        assert fast.psp.contexts[GCTX].ld.value == slow.psp.contexts[GCTX].ld.value
        assert fast.rmp.entries == slow.rmp.entries
        assert fast.memory.keys == slow.memory.keys
        assert [(t, row) for _, t, rows in log for row in rows] == [(t, row) for _, t, rows in other_log for row in rows]
        length = (self.PAGES + 53) * 4096
        key = fast.psp.keys[ASID]
        assert fast.memory.read(PAGE << 12, length, key) == slow.memory.read(PAGE << 12, length, key)
        assert log[0][2][-1][0] == GPA + (self.PAGES - 1) * 4096
        fast.close()
        slow.close()

    @pytest.mark.parametrize(
        ("spoil", "status"),
        [
            (lambda m: m.psp.page_reclaim(PAGE + 5), S.INVALID_PAGE_STATE),
            (lambda m: m.rmp.entries.set(PAGE + 5, PAGE + 6, None), S.INVALID_PAGE_STATE),
            (
                lambda m: m.rmp.entries.set(PAGE + 5, PAGE + 6, m.rmp.lookup(PAGE)._replace(asid=ASID + 1)),
                S.INVALID_PAGE_OWNER,
            ),
        ],
    )
    def test_stops_at_the_first_failure(
        self, machine: Machine, spoil: Callable[[Machine], object], status: PspStatus
    ) -> None:
        guest = machine.guest()
        machine.pre_guest(count=10)
        spoil(machine)
        assert machine.psp.launch_update(GCTX, PAGE, ZERO, count=10) == (status, 5)
        expected = LaunchDigest()
        expected.extend_blank(ZERO, GPA, 5)
        assert guest.ld.value == expected.value
        assert machine.rmp.state(PAGE + 4) is RmpState.GUEST_VALID
        assert machine.rmp.state(PAGE + 6) is RmpState.PRE_GUEST

    def test_guest_pages_that_do_not_follow_each_other(self, machine: Machine) -> None:
        guest = machine.guest()
        for i, gfn in enumerate((GFN + 2, GFN + 1, GFN + 7)):
            machine.pre_guest(PAGE + i, gfn=gfn)
        assert machine.psp.launch_update(GCTX, PAGE, ZERO, count=3) == (OK, 3)
        expected = LaunchDigest()
        for gfn in (GFN + 2, GFN + 1, GFN + 7):
            expected.extend(ZERO, gfn << 12, BLANK)
        assert guest.ld.value == expected.value

    def test_an_ordered_failure_stops_it_too(self, machine: Machine) -> None:
        machine.guest()
        machine.pre_guest(count=10)
        asked: list[int] = []

        def inject(command: PspCommand, pfn: int) -> PspStatus | None:
            assert command is PspCommand.LAUNCH_UPDATE
            asked.append(pfn)
            return PspStatus.RESOURCE_LIMIT if pfn == PAGE + 3 else None

        machine.psp.inject = inject
        assert machine.psp.launch_update(GCTX, PAGE, NORMAL, count=10) == (S.RESOURCE_LIMIT, 3)
        assert asked == [PAGE, PAGE + 1, PAGE + 2, PAGE + 3]
        assert machine.rmp.state(PAGE + 3) is RmpState.PRE_GUEST

    def test_none(self, launched: Machine) -> None:
        assert launched.psp.launch_update(GCTX, PAGE, NORMAL, count=0) == (OK, 0)
        assert launched.rmp.state(PAGE) is RmpState.PRE_GUEST


def test_against_another_implementation(machine: Machine) -> None:
    gctx = pytest.importorskip("sevsnpmeasure.gctx")
    image = random.Random(6).randbytes(300 * 4096)
    guest = machine.guest()
    machine.memory.write(PAGE << 12, image)
    machine.pre_guest(count=303)
    machine.psp.launch_update(GCTX, PAGE, NORMAL, count=300)
    machine.psp.launch_update(GCTX, PAGE + 300, SECRETS)
    machine.psp.launch_update(GCTX, PAGE + 301, CPUID)
    machine.psp.launch_update(GCTX, PAGE + 302, ZERO)
    machine.pre_guest(PAGE + 512, gfn=0xFFFFFFFFF)
    machine.psp.launch_update(GCTX, PAGE + 512, VMSA)
    peer = gctx.GCTX()
    peer.update_normal_pages(GPA, image)
    peer.update_secrets_page(GPA + 300 * 4096)
    peer.update_cpuid_page(GPA + 301 * 4096)
    peer.update_zero_pages(GPA + 302 * 4096, 4096)
    peer.update_vmsa_page(bytes(4096))
    assert guest.ld.value == peer.ld()

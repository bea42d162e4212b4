# SPDX-License-Identifier: GPL-2.0-or-later
"""Realms: what each call checks, calls out of order, a launch, memory at run time, failures of the RMM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from errno import EBUSY, EFAULT, EINTR, EINVAL, EIO, ENODEV, ENOEXEC, ENXIO, EOPNOTSUPP

import pytest

from gmemu import BusError, ExitReason, ExternalAbort, VmType
from gmemu.api.arm64 import init_vcpu, set_reg
from gmemu.check import check_host
from gmemu.hw.rmm.guest_cpu import RealmGuestCpu
from gmemu.invariants import InvariantViolation
from gmemu.kvm.arch.cca import CcaState
from gmemu.uapi.kvm import (
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
    KVM_SET_MEMORY_ATTRIBUTES2_ZERO,
    SystemEvent,
)
from gmemu.uapi.kvm_arm64 import KVM_ARM_RMI_POPULATE, Psci, PsciReturn, core_reg, kvm_arm_rmi_populate
from gmemu.uapi.rmi import (
    GranuleState,
    Hipas,
    Ripas,
    Rmi,
    RmiStatus,
    RsiResponse,
    rmi_realm_params,
    rmi_rec_params,
    rmi_status,
)

from ..world import PAGE, errno_of, refusal
from .cca_world import GFN, CcaWorld, RealmVm, every_cca_profile
from .platform_world import GPA, PAGES

MIB = 1 << 20


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[CcaWorld]:
    world = CcaWorld(getattr(request, "param", "inplace-v13"))
    yield world
    world.finish()


# KVM_ARM_RMI_POPULATE


@pytest.mark.parametrize(
    ("fields", "rule", "errno"),
    [
        ({"reserved": 1}, "cca.populate.reserved", EINVAL),
        ({"flags": 2}, "cca.populate.flags", EINVAL),
        ({"base": GPA + 1}, "cca.populate.range", EINVAL),
        ({"size": 1}, "cca.populate.range", EINVAL),
        ({"source_uaddr": 0x1001}, "cca.populate.range", EINVAL),
        ({"base": (1 << 64) - PAGE, "size": 2 * PAGE}, "cca.populate.range", EINVAL),
        ({"source_uaddr": (1 << 64) - PAGE, "size": 2 * PAGE}, "cca.populate.range", EINVAL),
        ({"source_uaddr": 0}, "cca.populate.no-source", EINVAL),
        ({"base": (1 << 39) - PAGE, "size": 2 * PAGE}, "cca.populate.protected", EINVAL),
        ({"base": GPA + PAGES * PAGE}, "gmem.populate.slot", EINVAL),
        ({"source_uaddr": 0x1000}, "", EFAULT),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
@every_cca_profile
def test_arguments(world: CcaWorld, fields: dict[str, int], rule: str, errno: int) -> None:
    realm = world.realm()
    realm.make_private()
    args = {"base": GPA, "size": PAGE, "source_uaddr": realm.source.address, "flags": 1, "reserved": 0, **fields}
    buffer = bytearray(kvm_arm_rmi_populate(**args).pack())
    found = refusal(lambda: realm.vm.ioctl(KVM_ARM_RMI_POPULATE, buffer))
    assert found == rule or (not rule and found)
    assert errno_of(lambda: realm.vm.ioctl(KVM_ARM_RMI_POPULATE, buffer)) == errno


def test_nothing_to_do_is_no_error(world: CcaWorld) -> None:
    realm = world.realm(vgic=False)
    assert realm.vm.cca.populate(GPA, 0, PAGE).size == 0
    assert realm.arch.state is CcaState.NONE


def test_only_realms_are_populated(world: CcaWorld) -> None:
    vm = world.vm()
    assert errno_of(lambda: vm.cca.populate(GPA, PAGE, PAGE)) == EINVAL


@every_cca_profile
def test_a_shared_page_isnt_populated(world: CcaWorld) -> None:
    realm = world.realm()
    assert refusal(lambda: realm.vm.cca.populate(GPA, PAGE, realm.source.address)) == "gmem.populate.not-private"


def test_the_source_may_be_shared_guest_memory_and_not_private(world: CcaWorld) -> None:
    realm = world.realm()
    realm.shared[PAGE : PAGE + 5] = b"there"
    realm.make_private(0, 1)
    assert realm.vm.cca.populate(GPA, PAGE, realm.shared.address + PAGE).size == 0
    realm.make_private(2, 1)
    assert errno_of(lambda: realm.vm.cca.populate(GPA + 2 * PAGE, PAGE, realm.shared.address)) == EFAULT


def test_a_range_ends_with_its_slot(world: CcaWorld) -> None:
    realm = world.realm()
    realm.make_private(PAGES - 1, 1)
    left = realm.vm.cca.populate(GPA + (PAGES - 1) * PAGE, 3 * PAGE, realm.source.address)
    assert (left.base, left.size) == (GPA + PAGES * PAGE, 2 * PAGE)
    assert left.source_uaddr == realm.source.address + PAGE


def test_what_is_measured_is_as_the_flags_say(world: CcaWorld) -> None:
    """S41: the page's place always is, its contents only if asked for."""
    measured = set()
    for contents in (b"one", b"two"):
        for measure in (False, True):
            realm = world.realm()
            realm.load(contents, measure=measure)
            measured.add((measure, realm.realm.measurement))
    assert [sum(1 for measure, _ in measured if measure is wanted) for wanted in (False, True)] == [1, 2]
    assert len({rim for _, rim in measured}) == 3


def test_twice_is_an_error(world: CcaWorld) -> None:
    """The page is the realm's by then, so it can't be delegated again."""
    realm = world.realm()
    realm.load(b"once")
    rim = realm.realm.measurement
    assert refusal(lambda: realm.vm.cca.populate(GPA, PAGE, realm.source.address)) == "cca.rmi.delegate"
    assert realm.realm.measurement == rim


# Out of order


def _ran(realm: RealmVm) -> None:
    realm.start()


def _dead(realm: RealmVm) -> None:
    realm.load(b"x")
    realm.arch.state = CcaState.DEAD


def _nothing(realm: RealmVm) -> None:
    pass


def _no_init(realm: RealmVm) -> None:
    realm.load(b"x")
    realm.vm.create_vcpu(7)


ORDER: list[tuple[str, bool, Callable[[RealmVm], None], Callable[[RealmVm], object], int]] = [
    ("populate without a GIC", False, _nothing, lambda r: r.vm.cca.populate(GPA, PAGE, r.source.address), EOPNOTSUPP),
    ("populate after activation", True, _ran, lambda r: r.vm.cca.populate(GPA, PAGE, r.source.address), EBUSY),
    ("populate a dead realm", True, _dead, lambda r: r.vm.cca.populate(GPA, PAGE, r.source.address), ENXIO),
    ("run without a GIC", False, _nothing, lambda r: r.vcpu.run(lambda cpu: None), EOPNOTSUPP),
    ("run a dead realm", True, _dead, lambda r: r.vcpu.run(lambda cpu: None), ENXIO),
    ("run with a vCPU not initialised", True, _no_init, lambda r: r.vcpu.run(lambda cpu: None), ENOEXEC),
    ("create a vCPU after activation", True, _ran, lambda r: r.vm.create_vcpu(5), EBUSY),
]


@pytest.mark.parametrize(("vgic", "before", "call", "errno"), [o[1:] for o in ORDER], ids=[o[0] for o in ORDER])
def test_calls_out_of_order(
    world: CcaWorld,
    vgic: bool,
    before: Callable[[RealmVm], None],
    call: Callable[[RealmVm], object],
    errno: int,
) -> None:
    realm = world.realm(vgic=vgic)
    realm.make_private()
    before(realm)
    assert errno_of(lambda: call(realm)) == errno
    if realm.arch.state is CcaState.DEAD:
        realm.arch.state = CcaState.NEW  # so that it can be torn down


def test_a_gic_that_isnt_initialised(world: CcaWorld) -> None:
    realm = world.realm()
    assert realm.arch.vgic is not None
    realm.arch.vgic.initialized = False
    assert errno_of(lambda: realm.vm.cca.populate(GPA, PAGE, realm.source.address)) == ENODEV
    assert errno_of(lambda: realm.vcpu.run(lambda cpu: None)) == ENODEV


def test_a_failed_activation_kills_the_vm(world: CcaWorld) -> None:
    realm = world.realm()
    world.answers((Rmi.REALM_ACTIVATE, RmiStatus.ERROR_INPUT))
    assert errno_of(lambda: realm.vcpu.run(lambda cpu: None)) == ENXIO
    assert errno_of(lambda: realm.vcpu.run(lambda cpu: None)) == EIO


def test_realms_have_no_dirty_log(world: CcaWorld) -> None:
    realm = world.realm()
    memory = world.kvm.anonymous(PAGE)
    flags = KVM_MEM_LOG_DIRTY_PAGES
    call = realm.vm.set_user_memory_region
    assert refusal(lambda: call(1, 0, PAGE, memory.address, flags)) == "cca.slot.dirty-log"
    assert errno_of(lambda: call(1, 1 << 39, PAGE, memory.address)) == EFAULT


# Launch


def chain(steps: list[tuple[int, bytes]], pc: int, x0: int, ipa_bits: int = 40) -> bytes:
    """The RIM of a realm that KVM launches, worked out apart: parameters, pages, one runnable REC."""

    def h(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    params = rmi_realm_params(s2sz=ipa_bits, num_bps=5, num_wps=3).pack()
    rim = h(params)
    for ipa, page in steps:
        head = (0).to_bytes(8, "little") + (0x100).to_bytes(8, "little") + rim.ljust(64, b"\0")
        body = ipa.to_bytes(8, "little") + (1).to_bytes(8, "little") + h(page.ljust(PAGE, b"\0")).ljust(64, b"\0")
        rim = h((head + body).ljust(256, b"\0"))
    rec = rmi_rec_params(flags=1, pc=pc, gprs=(x0, *(0,) * 7)).pack()
    head = (1).to_bytes(8, "little") + (0x100).to_bytes(8, "little") + rim.ljust(64, b"\0")
    return h((head + h(rec)).ljust(256, b"\0"))


@every_cca_profile
@pytest.mark.parametrize("ipa_bits", [0, 36, 48])
def test_launch_and_measurement(world: CcaWorld, ipa_bits: int) -> None:
    realm = world.realm(2, ipa_bits=ipa_bits)
    set_reg(realm.vcpu, core_reg(32), GPA)
    set_reg(realm.vcpu, core_reg(0), 0x1234)
    realm.load(b"A" * PAGE + b"B" * PAGE, 1)
    seen: list[bytes] = []

    def guest(cpu: RealmGuestCpu) -> None:
        seen.append(cpu.load(GPA + PAGE, 4) + cpu.load(GPA + 2 * PAGE, 4))
        seen.append(cpu.measurement_read(0))

    assert realm.run(guest).reason is ExitReason.HLT
    expected = chain([(GPA + PAGE, b"A" * PAGE), (GPA + 2 * PAGE, b"B" * PAGE)], GPA, 0x1234, ipa_bits or 40)
    assert seen == [b"AAAABBBB", expected.ljust(64, b"\0")]
    assert [rec.runnable for rec in realm.realm.recs.values()] == [True, False]


def test_ripas_is_ram_wherever_there_is_guest_memfd(world: CcaWorld) -> None:
    realm = world.realm().start()
    assert {realm.ripas(page) for page in (0, 1, PAGES - 1)} == {Ripas.RAM}
    assert realm.realm.rtt.entry(GFN + PAGES).ripas is Ripas.EMPTY


def test_pages_are_the_realms_and_come_back_wiped(world: CcaWorld) -> None:
    realm = world.realm().start(b"secret")
    pfn = realm.pfn(0)
    assert world.host.owner(pfn) == "DATA"
    with pytest.raises(BusError):
        realm.shared[:4]
    with pytest.raises(InvariantViolation, match="freed while delegated"):
        world.host.memmap.free_checks[-1](pfn, 1)
    realm.make_shared(0, 1)
    assert world.host.owner(pfn) == "NS"
    assert realm.shared[:6] == bytes(6)


# Memory at run time


@every_cca_profile
def test_conversion_both_ways(world: CcaWorld) -> None:
    realm = world.realm().start()
    page = GPA + 8 * PAGE
    seen: list[bytes] = []

    def guest(cpu: RealmGuestCpu) -> None:
        cpu.store(page, b"mine")
        cpu.convert(page, 2 * PAGE, private=False)
        cpu.store(page, b"hello", shared=True)
        cpu.halt()
        seen.append(cpu.load(page, 6, shared=True))
        cpu.convert(page, 2 * PAGE, private=True)
        seen.append(cpu.load(page, 6))

    assert realm.run(guest).reason is ExitReason.HLT
    assert (realm.ripas(8), realm.ripas(9)) == (Ripas.EMPTY, Ripas.EMPTY)
    check_host(world.host)
    assert realm.shared[8 * PAGE : 8 * PAGE + 5] == b"hello"
    realm.shared[8 * PAGE : 8 * PAGE + 6] = b"answer"
    assert realm.run().reason is ExitReason.HLT
    assert seen == [b"answer", bytes(6)]
    assert (realm.ripas(8), realm.realm.rtt.entry(GFN + 8).hipas) == (Ripas.RAM, Hipas.ASSIGNED)


def test_a_ripas_change_waits_for_the_attribute(world: CcaWorld) -> None:
    """Row 37: one exit with the whole range, met again for as long as nobody converts."""
    realm = world.realm().start()
    exit_ = realm.vcpu.run(lambda cpu: cpu.convert(GPA + 4 * PAGE, 3 * PAGE, private=False))
    for _ in range(2):
        fault = exit_.memory_fault
        assert (fault.gpa, fault.size, exit_.wants_private) == (GPA + 4 * PAGE, 3 * PAGE, False)
        assert exit_.error is not None
        assert exit_.error.errno == EFAULT
        exit_ = realm.vcpu.run()
    realm.make_shared(4, 2)
    assert realm.vcpu.run().reason is ExitReason.MEMORY_FAULT
    realm.make_shared(6, 1)
    assert realm.vcpu.run().reason is ExitReason.HLT


@every_cca_profile
def test_an_access_of_the_other_kind(world: CcaWorld) -> None:
    realm = world.realm().start()
    exit_ = realm.vcpu.run(lambda cpu: cpu.store(GPA + PAGE, b"x", shared=True))
    assert (exit_.reason, exit_.wants_private) == (ExitReason.MEMORY_FAULT, False)
    exit_ = realm.vcpu.run(lambda cpu: cpu.store(GPA + 600 * PAGE, b"x"))
    assert (exit_.reason, exit_.wants_private, exit_.memory_fault.gpa) == (
        ExitReason.MEMORY_FAULT,
        True,
        GPA + 600 * PAGE,
    )


def test_what_is_empty_is_an_external_abort_in_the_realm(world: CcaWorld) -> None:
    realm = world.realm().start()
    aborts: list[int] = []

    def guest(cpu: RealmGuestCpu) -> None:
        try:
            cpu.load(GPA + 2 * PAGES * PAGE)
        except ExternalAbort as abort:
            aborts.append(abort.ipa)
        cpu.load(GPA + 2 * PAGES * PAGE)

    exit_ = realm.run(guest)
    assert aborts == [GPA + 2 * PAGES * PAGE]
    assert exit_.system_event.type == SystemEvent.RESET
    init_vcpu(realm.vm, realm.vcpu)
    assert refusal(lambda: realm.vcpu.run(lambda cpu: None)) == "cca.run.rec-enter"


def test_what_the_host_destroyed(world: CcaWorld) -> None:
    """Row 36: a hole punched behind the realm; only CHANGE_DESTROYED helps."""
    realm = world.realm().start()
    page = GPA + 3 * PAGE
    realm.run(lambda cpu: cpu.store(page, b"mine"))
    realm.gmem.punch_hole(3 * PAGE, PAGE)
    assert realm.ripas(3) is Ripas.DESTROYED
    assert errno_of(lambda: realm.vcpu.run(lambda cpu: cpu.load(page))) == EINTR
    answers: list[object] = []

    def guest(cpu: RealmGuestCpu) -> None:
        answers.append(cpu.ipa_state_get(page, page + 4 * PAGE))
        answers.append(cpu.ipa_state_set(page, page + PAGE, Ripas.RAM, change_destroyed=False))
        answers.append(cpu.ipa_state_set(page, page + PAGE, Ripas.RAM))
        answers.append(cpu.load(page, 4))

    assert realm.run(guest).reason is ExitReason.HLT
    assert answers == [
        (0, page + PAGE, Ripas.DESTROYED),
        (0, page, RsiResponse.REJECT),
        (0, page + PAGE, RsiResponse.ACCEPT),
        bytes(4),
    ]


def test_the_host_may_reject(world: CcaWorld) -> None:
    """Row 38."""
    realm = world.realm().start()
    world.host.rmm.reject_ripas_change = lambda base, top: True
    answers: list[object] = []

    def guest(cpu: RealmGuestCpu) -> None:
        answers.append(cpu.ipa_state_set(GPA, GPA + PAGE, Ripas.EMPTY))
        cpu.convert(GPA, PAGE, private=False)

    exit_ = realm.run(guest)
    assert answers == [(0, GPA, RsiResponse.REJECT)]
    assert exit_.system_event.type == SystemEvent.SHUTDOWN


def test_boot_accepts_its_memory(world: CcaWorld) -> None:
    realm = world.realm().start()
    realm.make_private()
    assert realm.run(lambda cpu: cpu.accept(GPA, PAGES * PAGE)).reason is ExitReason.HLT


def test_what_hva_backed_slots_hold_is_shared(world: CcaWorld) -> None:
    realm = world.realm().start()
    memory = world.kvm.anonymous(2 * PAGE)
    realm.vm.set_user_memory_region(1, 0, 2 * PAGE, memory.address)
    seen: list[bytes] = []

    def guest(cpu: RealmGuestCpu) -> None:
        seen.append(cpu.load(0, 4, shared=True))
        cpu.store(0, b"back", shared=True)
        seen.append(cpu.load(cpu.shared_bit | 0, 4))

    assert realm.run(guest).reason is ExitReason.HLT
    assert seen == [bytes(4), b"back"]
    assert memory[:4] == b"back"
    memory.close()
    check_host(world.host)


# RSI and PSCI


def test_rsi(world: CcaWorld) -> None:
    realm = world.realm().start()
    seen: dict[str, object] = {}

    def guest(cpu: RealmGuestCpu) -> None:
        seen["version"] = cpu.smc(0xC4000190)
        seen["config"] = cpu.realm_config(GPA + PAGE), cpu.realm_config(5)
        seen["width"] = cpu.read_config(GPA + PAGE).ipa_width
        seen["extend"] = cpu.measurement_extend(1, b"event"), cpu.measurement_extend(0, b"event")
        seen["rem"] = cpu.measurement_read(1)
        seen["host"] = cpu.host_call(7, 8)
        seen["unknown"] = cpu.hypercall(0x86000001)
        with pytest.raises(ValueError, match="there are 0 to 4"):
            cpu.measurement_read(9)

    assert realm.run(guest).reason is ExitReason.HLT
    assert seen == {
        "version": (0, 0x10000, 0x10000),
        "config": (0, 1),
        "width": 40,
        "extend": (0, 1),
        "rem": hashlib.sha256(bytes(32) + b"event").digest().ljust(64, b"\0"),
        "host": (0, (1 << 64) - 1, 8),
        "unknown": -1,
    }


def test_psci(world: CcaWorld) -> None:
    realm = world.realm(2).start()
    answers: list[int] = []

    def guest(cpu: RealmGuestCpu) -> None:
        answers.append(cpu.psci(Psci.VERSION))
        answers.append(cpu.psci(Psci.FEATURES, Psci.CPU_ON))
        answers.append(cpu.psci(Psci.AFFINITY_INFO, 1))
        answers.append(cpu.cpu_on(5))
        answers.append(cpu.cpu_on(0))
        answers.append(cpu.cpu_on(1, GPA))
        answers.append(cpu.cpu_on(1, GPA))
        answers.append(cpu.psci(Psci.AFFINITY_INFO, 1))

    assert realm.run(lambda cpu: pytest.fail("it's off"), realm.vcpus[1]).reason is ExitReason.HLT
    assert realm.run(guest).reason is ExitReason.HLT
    assert answers == [0x10001, 0, 1, PsciReturn.INVALID_PARAMETERS, PsciReturn.ALREADY_ON, 0, PsciReturn.ALREADY_ON, 0]
    ran: list[int] = []
    assert realm.run(lambda cpu: ran.append(cpu.psci(Psci.CPU_OFF)), realm.vcpus[1]).reason is ExitReason.HLT
    assert ran == []
    assert realm.run(lambda cpu: pytest.fail("it's off"), realm.vcpus[1]).reason is ExitReason.HLT


# Failures of the RMM


def test_tables_are_made_where_the_rmm_misses_them(world: CcaWorld) -> None:
    """Row 33."""
    realm = world.realm()
    realm.make_private(0, 1)
    asked = world.answers()
    realm.vm.cca.populate(GPA, PAGE, realm.source.address)
    names = [fid.name for fid, _ in asked if fid.name.startswith("RTT")]
    assert names == ["RTT_DATA_MAP_INIT", "RTT_CREATE", "RTT_DATA_MAP_INIT", "RTT_CREATE", "RTT_DATA_MAP_INIT"]
    assert set(realm.realm.rtt.tables) == {(2, GFN >> 18), (3, GFN >> 9)}


def test_a_table_missed_at_the_last_level(world: CcaWorld) -> None:
    realm = world.realm()
    realm.make_private(0, 1)
    world.answers((Rmi.RTT_DATA_MAP_INIT, rmi_status(RmiStatus.ERROR_RTT, 3)))
    assert errno_of(lambda: realm.vm.cca.populate(GPA, PAGE, realm.source.address)) == EIO
    assert world.rmm.granules.state(realm.pfn(0)) is GranuleState.NS


def test_delegation_that_fails(world: CcaWorld) -> None:
    """Row 34."""
    realm = world.realm()
    realm.make_private(0, 1)
    realm.load(b"x", 1)
    world.answers((Rmi.GRANULE_RANGE_DELEGATE, RmiStatus.ERROR_INPUT))
    assert refusal(lambda: realm.vm.cca.populate(GPA, PAGE, realm.source.address)) == "cca.rmi.delegate"
    assert errno_of(lambda: realm.vm.cca.populate(GPA, PAGE, realm.source.address)) == 0


def test_a_failing_map_init_leaves_nothing(world: CcaWorld) -> None:
    realm = world.realm()
    realm.load(b"first")
    realm.make_private(1, 1)
    rim = realm.realm.measurement
    world.answers((Rmi.RTT_DATA_MAP_INIT, RmiStatus.ERROR_REALM))
    assert errno_of(lambda: realm.vm.cca.populate(GPA + PAGE, PAGE, realm.source.address)) == ENXIO
    assert realm.realm.measurement == rim
    assert world.rmm.granules.state(realm.pfn(1)) is GranuleState.NS


def test_undelegation_that_fails_on_the_error_path_is_a_bug(world: CcaWorld) -> None:
    realm = world.realm()
    realm.make_private(0, 1)
    world.answers((Rmi.RTT_DATA_MAP_INIT, RmiStatus.ERROR_REALM), (Rmi.GRANULE_RANGE_UNDELEGATE, RmiStatus.ERROR_INPUT))
    assert errno_of(lambda: realm.vm.cca.populate(GPA, PAGE, realm.source.address)) == ENXIO
    assert world.kvm_vm(realm.vm).vm_bugged
    assert world.host.memmap.leaked[realm.pfn(0)]


@pytest.mark.parametrize("status", [RmiStatus.BUSY, RmiStatus.INCOMPLETE])
def test_busy_and_incomplete_are_gone_on_with(world: CcaWorld, status: RmiStatus) -> None:
    """Row 39."""
    realm = world.realm()
    asked = world.answers((Rmi.REALM_CREATE, status), (Rmi.RTT_CREATE, status), (Rmi.REC_CREATE, status), repeat=2)
    realm.start()
    assert realm.arch.state is CcaState.ACTIVE
    continued = sum(fid is Rmi.OP_CONTINUE for fid, _ in asked)
    assert continued == (4 if status is RmiStatus.INCOMPLETE else 0)


def test_busy_for_ever(world: CcaWorld) -> None:
    realm = world.realm()
    realm.make_private(0, 1)
    world.rmm.inject = lambda fid, what: RmiStatus.BUSY if fid is Rmi.RTT_DATA_MAP_INIT else None
    assert refusal(lambda: realm.vm.cca.populate(GPA, PAGE, realm.source.address)) == "cca.rmi.busy"
    world.rmm.inject = None


def test_an_rmm_that_is_busy_at_entry_is_asked_again(world: CcaWorld) -> None:
    realm = world.realm().start()
    world.answers((Rmi.REC_ENTER, RmiStatus.BUSY), repeat=3)
    ran: list[int] = []
    assert realm.run(lambda cpu: ran.append(1)).reason is ExitReason.HLT
    assert ran == [1]
    world.answers((Rmi.REC_ENTER, RmiStatus.ERROR_REC))
    assert errno_of(lambda: realm.vcpu.run(lambda cpu: None)) == ENXIO


def test_a_page_that_cant_be_undelegated_is_leaked(world: CcaWorld) -> None:
    """Row 40."""
    realm = world.realm().start()
    pfn = realm.pfn(0)
    world.answers((Rmi.GRANULE_RANGE_UNDELEGATE, RmiStatus.ERROR_INPUT))
    realm.gmem.punch_hole(0, PAGE)
    assert world.host.memmap.leaked[pfn]
    assert len(world.host.rmm.warnings) == 1
    world.drain()
    assert world.host.memmap.refcount(pfn) == 1


def test_two_realms_have_nothing_in_common(world: CcaWorld) -> None:
    first, second = world.realm().start(b"one"), world.realm().start(b"two")
    assert first.arch.vmid != second.arch.vmid
    seen: list[bytes] = []
    for realm in (first, second):
        realm.run(lambda cpu: seen.append(cpu.load(GPA, 3)))
    assert seen == [b"one", b"two"]
    pfn = second.pfn(0)
    assert world.host.memory.read(pfn << 12, 3, first.realm.key) != b"two"


def test_unprotected_guests_beside_realms(world: CcaWorld) -> None:
    world.realm().start()
    vm = world.vm(VmType.DEFAULT)
    vcpu = world.vcpu(vm)
    memory = world.kvm.anonymous(PAGE)
    vm.set_user_memory_region(0, 0, PAGE, memory.address)
    vcpu.run(lambda cpu: cpu.store(0, b"plain"))
    assert memory[:5] == b"plain"


@pytest.mark.parametrize("world", ["rfc-v5"], indirect=True)
def test_what_rfc_v5_can_promise_of_contents(world: CcaWorld) -> None:
    """PRESERVE never, as the RMM neither takes nor gives a page with its contents; ZERO on the way back."""
    realm = world.realm()
    zero, preserve = KVM_SET_MEMORY_ATTRIBUTES2_ZERO, KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
    realm.shared[:5] = b"stale"
    assert errno_of(lambda: realm.gmem.set_memory_attributes(0, PAGE, 8, zero)) == EOPNOTSUPP
    assert errno_of(lambda: realm.gmem.set_memory_attributes(0, PAGE, 8, preserve)) == EOPNOTSUPP
    realm.load(b"image")
    assert errno_of(lambda: realm.gmem.set_memory_attributes(0, PAGE, 0, preserve)) == EOPNOTSUPP
    realm.gmem.set_memory_attributes(0, PAGE, 0, zero)
    assert realm.shared[:5] == bytes(5)


def test_a_page_that_the_rmm_never_takes(world: CcaWorld) -> None:
    """A fault takes a refusal for another vCPU's doing, and tries again; but not for ever."""
    realm = world.realm().start()
    world.answers((Rmi.GRANULE_RANGE_DELEGATE, RmiStatus.ERROR_INPUT), repeat=5)
    assert realm.run(lambda cpu: cpu.store(GPA + PAGE, b"x")).reason is ExitReason.HLT
    world.answers((Rmi.GRANULE_RANGE_DELEGATE, RmiStatus.ERROR_INPUT), repeat=500)
    assert refusal(lambda: realm.vcpu.run(lambda cpu: cpu.store(GPA + 2 * PAGE, b"x"))) == "cca.rmi.delegate"


def test_two_vcpus_at_the_same_page(world: CcaWorld) -> None:
    """Another vCPU's fault is through just before this one's delegates the page: the refusal is no error."""
    realm = world.realm().start()
    rmm, page = world.rmm, GPA + 5 * PAGE
    asked: list[Rmi] = []

    def inject(fid: Rmi, what: int) -> int | None:
        asked.append(fid)
        if asked.count(Rmi.GRANULE_RANGE_DELEGATE) == 1 and fid is Rmi.GRANULE_RANGE_DELEGATE:
            assert rmm.granule_range_delegate(what).status == 0
            assert rmm.rtt_data_map(realm.arch.rd, page, page + PAGE, what).status == 0
        return None

    rmm.inject = inject
    seen: list[bytes] = []

    def guest(cpu: RealmGuestCpu) -> None:
        cpu.store(page, b"once")
        seen.append(cpu.load(page, 4))

    assert realm.run(guest).reason is ExitReason.HLT
    assert seen == [b"once"]
    assert Rmi.GRANULE_RANGE_UNDELEGATE not in asked


def test_a_shared_page_that_the_rmm_keeps_is_a_bug(world: CcaWorld) -> None:
    realm = world.realm().start()
    realm.make_shared(4, 1)
    world.drain()
    realm.vcpu.run(lambda cpu: cpu.store(GPA + 4 * PAGE, b"x", shared=True))
    world.answers((Rmi.RTT_UNPROT_UNMAP, RmiStatus.ERROR_INPUT))
    realm.make_private(4, 1)
    assert world.kvm_vm(realm.vm).vm_bugged
    assert errno_of(lambda: realm.vcpu.run()) == EIO


def test_mmio_is_in_the_shared_half(world: CcaWorld) -> None:
    realm = world.realm().start()
    seen: list[bytes] = []

    def guest(cpu: RealmGuestCpu) -> None:
        cpu.store(0x9000000, b"!", shared=True)
        seen.append(cpu.load(0x9000018, 4, shared=True))

    exit_ = realm.vcpu.run(guest)
    assert (exit_.reason, exit_.mmio.phys_addr, exit_.mmio.data[:1]) == (ExitReason.MMIO, 0x9000000, b"!")
    exit_ = realm.vcpu.run()
    assert (exit_.mmio.is_write, exit_.mmio.phys_addr) == (0, 0x9000018)
    exit_.answer_mmio(b"uart")
    assert realm.vcpu.run().reason is ExitReason.HLT
    assert seen == [b"uart"]

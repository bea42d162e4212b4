# SPDX-License-Identifier: GPL-2.0-or-later
"""Every call in every state of a launch: done, or refused with the listed errno.  Refused, it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EEXIST, EINVAL, EIO, ENOEXEC, ENOTTY, EOPNOTSUPP, EPERM, errorcode
from typing import Any

import pytest

from gmemu import ExitReason, Kvm, Mapping, Vcpu, Vm, VmType
from gmemu.api.arm64 import init_vcpu
from gmemu.check import check_host
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, KVM_MEM_READONLY, KVM_MEMORY_ENCRYPT_OP
from gmemu.uapi.sev import SnpPageType

PAGE = 4096
OK, FAIL_ENTRY = "ok", "FAIL_ENTRY"


class Launch:
    """A VM in some state, with four private pages at 0 and, where the state has one, a vCPU."""

    def __init__(self, platform: str, vm_type: VmType, profile: str = "inplace-v13") -> None:
        self.kvm = Kvm.open(profile, platform=platform)
        self.vm: Vm = self.kvm.create_vm(vm_type)
        self.vcpus: list[Vcpu] = []
        self.other: Mapping | None = None
        self.gmem = self.vm.create_guest_memfd(4 * PAGE, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
        self.vm.set_user_memory_region2(0, 0, 4 * PAGE, gmem=self.gmem)
        if vm_type is not VmType.ARM_PROTECTED:
            self.gmem.make_private(0, 4 * PAGE)

    @property
    def vcpu(self) -> Vcpu:
        return self.vcpus[0]

    def create_vcpu(self) -> None:
        self.vcpus.append(self.vm.create_vcpu(len(self.vcpus)))

    def run(self) -> str:
        exit_ = self.vcpu.run(lambda cpu: None)
        return OK if exit_.reason is ExitReason.HLT else exit_.reason.name

    def populate(self, page: int) -> None:
        with self.kvm.anonymous(PAGE) as contents:
            self.vm.cca.populate(page * PAGE, PAGE, contents.address)

    def add_slot(self, flags: int = 0) -> None:
        self.other = self.kvm.anonymous(PAGE)
        self.vm.set_user_memory_region2(1, 1 << 30, PAGE, flags=flags, userspace_addr=self.other.address)

    def close(self) -> None:
        check_host(self.kvm.host)
        if self.other is not None:
            self.other.close()
        for vcpu in self.vcpus:
            vcpu.close()
        self.gmem.close()
        self.vm.close()
        self.kvm.host.check_quiet()
        self.kvm.close()


def outcome(call: Callable[[], object]) -> str:
    """ "ok", an exit, or the errno's name."""
    try:
        result = call()
    except OSError as error:
        return errorcode[error.errno or 0]
    return result if isinstance(result, str) else OK


def names(*errnos: int | str) -> list[str]:
    """By state; "" where there is no vCPU to call it on."""
    return [errorcode[e] if isinstance(e, int) else e for e in errnos]


Calls = dict[str, tuple[Callable[[Launch], object], list[str]]]


def cases(calls: Calls, states: list[str]) -> list[Any]:
    """(call, state, what comes of it), for each that can be made."""
    return [
        pytest.param(call, state, expected, id=f"{name}-{states[state]}")
        for name, (call, outcomes) in calls.items()
        for state, expected in enumerate(outcomes)
        if expected
    ]


SNP_STATES: list[Callable[[Launch], Any]] = [
    lambda launch: None,
    lambda launch: launch.vm.snp.init2(),
    lambda launch: launch.create_vcpu(),
    lambda launch: launch.vm.snp.launch_start(),
    lambda launch: launch.vm.snp.launch_finish(),
]
"""What leads from each state to the next: created, initialised, with a vCPU, started, finished."""

SNP_CALLS: Calls = {
    "INIT2": (lambda launch: launch.vm.snp.init2(), names(OK, EPERM, EPERM, EPERM, EPERM)),
    "CREATE_VCPU": (lambda launch: launch.create_vcpu(), names(OK, OK, OK, OK, OK)),
    "LAUNCH_START": (lambda launch: launch.vm.snp.launch_start(), names("ENOTTY", OK, OK, EINVAL, EINVAL)),
    "LAUNCH_UPDATE": (
        lambda launch: launch.vm.snp.launch_update_once(0, PAGE, SnpPageType.NORMAL),
        names(EINVAL, EINVAL, EINVAL, OK, EIO),
    ),
    "LAUNCH_FINISH": (lambda launch: launch.vm.snp.launch_finish(), names("ENOTTY", EINVAL, EINVAL, OK, EINVAL)),
    "KVM_RUN": (lambda launch: launch.run(), names("", "", FAIL_ENTRY, FAIL_ENTRY, OK)),
    "PRE_FAULT_MEMORY": (
        lambda launch: launch.vcpu.pre_fault(0, PAGE) and None,
        names("", "", EOPNOTSUPP, EOPNOTSUPP, OK),
    ),
}


@pytest.mark.parametrize(
    ("call", "state", "expected"), cases(SNP_CALLS, ["created", "initialised", "vcpu", "started", "finished"])
)
def test_snp(call: Callable[[Launch], object], state: int, expected: str) -> None:
    launch = Launch("amd", VmType.SNP)
    for step in SNP_STATES[: state + 1]:
        step(launch)
    try:
        assert outcome(lambda: call(launch)) == expected
    finally:
        launch.close()


TDX_STATES: list[Callable[[Launch], Any]] = [
    lambda launch: None,
    lambda launch: launch.vm.tdx.init_vm(),
    lambda launch: launch.create_vcpu(),
    lambda launch: launch.vcpu.tdx_init(),
    lambda launch: launch.vm.tdx.finalize_vm(),
]
"""Created, initialised, with a vCPU, with that initialised, finalized."""

TDX_CALLS: Calls = {
    "CAPABILITIES": (lambda launch: launch.vm.tdx.capabilities() and None, names(OK, OK, OK, OK, OK)),
    "INIT_VM": (lambda launch: launch.vm.tdx.init_vm(), names(OK, EINVAL, EINVAL, EINVAL, EINVAL)),
    "CREATE_VCPU": (lambda launch: launch.create_vcpu(), names(EIO, OK, OK, OK, EIO)),
    "INIT_VCPU": (lambda launch: launch.vcpu.tdx_init(), names("", "", OK, EINVAL, EINVAL)),
    "GET_CPUID": (lambda launch: launch.vm.tdx.get_cpuid(launch.vcpu) and None, names("", "", OK, OK, EINVAL)),
    "INIT_MEM_REGION": (
        lambda launch: launch.vm.tdx.init_mem_region(launch.vcpu, 0, PAGE),
        names("", "", EINVAL, OK, EINVAL),
    ),
    "FINALIZE_VM": (lambda launch: launch.vm.tdx.finalize_vm(), names(EINVAL, EIO, EIO, OK, EINVAL)),
    "KVM_RUN": (lambda launch: launch.run(), names("", "", EINVAL, EINVAL, OK)),
    "PRE_FAULT_MEMORY": (
        lambda launch: launch.vcpu.pre_fault(0, PAGE) and None,
        names("", "", EOPNOTSUPP, EOPNOTSUPP, OK),
    ),
}


@pytest.mark.parametrize(
    ("call", "state", "expected"), cases(TDX_CALLS, ["created", "initialised", "vcpu", "vcpu-initialised", "finalized"])
)
def test_tdx(call: Callable[[Launch], object], state: int, expected: str) -> None:
    launch = Launch("intel", VmType.TDX)
    for step in TDX_STATES[: state + 1]:
        step(launch)
    try:
        assert outcome(lambda: call(launch)) == expected
    finally:
        launch.close()


CCA_STATES: list[Callable[[Launch], Any]] = [
    lambda launch: None,
    lambda launch: launch.create_vcpu(),
    lambda launch: init_vcpu(launch.vm, launch.vcpu),
    lambda launch: launch.vm.cca.create_vgic(),
    lambda launch: launch.populate(0),
    lambda launch: launch.run(),
]
"""Created, with a vCPU, with that initialised, with a GIC, populated (which makes the realm), active."""

CCA_CALLS: Calls = {
    "CREATE_VCPU": (lambda launch: launch.create_vcpu(), names(OK, OK, OK, OK, OK, EBUSY)),
    "ARM_VCPU_INIT": (lambda launch: init_vcpu(launch.vm, launch.vcpu), names("", OK, OK, OK, OK, OK)),
    "CREATE_DEVICE": (lambda launch: launch.vm.cca.create_vgic(), names(OK, OK, OK, EEXIST, EEXIST, EEXIST)),
    "ARM_RMI_POPULATE": (lambda launch: launch.populate(1), names(EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, OK, OK, EBUSY)),
    "KVM_RUN": (lambda launch: launch.run(), names("", ENOEXEC, EOPNOTSUPP, OK, OK, OK)),
    "PRE_FAULT_MEMORY": (lambda launch: launch.vcpu.pre_fault(0, PAGE), names("", EINVAL, EINVAL, EINVAL, EINVAL, EINVAL)),
}


@pytest.mark.parametrize(
    ("call", "state", "expected"),
    cases(CCA_CALLS, ["created", "vcpu", "vcpu-initialised", "gic", "populated", "active"]),
)
def test_cca(call: Callable[[Launch], object], state: int, expected: str) -> None:
    launch = Launch("arm", VmType.ARM_REALM)
    for step in CCA_STATES[: state + 1]:
        step(launch)
    try:
        assert outcome(lambda: call(launch)) == expected
    finally:
        launch.close()


PKVM_STATES: list[Callable[[Launch], Any]] = [
    lambda launch: None,
    lambda launch: launch.create_vcpu(),
    lambda launch: init_vcpu(launch.vm, launch.vcpu),
    lambda launch: launch.run(),
]
"""Created, with a vCPU, with that initialised, run once (which makes the VM at EL2)."""

PKVM_CALLS: Calls = {
    "CREATE_VCPU": (lambda launch: launch.create_vcpu(), names(OK, OK, OK, OK)),
    "ARM_VCPU_INIT": (lambda launch: init_vcpu(launch.vm, launch.vcpu), names("", OK, OK, OK)),
    "KVM_RUN": (lambda launch: launch.run(), names("", ENOEXEC, OK, OK)),
    "add a slot": (lambda launch: launch.add_slot(), names(OK, OK, OK, OK)),
    "add a read-only slot": (lambda launch: launch.add_slot(KVM_MEM_READONLY), names(EPERM, EPERM, EPERM, EPERM)),
    "delete a slot": (lambda launch: launch.vm.delete_slot(0), names(OK, OK, OK, EPERM)),
    "SET_MEMORY_ATTRIBUTES2": (lambda launch: launch.gmem.make_private(0, PAGE), names(ENOTTY, ENOTTY, ENOTTY, ENOTTY)),
    "MEMORY_ENCRYPT_OP": (lambda launch: launch.vm.ioctl(KVM_MEMORY_ENCRYPT_OP, 0), names(EINVAL, EINVAL, EINVAL, EINVAL)),
    "PRE_FAULT_MEMORY": (lambda launch: launch.vcpu.pre_fault(0, PAGE), names("", EINVAL, EINVAL, EINVAL)),
}


@pytest.mark.parametrize(("call", "state", "expected"), cases(PKVM_CALLS, ["created", "vcpu", "vcpu-initialised", "ran"]))
@pytest.mark.parametrize("profile", ["inplace-v13", "inplace-v13-pkvm"])
def test_pkvm(profile: str, call: Callable[[Launch], object], state: int, expected: str) -> None:
    launch = Launch("pkvm", VmType.ARM_PROTECTED, profile)
    for step in PKVM_STATES[: state + 1]:
        step(launch)
    if profile == "inplace-v13" and expected == "ENOTTY" and call is PKVM_CALLS["SET_MEMORY_ATTRIBUTES2"][0]:
        expected = "EINVAL"  # such a VM has no private memory of guest_memfd's
    try:
        assert outcome(lambda: call(launch)) == expected
    finally:
        launch.close()


SW_CALLS: Calls = {
    "CREATE_VCPU": (lambda launch: launch.create_vcpu(), names(OK, OK, OK)),
    "MEMORY_ENCRYPT_OP": (lambda launch: launch.vm.ioctl(KVM_MEMORY_ENCRYPT_OP, 0), names(OK, OK, OK)),
    "SNP_LAUNCH_START": (lambda launch: launch.vm.snp.launch_start(), names(ENOTTY, ENOTTY, ENOTTY)),
    "KVM_RUN": (lambda launch: launch.run(), names("", OK, OK)),
    "PRE_FAULT_MEMORY": (lambda launch: launch.vcpu.pre_fault(0, PAGE) and None, names("", OK, OK)),
}
"""It has no launch: what can be called, can be called at once.  An SNP machine takes an empty request on any VM."""


@pytest.mark.parametrize(("call", "state", "expected"), cases(SW_CALLS, ["created", "vcpu", "ran"]))
def test_sw_protected(call: Callable[[Launch], object], state: int, expected: str) -> None:
    launch = Launch("amd", VmType.SW_PROTECTED)
    for step in (lambda: None, launch.create_vcpu, launch.run)[: state + 1]:
        step()
    try:
        assert outcome(lambda: call(launch)) == expected
    finally:
        launch.close()


def test_the_same_vcpu_twice() -> None:
    launch = Launch("amd", VmType.SNP)
    launch.create_vcpu()
    assert outcome(lambda: launch.vm.create_vcpu(0)) == errorcode[EEXIST]
    launch.close()

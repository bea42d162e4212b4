# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_MEMORY_ENCRYPT_OP of an SNP VM: which commands there are when, INIT2, and how `kvm_sev_cmd` comes back."""

from __future__ import annotations

from errno import EBUSY, EFAULT, EINVAL, ENOTTY, EOPNOTSUPP, EPERM

import pytest

from gmemu import ExitReason, KernelError, Vm
from gmemu.kvm import snp_platform
from gmemu.uapi.kvm import KVM_MEMORY_ENCRYPT_OP, KVM_RUN, VmType
from gmemu.uapi.mman import PROT_READ
from gmemu.uapi.sev import (
    SVM_SEV_FEAT_DEBUG_SWAP,
    SVM_SEV_FEAT_SECURE_TSC,
    SVM_SEV_FEAT_SNP_ACTIVE,
    SevCmd,
    kvm_sev_cmd,
    kvm_sev_init,
)

from .snp_world import BAD_ADDRESS, PROFILES, Flaw, World, in_order

UNCHANGED = 0xABCD
NO_HANDLER = (SevCmd.SEND_UPDATE_VMSA, SevCmd.RECEIVE_UPDATE_VMSA, SevCmd.CERT_EXPORT)


def test_an_empty_request_asks_whether_there_is_memory_encryption(world: World) -> None:
    assert world.vm.ioctl(KVM_MEMORY_ENCRYPT_OP, 0) == 0


def test_a_bad_pointer_to_the_command(world: World) -> None:
    with pytest.raises(KernelError) as failed:
        world.vm.ioctl(KVM_MEMORY_ENCRYPT_OP, BAD_ADDRESS)
    assert failed.value.errno == EFAULT


@pytest.mark.parametrize("id", [cmd for cmd in SevCmd if cmd < 22])
def test_commands_of_other_guests_before_init2(inplace: World, id: SevCmd) -> None:
    reply = inplace.command(id, error=UNCHANGED)
    if id in (SevCmd.INIT, SevCmd.ES_INIT):
        assert reply[:3] == ("snp.cmd.sev-init", EINVAL, UNCHANGED)
    elif id in NO_HANDLER:
        assert reply[:3] == ("snp.cmd.unknown", EINVAL, UNCHANGED)
    else:
        assert reply[:3] == ("snp.cmd.sev-guest", ENOTTY, UNCHANGED)


@pytest.mark.parametrize("id", [*(cmd for cmd in SevCmd if cmd < 100), 23, 99])
def test_after_init2_only_snp_commands_are_allowed(inplace: World, id: int) -> None:
    inplace.init2()
    assert inplace.command(id, BAD_ADDRESS, error=UNCHANGED)[:3] == ("snp.cmd.not-snp", EPERM, UNCHANGED)


@pytest.mark.parametrize("id", [23, 99, 104, 0xFFFFFFFF])
def test_unknown_commands(world: World, id: int) -> None:
    assert world.command(id, error=UNCHANGED)[:3] == ("snp.cmd.unknown", EINVAL, UNCHANGED)


def test_certificate_requests_are_refused_where_the_kernel_has_them(world: World) -> None:
    world.init2()
    reply = world.command(SevCmd.SNP_ENABLE_REQ_CERTS)
    if world.profile.snp_req_certs:
        assert reply[:2] == ("gmemu.snp.req-certs", EOPNOTSUPP)
    else:
        assert reply[:2] == ("snp.cmd.unknown", EINVAL)


def test_the_command_is_written_back_even_when_it_failed(inplace: World) -> None:
    """...by the handlers, so a read-only command turns any result into EFAULT; what fails before them writes nothing."""
    page = inplace.kvm.anonymous(4096)
    address = inplace.scratch.address

    def read_only(id: int, data: int) -> int:
        page.protect(3)
        page[: kvm_sev_cmd.SIZE] = kvm_sev_cmd(id=id, data=data, sev_fd=inplace.sev_fd).pack()
        page.protect(PROT_READ)
        try:
            inplace.vm.ioctl(KVM_MEMORY_ENCRYPT_OP, page.address)
        except KernelError as error:
            return int(error.errno or 0)
        return 0

    inplace.scratch[: kvm_sev_init.SIZE] = kvm_sev_init(flags=1).pack()
    assert read_only(SevCmd.INIT2, address) == EFAULT
    inplace.scratch[: kvm_sev_init.SIZE] = kvm_sev_init().pack()
    assert read_only(104, address) == EINVAL
    assert read_only(SevCmd.INIT2, address) == EFAULT  # and it was done
    assert read_only(SevCmd.INIT2, address) == EPERM


OTHER_VMS = [
    (SevCmd.INIT, "snp.cmd.sev-asid", ENOTTY, "snp.cmd.sev-init", EINVAL),
    (SevCmd.ES_INIT, "snp.cmd.sev-asid", ENOTTY, "snp.cmd.sev-init", EINVAL),
    (SevCmd.INIT2, "snp.init2.vm-type", EINVAL, "snp.init2.vm-type", EINVAL),
    (SevCmd.LAUNCH_START, "snp.cmd.sev-guest", ENOTTY, "snp.cmd.sev-guest", ENOTTY),
    (SevCmd.LAUNCH_UPDATE_DATA, "snp.cmd.sev-guest", ENOTTY, "snp.cmd.sev-guest", ENOTTY),
    (SevCmd.LAUNCH_UPDATE_VMSA, "snp.cmd.sev-guest", ENOTTY, "snp.cmd.sev-guest", ENOTTY),
    (SevCmd.SNP_LAUNCH_START, "snp.start.vm-type", ENOTTY, "snp.start.vm-type", ENOTTY),
    (SevCmd.SNP_LAUNCH_UPDATE, "snp.update.context", EINVAL, "snp.update.context", EINVAL),
    (SevCmd.SNP_LAUNCH_FINISH, "snp.finish.vm-type", ENOTTY, "snp.finish.vm-type", ENOTTY),
    (99, "snp.cmd.unknown", EINVAL, "snp.cmd.unknown", EINVAL),
]
"""command, then rule and errno on a default VM and on a software-protected one"""


@pytest.mark.parametrize("row", OTHER_VMS, ids=lambda row: str(row[0]))
def test_commands_on_vms_that_arent_snps(world: World, row: tuple[int, str, int, str, int]) -> None:
    command, rule, errno, protected_rule, protected_errno = row
    default, protected = world.kvm.create_vm(VmType.DEFAULT), world.kvm.create_vm(VmType.SW_PROTECTED)
    reply = world.command(command, vm=default)
    assert (reply.rule, reply.errno) == (rule, errno)
    reply = world.command(command, vm=protected)
    assert (reply.rule, reply.errno) == (protected_rule, protected_errno)
    vcpu = default.create_vcpu()
    late = world.command(SevCmd.INIT, vm=default)
    assert (late.rule, late.errno) == ("snp.init2.vcpus", EINVAL)
    for owner in (vcpu, default, protected):
        owner.close()


def test_sev_vms_cant_be_made(world: World) -> None:
    for kind in (VmType.SEV, VmType.SEV_ES):
        with pytest.raises(KernelError) as refused:
            world.kvm.create_vm(kind)
        assert (refused.value.rule.id, refused.value.errno) == ("kvm.create-vm.type", EINVAL)
        assert "SEV and SEV-ES are not emulated" in str(refused.value)


def test_other_vms_know_none_of_this(world: World) -> None:
    """But asking whether there is memory encryption is allowed on any."""
    vm = world.kvm.create_vm(VmType.SW_PROTECTED)
    assert vm.ioctl(KVM_MEMORY_ENCRYPT_OP, 0) == 0
    vcpu = vm.create_vcpu()
    with pytest.raises(KernelError) as refused:
        vcpu.ioctl(KVM_MEMORY_ENCRYPT_OP, 0)
    assert refused.value.rule.id in ("kvm.mem-enc.unsupported", "kvm.vcpu.ioctl"), "TDX has some for a vCPU"
    vcpu.close()
    vm.close()


def test_dev_sev_itself_has_no_commands(world: World) -> None:
    with pytest.raises(KernelError, match=r"sev\.device\.ioctl"):
        world.door.ioctl(world.sev_fd, 0xC0105300, bytearray(16))


# INIT2

INIT2_FLAWS = [
    Flaw("mm.uaccess"),
    Flaw("snp.init2.vcpus", spoil=lambda world: world.add_vcpu()),
    Flaw("snp.init2.flags", {"flags": 1}),
    Flaw("snp.init2.vmsa-features", {"vmsa_features": SVM_SEV_FEAT_SNP_ACTIVE}),
    Flaw("snp.init2.ghcb-version", {"ghcb_version": 3}),
    Flaw("snp.init2.asid", spoil=lambda world: world.platform._asids.update(range(1, 100))),
]


@pytest.mark.parametrize("flaws", in_order(INIT2_FLAWS), ids=repr)
def test_init2_checks_in_order(world: World, flaws: list[Flaw]) -> None:
    for flaw in flaws:
        flaw.spoil(world)
    params = kvm_sev_init(**{name: value for flaw in flaws for name, value in flaw.fields.items()})
    data = BAD_ADDRESS if flaws[0].rule == "mm.uaccess" else params
    reply = world.command(SevCmd.INIT2, data, error=UNCHANGED)
    assert (reply.rule, reply.error) == (flaws[0].rule, UNCHANGED)
    assert reply.errno == {"mm.uaccess": EFAULT, "snp.init2.asid": EBUSY}.get(reply.rule, EINVAL)
    assert not world.arch.active


def test_a_vcpu_made_too_early_can_never_run(world: World) -> None:
    vcpu = world.add_vcpu()
    assert world.init2()[0] == "snp.init2.vcpus"
    with pytest.raises(KernelError) as failed:
        vcpu.run(lambda cpu: None)
    assert (failed.value.errno, failed.value.rule.id) == (EINVAL, "snp.run.not-initialized")
    vcpu.close()
    world.vcpus.clear()
    assert world.init2()[0] == "snp.init2.vcpus", "a vCPU whose descriptor was closed is still there"


def test_what_must_come_before_running(world: World) -> None:
    """immediate_exit is looked at first; the argument before anything."""
    vcpu = world.add_vcpu()
    vcpu.immediate_exit = True
    with pytest.raises(KernelError, match="immediate-exit"):
        vcpu.run(lambda cpu: None)
    with pytest.raises(KernelError, match=r"kvm\.run\.argument"):
        vcpu.ioctl(KVM_RUN, 1)


@pytest.mark.parametrize("version", range(4))
def test_ghcb_versions(world: World, version: int) -> None:
    """0 is 2.  Linux 6.12 still lets an SNP guest ask for 1."""
    allowed = version in (0, 2) or (version == 1 and world.profile.name == "linux-6.12")
    assert (world.init2(ghcb_version=version)[0] == "") == allowed
    assert world.arch.ghcb_version == (allowed and (version or 2))


@pytest.mark.parametrize("features", [SVM_SEV_FEAT_DEBUG_SWAP, SVM_SEV_FEAT_SECURE_TSC, 1 << 4, 1 << 63])
def test_vmsa_features(world: World, features: int) -> None:
    """KVM adds SNP's own bit; secure TSC came after 6.12."""
    allowed = features == SVM_SEV_FEAT_DEBUG_SWAP
    allowed |= features == SVM_SEV_FEAT_SECURE_TSC and world.profile.name != "linux-6.12"
    assert (world.init2(vmsa_features=features)[0] == "") == allowed
    assert world.arch.vmsa_features == (features | SVM_SEV_FEAT_SNP_ACTIVE if allowed else 0)


def test_init2_leaves_error_alone(world: World) -> None:
    assert world.command(SevCmd.INIT2, kvm_sev_init(), error=UNCHANGED)[:3] == ("", 0, UNCHANGED)


def test_asids_run_out_and_come_back(inplace: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snp_platform, "LAST_ASID", 3)
    vms: list[Vm] = [inplace.create_vm() for _ in range(4)]
    assert [inplace.init2(vm)[1] for vm in vms] == [0, 0, 0, EBUSY]
    vms[1].close()
    assert inplace.init2(vms[3])[1] == 0
    assert [vm.arch.asid for vm in inplace.host.vms if isinstance(vm.arch, type(inplace.arch))] == [0, 1, 3, 2]
    for vm in vms:
        vm.close()
    assert inplace.init2() == ("", 0, 0)
    assert inplace.arch.asid == 1


@pytest.mark.parametrize("profile", PROFILES)
def test_a_vm_that_did_nothing_leaves_nothing(profile: str) -> None:
    world = World(profile)
    world.add_vcpu()
    world.close()


def test_running_before_finish_fails_in_hardware(world: World) -> None:
    """The VMSA isn't the guest's yet, so VMRUN finds it invalid; a signal keeps KVM from trying."""
    world.started(vcpus=1)
    world.signal()
    with pytest.raises(KernelError, match=r"kvm\.run\.signal"):
        world.vcpus[0].run(lambda cpu: None)
    world.signal(0)
    assert world.vcpus[0].run(lambda cpu: None).reason is ExitReason.FAIL_ENTRY

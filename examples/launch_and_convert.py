#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM in one page: launch a guest with private memory, serve its exits while it converts a page both ways, take it down.

    python examples/launch_and_convert.py [software | snp | tdx | cca | pkvm] [PROFILE]

It stands on `gmemu.vmm`, so failures that pass are waited out, and others end it with one sentence and status 1.  Hand it to
`gmemu sweep` to see that.
"""

import sys
from contextlib import ExitStack

from gmemu import ExitReason, Kvm, VmType
from gmemu.api.arm64 import init_vcpu
from gmemu.uapi.sev import SnpPageType
from gmemu.vmm import Backoff, Vmm, VmmError, populate_cca, populate_snp, populate_tdx

PAGE = 4096
FIRMWARE, RAM = 0x100000, 0x200000
CONTENTS = b"the guest's first instructions".ljust(4 * PAGE, b"\x90")
PLATFORMS = {
    "software": ("amd", VmType.SW_PROTECTED),
    "snp": ("amd", VmType.SNP),
    "tdx": ("intel", VmType.TDX),
    "cca": ("arm", VmType.ARM_REALM),
    "pkvm": ("pkvm", VmType.ARM_PROTECTED),
}


def guest(cpu):
    """What the guest does: use a page, share it, take it back."""
    if kind == "software":
        cpu.store(RAM, b"secret")
        for private in (False, True):
            if cpu.map_gpa_range(RAM, PAGE, private=private):
                cpu.triple_fault()
    else:
        if kind != "pkvm":
            cpu.accept(RAM, PAGE)
        cpu.store(RAM, b"secret")
        cpu.convert(RAM, PAGE, private=False)
        cpu.store(RAM, b"hello", shared=True)
        cpu.convert(RAM, PAGE, private=True)
    cpu.store(RAM, b"secret again")


def launch_protected(kvm, stack):
    """pKVM's guests get memory as they touch it, and share it by the hypervisor, unknown to the VMM.  It's anonymous; with
    profile inplace-v13-pkvm it's guest_memfd's, and KVM_RUN ends when they want it back."""
    vm = stack.enter_context(kvm.create_vm(vm_type))
    vcpu = stack.enter_context(vm.create_vcpu())
    init_vcpu(vm, vcpu)
    vmm = Vmm(kvm, vm, Backoff.none())
    stack.callback(vmm.close)
    if profile == "inplace-v13-pkvm":
        vmm.add_memory(RAM, 4 * PAGE)
    else:
        ram = stack.enter_context(kvm.anonymous(4 * PAGE))
        vm.set_user_memory_region2(0, RAM, 4 * PAGE, userspace_addr=ram.address)
    return vmm, vcpu


def launch(kvm, stack):
    """The VM with its memory and one vCPU, launched as its platform wants it."""
    vm = stack.enter_context(kvm.create_vm(vm_type))
    if kind == "snp":
        vm.snp.init2()
    elif kind == "tdx":
        vm.tdx.init_vm()
    if kind != "cca":
        vm.enable_map_gpa_range()
    vmm = Vmm(kvm, vm, Backoff.none())
    stack.callback(vmm.close)
    vcpu = stack.enter_context(vm.cca.create_vcpu() if kind == "cca" else vm.create_vcpu())
    in_place = vmm.in_place and kind != "cca"  # a realm's contents always come from elsewhere
    firmware = vmm.add_memory(FIRMWARE, len(CONTENTS), mapped=in_place)
    vmm.add_memory(RAM, 4 * PAGE)
    firmware.buffer[:] = CONTENTS
    vmm.convert(FIRMWARE, len(CONTENTS), private=True)
    vmm.convert(RAM, 4 * PAGE, private=True)
    source = 0 if in_place else firmware.buffer.address
    if kind == "snp":
        vm.snp.launch_start()
        populate_snp(vm.snp, FIRMWARE, len(CONTENTS), SnpPageType.NORMAL, source)
        vm.snp.launch_finish()
    elif kind == "tdx":
        vcpu.tdx_init()
        populate_tdx(vm.tdx, vcpu, FIRMWARE, len(CONTENTS), source, backoff=vmm.backoff)
        vm.tdx.finalize_vm()
    elif kind == "cca":
        vm.cca.create_vgic()
        populate_cca(vm.cca, FIRMWARE, len(CONTENTS), source, backoff=vmm.backoff)
    return vmm, vcpu


def main():
    with ExitStack() as stack:
        kvm = stack.enter_context(Kvm.open(profile, platform=machine))
        vmm, vcpu = (launch_protected if kind == "pkvm" else launch)(kvm, stack)
        exit_ = vmm.run(vcpu, guest)
        if exit_.reason is not ExitReason.HLT:
            raise VmmError(f"the guest ended with {exit_.reason.name}")
    print(f"{kind}: launched, converted both ways, taken down (simulated)")


kind = sys.argv[1] if len(sys.argv) > 1 else "software"
profile = sys.argv[2] if len(sys.argv) > 2 else "linux-7.3" if kind == "pkvm" else "inplace-v13"
machine, vm_type = PLATFORMS[kind]
try:
    main()
except (OSError, VmmError) as error:
    sys.exit(f"launch_and_convert: {error}")

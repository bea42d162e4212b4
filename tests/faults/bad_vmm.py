# SPDX-License-Identifier: GPL-2.0-or-later
"""VMMs as one shouldn't write them, each with one fault: ``python bad_vmm.py FAULT``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from errno import EAGAIN

from gmemu import ExitReason, GuestCpu, GuestMemfd, Kvm, Vcpu, Vm, VmType
from gmemu.uapi.sev import SnpPageType

PAGE = 4096
GPA, PAGES = 0x100000, 6
kvm: Kvm


def launched(populate: Callable[[Vm], object]) -> tuple[GuestMemfd, Vcpu]:
    """An SNP guest of six pages, launched."""
    vm = kvm.create_vm(VmType.SNP)
    vm.snp.init2()
    vm.enable_map_gpa_range()
    gmem = vm.create_guest_memfd(PAGES * PAGE, 3)
    memory = gmem.mmap()
    memory[:] = b"x" * (PAGES * PAGE)
    vm.set_user_memory_region2(0, GPA, PAGES * PAGE, gmem=gmem, userspace_addr=memory.address)
    vcpu = vm.create_vcpu()
    vm.snp.launch_start()
    gmem.make_private(0, PAGES * PAGE)
    populate(vm)
    vm.snp.launch_finish()
    return gmem, vcpu


def whole(vm: Vm) -> None:
    vm.snp.launch_update(GPA, PAGES * PAGE, SnpPageType.NORMAL)


def serve(vcpu: Vcpu, convert: Callable[[int, int, bool], None]) -> None:
    """Run a guest that shares two pages, uses them and takes them back; it's told 0 whatever `convert` did."""

    def guest(cpu: GuestCpu) -> None:
        cpu.convert(GPA, 2 * PAGE, private=False)
        for page in range(2):
            cpu.store(GPA + page * PAGE, b"shared", shared=True)
        for page in range(2):
            cpu.page_state_change_msr(GPA + page * PAGE, private=True)

    exit_ = vcpu.run(guest)
    while exit_.reason is ExitReason.HYPERCALL:
        gpa, npages, attributes = exit_.hypercall.args[:3]
        convert(gpa - GPA, npages * PAGE, bool(attributes & 16))
        exit_.answer_hypercall(0)
        exit_ = vcpu.run()
    if exit_.reason is not ExitReason.HLT:
        sys.exit("the guest ended itself")


def ignores_len() -> None:
    """Success is success: `len` isn't looked at, so a launch that was interrupted goes on with holes."""
    launched(lambda vm: vm.snp.launch_update_once(GPA, PAGES * PAGE, SnpPageType.NORMAL))


def ignores_error_offset() -> None:
    """EAGAIN is taken for "nearly all was done", and which page it was isn't looked at."""
    gmem, vcpu = launched(whole)

    def convert(offset: int, size: int, private: bool) -> None:
        try:
            (gmem.make_private if private else gmem.make_shared)(offset, size)
        except OSError as error:
            if error.errno != EAGAIN:
                raise

    serve(vcpu, convert)


def retries_for_ever() -> None:
    """Somebody holds the page for good, and nobody counts."""
    gmem, vcpu = launched(whole)

    def convert(offset: int, size: int, private: bool) -> None:
        while True:
            try:
                return (gmem.make_private if private else gmem.make_shared)(offset, size)
            except OSError as error:
                if error.errno != EAGAIN:
                    raise

    serve(vcpu, convert)


def trips_over_errors() -> None:
    """What a failed call leaves behind isn't what the next line takes it for."""
    vms: dict[str, Vm] = {}
    with suppress(OSError):
        vms["mine"] = kvm.create_vm(VmType.SW_PROTECTED)
    vms["mine"].close()


def ignores_size() -> None:
    """KVM_ARM_RMI_POPULATE that succeeds may have done only a part of it."""
    vm = kvm.create_vm(VmType.ARM_REALM)
    vcpu = vm.cca.create_vcpu()
    vm.cca.create_vgic()
    gmem = vm.create_guest_memfd(PAGES * PAGE, 3)
    memory = gmem.mmap()
    vm.set_user_memory_region2(0, GPA, PAGES * PAGE, gmem=gmem, userspace_addr=memory.address)
    contents = kvm.anonymous(PAGES * PAGE)
    contents[:] = b"x" * (PAGES * PAGE)
    gmem.make_private(0, PAGES * PAGE)
    vm.cca.populate(GPA, PAGES * PAGE, contents.address)
    vcpu.run(lambda cpu: None)


def fails_anyway() -> None:
    """It doesn't even work when nothing fails."""
    sys.exit("no")


def sleeps() -> None:
    """It does nothing, for ever, if its first call fails."""
    try:
        kvm.create_vm(VmType.SW_PROTECTED)
    except OSError:
        while True:
            pass


if __name__ == "__main__":
    kvm = Kvm.open("inplace-v13", platform="arm" if sys.argv[1] == "ignores_size" else "amd")
    try:
        globals()[sys.argv[1]]()
    except OSError as failed:
        sys.exit(str(failed))

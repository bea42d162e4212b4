# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM would launch, page by page, before anything is launched.

`plan_snp` reads nothing but the files it is given and touches no host.  Whoever executes the plan goes through `steps`
in order, each one SNP_LAUNCH_UPDATE, then sets the registers of each of `vcpus` and calls SNP_LAUNCH_FINISH, where KVM
adds the VMSAs. Order and page types: QEMU `sev_snp_launch_finish()`, `snp_populate_metadata_pages()`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ..uapi.sev import SVM_SEV_FEAT_SNP_ACTIVE, SnpPageType
from .cpu_types import cpu_signature, signature
from .cpuid_page import cpuid_page
from .errors import LaunchError
from .kernel_hashes import hash_inputs, hashes_page
from .ovmf import PAGE_SIZE, Firmware, MetadataSection, SectionType
from .readfile import Contents
from .vcpu_state import RESET_VECTOR, VcpuState, initial_state
from .vmm import Vmm, vmm_named

__all__ = ["MAX_VCPUS", "LaunchPlan", "MemoryRegion", "PlanStep", "plan_snp", "vmsa_step_name"]

MAX_VCPUS = 4096
"""KVM_MAX_VCPUS at its highest."""

DEFAULT_SIGNATURE = signature(23, 1, 2)
"""For the CPUID page where no vCPU type is given: the first EPYC's."""

_STEP_NAMES = {
    SectionType.SEC_MEM: "sec-mem",
    SectionType.SECRETS: "secrets",
    SectionType.CPUID: "cpuid",
    SectionType.SVSM_CAA: "svsm-caa",
    SectionType.KERNEL_HASHES: "kernel-hashes",
}


class PlanStep(NamedTuple):
    """One launch update: `size` bytes at `gpa`, whole pages, all of one type.

    `contents` has `size` bytes, or is `None` where the source doesn't matter or is zeroes.
    """

    name: str
    gpa: int
    page_type: SnpPageType
    size: int
    contents: Contents | None

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB."""
        return self.size // PAGE_SIZE


class MemoryRegion(NamedTuple):
    """A range of guest memory, in bytes."""

    gpa: int
    size: int


class LaunchPlan(NamedTuple):
    """A launch, ready to be executed.

    `sev_features` is what the VMSA carries, SNP's bit 0 included; `signature` the CPUID signature of every vCPU.
    `parameters` says in plain values what was asked for (it heads a page log).  `notes` holds sentences for the user:
    what is odd about the launch without being wrong.
    """

    firmware: Firmware
    vmm: Vmm
    steps: tuple[PlanStep, ...]
    vcpus: tuple[VcpuState, ...]
    sev_features: int
    signature: int
    parameters: dict[str, str | int]
    notes: tuple[str, ...]

    @property
    def init2_features(self) -> int:
        """`vmsa_features` for INIT2: KVM refuses SNP's bit there and adds it itself."""
        return self.sev_features & ~SVM_SEV_FEAT_SNP_ACTIVE

    @property
    def pages(self) -> int:
        """How many pages are measured, VMSAs included."""
        return sum(step.pages for step in self.steps) + len(self.vcpus)

    def memory_regions(self) -> list[MemoryRegion]:
        """The guest memory that must be there for the launch: disjoint, not touching, in order of gpa."""
        regions: list[MemoryRegion] = []
        for gpa, size in sorted((step.gpa, step.size) for step in self.steps):
            if regions and regions[-1].gpa + regions[-1].size == gpa:
                regions[-1] = MemoryRegion(regions[-1].gpa, regions[-1].size + size)
            else:
                regions.append(MemoryRegion(gpa, size))
        return regions


def vmsa_step_name(index: int) -> str:
    """What the log calls the measuring of vCPU `index`."""
    return f"vmsa {index}"


def plan_snp(
    firmware: Firmware,
    vcpus: int,
    vcpu_type: str | int | None,
    guest_features: int,
    kernel: str | os.PathLike[str] | None = None,
    initrd: str | os.PathLike[str] | None = None,
    append: str | None = None,
    vmm: str = "qemu",
) -> LaunchPlan:
    """What `vmm` launches for an SNP guest.

    `vcpu_type` is a QEMU CPU name or a CPUID signature; flavours that don't measure it take `None`.  `guest_features`
    is SEV_FEATURES as the VMSA carries it.  `kernel` and `initrd` are paths, `append` the kernel's command line; they
    are hashed into the page that the firmware reserves for that.  Raises `LaunchError`.
    """
    flavour = vmm_named(vmm)
    _check_numbers(vcpus, guest_features)
    parameters: dict[str, str | int] = {"vmm": flavour.name, "vcpus": vcpus, "guest_features": f"{guest_features:#x}"}
    cpu = _signature(flavour, vcpu_type)
    if vcpu_type is not None:
        parameters["vcpu_type"] = vcpu_type if isinstance(vcpu_type, str) else f"{vcpu_type:#x}"
    notes: list[str] = []
    hashes = _hashes(firmware, kernel, initrd, append, parameters)
    steps = [PlanStep("firmware", firmware.gpa, SnpPageType.NORMAL, firmware.size, firmware.data)]
    steps += (_section_step(s, flavour, cpu, vcpus, hashes) for s in flavour.order(firmware.sev_metadata))
    states = _vcpu_states(firmware, flavour, cpu, vcpus, notes)
    _note_oddities(firmware, hashes, notes)
    return LaunchPlan(firmware, flavour, tuple(steps), states, guest_features, cpu, parameters, tuple(notes))


def _check_numbers(vcpus: int, guest_features: int) -> None:
    if not 1 <= vcpus <= MAX_VCPUS:
        raise LaunchError(f"a guest of {vcpus} vCPUs was asked for; give a number from 1 to {MAX_VCPUS}")
    if not 0 <= guest_features < 1 << 64:
        raise LaunchError(f"guest features {guest_features:#x} don't fit the 64 bits of SEV_FEATURES")
    if not guest_features & SVM_SEV_FEAT_SNP_ACTIVE:
        raise LaunchError(
            f"guest features {guest_features:#x} lack bit 0, which every SNP guest has: KVM sets it; "
            f"did you mean {guest_features | SVM_SEV_FEAT_SNP_ACTIVE:#x}?"
        )


def _signature(vmm: Vmm, vcpu_type: str | int | None) -> int:
    if isinstance(vcpu_type, str):
        return cpu_signature(vcpu_type)
    if vcpu_type is None:
        if vmm.needs_cpu_type:
            raise LaunchError(
                f"no vCPU type was given, and {vmm.name} hands the guest the CPU's signature, which is measured; "
                f"give one, such as EPYC-v4"
            )
        return DEFAULT_SIGNATURE
    if not 0 <= vcpu_type < 1 << 32:
        raise LaunchError(f"CPUID signature {vcpu_type:#x} doesn't fit 32 bits")
    return vcpu_type


def _hashes(
    firmware: Firmware,
    kernel: str | os.PathLike[str] | None,
    initrd: str | os.PathLike[str] | None,
    append: str | None,
    parameters: dict[str, str | int],
) -> bytes | None:
    """The page of kernel hashes, or `None` without a kernel."""
    if not kernel:
        if initrd or append:
            raise LaunchError(
                f"{'an initrd' if initrd else 'a kernel command line'} was given without a kernel; give the kernel too"
            )
        return None
    if not firmware.sections(SectionType.KERNEL_HASHES):
        raise LaunchError(
            f"{firmware.name} reserves no page for kernel hashes in its SEV metadata, so it can't check the kernel that was "
            f"given; use an image built for that, such as OVMF.amdsev.fd"
        )
    if firmware.hash_table_gpa is None:
        raise LaunchError(
            f"{firmware.name} doesn't say in its GUIDed table where it looks for the kernel hashes, so it can't check the "
            f"kernel that was given; use an image built for that, such as OVMF.amdsev.fd"
        )
    digests = hash_inputs(kernel, initrd, append)
    parameters.update(zip(("kernel_sha256", "initrd_sha256", "append_sha256"), (d.hex() for d in digests), strict=True))
    return hashes_page(firmware.hash_table_gpa % PAGE_SIZE, *digests)


def _section_step(section: MetadataSection, vmm: Vmm, cpu: int, vcpus: int, hashes: bytes | None) -> PlanStep:
    name, (gpa, size, kind) = _STEP_NAMES[section.type], section
    if kind is SectionType.SEC_MEM:
        return PlanStep(name, gpa, vmm.sec_mem, size, None)
    if kind is SectionType.SECRETS:
        return PlanStep(name, gpa, SnpPageType.SECRETS, size, None)
    if kind is SectionType.CPUID:
        return PlanStep(name, gpa, SnpPageType.CPUID, size, cpuid_page(cpu, vcpus))
    if kind is SectionType.KERNEL_HASHES and hashes is not None:
        return PlanStep(name, gpa, SnpPageType.NORMAL, size, hashes.ljust(size, b"\0"))
    return PlanStep(name, gpa, SnpPageType.ZERO, size, None)


def _vcpu_states(firmware: Firmware, vmm: Vmm, cpu: int, vcpus: int, notes: list[str]) -> tuple[VcpuState, ...]:
    bsp = initial_state(vmm, cpu, RESET_VECTOR, bsp=True)
    if firmware.reset_eip is None:
        lack = f"{firmware.name} names no address where application processors start (SEV-ES reset block)"
        if vcpus > 1:
            raise LaunchError(f"{lack}, so {vcpus} vCPUs can't be launched; use one vCPU or an image built for SEV-ES")
        notes.append(f"{lack}: QEMU refuses to launch it")
        return (bsp,)
    return bsp, *(initial_state(vmm, cpu, firmware.reset_eip, bsp=False),) * (vcpus - 1)


def _note_oddities(firmware: Firmware, hashes: bytes | None, notes: list[str]) -> None:
    if not firmware.has_sev_metadata:
        notes.append(
            f"{firmware.name} has no SEV metadata, so only the image and the VMSAs are measured, and the guest would find "
            f"no secrets and no CPUID page: QEMU refuses to launch it; use an image built for SNP, such as OVMF.fd"
        )
        return
    for kind in SectionType.SECRETS, SectionType.CPUID:
        count = len(firmware.sections(kind))
        if count != 1:
            notes.append(f"{firmware.name} has {count} {kind.name} pages in its SEV metadata, and a guest needs one")
    table = firmware.hash_table_gpa or 0
    for section in firmware.sections(SectionType.KERNEL_HASHES) if hashes else ():
        if section.gpa != table & -PAGE_SIZE:
            notes.append(
                f"{firmware.name} looks for the kernel hashes at gpa {table:#x}, but has its page for them at gpa "
                f"{section.gpa:#x}: it won't find them"
            )

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM launches as a realm, and a reference VMM that carries it out on the emulated host.

An Arm image has no metadata that says what is measured: the VMM decides where things go.  Here a firmware goes to address
0, where QEMU's virt machine has its flash, or a kernel with its initrd and device tree goes into RAM by the arm64 boot
protocol.
Everything that is loaded is measured with its contents, in order of address.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..api.arm64 import set_reg
from ..api.kvm import Kvm
from ..hw.rmm.core import RmmInfo
from ..hw.rmm.measurement import Rim, RimRow
from ..hw.rmm.rtt import LAST_LEVEL, entry_pages, start_level
from ..profiles import Profile
from ..uapi.kvm import VmType
from ..uapi.kvm_arm64 import core_reg
from ..uapi.rmi import RecFlags, rmi_realm_params, rmi_rec_params
from ..vmm import VmmError
from ..vmm.populate import populate_cca
from .base import Launch, Progress
from .errors import LaunchError
from .ovmf import PAGE_SIZE
from .pagelog import CcaPageType, LogWriter
from .plan import MAX_VCPUS, MemoryRegion
from .readfile import Contents

if TYPE_CHECKING:
    from ..api.mapping import Mapping
    from ..kvm.arch.cca import CcaVm

__all__ = ["RAM_BASE", "CcaImage", "CcaLaunch", "CcaPlan", "CcaStep", "compute_rim", "measure_cca", "plan_cca"]

RAM_BASE = 1 << 30
"""Where QEMU's virt machine has RAM."""
KERNEL_OFFSET = 2 << 20
INITRD_OFFSET = 128 << 20
RAM_AFTER = 2 << 20
"""RAM that a realm has besides what is loaded (bytes)."""
FLASH_SIZE = 64 << 20
_ARM64_MAGIC = b"ARM\x64"
_X0, _PC = core_reg(0), core_reg(32)


class CcaImage(NamedTuple):
    """What is to run: a firmware, or a kernel with what it needs.  `name` is what messages call it."""

    name: str
    firmware: Contents | None = None
    kernel: Contents | None = None
    initrd: Contents | None = None
    dtb: Contents | None = None


class MainImage(NamedTuple):
    """What a launch is named after: the firmware or the kernel."""

    name: str
    size: int
    data: Contents


class CcaStep(NamedTuple):
    """One piece: `contents` at `gpa`, padded with zeroes to whole pages."""

    name: str
    gpa: int
    contents: Contents

    @property
    def size(self) -> int:
        """Bytes, whole pages."""
        return -(-len(self.contents) // PAGE_SIZE) * PAGE_SIZE

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB."""
        return self.size // PAGE_SIZE


class CcaPlan(NamedTuple):
    """A launch, ready to be executed.  vCPU 0 starts at `pc` with `x0` in X0; the others are off."""

    image: CcaImage
    steps: tuple[CcaStep, ...]
    regions: tuple[MemoryRegion, ...]
    vcpus: int
    ipa_bits: int
    pc: int
    x0: int
    notes: tuple[str, ...]

    @property
    def pages(self) -> int:
        """How many pages are populated."""
        return sum(step.pages for step in self.steps)

    @property
    def firmware(self) -> MainImage:
        """The firmware, or the kernel."""
        main = self.image.firmware if self.image.firmware is not None else self.image.kernel
        assert main is not None
        return MainImage(self.image.name, len(main), main)

    @property
    def parameters(self) -> dict[str, str | int]:
        """What was chosen, for people."""
        return {"vcpus": self.vcpus, "ipa_bits": self.ipa_bits, "pc": f"{self.pc:#x}", "x0": f"{self.x0:#x}"}


def plan_cca(image: CcaImage, vcpus: int = 1, ipa_bits: int = 40) -> CcaPlan:
    """What a VMM launches of `image` as a realm of `vcpus` vCPUs with addresses of `ipa_bits` bits.

    Only the first vCPU is measured, as the others are off; `ipa_bits` is measured.  Raises `LaunchError`.
    """
    if not 1 <= vcpus <= MAX_VCPUS:
        raise LaunchError(f"a realm of {vcpus} vCPUs was asked for; give a number from 1 to {MAX_VCPUS}")
    if not 32 <= ipa_bits <= RmmInfo().max_ipa_bits:
        raise LaunchError(f"addresses of {ipa_bits} bits were asked for; there are 32 to {RmmInfo().max_ipa_bits}")
    if image.firmware is not None:
        steps, pc, x0 = _firmware(image)
    elif image.kernel is not None:
        steps, pc, x0 = _kernel(image)
    else:
        raise LaunchError("a realm needs a firmware or a kernel to start with")
    end = max(step.gpa + step.size for step in steps)
    regions = []
    if steps[0].gpa < RAM_BASE:
        regions.append(MemoryRegion(steps[0].gpa, steps[0].size))
        end = RAM_BASE
    regions.append(MemoryRegion(RAM_BASE, -(-end // RAM_AFTER) * RAM_AFTER + RAM_AFTER - RAM_BASE))
    if regions[-1].gpa + regions[-1].size > 1 << ipa_bits - 1:
        raise LaunchError(f"the image takes memory up to {end:#x}, and the protected half ends at {1 << ipa_bits - 1:#x}")
    notes = ("where things are loaded is the VMM's choice, and it's measured: another VMM's RIM may differ",)
    return CcaPlan(image, tuple(steps), tuple(regions), vcpus, ipa_bits, pc, x0, notes)


def _firmware(image: CcaImage) -> tuple[list[CcaStep], int, int]:
    assert image.firmware is not None
    if not 0 < len(image.firmware) <= FLASH_SIZE:
        raise LaunchError(f"{image.name} has {len(image.firmware):#x} bytes; a firmware has 1 to {FLASH_SIZE:#x}")
    return [CcaStep("firmware", 0, image.firmware)], 0, 0


def _kernel(image: CcaImage) -> tuple[list[CcaStep], int, int]:
    """The arm64 boot protocol: the kernel at its offset from a multiple of 2 MiB, X0 the address of the device tree."""
    assert image.kernel is not None
    if len(image.kernel) < 64 or image.kernel[56:60] != _ARM64_MAGIC:
        raise LaunchError(f"{image.name} isn't an arm64 kernel image: it has no magic number at 0x38 (is it compressed?)")
    offset, image_size = struct.unpack_from("<QQ", image.kernel, 8)
    entry = RAM_BASE + KERNEL_OFFSET + offset
    steps = [CcaStep("kernel", entry, image.kernel)]
    if entry % PAGE_SIZE:
        raise LaunchError(f"{image.name} wants to be at offset {offset:#x}, which isn't a whole number of pages")
    if max(image_size, len(image.kernel)) + KERNEL_OFFSET + offset > INITRD_OFFSET:
        raise LaunchError(f"{image.name} wants {image_size:#x} bytes from offset {offset:#x}; the initrd is in the way")
    at = RAM_BASE + INITRD_OFFSET
    if image.initrd is not None:
        steps.append(CcaStep("initrd", at, image.initrd))
        at = -(-(at + len(image.initrd)) // KERNEL_OFFSET) * KERNEL_OFFSET
    x0 = 0
    if image.dtb is not None:
        steps.append(CcaStep("dtb", at, image.dtb))
        x0 = at
    return steps, entry, x0


# Without a host


def compute_rim(
    plan: CcaPlan, *, version: tuple[int, int] = (2, 0), info: RmmInfo | None = None, log: LogWriter | None = None
) -> bytes:
    """The RIM of `plan` without a host (simulated), by the rules of an RMM of `version`.

    By those of 1.0 what becomes RAM is measured first, entry by entry of the tables, as its host does it.
    """
    info = info or RmmInfo()
    params = rmi_realm_params(s2sz=plan.ipa_bits, num_bps=info.num_bps - 1, num_wps=info.num_wps - 1)
    rim = Rim(params, measures_ripas=version < (2, 0))
    for region in plan.regions:
        for base, top in ripas_entries(region.gpa, region.gpa + region.size, start_level(plan.ipa_bits)):
            rim.ripas(base, top)
    for index, step in enumerate(plan.steps):
        if log is not None:
            for at in range(0, step.size, PAGE_SIZE):
                page = bytes(step.contents[at : at + PAGE_SIZE]).ljust(PAGE_SIZE, b"\0")
                rim.data(step.gpa + at, page, measure=True)
                _write_rows(log, index, step.name, [rim.row(step.gpa + at, page)])
            continue
        whole = len(step.contents) // PAGE_SIZE * PAGE_SIZE
        with memoryview(step.contents) as view, view[:whole] as pages:
            rim.data(step.gpa, pages, measure=True)
        if whole < step.size:
            rim.data(step.gpa + whole, bytes(step.contents[whole:]).ljust(PAGE_SIZE, b"\0"), measure=True)
    rim.rec(rmi_rec_params(flags=RecFlags.RUNNABLE, pc=plan.pc, gprs=(plan.x0, *(0,) * 7)))
    return rim.value


def _write_rows(log: LogWriter, index: int, name: str, rows: list[RimRow]) -> None:
    """Pages that entered the RIM in step `index`."""
    for ipa, contents, rim in rows:
        log.page(index, name, ipa, CcaPageType.MEASURED, (contents or bytes(32)).hex(), rim.hex())


def ripas_entries(base: int, top: int, level: int) -> Iterator[tuple[int, int]]:
    """The table entries that [base, top) consists of, where tables start at `level` and others come as they are missed."""
    while base < top:
        size = next(
            size
            for each in range(level, LAST_LEVEL + 1)
            if not base % (size := entry_pages(each) * PAGE_SIZE) and base + size <= top
        )
        yield base, base + size
        base += size


# On a host


STAGE = 2 << 20
"""Bytes populated at a time: what one table of a realm covers."""


class CcaLaunch(Launch):
    """One realm, from creation to activation.  `measurement` is the RIM."""

    vm_type = VmType.ARM_REALM
    only_copies = "the RMM copies a realm's contents from another page, never from the page itself"

    def __init__(
        self,
        kvm: Kvm,
        plan: CcaPlan,
        *,
        flow: str | None = None,
        log: LogWriter | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(kvm, flow, log, progress)
        self.plan = plan
        if VmType.ARM_REALM not in self.profile.vm_types:
            raise LaunchError(f"profile {self.profile.name} has no realms; use inplace-v13 or linux-7.3-cca")
        if VmType.ARM_REALM not in kvm.host.vm_types:
            raise LaunchError(f"the emulated machine is of platform {kvm.host.platform}, and a realm takes arm")
        self.platform = kvm.host.rmm

    def run(self) -> bytes:
        """Everything up to where the realm is active.  Returns the RIM (simulated)."""
        self.create_vm()
        self.add_memory(self.plan.regions)
        for index, step in enumerate(self.plan.steps):
            if self._log is not None:
                write = partial(_write_rows, self._log, index, step.name)
                self.platform.rmm.log = lambda rd, rows, write=write: write(rows)
            self.populate(step)
        self.activate()
        return self.measurement

    def create_vm(self) -> None:
        """KVM_CREATE_VM, the GIC, the vCPUs: the first with its registers, the others off."""
        self.start_vm(f"type {VmType.ARM_REALM:#x}, a realm; {self.plan.ipa_bits} bits of address", self.plan.ipa_bits)
        self.vm.cca.create_vgic()
        for index in range(self.plan.vcpus):
            self.vcpus.append(self.vm.cca.create_vcpu(index, power_off=index > 0))
        set_reg(self.vcpus[0], _PC, self.plan.pc)
        set_reg(self.vcpus[0], _X0, self.plan.x0)
        self.called("KVM_ARM_VCPU_INIT", f"{len(self.vcpus)} vCPUs, PC {self.plan.pc:#x}, X0 {self.plan.x0:#x}")

    def populate(self, step: CcaStep) -> None:
        """Conversion, then KVM_ARM_RMI_POPULATE from elsewhere: contents go by way of a buffer, so that they aren't twice in
        memory when all is done."""
        try:
            self.vmm.convert(step.gpa, step.size, private=True)
            with self.kvm.anonymous(min(step.size, STAGE)) as stage:
                for at in range(0, step.size, STAGE):
                    self._populate_part(step, at, stage)
        except (VmmError, OSError) as error:
            raise LaunchError(f"POPULATE of {step.name} at {step.gpa:#x} failed: {error}") from error
        self.called(f"KVM_ARM_RMI_POPULATE {step.name}", f"{step.pages} pages measured at {step.gpa:#x}, from a buffer")

    def _populate_part(self, step: CcaStep, at: int, stage: Mapping) -> None:
        """As much of a step as the buffer takes, from `at` on."""
        size = min(STAGE, step.size - at)
        with memoryview(step.contents) as contents, contents[at : at + size] as part:
            stage[: len(part)] = part
            if len(part) < size:
                stage[len(part) : size] = bytes(size - len(part))
        populate_cca(self.vm.cca, step.gpa + at, size, stage.address)
        self.progressed(size // PAGE_SIZE, self.plan.pages)

    def activate(self) -> None:
        """The first KVM_RUN, which comes back at once: RECs, RIPAS, activation."""
        vcpu = self.vcpus[0]
        try:
            vcpu.run(lambda cpu: None)
        except OSError as error:
            raise LaunchError(f"the realm couldn't be activated: {error}") from error
        self.measurement = self.arch.platform.rmm.realms[self.arch.rd].measurement
        self.called("KVM_RUN", "RECs created, memory slots are RAM, realm active; the RIM is final")

    @property
    def arch(self) -> CcaVm:
        """What KVM knows of the realm, on a machine with no other VM."""
        from ..kvm.arch.cca import CcaVm

        [vm] = self.kvm.host.vms
        assert isinstance(vm.arch, CcaVm)
        return vm.arch

    def pages_by_state(self) -> dict[str, int]:
        """How many 4 KiB pages of the protected half are assigned, by RIPAS."""
        return self.arch.pages_by_state()


def measure_cca(
    plan: CcaPlan,
    *,
    version: tuple[int, int] = (2, 0),
    log: LogWriter | None = None,
    progress: Progress | None = None,
    profile: str | Profile | None = None,
) -> bytes:
    """The RIM of `plan` (simulated), by a launch on an emulated host of its own; by the rules of RMM 1.0 it's computed."""
    from ..profiles import DEFAULT

    if version < (2, 0):
        return compute_rim(plan, version=version, log=log)
    with Kvm.open(profile or DEFAULT, platform="arm") as kvm, CcaLaunch(kvm, plan, log=log, progress=progress) as launch:
        return launch.run()

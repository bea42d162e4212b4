# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM launches as a TD, and a reference VMM that carries it out on the emulated host, as QEMU does on a real one.

Sections are added in the firmware's order, each page with its contents if the section is measured.  That is the order of
KVM_TDX_INIT_MEM_REGION; VMMs that drive the TDX module otherwise may add all pages of a section first and extend them
afterwards ("two passes"), which gives another MRTD.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..api.kvm import Kvm
from ..api.tdx import DEFAULT_XFAM
from ..hw.tdx.mrtd import Mrtd
from ..profiles import Profile
from ..uapi.kvm import VmType
from ..uapi.tdx import TdAttributes
from ..vmm import VmmError, populate_tdx
from .base import Launch, Progress
from .errors import LaunchError
from .ovmf import PAGE_SIZE, Firmware
from .pagelog import TdxPageType
from .plan import MAX_VCPUS, MemoryRegion
from .readfile import Contents
from .tdvf import TdvfSectionType, read_tdvf

if TYPE_CHECKING:
    from ..hw.tdx.module import Row, Td
    from .pagelog import LogWriter

__all__ = ["TdxLaunch", "TdxPlan", "TdxStep", "compute_mrtd", "measure_tdx", "plan_tdx"]

_EMPTY = bytes(PAGE_SIZE)
_RUN = 512
"""Pages that are hashed at a time where there is no host."""


class TdxStep(NamedTuple):
    """One KVM_TDX_INIT_MEM_REGION: `size` bytes at `gpa`, whole pages.  `contents` None: zeroes."""

    name: str
    gpa: int
    size: int
    contents: Contents | None
    measured: bool

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB."""
        return self.size // PAGE_SIZE


class TdxPlan(NamedTuple):
    """A launch, ready to be executed.  `hob_gpa` is what vCPUs get in RCX: the address of the TD HOB."""

    firmware: Firmware
    steps: tuple[TdxStep, ...]
    vcpus: int
    hob_gpa: int
    attributes: int
    gpaw: int
    parameters: dict[str, str | int]
    notes: tuple[str, ...]

    @property
    def pages(self) -> int:
        """How many pages are added."""
        return sum(step.pages for step in self.steps)

    @property
    def measured_pages(self) -> int:
        """How many of them are measured with their contents."""
        return sum(step.pages for step in self.steps if step.measured)

    def memory_regions(self) -> list[MemoryRegion]:
        """The guest memory that must be there for the launch: disjoint, not touching, in order of gpa."""
        regions: list[MemoryRegion] = []
        for gpa, size in sorted((step.gpa, step.size) for step in self.steps):
            if regions and regions[-1].gpa + regions[-1].size == gpa:
                regions[-1] = MemoryRegion(regions[-1].gpa, regions[-1].size + size)
            else:
                regions.append(MemoryRegion(gpa, size))
        return regions


def plan_tdx(firmware: Firmware, vcpus: int = 1, attributes: int = TdAttributes.SEPT_VE_DISABLE, gpaw: int = 48) -> TdxPlan:
    """What a VMM launches of `firmware` as a TD of `vcpus` vCPUs.  Neither `vcpus` nor `attributes` nor `gpaw` enters MRTD.

    Raises `LaunchError`.
    """
    if not 1 <= vcpus <= MAX_VCPUS:
        raise LaunchError(f"a TD of {vcpus} vCPUs was asked for; give a number from 1 to {MAX_VCPUS}")
    if gpaw not in (48, 52):
        raise LaunchError(f"a guest physical address width of {gpaw} was asked for; TDX has 48 and 52")
    steps, notes, hob = [], [], 0
    for section in read_tdvf(firmware):
        name = section.type.name.lower().replace("_", "-")
        if not section.at_launch:
            notes.append(f"section {name} at {section.gpa:#x} is added at run time, and isn't measured")
            continue
        if section.type is TdvfSectionType.TD_HOB:
            hob = section.gpa
        contents = None
        if section.raw_size:
            data = firmware.data[section.data_offset : section.data_offset + section.raw_size]
            contents = data.ljust(section.size, b"\0")
        steps.append(TdxStep(name, section.gpa, section.size, contents, section.measured))
    if not hob:
        notes.append(f"{firmware.name} has no section for a TD HOB: its guest wouldn't learn where its memory is")
    if not any(step.measured for step in steps):
        notes.append(f"{firmware.name} has no section whose contents are measured, so MRTD vouches only for addresses")
    parameters: dict[str, str | int] = {"vcpus": vcpus, "attributes": f"{attributes:#x}", "gpaw": gpaw}
    return TdxPlan(firmware, tuple(steps), vcpus, hob, int(attributes), gpaw, parameters, tuple(notes))


def compute_mrtd(
    plan: TdxPlan, *, two_pass: bool = False, progress: Progress | None = None, log: LogWriter | None = None
) -> bytes:
    """MRTD of `plan` without a host (simulated).  `two_pass`: all pages of a section are added before any is extended."""
    mrtd, done = Mrtd(), 0
    for index, step in enumerate(plan.steps):
        if log is not None:
            _compute_and_log(mrtd, index, step, two_pass, log)
            continue
        if two_pass or not step.measured:
            mrtd.page_add(step.gpa, step.pages)
        view = memoryview(step.contents) if step.contents is not None else None
        for at in range(0, step.size, _RUN * PAGE_SIZE):
            size = min(_RUN * PAGE_SIZE, step.size - at)
            if step.measured:
                contents = view[at : at + size] if view is not None else _EMPTY * (size // PAGE_SIZE)
                (mrtd.extend_pages if two_pass else mrtd.page_add_extend)(step.gpa + at, contents)
            done += size // PAGE_SIZE
            if progress is not None:
                progress(done, plan.pages)
    return mrtd.value


def _compute_and_log(mrtd: Mrtd, index: int, step: TdxStep, two_pass: bool, log: LogWriter) -> None:
    """One step, page by page.  A page that is extended in a second pass is logged then."""
    if two_pass and step.measured:
        mrtd.page_add(step.gpa, step.pages)
    for at in range(0, step.size, PAGE_SIZE):
        page = None
        if step.measured:
            page = bytes(step.contents[at : at + PAGE_SIZE]) if step.contents is not None else _EMPTY
            (mrtd.extend_pages if two_pass else mrtd.page_add_extend)(step.gpa + at, page)
        else:
            mrtd.page_add(step.gpa + at)
        _write_rows(log, index, step.name, [mrtd.row(step.gpa + at, page)])


def _write_rows(log: LogWriter, index: int, name: str, rows: list[Row]) -> None:
    """Pages that entered MRTD in step `index`."""
    for gpa, contents, digest in rows:
        kind = TdxPageType.ADDED if contents is None else TdxPageType.EXTENDED
        log.page(index, name, gpa, kind, (contents or bytes(48)).hex(), digest.hex())


class TdxLaunch(Launch):
    """One TDX VM, from creation to a final measurement.  `measurement` is MRTD."""

    vm_type = VmType.TDX

    def __init__(
        self,
        kvm: Kvm,
        plan: TdxPlan,
        *,
        flow: str | None = None,
        log: LogWriter | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(kvm, flow, log, progress)
        self.plan = plan
        if VmType.TDX not in self.profile.vm_types:
            raise LaunchError(f"profile {self.profile.name} has no TDX; use linux-6.18 or later")
        if VmType.TDX not in kvm.host.vm_types:
            raise LaunchError(f"the emulated machine is of platform {kvm.host.platform}, and TDX takes intel")
        self.platform = kvm.host.tdx

    # The launch, in QEMU's order

    def run(self) -> bytes:
        """Everything up to FINALIZE_VM.  Returns MRTD (simulated)."""
        self.create_vm()
        self.create_vcpus()
        self.add_memory(self.plan.memory_regions())
        for index, step in enumerate(self.plan.steps):
            if self._log is not None:
                self.log_pages(partial(_write_rows, self._log, index, step.name))
            self.populate(step)
        self.finalize()
        return self.measurement

    def create_vm(self) -> None:
        """KVM_CREATE_VM, KVM_TDX_CAPABILITIES and KVM_TDX_INIT_VM."""
        self.start_vm("type 5, KVM_X86_TDX_VM")
        supported = self.vm.tdx.capabilities().supported_attrs
        if self.plan.attributes & ~supported:
            raise LaunchError(f"TD attributes {self.plan.attributes:#x} were asked for, and KVM supports {supported:#x}")
        self.vm.tdx.init_vm(self.plan.attributes, DEFAULT_XFAM, gpaw=self.plan.gpaw)
        self.called("KVM_TDX_INIT_VM", f"attributes {self.plan.attributes:#x}; key configured, TD initialized")
        self.vm.enable_map_gpa_range()

    def create_vcpus(self) -> None:
        """The vCPUs; KVM_TDX_INIT_VCPU tells them where the TD HOB is."""
        for index in range(self.plan.vcpus):
            vcpu = self.vm.create_vcpu(index)
            vcpu.tdx_init(self.plan.hob_gpa)
            self.vcpus.append(vcpu)
        self.called("KVM_TDX_INIT_VCPU", f"{len(self.vcpus)} vCPUs, RCX {self.plan.hob_gpa:#x}")

    def populate(self, step: TdxStep) -> None:
        """Contents, conversion, KVM_TDX_INIT_MEM_REGION."""
        block = self.vmm.block_at(step.gpa)
        offset = step.gpa - block.gpa
        if step.contents is not None:
            block.buffer[offset : offset + step.size] = step.contents
        source = 0 if self.flow == "in-place" else block.buffer.address + offset
        backoff = self.vmm.backoff
        try:
            self.vmm.convert(step.gpa, step.size, private=True)
            populate_tdx(self.vm.tdx, self.vcpus[0], step.gpa, step.size, source, measure=step.measured, backoff=backoff)
        except (VmmError, OSError) as error:
            raise LaunchError(f"INIT_MEM_REGION of {step.name} at {step.gpa:#x} failed: {error}") from error
        where = "in place" if not source else f"from {source:#x}"
        how = "measured" if step.measured else "added"
        self.called(f"KVM_TDX_INIT_MEM_REGION {step.name}", f"{step.pages} pages {how} at {step.gpa:#x}, {where}")
        self.progressed(step.pages, self.plan.pages)

    def finalize(self) -> None:
        """KVM_TDX_FINALIZE_VM."""
        self.vm.tdx.finalize_vm()
        measurement = self.td.measurement
        assert measurement is not None
        self.measurement = measurement
        self.called("KVM_TDX_FINALIZE_VM", "MRTD is final; the TD may run")

    @property
    def td(self) -> Td:
        """The TD as the TDX module knows it, on a machine with no other."""
        [td] = self.platform.module.tds.values()
        return td

    def log_pages(self, log: Callable[[list[Row]], None]) -> None:
        """Have `log` told of each page as it enters MRTD."""
        self.platform.module.log = lambda tdr, rows: log(rows)

    def pages_by_state(self) -> dict[str, int]:
        """How many 4 KiB pages the secure EPT has in each state."""
        counts: dict[str, int] = {}
        for start, end, entry in self.td.sept.leaves.runs():
            counts[entry.state.name] = counts.get(entry.state.name, 0) + end - start
        return counts


def measure_tdx(
    plan: TdxPlan,
    *,
    two_pass: bool = False,
    log: LogWriter | None = None,
    progress: Progress | None = None,
    profile: str | Profile | None = None,
) -> bytes:
    """MRTD of `plan` (simulated), by a launch on an emulated host of its own; KVM can't do `two_pass`, which is computed."""
    from ..profiles import DEFAULT

    if two_pass:
        return compute_mrtd(plan, two_pass=True, progress=progress, log=log)
    with Kvm.open(profile or DEFAULT, platform="intel") as kvm, TdxLaunch(kvm, plan, log=log, progress=progress) as launch:
        return launch.run()

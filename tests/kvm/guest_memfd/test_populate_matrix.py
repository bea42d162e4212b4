# SPDX-License-Identifier: GPL-2.0-or-later
"""The populate matrix: every kernel, every kind of page, every kind of source, and what comes of it.

A row that loads something says what is in the page afterwards; a row that doesn't says the errno, the rule behind it, and
that nothing was loaded.  What can't be asked of a kernel (a mapping of memory that it doesn't map) is a row too.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EFAULT, EINVAL, EIO, ENODEV, EOPNOTSUPP

import pytest

from gmemu import PROFILES, GuestMemfd, Host, Kvm, Mapping, Profile, Vcpu, Vm, VmType
from gmemu.api.sev import SnpError
from gmemu.check import check_host
from gmemu.hw.memory import PAGE_SHIFT
from gmemu.kvm.vm import VmFile
from gmemu.profiles.table import CONFIGURATIONS
from gmemu.rules import KernelError
from gmemu.sync import Deadlock
from gmemu.uapi.sev import PspStatus, SnpPageType

from ..world import PAGE

NULL, GIVEN, UNALIGNED = "NULL", "given", "unaligned"
SHARED, FRESH, PRIVATE = "same guest_memfd, shared", "same guest_memfd, shared, not faulted", "same guest_memfd, private"
SOURCES = (NULL, GIVEN, UNALIGNED, SHARED, FRESH, PRIVATE)
PLATFORMS = {VmType.SNP: "amd", VmType.TDX: "intel", VmType.ARM_REALM: "arm"}
TYPES = tuple(t for t in SnpPageType if t is not SnpPageType.VMSA)
PAGES = 4
TARGET, OTHER = 0, 2
"""The page that is populated, and the page of the same guest_memfd that may be its source."""
SHIFT = 0x800
"""How far off an unaligned source is (bytes)."""

_LEAF = 0x40000000
CONTENTS = b"".join((b"\1".ljust(16, b"\0"), _LEAF.to_bytes(4, "little").ljust(28, b"\0"), b"leaf")).ljust(PAGE, b"c")
"""A CPUID page that the firmware takes as it is (one leaf that it doesn't check), so that it does for every type."""
BEFORE = CONTENTS.replace(b"cc", b"bb")
"""What is in the target page before, where anything can be."""


class Launch:
    """A VM in launch: four pages of guest_memfd at gpa 0, of which page 0 is private and is to be populated."""

    def __init__(self, profile: str, vm_type: VmType) -> None:
        self.host = Host(profile, memory=1 << 32, platform=PLATFORMS[vm_type])
        self.profile: Profile = self.host.profile
        self.kvm = Kvm.open_on(self.host)
        self.vm: Vm = self.kvm.create_vm(vm_type)
        self.vcpu: Vcpu | None = None
        if vm_type is VmType.SNP:
            self.vm.snp.init2()
        elif vm_type is VmType.ARM_REALM:
            self.vm.cca.create_vgic()
        else:
            self.vm.tdx.init_vm()
            self.vcpu = self.vm.create_vcpu()
            self.vcpu.tdx_init()
        flags = self.profile.shared_at_first or self.profile.gmem_flags & 1
        self.gmem: GuestMemfd = self.vm.create_guest_memfd(PAGES * PAGE, flags)
        self.anonymous: Mapping = self.kvm.anonymous(PAGES * PAGE)
        self.vm.set_user_memory_region2(0, 0, PAGES * PAGE, gmem=self.gmem, userspace_addr=self.anonymous.address)
        if vm_type is VmType.SNP:
            self.vm.snp.launch_start()

    def source(self, kind: str) -> int:
        """Prepare a source of that kind: its user address.  Raises ENODEV where the kernel doesn't map guest_memfd."""
        if kind == NULL:
            return 0
        if kind in (GIVEN, UNALIGNED):
            at = SHIFT if kind == UNALIGNED else 0
            self.anonymous[at : at + PAGE] = CONTENTS
            return self.anonymous.address + at
        mapping = self.gmem.mmap()
        if self.profile.in_place and kind != FRESH:
            mapping[OTHER * PAGE : (OTHER + 1) * PAGE] = CONTENTS
        if self.profile.in_place and kind == PRIVATE:
            self.gmem.make_private(OTHER * PAGE, PAGE)
        return mapping.address + OTHER * PAGE

    def make_target_private(self) -> None:
        """Write what the page holds before, where the kernel allows that and doesn't take it for populated; convert."""
        if self.profile.null_source:
            with self.gmem.mmap() as mapping:
                mapping[:PAGE] = BEFORE
        (self.gmem if self.profile.in_place else self.vm).make_private(TARGET * PAGE, PAGE)

    def populate(self, source: int, page_type: SnpPageType = SnpPageType.NORMAL) -> None:
        if self.vm.vm_type is VmType.ARM_REALM:
            assert self.vm.cca.populate(TARGET * PAGE, PAGE, source).size == 0
        elif self.vcpu is None:
            left = self.vm.snp.launch_update_once(TARGET * PAGE, PAGE, page_type, source)
            assert left.len == 0
        else:
            self.vm.tdx.init_mem_region(self.vcpu, TARGET * PAGE, PAGE, source)

    def contents(self) -> bytes | None:
        """The plaintext of the target page, whoever it belongs to; None if it belongs to the host still."""
        file = self.host.init.file(self.vm.fd)
        assert isinstance(file, VmFile)
        slot = file.vm.find_slot(TARGET)
        assert slot is not None
        assert slot.gmem_file is not None
        pfn = slot.gmem_file.gmem_inode.mapping.pfn(TARGET)
        if pfn is None or self.host.memory.keys[pfn] is None:
            return None
        with self.host.memory.view as view:
            return bytes(view[pfn << PAGE_SHIFT : (pfn + 1) << PAGE_SHIFT])


Expected = tuple[int, str] | bytes | type[Deadlock]
"""An errno and its rule, what the page holds, or that the kernel hangs."""


def _mapped(profile: Profile, kind: str) -> Expected | None:
    """What a source within the same guest_memfd comes to, whatever the platform; None: it's a source as any other."""
    if not profile.gmem_flags & 1:
        return ENODEV, "mm.mmap.unsupported"
    if profile.in_place and kind == SHARED:
        return None
    if profile.populate == "locked" and profile.in_place:
        return Deadlock  # the source's page fault takes the lock that populate holds (S01, S02)
    if kind == PRIVATE or not profile.in_place:
        return EFAULT, "mm.gup.fault"
    return None


def snp_expected(profile: Profile, page_type: SnpPageType, kind: str) -> Expected:
    """What the kernels' code says for SNP; whatever goes wrong within populate is EIO."""
    inside = _mapped(profile, kind) if kind in (SHARED, FRESH, PRIVATE) else None
    if inside == (ENODEV, "mm.mmap.unsupported"):
        return inside
    if page_type is SnpPageType.ZERO:
        return bytes(PAGE)
    gup_first = profile.populate == "gup-first"
    if kind == NULL:
        if profile.null_source:
            return BEFORE
        return (EINVAL, "snp.update.no-source") if gup_first else (EIO, "gmem.populate.no-source")
    if kind == UNALIGNED and gup_first:
        return EINVAL, "snp.update.source-unaligned"
    if isinstance(inside, tuple):
        return EIO, inside[1] if gup_first else "gmem.populate.source"
    return inside or (bytes(PAGE) if kind == FRESH else CONTENTS)


def tdx_expected(profile: Profile, kind: str) -> Expected:
    """What the kernels' code says for TDX, which hands errors out as they are."""
    inside = _mapped(profile, kind) if kind in (SHARED, FRESH, PRIVATE) else None
    gup_first = profile.populate == "gup-first"
    if kind == NULL:
        if profile.null_source:
            return BEFORE
        return (EINVAL, "tdx.init-mem-region.no-source") if gup_first else (EOPNOTSUPP, "tdx.populate.no-source")
    if kind == UNALIGNED:
        return EINVAL, "tdx.init-mem-region.range"
    if isinstance(inside, tuple) and not gup_first:
        return EFAULT, "gmem.populate.source"
    return inside or (bytes(PAGE) if kind == FRESH else CONTENTS)


def cca_expected(profile: Profile, kind: str) -> Expected:
    """What the series' code says for realms: there must be a source, in place or not."""
    inside = _mapped(profile, kind) if kind in (SHARED, FRESH, PRIVATE) else None
    if kind == NULL:
        return EINVAL, "cca.populate.no-source"
    if kind == UNALIGNED:
        return EINVAL, "cca.populate.range"
    return inside or (bytes(PAGE) if kind == FRESH else CONTENTS)


def check(launch: Launch, page_type: SnpPageType, kind: str, expected: Expected) -> None:
    """Ask, and see that it comes out as expected."""
    if expected is Deadlock:
        source = launch.source(kind)
        launch.make_target_private()
        with pytest.raises(Deadlock):
            launch.populate(source, page_type)
        return
    refused: KernelError | None = None
    try:
        source = launch.source(kind)
        launch.make_target_private()
        launch.populate(source, page_type)
    except KernelError as error:
        refused = error
    found = launch.contents()
    if isinstance(expected, tuple):
        assert refused is not None, f"{expected} was expected, and it went well"
        assert refused.errno == expected[0], refused
        assert expected[1] in f"{refused.rule.id} {refused.found}"
        assert getattr(refused, "fw_error", PspStatus.SUCCESS) is PspStatus.SUCCESS
        assert found is None
    elif page_type is SnpPageType.SECRETS:
        assert refused is None
        assert found not in (None, CONTENTS, BEFORE)  # the firmware's own page, whatever the source
    else:
        assert (refused, found) == (None, expected)
    check_host(launch.host)


@pytest.fixture
def launch(request: pytest.FixtureRequest) -> Iterator[Launch]:
    made = Launch(*request.param)
    yield made
    made.host.close()


def rows(platform: str, profile: Profile, page_type: SnpPageType) -> Iterator[object]:
    """The rows of one kernel and type of page, one for each kind of source."""
    vm_type = VmType[platform]
    for kind in SOURCES:
        snp = vm_type is VmType.SNP
        other = cca_expected if vm_type is VmType.ARM_REALM else tdx_expected
        expected = snp_expected(profile, page_type, kind) if snp else other(profile, kind)
        name = f"{profile.name}-{platform}-{page_type.name}-{kind}"
        yield pytest.param((profile.name, vm_type), page_type, kind, expected, id=name)


SNP = [row for p in PROFILES.values() if VmType.SNP in p.vm_types for t in TYPES for row in rows("SNP", p, t)]
TDX = [row for p in PROFILES.values() if VmType.TDX in p.vm_types for row in rows("TDX", p, SnpPageType.NORMAL)]

WITH_REALMS = [p for p in (*PROFILES.values(), *CONFIGURATIONS.values()) if VmType.ARM_REALM in p.vm_types]
CCA = [row for p in WITH_REALMS for row in rows("ARM_REALM", p, SnpPageType.NORMAL)]


@pytest.mark.parametrize(("launch", "page_type", "kind", "expected"), [*SNP, *TDX, *CCA], indirect=["launch"])
def test_row(launch: Launch, page_type: SnpPageType, kind: str, expected: Expected) -> None:
    check(launch, page_type, kind, expected)


@pytest.mark.parametrize(
    "launch", [("linux-6.12", VmType.SNP), ("linux-6.18", VmType.SNP)], indirect=True, ids=lambda p: p[0]
)
def test_a_correction_goes_back_over_a_page_boundary(launch: Launch) -> None:
    """The firmware corrects a CPUID table whose source lies in two pages: both halves of the source get it."""
    table = (0x80000007).to_bytes(4, "little").ljust(24, b"\0") + b"\xff" * 16 + bytes(8)
    page = ((64).to_bytes(4, "little").ljust(16, b"\0") + table * 64).ljust(PAGE, b"\0")
    launch.anonymous[SHIFT : SHIFT + PAGE] = page
    launch.make_target_private()
    with pytest.raises(SnpError) as refused:
        launch.populate(launch.anonymous.address + SHIFT, SnpPageType.CPUID)
    assert refused.value.fw_error is PspStatus.INVALID_PARAM
    corrected = launch.anonymous[SHIFT : SHIFT + PAGE]
    first, last = corrected[16 : 16 + 48], corrected[16 + 63 * 48 : 16 + 64 * 48]
    assert first == last != table
    launch.anonymous[SHIFT : SHIFT + PAGE] = corrected
    launch.populate(launch.anonymous.address + SHIFT, SnpPageType.CPUID)
    assert launch.contents() == corrected

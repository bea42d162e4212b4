# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu doctor`: what this machine offers, line by line, and what it means where something is missing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING, NamedTuple

from ..launch.errors import LaunchError
from ..launch.find import FIRMWARE_PATHS, find_firmware
from ..launch.ovmf import Firmware
from ..report.table import table
from ..uapi.kvm import Cap, VmType
from . import probe
from .outcome import Outcome

if TYPE_CHECKING:
    from argparse import Namespace

    from ..report.style import Style

__all__ = ["doctor"]

PYTHON = (3, 11)
KERNEL = (5, 14)

_CAPS = (
    (Cap.MEMORY_FAULT_INFO, "exits tell which page a guest missed"),
    (Cap.MEMORY_ATTRIBUTES, "private and shared are tracked for the VM (two pools)"),
    (Cap.GUEST_MEMFD, "guest_memfd exists"),
    (Cap.VM_TYPES, "VM types are told"),
    (Cap.PRE_FAULT_MEMORY, "guest memory can be pre-faulted"),
    (Cap.GUEST_MEMFD_FLAGS, "a guest_memfd can be mapped and start shared"),
    (Cap.GUEST_MEMFD_MEMORY_ATTRIBUTES, "pages can be converted in place (the number may change when that is merged)"),
)

_PACKAGES = (
    ("greenlet", "scripted guests run on it", "no guest can run: pip install greenlet"),
    ("cryptography", "signed ID blocks can be checked", "ID blocks can't be checked: pip install 'gmemu[idblock]'"),
    (
        "sevsnpmeasure",
        "digests are compared with it in tests",
        "only tests and benchmarks want it: pip install 'gmemu[test]'",
    ),
    ("hypothesis", "tests and gmemu conform fuzz draw with it", "gmemu conform fuzz can't run: pip install 'gmemu[fuzz]'"),
    ("ray", "gmemu conform fuzz can use a cluster", "only --engine ray wants it: pip install 'gmemu[ray]'"),
)


class Finding(NamedTuple):
    """One line.  `meaning` says what it's good for, or what can't be done without it."""

    what: str
    ok: bool
    found: str
    meaning: str


def doctor(args: Namespace) -> Outcome:
    """`gmemu doctor`: always exits with 0, as nothing but Python and greenlet has to be there."""
    found = list(_findings())
    return Outcome([finding._asdict() for finding in found], lambda style: _text(found, style))


def _text(found: list[Finding], style: Style) -> str:
    rows = [(f.what, "ok" if f.ok else "missing", f"{f.found}: {f.meaning}" if f.meaning else f.found) for f in found]
    return table(
        rows,
        style=style,
        paint={1: lambda cell: style.green(cell) if cell.strip() == "ok" else style.yellow(cell)},
    )


def _findings() -> Iterator[Finding]:
    yield _version("Python", platform.python_version(), sys.version_info[:2] >= PYTHON, PYTHON)
    yield _kernel()
    count = len(os.sched_getaffinity(0))
    yield Finding(
        "CPUs", True, str(count), "contents are hashed on all of them" if count > 1 else "contents are hashed on it"
    )
    yield _memfd()
    yield from _kvm()
    yield from _kernels()
    yield from _userfaultfd()
    yield _firmware()
    for module, good, bad in _PACKAGES:
        here = find_spec(module) is not None
        yield Finding(f"package {module}", here, "installed" if here else "not installed", good if here else bad)


def _version(what: str, found: str, ok: bool, needed: tuple[int, ...]) -> Finding:
    least = ".".join(map(str, needed))
    return Finding(what, ok, found, "" if ok else f"{least} or newer is needed")


def _kernel() -> Finding:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    finding = _version("kernel", release, numbers >= KERNEL, KERNEL)
    return finding._replace(meaning="" if finding.ok else "5.14 or newer is needed to run unmodified programs")


def _memfd() -> Finding:
    try:
        os.close(os.memfd_create("gmemu-doctor", os.MFD_CLOEXEC))
    except (OSError, AttributeError) as error:
        return Finding("memfd", False, str(error), "the emulated machine's memory lives in one: nothing works")
    return Finding("memfd", True, "works", "the emulated machine's memory lives in one")


def _kvm() -> Iterator[Finding]:
    device = probe.open_device("/dev/kvm")
    try:
        if device.fd < 0:
            why = "nothing here can be compared with a real kernel; the emulated one needs no device"
            yield Finding("/dev/kvm", False, device.problem, why)
            return
        yield Finding("/dev/kvm", True, f"API version {probe.api_version(device.fd)}", "a real kernel to compare with")
        types = probe.extension(device.fd, Cap.VM_TYPES)
        names = [t.name for t in VmType if types >> t & 1] if types else ["DEFAULT"]
        confidential = types >> VmType.SW_PROTECTED != 0
        yield Finding("VM types", confidential, ", ".join(names), "" if confidential else "none with private memory")
        for cap, meaning in _CAPS:
            value = probe.extension(device.fd, cap)
            found = str(value) if value else "0"
            yield Finding(f"KVM_CAP_{cap.name}", value > 0, found, meaning if value else f"not in this kernel: {meaning}")
        has_gmem = probe.extension(device.fd, Cap.GUEST_MEMFD) > 0
        purpose = "gmemu conform --backend host compares and records" if has_gmem else "there's nothing to record"
        yield Finding("this kernel's behaviour", has_gmem, "guest_memfd" if has_gmem else "no guest_memfd", purpose)
    except OSError as error:
        yield Finding("/dev/kvm", False, error.strerror or str(error), "it is there, but isn't KVM")
    finally:
        device.close()


def _kernels() -> Iterator[Finding]:
    """Which real kernels' behaviour can be recorded here, beside this machine's own."""
    from ..conformance.vm.build import VERSIONS, Unavailable, cached_kernel, missing_packages

    lacking: list[str] | None = None
    for version in VERSIONS:
        what, purpose = f"Linux {version} in QEMU", f"gmemu conform --backend vm --kernel {version} compares and records"
        try:
            cached_kernel(version)
        except Unavailable:
            lacking = missing_packages() if lacking is None else lacking
            steps = f"apt-get install {' '.join(lacking)}; " * bool(lacking)
            build = f"{steps}python -m gmemu.conformance.vm.build --version {version}"
            yield Finding(what, False, "not built", f"{build} makes it; then {purpose}")
            continue
        if which("qemu-system-x86_64") is None:
            yield Finding(what, False, "built, but there's no QEMU", f"apt-get install qemu-system-x86; then {purpose}")
        else:
            yield Finding(what, True, "built", purpose)


def _userfaultfd() -> Iterator[Finding]:
    features, problem = probe.userfaultfd_features()
    purpose = "private pages of unmodified programs are kept by it"
    lacking = [name for name, bit in probe.UFFD_FEATURES.items() if not features & bit]
    if problem:
        yield Finding("userfaultfd", False, problem, purpose)
    elif lacking:
        yield Finding("userfaultfd", False, f"without {', '.join(lacking)}", f"Linux 5.14 has them; {purpose}")
    else:
        yield Finding("userfaultfd", True, f"with {', '.join(probe.UFFD_FEATURES)}", purpose)
    setting = probe.read_sysctl("vm/unprivileged_userfaultfd")
    if setting is not None:
        meaning = "user mode only without privilege, which is enough" if setting == "0" else "allowed to everyone"
        yield Finding("vm.unprivileged_userfaultfd", True, setting, meaning)


def _firmware() -> Finding:
    path = find_firmware()
    if path is None:
        return Finding(
            "OVMF", False, f"not in any of {len(FIRMWARE_PATHS)} usual places", "install your distribution's ovmf package"
        )
    try:
        metadata = Firmware.load(path).has_sev_metadata
    except LaunchError as error:
        return Finding("OVMF", False, str(error), "")
    meaning = "with SEV metadata: an SNP guest can be launched from it"
    return Finding(
        "OVMF", metadata, path, meaning if metadata else "without SEV metadata: QEMU wouldn't launch an SNP guest from it"
    )

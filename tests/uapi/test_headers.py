# SPDX-License-Identifier: GPL-2.0-or-later
"""A C compiler's opinion: what the installed kernel headers say about every name that they and gmemu.uapi both have.

The headers are as old as the distribution and know nothing of what came after; set GMEMU_UAPI_INCLUDE to the include
directory of a newer `make headers_install` to compare with that.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from enum import IntEnum
from pathlib import Path

import pytest

from gmemu.uapi import kvm, kvm_x86, mman, sev
from gmemu.uapi.layout import Struct

from .structs import ALL

HEADERS = ("fcntl.h", "linux/falloc.h", "linux/kvm.h", "linux/kvm_para.h", "linux/memfd.h", "linux/mman.h")

# Members of the exit union have no tag; C reaches them through struct kvm_run.
UNION = {
    kvm.kvm_exit_fail_entry: "fail_entry",
    kvm.kvm_exit_hypercall: "hypercall",
    kvm.kvm_exit_internal_error: "internal",
    kvm.kvm_exit_io: "io",
    kvm.kvm_exit_memory_fault: "memory_fault",
    kvm.kvm_exit_mmio: "mmio",
    kvm.kvm_exit_msr: "msr",
    kvm.kvm_exit_system_event: "system_event",
}
# Members that the kernel named after the structure itself had been published; old headers have padding there, or a hole.
LATE = {"kvm_exit_hypercall.flags", "kvm_msr_filter.pad", "kvm_sev_cmd.pad0"}
# Members of a structure within, which has no name of its own.
INNER = {"kvm_vcpu_events": ("exception", "interrupt", "nmi", "smi", "triple_fault")}
RENAMED = {
    "kvm_guest_debug.debugreg": "arch.debugreg",
    "kvm_msr_filter.raw_ranges": "ranges",
    "kvm_vcpu_events.exception_has_payload": "exception_has_payload",
    "kvm_vcpu_events.exception_payload": "exception_payload",
}
# Declared as a head; C has the rest.
HEADS = {kvm.kvm_run}
# Whose last member has no size in C, as the kernel tells it at run time: the bytes that it has here.
OPEN_ENDED: dict[type[Struct], int] = {kvm.kvm_stats_desc: kvm.KVM_STATS_NAME_SIZE}

ENUMS: dict[str, type[IntEnum]] = {
    "KVM_CAP_": kvm.Cap,
    "KVM_EXIT_": kvm.ExitReason,
    "KVM_MP_STATE_": kvm.MpState,
    "KVM_SYSTEM_EVENT_": kvm.SystemEvent,
    "KVM_SEV_SNP_PAGE_TYPE_": sev.SnpPageType,
}


def constants() -> dict[str, int]:
    """Every number that a header may define as a macro, by the name it has there."""
    flat = {n: v for m in (kvm, kvm_x86, mman, sev) for n in m.__all__ if isinstance(v := getattr(m, n), int)}
    flat |= {f"{prefix}{member.name}": int(member) for prefix, enum in ENUMS.items() for member in enum}
    return flat | {f"KVM_X86_{t.name}_VM": int(t) for t in kvm.VmType}


class Compiler:
    """gcc with the installed headers."""

    def __init__(self, gcc: str, directory: Path) -> None:
        extra = os.environ.get("GMEMU_UAPI_INCLUDE")
        self._gcc = [gcc, "-D_GNU_SOURCE", *(["-isystem", extra] if extra else [])]
        self._directory = directory
        self._includes = "".join(f"#include <{name}>\n" for name in HEADERS)

    def preprocess(self) -> str:
        """The headers' text once included."""
        return subprocess.run(
            [*self._gcc, "-E", "-P", "-x", "c", "-"], input=self._includes, capture_output=True, text=True, check=True
        ).stdout

    def compiles(self, statements: str) -> bool:
        """Whether the headers know all that `statements` name."""
        command = [*self._gcc, "-fsyntax-only", "-x", "c", "-"]
        return subprocess.run(command, input=self._program(statements), capture_output=True, text=True).returncode == 0

    def run(self, statements: str) -> list[str]:
        """The lines that a program made of `statements` prints."""
        program = self._directory / "uapi"
        command = [*self._gcc, "-x", "c", "-", "-o", str(program)]
        built = subprocess.run(command, input=self._program(statements), capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()

    def _program(self, statements: str) -> str:
        return f"#include <stddef.h>\n#include <stdio.h>\n{self._includes}int main(void)\n{{\n{statements}\treturn 0;\n}}\n"


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the structures are x86-64's: needs x86-64 Linux")
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc in PATH")
    compiler = Compiler(gcc, tmp_path_factory.mktemp("uapi"))
    try:
        compiler.preprocess()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"kernel headers not usable: {error.stderr.splitlines()[0]}")
    return compiler


def c_member(cls: type[Struct], name: str) -> str:
    """A member's name in C."""
    if (renamed := RENAMED.get(f"{cls.__name__}.{name}")) is not None:
        return renamed
    for inner in INNER.get(cls.__name__, ()):
        if name.startswith(f"{inner}_"):
            return f"{inner}.{name.removeprefix(f'{inner}_')}"
    return name


def c_type(cls: type[Struct]) -> str:
    return f"__typeof__(((struct kvm_run *)0)->{UNION[cls]})" if cls in UNION else f"struct {cls.__name__}"


def test_structures(compiler: Compiler) -> None:
    text = compiler.preprocess()

    def known(cls: type[Struct]) -> bool:
        return re.search(rf"}} {UNION[cls]};" if cls in UNION else rf"struct {cls.__name__} {{", text) is not None

    both = [cls for cls in ALL if known(cls)]
    assert kvm.kvm_userspace_memory_region in both
    sizes = {cls.__name__: (f"sizeof({c_type(cls)})", cls.SIZE - OPEN_ENDED.get(cls, 0)) for cls in both if cls not in HEADS}
    offsets = {
        f"{cls.__name__}.{m}": (f"offsetof({c_type(cls)}, {c_member(cls, m)})", at)
        for cls in both
        for m, at in cls.OFFSETS.items()
    }
    absent = {name for name in LATE & offsets.keys() if not compiler.compiles(f"\t(void){offsets[name][0]};\n")}
    checked = {name: pair for name, pair in (sizes | offsets).items() if name not in absent}
    found = compiler.run("".join(f'\tprintf("{name} %zu\\n", {c});\n' for name, (c, _) in checked.items()))
    assert found == [f"{name} {ours}" for name, (_, ours) in checked.items()]


def test_exit_union(compiler: Compiler) -> None:
    statements = '\tprintf("%zu\\n%zu\\n", offsetof(struct kvm_run, hw), offsetof(struct kvm_run, kvm_valid_regs));\n'
    start, end = map(int, compiler.run(statements))
    assert (start, end - start) == (kvm.KVM_RUN_EXIT_OFFSET, kvm.KVM_RUN_EXIT_SIZE)


def test_constants(compiler: Compiler) -> None:
    ours = constants()
    # 0 in a 64-bit C library, and a number that only the conversion series gives this name.
    for name in ("O_LARGEFILE", "KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES"):
        del ours[name]
    lines = compiler.run(
        "".join(f'#ifdef {name}\n\tprintf("{name} %llu\\n", (unsigned long long)({name}));\n#endif\n' for name in ours)
    )
    theirs = {name: int(value) for name, value in (line.split() for line in lines)}
    assert theirs["KVM_RUN"] == 0xAE80
    assert theirs == {name: ours[name] for name in theirs}

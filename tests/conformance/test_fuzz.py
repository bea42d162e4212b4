# SPDX-License-Identifier: GPL-2.0-or-later
"""The fuzzer finds what differs, makes it small, and writes it down; against itself it finds nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gmemu.conformance.backends import BackendUnavailable, open_backend
from gmemu.conformance.fuzz.calls import Ref, Step
from gmemu.conformance.fuzz.engine import Finding, fewer_steps, fuzz, replay
from gmemu.conformance.fuzz.script import as_c, as_python
from gmemu.conformance.outcome import Outcome


def find(a: str, b: str, steps: int) -> tuple[int, Finding | None]:
    with open_backend("emulated", a) as here, open_backend("emulated", b) as there:
        return fuzz(here, there, 1, steps)


def test_a_kernel_is_like_itself() -> None:
    done, finding = find("linux-6.18", "linux-6.18", 600)
    assert done >= 600
    assert finding is None


def test_a_difference_is_found_and_made_small() -> None:
    _, finding = find("linux-6.12", "linux-6.18", 20_000)
    assert finding is not None
    assert finding.emulated.result != finding.real.result
    assert len(finding.steps) <= 4


def test_a_finding_can_be_replayed() -> None:
    steps = [Step("create_vm", {"vm_type": 0}), Step("create_gmem", {"vm": Ref("vm", 0), "size": 4096, "flags": 3})]
    with open_backend("emulated", "linux-6.18") as a, open_backend("emulated", "linux-6.12") as b:
        found = replay(steps, a, b)
    assert found == Finding(steps, Outcome("a gmem"), Outcome("EINVAL", "gmem.create.flags"))


def test_what_does_not_matter_is_left_out() -> None:
    """Slow kernels leave Hypothesis no time to make a finding small."""
    vm, gmem = Step("create_vm", {"vm_type": 0}), Step("create_gmem", {"vm": Ref("vm", 0), "size": 4096, "flags": 3})
    noise = [Step("create_memfd", {"size": 4096}), Step("create_vm", {"vm_type": 9})]
    with open_backend("emulated", "linux-6.18") as a, open_backend("emulated", "linux-6.12") as b:
        found = replay([*noise, vm, *noise * 5, gmem, *noise], a, b)
        assert found is not None
        assert fewer_steps(found, a, b).steps == [vm, gmem]


EVERY_CALL = [
    Step("create_vm", {"vm_type": 0}),
    Step("create_gmem", {"vm": Ref("vm", 0), "size": 8192, "flags": 3}),
    Step("create_vcpu", {"vm": Ref("vm", 0), "id": 0}),
    Step("create_memfd", {"size": 4096}),
    Step("dup", {"fd": Ref("gmem", 0)}),
    Step("check_extension", {"fd": Ref("vm", 0), "cap": 234}),
    Step(
        "set_region2",
        {
            "vm": Ref("vm", 0),
            "slot": 1,
            "flags": 4,
            "gpa": 4096,
            "size": 4096,
            "hva": 0,
            "gmem": Ref("gmem", 0),
            "offset": 0,
        },
    ),
    Step("set_region", {"vm": Ref("vm", 0), "slot": 2, "flags": 0, "gpa": 1 << 20, "size": 4096, "hva": 0}),
    Step("set_attributes", {"vm": Ref("vm", 0), "gpa": 0, "size": 4096, "attributes": 8, "flags": 0}),
    Step("dirty_log", {"vm": Ref("vm", 0), "slot": 1, "bitmap": 0}),
    Step("pre_fault", {"vcpu": Ref("vcpu", 0), "gpa": 0, "size": 4096, "flags": 1}),
    Step("ioctl", {"fd": Ref("gmem", 0), "request": 0xAEFF, "arg": 0}),
    Step(
        "mmap",
        {"address": 0x100000000000, "length": 8192, "prot": 3, "flags": 0x11, "fd": Ref("gmem", 0), "offset": 0},
    ),
    Step("anonymous", {"address": 0x100000002000, "length": 4096, "shared": False}),
    Step("store", {"address": 0x100000000000, "byte": 7, "length": 8}),
    Step("load", {"address": 0x100000000000, "length": 8}),
    Step("mprotect", {"address": 0x100000000000, "length": 4096, "prot": 1}),
    Step("madvise", {"address": 0x100000000000, "length": 4096, "advice": 4}),
    Step("fallocate", {"fd": Ref("gmem", 0), "mode": 3, "offset": 0, "length": 4096}),
    Step("ftruncate", {"fd": Ref("gmem", 0), "length": 0}),
    Step("resize_memfd", {"fd": Ref("memfd", 0), "length": 8192}),
    Step("fstat", {"fd": Ref("gmem", 0)}),
    Step("read", {"fd": Ref("gmem", 0), "length": 8, "positioned": True}),
    Step("in_child", {"vm": Ref("vm", 0), "gmem": Ref("gmem", 0), "address": 0x100000000000}),
    Step("create_pipe", {}),
    Step("pipe_write", {"fd": Ref("writes", 0), "byte": 7, "length": 4096}),
    Step("splice", {"fd_in": Ref("reads", 0), "fd_out": Ref("memfd", 0), "length": 100, "flags": 1}),
    Step("vmsplice", {"fd": Ref("writes", 0), "address": 0x100000002000, "length": 4096, "flags": 0}),
    Step("mlock", {"address": 0x100000002000, "length": 4096}),
    Step("munlock", {"address": 0x100000002000, "length": 4096}),
    Step("process_vm", {"local": 0x100000002000, "remote": 0x100000002000, "length": 16, "write": True}),
    Step("mremap", {"address": 0x100000002000, "old": 4096, "new": 4096, "flags": 3, "to": 0x100000004000}),
    Step("munmap", {"address": 0x100000000000, "length": 8192}),
    Step("close", {"fd": Ref("gmem", 0)}),
    Step("store", {"address": 0x100000000000, "byte": 7, "length": 8}),
]
WANTED = Finding(EVERY_CALL, Outcome("ok"), Outcome("SIGSEGV at 0x100000000000"))


def test_python_says_the_same_again() -> None:
    names: dict[str, object] = {}
    source = as_python(WANTED, "linux-6.18", "host").partition("\nwith ")[0]
    exec(source, names)
    assert names["STEPS"] == EVERY_CALL


def test_python_boots_the_kernel_that_differed() -> None:
    assert "open_backend('vm', version='7.3') as real" in as_python(WANTED, "linux-7.3", "vm", "7.3")


def test_c_compiles_and_demands_what_the_real_kernel_does(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, program = tmp_path / "found.c", tmp_path / "found"
    source.write_text(as_c(WANTED))
    subprocess.run([compiler, "-Wall", "-Werror", "-Wno-unused-result", "-o", program, source], check=True, timeout=60)
    try:
        with open_backend("host"):
            pass
    except BackendUnavailable as why:
        pytest.skip(f"compiled, not run: {why}")
    subprocess.run([program], check=True, timeout=60)


def test_this_machine_is_like_its_profile() -> None:
    try:
        with open_backend("host") as real, open_backend("emulated", real.profile) as emulation:
            done, finding = fuzz(emulation, real, 7, 600)
    except BackendUnavailable as why:
        pytest.skip(f"no live comparison: {why}")
    assert done >= 600
    assert finding is None, as_python(finding, real.profile, "host")

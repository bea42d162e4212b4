# SPDX-License-Identifier: GPL-2.0-or-later
"""A finding as programs that reproduce it: Python on both kernels, and C in the manner of the KVM selftests."""

from __future__ import annotations

from typing import Any

from ...uapi import kvm
from ...uapi.kvm import ioctl_name
from .calls import KINDS, Ref, Step
from .engine import Finding

__all__ = ["as_c", "as_python"]


def as_python(finding: Finding, profile: str, backend: str, kernel: str = "") -> str:
    """A script that makes the calls on both kernels and says where they part."""
    steps = "".join(f"    {step!r},\n" for step in finding.steps)
    real = f"{backend!r}, version={kernel!r}" if backend == "vm" else repr(backend)
    return f"""\
# SPDX-License-Identifier: GPL-2.0-or-later
# The last call: {finding.emulated.result} by gmemu ({finding.emulated.rule or "no rule"}),
# {finding.real.result} by the {backend} kernel.
from gmemu.conformance.backends import open_backend
from gmemu.conformance.fuzz.calls import Ref, Step
from gmemu.conformance.fuzz.engine import replay

STEPS = [
{steps}]

with open_backend("emulated", {profile!r}) as emulation, open_backend({real}) as real:
    print(replay(STEPS, emulation, real) or "no difference")
"""


_C_HEAD = """\
// SPDX-License-Identifier: GPL-2.0-or-later
// {summary}
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEST_ASSERT(e, fmt, ...)                                                    \\
	do {{                                                                        \\
		if (!(e)) {{                                                         \\
			fprintf(stderr, "%d: " fmt "\\n", __LINE__, ##__VA_ARGS__);  \\
			exit(254);                                                  \\
		}}                                                                   \\
	}} while (0)

static sigjmp_buf jmpbuf;
static volatile sig_atomic_t got;

static void on_signal(int nr)
{{
	got = nr;
	siglongjmp(jmpbuf, 1);
}}

/* What the call came to: its value, or -errno, or the signal's number for a load or store. */
#define CALL(e) ({{ long r_ = (long)(e); r_ == -1 ? -errno : r_; }})
#define TOUCH(e) (got = 0, sigsetjmp(jmpbuf, 1) ? got : ({{ (void)(e); 0; }}))

int main(void)
{{
	static int kvm[1], vm[64], gmem[64], vcpu[64], memfd[64], reads[64], writes[64];
	static char buf[1 << 20];
	long r = 0;

	signal(SIGBUS, on_signal);
	signal(SIGSEGV, on_signal);
	signal(SIGPIPE, SIG_IGN);
	kvm[0] = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	TEST_ASSERT(kvm[0] >= 0, "open /dev/kvm: %d", errno);
	(void)vm, (void)gmem, (void)vcpu, (void)memfd, (void)reads, (void)writes, (void)buf;

"""


class _Names:
    """Which C variable a `Ref` means: the same rule as `World.fd`, so closed and missing ones are -1."""

    def __init__(self) -> None:
        self._made = dict.fromkeys(KINDS, 0) | {"kvm": 1}

    def of(self, ref: Ref) -> str:
        made = self._made.get(ref.kind, 0)
        return f"{ref.kind}[{ref.number % made}]" if made else "-1"

    def new(self, kind: str) -> str:
        kind = kind if kind in self._made else "gmem"
        self._made[kind] += 1
        return f"{kind}[{self._made[kind] - 1}]"


def as_c(finding: Finding) -> str:
    """A C program that makes the calls and demands what the real kernel answered at the end."""
    names = _Names()
    summary = f"gmemu: {finding.emulated.result}; the real kernel: {finding.real.result}"
    out = [_C_HEAD.format(summary=summary)]
    for i, step in enumerate(finding.steps):
        last = i == len(finding.steps) - 1
        body, made = _statement(step, names)
        out.append(f"\t/* {step!r} */\n\t{body}\n")
        if made and not (last and finding.real.result.startswith("E")):
            out.append(f"\tif (r >= 0)\n\t\t{names.new(made)} = r;\n")
    out.append(_demand(finding.real.result))
    out.append("\treturn 0;\n}\n")
    return "".join(out)


def _demand(result: str) -> str:
    if result.startswith("SIG"):
        name = result.split()[0]
        return f'\tTEST_ASSERT(r == {name}, "wanted {name}, got %ld", r);\n'
    if result.isidentifier() and result.startswith("E") and result.isupper():
        return f'\tTEST_ASSERT(r == -{result}, "wanted -{result}, got %ld", r);\n'
    return f'\tTEST_ASSERT(r >= 0, "wanted {result}, got %ld", r);\n'


def _words(values: list[int | str]) -> str:
    return ", ".join(value if isinstance(value, str) else f"{value & (1 << 64) - 1:#x}ull" for value in values)


def _ioctl(fd: str, request: int, words: list[int | str]) -> str:
    argument = f"(uint64_t[32]){{{_words(words)}}}"
    return f"r = CALL(ioctl({fd}, {request:#x}ul /* {ioctl_name(request)} */, {argument}));"


def _statement(step: Step, names: _Names) -> tuple[str, str]:
    """The C statement, and the kind of descriptor that it makes if it does."""
    a: dict[str, Any] = {key: names.of(value) if isinstance(value, Ref) else value for key, value in step.args.items()}
    made = ""
    match step.call:
        case "create_vm":
            return f"r = CALL(ioctl(kvm[0], {kvm.KVM_CREATE_VM:#x}ul, {a['vm_type']:#x}ul));", "vm"
        case "create_gmem":
            return _ioctl(a["vm"], kvm.KVM_CREATE_GUEST_MEMFD, [a["size"], a["flags"]]), "gmem"
        case "create_vcpu":
            return f"r = CALL(ioctl({a['vm']}, {kvm.KVM_CREATE_VCPU:#x}ul, {a['id']:#x}ul));", "vcpu"
        case "create_memfd":
            return f'r = CALL(memfd_create("fuzz", 0)); ftruncate(r, {a["size"]:#x});', "memfd"
        case "create_pipe":
            ends = f"{names.new('reads')} = ends[0]; {names.new('writes')} = ends[1];"
            return f"{{ int ends[2]; r = CALL(pipe2(ends, O_CLOEXEC | O_NONBLOCK)); {ends} }}", ""
        case "close":
            fd = a["fd"]
            return (f"r = CALL(close({fd}));" + (f" {fd} = -1;" if fd != "-1" else "")) if not fd.startswith(
                "kvm"
            ) else "r = 0;", ""
        case "dup":
            made = step.args["fd"].kind
            return f"r = CALL(dup({a['fd']}));", made
        case "set_region2" | "set_region":
            words = [f"{a['slot']:#x}ull | {a['flags']:#x}ull << 32", a["gpa"], a["size"], a["hva"]]
            if step.call == "set_region2":
                words += [a["offset"], f"(uint32_t){a['gmem']}"]
                return _ioctl(a["vm"], kvm.KVM_SET_USER_MEMORY_REGION2, words), ""
            return _ioctl(a["vm"], kvm.KVM_SET_USER_MEMORY_REGION, words), ""
        case "set_attributes":
            return _ioctl(a["vm"], kvm.KVM_SET_MEMORY_ATTRIBUTES, [a["gpa"], a["size"], a["attributes"], a["flags"]]), ""
        case "dirty_log":
            return _ioctl(a["vm"], kvm.KVM_GET_DIRTY_LOG, [a["slot"], a["bitmap"]]), ""
        case "pre_fault":
            return _ioctl(a["vcpu"], kvm.KVM_PRE_FAULT_MEMORY, [a["gpa"], a["size"], a["flags"]]), ""
        case "check_extension":
            return f"r = CALL(ioctl({a['fd']}, {kvm.KVM_CHECK_EXTENSION:#x}ul, {a['cap']}));", ""
        case "ioctl":
            return f"r = CALL(ioctl({a['fd']}, {a['request']:#x}ul /* {ioctl_name(a['request'])} */, {a['arg']:#x}ul));", ""
        case _:
            return _plain(step.call, a), ""


def _plain(call: str, a: dict[str, int | str]) -> str:
    """The calls whose C is a line of its own."""
    address, length = a.get("address", 0), a.get("length", 0)
    at = f"(void *){address:#x}ul" if isinstance(address, int) else ""
    n = f"{int(length) & (1 << 64) - 1:#x}ul"
    match call:
        case "mmap":
            return f"r = CALL(mmap({at}, {n}, {a['prot']:#x}, {a['flags']:#x}, {a['fd']}, {a['offset']:#x}));"
        case "anonymous":
            kind = "MAP_SHARED" if a["shared"] else "MAP_PRIVATE"
            return f"r = CALL(mmap({at}, {n}, 3, MAP_ANONYMOUS | MAP_FIXED | {kind}, -1, 0));"
        case "munmap":
            return f"r = CALL(munmap({at}, {n}));"
        case "mprotect":
            return f"r = CALL(mprotect({at}, {n}, {a['prot']:#x}));"
        case "madvise":
            return f"r = CALL(madvise({at}, {n}, {a['advice']}));"
        case "load":
            return f"r = TOUCH(memcpy(buf, {at}, {n}));"
        case "store":
            return f"r = TOUCH(memset({at}, {a['byte']:#x}, {n}));"
        case "mremap":
            lengths = f"{a['old']:#x}ul, {a['new']:#x}ul"
            return f"r = CALL(mremap({at}, {lengths}, {a['flags']:#x}, (void *){a['to']:#x}ul));"
        case "mlock" | "munlock":
            return f"r = CALL({call}({at}, {n}));"
        case "process_vm":
            iov = [f"(struct iovec[]){{{{(void *){a[side]:#x}ul, {n}}}}}, 1" for side in ("local", "remote")]
            call = f"process_vm_{'write' if a['write'] else 'read'}v"
            return f"r = CALL({call}(getpid(), {iov[0]}, {iov[1]}, 0));"
        case "pipe_write":
            size = n if str(a["fd"]).startswith("writes") else 0
            return f"memset(buf, {a['byte']:#x}, {n}); r = CALL(write({a['fd']}, buf, {size}));"
        case "splice":
            return f"r = CALL(splice({a['fd_in']}, NULL, {a['fd_out']}, NULL, {n}, {a['flags']:#x} | SPLICE_F_NONBLOCK));"
        case "vmsplice":
            part = f"(struct iovec[]){{{{{at}, {n}}}}}"
            return f"r = CALL(vmsplice({a['fd']}, {part}, 1, {a['flags']:#x} | SPLICE_F_NONBLOCK));"
        case "fallocate":
            return f"r = CALL(fallocate({a['fd']}, {a['mode']:#x}, {a['offset']}, {length}));"
        case "ftruncate" | "resize_memfd":
            return f"r = CALL(ftruncate({a['fd']}, {length}));"
        case "fstat":
            return f"{{ struct stat st; r = CALL(fstat({a['fd']}, &st)); }}"
        case "read":
            return f"r = CALL({'p' if a['positioned'] else ''}read({a['fd']}, buf, {n}{', 0' if a['positioned'] else ''}));"
        case "in_child":
            return (
                f'if (!fork()) {{ TOUCH(memcpy(buf, {at}, 8)); TOUCH(memcpy({at}, "child", 5)); '
                f"fallocate({a['gmem']}, 3, 0, 4096); _exit(0); }} wait(NULL); r = 0;"
            )
        case _:
            raise ValueError(f"no C is known for {call}")

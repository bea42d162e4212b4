# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the kernel's x86 KVM selftests under `gmemu exec`: those that have to pass, or all.

    python -m tests.exec.selftests [--all] [--directory D] [--only NAME]... [--results FILE]

With --all what became of each is written to tests/exec/RESULTS.md.  Exits with 1 if one of those that have to pass doesn't,
or the negative control passes; with 4 if they can't be built here.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .reasons import NOT_RUN, REASONS
from .tree import PACKAGE, Missing, build

PROFILE = "linux-6.12"
REQUIRED_SECONDS = 400
KSFT_SKIP = 4
RESULTS = Path(__file__).parents[1] / "RESULTS.md"

REQUIRED = (
    "guest_memfd_test",
    "x86_64/private_mem_conversions_test",
    "x86_64/private_mem_conversions_test -n 2 -m 2",
    "x86_64/private_mem_conversions_test -s shmem",
    "x86_64/private_mem_kvm_exits_test",
    "pre_fault_memory_test",
    "set_memory_region_test",
    "x86_64/userspace_io_test",
    "x86_64/sync_regs_test",
    "kvm_page_table_test",
)
CONTROL = "x86_64/private_mem_conversions_test"
"""must fail when private memory is the shared memory under another name (negative_control.py)"""

_BEYOND = {
    "nested virtualisation": ("vmx_", "svm_", "nested_", "triple_fault_event", "hyperv_evmcs"),
    "Hyper-V": ("hyperv_",),
    "PMU": ("pmu_",),
}


class Result(NamedTuple):
    """What became of one."""

    name: str
    outcome: str
    """pass, skip or fail"""
    seconds: float
    reason: str

    @property
    def beyond(self) -> str:
        """What it's about, if that is nothing that gmemu is for."""
        stem = self.name.split()[0].rsplit("/", 1)[-1]
        return next((about for about, starts in _BEYOND.items() if stem.startswith(starts)), "")


def judged(programs: Path, command: str, seconds: int) -> Result:
    """Run one on AMD's machine; if that lacks what it's about, on Intel's.  A skip on both is a skip.

    What would take the machine down isn't run, which counts as a failure.
    """
    if command in NOT_RUN:
        return Result(command, "fail", 0, "not run")
    result = run(programs, command, seconds)
    if result.outcome != "skip" or result.beyond:
        return result
    other = run(programs, command, seconds, platform="intel")
    return other._replace(reason="on Intel's machine; AMD's lacks it") if other.outcome == "pass" else result


def run(programs: Path, command: str, seconds: int, *, platform: str = "amd", extra: dict[str, str] | None = None) -> Result:
    """Run one selftest with its options, for so many seconds at most."""
    name, *options = command.split()
    gmemu = [sys.executable, "-m", "gmemu", "exec", "--profile", PROFILE, "--platform", platform, "--"]
    words = [*gmemu, str(programs / name), *options]
    environment = {**os.environ, **(extra or {})}
    began = time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    ) as process:
        try:
            output = process.communicate(timeout=seconds)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Result(command, "fail", time.monotonic() - began, f"not done after {seconds} s")
    code = process.returncode
    outcome = "pass" if code == 0 else "skip" if code == KSFT_SKIP else "fail"
    return Result(command, outcome, time.monotonic() - began, "" if code == 0 else _reason(output, code))


def _reason(output: str, code: int) -> str:
    """The line that says why: after an assertion's stack, or where it skipped."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    skipped = [line for line in lines if "skipping" in line.lower() or "skip" in line.lower()]
    if code == KSFT_SKIP and skipped:
        return skipped[-1]
    after = [line for line in lines if not re.match(r"(\d+\s+0x|\(inlined|# |ok |not ok |pid=)", line)]
    where = next((line for line in lines if re.match(r"\S+\.[ch]:\d+: ", line)), "")
    last = after[-1] if after else ""
    died = f"signal {-code}; " if code < 0 else ""
    return f"{died}{where if where != last else ''} {last}".strip()[:200].replace("|", "/")


def table(results: list[Result], control: Result) -> str:
    """RESULTS.md."""
    ours = [result for result in results if not result.beyond and " " not in result.name]
    count = {outcome: sum(result.outcome == outcome for result in ours) for outcome in ("pass", "skip", "fail")}
    share = 100 * count["pass"] // max(len(ours), 1)
    verdict = f"fails, as it must: {control.reason}" if control.outcome == "fail" else f"{control.outcome}: it should fail"
    lines = [
        "# The kernel's KVM selftests under `gmemu exec`",
        "",
        f"Made by `make selftests ALL=1`: unmodified programs of Debian's {PACKAGE}, run with `--profile {PROFILE}` and",
        "no options of their own unless some are named.  Those that AMD's machine lacks something for run on Intel's too.",
        "",
        f"Of {len(ours)} that need no nested virtualisation, PMU or Hyper-V, {count['pass']} pass ({share} %).",
        f"{count['fail']} fail, and {count['skip']} skip themselves, which isn't counted as a pass.",
        "",
        f"Negative control, private memory aliased to shared: `{control.name}` {verdict}.",
        "",
        "| selftest | result | seconds | why |",
        "|---|---|---|---|",
    ]
    for result in sorted(results):
        about = f"({result.beyond}) " if result.beyond else ""
        known = "" if result.outcome == "pass" else REASONS.get(result.name, "")
        why = f"{known} `{result.reason}`" if known else f"{about}{result.reason}"
        lines.append(f"| {result.name} | {result.outcome} | {result.seconds:.0f} | {why.strip()} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="run every one, and write RESULTS.md")
    parser.add_argument("--directory", type=Path, default=Path("build/selftests"), help="where to build")
    parser.add_argument("--only", action="append", default=[], help="run these alone, and write nothing")
    parser.add_argument("--seconds", type=int, default=120, help="for each that doesn't have to pass (default: 120)")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time (default: 2)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    try:
        programs = build(args.directory.absolute())
    except Missing as error:
        print(f"selftests: {error}", file=sys.stderr)
        return KSFT_SKIP
    found = {str(path.relative_to(programs)) for path in programs.rglob("*") if path.is_file() and os.access(path, os.X_OK)}
    names = args.only or sorted(found | set(REQUIRED) if args.all else REQUIRED)

    def one(name: str) -> Result:
        result = judged(programs, name, REQUIRED_SECONDS if name in REQUIRED else args.seconds)
        print(f"{result.outcome:5} {result.seconds:6.1f} s  {name}  {result.reason}", flush=True)
        return result

    began = time.monotonic()
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(one, names))
    if args.only:
        return int(any(result.outcome == "fail" for result in results))
    control = run(programs, CONTROL, REQUIRED_SECONDS, extra=_control())
    print(f"control: {control.outcome} {control.reason}")
    print(f"selftests: {len(results)} in {time.monotonic() - began:.0f} s")
    if args.all:
        args.results.write_text(table(results, control))
    failed = [result.name for result in results if result.name in REQUIRED and result.outcome != "pass"]
    for name in failed:
        print(f"selftests: {name} has to pass, and doesn't", file=sys.stderr)
    return int(bool(failed) or control.outcome != "fail")


def _control() -> dict[str, str]:
    """The environment in which the emulated kernel is wrong."""
    here = str(Path(__file__).parent)
    return {"GMEMU_EXEC_PLUGIN": "negative_control", "PYTHONPATH": f"{here}:{os.environ.get('PYTHONPATH', '')}"}


if __name__ == "__main__":
    sys.exit(main())

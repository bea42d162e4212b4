# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands and their options.  Nothing is imported here that only one command needs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..report.traces import FORMATS
from . import conform
from .arguments import add_inject, add_profile, command, cpu, finish, number, u64

if TYPE_CHECKING:
    from .arguments import Commands

__all__ = ["build_parser"]

_ABOUT = "KVM's guest_memfd in user space: an executable host with in-place conversion and confidential guests."

_EPILOG = """\
examples:
  gmemu launch snp                         launch an SNP guest in place, and run a short guest in it
  gmemu measure snp --firmware OVMF.fd --vcpus 4 --vcpu-type EPYC-v4
  gmemu measure diff a.jsonl b.jsonl       the first page at which two launches part
  gmemu rules gmem.attributes              every check behind one ioctl
  gmemu profiles diff linux-7.3 inplace-v13

Everything is simulated: no digest or state comes from hardware.
exit codes: 0 pass, 1 violated or mismatch, 2 usage or bad input, 3 a bug in gmemu, 4 skipped,
10 incomplete, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line.  The namespace has `handler`: module and function, as "measure:snp"."""
    parser = command(None, "gmemu", _ABOUT, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=_version())
    parser.set_defaults(handler="", json=False, output=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    _add_launch(commands)
    _add_measure(commands)
    _add_profiles(commands)
    _add_rules(commands)
    _add_stat(commands)
    conform.add_parser(commands)
    _add_explore(commands)
    _add_programs(commands)
    _add_exec(commands)
    doctor = command(commands, "doctor", "what this machine offers: /dev/kvm, userfaultfd, OVMF, optional packages")
    finish(doctor, "doctor:doctor")
    return parser


def _add_launch(commands: Commands) -> None:
    launch = command(commands, "launch", "launch a confidential guest on an emulated host, and run a short guest in it")
    platforms = launch.add_subparsers(title="platforms", metavar="PLATFORM", dest="platform", required=True)
    snp = command(
        platforms,
        "snp",
        "launch an SEV-SNP guest page by page, then run a guest that converts a page both ways",
        epilog="Without --firmware the distribution's OVMF is used, or else a small image that gmemu makes itself.",
    )
    _add_guest(snp, vcpu_type="EPYC-v4", firmware_required=False)
    snp.add_argument(
        "--flow",
        choices=("in-place", "copy"),
        help="write the contents into the guest_memfd itself, or have them copied from another address "
        "(default: in-place if the profile has that)",
    )
    snp.add_argument("--policy", metavar="X", type=u64, default=0x30000, help="guest policy (default: 0x30000)")
    snp.add_argument("--seed", metavar="N", type=u64, default=0, help="what is drawn at random depends on it (default: 0)")
    add_inject(snp)
    finish(snp, "launch:snp")
    tdx = command(
        platforms,
        "tdx",
        "launch a TD section by section, then run a guest that converts a page both ways",
        epilog="Without --firmware an OVMF of this machine with TDX metadata is used, or else one that gmemu makes itself.",
    )
    _add_td(tdx, firmware_required=False)
    tdx.add_argument("--flow", choices=("in-place", "copy"), help="as for snp (default: in-place if the profile has that)")
    tdx.add_argument("--seed", metavar="N", type=u64, default=0, help="what is drawn at random depends on it (default: 0)")
    add_inject(tdx)
    finish(tdx, "tdx:launch")
    cca = command(
        platforms,
        "cca",
        "launch an Arm CCA realm, then run a guest that converts a page both ways",
        epilog="Without --firmware and --kernel an image is launched that gmemu makes itself.",
    )
    _add_realm(cca)
    cca.add_argument("--flow", choices=("in-place", "copy"), help="copy: a realm has no other (default: copy)")
    cca.add_argument("--seed", metavar="N", type=u64, default=0, help="what is drawn at random depends on it (default: 0)")
    add_inject(cca)
    finish(cca, "cca:launch")
    for name in "sev", "sev-es":
        finish(command(platforms, name, "not emulated: says why, and what to use instead"), "launch:sev")


def _add_measure(commands: Commands) -> None:
    measure = command(commands, "measure", "compute a launch measurement; compare two launches page by page")
    actions = measure.add_subparsers(title="what to do", metavar="ACTION", dest="action", required=True)
    snp = command(
        actions,
        "snp",
        "the launch digest that SEV-SNP firmware would report: 96 hex digits",
        epilog="The digest comes from a launch on an emulated host.  It is simulated: no hardware has vouched for it.",
    )
    _add_guest(snp, vcpu_type=None, firmware_required=True)
    finish(snp, "measure:snp")
    tdx = command(
        actions,
        "tdx",
        "MRTD as the TDX module would report it: 96 hex digits",
        epilog="It comes from a launch on an emulated host, and is simulated: no hardware has vouched for it.",
    )
    _add_td(tdx, firmware_required=True)
    tdx.add_argument(
        "--two-pass",
        action="store_true",
        help="all pages of a section are added before any is extended, as some VMMs do it (KVM's don't)",
    )
    finish(tdx, "tdx:measure")
    cca = command(
        actions,
        "cca",
        "the RIM as an RMM would report it: 64 hex digits",
        epilog="It comes from a launch on an emulated host, and is simulated: no hardware has vouched for it.",
    )
    _add_realm(cca)
    cca.add_argument(
        "--rmm", choices=("1.0", "2.0"), default="2.0", help="whose rules: 1.0 measures what is RAM, too (default: 2.0)"
    )
    finish(cca, "cca:measure")
    diff = command(actions, "diff", "the first page at which two page logs part, and why; exits with 1 if there is one")
    diff.add_argument("a", metavar="A.jsonl", help="a log that --log wrote")
    diff.add_argument("b", metavar="B.jsonl", help="another")
    finish(diff, "measure:diff")


def _add_guest(parser: argparse.ArgumentParser, *, vcpu_type: str | None, firmware_required: bool) -> None:
    """The options that say what is launched."""
    parser.add_argument("--firmware", metavar="F", required=firmware_required, help="OVMF image")
    parser.add_argument("--vcpus", metavar="N", type=number, default=1, help="how many vCPUs (default: 1)")
    default = f" (default: {vcpu_type})" if vcpu_type else ""
    parser.add_argument(
        "--vcpu-type",
        metavar="T",
        type=cpu,
        default=vcpu_type,
        help=f"QEMU's name of the CPU, such as EPYC-v4, or its CPUID signature, such as 0x800f12{default}",
    )
    parser.add_argument(
        "--guest-features", metavar="X", type=number, default=1, help="SEV_FEATURES, bit 0 included (default: 0x1)"
    )
    parser.add_argument("--kernel", metavar="K", help="kernel whose hash the firmware is to check")
    parser.add_argument("--initrd", metavar="I", help="its initrd")
    parser.add_argument("--append", metavar="S", help="its command line")
    parser.add_argument("--vmm", metavar="V", default="qemu", help="who launches: qemu, ec2 or gce (default: qemu)")
    parser.add_argument("--log", metavar="L.jsonl", help="write what was measured, page by page, as JSON Lines")
    add_profile(parser, "the kernel to emulate (default: inplace-v13)")


def _add_td(parser: argparse.ArgumentParser, *, firmware_required: bool) -> None:
    """The options that say what is launched as a TD."""
    parser.add_argument("--firmware", metavar="F", required=firmware_required, help="OVMF image with TDX metadata")
    parser.add_argument("--vcpus", metavar="N", type=number, default=1, help="how many vCPUs (default: 1)")
    parser.add_argument("--log", metavar="L.jsonl", help="write what was measured, page by page, as JSON Lines")
    add_profile(parser, "the kernel to emulate (default: inplace-v13)")


def _add_realm(parser: argparse.ArgumentParser) -> None:
    """The options that say what is launched as a realm."""
    parser.add_argument("--firmware", metavar="F", help="an image that goes to address 0, where the realm starts")
    parser.add_argument("--kernel", metavar="K", help="an arm64 kernel (Image, not compressed) to start with instead")
    parser.add_argument("--initrd", metavar="I", help="its initrd")
    parser.add_argument("--dtb", metavar="D", help="its device tree")
    parser.add_argument("--vcpus", metavar="N", type=number, default=1, help="how many vCPUs (default: 1)")
    parser.add_argument("--ipa-bits", metavar="N", type=number, default=40, help="bits of a guest address (default: 40)")
    parser.add_argument("--log", metavar="L.jsonl", help="write what was measured, page by page, as JSON Lines")
    add_profile(parser, "the kernel to emulate (default: inplace-v13)")


def _add_profiles(commands: Commands) -> None:
    profiles = command(commands, "profiles", "the kernels that can be emulated; with diff: what differs between two")
    finish(profiles, "profiles:show")
    actions = profiles.add_subparsers(title="what to do", metavar="ACTION", dest="action")
    diff = command(actions, "diff", "what differs between two profiles: behaviour, flags, capabilities, rules")
    diff.add_argument("a", metavar="A", help="a profile")
    diff.add_argument("b", metavar="B", help="another")
    finish(diff, "profiles:diff")


def _add_rules(commands: Commands) -> None:
    rules = command(commands, "rules", "every check that a call can fail, with its errno and where it stands")
    rules.add_argument(
        "id", metavar="ID", nargs="?", help="one rule, which is explained; or the start of some, such as gmem"
    )
    add_profile(rules, "only the rules of this kernel")
    finish(rules, "rules:rules")


def _add_stat(commands: Commands) -> None:
    stat = command(commands, "stat", "where a guest's memory is while all of it goes from shared to private")
    stat.add_argument(
        "--platform", choices=("sw-protected", "snp", "tdx", "cca", "pkvm"), default="sw-protected", help="what guest it is"
    )
    stat.add_argument("--size", metavar="N", type=number, default=16 << 20, help="its memory in bytes (default: 16 MiB)")
    stat.add_argument(
        "--profile",
        metavar="P",
        action="append",
        help="a kernel to emulate; repeatable (default: linux-7.3 and inplace-v13, one after the other)",
    )
    finish(stat, "stat:stat")


def _version() -> str:
    from .. import __version__

    return f"gmemu {__version__}"


def _add_explore(commands: Commands) -> None:
    explore = command(commands, "explore", "run scenarios in every order that matters: exhausted, or violated and how")
    explore.add_argument("scenario", metavar="NAME", nargs="*", help="which of the catalogue (default: all)")
    explore.add_argument("--variant", metavar="V", action="append", default=[], help="decide this otherwise; repeatable")
    explore.add_argument("--all-variants", action="store_true", help="each scenario with each variant that it speaks of")
    explore.add_argument("--seconds", metavar="N", type=float, help="bound for each search (default: 60)")
    explore.add_argument("--schedules", metavar="N", type=int, help="run no more than this in each search")
    explore.add_argument("--preemptions", metavar="N", type=int, help="make nobody wait more often than this in a run")
    explore.add_argument(
        "--depth", metavar="N", type=int, default=1000, help="choices in a run before tasks take turns (default: 1000)"
    )
    explore.add_argument("--jobs", metavar="N", type=int, default=1, help="processes that share each search (default: 1)")
    explore.add_argument("--engine", choices=("local", "ray"), default="local", help="ray spreads a search over a cluster")
    explore.add_argument("--strategy", metavar="S", choices=("random", "pct", "pos"), help="draw schedules instead")
    explore.add_argument("--seed", metavar="N", type=int, default=0, help="what --strategy draws by (default: 0)")
    explore.add_argument("--no-reduction", dest="reduction", action="store_false", help="run orders that differ in nothing")
    explore.add_argument("--hash", action="store_true", help="do what can be done from a state only once")
    explore.add_argument("--no-symmetry", dest="symmetry", action="store_false", help="tell tasks that are alike apart")
    explore.add_argument("--no-restore", dest="restore", action="store_false", help="set the world up anew for each run")
    explore.add_argument("--checkpoint", metavar="FILE", help="leave there what a bound, or Ctrl-C, left to do")
    explore.add_argument("--resume", metavar="FILE", help="go on with what was left there")
    finish(explore, "explore:explore")
    replay = command(commands, "replay", "run a schedule again from its token, and show it step by step")
    replay.add_argument("token", metavar="TOKEN", nargs="+", help="as gmemu explore prints it; html shows two side by side")
    formats = "; ".join(f"{name}: {made.text}" for name, made in FORMATS.items())
    replay.add_argument("--format", metavar="F", choices=FORMATS, default="text", help=f"{formats} (default: text)")
    finish(replay, "replay:replay")
    variants = command(commands, "variants", "design decisions that can be made otherwise, and what they break")
    finish(variants, "explore:variants")


def _add_exec(commands: Commands) -> None:
    run = command(
        commands,
        "exec",
        "run an unmodified program: it finds an emulated /dev/kvm, and this machine's own is out of its reach",
        epilog="The exit status is the program's own.  Statically linked programs can't be run.",
    )
    add_profile(run, "the kernel to emulate (default: inplace-v13)")
    run.add_argument("--platform", metavar="X", help="whose processors: amd or intel (default: as this machine's)")
    run.add_argument(
        "--log", metavar="FILE", help="write each call there, and why it failed (.jsonl, .pftrace: not as text)"
    )
    run.add_argument("--explain", action="store_true", help="tell the story behind each memory fault, SIGBUS and EAGAIN")
    run.add_argument("--inject", metavar="ORDER", action="append", default=[], help="a failure on order; repeatable")
    run.add_argument("program", metavar="PROGRAM", nargs="...", help="the program and its arguments, after --")
    finish(run, "exec:program")


def _add_programs(commands: Commands) -> None:
    run = command(
        commands, "run", "run a Python VMM program as it is, on an emulated host that fails on order", epilog=_OF_PROGRAMS
    )
    add_inject(run)
    run.add_argument("--variant", metavar="V", action="append", default=[], help="decide this otherwise; repeatable")
    _add_program(run)
    finish(run, "sweep:run")
    sweep = command(
        commands,
        "sweep",
        "run a Python VMM program once for each point at which something could fail, with that failing",
        epilog=_OF_PROGRAMS,
    )
    sweep.add_argument("--jobs", metavar="J", type=number, help="processes (default: one for each CPU)")
    sweep.add_argument(
        "--every", action="store_true", help="of many points that are alike in a call, all, and not just three"
    )
    sweep.add_argument(
        "--only", metavar="WHAT", action="append", default=[], help="only failures of this kind, such as alloc; repeatable"
    )
    _add_program(sweep)
    finish(sweep, "sweep:sweep")


_OF_PROGRAMS = "Options come before the program; what follows it is the program's own."


def _add_program(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("script", metavar="SCRIPT", help="the program, a Python file")
    parser.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER, help="its arguments")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds what the `vm` backend boots: ``python -m gmemu.conformance.vm.build [--version 6.12]``.

The kernel's sources are Debian's package, fetched by apt with a configuration directory of its own, so that neither the
system's sources nor its lists are touched.  The kernel is the smallest that has what `kernel.config` asks for.  It goes to
the user's cache, by version and configuration; nothing built is part of gmemu.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

__all__ = ["VERSIONS", "Unavailable", "agent_program", "build_kernel", "cached_kernel", "main"]


class Unavailable(RuntimeError):
    """The `vm` backend can't be had here; the message says why, and what to install or run."""


class Source(NamedTuple):
    """Where Debian has a kernel's sources."""

    package: str
    uri: str
    suites: str


VERSIONS = {
    "6.12": Source("linux-source-6.12", "http://deb.debian.org/debian-security", "bookworm-security"),
    "7.3": Source("linux-source-7.3", "http://deb.debian.org/debian", "experimental sid"),
}

_KEYRINGS = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{kind}") for kind in ("gpg", "pgp"))
_PACKAGES = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "tar": "tar",
    "xz": "xz-utils",
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
}
_HEADERS = {"gelf.h": "libelf-dev"}


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/gmemu."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gmemu"


def _resource(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def _kernel_directory(version: str) -> Path:
    if version not in VERSIONS:
        raise Unavailable(f"there is no kernel {version!r} to build; there are {', '.join(VERSIONS)}")
    return cache_directory() / "linux" / f"{version}-{sha256(_resource('kernel.config')).hexdigest()[:12]}"


def cached_kernel(version: str) -> Path:
    """The bzImage built before.  Raises `Unavailable`."""
    image = _kernel_directory(version) / "bzImage"
    if not image.exists():
        raise Unavailable(f"no kernel {version} has been built here: run python -m {__package__}.build --version {version}")
    return image


def agent_program() -> bytes:
    """The agent, compiled (once) for this machine's processor.  Raises `Unavailable`."""
    source = _resource("agent.c")
    program = cache_directory() / f"agent-{sha256(source).hexdigest()[:12]}"
    if not program.exists():
        if platform.machine() != "x86_64":
            raise Unavailable(f"the agent is for x86-64; this machine is {platform.machine()}")
        if not shutil.which("gcc"):
            raise Unavailable("the agent can't be compiled: install gcc and libc6-dev")
        program.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=program.parent) as scratch:
            made = Path(scratch, "agent")
            command = ["gcc", "-static", "-O2", "-s", "-x", "c", "-", "-o", str(made)]
            done = subprocess.run(command, input=source, capture_output=True)
            if done.returncode:
                raise Unavailable(f"the agent can't be compiled (is libc6-dev there?):\n{done.stderr.decode()}")
            os.replace(made, program)
    return program.read_bytes()


def missing_packages() -> list[str]:
    """The Debian packages without which no kernel can be built here."""
    missing = [package for tool, package in _PACKAGES.items() if not shutil.which(tool)]
    if "gcc" not in missing:
        for header, package in _HEADERS.items():
            check = subprocess.run(["gcc", "-E", "-include", header, "-x", "c", os.devnull], capture_output=True)
            missing += [package] if check.returncode else []
    return missing


def fetch(version: str, into: Path) -> Path:
    """Download the source package with apt.  Raises `Unavailable`."""
    source = VERSIONS[version]
    keyring = next((k for k in _KEYRINGS if k.exists()), None)
    if keyring is None:
        raise Unavailable("Debian's keys aren't here: install debian-archive-keyring")
    parts = into / "sources.d"
    for directory in (parts, into / "lists" / "partial", into / "archives" / "partial"):
        directory.mkdir(parents=True, exist_ok=True)
    (parts / "debian.sources").write_text(
        f"Types: deb\nURIs: {source.uri}\nSuites: {source.suites}\nComponents: main\nSigned-By: {keyring}\n"
    )
    private = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": parts,
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": into / "lists",
        "Dir::Cache": into,
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "APT::Default-Release": "",
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in private.items())]
    for command in (["update"], ["download", source.package]):
        done = subprocess.run([*apt, *command], cwd=into, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"apt-get {command[0]} failed for {source.package}:\n{(done.stdout + done.stderr)[-2000:]}")
    return next(into.glob(f"{source.package}_*.deb"))


def _unpack(deb: Path, into: Path) -> Path:
    """The kernel's tree out of the tar in the tar in the package."""
    package = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    inner = ["tar", "-xO", "--wildcards", "./usr/src/linux-source-*.tar.xz"]
    tarball = subprocess.Popen(inner, stdin=package.stdout, stdout=subprocess.PIPE)
    tree = subprocess.Popen(["tar", "-xJ", "--strip-components=1", "-C", str(into)], stdin=tarball.stdout)
    for process in (package, tarball):
        assert process.stdout
        process.stdout.close()
    statuses = [process.wait() for process in (tree, tarball, package)]
    if any(statuses):
        raise Unavailable(f"{deb} can't be unpacked")
    return into


class _Make:
    """make in a kernel's tree, its output in a log."""

    def __init__(self, tree: Path, log: Path) -> None:
        self._tree, self.log = tree, log

    def __call__(self, *args: str) -> None:
        with self.log.open("ab") as log:
            done = subprocess.run(["make", *args], cwd=self._tree, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        if done.returncode:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise Unavailable(f"make {' '.join(args)} failed:\n{tail}")


def _refused_options(config: Path) -> list[str]:
    """What `kernel.config` asks for and the kernel's Kconfig didn't grant."""
    granted = set(config.read_text().splitlines())
    wanted = [line for line in _resource("kernel.config").decode().splitlines() if line.startswith(("CONFIG_", "# CONFIG_"))]
    return [line for line in wanted if line.startswith("CONFIG_") and line not in granted]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build_kernel(version: str, deb: Path | None = None, jobs: int = 0) -> Path:
    """Fetch (unless `deb` is the source package), configure and build: the bzImage's path.  Raises `Unavailable`."""
    target = _kernel_directory(version)
    if (target / "bzImage").exists():
        return target / "bzImage"
    missing = missing_packages()
    if missing:
        raise Unavailable(f"the kernel can't be built without: apt-get install {' '.join(missing)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="build-", dir=target.parent) as scratch:
        room, started = Path(scratch), time.monotonic()
        if deb is None:
            _say(f"fetching {VERSIONS[version].package}")
            deb = fetch(version, room)
        tree, done = room / "tree", room / "done"
        tree.mkdir()
        done.mkdir()
        _say(f"unpacking {deb.name}")
        _unpack(deb, tree)
        make = _Make(tree, done / "build.log")
        make("tinyconfig")
        config = tree / ".config"
        config.write_bytes(config.read_bytes() + _resource("kernel.config"))
        make("olddefconfig")
        refused = _refused_options(config)
        if refused:
            raise Unavailable(f"{deb.name} doesn't grant {', '.join(refused)}")
        _say(f"compiling; {make.log} has make's output")
        make(f"-j{jobs or len(os.sched_getaffinity(0))}", "bzImage")
        shutil.copy(tree / "arch/x86/boot/bzImage", done)
        shutil.copy(config, done / "config")
        about = {
            "version": version,
            "package": deb.name,
            "sha256": sha256(deb.read_bytes()).hexdigest(),
            "compiler": subprocess.check_output(["gcc", "--version"], text=True).splitlines()[0],
            "seconds": round(time.monotonic() - started),
        }
        (done / "about.json").write_text(json.dumps(about, indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        done.rename(target)
    return target / "bzImage"


def main(argv: Sequence[str] | None = None) -> int:
    """The command.  Exit code 4 where the kernel can't be built."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.build", description="Build the kernel of the vm backend."
    )
    parser.add_argument("--version", choices=list(VERSIONS), default="6.12")
    parser.add_argument("--deb", type=Path, help="the source package, if it's here already")
    parser.add_argument("-j", "--jobs", type=int, default=0, help="how many compilers at once (default: one for each CPU)")
    args = parser.parse_args(argv)
    try:
        agent_program()
        print(build_kernel(args.version, args.deb, args.jobs))
    except Unavailable as error:
        print(f"gmemu: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())

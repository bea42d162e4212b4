# SPDX-License-Identifier: GPL-2.0-or-later
"""Where cases run: the emulation in some profile, this machine's kernel, or a kernel booted in QEMU."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any, NamedTuple

from ..profiles import DEFAULT, Profile, get
from ..syscalls.door import Door
from .features import Features, missing

__all__ = ["BACKENDS", "Backend", "BackendUnavailable", "open_backend"]

BACKENDS = ("emulated", "host", "vm")


class BackendUnavailable(Exception):
    """The backend can't be had here; the message is the reason."""


class Backend(NamedTuple):
    """`door()` gives the door for the next case (the emulation has a new machine each time); `profile` is the one that
    should behave like this kernel."""

    name: str
    kernel: str
    """x.y of a real kernel, the profile's name for the emulation."""
    profile: str
    features: Features
    door: Callable[[], AbstractContextManager[Door]]
    splats: Callable[[], list[str]] | None = None
    """What the kernel complained of so far; None where its log isn't ours to read."""


@contextmanager
def open_backend(name: str, profile: str = "", version: str = "6.12") -> Iterator[Backend]:
    """A backend by name.  `profile` is what to emulate, or to compare with if not the kernel's own; `version` chooses
    the kernel of `vm`.  Raises `BackendUnavailable`."""
    if name == "emulated":
        yield _emulated(get(profile or DEFAULT))
    elif name == "host":
        yield _host(profile)
    elif name == "vm":
        with _boot(version) as door:
            real = _real("vm", door, version, profile, fork=hasattr(door, "fork"), guest_code=True)
            yield real._replace(splats=door.splats)
    else:
        raise ValueError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}")


def _emulated(profile: Profile) -> Backend:
    from ..kvm.host import Host
    from ..syscalls.emulated import EmulatedDoor

    @contextmanager
    def door() -> Iterator[Door]:
        with Host(profile) as host:
            yield EmulatedDoor(host)

    with door() as first:
        features = Features.of(first, fork=True, guest_code=True)
    return Backend("emulated", profile.name, profile.name, features, door)


def _host(profile: str) -> Backend:
    from ..syscalls.host import HostDoor

    if not os.path.exists("/dev/kvm"):
        raise BackendUnavailable("this machine has no /dev/kvm")
    return _real("host", HostDoor(), _x_y(os.uname().release), profile, fork=True, guest_code=False)


def _real(name: str, door: Any, kernel: str, profile: str, *, fork: bool, guest_code: bool) -> Backend:
    why = missing(door)
    if why:
        raise BackendUnavailable(why)

    @contextmanager
    def same() -> Iterator[Door]:
        yield door

    features = Features.of(door, fork=fork, guest_code=guest_code)
    return Backend(name, kernel, profile or matching_profile(kernel, features), features, same)


def _boot(version: str) -> AbstractContextManager[Any]:
    try:
        vm = import_module("gmemu.conformance.vm")
        boot: Callable[..., AbstractContextManager[Any]] = vm.boot
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(f"a kernel can't be booted: {error}") from None
    return _Booted(boot(version=version))


class _Booted(AbstractContextManager[Any]):
    """What can't be booted is a backend that isn't there: the tool that failed says why."""

    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self._inner = inner

    def __enter__(self) -> Any:
        try:
            return self._inner.__enter__()
        except (OSError, RuntimeError) as error:
            raise BackendUnavailable(f"the kernel can't be built or booted: {error}") from error

    def __exit__(self, *exc: Any) -> bool | None:
        return self._inner.__exit__(*exc)


def _x_y(release: str) -> str:
    found = re.match(r"\d+\.\d+", release)
    return found.group() if found else release


def matching_profile(kernel: str, features: Features) -> str:
    """The profile that emulates a real kernel: by version, and by whether it was built for private memory."""
    major, minor = (int(part) for part in kernel.split(".")[:2])
    name = "linux-6.12" if (major, minor) < (6, 18) else "linux-6.18" if (major, minor) < (7, 3) else "linux-7.3"
    return name if features.private_memory else f"{name}-shared-only"

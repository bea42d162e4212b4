# SPDX-License-Identifier: GPL-2.0-or-later
"""One's own code against the emulated host in every order: a VMM's threads as plain Python functions over the API.

::

    def program(p):
        vm = p.kvm.create_vm(VmType.SW_PROTECTED)
        gmem = vm.create_guest_memfd(4096, MMAP | INIT_SHARED)
        memory = gmem.mmap()
        p.thread("convert", lambda: gmem.make_private(0, 4096))
        p.thread("touch", lambda: memory[0])
        p.allow("touch", BusError)
        p.finally_(lambda: ...)

    result = gmemu.explore(program)

The function sets up; what it gives `thread` runs under the scheduler; what it gives `finally_` must hold afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..api import Kvm
from ..check import check_host
from ..kvm.host import Host
from ..profiles import DEFAULT
from ..sync.explored import ExploredRuntime
from .leaks import check_locks, close_and_check
from .search import Result, explore

__all__ = ["Program", "explore_program"]


class Program:
    """One execution of a user's program.  `kvm` is the emulated host's /dev/kvm, `results` what each thread returned."""

    def __init__(self, body: Callable[[Program], object], profile: str = DEFAULT, platform: str = "amd") -> None:
        self.runtime = ExploredRuntime()
        self.host = Host(profile, memory=1 << 24, runtime=self.runtime, platform=platform)
        self.kvm = Kvm.open_on(self.host)
        self.results: dict[str, object] = {}
        self._checks: list[Callable[[], object]] = []
        self._allowed: dict[str, tuple[type[BaseException], ...]] = {}
        body(self)

    @property
    def seen(self) -> dict[str, object]:
        """The results, for a trace."""
        return self.results

    def thread(self, name: str, body: Callable[[], object], *, group: str = "", pages: Iterable[int] = ()) -> None:
        """A thread of the VMM.  Its result is kept; an exception that isn't allowed is a violation.

        Threads of one `group` are alike: exchanging them, and the `pages` that each has for itself, changes nothing but
        names, so one order of theirs is enough.  A page is named by whatever numbers the kernel has for it, in the same
        order for each thread: its place in the file, user page, guest frame.
        """
        self.runtime.spawn(name, partial(self._run, name, body), group, pages)

    def allow(self, name: str, *errors: type[BaseException]) -> None:
        """The thread may end with one of these; its result is then the exception."""
        self._allowed[name] = errors

    def finally_(self, check: Callable[[], object]) -> None:
        """What must hold when all threads have ended: raise `AssertionError` (``assert``) if it doesn't."""
        self._checks.append(check)

    def _run(self, name: str, body: Callable[[], object]) -> None:
        try:
            self.results[name] = body()
        except self._allowed.get(name, ()) as error:
            self.results[name] = error

    def check(self) -> None:
        """The host's invariants, then the program's own; then every process exits, and nothing may be left."""
        check_locks(self.runtime)
        check_host(self.host)
        for check in self._checks:
            check()
        close_and_check(self.host)

    def state(self) -> object:
        """Each thread's result."""
        return tuple(sorted((name, repr(value)) for name, value in self.results.items()))

    def close(self) -> None:
        """Switch the machine off."""
        self.host.close()


def explore_program(
    body: Callable[[Program], object], *, profile: str = DEFAULT, platform: str = "amd", **options: Any
) -> Result:
    """Run `body`'s threads in every order that matters (`search.Options` by name).  Returns the `Result`."""
    return explore(partial(Program, body, profile, platform), **options)

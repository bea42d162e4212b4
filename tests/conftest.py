# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of several floors need."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from textwrap import fill

import pytest
from hypothesis import settings

from gmemu import Cap, KernelError, Kvm
from gmemu.rules import catalogue

settings.register_profile("gmemu", derandomize=True, deadline=None, database=None)
settings.load_profile("gmemu")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that started us in the background has it ignored, and so would what the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Which rules no test reached.  Of some of the tests alone that says little, so then it's only their number."""
    rules = catalogue()
    missed = [name for name, rule in rules.items() if not rule.hits]
    terminalreporter.section("rules")
    terminalreporter.line(f"{len(rules) - len(missed)} of {len(rules)} rules were reached")
    if missed and not config.getoption("file_or_dir") and not config.getoption("keyword"):
        listed = fill(" ".join(missed), 115, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        terminalreporter.line(f"no test reached these {len(missed)}:\n{listed}")


@pytest.fixture
def real_kvm() -> Iterator[Kvm]:
    """This machine's own /dev/kvm, with a guest_memfd that can be mapped and start shared; else the test is skipped."""
    try:
        kvm = Kvm.open_host()
        has_gmem, flags = kvm.check_extension(Cap.GUEST_MEMFD), kvm.check_extension(Cap.GUEST_MEMFD_FLAGS)
    except KernelError as error:
        pytest.skip(f"this machine has no /dev/kvm that can be used: {error}")
    with kvm:
        if not has_gmem:
            pytest.skip("this machine's kernel has no guest_memfd: KVM_CAP_GUEST_MEMFD is 0")
        if flags != 3:
            pytest.skip(f"this machine's guest_memfd isn't that of Linux 6.18: KVM_CAP_GUEST_MEMFD_FLAGS is {flags}, not 3")
        yield kvm

# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of private memory fail under kernels that get it wrong, each for its own reason."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from .conftest import Compile, Exec

IN_PLACE, TWO_POOLS = "inplace-v13", "linux-6.12"
needs_unicorn = pytest.mark.skipif(find_spec("unicorn") is None, reason="guests run by Unicorn, which isn't installed")

INJECTED = {"elevated_reference": ("--inject", "ref offset=0x2000 during=KVM_SET_MEMORY_ATTRIBUTES2")}
CONTROLS = [
    pytest.param(
        "selftests.negative_control", "guests", "two_pools", TWO_POOLS, "the private page was zero", marks=needs_unicorn
    ),
    ("wrong.mapped", "conversions", "private_at_start", IN_PLACE, "page 0 can be read"),
    ("wrong.mapped", "conversions", "shared_at_start", IN_PLACE, "page 0 can be read"),
    ("wrong.mapped", "conversions", "one_among_many", IN_PLACE, "page 0 while 0 is private"),
    ("wrong.mapped", "conversions", "truncation", IN_PLACE, "punching doesn't change the attribute"),
    ("wrong.mapped", "conversions", "system_calls", IN_PLACE, "wanted errno 14"),
    ("wrong.mapped", "conversions", "forked_accesses", IN_PLACE, "private in the child from the start"),
    ("wrong.unchecked", "conversions", "elevated_reference", IN_PLACE, "EAGAIN"),
    ("wrong.unchecked", "pins", "gup_test", IN_PLACE, "page 0: 0"),
    ("wrong.unchecked", "pins", "splice_into_a_pipe", IN_PLACE, "page 5: 0"),
    ("wrong.forgetful", "conversions", "private_at_start", IN_PLACE, "byte 0 lost its contents"),
    ("wrong.forgetful", "conversions", "one_among_many", IN_PLACE, r"at\[one \* PAGE\] == one \+ 1"),
]


@pytest.mark.parametrize(("kernel", "source", "case", "profile", "complaint"), CONTROLS)
def test_a_wrong_kernel_is_found_out(
    kernel: str,
    source: str,
    case: str,
    profile: str,
    complaint: str,
    compile_c: Compile,
    gmemu_exec: Exec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = compile_c(source)
    monkeypatch.setenv("GMEMU_EXEC_PLUGIN", f"tests.exec.{kernel}")
    done = gmemu_exec(program, case, options=("--profile", profile, *INJECTED.get(case, ())))
    assert done.returncode == 1, done.stderr
    assert re.search(complaint, done.stderr), done.stderr

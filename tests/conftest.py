# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of several floors need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmemu import Cap, KernelError, Kvm


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

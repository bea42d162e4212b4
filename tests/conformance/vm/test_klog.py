# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from gmemu.conformance.vm.klog import find_splats

QUIET = """\
[    0.000000] Linux version 6.12.117 (gcc) #1 SMP
[    0.352000] kvm_amd: Nested Virtualization enabled
[    0.411000] Run /init as init process
"""

WARNING = """\
[    1.500000] ------------[ cut here ]------------
[    1.500100] WARNING: CPU: 0 PID: 40 at virt/kvm/guest_memfd.c:210 kvm_gmem_release+0x1/0x2\r
[    1.500200] RIP: 0010:kvm_gmem_release+0x1/0x2
[    1.500300] Call Trace:
[    1.500400]  <TASK>
[    1.500500]  __fput+0x1/0x2
[    1.500600]  </TASK>
[    1.500700] ---[ end trace 0000000000000000 ]---
"""

LOCKDEP = """\
[    2.000000] ======================================================
[    2.000100] WARNING: possible circular locking dependency detected
[    2.000200] 6.12.117 #1 Not tainted
[    2.000300] agent/40 is trying to acquire lock:
[    2.000400]
[    2.000500]  *** DEADLOCK ***
[    2.000600]  </TASK>
"""


def test_a_quiet_log() -> None:
    assert find_splats(QUIET) == []
    assert find_splats("") == []


def test_each_splat_once_with_its_lines() -> None:
    warning, lockdep = find_splats(QUIET + WARNING + "[    1.6] fine\n" + LOCKDEP + QUIET)
    assert warning.startswith("WARNING: CPU: 0 PID: 40 at virt/kvm/guest_memfd.c:210")
    assert "__fput" in warning
    assert "\r" not in warning
    assert "fine" not in warning
    assert "possible circular locking dependency" in lockdep
    assert lockdep.endswith("</TASK>")


def test_a_log_cut_off_in_the_middle() -> None:
    (splat,) = find_splats("[    3.0] BUG: kernel NULL pointer dereference, address: 0000000000000008\n[    3.0] #PF: sup")
    assert splat.endswith("#PF: sup")

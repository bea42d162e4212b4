# SPDX-License-Identifier: GPL-2.0-or-later
"""What a terabyte guest costs beyond the gigabyte that it touches."""

from __future__ import annotations

from collections.abc import Iterator

from .figures import Figure, fresh_process

TOUCH = """
import sys
from gmemu import Kvm, VmType
stride = int(sys.argv[1])
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))
before = anonymous()
kvm = Kvm.open()
vm = kvm.create_vm(VmType.SW_PROTECTED)
gmem = vm.create_guest_memfd(1 << 40, 3)
memory = gmem.mmap()
vm.set_user_memory_region2(0, 0, 1 << 40, gmem=gmem, userspace_addr=memory.address)
pages = 1 << 18
if stride == 1:
    block = bytes(1 << 20)
    for at in range(0, pages << 12, 1 << 20):
        memory[at:at + (1 << 20)] = block
else:
    for page in range(pages):
        memory[page * stride << 12] = 1
print(anonymous() - before)
"""


def figures() -> Iterator[Figure]:
    """In one piece, and one page in every 4 MiB: the worst the range maps can be given."""
    for stride, how in ((1, "in one piece"), (1024, "one page in every 4 MiB")):
        overhead = fresh_process(TOUCH, str(stride)) / (1 << 20)
        yield Figure(f"1 TiB guest, 1 GiB touched {how}: overhead", overhead, "MiB", "< 200 MiB", overhead < 200)

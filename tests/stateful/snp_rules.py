# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch of SNP VMs."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from gmemu.uapi.kvm import KVM_MEMORY_ENCRYPT_OP
from gmemu.uapi.layout import Struct
from gmemu.uapi.mman import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE
from gmemu.uapi.sev import (
    SevCmd,
    kvm_sev_cmd,
    kvm_sev_init,
    kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
)

from .guest_rules import GuestRules
from .kvm_objects import SNP, SevDevice, Vm, VmFile
from .machine import FEW_PAGES, FRAME, ODD, SCRATCH, SMALL, pick, pick_odd
from .pages import PAGE, Process
from .snp_world import NORMAL

POLICY = 0x30000


class SnpRules(GuestRules):
    """The rules of KVM_MEMORY_ENCRYPT_OP."""

    def prepare_snp(self, process: Process, fd: int) -> None:
        """KVM_SEV_INIT2, right after the VM is made; /dev/sev and the page for commands, if the process has none."""
        if not any(isinstance(file, SevDevice) for file in process.fds.values()):
            self.made(lambda: self.world.open_sev(process), lambda: self.door(process).open("/dev/sev"), process)
        if SCRATCH // PAGE not in process.areas:
            self.world.map_anonymous(process, 1, 3, False, SCRATCH)
            self.door(process).mmap(SCRATCH, PAGE, 3, MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED)
        self.command(process, fd, SevCmd.INIT2, kvm_sev_init())

    def command(self, process: Process, fd: int, number: SevCmd, data: Struct) -> bytes:
        """One command: its structure goes through the process's memory, and comes back that way."""
        packed, door = data.pack(), self.door(process)
        self.world.store(process, SCRATCH, packed)
        door.store(SCRATCH, packed)
        sev_fd = next(n for n, file in process.fds.items() if isinstance(file, SevDevice))
        door.ioctl(fd, KVM_MEMORY_ENCRYPT_OP, bytearray(kvm_sev_cmd(id=number, data=SCRATCH, sev_fd=sev_fd).pack()))
        back = door.load(SCRATCH, len(packed))
        self.world.store(process, SCRATCH, back)
        return back

    def launch_first(self, n: int, address: int, bound: int) -> None:
        """Begin the launch of a VM that is being set up, and maybe end it."""
        process, fd, vm, api = self.vm_at(n)
        if vm.kind != SNP or not bound % 4:
            return
        self.start(process, fd)
        if self.world.kernel.in_place:
            self.convert_all(bound)
        else:
            self.agree(
                lambda: self.world.set_vm_attributes(process, fd, 0, bound * PAGE, 8, 0),
                lambda: api.set_memory_attributes(0, bound * PAGE, 8),
            )
        source = 0 if self.world.kernel.in_place else address
        self.update(process, fd, vm, 0, source, bound // 2 * PAGE, NORMAL)
        if bound % 4 > 1:
            self.finish(process, fd)

    def convert_all(self, pages: int) -> None:
        """Make the first pages of the newest guest_memfd private."""
        process, fd, _, gmem = self.gmem_at(-1)
        self.agree(
            lambda: self.world.convert(process, fd, 0, pages * PAGE, 8, 0, 0, False),
            lambda: gmem.set_memory_attributes(0, pages * PAGE, 8),
        )

    @precondition(lambda self: any(vm.kind == SNP for vm in self.world.vms) and self.opened(VmFile))
    @rule(n=SMALL, what=SMALL, frame=FRAME, pages=FEW_PAGES, at=SMALL, kind=st.sampled_from([1, 1, 1, 3, 4, 5]), odd=ODD)
    def launch(self, n: int, what: int, frame: int, pages: int, at: int, kind: int, odd: int) -> None:
        """LAUNCH_START, _UPDATE or _FINISH, in any order; updates from anywhere, or in place."""
        snp = [(p, fd) for p, fd in self.opened(VmFile) if getattr(p.fds[fd], "vm").kind == SNP]  # noqa: B009
        usable = [(p, fd) for p, fd in snp if any(isinstance(file, SevDevice) for file in p.fds.values())]
        usable = [(p, fd) for p, fd in usable if SCRATCH // PAGE in p.areas]
        if not usable:
            return
        process, fd = pick(usable, n)
        vm = getattr(process.fds[fd], "vm")  # noqa: B009
        if (not vm.started and what < 30) or what == 40:
            self.start(process, fd)
        elif what > 34:
            self.finish(process, fd)
        else:
            private = [
                gfn for slot in vm.slots.values() if slot.npages < 99 for gfn in range(slot.gfn, slot.gfn + slot.npages)
            ]
            private = [gfn for gfn in private if self.world.is_private(vm, gfn)]
            gfn = pick(private, frame) if private and frame % 5 else frame
            source = self.area_at(process, at) if at % 3 or not self.world.kernel.in_place else 0
            more, longer, bad = pick_odd(
                [(0, 0, 0), (8, 0, 0), (0, 8, 0), (0, -pages * PAGE, 0), (-source, 0, 0), (0, 0, 7)], odd
            )
            self.update(process, fd, vm, gfn, source + more, pages * PAGE + longer, bad or kind)

    def start(self, process: Process, fd: int) -> None:
        self.door(process)
        self.agree(
            lambda: self.world.launch_start(process, fd),
            lambda: self.command(process, fd, SevCmd.SNP_LAUNCH_START, kvm_sev_snp_launch_start(policy=POLICY)) and None,
        )

    def update(self, process: Process, fd: int, vm: Vm, gfn: int, source: int, length: int, kind: int) -> None:
        self.door(process)
        struct = kvm_sev_snp_launch_update(gfn_start=gfn, uaddr=source, len=length, type=kind)

        def real() -> tuple[int, int, int]:
            left = kvm_sev_snp_launch_update.unpack_from(self.command(process, fd, SevCmd.SNP_LAUNCH_UPDATE, struct))
            return left.gfn_start, left.uaddr, left.len

        self.agree(lambda: self.world.launch_update(process, fd, gfn, source, length, kind), real)

    def finish(self, process: Process, fd: int) -> None:
        self.door(process)
        self.agree(
            lambda: self.world.launch_finish(process, fd),
            lambda: self.command(process, fd, SevCmd.SNP_LAUNCH_FINISH, kvm_sev_snp_launch_finish()) and None,
        )

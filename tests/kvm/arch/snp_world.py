# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with one SNP VM, its memory, and the commands as they are on the wire; and what must hold whenever it rests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import shake_128
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple

from gmemu import Exit, GuestMemfd, Kvm, Vcpu, Vm
from gmemu import Mapping as Buffer
from gmemu.check import check_host
from gmemu.hw.cpu import Guest
from gmemu.hw.memory import PAGE_SIZE
from gmemu.hw.snp.guest_context import GuestContext
from gmemu.hw.snp.rmp_entry import RmpState
from gmemu.kvm.arch.snp import SnpVm
from gmemu.kvm.guest_memfd.file import GmemFile
from gmemu.kvm.snp_platform import SnpPlatform
from gmemu.profiles import Profile
from gmemu.rules import KernelError
from gmemu.sync import DirectRuntime, Lockdep
from gmemu.syscalls.emulated import EmulatedDoor
from gmemu.uapi.kvm import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
    KVM_MEMORY_ENCRYPT_OP,
    ExitReason,
    VmType,
)
from gmemu.uapi.layout import Struct
from gmemu.uapi.sev import (
    PspStatus,
    SevCmd,
    SnpPageType,
    kvm_sev_cmd,
    kvm_sev_init,
    kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
)

PROFILES = ("linux-6.12", "linux-6.18", "linux-7.3", "inplace-v13")
BASE = 0x100000
GFN = BASE // PAGE_SIZE
POLICY = 0x30000
BAD_ADDRESS = 0x1000
"""Nothing is mapped there."""


class Stepwise(DirectRuntime):
    """Nothing is batched: each page is a step of its own, as when interleavings are explored."""

    def batch(self, count: int) -> int:
        return min(count, 1)


class Reply(NamedTuple):
    """What a command came back with: the rule that it broke (""; done), `kvm_sev_cmd.error`, and the structure after it."""

    rule: str
    errno: int
    error: int
    data: bytes


class Stop(NamedTuple):
    """One exit, and what was asked for with it."""

    exit: Exit
    reason: str
    gpa: int = 0
    pages: int = 0
    private: bool = False


class World:
    """`vm` with `pages` of memory at BASE.  Where conversion is in place they are mapped at `buffer` and start shared; else
    `buffer` is the other pool and they start private."""

    def __init__(self, profile: str, *, runtime: type[DirectRuntime] = DirectRuntime, pages: int = 8) -> None:
        self.lockdep = Lockdep()
        self.kvm = Kvm.open(profile, runtime=runtime(self.lockdep))
        self.host, self.door = self.kvm.host, self.kvm.door
        self.profile: Profile = self.host.profile
        self.platform: SnpPlatform = self.host.snp
        self.vcpus: list[Vcpu] = []
        self.done = False
        self.vm = self.create_vm()
        self.sev_fd = self.door.open("/dev/sev")
        self.scratch = self.kvm.anonymous(PAGE_SIZE)
        self.gmem, self.buffer = self.add_memory(0, BASE, pages)

    # Set up

    def create_vm(self) -> Vm:
        """Another SNP VM."""
        vm = self.kvm.create_vm(VmType.SNP)
        vm.enable_map_gpa_range()
        return vm

    def add_memory(self, slot: int, gpa: int, pages: int, vm: Vm | None = None) -> tuple[GuestMemfd, Buffer]:
        """A guest_memfd in a slot of its own, and where user space has the shared pages."""
        vm, in_place = vm or self.vm, self.profile.in_place
        flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED if in_place else 0
        gmem = vm.create_guest_memfd(pages * PAGE_SIZE, flags)
        buffer = gmem.mmap() if in_place else self.kvm.anonymous(pages * PAGE_SIZE)
        vm.set_user_memory_region2(slot, gpa, pages * PAGE_SIZE, gmem=gmem, userspace_addr=buffer.address)
        if not in_place:
            vm.make_private(gpa, pages * PAGE_SIZE)
        return gmem, buffer

    def add_vcpu(self, id: int = 0, vm: Vm | None = None) -> Vcpu:
        """A vCPU, closed with the world."""
        vcpu = (vm or self.vm).create_vcpu(id)
        self.vcpus.append(vcpu)
        return vcpu

    def source(self, pages: int = 1, seed: int = 0) -> Buffer:
        """User memory full of noise, to load pages from."""
        mapping = self.kvm.anonymous(pages * PAGE_SIZE)
        mapping[:] = noise(pages, seed)
        return mapping

    def started(self, vcpus: int = 0) -> World:
        """INIT2, `vcpus` vCPUs, START."""
        assert self.init2() == ("", 0, 0)
        for number in range(vcpus):
            self.add_vcpu(number)
        assert self.start() == ("", 0, 0)
        return self

    def finished(self, vcpus: int = 1) -> World:
        """... and FINISH."""
        self.started(vcpus)
        assert self.finish() == ("", 0, 0)
        return self

    # Commands

    def command(
        self, id: int, data: Struct | int | None = None, *, sev_fd: int | None = None, error: int = 0, vm: Vm | None = None
    ) -> Reply:
        """KVM_MEMORY_ENCRYPT_OP.  `data` is the structure, or the address that is handed over instead of one."""
        address = self.scratch.address if not isinstance(data, int) else data
        if isinstance(data, Struct):
            self.scratch[: data.SIZE] = data.pack()
        fd = self.sev_fd if sev_fd is None else sev_fd
        cmd = bytearray(kvm_sev_cmd(id=id, data=address, error=error, sev_fd=fd).pack())
        rule, errno = "", 0
        try:
            assert (vm or self.vm).ioctl(KVM_MEMORY_ENCRYPT_OP, cmd) == 0
        except KernelError as failed:
            rule, errno = failed.rule.id, failed.rule.errno
        after = self.scratch[: data.SIZE] if isinstance(data, Struct) else b""
        return Reply(rule, errno, kvm_sev_cmd.unpack_from(cmd).error, after)

    def init2(self, vm: Vm | None = None, **fields: Any) -> tuple[str, int, int]:
        """KVM_SEV_INIT2: rule, errno, error."""
        return self.command(SevCmd.INIT2, kvm_sev_init(**fields), vm=vm)[:3]

    def start(self, vm: Vm | None = None, policy: int = POLICY, **fields: Any) -> tuple[str, int, int]:
        """KVM_SEV_SNP_LAUNCH_START."""
        return self.command(SevCmd.SNP_LAUNCH_START, kvm_sev_snp_launch_start(policy=policy, **fields), vm=vm)[:3]

    def update(
        self,
        page: int = 0,
        pages: int = 1,
        type: int = SnpPageType.NORMAL,
        uaddr: int = 0,
        **options: Any,
    ) -> tuple[str, int, kvm_sev_snp_launch_update]:
        """KVM_SEV_SNP_LAUNCH_UPDATE of pages from BASE, once: rule, error, and the structure after it."""
        data = kvm_sev_snp_launch_update(
            gfn_start=GFN + page, uaddr=uaddr, len=pages * PAGE_SIZE, type=type, flags=options.pop("flags", 0)
        )
        reply = self.command(SevCmd.SNP_LAUNCH_UPDATE, data, **options)
        return reply.rule, reply.error, kvm_sev_snp_launch_update.unpack_from(reply.data)

    def load(self, page: int, contents: bytes, type: int = SnpPageType.NORMAL, vm: Vm | None = None) -> None:
        """Launch `contents` at a page of the memory, as the profile's VMM does.  Everything must go well."""
        pages = len(contents) // PAGE_SIZE
        offset, source = page * PAGE_SIZE, 0
        if self.profile.in_place and vm is None:
            self.buffer[offset : offset + len(contents)] = contents
            self.gmem.make_private(offset, len(contents))
        else:
            mapping = self.kvm.anonymous(len(contents))
            mapping[:] = contents
            source = mapping.address
        assert self.update(page, pages, type, source, vm=vm)[:2] == ("", 0)

    def finish(self, vm: Vm | None = None, **fields: Any) -> tuple[str, int, int]:
        """KVM_SEV_SNP_LAUNCH_FINISH."""
        options = {name: fields.pop(name) for name in ("sev_fd", "error") if name in fields}
        reply = self.command(SevCmd.SNP_LAUNCH_FINISH, kvm_sev_snp_launch_finish(**fields), vm=vm, **options)
        return reply[:3]

    # Memory

    def convert(self, page: int, pages: int = 1, *, private: bool) -> None:
        """Make pages of the memory private or shared, by the profile's call."""
        offset, size = page * PAGE_SIZE, pages * PAGE_SIZE
        if self.profile.in_place:
            (self.gmem.make_private if private else self.gmem.make_shared)(offset, size)
        else:
            (self.vm.make_private if private else self.vm.make_shared)(BASE + offset, size)

    def gmem_pfn(self, page: int, gmem: GuestMemfd | None = None) -> int:
        """The page frame of a guest_memfd page, which must be there."""
        file = self.host.init.files[(gmem or self.gmem).fd]
        assert isinstance(file, GmemFile)
        pfn = file.gmem_inode.mapping.pfn(page)
        assert pfn is not None
        return pfn

    def state(self, page: int) -> RmpState:
        """What the RMP says of a page of the memory."""
        return self.platform.rmp.state(self.gmem_pfn(page))

    def raw(self, page: int) -> bytes:
        """A page's bytes as the host's own software sees them, past every mapping."""
        return self.host.memory.host_read(self.gmem_pfn(page) * PAGE_SIZE, PAGE_SIZE)

    # Inside

    @property
    def arch(self) -> SnpVm:
        """The VM as KVM has it."""
        arch = self.host.vms[0].arch
        assert isinstance(arch, SnpVm)
        return arch

    @property
    def key(self) -> int:
        """What the guest's memory is encrypted with."""
        return self.arch.platform.psp.keys[self.arch.asid]

    @property
    def context(self) -> GuestContext:
        """The firmware's view of the only guest."""
        [context] = self.platform.psp.contexts.values()
        return context

    def signal(self, pending: int = 1) -> None:
        """A signal arrives (0: it was taken care of)."""
        door = self.door
        assert isinstance(door, EmulatedDoor)
        door.task.pending_signals = pending

    # Running

    def serve(self, vcpu: Vcpu, guest: Guest) -> list[Stop]:
        """Run `guest` until it halts or ends itself, converting what it asks for.  All exits, in order."""
        stops = []
        exit_ = vcpu.run(guest)
        while exit_.reason not in (ExitReason.HLT, ExitReason.SYSTEM_EVENT):
            if exit_.reason is ExitReason.MEMORY_FAULT:
                fault = exit_.memory_fault
                stop = Stop(exit_, "MEMORY_FAULT", fault.gpa, fault.size // PAGE_SIZE, exit_.wants_private)
            else:
                assert exit_.hypercall.nr == KVM_HC_MAP_GPA_RANGE
                gpa, npages, attributes, *_ = exit_.hypercall.args
                stop = Stop(exit_, "HYPERCALL", gpa, npages, bool(attributes & KVM_MAP_GPA_RANGE_ENCRYPTED))
                exit_.answer_hypercall(0)
            self.convert((stop.gpa - BASE) // PAGE_SIZE, stop.pages, private=stop.private)
            stops.append(stop)
            exit_ = vcpu.run()
        return [*stops, Stop(exit_, exit_.reason.name)]

    # What must hold

    def check(self) -> None:
        """Every invariant of the machine, and that the RMP assigns what belongs to a guest, and nothing else."""
        check_host(self.host)
        owned = {pfn for start, end, _ in self.platform.rmp.entries.runs() for pfn in range(start, end)}
        owned -= {pfn for start, end, _ in self.host.memmap.leaked.runs() for pfn in range(start, end)}
        for vm in self.host.vms:
            if not isinstance(vm.arch, SnpVm):
                continue
            owned -= set(vm.arch.vmsa_pfns.values())
            if vm.arch.snp_context is not None:
                owned.remove(vm.arch.snp_context)
        for inode in self.host.gmem_inodes:
            for start, end, delta in inode.mapping.pages.runs():
                for page in range(start, end):
                    shared = self.profile.in_place and not inode.private_run(page, 1)
                    assert not shared or page + delta not in owned, f"file page {page:#x} is shared and assigned"
                    owned.discard(page + delta)
        assert not owned

    def tear_down(self) -> None:
        """Close everything: what was assigned is the hypervisor's again, and nothing is left."""
        for vcpu in self.vcpus:
            vcpu.close()
        door = self.door
        assert isinstance(door, EmulatedDoor)
        door.exit()
        self.host.check_quiet()
        leaked = self.host.memmap.leaked
        assert all(leaked.covers(start, end, True) for start, end, _ in self.platform.rmp.entries.runs())
        assert not self.lockdep.cycles(), self.lockdep.report()

    def close(self) -> None:
        """Check, take down, check again; once."""
        if self.done:
            return
        self.done = True
        self.check()
        self.tear_down()
        self.host.close()


def noise(pages: int = 1, seed: int = 0) -> bytes:
    """Bytes of which no two pages are alike."""
    return shake_128(b"test page %d" % seed).digest(pages * PAGE_SIZE)


class Flaw(NamedTuple):
    """One thing wrong with a call.  `fields` go into its structure, `options` to `World.command`; `spoil` does something to
    the world before."""

    rule: str
    fields: Mapping[str, Any] = MappingProxyType({})
    spoil: Callable[[World], object] = lambda world: None
    options: Mapping[str, Any] = MappingProxyType({})

    def __repr__(self) -> str:
        return self.rule


def in_order(flaws: list[Flaw]) -> list[list[Flaw]]:
    """Each flaw alone, and each pair in the order of the checks: the first of a pair is the one that is reported."""
    return [[flaw] for flaw in flaws] + [[a, b] for a, b in combinations(flaws, 2)]


def inject(world: World, command: int, status: PspStatus, nth: int = 1) -> None:
    """Have the firmware answer the `nth` command of that kind with `status`."""
    seen = 0

    def hook(issued: int, pfn: int) -> PspStatus | None:
        nonlocal seen
        seen += issued == command
        return status if issued == command and seen == nth else None

    world.platform.psp.inject = hook

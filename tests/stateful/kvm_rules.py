# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM does: VMs, guest_memfds, slots, conversions, fallocate, dirty logs."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from gmemu.uapi.kvm import KVM_CREATE_VM as CREATE_VM
from gmemu.uapi.kvm import KVM_GET_DIRTY_LOG, KVM_SET_MEMORY_ATTRIBUTES2, kvm_dirty_log, kvm_memory_attributes2

from .kvm_objects import GUEST_MEMFD, LOG_DIRTY, READONLY, SNP, Device, Gmem, Region, Vm, VmFile
from .machine import FEW_PAGES, FRAME, ODD, OFTEN, SELDOM, SMALL, Machine, pick, pick_odd
from .pages import PAGE, Errno, Process

MAX_VMS, MAX_GMEMS = 4, 6
WHERE = st.tuples(st.integers(0, 16), FRAME)
"""Where to put a slot: see `_place`."""
ODD_REGIONS: list[dict[str, int]] = [
    {},
    {"size": 0x800},
    {"gpa": 0x1001},
    {"address": 0x801},
    {"address": (1 << 47) - 2 * PAGE},
    {"offset": 0x800},
    {"offset": 0x7FFFFFFFFFFFF000},
    {"offset": 0xFFFFFFFFFFFFF000},
    {"offset": 1 << 63},
    {"slot": 1 << 16},
    {"slot": 2 << 16},
    {"slot": 32764},
    {"gpa": (1 << 64) - PAGE},
    {"gpa": 1 << 52},
    {"flags": 8},
    {"flags": GUEST_MEMFD | LOG_DIRTY},
    {"flags": GUEST_MEMFD | READONLY},
    {"fd": 77},
    {"fd": 3},
    {"size": 1 << 44},
]
ODD_CONVERSIONS: list[dict[str, int]] = [
    {},
    {"flags": 1},
    {"reserved": 1},
    {"attributes": 1},
    {"attributes": 9},
    {"size": 0},
    {"size": 0x800},
    {"offset": 0x10},
    {"offset": 0xFFFFFFFFFFFFF000},
    {"size": 0xFFFFFFFFFFFFF000},
    {"size": 64 * PAGE},
]


class KvmRules(Machine):
    """The rules of VMs and their memory."""

    # Making things

    @rule(n=SMALL, what=st.sampled_from("vgggc"), npages=st.integers(1, 10), kind=SMALL, odd=ODD)
    def create(self, n: int, what: str, npages: int, kind: int, odd: int) -> None:
        """A VM, a guest_memfd or a vCPU."""
        if not self.opened(Device):
            self.open_device(self.process(n))
        devices, vms = self.opened(Device), self.opened(VmFile)
        if what == "v" and devices and len(self.world.vms) < MAX_VMS:
            self.make_vm(*pick(devices, n), pick_odd([(0, 1, 1, SNP if self.snp else 0)[kind % 4], 2, 99], odd))
        elif what == "g" and vms and len(self.opened(Gmem)) < MAX_GMEMS:
            size = pick_odd([npages * PAGE, 0, npages * PAGE + 1, (1 << 64) - PAGE, 1 << 63], odd)
            best = self.best_flags(self.vm_at(n)[2].kind)
            self.make_gmem(n, size, (*[best] * 5, 0, 1, 2, 3, 4)[kind % 10])
        elif what == "c" and vms:
            self.make_vcpu(n, pick_odd([kind & 1, 4095, 4096], odd))

    def make_vm(self, process: Process, fd: int, kind: int) -> None:
        door = self.door(process)
        made = self.made(lambda: self.world.create_vm(process, fd, kind), lambda: door.ioctl(fd, CREATE_VM, kind), process)
        if made is not None:
            self.adopt_vm(process, made)
            if kind == SNP:
                self.prepare_snp(process, made)

    def prepare_snp(self, process: Process, fd: int) -> None:
        raise NotImplementedError

    def set_up_vm(self, npages: int, bound: int) -> None:
        """A guest_memfd, mapped if it may be, with some of it in slot 0; and a vCPU."""
        flags = self.best_flags(self.vm_at(-1)[2].kind)
        self.make_gmem(-1, npages * PAGE, flags)
        process, fd, _, gmem = self.gmem_at(-1)
        address = 0
        if flags & 1:
            address = gmem.mmap().address
            self.world.map_file(process, fd, 0, npages, 3, True, address)
        if not self.world.kernel.in_place:
            address = self.door(process).mmap(0, npages * PAGE, 3, 0x22)
            self.world.map_anonymous(process, npages, 3, False, address)
        self.set_region(-1, Region(0, GUEST_MEMFD, 0, bound * PAGE, address, fd), 2)
        self.make_vcpu(-1, 0)
        if address:
            self.launch_first(-1, address, bound)
        self.enable_map_gpa_range(-1)

    def make_vcpu(self, n: int, number: int) -> None:
        raise NotImplementedError

    def launch_first(self, n: int, address: int, bound: int) -> None:
        raise NotImplementedError

    def make_gmem(self, n: int, size: int, flags: int) -> None:
        process, fd, _, vm = self.vm_at(n)
        self.made(
            lambda: self.world.create_gmem(process, fd, size, flags),
            lambda: vm.create_guest_memfd(size, flags).fd,
            process,
        )

    def enable_map_gpa_range(self, n: int) -> None:
        process, fd, _, vm = self.vm_at(n)
        self.agree(lambda: self.world.enable_map_gpa_range(process, fd), vm.enable_map_gpa_range)

    # Memslots

    @precondition(lambda self: self.opened(VmFile) and self.opened(Gmem))
    @rule(n=SMALL, g=SMALL, where=WHERE, first=FRAME, pages=FEW_PAGES, at=SMALL, odd=ODD)
    def bind(self, n: int, g: int, where: tuple[int, int], first: int, pages: int, at: int, odd: int) -> None:
        """A slot with a guest_memfd: often one that's free, sometimes on top of another."""
        process, _, vm, _ = self.vm_at(n)
        files = [(fd, file) for fd, file in process.fds.items() if isinstance(file, Gmem)]
        own = [(fd, file) for fd, file in files if file.vm is vm]
        if files:
            fd, file = pick(own if own and g < 36 else files, g)
            taken = {i for s in vm.slots.values() if s.file is file for i in range(s.first, s.first + s.npages)}
            free = [i for i in range(file.npages) if i not in taken]
            first = pick(free if free and g % 5 else range(file.npages), first)
            if g % 7:
                pages = next((i for i in range(1, pages) if first + i not in free), min(pages, file.npages - first))
            slot, gpa = self._place(vm, where, pages)
            region = Region(slot, GUEST_MEMFD, gpa, pages * PAGE, self.area_at(process, at), fd, first * PAGE)
            self.set_region(n, region._replace(**pick_odd(ODD_REGIONS, odd)), 2)

    @precondition(lambda self: self.opened(VmFile))
    @rule(n=SMALL, where=WHERE, pages=FEW_PAGES, at=SMALL, flags=st.integers(0, 3), odd=ODD, v1=SELDOM)
    def plain_slot(self, n: int, where: tuple[int, int], pages: int, at: int, flags: int, odd: int, v1: bool) -> None:
        """A slot without a guest_memfd, on whatever the process has mapped."""
        process, _, vm, _ = self.vm_at(n)
        slot, gpa = self._place(vm, where, pages)
        region = Region(slot, flags, gpa, pages * PAGE, self.area_at(process, at))
        self.set_region(n, region._replace(**pick_odd(ODD_REGIONS, odd)), 1 if v1 else 2)

    def _place(self, vm: Vm, where: tuple[int, int], pages: int) -> tuple[int, int]:
        """A slot number and an address; mostly such that aren't taken."""
        slot, frame = where
        if slot < 14:
            slot = next(n for n in range(100) if n not in vm.slots)
        taken = {gfn for s in vm.slots.values() if s.npages < 99 for gfn in range(s.gfn, s.gfn + s.npages)}
        if frame % 8:
            frame = next(f for f in range(frame, 200) if taken.isdisjoint(range(f, f + pages)))
        return slot % 14, frame * PAGE

    @precondition(lambda self: any(vm.slots for vm in self.world.vms) and self.opened(VmFile))
    @rule(n=SMALL, s=SMALL, frame=FRAME, flags=st.sampled_from([None, None, 0, 1, 2, 4]), delete=st.booleans())
    def change_slot(self, n: int, s: int, frame: int, flags: int | None, delete: bool) -> None:
        """Move a slot, or change its flags, or say again what it is; or delete it, by either ioctl."""
        _, _, vm, _ = self.vm_at(n)
        if delete:
            self.set_region(n, Region(pick([*vm.slots, 4], s), flags or 0, 0, 0), 1 if frame == 1 else 2)
        elif vm.slots:
            plain = [slot for slot in vm.slots.values() if not slot.flags & GUEST_MEMFD]
            region = pick(plain if plain and s < 35 else list(vm.slots.values()), s).region
            gpa = region.gpa if s % 2 else frame * PAGE
            self.set_region(n, region._replace(gpa=gpa, flags=region.flags if flags is None else flags), 2)

    def set_region(self, n: int, region: Region, version: int) -> None:
        process, fd, _, vm = self.vm_at(n)
        r = region

        def real() -> None:
            if version == 1:
                return vm.set_user_memory_region(r.slot, r.gpa, r.size, r.address, r.flags)
            gmem = r.fd if r.flags & GUEST_MEMFD else None
            return vm.set_user_memory_region2(
                r.slot, r.gpa, r.size, userspace_addr=r.address, gmem=gmem, offset=r.offset, flags=r.flags
            )

        self.agree(lambda: self.world.set_region(process, fd, region, version), real)

    @precondition(lambda self: self.opened(VmFile))
    @rule(n=SMALL, s=SMALL)
    def look(self, n: int, s: int) -> None:
        """Ask what can be asked: dirty log, fstat."""
        _, _, vm, _ = self.vm_at(n)
        logged = [number for number, slot in vm.slots.items() if slot.flags & LOG_DIRTY]
        if logged or s > 35:
            self.dirty_log(n, pick(logged if logged and s < 38 else [*vm.slots, 3, 9, 1 << 16], s))
        elif self.opened(Gmem):
            self.stat(s)

    def dirty_log(self, n: int, number: int) -> None:
        """What was written is in the log; what wasn't even read isn't."""
        process, fd, _, _ = self.vm_at(n)
        buffer = self.door(process).mmap(0, PAGE, 3, 0x22)
        self.world.map_anonymous(process, 1, 3, False, buffer)
        must: set[int] = set()
        may: set[int] = set()

        def want() -> None:
            nonlocal must, may
            must, may = self.world.dirty_log(process, fd, number)
            self.world.write_user(process, buffer, bytes(8))

        log = bytearray(kvm_dirty_log(slot=number, dirty_bitmap=buffer).pack())
        if self.agree(want, lambda: self.door(process).ioctl(fd, KVM_GET_DIRTY_LOG, log) or None):
            bits = int.from_bytes(self.door(process).load(buffer, 8), "little")
            dirty = {i for i in range(64) if bits >> i & 1}
            assert must <= dirty <= may, f"dirty {dirty}, written {must}, accessed {may}"
        self.agree(lambda: self.world.unmap_range(process, buffer, 1), lambda: self.door(process).munmap(buffer, PAGE))

    # Private and shared

    @precondition(lambda self: self.opened(Gmem) and self.opened(VmFile))
    @rule(n=SMALL, first=FRAME, pages=FEW_PAGES, private=st.booleans(), cpu=st.booleans(), odd=ODD, other=SELDOM)
    def attributes(self, n: int, first: int, pages: int, private: bool, cpu: bool, odd: int, other: bool) -> None:
        """Make pages private or shared, by the ioctl that the kernel has for it, or by the other."""
        if self.world.kernel.in_place is not other:
            self._convert(n, first, pages, private, cpu, odd)
        else:
            self._set_vm_attributes(n, first, pages, private, odd)

    def _convert(self, n: int, first: int, pages: int, private: bool, cpu: bool, odd: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2, from any process that has the guest_memfd."""
        process, fd, file, gmem = self.gmem_at(n, cpu)
        first %= file.npages
        args = {"offset": first * PAGE, "size": min(pages, file.npages - first) * PAGE, "attributes": 8 * private}
        args.update(pick_odd(ODD_CONVERSIONS, odd))
        starved = odd in (180, 181, 182)
        flags, reserved = args.pop("flags", 0), args.pop("reserved", 0)
        self.host.failing_allocations["gmem-attributes"] = int(starved)

        def real() -> None:
            if not flags and not reserved:
                return gmem.set_memory_attributes(**args)
            struct = kvm_memory_attributes2(flags=flags, reserved=(0,) * 10 + (reserved,))
            struct.offset, struct.size, struct.attributes = args["offset"], args["size"], args["attributes"]
            gmem.ioctl(KVM_SET_MEMORY_ATTRIBUTES2, bytearray(struct.pack()))
            return None

        self.agree(lambda: self.world.convert(process, fd, **args, flags=flags, reserved=reserved, starved=starved), real)
        self.host.failing_allocations.clear()

    @precondition(lambda self: self.opened(Gmem) and self.world.kernel.in_place)
    @rule(n=SMALL, first=FRAME, pages=FEW_PAGES, private=OFTEN, at=SMALL, poke=st.sampled_from([0, 8, 4000]))
    def convert_by_address(self, n: int, first: int, pages: int, private: bool, at: int, poke: int) -> None:
        """The same with the structure in the process's memory, which may be the very memory that is converted."""
        process, fd, file, _ = self.gmem_at(n)
        door, address = self.door(process), self.area_at(process, at) + poke
        if self.meets_ours(address, 2):
            return
        first %= file.npages
        args = {"offset": first * PAGE, "size": min(pages, file.npages - first) * PAGE, "attributes": 8 * private}
        packed = kvm_memory_attributes2(error_offset=0xABC, reserved=(0,) * 11, **args).pack()
        if not self.agree(lambda: self.world.store(process, address, packed), lambda: door.store(address, packed)):
            areas = [process.areas.get((address + i) // PAGE) for i in (0, len(packed) - 1)]
            if any(area is not None and (area.prot == 1 or area.file is None) for area in areas):
                return  # what can be read there is something else

        def want() -> None:
            try:
                self.world.convert_by_address(process, fd, address, packed, **args)
            except Errno as error:
                raise Errno(error.number) from None

        self.agree(want, lambda: door.ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, address) or None)

    def _set_vm_attributes(self, n: int, frame: int, pages: int, private: bool, odd: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES, on the VM."""
        process, fd, _, vm = self.vm_at(n)
        odds = [
            (0, 0, 0),
            (0x10, 0, 0),
            (0, 0x10, 0),
            (0, -pages * PAGE, 0),
            (0, 0, 1),
            ((1 << 64) - PAGE * (frame + 1), 0, 0),
        ]
        more, longer, bits = pick_odd(odds, odd)
        gpa, size, attributes = frame * PAGE + more, pages * PAGE + longer, 8 * private | bits
        self.agree(
            lambda: self.world.set_vm_attributes(process, fd, gpa, size, attributes, 0),
            lambda: vm.set_memory_attributes(gpa, size, attributes),
        )

    # Files

    @precondition(lambda self: self.opened(Gmem) or self.opened(VmFile))
    @rule(
        n=SMALL,
        mode=st.sampled_from([1, 3] * 15 + [0, 2, 4, 8, 16, 64, 65, 128, 1 << 20]),
        first=st.integers(0, 11),
        pages=st.sampled_from([1, 2, 3, 10]),
        odd=ODD,
        cpu=SELDOM,
        signal=SELDOM,
    )
    def fallocate(self, n: int, mode: int, first: int, pages: int, odd: int, cpu: bool, signal: bool) -> None:
        """Allocate, punch, and what isn't allowed."""
        process, fd = pick(
            self.opened(Gmem) if self.opened(Gmem) and n < 38 else self.opened(VmFile) or self.opened(Gmem), n
        )
        file = process.fds[fd]
        if isinstance(file, Gmem) and odd % 8:
            first %= file.npages
            pages = min(pages, file.npages - first)
        more, longer = pick_odd(
            [(0, 0), (1, 0), (0, 1), (-first * PAGE - 1, 0), (0, -pages * PAGE), ((1 << 63) - (first + 1) * PAGE, 0)], odd
        )
        offset, length = first * PAGE + more, pages * PAGE + longer
        door = self.door(process, cpu)
        door.task.pending_signals = int(signal)
        self.agree(
            lambda: self.world.fallocate(process, fd, mode, offset, length, signal),
            lambda: door.fallocate(fd, mode, offset, length),
        )
        door.task.pending_signals = 0

    def stat(self, n: int) -> None:
        """st_size is fixed; st_blocks tells what is allocated, in the kernels that count."""
        _, _, file, gmem = self.gmem_at(n)
        blocks = len(file.pages) * 8 if self.world.kernel.blocks else 0
        self.agree(
            lambda: (file.npages * PAGE, blocks, PAGE), lambda: (gmem.stat().size, gmem.stat().blocks, gmem.stat().blksize)
        )

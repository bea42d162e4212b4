# SPDX-License-Identifier: GPL-2.0-or-later
"""kvm_gmem_populate in both its orders, with a platform that only copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmemu import GuestMemfd, KernelError, Mapping, Vm
from gmemu.kvm.guest_memfd.populate import Source, populate_gup_first, populate_locked
from gmemu.rules import MemoryFault
from gmemu.rules import gmem as rules
from gmemu.sync import Deadlock
from gmemu.uapi.mman import MADV_HWPOISON, PROT_READ

from ..world import BOTH, PAGE, World, fill, in_profiles, refusal

Populate = Callable[..., int]
both_orders = pytest.mark.parametrize("populate", [populate_gup_first, populate_locked])


class Platform:
    """A post_populate callback: copies the source and writes down what it was asked."""

    def __init__(self, world: World, vm: Vm, fail_at: int | None = None) -> None:
        self.world, self.vm = world, world.kvm_vm(vm)
        self.fail_at = fail_at
        self.pages: list[int] = []
        self.held: list[bool] = []
        self.refs: list[int] = []

    def __call__(self, gfn: int, pfn: int, count: int, source: Source | None) -> tuple[int, KernelError | None]:
        memory, memmap = self.world.host.memory, self.world.host.memmap
        slot = self.vm.find_slot(gfn)
        assert slot is not None
        assert slot.gmem_file is not None
        slot.gmem_file.gmem_inode.mapping.invalidate_lock.assert_exclusive()
        self.vm.slots_lock.assert_held()
        for i in range(count):
            if gfn + i == self.fail_at:
                return i, rules.POPULATE_NO_SOURCE("a test")
            if source is not None and source.pfn >= 0:
                self.refs.append(memmap.refcount(source.pfn + i))
                memory.copy(pfn + i, source.pfn + i, 1)
            elif source is not None:
                try:
                    data = self.vm.rt.current.mm.read(source.address + i * PAGE, PAGE)
                except MemoryFault:
                    return i, rules.POPULATE_SOURCE("a test")
                memory.write((pfn + i) * PAGE, data)
            self.pages.append(gfn + i)
        return count, None


class Launch:
    """A VM with private guest_memfd at gpa 0, and a source of as many pages."""

    def __init__(self, world: World, pages: int = 4) -> None:
        self.world, self.vm = world, world.vm()
        self.gmem: GuestMemfd = world.gmem(self.vm, pages, 0)
        self.vm.set_user_memory_region2(0, 0, pages * PAGE, gmem=self.gmem)
        if not world.profile.in_place:
            self.vm.make_private(0, pages * PAGE)
        self.source: Mapping = world.kvm.anonymous(pages * PAGE)
        for page in range(pages):
            self.source[page * PAGE] = 0x40 + page

    def run(
        self,
        populate: Populate,
        gfn: int = 0,
        npages: int = 4,
        *,
        source: int | None = None,
        platform: Platform | None = None,
        writeback: bool = False,
    ) -> int:
        """Populate as a system call would: pages done."""
        kvm = self.world.kvm_vm(self.vm)
        address = self.source.address + gfn * PAGE if source is None else source

        def call() -> int:
            with kvm.slots_lock:
                return populate(kvm, gfn, address, npages, writeback, platform or Platform(self.world, self.vm))

        return self.world.syscall(call)

    def contents(self) -> list[int]:
        """The first byte of each page of the file; -1 where there is none."""
        mapping = self.world.inode(self.gmem).mapping
        pfns = [mapping.pfn(page) for page in range(self.gmem.size // PAGE)]
        return [-1 if pfn is None else self.world.host.memory.read(pfn * PAGE, 1)[0] for pfn in pfns]

    def unpinned(self) -> bool:
        """Whether nobody but the process holds the pages of the source."""
        self.world.drain()
        mm = self.world.host.init.mm
        entries = [mm.pte(self.source.address // PAGE + i) for i in range(len(self.source) // PAGE)]
        return all(entry is None or self.world.host.memmap.refcount(entry[0]) == 1 for entry in entries)


@both_orders
class TestBothOrders:
    def test_pages_are_loaded_and_up_to_date(self, world: World, populate: Populate) -> None:
        launch = Launch(world)
        assert launch.run(populate) == 4
        assert launch.contents() == [0x40, 0x41, 0x42, 0x43]
        assert world.inode(launch.gmem).mapping.uptodate.covers(0, 4, True)
        assert launch.unpinned()

    def test_without_a_source(self, world: World, populate: Populate) -> None:
        launch = Launch(world)
        seen: list[Source | None] = []

        def platform(gfn: int, pfn: int, count: int, source: Source | None) -> tuple[int, None]:
            seen.append(source)
            return count, None

        assert launch.run(populate, source=0, platform=platform) == 4  # type: ignore[arg-type]
        assert set(seen) == {None}

    def test_slots_lock_must_be_held(self, world: World, populate: Populate) -> None:
        launch = Launch(world)
        kvm = world.kvm_vm(launch.vm)
        with pytest.raises(AssertionError, match="slots_lock"):
            world.syscall(lambda: populate(kvm, 0, 0, 1, False, Platform(world, launch.vm)))

    def test_a_request_is_clamped_to_the_slot(self, world: World, populate: Populate) -> None:
        """S21: one that spans two slots takes two calls."""
        launch = Launch(world)
        more = world.gmem(launch.vm, 4, 0)
        launch.vm.set_user_memory_region2(1, 4 * PAGE, 4 * PAGE, gmem=more)
        if not world.profile.in_place:
            launch.vm.make_private(4 * PAGE, 4 * PAGE)
        platform = Platform(world, launch.vm)
        assert launch.run(populate, 2, 6, platform=platform, source=0) == 2
        assert launch.run(populate, 4, 4, platform=platform, source=0) == 4
        assert platform.pages == [2, 3, 4, 5, 6, 7]

    def test_where_nothing_can_be_loaded(self, world: World, populate: Populate) -> None:
        launch = Launch(world)
        memory = world.kvm.anonymous(PAGE)
        launch.vm.set_user_memory_region2(1, 0x10000, PAGE, userspace_addr=memory.address)
        assert refusal(lambda: launch.run(populate, 0x100)) == "gmem.populate.slot"
        assert refusal(lambda: launch.run(populate, 0x10)) == "gmem.populate.slot"
        launch.gmem.close()
        assert refusal(lambda: launch.run(populate)) == "gmem.populate.closed"

    @pytest.mark.parametrize("bad", range(4))
    def test_a_failure_on_the_way_is_masked_and_met_again(self, world: World, populate: Populate, bad: int) -> None:
        """S20: what was done counts; the error comes with the next call, which begins with the page that failed."""
        launch = Launch(world)
        platform = Platform(world, launch.vm, fail_at=bad)
        if bad:
            assert launch.run(populate, platform=platform) == bad
        assert refusal(lambda: launch.run(populate, bad, 4 - bad, platform=platform)) == "gmem.populate.no-source"
        assert platform.pages == list(range(bad))
        assert world.inode(launch.gmem).mapping.uptodate.covers(0, bad, True) or not bad
        assert launch.unpinned()
        platform.fail_at = None
        assert launch.run(populate, bad, 4 - bad, platform=platform) == 4 - bad
        assert launch.contents() == [0x40, 0x41, 0x42, 0x43]

    def test_a_signal(self, world: World, populate: Populate) -> None:
        launch = Launch(world)
        world.door.task.pending_signals = 1
        assert refusal(lambda: launch.run(populate)) == "gmem.populate.signal"
        world.door.task.pending_signals = 0
        assert launch.contents() == [-1] * 4

    def test_a_signal_in_the_middle(self, world: World, populate: Populate) -> None:
        launch = Launch(world)
        platform = Platform(world, launch.vm)

        def interrupted(*args: object) -> tuple[int, KernelError | None]:
            world.door.task.pending_signals = 1
            gfn, pfn, _, source = args
            return platform(gfn, pfn, 1, source)  # type: ignore[arg-type]

        assert launch.run(populate, platform=interrupted) == 1  # type: ignore[arg-type]
        assert refusal(lambda: launch.run(populate, 1, 3)) == "gmem.populate.signal"
        world.door.task.pending_signals = 0
        assert launch.unpinned()

    def test_a_bad_target(self, world: World, populate: Populate) -> None:
        launch = Launch(world)
        launch.gmem.allocate(2 * PAGE, PAGE)
        assert refusal(lambda: world.host.memory_failure(world.pfn(launch.gmem, 2))) == "mm.hwpoison.kept"
        assert launch.run(populate) == 2
        assert refusal(lambda: launch.run(populate, 2, 2)) == "gmem.get-pfn.hwpoison"
        assert launch.unpinned()

    def test_no_memory_for_a_page(self, world: World, populate: Populate) -> None:
        launch = Launch(world)
        memmap = world.host.memmap
        [(hog, count)] = memmap.alloc(memmap.nr_pages - memmap.nr_allocated - 3)
        assert launch.run(populate) == 2
        assert refusal(lambda: launch.run(populate, 2, 2)) == "mm.page.oom"
        memmap.put(hog, count)
        assert launch.run(populate, 2, 2) == 2
        assert launch.unpinned()

    @pytest.mark.parametrize("hole", range(4))
    def test_a_source_that_isnt_all_there(self, world: World, populate: Populate, hole: int) -> None:
        launch = Launch(world)
        world.door.munmap(launch.source.address + hole * PAGE, PAGE)
        if hole:
            assert launch.run(populate) == hole
        found = refusal(lambda: launch.run(populate, hole, 4 - hole))
        assert found == ("mm.gup.fault" if populate is populate_gup_first else "gmem.populate.source")
        assert launch.unpinned()

    def test_nothing_is_left_when_the_platform_breaks(self, world: World, populate: Populate) -> None:
        """An exception that is no errno, such as Ctrl-C: locks, pins and the file's reference are given back."""
        launch = Launch(world)

        def breaks(*args: object) -> tuple[int, None]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            launch.run(populate, platform=breaks)  # type: ignore[arg-type]
        assert launch.unpinned()
        assert world.gmem_file(launch.gmem).count == 1
        assert world.host.memmap.refcount(world.pfn(launch.gmem, 0)) == 1
        assert launch.run(populate) == 4


class TestAttributes:
    @both_orders
    @in_profiles("linux-6.12", "linux-7.3", "inplace-v13")
    def test_each_page_must_be_private(self, world: World, populate: Populate) -> None:
        """S39: a page that was converted between two others stops the call there."""
        launch = Launch(world)
        if world.profile.in_place:
            launch.gmem.make_shared(2 * PAGE, PAGE)
        else:
            launch.vm.make_shared(2 * PAGE, PAGE)
        assert launch.run(populate) == 2
        assert refusal(lambda: launch.run(populate, 2, 2)) == "gmem.populate.not-private"
        assert launch.run(populate, 3, 1) == 1
        assert launch.unpinned()

    def test_a_page_can_be_loaded_again_unless_the_platform_objects(self, world: World) -> None:
        launch = Launch(world)
        launch.run(populate_gup_first)
        launch.source[0] = 0x77
        assert launch.run(populate_gup_first, npages=1) == 1
        assert launch.contents()[0] == 0x77

    @in_profiles("linux-6.12")
    def test_once_only_in_the_old_order(self, world: World) -> None:
        """ "Up to date" meant prepared: loaded before, or given to the guest."""
        launch = Launch(world)
        assert launch.run(populate_locked, 1, 1) == 1
        assert launch.run(populate_locked) == 1
        assert refusal(lambda: launch.run(populate_locked, 1)) == "gmem.populate.prepared"
        launch.vm.create_vcpu().pre_fault(2 * PAGE, PAGE)
        assert refusal(lambda: launch.run(populate_locked, 2)) == "gmem.populate.prepared"
        assert launch.run(populate_locked, 3) == 1


class TestGupFirst:
    def test_arguments_that_no_platform_hands_on(self, world: World) -> None:
        launch = Launch(world)
        for npages in (0, -1):
            assert refusal(lambda npages=npages: launch.run(populate_gup_first, npages=npages)) == "gmem.populate.count"  # type: ignore[misc]
        assert refusal(lambda: launch.run(populate_gup_first, source=0x1001)) == "gmem.populate.unaligned"

    def test_the_source_is_referenced_while_it_is_read(self, world: World) -> None:
        launch = Launch(world)
        platform = Platform(world, launch.vm)
        launch.run(populate_gup_first, platform=platform)
        assert platform.refs == [2, 2, 2, 2]
        assert launch.unpinned()

    def test_a_source_that_may_be_corrected_must_be_writable(self, world: World) -> None:
        """S13: only then; anybody else may have a read-only one."""
        launch = Launch(world)
        launch.source.protect(PROT_READ)
        assert refusal(lambda: launch.run(populate_gup_first, writeback=True)) == "mm.gup.fault"
        assert launch.run(populate_gup_first) == 4

    def test_a_correction_goes_to_the_processs_own_page(self, world: World) -> None:
        """S13: GUP for writing breaks copy-on-write before the page is handed out."""
        launch = Launch(world)
        child = world.fork()

        def corrects(gfn: int, pfn: int, count: int, source: Source | None) -> tuple[int, None]:
            assert source is not None
            world.host.memory.write(source.pfn * PAGE, b"corrected")
            return 1, None

        launch.run(populate_gup_first, npages=1, writeback=True, platform=corrects)  # type: ignore[arg-type]
        assert launch.source[:9] == b"corrected"
        assert child.load(launch.source.address, 1) == b"\x40"

    def test_the_zero_page_is_a_source(self, world: World) -> None:
        launch = Launch(world)
        fresh = world.kvm.anonymous(4 * PAGE)
        assert launch.run(populate_gup_first, source=fresh.address) == 4
        assert launch.contents() == [0, 0, 0, 0]

    def test_a_bad_source_page(self, world: World) -> None:
        """GUP without FOLL_HWPOISON: it's EFAULT."""
        launch = Launch(world)
        assert refusal(lambda: launch.source.madvise(MADV_HWPOISON, PAGE, PAGE)) == "mm.fault.hwpoison"
        assert launch.run(populate_gup_first) == 1
        assert refusal(lambda: launch.run(populate_gup_first, 1)) == "mm.gup.fault"

    @in_profiles("inplace-v13")
    def test_the_targets_own_mapping_cant_be_the_source(self, world: World) -> None:
        launch = Launch(world)
        gmem = launch.vm.create_guest_memfd(2 * PAGE, BOTH)
        mapping = gmem.mmap()
        fill(mapping, b"data")
        launch.vm.set_user_memory_region2(1, 0x10000, 2 * PAGE, gmem=gmem)
        gmem.make_private(0, PAGE)
        assert refusal(lambda: launch.run(populate_gup_first, 0x10, 1, source=mapping.address)) == "mm.gup.fault"
        assert launch.run(populate_gup_first, 0x10, 1, source=mapping.address + PAGE) == 1
        assert launch.run(populate_gup_first, 0x10, 1, source=0) == 1

    @in_profiles("inplace-v13")
    def test_a_source_that_is_converted_meanwhile(self, world: World) -> None:
        """S39: the converter gets EAGAIN while the source's reference is held."""
        launch = Launch(world)
        gmem = launch.vm.create_guest_memfd(PAGE, BOTH)
        mapping = gmem.mmap()
        mapping[0] = 1
        seen: list[str] = []

        def converts(gfn: int, pfn: int, count: int, source: Source | None) -> tuple[int, None]:
            seen.append(refusal(lambda: gmem.make_private(0, PAGE)))
            return 1, None

        launch.run(populate_gup_first, npages=1, source=mapping.address, platform=converts)  # type: ignore[arg-type]
        assert seen == ["gmem.attributes.busy"]
        gmem.make_private(0, PAGE)

    @in_profiles("inplace-v13")
    def test_a_fresh_page_without_source_is_zero(self, world: World) -> None:
        """S12: else it would be whatever the host left there."""
        launch = Launch(world)
        memmap = world.host.memmap
        launch.gmem.allocate(0, 4 * PAGE)
        for page in range(4):
            world.host.memory.write(world.pfn(launch.gmem, page) * PAGE, b"host")
        assert memmap.nr_allocated > 4
        assert launch.run(populate_gup_first, source=0) == 4
        assert launch.contents() == [0, 0, 0, 0]
        leaky = world.host.design._replace(zero_before_populate=lambda mapping, folio: None)
        world.host.design = leaky
        launch.gmem.punch_hole(0, PAGE)
        launch.gmem.allocate(0, PAGE)
        world.host.memory.write(world.pfn(launch.gmem, 0) * PAGE, b"host")
        launch.run(populate_gup_first, npages=1, source=0)
        assert launch.contents()[0] == ord("h")


class TestLockOrder:
    """S01, as lockdep sees it: one task is enough to show what two could do to each other."""

    def source_in_guest_memfd(self, world: World, populate: Populate) -> list[list[str]]:
        """Populate from shared guest_memfd memory that isn't in the page tables: the circles that are seen then."""
        launch = Launch(world)
        gmem = launch.vm.create_guest_memfd(4 * PAGE, BOTH)
        mapping = gmem.mmap()
        fill(mapping, b"data")
        world.inode(gmem).mapping.unmap_pages(0, 4)
        assert launch.run(populate, source=mapping.address) == 4
        return world.lockdep.cycles()

    def test_pinning_first_makes_no_circle(self, world: World) -> None:
        assert self.source_in_guest_memfd(world, populate_gup_first) == []
        edges = world.lockdep.edges
        assert ("slots_lock", "mmap_lock") in edges
        assert ("mmap_lock", "gmem:invalidate_lock") in edges
        assert ("slots_lock", "gmem:invalidate_lock") in edges
        assert ("gmem:invalidate_lock", "mmap_lock") not in edges

    def test_reading_under_the_lock_does(self, world: World) -> None:
        """A host fault takes mmap_lock and then the invalidate lock; this takes them the other way round."""
        cycles = self.source_in_guest_memfd(world, populate_locked)
        assert ["gmem:invalidate_lock", "mmap_lock"] in cycles
        report = world.lockdep.report()
        assert "possible circular locking dependency: gmem:invalidate_lock --> mmap_lock --> gmem:invalidate_lock" in report
        world.lockdep.edges.clear()

    def test_a_source_in_the_same_file_locks_itself_out(self, world: World) -> None:
        """One task is enough: the lock is held for writing, and the source's fault wants it for reading."""
        launch = Launch(world, 4)
        gmem = launch.vm.create_guest_memfd(4 * PAGE, BOTH)
        launch.vm.set_user_memory_region2(1, 0x10000, 2 * PAGE, gmem=gmem)
        mapping = gmem.mmap()
        gmem.make_private(0, 2 * PAGE)
        source = mapping.address + 2 * PAGE
        with pytest.raises(Deadlock, match="invalidate_lock"):
            launch.run(populate_locked, 0x10, 1, source=source)
        assert launch.run(populate_gup_first, 0x10, 2, source=source) == 2
        world.lockdep.edges.clear()

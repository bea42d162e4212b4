# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's own threads under the scheduler, by the function and by the pytest marker."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

import gmemu
from gmemu import BusError, ConversionRefused, GuestCpu, VmType
from gmemu.explore import Kind, Outcome, Program, explore_program
from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP

pytest_plugins = ["pytester"]

SHARED = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED


def vmm(program: Program) -> None:
    vm = program.kvm.create_vm(VmType.SW_PROTECTED)
    gmem = vm.create_guest_memfd(4096, SHARED)
    memory = gmem.mmap()
    program.thread("convert", lambda: gmem.make_private(0, 4096))
    program.thread("touch", lambda: memory[0])


def test_a_thread_that_gets_sigbus_is_a_violation_unless_allowed() -> None:
    result = explore_program(vmm)
    assert (result.outcome, result.kind) == (Outcome.VIOLATED, Kind.EXCEPTION)

    def careful(program: Program) -> None:
        vmm(program)
        program.allow("touch", BusError)
        program.allow("convert", ConversionRefused)

    result = gmemu.explore(careful)  # type: ignore[operator]
    assert (result.outcome, result.kind) == (Outcome.EXHAUSTED, None)
    assert len(result.states) == 3  # touched before; SIGBUS after; refused as the fault held the page


def test_what_must_hold_finally() -> None:
    def program(p: Program) -> None:
        vmm(p)
        p.allow("touch", BusError)
        p.allow("convert", ConversionRefused)
        p.finally_(lambda: _assert(not isinstance(p.results["touch"], BusError)))

    assert explore_program(program).kind is Kind.ASSERTION


def _assert(holds: bool) -> None:
    assert holds


def test_threads_that_are_alike_are_tried_in_one_order() -> None:
    def program(p: Program, group: str) -> None:
        counter = p.runtime.atomic("counter")
        for i in range(3):
            p.thread(f"t{i}", lambda: counter.set(counter.read() + 1), group=group)

    alike = explore_program(lambda p: program(p, "incrementers"))
    different = explore_program(lambda p: program(p, ""))
    assert alike.outcome is different.outcome is Outcome.EXHAUSTED
    assert alike.schedules < different.schedules


def test_a_reference_that_nobody_drops_is_a_leak() -> None:
    def leaky(program: Program) -> None:
        vmm(program)
        program.allow("touch", BusError)
        program.allow("convert", ConversionRefused)
        program.thread("leak", lambda: program.host.memmap.alloc(1) and None)

    result = explore_program(leaky)
    assert (result.kind, "after everything was closed" in result.detail) == (Kind.LEAK, True)


def test_a_reference_to_a_page_that_is_gone_is_a_use_after_free() -> None:
    def program(p: Program) -> None:
        memmap = p.host.memmap
        [(pfn, _)] = memmap.alloc(1)
        p.thread("free", lambda: memmap.put(pfn))

        def use() -> None:
            memmap.get(pfn)
            memmap.put(pfn)

        p.thread("use", use)

    result = explore_program(program)
    assert (result.kind, "reference taken to a page that was freed" in result.detail) == (Kind.USE_AFTER_FREE, True)


def test_a_guest_that_reaches_a_freed_page_by_an_old_translation() -> None:
    """The page is punched out of the file; this host's KVM forgets to tell the processor."""

    def program(p: Program) -> None:
        vm = p.kvm.create_vm(VmType.SW_PROTECTED)
        gmem = vm.create_guest_memfd(4096, SHARED)
        memory = gmem.mmap()
        vm.set_user_memory_region2(0, 0, 4096, gmem=gmem, userspace_addr=memory.address)
        vcpu = vm.create_vcpu()
        kernel = p.host.vms[0]
        kernel.flush_remote_tlbs = lambda: None  # type: ignore[method-assign]

        def guest(cpu: GuestCpu) -> None:
            cpu.load(0, 1)
            cpu.load(0, 1)

        p.thread("vcpu", lambda: vcpu.run(guest).reason.name)
        p.thread("punch", lambda: gmem.punch_hole(0, 4096))

    result = explore_program(program)
    assert result.kind is Kind.STALE_TLB


def test_the_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from gmemu import BusError, ConversionRefused, GuestCpu, VmType
        from gmemu.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP

        def set_up(program):
            vm = program.kvm.create_vm(VmType.SW_PROTECTED)
            gmem = vm.create_guest_memfd(4096, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
            memory = gmem.mmap()
            program.thread("convert", lambda: gmem.make_private(0, 4096))
            program.thread("touch", lambda: memory[0])

        @pytest.mark.gmemu_explore
        def test_wrong(program):
            set_up(program)

        @pytest.mark.gmemu_explore(profile="inplace-v13")
        def test_right(program, tmp_path):
            set_up(program)
            program.allow("touch", BusError)
            program.allow("convert", ConversionRefused)

        @pytest.mark.gmemu_explore(max_schedules=1)
        def test_stopped(program):
            program.thread("a", lambda: program.kvm.create_vm(VmType.SW_PROTECTED))
            program.thread("b", lambda: program.kvm.create_vm(VmType.SW_PROTECTED))
        """
    )
    installed = any(entry.name == "gmemu" for entry in entry_points(group="pytest11"))
    result = pytester.runpytest_subprocess(*(() if installed else ("-p", "gmemu.pytest_plugin")))
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*exception: *", "*touch: *", "*not exhausted: stopped by schedules after 1*"])

# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual processor that runs a scripted guest.

The guest is a Python function in a greenlet of its own.  It runs until the hardware would leave guest mode: a nested page
fault, a hypercall, VMGEXIT, HLT.  Then `Cpu.enter` returns the exit to KVM, and the guest goes on where it was when KVM
enters it again.  Memory is reached as hardware does it: TLB, nested walk, owner check, bytes under the guest's key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..invariants import StaleTlb
from ..sync import Runtime, Task
from ..uapi.kvm_x86 import PFERR_GUEST_ENC_MASK, PFERR_GUEST_FINAL_MASK, PFERR_PRESENT_MASK, PFERR_WRITE_MASK
from .memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from .tlb import Tlb, Translation

if TYPE_CHECKING:
    from greenlet import greenlet

    from .guest_cpu import GuestCpu
    from .x86.cpu import MachineCpu

__all__ = [
    "Access",
    "Cpu",
    "Cpuid",
    "CrAccess",
    "DeviceAccess",
    "EmulationFailure",
    "ExceptionIntercept",
    "Exit",
    "ExternalAbort",
    "ExternalInterrupt",
    "GhcbMsr",
    "Guest",
    "GuestFatal",
    "GuestException",
    "GuestMemory",
    "Hlt",
    "MsrAccess",
    "Mwait",
    "NestedPageFault",
    "PlainMemory",
    "PortIo",
    "RecEnterFailed",
    "RecExit",
    "RmpFault",
    "Shutdown",
    "Smccc",
    "TdVmcall",
    "UndefinedOpcode",
    "VirtualizationException",
    "Vmgexit",
    "Vmmcall",
    "VmmCommunication",
    "VpEnterFailed",
    "Xsetbv",
]

Guest = Callable[[Any], object]
"""A scripted guest: ``def guest(cpu): ...`` with a `GuestCpu`."""


class Access(NamedTuple):
    """What the instruction that faulted was doing; what KVM's emulator would decode."""

    gpa: int
    write: bool
    data: bytes
    """The bytes to store, or as many zeroes as are to be loaded."""


class NestedPageFault(NamedTuple):
    """#NPF, or an EPT violation: `error_code` has PFERR_* bits; `qualification` is Intel's extended exit qualification.

    PFERR_GUEST_ENC_MASK tells a private access: with SNP's C-bit, without TDX's shared bit (`gpa` comes without it).
    """

    gpa: int
    error_code: int
    access: Access
    qualification: int = 0


class Vmmcall(NamedTuple):
    """VMMCALL with a number and up to four arguments in registers, at a privilege level, in 64-bit code or not.

    `vendor` is whose instruction it was, where that is known.
    """

    nr: int
    args: tuple[int, ...]
    cpl: int = 0
    long_mode: bool = True
    vendor: str = ""


class GhcbMsr(NamedTuple):
    """VMGEXIT with a request in the GHCB MSR."""

    value: int


class Vmgexit(NamedTuple):
    """VMGEXIT with a GHCB: exit code, two information words, the shared buffer (as the guest's view of it), and RAX."""

    code: int
    info1: int
    info2: int
    buffer: bytearray
    rax: int = 0


class PortIo(NamedTuple):
    """IN or OUT, or several at once by INS and OUTS: `size` is that of one then (0: there is but one)."""

    port: int
    write: bool
    data: bytes
    size: int = 0


class Hlt(NamedTuple):
    """HLT, or the guest function returned."""


class Shutdown(NamedTuple):
    """Triple fault."""


class ExternalInterrupt(NamedTuple):
    """The host wanted its processor back for a moment."""


class TdVmcall(NamedTuple):
    """TDG.VP.VMCALL of a TD: sub-function (R11) and up to four arguments (R12 to R15)."""

    leaf: int
    args: tuple[int, ...]


class Smccc(NamedTuple):
    """An Arm guest's HVC or SMC: function id and up to six arguments (SMC Calling Convention)."""

    function: int
    args: tuple[int, ...]


class MemShared(NamedTuple):
    """A protected guest of pKVM has shared the page at `ipa`, and the host is told (where guest_memfd has to know)."""

    ipa: int


class MemUnshare(NamedTuple):
    """A protected guest of pKVM wants the page at `ipa` back, and the host is asked to let go of it (the same)."""

    ipa: int


class RecExit(NamedTuple):
    """A realm's REC left for the host with `reason` (RmiRecExitReason), and what it tells of why."""

    reason: int
    values: tuple[int, ...]


class RecEnterFailed(NamedTuple):
    """RMI_REC_ENTER came back with a status; the guest didn't run, and `completion` is still to be given to it."""

    status: int
    completion: object


class VpEnterFailed(NamedTuple):
    """TDH.VP.ENTER came back with a status; the guest didn't run, and `completion` is still to be given to it."""

    status: int
    completion: object


class GuestException(NamedTuple):
    """A completion that isn't one: the instruction gets this exception instead of its result."""

    vector: int
    error_code: int | None = None


class Cpuid(NamedTuple):
    """CPUID with EAX and ECX.  Completed by EAX, EBX, ECX, EDX."""

    function: int
    subleaf: int


class MsrAccess(NamedTuple):
    """RDMSR (`value` None), completed by a number, or WRMSR."""

    msr: int
    value: int | None


class CrAccess(NamedTuple):
    """MOV from a control register that KVM must answer for (`value` None), completed by a number, or to it."""

    number: int
    value: int | None


class Xsetbv(NamedTuple):
    """XSETBV of an extended control register."""

    xcr: int
    value: int


class Mwait(NamedTuple):
    """MONITOR or MWAIT."""

    monitor: bool


class DeviceAccess(NamedTuple):
    """The instruction's access to an address that KVM said isn't memory, once the instruction was taken apart."""

    access: Access


class ExceptionIntercept(NamedTuple):
    """The guest's code raised an exception that KVM wants to see.  `software`: by INT3 or its like, which is behind RIP.

    `dr6` is what DR6 tells of a debug exception.
    """

    vector: int
    error_code: int | None
    software: bool
    dr6: int = 0


class EmulationFailure(NamedTuple):
    """The instruction can't be taken apart: it's fetched from, or its event goes to, what isn't memory."""

    gpa: int


Exit = (
    NestedPageFault
    | Vmmcall
    | GhcbMsr
    | Vmgexit
    | PortIo
    | Hlt
    | Shutdown
    | ExternalInterrupt
    | TdVmcall
    | VpEnterFailed
    | Smccc
    | MemShared
    | MemUnshare
    | RecExit
    | RecEnterFailed
    | Cpuid
    | MsrAccess
    | CrAccess
    | Xsetbv
    | Mwait
    | DeviceAccess
    | EmulationFailure
    | ExceptionIntercept
)


class VmmCommunication(Exception):
    """#VC in the guest.  Linux guests treat all but a few as fatal; so does a scripted guest that doesn't catch it."""

    def __init__(self, gpa: int, why: str) -> None:
        super().__init__(f"#VC at gpa {gpa:#x}: {why}")
        self.gpa, self.why = gpa, why


class VirtualizationException(Exception):
    """#VE in a TD: it touched memory at `gpa` that it hasn't accepted.  Linux guests take it for fatal."""

    def __init__(self, gpa: int, why: str) -> None:
        super().__init__(f"#VE at gpa {gpa:#x}: {why}")
        self.gpa, self.why = gpa, why


class ExternalAbort(Exception):
    """A synchronous external abort: an Arm guest touched memory at `ipa` that it mustn't.  Linux guests die of it."""

    def __init__(self, ipa: int, why: str) -> None:
        super().__init__(f"synchronous external abort at ipa {ipa:#x}: {why}")
        self.ipa, self.why = ipa, why


GuestFatal = VmmCommunication | VirtualizationException | ExternalAbort
"""What a guest dies of if it doesn't catch it."""


class UndefinedOpcode(Exception):
    """#UD in the guest: its processor has no such instruction."""


class RmpFault(Exception):
    """The owner check of a guest access failed: a nested page fault with these PFERR_* bits."""

    def __init__(self, error_code: int) -> None:
        super().__init__(f"nested page fault, error bits {error_code:#x}")
        self.error_code = error_code


class GuestMemory(Protocol):
    """How a guest's accesses are checked against the page's owner, and under which key they see its bytes."""

    def key(self, encrypted: bool) -> int:
        """The key of an access with or without the C-bit."""

    def check(self, pfn: int, gfn: int, write: bool, encrypted: bool) -> None:
        """Raise `RmpFault` or `VmmCommunication` if the access isn't allowed."""

    def pvalidate(self, cpu: Cpu, gfn: int, validate: bool, huge: bool) -> int:
        """PVALIDATE by the guest."""

    def rmpadjust(self, cpu: Cpu, gfn: int, vmpl: int, mask: int, vmsa: bool) -> int:
        """RMPADJUST by the guest."""


class PlainMemory(GuestMemory):
    """No trusted entity: every access is allowed, in the clear, and SNP's instructions are undefined."""

    def key(self, encrypted: bool) -> int:
        return 0

    def check(self, pfn: int, gfn: int, write: bool, encrypted: bool) -> None:
        pass

    def pvalidate(self, cpu: Cpu, gfn: int, validate: bool, huge: bool) -> int:
        raise UndefinedOpcode("PVALIDATE")

    def rmpadjust(self, cpu: Cpu, gfn: int, vmpl: int, mask: int, vmsa: bool) -> int:
        raise UndefinedOpcode("RMPADJUST")


class Cpu:
    """One virtual processor: its TLB, its guest, and the nested page table that it walks.

    `walk(gfn)` gives the nested page table's entry.  `encrypted_default` says whether an access that doesn't say is made
    with the C-bit.
    """

    def __init__(
        self,
        rt: Runtime,
        memory: PhysicalMemory,
        walk: Callable[[int], Translation | None],
        protection: GuestMemory,
        encrypted_default: bool = False,
    ) -> None:
        self.rt, self.memory, self.walk, self.protection = rt, memory, walk, protection
        self.encrypted_default = encrypted_default
        self.tlb = Tlb()
        self.is_free: Callable[[int], bool] | None = None
        """Asked of a page frame that is about to be touched: whether nobody has it, so that the translation is stale"""
        self.task: Task = rt.current
        self._guest: greenlet | None = None

    @property
    def has_guest(self) -> bool:
        """Whether there is anything to run."""
        return self._guest is not None

    @property
    def machine(self) -> MachineCpu | None:
        """The processor itself, if it's one that can run machine code."""
        return None

    @property
    def runs_code(self) -> bool:
        """Whether what runs next is machine code."""
        return False

    def load_guest(self, guest: Guest, interface: object) -> None:
        """Replace what runs: `guest(interface)` starts at the next entry."""
        from greenlet import greenlet

        def body() -> Exit:
            try:
                guest(interface)
            except (VmmCommunication, VirtualizationException, ExternalAbort) as exception:
                return self.fatal_exit(exception)
            return Hlt()

        self._guest, self._body = greenlet(body), body

    def restart_guest(self) -> None:
        """The processor is reset: what it runs begins anew."""
        from greenlet import greenlet

        if self._guest is not None:
            self._guest = greenlet(self._body)

    def close(self) -> None:
        """The processor is taken away."""

    def kick(self) -> None:
        """kvm_vcpu_kick(): leave guest mode soon.  A scripted guest leaves it by itself."""

    def emulate(self, gpa: int) -> None:
        """KVM found that `gpa`, where machine code faulted, isn't memory: the next exit tells what was wanted."""
        raise AssertionError("a scripted guest says at once what it wants")

    def enter(self, completion: object = None) -> Exit:
        """Run the guest until it exits.  `completion` is what the exit before has to give to it (MMIO or port data,
        hypercall result).  An exception of the guest's own comes out here."""
        from greenlet import getcurrent

        guest = self._guest
        assert guest is not None
        guest.parent = getcurrent()
        self.task = self.rt.current
        try:
            with self.rt.guest_mode():
                exit_: Exit = guest.switch(completion) if guest else guest.switch()
            return exit_
        finally:
            if guest.dead:
                self._guest = None

    def leave(self, exit_: Exit) -> Any:
        """In the guest: leave guest mode with `exit_`; returns KVM's completion."""
        assert self._guest is not None
        return self._guest.parent.switch(exit_)

    def fatal_exit(self, exception: GuestFatal) -> Exit:
        """What Linux does with a #VC that it can't handle: ask for termination, general reason set, reason 0."""
        self.fatal = exception
        return GhcbMsr(0x100)

    def interface(self) -> GuestCpu:
        """What a scripted guest is given to work with."""
        from .guest_cpu import GuestCpu

        return GuestCpu(self)

    def tdcall(self, leaf: int, *args: int) -> int:
        """TDCALL: only a TD has it."""
        raise UndefinedOpcode("TDCALL")

    # Memory, as the guest's instructions reach it

    def load(self, gpa: int, length: int, encrypted: bool) -> bytes:
        """`length` bytes from guest-physical `gpa`."""
        pieces = []
        while length:
            n = min(length, PAGE_SIZE - (gpa & (PAGE_SIZE - 1)))
            pieces.append(self._access(Access(gpa, False, bytes(n)), encrypted))
            gpa, length = gpa + n, length - n
        return b"".join(pieces)

    def store(self, gpa: int, data: bytes, encrypted: bool) -> None:
        """Write `data` at guest-physical `gpa`."""
        at = 0
        while at < len(data):
            n = min(len(data) - at, PAGE_SIZE - (gpa + at & (PAGE_SIZE - 1)))
            self._access(Access(gpa + at, True, data[at : at + n]), encrypted)
            at += n

    def _access(self, access: Access, encrypted: bool) -> bytes:
        """One access within one page, retried after each exit until it's done or KVM emulated it."""
        gfn, offset = access.gpa >> PAGE_SHIFT, access.gpa & (PAGE_SIZE - 1)
        while True:
            previous = self.rt.enter(self.task)
            try:
                return self._try_access(access, gfn, offset, encrypted)
            except RmpFault as fault:
                error_code = fault.error_code
            finally:
                self.rt.leave(previous)
            done = self.leave_for_fault(NestedPageFault(access.gpa, error_code, access), encrypted)
            if isinstance(done, bytes):
                return done

    def leave_for_fault(self, fault: NestedPageFault, encrypted: bool) -> Any:
        """Exit with #NPF, its error code completed by what the access was."""
        error_code = fault.error_code | PFERR_GUEST_FINAL_MASK
        error_code |= PFERR_WRITE_MASK if fault.access.write else 0
        error_code |= PFERR_GUEST_ENC_MASK if encrypted else 0
        return self.leave(fault._replace(error_code=error_code))

    def _try_access(self, access: Access, gfn: int, offset: int, encrypted: bool) -> bytes:
        """Translate, check the owner, touch the bytes.  Raises `RmpFault` or `VmmCommunication`."""
        mark = self.rt.writes if access.write else self.rt.reads
        while True:
            pfn = self.translate(gfn, access.write, encrypted)
            self.protection.check(pfn, gfn, access.write, encrypted)
            mark(("memory", pfn))
            hit = self.tlb.entries.get(gfn)
            if hit is not None and hit.pfn == pfn:
                break  # else it was flushed meanwhile, which waits for an access that is under way: look again
        if self.is_free is not None and self.is_free(pfn):
            raise StaleTlb(f"gfn {gfn:#x} was reached at pfn {pfn:#x}, which was freed, by a translation from before")
        address, key = (pfn << PAGE_SHIFT) + offset, self.protection.key(encrypted)
        if access.write:
            self.memory.write(address, access.data, key)
            return b""
        return self.memory.read(address, len(access.data), key)

    def translate(self, gfn: int, write: bool, encrypted: bool) -> int:
        """The page frame at `gfn`, by the TLB or a nested walk.  Raises `RmpFault` without RMP bits when there is none."""
        self.rt.reads(("tlb", self.tlb))
        hit = self.tlb.entries.get(gfn)
        if hit is None or (write and not hit.writable):
            hit = self.walk(gfn)
            if hit is None or (write and not hit.writable):
                raise RmpFault(PFERR_PRESENT_MASK if hit else 0)
            self.tlb.entries[gfn] = hit
        return hit.pfn

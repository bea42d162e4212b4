# SPDX-License-Identifier: GPL-2.0-or-later
"""`Faults`: what a host asks whether something is to fail, and tells how far it got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from threading import local
from typing import TYPE_CHECKING, NamedTuple

from ..check import check_host
from ..hw.memory import PAGE_SHIFT
from ..kvm.guest_memfd.file import GmemFile
from ..kvm.vcpu import VcpuFile
from ..kvm.vm import Vm, VmFile
from ..rules import KernelError
from ..rules import gmemu as rules
from ..uapi.kvm import KVM_MEMORY_ENCRYPT_OP
from ..uapi.mman import GUP_PIN_COUNTING_BIAS
from .entities import attach_entity
from .language import NAMED, At, Order, What
from .names import call_name, result_value
from .runtime import FaultyRuntime, Hung

if TYPE_CHECKING:
    from ..kvm.host import Host
    from ..mm.file import File
    from ..mm.uaccess import UserPointer

_GRACE = 10_000
"""Steps that a program has to tidy up in after it was told that it hangs."""

_FIRED_KEPT = 100_000
_REFUSALS = {
    "EAGAIN": rules.ORDERED_EAGAIN,
    "EBUSY": rules.ORDERED_EBUSY,
    "EINTR": rules.ORDERED_EINTR,
    "ENOMEM": rules.ORDERED_ENOMEM,
}

__all__ = ["Call", "Faults", "Fired", "Observer"]


class Fired(NamedTuple):
    """An order was carried out: during which call, and on what."""

    order: Order
    call: str
    where: str


class Call:
    """One system call under way: its name, which of that name it is (from 1), its file, and the VM and vCPU it is about."""

    def __init__(self, host: Host, name: str, number: int, file: File, arg: UserPointer = 0) -> None:
        self.host, self.name, self.number, self.file, self.arg = host, name, number, file, arg
        self.vcpu = file.vcpu if isinstance(file, VcpuFile) else None
        self.vm: Vm | None = self.vcpu.vm if self.vcpu else file.vm if isinstance(file, VmFile | GmemFile) else None
        self.pages: set[tuple[int, int]] = set()
        self.fired = False
        self.error: BaseException | None = None

    @property
    def is_conversion(self) -> bool:
        """Whether it can change which pages are private."""
        return "MEMORY_ATTRIBUTES" in self.name or "CONVERT" in self.name

    def pfn(self, order: Order) -> int | None:
        """The page frame that the order is about, if there is one now."""
        if order.offset is not None:
            file, index = self.file, order.offset >> PAGE_SHIFT
        else:
            assert order.gfn is not None
            slot = self.vm.find_slot(order.gfn) if self.vm is not None else None
            if slot is None or slot.gmem_file is None:
                return None
            file, index = slot.gmem_file, slot.gmem_index(order.gfn)
        return file.gmem_inode.mapping.pfn(index) if isinstance(file, GmemFile) else None


class Observer:
    """Told of each call and each point at which something could have failed.  `gmemu sweep` has one."""

    def call_begins(self, call: Call) -> None:
        """A call begins; nothing was done yet."""

    def call_ends(self, call: Call) -> None:
        """A call is over; `call.error` is what it failed with."""

    def point(self, what: What, name: str, nth: int) -> None:
        """An operation that could fail: the `nth` of its name."""

    def page(self, call: Call, nth: int) -> None:
        """The call came to its `nth` page of guest_memfd."""


class _Standing:
    """An order, and how far it is."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.met, self.open, self.rng = 0, not order.after, Random(order.seed)

    def event(self, event: str) -> None:
        if event == self.order.after:
            self.open = True
        elif event == self.order.before:
            self.open = False

    def fires(self) -> bool:
        """Everything else fits: is it the n-th time?"""
        self.met += 1
        order = self.order
        return order.nth <= self.met < order.nth + order.times and (order.p == 1.0 or self.rng.random() < order.p)


class _Held(NamedTuple):
    host: Host
    pfn: int
    by: int
    name: str
    until: int


class Faults:
    """Carries out orders.  Give it to a `Host` (or to `Kvm.open`) when that is made.

    With `check` on, every invariant is checked when a call is over in which an order was carried out.  `step_limit` bounds
    what a program may do; beyond it `Hung` is raised.  `fired` tells what was carried out first, in order.
    """

    def __init__(
        self, *orders: Order | str, check: bool = True, step_limit: int | None = None, observer: Observer | None = None
    ) -> None:
        self.fired: list[Fired] = []
        self.steps = 0
        self.calls: Counter[str] = Counter()
        self._operations: Counter[tuple[What, str]] = Counter()
        self._check, self.step_limit = check, step_limit
        self._observer = observer or Observer()
        self._standing: list[_Standing] = []
        self._threads = local()
        self._held: list[_Held] = []
        self.hosts: list[Host] = []
        self.at_end: Callable[[Host], None] = lambda host: None
        """called with each host before it's switched off"""
        for order in orders:
            self.order(order)

    def order(self, order: Order | str) -> Order:
        """One more.  Raises `OrderError`."""
        parsed = Order.parse(order) if isinstance(order, str) else order
        self._standing.append(_Standing(parsed))
        return parsed

    def cancel(self) -> None:
        """No order stands any more; what is held stays held."""
        self._standing.clear()

    def release(self) -> None:
        """Let go of every page that is held."""
        for held in self._held:
            held.host.memmap.put(held.pfn, 1, held.by)
        self._held.clear()

    @property
    def held(self) -> dict[int, int]:
        """References that orders took: page frame -> how many, as `check_host` wants them."""
        counts: Counter[int] = Counter()
        for held in self._held:
            counts[held.pfn] += held.by
        return dict(counts)

    def count(self, what: What | str, name: str) -> int:
        """How often an operation was asked for so far, whatever came of it."""
        return self._operations[What(what), name]

    def unmet(self) -> list[Order]:
        """Orders that nothing came of so far."""
        done = {id(fired.order) for fired in self.fired}
        return [standing.order for standing in self._standing if id(standing.order) not in done]

    @property
    def _call(self) -> Call | None:
        """The call that this thread is in.  While one's guest runs, others make theirs."""
        return getattr(self._threads, "call", None)

    @_call.setter
    def _call(self, call: Call | None) -> None:
        self._threads.call = call

    # What a host does with it

    def runtime(self) -> FaultyRuntime:
        """The runtime of a host that has this."""
        return FaultyRuntime(self)

    def attach(self, host: Host) -> None:
        """`host` is being made."""
        self.hosts.append(host)
        host.memmap.inject = lambda count: self.allocate("page")

    def detach(self, host: Host) -> None:
        """`host` is about to be switched off."""
        if host in self.hosts:
            self.hosts.remove(host)
            self.at_end(host)

    def entity(self, entity: object) -> None:
        """A trusted entity of the host was made: have it ask before each operation."""
        attach_entity(self, entity)

    def allocate(self, site: str) -> bool:
        """Whether this allocation fails."""
        return self.decide(What.ALLOC, site) is not None

    @contextmanager
    def call(self, host: Host, name: str, file: File, arg: UserPointer = 0) -> Iterator[None]:
        """A system call."""
        self.calls[name] += 1
        outer, call = self._call, Call(host, name, self.calls[name], file, arg)
        self._call = call
        task = host.rt.current
        signals = task.pending_signals
        try:
            self.at_step(None)
            self._observer.call_begins(call)
            self._refuse(call)
            self._happen(At.START, "")
            yield
        except BaseException as error:
            call.error = error
            raise
        finally:
            task.pending_signals = signals
            self._let_go(call)
            self._event(name)
            self._call = outer
            self._observer.call_ends(call)
            if call.fired:
                self.look_over(host)

    @contextmanager
    def ioctl(self, host: Host, file: File, request: int, arg: UserPointer) -> Iterator[None]:
        """An ioctl, by its name."""
        command = 0
        if request == KVM_MEMORY_ENCRYPT_OP:
            command = int.from_bytes(_peek(host, arg), "little")
        with self.call(host, call_name(request, command, host.platform), file, arg):
            yield

    def look_over(self, host: Host) -> None:
        """Check every invariant, if that was wanted."""
        if self._check:
            check_host(host, None)

    # Where something can fail or happen

    def decide(self, what: What, name: str, *, gfn: int | None = None, pfn: int | None = None) -> int | None:
        """An operation is about to be carried out: the result to return instead, or None."""
        self._operations[what, name] += 1
        self._observer.point(what, name, self._operations[what, name])
        result = None
        for standing in self._standing:
            order = standing.order
            if order.what is not what or order.name != name or not self._fits(standing):
                continue
            if (order.gfn is not None and order.gfn != gfn) or (order.pfn is not None and order.pfn != pfn):
                continue
            if result is None and standing.fires():
                result = result_value(what, order.result)
                self._note(order, f"gfn {gfn:#x}" if gfn is not None else f"pfn {pfn:#x}" if pfn is not None else "")
        self._event(f"{what}:{name}")
        return result

    def at_step(self, what: object) -> None:
        """The kernel makes a step.  A mark on a page cache says that a call comes to a page."""
        self.steps += 1
        if self.step_limit is not None and self.steps > self.step_limit:
            self.step_limit = self.steps + _GRACE
            raise Hung(f"{self.steps} steps, in {self._call.name if self._call else 'no call'}")
        call = self._call
        if call is None or not isinstance(what, tuple) or what[0] != "page-cache":
            return
        cache, index = what[1], what[2]
        key = id(cache), index
        if key in call.pages or not any(inode.mapping is cache for inode in call.host.gmem_inodes):
            return
        call.pages.add(key)
        self._observer.page(call, len(call.pages))
        self._happen(At.PAGE, "")

    def at_lock(self, name: str) -> None:
        """A lock is about to be taken."""
        self.at_step(None)
        if self._standing and self._call is not None:
            self._happen(At.LOCK, name)

    def _refuse(self, call: Call) -> None:
        """Fail the call, if that was ordered."""
        orders = [standing for standing in self._standing if standing.order.what is What.CALL]
        fit = [standing for standing in orders if standing.order.name == call.name and self._fits(standing)]
        fired = [standing.order for standing in fit if standing.fires()]
        if fired:
            self._note(fired[0], "")
            raise _REFUSALS[fired[0].result](str(fired[0]))

    def _happen(self, at: At, lock: str) -> None:
        """Whatever was ordered to happen at this point of the call."""
        call = self._call
        assert call is not None
        for standing in self._standing:
            order = standing.order
            if order.what in NAMED or order.at is not at or order.lock != lock or not self._fits(standing):
                continue
            if order.what is What.SIGNAL:
                if standing.fires():
                    call.host.rt.current.pending_signals += 1
                    self._note(order, "")
                continue
            pfn = call.pfn(order)
            if pfn is not None and standing.fires():
                _ACTIONS[order.what](self, call, order, pfn)
                self._note(order, f"pfn {pfn:#x}")

    def _fits(self, standing: _Standing) -> bool:
        order, call = standing.order, self._call
        if not standing.open:
            return False
        if order.during and (call is None or call.name != order.during or (order.call and call.number != order.call)):
            return False
        if order.vm is not None and (call is None or call.vm is None or call.vm.number != order.vm):
            return False
        return order.vcpu is None or (call is not None and call.vcpu is not None and call.vcpu.id == order.vcpu)

    def _event(self, event: str) -> None:
        for standing in self._standing:
            standing.event(event)

    def _note(self, order: Order, where: str) -> None:
        if self._call is not None:
            self._call.fired = True
        if len(self.fired) < _FIRED_KEPT:
            self.fired.append(Fired(order, self._call.name if self._call else "", where))

    # What happens

    def _hold(self, call: Call, order: Order, pfn: int) -> None:
        by = GUP_PIN_COUNTING_BIAS if order.what is What.PIN else 1
        call.host.memmap.get(pfn, 1, by)
        until = self.calls[call.name] + order.hold - 1 if order.hold else 1 << 62
        self._held.append(_Held(call.host, pfn, by, call.name, until))

    def _poison(self, call: Call, order: Order, pfn: int) -> None:
        with suppress(KernelError):  # EBUSY: the page couldn't be taken out of use, and is bad all the same
            call.host.memory_failure(pfn)

    def _let_go(self, call: Call) -> None:
        """At the end of a call: those that were held for it."""
        for held in [h for h in self._held if h.name == call.name and h.until <= call.number]:
            held.host.memmap.put(held.pfn, 1, held.by)
            self._held.remove(held)


_ACTIONS: dict[What, Callable[[Faults, Call, Order, int], None]] = {
    What.REF: Faults._hold,
    What.PIN: Faults._hold,
    What.POISON: Faults._poison,
}


def _peek(host: Host, arg: UserPointer) -> bytes:
    """The first word of what an argument points to, without side effects that anybody would notice."""
    if isinstance(arg, int):
        mm = host.rt.current.mm
        entry = mm.ptes[arg >> PAGE_SHIFT]
        return mm.read(arg, 4) if entry is not None and entry[0] is not None and arg % 4 == 0 else b""
    return bytes(memoryview(arg)[:4])

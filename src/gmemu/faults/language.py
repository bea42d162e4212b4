# SPDX-License-Identifier: GPL-2.0-or-later
"""The language of orders: ``what [NAME] [key=value ...] [-> RESULT]``, the same in Python and on the command line.

psp LAUNCH_UPDATE gfn=0x800 -> INVALID_PAGE_STATE      the firmware refuses this page
seamcall MEM_PAGE_AUG nth=2 times=3 -> OPERAND_BUSY    the second, third and fourth time
alloc gmem-attributes p=0.25 seed=7 -> ENOMEM          each time with this probability
signal during=SNP_LAUNCH_UPDATE at=page nth=3          as the third page is come to
pin offset=0x2000 during=KVM_SET_MEMORY_ATTRIBUTES2    a device holds a page of the guest_memfd
call KVM_RUN p=0.1 times=all -> EINTR                  one in ten
rmp RMPUPDATE after=psp:LAUNCH_START before=KVM_RUN -> FAIL_INUSE
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from .names import EVENT_KINDS, call_names, names_of, results_of

__all__ = ["ALL", "At", "Order", "OrderError", "What"]

ALL = 1 << 62
"""`times=all`."""


class OrderError(ValueError):
    """An order that makes no sense; one sentence that says what would."""


class What(StrEnum):
    """What fails, or happens."""

    ALLOC = "alloc"
    """a kernel allocation, by its site"""
    PSP = "psp"
    """a command of the SNP firmware"""
    RMP = "rmp"
    """an instruction on the reverse map table"""
    SEAMCALL = "seamcall"
    """a leaf of the TDX module, called by the host"""
    TDCALL = "tdcall"
    """a leaf of the TDX module, called by a guest"""
    RMI = "rmi"
    """a command of the RMM (Arm CCA), called by the host"""
    EL2 = "el2"
    """a call of pKVM's hypervisor, by the host or a guest"""
    HOST = "host"
    """what the emulated host does otherwise than it ever would"""
    CALL = "call"
    """a system call, which fails before it has done anything"""
    SIGNAL = "signal"
    """the thread gets a signal, which is pending until its system call is over"""
    REF = "ref"
    """somebody takes a reference on a guest page for a moment"""
    PIN = "pin"
    """somebody pins a guest page for long"""
    POISON = "poison"
    """the memory of a guest page goes bad"""


class At(StrEnum):
    """Where in a call something happens."""

    START = "start"
    """as the call begins"""
    PAGE = "page"
    """as it comes to a page of guest_memfd, each time to another one"""
    LOCK = "lock"
    """as it takes a lock"""


NAMED = (What.ALLOC, What.PSP, What.RMP, What.SEAMCALL, What.TDCALL, What.RMI, What.EL2, What.HOST, What.CALL)
"""What has a name, and fails with a result; the others happen at some point of a call."""
ON_PAGES = (What.REF, What.PIN, What.POISON)


@dataclass(frozen=True)
class Order:
    """One order.  Raises `OrderError` if it can't be meant.

    Where: `gfn` and `pfn` name a page, `offset` (bytes) one of the guest_memfd that the call is on; `vm` is a number in
    order of creation from 0, `vcpu` an id.  When: the `nth` time (from 1) that all the rest fits, and `times` times from
    then on; with `p` each time only with that probability, drawn from `seed`; `during` a call, or only the `call`-th (from
    1) of its name; between the events `after` and `before`, each ``KIND:NAME`` or the name of a call; `at` for what happens
    in a call, `lock` the lock then.  `hold`: for how many calls of that name a page is held; 0: until `Faults.release`.
    """

    what: What
    name: str = ""
    result: str = ""
    gfn: int | None = None
    pfn: int | None = None
    offset: int | None = None
    vm: int | None = None
    vcpu: int | None = None
    nth: int = 1
    times: int = 1
    p: float = 1.0
    seed: int = 0
    during: str = ""
    call: int = 0
    after: str = ""
    before: str = ""
    at: At = At.START
    lock: str = ""
    hold: int = 1

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "what", What(self.what))
        except ValueError:
            raise OrderError(f"nothing called {self.what!r} can be ordered; there are {', '.join(What)}") from None
        try:
            object.__setattr__(self, "at", At(self.at))
        except ValueError:
            raise OrderError(f"at={self.at} isn't a point of a call; there are {', '.join(At)}") from None
        self._check_name()
        self._check_when()
        self._check_where()

    def _check_name(self) -> None:
        if self.what not in NAMED:
            if self.name or self.result:
                raise OrderError(f"{self.what} has no name and no result; say where and when by key=value")
            return
        known = names_of(self.what)
        if self.name not in known:
            raise OrderError(f"{self.what} has no {self.name or '(nothing)'!s}; there are {', '.join(known)}")
        results = results_of(self.what)
        if not self.result:
            raise OrderError(f"{self.what} {self.name} with what result?  Add -> and one of {', '.join(results)}")
        if self.result not in results and not self.result.startswith("0x"):
            raise OrderError(f"{self.what} can't come to {self.result}; it can to {', '.join(results)}")

    def _check_when(self) -> None:
        if self.nth < 1 or self.times < 1:
            raise OrderError(f"nth={self.nth} times={self.times}: both count from 1")
        if not 0 < self.p <= 1:
            raise OrderError(f"p={self.p} isn't a probability; give more than 0, at most 1")
        if self.call < 0 or self.hold < 0:
            raise OrderError("call and hold are counts")
        if self.call and not self.during:
            raise OrderError(f"call={self.call} of what?  Add during=NAME")
        if self.during:
            _check_call(self.during)
        for event in (self.after, self.before):
            if event:
                _check_event(event)
        if self.what in NAMED and self.at is not At.START:
            raise OrderError(f"{self.what} fails where it stands; at= is for {', '.join(w for w in What if w not in NAMED)}")
        if (self.at is At.LOCK) != bool(self.lock):
            raise OrderError("at=lock and lock=NAME go together")

    def _check_where(self) -> None:
        has_page = self.gfn is not None or self.offset is not None
        if self.what in ON_PAGES and not has_page:
            raise OrderError(f"{self.what} on which page?  Add gfn=N, or offset=BYTES in the call's guest_memfd")
        if self.offset is not None and (self.what not in ON_PAGES or self.gfn is not None):
            raise OrderError("offset= is for ref, pin and poison, instead of gfn=")
        if self.offset is not None and self.offset % 4096:
            raise OrderError(f"offset={self.offset:#x} isn't the start of a page")
        if self.pfn is not None and self.what not in (What.PSP, What.RMP, What.SEAMCALL, What.RMI, What.EL2):
            raise OrderError(f"{self.what} knows no pfn")
        if self.gfn is not None and self.what in (What.ALLOC, What.SIGNAL):
            raise OrderError(f"{self.what} isn't about a guest page")

    @classmethod
    def parse(cls, text: str) -> Order:
        """The order that `text` stands for.  Raises `OrderError`."""
        head, arrow, result = text.replace("→", "->").partition("->")
        words = head.split()
        if not words:
            raise OrderError("an empty order; begin with " + ", ".join(What))
        if arrow and len(result.split()) != 1:
            raise OrderError(f"after -> comes one result, not {result.strip() or 'nothing'!r}")
        names = [word for word in words[1:] if "=" not in word]
        if len(names) > 1:
            raise OrderError(f"{names[1]!r} isn't key=value")
        values = dict(_pair(word) for word in words[1:] if "=" in word)
        name = names[0] if names else ""
        return cls(words[0], name, result.strip(), **values)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [str(self.what), *([self.name] if self.name else [])]
        for field in fields(self)[3:]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={_shown(field.name, value)}")
        return " ".join([*parts, *(["->", self.result] if self.result else [])])


_NUMBERS = ("gfn", "pfn", "offset", "vm", "vcpu", "nth", "times", "seed", "call", "hold")
_KEYS = tuple(f.name for f in fields(Order)[3:])


def _pair(word: str) -> tuple[str, object]:
    key, _, value = word.partition("=")
    if key == "gpa":
        key, value = "gfn", str(_number(key, value) >> 12)
    if key not in _KEYS:
        raise OrderError(f"{key}= means nothing; the keys are gpa, {', '.join(_KEYS)}")
    if key == "times" and value == "all":
        return key, ALL
    if key in _NUMBERS:
        return key, _number(key, value)
    if key == "p":
        try:
            return key, float(value)
        except ValueError:
            raise OrderError(f"p={value} isn't a number") from None
    return key, value


def _number(key: str, value: str) -> int:
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if number < 0:
        raise OrderError(f"{key}={value} isn't a number; give it as 12 or 0xc")
    return number


def _shown(key: str, value: object) -> str:
    if key == "times" and value == ALL:
        return "all"
    if key in ("gfn", "pfn", "offset") and isinstance(value, int):
        return f"{value:#x}"
    return str(value)


def _check_call(name: str) -> None:
    if name not in call_names():
        near = [known for known in call_names() if name.upper() in known] or list(call_names())
        raise OrderError(f"there is no call {name}; there are {', '.join(near)}")


def _check_event(event: str) -> None:
    kind, colon, name = event.partition(":")
    if not colon:
        _check_call(event)
        return
    if kind not in EVENT_KINDS:
        raise OrderError(f"there are no events {kind}:NAME; there are {', '.join(EVENT_KINDS)}, and the names of calls")
    if name not in names_of(kind):
        raise OrderError(f"{kind} has no {name}; there are {', '.join(names_of(kind))}")

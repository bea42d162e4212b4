# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual processor of a realm: one stage 2 with two halves, private memory under the realm's key, RSI.

Between host and realm stands the RMM: to enter is RMI_REC_ENTER.  RSI commands and PSCI calls go to the RMM, which answers
them itself or leaves the realm for the host to have a say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...sync import Runtime
from ...uapi.kvm_arm64 import Psci, PsciReturn
from ...uapi.kvm_x86 import PFERR_PRESENT_MASK
from ...uapi.rmi import (
    RealmState,
    RecEnterFlags,
    RecExitReason,
    Rsi,
    RsiStatus,
)
from ..arm.cpu import ArmCpu
from ..cpu import Access, Exit, GuestFatal, PlainMemory, RecEnterFailed, RecExit, RmpFault
from .realm import Realm, Rec

if TYPE_CHECKING:
    from ..guest_cpu import GuestCpu
    from .rmm import Rmm

__all__ = ["RecCpu"]

_U64 = (1 << 64) - 1
_NOT_SUPPORTED = (PsciReturn.NOT_SUPPORTED & _U64, 0, 0, 0)
PSCI_1_1 = 1 << 16 | 1


class _RealmMemory(PlainMemory):
    """What the realm's processor writes to the protected half is under the realm's key; owners were checked by the walk."""

    def __init__(self, cpu: RecCpu) -> None:
        self._cpu = cpu

    def key(self, encrypted: bool) -> int:
        return self._cpu.realm.key if encrypted else 0


class RecCpu(ArmCpu):
    """`rec` is set once the realm is there.  `enter_flags` (`RecEnterFlags`) are for the next entry alone."""

    def __init__(self, rt: Runtime, rmm: Rmm) -> None:
        super().__init__(rt, rmm.memory, lambda gfn: None, encrypted_default=True)
        self.rmm = rmm
        self.protection = _RealmMemory(self)
        self.rec: Rec | None = None
        self.enter_flags = RecEnterFlags(0)

    @property
    def _rec(self) -> Rec:
        assert self.rec is not None
        return self.rec

    @property
    def realm(self) -> Realm:
        """The realm that it belongs to."""
        return self._rec.realm

    @property
    def shared_bit(self) -> int:
        """The bit of an IPA that puts it into the shared half."""
        return self.realm.protected_end

    # In and out

    def enter(self, completion: object = None) -> Exit:
        """RMI_REC_ENTER, and what the RMM has to finish before the realm goes on."""
        rec, flags = self._rec, self.enter_flags
        rec.tlb = self.tlb
        entered = self.rmm.rec_enter(rec.pfn, int(flags))
        if entered.status:
            return RecEnterFailed(entered.status, completion)
        self.enter_flags = RecEnterFlags(0)
        if rec.ripas_change is not None:
            completion = self.rmm.ripas_response(rec, bool(flags & RecEnterFlags.RIPAS_RESPONSE))
        try:
            return super().enter(completion)
        finally:
            self.rmm.rec_exit(rec.pfn)

    def interface(self) -> GuestCpu:
        from .guest_cpu import RealmGuestCpu

        return RealmGuestCpu(self)

    def fatal_exit(self, exception: GuestFatal) -> Exit:
        """As for any Arm guest: Linux panics and resets the machine; a realm is over then."""
        self.fatal = exception
        self.realm.state = RealmState.TERMINATED
        return RecExit(RecExitReason.PSCI, (Psci.SYSTEM_RESET,))

    # Memory

    def _try_access(self, access: Access, gfn: int, offset: int, encrypted: bool) -> bytes:
        """One access; a shared page is known to the TLB by its address in the shared half."""
        frame = gfn if encrypted else gfn | self.realm.rtt.shared_bit
        return super()._try_access(access, frame, offset, encrypted)

    def translate(self, gfn: int, write: bool, encrypted: bool) -> int:
        """The page frame at `gfn`.  Raises `RmpFault` for an abort that the host gets, `ExternalAbort` in the realm."""
        realm = self._rec.realm
        hit = self.tlb.entries.get(gfn)
        if hit is None or (write and not hit.writable):
            shared_gfn = gfn & ~realm.rtt.shared_bit
            hit = self.rmm.walk_protected(realm, gfn) if encrypted else self.rmm.walk_shared(realm, shared_gfn)
            if hit is None or (write and not hit.writable):
                raise RmpFault(PFERR_PRESENT_MASK if hit else 0)
            self.tlb.entries[gfn] = hit
        return hit.pfn

    # Calls

    def smc(self, function: int, *args: int) -> tuple[int, ...]:
        """SMC of a realm, which the RMM gets: X0 to X3.  Of RSI what goes by registers; PSCI; nothing else is supported."""
        if function in _PSCI:
            return self._psci(Psci(function), *args)
        if function == Rsi.VERSION:
            return self.rmm.rsi_version()
        if function == Rsi.IPA_STATE_GET:
            return self.rmm.rsi_ipa_state_get(self._rec, *args[:2])
        if function == Rsi.IPA_STATE_SET:
            return self.ipa_state_set(*(*args, 0, 0, 0, 0)[:4])
        if function == Rsi.HOST_CALL:
            return self.host_call(*args)
        return _NOT_SUPPORTED

    def ipa_state_set(self, base: int, top: int, ripas: int, flags: int = 0) -> tuple[int, ...]:
        """RSI_IPA_STATE_SET: status, the address that the change got to, and whether the host accepted."""
        status = self.rmm.rsi_ipa_state_set(self._rec, base, top, ripas, flags)
        if status:
            return status, 0, 0
        answer = self.leave(RecExit(RecExitReason.RIPAS_CHANGE, (base, top, ripas)))
        assert isinstance(answer, tuple)
        return answer

    def host_call(self, *values: int) -> tuple[int, ...]:
        """RSI_HOST_CALL with up to 31 registers: a status, and the registers as the host left them."""
        answer = self.leave(RecExit(RecExitReason.HOST_CALL, values))
        assert isinstance(answer, tuple)
        return (RsiStatus.SUCCESS, *answer)

    def _psci(self, function: Psci, *args: int) -> tuple[int, ...]:
        """What the RMM makes of PSCI: it knows itself what it can, and lets the host name the REC that is meant."""
        rec, realm = self._rec, self._rec.realm
        if function is Psci.VERSION:
            return PSCI_1_1, 0, 0, 0
        if function is Psci.FEATURES:
            return (0 if args[0] in _PSCI else _NOT_SUPPORTED[0]), 0, 0, 0
        if function in (Psci.SYSTEM_OFF, Psci.SYSTEM_RESET):
            realm.state = RealmState.TERMINATED
        elif function is Psci.CPU_OFF:
            rec.runnable = False
        else:
            refused = self._named(args[0])
            if refused is not None:
                return refused & _U64, 0, 0, 0
            rec.psci_pending = (function, args[0])
        self.leave(RecExit(RecExitReason.PSCI, (function, *args)))
        return rec.psci_status & _U64, 0, 0, 0

    def _named(self, mpidr: int) -> int | None:
        """What a call about the REC with `mpidr` is answered without asking the host; `None`: the host has to be asked."""
        from .realms import rec_mpidr

        realm = self._rec.realm
        index = next((rec.index for rec in realm.recs.values() if rec_mpidr(rec.index) == mpidr), None)
        if index is None:
            return PsciReturn.INVALID_PARAMETERS
        return PsciReturn.ALREADY_ON if index == self._rec.index else None


_PSCI = frozenset(map(int, Psci))

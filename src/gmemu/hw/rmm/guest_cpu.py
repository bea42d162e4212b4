# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scripted guest of a realm has in its hands.

An access is private unless it says `shared=True` or its address lies in the shared half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...uapi.rmi import Ripas, Rsi, RsiResponse, RsiStatus, rsi_realm_config
from ..arm.guest_cpu import ArmGuestCpu
from ..memory import PAGE_SIZE

if TYPE_CHECKING:
    from .cpu import RecCpu

__all__ = ["IpaStateChange", "RealmGuestCpu"]


class IpaStateChange(NamedTuple):
    """How RSI_IPA_STATE_SET ended: a status, the address that the change got to, and the host's answer."""

    status: int
    new_base: int
    response: int


class RealmGuestCpu(ArmGuestCpu):
    """A realm's view of its processor."""

    def __init__(self, cpu: RecCpu) -> None:
        super().__init__(cpu)
        self._rec_cpu = cpu

    @property
    def shared_bit(self) -> int:
        """The bit of an address that puts it into the shared half."""
        return self._rec_cpu.shared_bit

    # Memory

    def load(self, gpa: int, length: int = 8, *, shared: bool = False) -> bytes:
        shared = shared or bool(gpa & self.shared_bit)
        return self._rec_cpu.load(gpa & ~self.shared_bit, length, not shared)

    def store(self, gpa: int, data: bytes, *, shared: bool = False) -> None:
        shared = shared or bool(gpa & self.shared_bit)
        self._rec_cpu.store(gpa & ~self.shared_bit, data, not shared)

    # RSI

    def measurement_read(self, index: int) -> bytes:
        """RSI_MEASUREMENT_READ: the RIM (0) or a REM (1 to 4), 64 bytes.  Simulated, as everything is."""
        status, value = self._rec_cpu.rmm.rsi_measurement_read(self._rec_cpu._rec, index)
        if status:
            raise ValueError(f"RSI_MEASUREMENT_READ of {index}: {RsiStatus(status).name}; there are 0 to 4")
        return value

    def measurement_extend(self, index: int, data: bytes) -> int:
        """RSI_MEASUREMENT_EXTEND of REM 1 to 4 by up to 64 bytes: an RSI status."""
        return self._rec_cpu.rmm.rsi_measurement_extend(self._rec_cpu._rec, index, data)[0]

    def realm_config(self, gpa: int) -> int:
        """RSI_REALM_CONFIG: the realm's configuration is written into its page at `gpa`.  An RSI status."""
        if gpa % PAGE_SIZE or gpa & self.shared_bit:
            return RsiStatus.ERROR_INPUT
        self.store(gpa, self._rec_cpu.rmm.rsi_realm_config(self._rec_cpu._rec).pack())
        return RsiStatus.SUCCESS

    def read_config(self, gpa: int) -> rsi_realm_config:
        """What `realm_config` wrote there."""
        return rsi_realm_config.unpack_from(self.load(gpa, rsi_realm_config.SIZE))

    def ipa_state_get(self, base: int, top: int) -> tuple[int, int, int]:
        """RSI_IPA_STATE_GET: status, where the state at `base` ends, and what it is (`Ripas`)."""
        status, end, ripas = self.smc(Rsi.IPA_STATE_GET, base, top)
        return status, end, ripas

    def ipa_state_set(self, base: int, top: int, ripas: Ripas, *, change_destroyed: bool = True) -> IpaStateChange:
        """RSI_IPA_STATE_SET, once: ask for [base, top) to become `ripas`."""
        return IpaStateChange(*self.smc(Rsi.IPA_STATE_SET, base, top, ripas, int(change_destroyed)))

    def host_call(self, *values: int) -> tuple[int, ...]:
        """RSI_HOST_CALL: a status, and the registers as the host left them."""
        return self.smc(Rsi.HOST_CALL, *values)

    # As Linux does it

    def set_memory_range(self, base: int, top: int, ripas: Ripas, *, change_destroyed: bool) -> bool:
        """rsi_set_memory_range(): until all of it is changed.  False: the host rejected it, or RMM or host misbehaved."""
        while base < top:
            change = self.ipa_state_set(base, top, ripas, change_destroyed=change_destroyed)
            if change.status or change.response == RsiResponse.REJECT or not base < change.new_base <= top:
                return False
            base = change.new_base
        return True

    def accept(self, gpa: int, size: int) -> None:
        """What a Linux guest does to its memory when it boots: it must be RAM, and not have been destroyed.

        A refusal ends the guest.
        """
        if not self.set_memory_range(gpa, gpa + size, Ripas.RAM, change_destroyed=False):
            self.terminate()

    def convert(self, gpa: int, size: int, *, private: bool) -> None:
        """Change `size` bytes at `gpa` as a Linux realm does: to RAM or to EMPTY.  A refusal ends the guest."""
        ripas = Ripas.RAM if private else Ripas.EMPTY
        if not self.set_memory_range(gpa, gpa + size, ripas, change_destroyed=True):
            self.terminate()

# SPDX-License-Identifier: GPL-2.0-or-later
"""RMI commands about realms and RECs."""

from __future__ import annotations

from ...uapi.kvm_arm64 import Psci, PsciReturn
from ...uapi.rmi import (
    GranuleState,
    HashAlgorithm,
    RealmState,
    RecEnterFlags,
    RecFlags,
    Rmi,
    RmiStatus,
    rmi_realm_params,
    rmi_rec_params,
    rmi_status,
)
from ..memory import PAGE_SHIFT, PAGE_SIZE
from .core import OK, RmiResult, RmmCore, command, error
from .measurement import NR_REMS, Rem, Rim
from .realm import Realm, Rec
from .rtt import LAST_LEVEL, MAX_ROOTS, Rtt, root_tables

__all__ = ["RealmCommands", "rec_mpidr"]

MIN_IPA_BITS = 32


def rec_mpidr(index: int) -> int:
    """MPIDR of the REC that is the `index`th to be created: they come in this order, with no gaps."""
    return index & 0xF | (index >> 4 & 0xFF) << 8 | (index >> 12 & 0xFF) << 16


class RealmCommands(RmmCore):
    """RMI_REALM_*, RMI_REC_*, RMI_PSCI_COMPLETE."""

    # Realms

    @command(Rmi.REALM_CREATE, granules=(0, 1))
    def realm_create(self, rd: int, params: int) -> RmiResult:
        """RMI_REALM_CREATE from the parameters in page `params`, which is the host's: the realm is NEW."""
        if not self.host_page(params) or not self.delegated(rd):
            return error(RmiStatus.ERROR_INPUT)
        wanted = rmi_realm_params.unpack_from(self.memory.read(params << PAGE_SHIFT, PAGE_SIZE))
        roots = self._roots(wanted)
        if roots is None or rd in roots or not self.delegated(roots[0], len(roots)):
            return error(RmiStatus.ERROR_INPUT)
        algorithm = HashAlgorithm(wanted.hash_algo)
        realm = Realm(
            rd,
            wanted.vmid,
            Rtt(wanted.s2sz, wanted.rtt_level_start, roots),
            Rim(wanted, measures_ripas=self.info.version < (2, 0)),
            algorithm,
            wanted.rpv,
            [Rem(algorithm) for _ in range(NR_REMS)],
        )
        self.take(rd, 1, GranuleState.RD, realm)
        self.take(roots[0], len(roots), GranuleState.RTT, realm)
        self.realms[rd] = realm
        return OK

    def _roots(self, params: rmi_realm_params) -> list[int] | None:
        """The pages of the root tables; `None` if the parameters aren't such as a realm can have."""
        info, level, base = self.info, params.rtt_level_start, params.rtt_base
        sound = (
            not params.flags
            and MIN_IPA_BITS <= params.s2sz <= info.max_ipa_bits
            and params.num_bps < info.num_bps
            and params.num_wps < info.num_wps
            and params.hash_algo in info.hashes
            and params.vmid
            and all(params.vmid != realm.vmid for realm in self.realms.values())
            and 0 <= level < LAST_LEVEL
        )
        if not sound:
            return None
        count = root_tables(params.s2sz, level)
        if count > MAX_ROOTS or count != params.rtt_num_start or base % (count << PAGE_SHIFT):
            return None
        return list(range(base >> PAGE_SHIFT, (base >> PAGE_SHIFT) + count))

    @command(Rmi.REALM_ACTIVATE)
    def realm_activate(self, rd: int) -> RmiResult:
        """RMI_REALM_ACTIVATE: the RIM is final, RECs may run."""
        realm = self.realm(rd)
        if realm is None:
            return error(RmiStatus.ERROR_INPUT)
        if realm.state is not RealmState.NEW:
            return error(RmiStatus.ERROR_REALM)
        realm.state = RealmState.ACTIVE
        return OK

    @command(Rmi.REALM_TERMINATE)
    def realm_terminate(self, rd: int) -> RmiResult:
        """RMI_REALM_TERMINATE: no REC runs any more; what the realm has can be taken back."""
        realm = self.realm(rd)
        if realm is None:
            return error(RmiStatus.ERROR_INPUT)
        realm.state = RealmState.TERMINATED
        return OK

    @command(Rmi.REALM_DESTROY)
    def realm_destroy(self, rd: int) -> RmiResult:
        """RMI_REALM_DESTROY: RD and root tables are free.  ERROR_REALM while it has RECs, tables or memory."""
        realm = self.realm(rd)
        if realm is None:
            return error(RmiStatus.ERROR_INPUT)
        if realm.recs or realm.rtt.is_live:
            return error(RmiStatus.ERROR_REALM)
        self.give_back(realm.rtt.roots[0], len(realm.rtt.roots))
        self.give_back(rd)
        del self.realms[rd]
        return OK

    # RECs

    @command(Rmi.REC_AUX_COUNT)
    def rec_aux_count(self, rd: int) -> RmiResult:
        """RMI_REC_AUX_COUNT: how many more granules each REC needs."""
        if self.realm(rd) is None:
            return error(RmiStatus.ERROR_INPUT)
        return RmiResult(RmiStatus.SUCCESS, (self.info.rec_aux,))

    @command(Rmi.REC_CREATE, what=1, granules=(0, 1, 2))
    def rec_create(self, rd: int, rec: int, params: int) -> RmiResult:
        """RMI_REC_CREATE from the parameters in page `params`, which is the host's.  Runnable ones enter the RIM."""
        if not self.host_page(params) or not self.delegated(rec):
            return error(RmiStatus.ERROR_INPUT)
        realm = self.realm(rd)
        if realm is None:
            return error(RmiStatus.ERROR_INPUT)
        if realm.state is not RealmState.NEW:
            return error(RmiStatus.ERROR_REALM)
        wanted = rmi_rec_params.unpack_from(self.memory.read(params << PAGE_SHIFT, PAGE_SIZE))
        aux = [address >> PAGE_SHIFT for address in wanted.aux[: wanted.num_aux]]
        if (
            wanted.mpidr != rec_mpidr(realm.next_rec)
            or wanted.flags & ~int(RecFlags.RUNNABLE)
            or wanted.num_aux != self.info.rec_aux
            or rec in aux
            or len(set(aux)) != len(aux)
            or not all(self.delegated(pfn) for pfn in aux)
        ):
            return error(RmiStatus.ERROR_INPUT)
        new = Rec(rec, realm, realm.next_rec, wanted, bool(wanted.flags & RecFlags.RUNNABLE), aux)
        realm.next_rec += 1
        realm.rim.rec(wanted)
        self.take(rec, 1, GranuleState.REC, realm)
        for pfn in aux:
            self.take(pfn, 1, GranuleState.REC_AUX, realm)
        self.recs[rec] = realm.recs[rec] = new
        return OK

    @command(Rmi.REC_DESTROY)
    def rec_destroy(self, rec: int) -> RmiResult:
        """RMI_REC_DESTROY: its granules are free."""
        gone = self.recs.get(rec)
        if gone is None:
            return error(RmiStatus.ERROR_INPUT)
        if gone.running:
            return error(RmiStatus.ERROR_REC)
        del self.recs[rec], gone.realm.recs[rec]
        for pfn in (rec, *gone.aux):
            self.give_back(pfn)
        return OK

    @command(Rmi.REC_ENTER)
    def rec_enter(self, rec: int, flags: int = 0) -> RmiResult:
        """RMI_REC_ENTER, up to where the guest runs; `rec_exit` follows."""
        which = self.recs.get(rec)
        if which is None:
            return error(RmiStatus.ERROR_INPUT)
        if which.running:
            return error(RmiStatus.ERROR_REC)
        status = self.runnable(which.realm)
        if status:
            return RmiResult(status)
        rejects = flags & RecEnterFlags.RIPAS_RESPONSE
        if not which.runnable or which.psci_pending is not None or (rejects and which.ripas_change is None):
            return RmiResult(rmi_status(RmiStatus.ERROR_REC))
        which.running = True
        return OK

    def rec_exit(self, rec: int) -> None:
        """The guest is left."""
        which = self.recs.get(rec)
        if which is not None:
            which.running = False

    @command(Rmi.PSCI_COMPLETE, granules=(0, 1))
    def psci_complete(self, calling: int, target: int, status: int) -> RmiResult:
        """RMI_PSCI_COMPLETE: the host names the REC that a PSCI call was about, and whether it consents (0, or DENIED)."""
        caller, named = self.recs.get(calling), self.recs.get(target)
        if caller is None or named is None or caller is named or caller.realm is not named.realm:
            return error(RmiStatus.ERROR_INPUT)
        if caller.psci_pending is None or caller.psci_pending[1] != rec_mpidr(named.index):
            return error(RmiStatus.ERROR_INPUT)
        function = caller.psci_pending[0]
        if function == Psci.CPU_ON:
            if status not in (PsciReturn.SUCCESS, PsciReturn.DENIED):
                return error(RmiStatus.ERROR_INPUT)
            caller.psci_status = PsciReturn.ALREADY_ON if named.runnable else PsciReturn(status)
            named.runnable = named.runnable or status == PsciReturn.SUCCESS
        else:
            caller.psci_status = 0 if named.runnable else 1
        caller.psci_pending = None
        return OK

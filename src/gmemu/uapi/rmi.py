# SPDX-License-Identifier: GPL-2.0-or-later
"""The Realm Management Monitor's interfaces: RMI for the host, RSI for realms (Arm DEN0137, 1.0 and 2.0 beta).

Where the two versions name a command differently it's known by its name of 2.0; the other is an alias, or stands beside it
if it also has another number.  Every structure is what the specification calls an RMI type; addresses are bytes.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from .layout import Struct, char, s64, u32, u64

__all__ = [
    "RMI_ERROR_STATUS_MASK",
    "RMI_OP_CAN_CANCEL",
    "GranuleState",
    "HashAlgorithm",
    "Hipas",
    "MemCategory",
    "OpMemRequest",
    "RealmState",
    "RecEnterFlags",
    "RecExitReason",
    "RecFlags",
    "Ripas",
    "Rmi",
    "RmiStatus",
    "Rsi",
    "RsiResponse",
    "RsiStatus",
    "TrackingState",
    "addr_range_desc",
    "addr_range_of",
    "rmi_index",
    "rmi_realm_params",
    "rmi_rec_params",
    "rmi_status",
    "rmi_text",
    "rsi_realm_config",
]

RMI_ERROR_STATUS_MASK = 0xFF
_RMI = 0xC400_0000
_RSI = 0xC400_0190


class Rmi(IntEnum):
    """Function ids of RMI commands."""

    VERSION = _RMI + 0x150
    GRANULE_DELEGATE = _RMI + 0x151
    """1.0"""
    GRANULE_UNDELEGATE = _RMI + 0x152
    """1.0"""
    RTT_DATA_MAP_INIT = _RMI + 0x153
    DATA_CREATE = _RMI + 0x153
    DATA_CREATE_UNKNOWN = _RMI + 0x154
    """1.0"""
    DATA_DESTROY = _RMI + 0x155
    """1.0"""
    REALM_ACTIVATE = _RMI + 0x157
    REALM_CREATE = _RMI + 0x158
    REALM_DESTROY = _RMI + 0x159
    REC_CREATE = _RMI + 0x15A
    REC_DESTROY = _RMI + 0x15B
    REC_ENTER = _RMI + 0x15C
    RTT_CREATE = _RMI + 0x15D
    RTT_DESTROY = _RMI + 0x15E
    RTT_MAP_UNPROTECTED = _RMI + 0x15F
    """1.0"""
    RTT_READ_ENTRY = _RMI + 0x161
    RTT_UNMAP_UNPROTECTED = _RMI + 0x162
    """1.0"""
    PSCI_COMPLETE = _RMI + 0x164
    FEATURES = _RMI + 0x165
    RTT_FOLD = _RMI + 0x166
    REC_AUX_COUNT = _RMI + 0x167
    """1.0"""
    RTT_INIT_RIPAS = _RMI + 0x168
    RTT_SET_RIPAS = _RMI + 0x169
    TRACKING_GET = _RMI + 0x1E1
    TRACKING_SET = _RMI + 0x1E3
    GRANULE_RANGE_DELEGATE = _RMI + 0x1F1
    GRANULE_RANGE_UNDELEGATE = _RMI + 0x1F2
    RTT_DATA_MAP = _RMI + 0x1F5
    RTT_DATA_UNMAP = _RMI + 0x1F6
    RTT_UNPROT_MAP = _RMI + 0x1FB
    RTT_UNPROT_UNMAP = _RMI + 0x1FC
    REALM_TERMINATE = _RMI + 0x201
    RMM_ACTIVATE = _RMI + 0x202
    OP_CONTINUE = _RMI + 0x203
    OP_MEM_DONATE = _RMI + 0x208
    OP_MEM_RECLAIM = _RMI + 0x209
    OP_CANCEL = _RMI + 0x20A


class RmiStatus(IntEnum):
    """The low eight bits of what a command answers; the next eight are an index, such as the level where a walk ended."""

    SUCCESS = 0
    ERROR_INPUT = 1
    ERROR_REALM = 2
    ERROR_REC = 3
    ERROR_RTT = 4
    ERROR_NOT_SUPPORTED = 5
    ERROR_DEVICE = 6
    ERROR_RTT_AUX = 7
    BUSY = 10
    ERROR_GLOBAL = 11
    ERROR_TRACKING = 12
    INCOMPLETE = 13
    BLOCKED = 14
    ERROR_GPT = 15
    ERROR_GRANULE = 16


def rmi_status(code: int, index: int = 0) -> int:
    """A status with its index."""
    return int(code) | (index & 0xFF) << 8


def rmi_index(status: int) -> int:
    """The index of a status: for ERROR_RTT the level where the walk ended, -1 included."""
    index = status >> 8 & 0xFF
    return index - 0x100 if index & 0x80 else index


def rmi_text(status: int) -> str:
    """A status for people, such as "ERROR_RTT, index 2"."""
    code = status & RMI_ERROR_STATUS_MASK
    name = RmiStatus(code).name if code in _CODES else f"{code:#x}"
    return f"{name}, index {rmi_index(status)}" if status >> 8 else name


_CODES = frozenset(map(int, RmiStatus))


class GranuleState(IntEnum):
    """What the RMM uses a granule of 4 KiB for.  NS (in 1.0: UNDELEGATED) is the host's."""

    NS = 0
    DELEGATED = 1
    RD = 2
    REC = 3
    REC_AUX = 4
    DATA = 5
    RTT = 6
    PDEV = 7
    PDEV_AUX = 8
    VDEV = 9
    VDEV_AUX = 10
    PARTIAL = 11
    INTERNAL = 12
    PSMMU_ST_L2 = 13


class TrackingState(IntEnum):
    """How the RMM tracks a region of granules (2.0): not at all, each for itself, or all of them as one.  RESERVED has no
    memory."""

    RESERVED = 0
    NONE = 1
    FINE = 2
    COARSE = 3


class MemCategory(IntEnum):
    """What kind of memory a region is of (2.0)."""

    CONVENTIONAL = 0
    DEV_NCOH = 1
    DEV_COH = 2
    NONE = 3


class OpMemRequest(IntEnum):
    """What an operation that is INCOMPLETE wants next, in bits 9:8 of its status (2.0): to be continued, pages, or that
    pages are fetched."""

    NONE = 0
    DONATE = 1
    RECLAIM = 2


RMI_OP_CAN_CANCEL = 1 << 10
"""In the status of an operation that is INCOMPLETE: RMI_OP_CANCEL would undo it."""


def addr_range_desc(pfn: int, count: int = 1) -> int:
    """An entry of the lists that OP_MEM_DONATE reads and OP_MEM_RECLAIM writes: `count` granules from page frame `pfn`."""
    return pfn << 12 | count << 2


def addr_range_of(descriptor: int) -> tuple[int, int]:
    """(page frame, count of granules) of such an entry; bits 1:0 say what blocks are counted, bits 63:52 don't count."""
    return descriptor >> 12 & (1 << 40) - 1, (descriptor >> 2 & 0x3FF) << 9 * (descriptor & 3)


class Hipas(IntEnum):
    """State of an RTT entry as the host drives it (host IPA state)."""

    UNASSIGNED = 0
    ASSIGNED = 1
    TABLE = 2
    ASSIGNED_DEV = 3


class Ripas(IntEnum):
    """State of an IPA as the realm sees it (realm IPA state)."""

    EMPTY = 0
    RAM = 1
    DESTROYED = 2
    DEV = 3


class RealmState(IntEnum):
    """Life of a realm.  TERMINATED is also what PSCI SYSTEM_OFF leads to."""

    NEW = 0
    ACTIVE = 1
    TERMINATED = 2


class HashAlgorithm(IntEnum):
    """RmiHashAlgorithm.  SHA_384 came with 2.0."""

    SHA_256 = 0
    SHA_512 = 1
    SHA_384 = 2


class RecFlags(IntFlag):
    """RmiRecCreateFlags."""

    RUNNABLE = 1


class RecEnterFlags(IntFlag):
    """RmiRecEnterFlags."""

    EMUL_MMIO = 1 << 0
    INJECT_SEA = 1 << 1
    TRAP_WFI = 1 << 2
    TRAP_WFE = 1 << 3
    RIPAS_RESPONSE = 1 << 4
    """The host rejects what is left of a RIPAS change."""


class RecExitReason(IntEnum):
    """RmiRecExitReason."""

    SYNC = 0
    IRQ = 1
    FIQ = 2
    PSCI = 3
    RIPAS_CHANGE = 4
    HOST_CALL = 5
    SERROR = 6
    S2AP_CHANGE = 7


class Rsi(IntEnum):
    """Function ids of RSI commands."""

    VERSION = _RSI + 0
    FEATURES = _RSI + 1
    MEASUREMENT_READ = _RSI + 2
    MEASUREMENT_EXTEND = _RSI + 3
    REALM_CONFIG = _RSI + 6
    IPA_STATE_SET = _RSI + 7
    IPA_STATE_GET = _RSI + 8
    HOST_CALL = _RSI + 9


class RsiStatus(IntEnum):
    """What RSI commands answer."""

    SUCCESS = 0
    ERROR_INPUT = 1
    ERROR_STATE = 2
    INCOMPLETE = 3
    ERROR_UNKNOWN = 4


class RsiResponse(IntEnum):
    """What became of an RSI_IPA_STATE_SET."""

    ACCEPT = 0
    REJECT = 1


class rmi_realm_params(Struct):
    """RmiRealmParams, one granule.  Numbers of breakpoints and watchpoints are stored minus one."""

    flags: int = u64()
    s2sz: int = u64()
    sve_vl: int = u64()
    num_bps: int = u64()
    num_wps: int = u64()
    pmu_num_ctrs: int = u64()
    hash_algo: int = u64()
    pad0: bytes = char(0x400 - 0x38)
    rpv: bytes = char(64)
    """Realm personalisation value."""
    pad1: bytes = char(0x800 - 0x440)
    vmid: int = u64()
    rtt_base: int = u64()
    rtt_level_start: int = s64()
    rtt_num_start: int = u32()
    pad2: bytes = char(0x1000 - 0x81C)


class rmi_rec_params(Struct):
    """RmiRecParams, one granule."""

    flags: int = u64()
    pad0: bytes = char(0x100 - 8)
    mpidr: int = u64()
    pad1: bytes = char(0x200 - 0x108)
    pc: int = u64()
    pad2: bytes = char(0x300 - 0x208)
    gprs: tuple[int, ...] = u64(8)
    pad3: bytes = char(0x800 - 0x340)
    num_aux: int = u64()
    aux: tuple[int, ...] = u64(16)
    pad4: bytes = char(0x1000 - 0x888)


class rsi_realm_config(Struct):
    """RsiRealmConfig, one granule: width of the address space (bits), hash algorithm, personalisation value."""

    ipa_width: int = u64()
    hash_algo: int = u64()
    pad0: bytes = char(0x200 - 0x10)
    rpv: bytes = char(64)
    pad1: bytes = char(0x1000 - 0x240)

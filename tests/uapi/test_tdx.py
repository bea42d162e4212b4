# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and numbers of TDX's structures and status codes."""

import pytest

from gmemu.uapi.layout import Struct
from gmemu.uapi.tdx import (
    TdxLeaf,
    TdxOperand,
    TdxStatus,
    kvm_tdx_capabilities,
    kvm_tdx_cmd,
    kvm_tdx_init_mem_region,
    kvm_tdx_init_vm,
    status_of,
    status_text,
    td_params,
    tdx_error,
    tdx_non_recoverable,
    tdx_operand,
    tdx_operand_busy,
)


@pytest.mark.parametrize(
    ("struct", "size", "offsets"),
    [
        (kvm_tdx_cmd, 24, {"id": 0, "flags": 4, "data": 8, "hw_error": 16}),
        (kvm_tdx_capabilities, 2056, {"supported_attrs": 0, "user_tdvmcallinfo_1_r11": 24, "reserved": 48, "cpuid": 2048}),
        (kvm_tdx_init_vm, 264, {"xfam": 8, "mrconfigid": 16, "mrownerconfig": 112, "reserved": 160, "cpuid": 256}),
        (kvm_tdx_init_mem_region, 24, {"source_addr": 0, "gpa": 8, "nr_pages": 16}),
        (
            td_params,
            1024,
            {"max_vcpus": 16, "eptp_controls": 24, "tsc_frequency": 40, "mrconfigid": 80, "cpuid_values": 256},
        ),
    ],
)
def test_layout(struct: type[Struct], size: int, offsets: dict[str, int]) -> None:
    assert size == struct.SIZE
    assert offsets.items() <= struct.OFFSETS.items()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("OPERAND_INVALID", 0xC0000100),
        ("OPERAND_BUSY", 0x80000200),
        ("PREVIOUS_TLB_EPOCH_BUSY", 0x80000201),
        ("OPERAND_BUSY_HOST_PRIORITY", 0x80000204),
        ("PAGE_METADATA_INCORRECT", 0xC0000300),
        ("TD_FATAL", 0xE0000604),
        ("OP_STATE_INCORRECT", 0xC0000608),
        ("NO_VCPUS", 0xC0000609),
        ("EPT_WALK_FAILED", 0xC0000B00),
        ("GPA_RANGE_ALREADY_BLOCKED", 0x00000B07),
        ("TLB_TRACKING_NOT_DONE", 0xC0000B08),
        ("PAGE_ALREADY_ACCEPTED", 0x00000B0A),
        ("PAGE_SIZE_MISMATCH", 0xC0000B0B),
        ("NON_RECOVERABLE_TD", 0x40000002),
    ],
)
def test_status_codes(name: str, code: int) -> None:
    assert TdxStatus[name] == code << 32


def test_parts_of_a_status() -> None:
    status = TdxStatus.OPERAND_BUSY | TdxOperand.SEPT
    assert tdx_error(status)
    assert tdx_operand(status) == 0x92
    assert tdx_operand_busy(status)
    assert status_of(status) is TdxStatus.OPERAND_BUSY
    assert not tdx_non_recoverable(status)
    assert not tdx_error(TdxStatus.PAGE_ALREADY_ACCEPTED | 1)
    assert tdx_non_recoverable(TdxStatus.OPERAND_INVALID)
    assert status_text(status) == "OPERAND_BUSY (0x8000020000000092)"
    assert "unknown" in status_text(0x1234 << 32)


def test_operands_and_leaves_that_kvm_names() -> None:
    assert (TdxOperand.RCX, TdxOperand.TDR, TdxOperand.SEPT, TdxOperand.TD_EPOCH) == (1, 0x80, 0x92, 0xA9)
    assert (TdxLeaf.MEM_PAGE_ADD, TdxLeaf.MEM_SEPT_ADD, TdxLeaf.MR_EXTEND, TdxLeaf.PHYMEM_PAGE_WBINVD) == (2, 3, 16, 41)

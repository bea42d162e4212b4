# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gmemu.uapi import sev
from gmemu.uapi.layout import Struct
from gmemu.uapi.sev import PspCommand, PspStatus, SevCmd, SnpPageType

SIZES = {
    "kvm_sev_cmd": 24,
    "kvm_sev_init": 48,
    "kvm_sev_snp_launch_finish": 88,
    "kvm_sev_snp_launch_start": 64,
    "kvm_sev_snp_launch_update": 64,
    "secrets_os_area": 96,
    "sev_es_save_area": 1648,
    "snp_cpuid_entry": 48,
    "snp_cpuid_table": 16,
    "snp_ecdsa_pubkey": 0x404,
    "snp_ecdsa_sig": 512,
    "snp_id_auth": 4096,
    "snp_id_block": 96,
    "snp_secrets_page": 4096,
    "vmcb_seg": 16,
}

OFFSETS = {
    "kvm_sev_cmd": {"id": 0, "pad0": 4, "data": 8, "error": 16, "sev_fd": 20},
    "kvm_sev_init": {"vmsa_features": 0, "flags": 8, "ghcb_version": 12, "pad1": 14, "pad2": 16},
    "kvm_sev_snp_launch_start": {"policy": 0, "gosvw": 8, "flags": 24, "pad0": 26, "pad1": 32},
    "kvm_sev_snp_launch_update": {
        "gfn_start": 0,
        "uaddr": 8,
        "len": 16,
        "type": 24,
        "pad0": 25,
        "flags": 26,
        "pad1": 28,
        "pad2": 32,
    },
    "kvm_sev_snp_launch_finish": {
        "id_block_uaddr": 0,
        "id_auth_uaddr": 8,
        "id_block_en": 16,
        "auth_key_en": 17,
        "vcek_disabled": 18,
        "host_data": 19,
        "pad0": 51,
        "flags": 54,
        "pad1": 56,
    },
    "snp_id_block": {"ld": 0, "family_id": 48, "image_id": 64, "version": 80, "guest_svn": 84, "policy": 88},
    "vmcb_seg": {"selector": 0, "attrib": 2, "limit": 4, "base": 8},
    "snp_cpuid_entry": {
        "eax_in": 0,
        "ecx_in": 4,
        "xcr0_in": 8,
        "xss_in": 16,
        "eax": 24,
        "ebx": 28,
        "ecx": 32,
        "edx": 36,
        "reserved": 40,
    },
}

SOME_OFFSETS = {
    "snp_id_auth": {"id_key_algo": 0, "auth_key_algo": 4, "id_block_sig": 0x40, "id_key": 0x240, "id_key_sig": 0x680}
    | {"author_key": 0x880},
    "snp_secrets_page": {"version": 0, "imien": 4, "fms": 8, "gosvw": 0x10, "vmpck0": 0x20, "vmpck3": 0x80, "os_area": 0xA0}
    | {"vmsa_tweak_bitmap": 0x100, "svsm_base": 0x140, "svsm_guest_vmpl": 0x15C, "tsc_factor": 0x160},
    "sev_es_save_area": {"es": 0, "cs": 0x10, "ss": 0x20, "ds": 0x30, "fs": 0x40, "gs": 0x50, "gdtr": 0x60, "ldtr": 0x70}
    | {"idtr": 0x80, "tr": 0x90, "vmpl": 0xCA, "cpl": 0xCB, "efer": 0xD0, "xss": 0x140, "cr4": 0x148, "cr0": 0x158}
    | {"dr7": 0x160, "dr6": 0x168, "rflags": 0x170, "rip": 0x178, "rsp": 0x1D8, "rax": 0x1F8, "g_pat": 0x268}
    | {"tsc_scale": 0x2F0, "tsc_offset": 0x2F8, "rdx": 0x310, "sev_features": 0x3B0, "xcr0": 0x3E8, "x87_dp": 0x400}
    | {"mxcsr": 0x408, "x87_fcw": 0x410, "fpreg_x87": 0x420, "fpreg_xmm": 0x470, "fpreg_ymm": 0x570},
}


def test_sizes() -> None:
    declared = {n: v.SIZE for n in sev.__all__ if isinstance(v := getattr(sev, n), type) and issubclass(v, Struct)}
    assert declared == SIZES


@pytest.mark.parametrize("name", OFFSETS)
def test_offsets(name: str) -> None:
    declared = getattr(sev, name).OFFSETS
    assert declared == OFFSETS[name]


@pytest.mark.parametrize("name", SOME_OFFSETS)
def test_some_offsets(name: str) -> None:
    cls: type[Struct] = getattr(sev, name)
    assert {field: cls.OFFSETS[field] for field in SOME_OFFSETS[name]} == SOME_OFFSETS[name]


def test_reserved_members_of_the_vmsa_are_named_after_where_they_are() -> None:
    reserved = {n: at for n, at in sev.sev_es_save_area.OFFSETS.items() if n.startswith("reserved_")}
    assert reserved == {name: int(name.removeprefix("reserved_"), 16) for name in reserved}


def test_blob_sizes_agree_with_the_uapi() -> None:
    assert sev.KVM_SEV_SNP_ID_BLOCK_SIZE == sev.snp_id_block.SIZE
    assert sev.KVM_SEV_SNP_ID_AUTH_SIZE == sev.snp_id_auth.SIZE
    assert sev.snp_cpuid_table.SIZE + sev.SNP_CPUID_COUNT_MAX * sev.snp_cpuid_entry.SIZE <= 4096


def test_commands() -> None:
    assert [c.value for c in SevCmd] == [*range(23), *range(100, 104)]
    numbers = {
        "GET_ATTESTATION_REPORT": 20,
        "INIT2": 22,
        "SNP_LAUNCH_START": 100,
        "SNP_LAUNCH_UPDATE": 101,
        "SNP_LAUNCH_FINISH": 102,
        "SNP_ENABLE_REQ_CERTS": 103,
    }
    assert {name: SevCmd[name].value for name in numbers} == numbers


def test_page_types() -> None:
    assert {t.name: t.value for t in SnpPageType} == {
        "NORMAL": 1,
        "VMSA": 2,
        "ZERO": 3,
        "UNMEASURED": 4,
        "SECRETS": 5,
        "CPUID": 6,
    }


def test_status_codes() -> None:
    codes = {
        "SUCCESS": 0,
        "INVALID_PLATFORM_STATE": 1,
        "INVALID_GUEST_STATE": 2,
        "INVALID_CONFIG": 3,
        "INVALID_LENGTH": 4,
        "POLICY_FAILURE": 7,
        "INACTIVE": 8,
        "INVALID_ADDRESS": 9,
        "BAD_SIGNATURE": 0xA,
        "BAD_MEASUREMENT": 0xB,
        "INVALID_ASID": 0xD,
        "WBINVD_REQUIRED": 0xE,
        "DFFLUSH_REQUIRED": 0xF,
        "INVALID_GUEST": 0x10,
        "ACTIVE": 0x12,
        "INVALID_PARAM": 0x16,
        "RESOURCE_LIMIT": 0x17,
        "INVALID_PAGE_SIZE": 0x19,
        "INVALID_PAGE_STATE": 0x1A,
        "INVALID_MDATA_ENTRY": 0x1B,
        "INVALID_PAGE_OWNER": 0x1C,
        "AEAD_OFLOW": 0x1D,
        "RMP_INIT_REQUIRED": 0x20,
        "NO_FW_CALL": 0xFFFFFFFF,
    }
    assert {name: PspStatus[name].value for name in codes} == codes


def test_firmware_commands() -> None:
    ids = {
        "DECOMMISSION": 0x90,
        "ACTIVATE": 0x91,
        "GUEST_STATUS": 0x92,
        "GCTX_CREATE": 0x93,
        "GUEST_REQUEST": 0x94,
        "LAUNCH_START": 0xA0,
        "LAUNCH_UPDATE": 0xA1,
        "LAUNCH_FINISH": 0xA2,
        "DBG_DECRYPT": 0xB0,
        "DBG_ENCRYPT": 0xB1,
        "PAGE_SWAP_OUT": 0xC0,
        "PAGE_SWAP_IN": 0xC1,
        "PAGE_MOVE": 0xC2,
        "PAGE_MD_INIT": 0xC3,
        "PAGE_SET_STATE": 0xC6,
        "PAGE_RECLAIM": 0xC7,
        "PAGE_UNSMASH": 0xC8,
    }
    assert {name: PspCommand[name].value for name in ids} == ids


def test_policy_bits() -> None:
    bits = {
        "SMT": 16,
        "RSVD_MBO": 17,
        "MIGRATE_MA": 18,
        "DEBUG": 19,
        "SINGLE_SOCKET": 20,
        "CXL_ALLOW": 21,
        "MEM_AES_256_XTS": 22,
        "RAPL_DIS": 23,
        "CIPHERTEXT_HIDING_DRAM": 24,
        "PAGE_SWAP_DISABLE": 25,
    }
    assert {name: getattr(sev, f"SNP_POLICY_MASK_{name}") for name in bits} == {n: 1 << bit for n, bit in bits.items()}
    assert (sev.SNP_POLICY_MASK_API_MINOR, sev.SNP_POLICY_MASK_API_MAJOR) == (0xFF, 0xFF00)


def test_sev_features() -> None:
    bits = {
        "SNP_ACTIVE": 0,
        "VTOM": 1,
        "RESTRICTED_INJECTION": 3,
        "ALTERNATE_INJECTION": 4,
        "DEBUG_SWAP": 5,
        "SECURE_TSC": 9,
    }
    assert {name: getattr(sev, f"SVM_SEV_FEAT_{name}") for name in bits} == {n: 1 << bit for n, bit in bits.items()}

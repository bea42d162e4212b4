# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV and SEV-SNP: KVM's commands, the pages the launch hands over, and the firmware's numbers.

Commands and their arguments are from <asm/kvm.h>, status codes and firmware commands from <linux/psp-sev.h>, the VMSA from
<asm/svm.h>, CPUID and secrets page from <asm/sev.h>, all as of Linux 7.3-rc7; the identity block and its signatures are
tables of the "SEV Secure Nested Paging Firmware ABI Specification" (AMD 56860).
"""

from __future__ import annotations

from enum import IntEnum

from .layout import Struct, char, nested, u8, u16, u32, u64

__all__ = [
    "KVM_SEV_SNP_FINISH_DATA_SIZE",
    "KVM_SEV_SNP_ID_AUTH_SIZE",
    "KVM_SEV_SNP_ID_BLOCK_SIZE",
    "KVM_X86_GRP_SEV",
    "KVM_X86_SEV_SNP_REQ_CERTS",
    "KVM_X86_SEV_VMSA_FEATURES",
    "KVM_X86_SNP_POLICY_BITS",
    "SNP_CPUID_COUNT_MAX",
    "SNP_ID_ALGO_ECDSA_P384_SHA384",
    "SNP_ID_CURVE_P384",
    "SNP_POLICY_MASK_API_MAJOR",
    "SNP_POLICY_MASK_API_MINOR",
    "SNP_POLICY_MASK_CIPHERTEXT_HIDING_DRAM",
    "SNP_POLICY_MASK_CXL_ALLOW",
    "SNP_POLICY_MASK_DEBUG",
    "SNP_POLICY_MASK_MEM_AES_256_XTS",
    "SNP_POLICY_MASK_MIGRATE_MA",
    "SNP_POLICY_MASK_PAGE_SWAP_DISABLE",
    "SNP_POLICY_MASK_RAPL_DIS",
    "SNP_POLICY_MASK_RSVD_MBO",
    "SNP_POLICY_MASK_SINGLE_SOCKET",
    "SNP_POLICY_MASK_SMT",
    "SVM_SEV_FEAT_ALTERNATE_INJECTION",
    "SVM_SEV_FEAT_BTB_ISOLATION",
    "SVM_SEV_FEAT_DEBUG_SWAP",
    "SVM_SEV_FEAT_IBS_VIRT",
    "SVM_SEV_FEAT_PREVENT_HOST_IBS",
    "SVM_SEV_FEAT_REFLECT_VC",
    "SVM_SEV_FEAT_RESTRICTED_INJECTION",
    "SVM_SEV_FEAT_SECURE_AVIC",
    "SVM_SEV_FEAT_SECURE_TSC",
    "SVM_SEV_FEAT_SMT_PROT",
    "SVM_SEV_FEAT_SNP_ACTIVE",
    "SVM_SEV_FEAT_VMGEXIT_PARAM",
    "SVM_SEV_FEAT_VMPL_SSS",
    "SVM_SEV_FEAT_VMSA_REG_PROT",
    "SVM_SEV_FEAT_VTOM",
    "PspCommand",
    "PspStatus",
    "SevCmd",
    "SnpPageType",
    "kvm_sev_cmd",
    "kvm_sev_init",
    "kvm_sev_snp_launch_finish",
    "kvm_sev_snp_launch_start",
    "kvm_sev_snp_launch_update",
    "secrets_os_area",
    "sev_es_save_area",
    "snp_cpuid_entry",
    "snp_cpuid_table",
    "snp_ecdsa_pubkey",
    "snp_ecdsa_sig",
    "snp_id_auth",
    "snp_id_block",
    "snp_secrets_page",
    "vmcb_seg",
]


class SevCmd(IntEnum):
    """KVM_SEV_*: the `id` of a `kvm_sev_cmd`.  An SNP VM accepts only those from 100 up once INIT2 is done."""

    INIT = 0
    ES_INIT = 1
    LAUNCH_START = 2
    LAUNCH_UPDATE_DATA = 3
    LAUNCH_UPDATE_VMSA = 4
    LAUNCH_SECRET = 5
    LAUNCH_MEASURE = 6
    LAUNCH_FINISH = 7
    SEND_START = 8
    SEND_UPDATE_DATA = 9
    SEND_UPDATE_VMSA = 10
    SEND_FINISH = 11
    RECEIVE_START = 12
    RECEIVE_UPDATE_DATA = 13
    RECEIVE_UPDATE_VMSA = 14
    RECEIVE_FINISH = 15
    GUEST_STATUS = 16
    DBG_DECRYPT = 17
    DBG_ENCRYPT = 18
    CERT_EXPORT = 19
    GET_ATTESTATION_REPORT = 20
    SEND_CANCEL = 21
    INIT2 = 22
    SNP_LAUNCH_START = 100
    SNP_LAUNCH_UPDATE = 101
    SNP_LAUNCH_FINISH = 102
    SNP_ENABLE_REQ_CERTS = 103


class SnpPageType(IntEnum):
    """The firmware's page types; KVM_SEV_SNP_PAGE_TYPE_* are the same numbers but for VMSA, which KVM itself submits."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


class PspStatus(IntEnum):
    """SEV_RET_*: what the firmware answered, in `kvm_sev_cmd.error`; NO_FW_CALL when it was never asked."""

    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_GUEST_STATE = 0x02
    INVALID_CONFIG = 0x03
    INVALID_LENGTH = 0x04
    ALREADY_OWNED = 0x05
    INVALID_CERTIFICATE = 0x06
    POLICY_FAILURE = 0x07
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    BAD_SIGNATURE = 0x0A
    BAD_MEASUREMENT = 0x0B
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    WBINVD_REQUIRED = 0x0E
    DFFLUSH_REQUIRED = 0x0F
    INVALID_GUEST = 0x10
    INVALID_COMMAND = 0x11
    ACTIVE = 0x12
    HWERROR_PLATFORM = 0x13
    HWERROR_UNSAFE = 0x14
    UNSUPPORTED = 0x15
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    SECURE_DATA_INVALID = 0x18
    INVALID_PAGE_SIZE = 0x19
    INVALID_PAGE_STATE = 0x1A
    INVALID_MDATA_ENTRY = 0x1B
    INVALID_PAGE_OWNER = 0x1C
    AEAD_OFLOW = 0x1D
    RMP_INIT_REQUIRED = 0x20
    BAD_SVN = 0x21
    BAD_VERSION = 0x22
    SHUTDOWN_REQUIRED = 0x23
    UPDATE_FAILED = 0x24
    RESTORE_REQUIRED = 0x25
    RMP_INITIALIZATION_FAILED = 0x26
    INVALID_KEY = 0x27
    NO_FW_CALL = 0xFFFFFFFF


class PspCommand(IntEnum):
    """SEV_CMD_SNP_*: the SNP commands of the firmware's mailbox."""

    INIT = 0x81
    SHUTDOWN = 0x82
    PLATFORM_STATUS = 0x83
    DF_FLUSH = 0x84
    INIT_EX = 0x85
    SHUTDOWN_EX = 0x86
    DECOMMISSION = 0x90
    ACTIVATE = 0x91
    GUEST_STATUS = 0x92
    GCTX_CREATE = 0x93
    GUEST_REQUEST = 0x94
    ACTIVATE_EX = 0x95
    LAUNCH_START = 0xA0
    LAUNCH_UPDATE = 0xA1
    LAUNCH_FINISH = 0xA2
    DBG_DECRYPT = 0xB0
    DBG_ENCRYPT = 0xB1
    PAGE_SWAP_OUT = 0xC0
    PAGE_SWAP_IN = 0xC1
    PAGE_MOVE = 0xC2
    PAGE_MD_INIT = 0xC3
    PAGE_SET_STATE = 0xC6
    PAGE_RECLAIM = 0xC7
    PAGE_UNSMASH = 0xC8
    CONFIG = 0xC9
    COMMIT = 0xCB


# Guest policy, in kvm_sev_snp_launch_start and in the identity block.
SNP_POLICY_MASK_API_MINOR = 0x00FF
SNP_POLICY_MASK_API_MAJOR = 0xFF00
SNP_POLICY_MASK_SMT = 1 << 16
SNP_POLICY_MASK_RSVD_MBO = 1 << 17
SNP_POLICY_MASK_MIGRATE_MA = 1 << 18
SNP_POLICY_MASK_DEBUG = 1 << 19
SNP_POLICY_MASK_SINGLE_SOCKET = 1 << 20
SNP_POLICY_MASK_CXL_ALLOW = 1 << 21
SNP_POLICY_MASK_MEM_AES_256_XTS = 1 << 22
SNP_POLICY_MASK_RAPL_DIS = 1 << 23
SNP_POLICY_MASK_CIPHERTEXT_HIDING_DRAM = 1 << 24
SNP_POLICY_MASK_PAGE_SWAP_DISABLE = 1 << 25

# SEV_FEATURES, in the VMSA and in kvm_sev_init.  The kernel names bits 0, 3, 4, 5 and 9 so; the others are named after the
# bits of MSR_AMD64_SEV that report them, which stand two higher.
SVM_SEV_FEAT_SNP_ACTIVE = 1 << 0
SVM_SEV_FEAT_VTOM = 1 << 1
SVM_SEV_FEAT_REFLECT_VC = 1 << 2
SVM_SEV_FEAT_RESTRICTED_INJECTION = 1 << 3
SVM_SEV_FEAT_ALTERNATE_INJECTION = 1 << 4
SVM_SEV_FEAT_DEBUG_SWAP = 1 << 5
SVM_SEV_FEAT_PREVENT_HOST_IBS = 1 << 6
SVM_SEV_FEAT_BTB_ISOLATION = 1 << 7
SVM_SEV_FEAT_VMPL_SSS = 1 << 8
SVM_SEV_FEAT_SECURE_TSC = 1 << 9
SVM_SEV_FEAT_VMGEXIT_PARAM = 1 << 10
SVM_SEV_FEAT_IBS_VIRT = 1 << 12
SVM_SEV_FEAT_VMSA_REG_PROT = 1 << 14
SVM_SEV_FEAT_SMT_PROT = 1 << 15
SVM_SEV_FEAT_SECURE_AVIC = 1 << 16

# KVM_{GET,HAS}_DEVICE_ATTR on /dev/kvm: the group and its attributes.
KVM_X86_GRP_SEV = 1
KVM_X86_SEV_VMSA_FEATURES = 0
KVM_X86_SNP_POLICY_BITS = 1
KVM_X86_SEV_SNP_REQ_CERTS = 2

KVM_SEV_SNP_ID_BLOCK_SIZE = 96
KVM_SEV_SNP_ID_AUTH_SIZE = 4096
KVM_SEV_SNP_FINISH_DATA_SIZE = 32

# --- KVM_MEMORY_ENCRYPT_OP --------------------------------------------------------------------------------------------


class kvm_sev_cmd(Struct):
    """What KVM_MEMORY_ENCRYPT_OP points at; `data` is the user address of the command's own structure."""

    id: int = u32()
    pad0: int = u32()
    data: int = u64()
    error: int = u32()
    sev_fd: int = u32()


class kvm_sev_init(Struct):
    """Argument of INIT2."""

    vmsa_features: int = u64()
    flags: int = u32()
    ghcb_version: int = u16()
    pad1: int = u16()
    pad2: tuple[int, ...] = u32(8)


class kvm_sev_snp_launch_start(Struct):
    """Argument of SNP_LAUNCH_START."""

    policy: int = u64()
    gosvw: bytes = char(16)
    flags: int = u16()
    pad0: bytes = char(6)
    pad1: tuple[int, ...] = u64(4)


class kvm_sev_snp_launch_update(Struct):
    """Argument of SNP_LAUNCH_UPDATE; `gfn_start` counts pages, `uaddr` and `len` bytes, and all three advance."""

    gfn_start: int = u64()
    uaddr: int = u64()
    len: int = u64()
    type: int = u8()
    pad0: int = u8()
    flags: int = u16()
    pad1: int = u32()
    pad2: tuple[int, ...] = u64(4)


class kvm_sev_snp_launch_finish(Struct):
    """Argument of SNP_LAUNCH_FINISH; the user addresses of a `snp_id_block` and a `snp_id_auth`, if enabled."""

    id_block_uaddr: int = u64()
    id_auth_uaddr: int = u64()
    id_block_en: int = u8()
    auth_key_en: int = u8()
    vcek_disabled: int = u8()
    host_data: bytes = char(KVM_SEV_SNP_FINISH_DATA_SIZE)
    pad0: bytes = char(3)
    flags: int = u16()
    pad1: tuple[int, ...] = u64(4)


# --- Identity block (SNP ABI, SNP_LAUNCH_FINISH) ----------------------------------------------------------------------

SNP_ID_ALGO_ECDSA_P384_SHA384 = 1
SNP_ID_CURVE_P384 = 2


class snp_id_block(Struct):
    """The identity block: the launch digest and policy the guest's owner expects."""

    ld: bytes = char(48)
    family_id: bytes = char(16)
    image_id: bytes = char(16)
    version: int = u32()
    guest_svn: int = u32()
    policy: int = u64()


class snp_ecdsa_sig(Struct):
    """An ECDSA signature; `r` and `s` are little endian, zero extended."""

    r: bytes = char(72)
    s: bytes = char(72)
    reserved: bytes = char(368)


class snp_ecdsa_pubkey(Struct):
    """An ECDSA public key; `qx` and `qy` are little endian, zero extended."""

    curve: int = u32()
    qx: bytes = char(72)
    qy: bytes = char(72)
    reserved: bytes = char(880)


class snp_id_auth(Struct):
    """The identity authentication page: the identity block's signature, its key, and the author's signature of that key."""

    id_key_algo: int = u32()
    auth_key_algo: int = u32()
    reserved1: bytes = char(56)
    id_block_sig: snp_ecdsa_sig = nested(snp_ecdsa_sig)
    id_key: snp_ecdsa_pubkey = nested(snp_ecdsa_pubkey)
    reserved2: bytes = char(60)
    id_key_sig: snp_ecdsa_sig = nested(snp_ecdsa_sig)
    author_key: snp_ecdsa_pubkey = nested(snp_ecdsa_pubkey)
    reserved3: bytes = char(892)


# --- Special pages ----------------------------------------------------------------------------------------------------

SNP_CPUID_COUNT_MAX = 64


class snp_cpuid_entry(Struct):
    """One leaf of the CPUID page (struct snp_cpuid_fn)."""

    eax_in: int = u32()
    ecx_in: int = u32()
    xcr0_in: int = u64()
    xss_in: int = u64()
    eax: int = u32()
    ebx: int = u32()
    ecx: int = u32()
    edx: int = u32()
    reserved: int = u64()


class snp_cpuid_table(Struct):
    """Head of the CPUID page; `count` of `snp_cpuid_entry` follow, at most SNP_CPUID_COUNT_MAX."""

    count: int = u32()
    reserved1: int = u32()
    reserved2: int = u64()


class secrets_os_area(Struct):
    """The part of the secrets page that the guest's operating system uses (GHCB specification, secrets page layout)."""

    msg_seqno_0: int = u32()
    msg_seqno_1: int = u32()
    msg_seqno_2: int = u32()
    msg_seqno_3: int = u32()
    ap_jump_table_pa: int = u64()
    rsvd: bytes = char(40)
    guest_usage: bytes = char(32)


class snp_secrets_page(Struct):
    """The page that the firmware builds for SnpPageType.SECRETS; `imien` is bit 0 of its word."""

    version: int = u32()
    imien: int = u32()
    fms: int = u32()
    rsvd2: int = u32()
    gosvw: bytes = char(16)
    vmpck0: bytes = char(32)
    vmpck1: bytes = char(32)
    vmpck2: bytes = char(32)
    vmpck3: bytes = char(32)
    os_area: secrets_os_area = nested(secrets_os_area)
    vmsa_tweak_bitmap: bytes = char(64)
    svsm_base: int = u64()
    svsm_size: int = u64()
    svsm_caa: int = u64()
    svsm_max_version: int = u32()
    svsm_guest_vmpl: int = u8()
    rsvd3: bytes = char(3)
    tsc_factor: int = u32()
    rsvd4: bytes = char(3740)


class vmcb_seg(Struct):
    """A segment register as SVM keeps it: attributes are descriptor bits 55:52 and 47:40, `limit` in bytes."""

    selector: int = u16()
    attrib: int = u16()
    limit: int = u32()
    base: int = u64()


class sev_es_save_area(Struct):
    """The VM save area of an SEV-ES or SNP vCPU; the rest of its 4 KiB page is zero."""

    es: vmcb_seg = nested(vmcb_seg)
    cs: vmcb_seg = nested(vmcb_seg)
    ss: vmcb_seg = nested(vmcb_seg)
    ds: vmcb_seg = nested(vmcb_seg)
    fs: vmcb_seg = nested(vmcb_seg)
    gs: vmcb_seg = nested(vmcb_seg)
    gdtr: vmcb_seg = nested(vmcb_seg)
    ldtr: vmcb_seg = nested(vmcb_seg)
    idtr: vmcb_seg = nested(vmcb_seg)
    tr: vmcb_seg = nested(vmcb_seg)
    pl0_ssp: int = u64()
    pl1_ssp: int = u64()
    pl2_ssp: int = u64()
    pl3_ssp: int = u64()
    u_cet: int = u64()
    reserved_0xc8: bytes = char(2)
    vmpl: int = u8()
    cpl: int = u8()
    reserved_0xcc: bytes = char(4)
    efer: int = u64()
    reserved_0xd8: bytes = char(104)
    xss: int = u64()
    cr4: int = u64()
    cr3: int = u64()
    cr0: int = u64()
    dr7: int = u64()
    dr6: int = u64()
    rflags: int = u64()
    rip: int = u64()
    dr0: int = u64()
    dr1: int = u64()
    dr2: int = u64()
    dr3: int = u64()
    dr0_addr_mask: int = u64()
    dr1_addr_mask: int = u64()
    dr2_addr_mask: int = u64()
    dr3_addr_mask: int = u64()
    reserved_0x1c0: bytes = char(24)
    rsp: int = u64()
    s_cet: int = u64()
    ssp: int = u64()
    isst_addr: int = u64()
    rax: int = u64()
    star: int = u64()
    lstar: int = u64()
    cstar: int = u64()
    sfmask: int = u64()
    kernel_gs_base: int = u64()
    sysenter_cs: int = u64()
    sysenter_esp: int = u64()
    sysenter_eip: int = u64()
    cr2: int = u64()
    reserved_0x248: bytes = char(32)
    g_pat: int = u64()
    dbgctl: int = u64()
    br_from: int = u64()
    br_to: int = u64()
    last_excp_from: int = u64()
    last_excp_to: int = u64()
    reserved_0x298: bytes = char(80)
    pkru: int = u32()
    tsc_aux: int = u32()
    tsc_scale: int = u64()
    tsc_offset: int = u64()
    reserved_0x300: bytes = char(8)
    rcx: int = u64()
    rdx: int = u64()
    rbx: int = u64()
    reserved_0x320: int = u64()
    rbp: int = u64()
    rsi: int = u64()
    rdi: int = u64()
    r8: int = u64()
    r9: int = u64()
    r10: int = u64()
    r11: int = u64()
    r12: int = u64()
    r13: int = u64()
    r14: int = u64()
    r15: int = u64()
    reserved_0x380: bytes = char(16)
    guest_exit_info_1: int = u64()
    guest_exit_info_2: int = u64()
    guest_exit_int_info: int = u64()
    guest_nrip: int = u64()
    sev_features: int = u64()
    vintr_ctrl: int = u64()
    guest_exit_code: int = u64()
    virtual_tom: int = u64()
    tlb_id: int = u64()
    pcpu_id: int = u64()
    event_inj: int = u64()
    xcr0: int = u64()
    reserved_0x3f0: bytes = char(16)
    x87_dp: int = u64()
    mxcsr: int = u32()
    x87_ftw: int = u16()
    x87_fsw: int = u16()
    x87_fcw: int = u16()
    x87_fop: int = u16()
    x87_ds: int = u16()
    x87_cs: int = u16()
    x87_rip: int = u64()
    fpreg_x87: bytes = char(80)
    fpreg_xmm: bytes = char(256)
    fpreg_ymm: bytes = char(256)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that the firmware builds or alters: the secrets page and the VMSA (SEV-SNP firmware ABI, SNP_LAUNCH_UPDATE)."""

from __future__ import annotations

from random import Random

from ...uapi.sev import SVM_SEV_FEAT_SECURE_TSC, SVM_SEV_FEAT_VMSA_REG_PROT, sev_es_save_area, snp_secrets_page
from .cpu import CpuModel
from .guest_context import GuestContext

__all__ = ["SECRETS_VERSION", "secrets_page", "tsc_scale", "tweak_vmsa"]

SECRETS_VERSION = 3

_FEATURES = sev_es_save_area.OFFSETS["sev_features"]
_TSC_SCALE = sev_es_save_area.OFFSETS["tsc_scale"]
_TSC_OFFSET = sev_es_save_area.OFFSETS["tsc_offset"]
_NONCE = sev_es_save_area.OFFSETS["reserved_0x300"]  # REG_PROT_NONCE


def secrets_page(guest: GuestContext, cpu: CpuModel) -> bytes:
    """The page that tells the guest its message keys; the parts for its operating system and an SVSM are zero."""
    keys = guest.vmpck
    return snp_secrets_page(
        version=SECRETS_VERSION,
        imien=int(guest.imi_en),
        fms=cpu.signature,
        gosvw=guest.gosvw,
        vmpck0=keys[0],
        vmpck1=keys[1],
        vmpck2=keys[2],
        vmpck3=keys[3],
        vmsa_tweak_bitmap=cpu.vmsa_tweak_bitmap,
        tsc_factor=cpu.tsc_factor,
    ).pack()


def tsc_scale(desired_khz: int, reference_khz: int) -> int:
    """GUEST_TSC_SCALE: how often the reference clock goes into the desired frequency, 8.32 fixed point, rounded up."""
    whole, rest = divmod(desired_khz, reference_khz)
    return (whole & 0xFF) << 32 | (-(-(rest << 32) // reference_khz) & 0xFFFFFFFF)


def tweak_vmsa(page: bytearray, guest: GuestContext, cpu: CpuModel, rng: Random) -> None:
    """What happens to a VMSA after it was measured: register protection, then the TSC fields if SecureTSC is on."""
    features = int.from_bytes(page[_FEATURES : _FEATURES + 8], "little")
    if features & SVM_SEV_FEAT_VMSA_REG_PROT:
        nonce = rng.randbytes(8)
        page[_NONCE : _NONCE + 8] = nonce
        tweaked = int.from_bytes(cpu.vmsa_tweak_bitmap, "little")
        for at in (8 * k for k in range(512) if tweaked >> k & 1):
            page[at : at + 8] = bytes(a ^ b for a, b in zip(page[at : at + 8], nonce, strict=True))
    if features & SVM_SEV_FEAT_SECURE_TSC:
        scale = tsc_scale(guest.desired_tsc_khz, cpu.tsc_ref_khz)
        page[_TSC_SCALE : _TSC_SCALE + 8] = scale.to_bytes(8, "little")
        page[_TSC_OFFSET : _TSC_OFFSET + 8] = bytes(8)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The identity block: what the guest's owner signed, checked at SNP_LAUNCH_FINISH (SEV-SNP firmware ABI, same section).

Signatures need the `cryptography` package, which is imported only when one has to be verified.
"""

from __future__ import annotations

from hashlib import sha384

from ...uapi.sev import (
    SNP_ID_ALGO_ECDSA_P384_SHA384,
    SNP_ID_CURVE_P384,
    PspStatus,
    snp_ecdsa_pubkey,
    snp_ecdsa_sig,
    snp_id_auth,
    snp_id_block,
)
from .guest_context import GuestContext

__all__ = ["IdBlockUnavailable", "check_id_block", "key_digest", "signature_ok"]


class IdBlockUnavailable(ImportError):
    """An ID block was given, but nothing here can verify its signature."""


def key_digest(key: snp_ecdsa_pubkey) -> bytes:
    """The digest by which an attestation report names a public key."""
    return sha384(key.pack()).digest()


def check_id_block(guest: GuestContext, id_block: bytes, id_auth: bytes, auth_key_en: bool) -> PspStatus:
    """Check the block and its signatures, in the firmware's order, and note what was found good in the guest's context.

    Digest, policy, algorithms, ID key and signature of the block, author key and signature of the ID key.  The block and the
    ID key's digest are stored before the author's signature is looked at, so they stay if that is bad.
    """
    block, auth = snp_id_block.unpack_from(id_block), snp_id_auth.unpack_from(id_auth)
    if block.ld != guest.ld.value:
        return PspStatus.BAD_MEASUREMENT
    if block.policy != guest.policy:
        return PspStatus.POLICY_FAILURE
    if auth.id_key_algo != SNP_ID_ALGO_ECDSA_P384_SHA384:
        return PspStatus.INVALID_PARAM
    if auth_key_en and auth.auth_key_algo != SNP_ID_ALGO_ECDSA_P384_SHA384:
        return PspStatus.INVALID_PARAM
    if not signature_ok(auth.id_key, auth.id_block_sig, id_block[: snp_id_block.SIZE]):
        return PspStatus.BAD_SIGNATURE
    guest.id_block = bytes(id_block[: snp_id_block.SIZE])
    guest.id_key_digest = key_digest(auth.id_key)
    if auth_key_en:
        if not signature_ok(auth.author_key, auth.id_key_sig, auth.id_key.pack()):
            return PspStatus.BAD_SIGNATURE
        guest.author_key_digest = key_digest(auth.author_key)
    return PspStatus.SUCCESS


def signature_ok(key: snp_ecdsa_pubkey, signature: snp_ecdsa_sig, message: bytes) -> bool:
    """Whether `key` is a point on P-384 and signed SHA-384 of `message`."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec, utils
        from cryptography.hazmat.primitives.hashes import SHA384
    except ImportError as e:
        why = "an ID block's signature can't be verified without the cryptography package: pip install 'gmemu[idblock]'"
        raise IdBlockUnavailable(why) from e
    if key.curve != SNP_ID_CURVE_P384:
        return False
    x, y, r, s = (int.from_bytes(number, "little") for number in (key.qx, key.qy, signature.r, signature.s))
    try:
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
        public.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(SHA384()))
    except (ValueError, InvalidSignature):
        return False
    return True

# SPDX-License-Identifier: GPL-2.0-or-later
"""SNP_LAUNCH_FINISH, and the identity block that it may have to bear out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from hashlib import sha384
from typing import Any

import pytest

from gmemu.hw.snp.digest import BLANK
from gmemu.hw.snp.firmware import PlatformState
from gmemu.hw.snp.guest_context import GuestContext, GuestState
from gmemu.hw.snp.id_block import IdBlockUnavailable, key_digest
from gmemu.hw.snp.rmp import RmpState
from gmemu.uapi.sev import (
    SNP_ID_ALGO_ECDSA_P384_SHA384,
    SNP_ID_CURVE_P384,
    PspStatus,
    SnpPageType,
    snp_ecdsa_pubkey,
    snp_ecdsa_sig,
    snp_id_auth,
    snp_id_block,
)

from .machine import GCTX, OK, PAGE, POLICY, Machine

S = PspStatus


def test_launch_to_running(machine: Machine) -> None:
    guest = machine.guest()
    assert machine.psp.launch_finish(GCTX, host_data=b"H" * 32, vcek_disabled=True) == OK
    assert guest.state is GuestState.RUNNING
    assert (guest.host_data, guest.vcek_dis, guest.id_block_en, guest.auth_key_en) == (b"H" * 32, True, False, False)
    assert guest.id_block == bytes(96)
    assert machine.psp.launch_finish(GCTX) == S.INVALID_GUEST_STATE


def test_the_digest_stays(machine: Machine) -> None:
    guest = machine.guest()
    machine.pre_guest()
    machine.psp.launch_update(GCTX, PAGE, SnpPageType.ZERO)
    before = guest.ld.value
    machine.psp.launch_finish(GCTX)
    assert guest.ld.value == before
    assert machine.rmp.state(PAGE) is RmpState.GUEST_VALID


def test_order(machine: Machine) -> None:
    psp, bad = machine.psp, bytes(96)
    psp.state = PlatformState.UNINIT
    assert psp.launch_finish(GCTX, reserved=1, id_block=bad) == S.INVALID_PARAM
    assert psp.launch_finish(GCTX, id_block=bad) == S.INVALID_PLATFORM_STATE
    psp.state = PlatformState.INIT
    assert psp.launch_finish(GCTX, id_block=bad) == S.INVALID_GUEST
    machine.context_page()
    assert psp.launch_finish(GCTX, id_block=bad) == S.INVALID_GUEST_STATE
    psp.launch_start(GCTX, POLICY)
    assert psp.launch_finish(GCTX, id_block=b"x" * 96) == S.INACTIVE
    psp.activate(GCTX, 5)
    assert psp.launch_finish(GCTX, id_block=b"x" * 96) == S.BAD_MEASUREMENT


def test_a_migration_image_is_not_finished(machine: Machine) -> None:
    machine.guest(imi=True).asid = 0
    assert machine.psp.launch_finish(GCTX) == S.INVALID_GUEST_STATE


@dataclass
class Owner:
    """A guest's owner: signs a block for the guest in GCTX."""

    guest: GuestContext
    block: snp_id_block
    auth: snp_id_auth

    def sign(self) -> None:
        ec, hashes, utils = crypto()
        for key, message, signature in (
            (ID_KEY, self.block.pack(), self.auth.id_block_sig),
            (AUTHOR_KEY, self.auth.id_key.pack(), self.auth.id_key_sig),
        ):
            der = private(key).sign(message, ec.ECDSA(hashes.SHA384()))
            r, s = utils.decode_dss_signature(der)
            signature.r, signature.s = r.to_bytes(72, "little"), s.to_bytes(72, "little")

    def finish(self, machine: Machine, auth_key_en: bool = True) -> PspStatus:
        block, auth = self.block.pack(), self.auth.pack()
        return machine.psp.launch_finish(GCTX, id_block=block, id_auth=auth, auth_key_en=auth_key_en)


ID_KEY, AUTHOR_KEY = 0x1D, 0xA0  # private keys: any number will do


def crypto() -> Any:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    return ec, hashes, utils


def private(key: int) -> Any:
    ec, _, _ = crypto()
    return ec.derive_private_key(key, ec.SECP384R1())


def public(key: int) -> snp_ecdsa_pubkey:
    numbers = private(key).public_key().public_numbers()
    return snp_ecdsa_pubkey(
        curve=SNP_ID_CURVE_P384, qx=numbers.x.to_bytes(72, "little"), qy=numbers.y.to_bytes(72, "little")
    )


@pytest.fixture
def owner(machine: Machine) -> Owner:
    guest = machine.guest()
    machine.pre_guest()
    machine.psp.launch_update(GCTX, PAGE, SnpPageType.ZERO)
    algo = SNP_ID_ALGO_ECDSA_P384_SHA384
    block = snp_id_block(ld=guest.ld.value, family_id=b"F" * 16, image_id=b"I" * 16, version=1, guest_svn=9, policy=POLICY)
    auth = snp_id_auth(id_key_algo=algo, auth_key_algo=algo, id_key=public(ID_KEY), author_key=public(AUTHOR_KEY))
    owner = Owner(guest, block, auth)
    owner.sign()
    return owner


class TestIdBlock:
    def test_sizes(self) -> None:
        assert (snp_id_block.SIZE, snp_id_auth.SIZE, snp_ecdsa_pubkey.SIZE, snp_ecdsa_sig.SIZE) == (96, 4096, 0x404, 0x200)
        at = snp_id_auth.OFFSETS
        assert (at["id_block_sig"], at["id_key"], at["id_key_sig"], at["author_key"]) == (0x40, 0x240, 0x680, 0x880)

    @pytest.mark.parametrize("auth_key_en", [False, True])
    def test_good(self, machine: Machine, owner: Owner, auth_key_en: bool) -> None:
        assert owner.finish(machine, auth_key_en) == OK
        guest = owner.guest
        assert guest.state is GuestState.RUNNING
        assert (guest.id_block_en, guest.auth_key_en) == (True, auth_key_en)
        assert guest.id_block == owner.block.pack()
        assert guest.id_key_digest == sha384(owner.auth.id_key.pack()).digest()
        assert guest.author_key_digest == (key_digest(owner.auth.author_key) if auth_key_en else BLANK)

    def spoil(self, owner: Owner, what: str) -> None:
        if what == "ld":
            owner.block.ld = b"x" * 48
        elif what == "policy":
            owner.block.policy ^= 1 << 19
        elif what == "id algo":
            owner.auth.id_key_algo = 2
        elif what == "auth algo":
            owner.auth.auth_key_algo = 0
        elif what == "id curve":
            owner.auth.id_key.curve = 1
        elif what == "id point":
            owner.auth.id_key.qx = (5).to_bytes(72, "little")
        elif what == "id huge":
            owner.auth.id_key.qx = b"\xff" * 72
        elif what == "block signature":
            owner.auth.id_block_sig.r = (5).to_bytes(72, "little")
        elif what == "no signature":
            owner.auth.id_block_sig.r = owner.auth.id_block_sig.s = bytes(72)
        elif what == "author curve":
            owner.auth.author_key.curve = 0
        else:
            owner.auth.id_key_sig.s = (5).to_bytes(72, "little")

    @pytest.mark.parametrize(
        ("what", "status"),
        [
            ("ld", S.BAD_MEASUREMENT),
            ("policy", S.POLICY_FAILURE),
            ("id algo", S.INVALID_PARAM),
            ("auth algo", S.INVALID_PARAM),
            ("id curve", S.BAD_SIGNATURE),
            ("id point", S.BAD_SIGNATURE),
            ("id huge", S.BAD_SIGNATURE),
            ("block signature", S.BAD_SIGNATURE),
            ("no signature", S.BAD_SIGNATURE),
            ("author curve", S.BAD_SIGNATURE),
            ("author signature", S.BAD_SIGNATURE),
        ],
    )
    def test_each_check(self, machine: Machine, owner: Owner, what: str, status: PspStatus) -> None:
        self.spoil(owner, what)
        if what in ("ld", "policy"):
            owner.sign()
        assert owner.finish(machine) == status
        assert owner.guest.state is GuestState.LAUNCH
        assert not owner.guest.id_block_en

    @pytest.mark.parametrize(
        ("first", "second", "status"),
        [
            ("ld", "policy", S.BAD_MEASUREMENT),
            ("policy", "id algo", S.POLICY_FAILURE),
            ("id algo", "id curve", S.INVALID_PARAM),
            ("auth algo", "id curve", S.INVALID_PARAM),
        ],
    )
    def test_the_earlier_check_wins(
        self, machine: Machine, owner: Owner, first: str, second: str, status: PspStatus
    ) -> None:
        self.spoil(owner, second)
        self.spoil(owner, first)
        assert owner.finish(machine) == status

    def test_any_byte_of_the_block_is_signed(self, machine: Machine, owner: Owner) -> None:
        owner.block.guest_svn += 1
        assert owner.finish(machine) == S.BAD_SIGNATURE

    @pytest.mark.parametrize("what", ["auth algo", "author curve", "author signature"])
    def test_the_author_does_not_matter_unless_enabled(self, machine: Machine, owner: Owner, what: str) -> None:
        self.spoil(owner, what)
        assert owner.finish(machine, auth_key_en=False) == OK

    def test_a_bad_author_leaves_the_block_behind(self, machine: Machine, owner: Owner) -> None:
        """The firmware stores the block before it looks at the author's signature, and doesn't take it back."""
        self.spoil(owner, "author signature")
        assert owner.finish(machine) == S.BAD_SIGNATURE
        assert machine.psp.launch_finish(GCTX) == OK
        assert not owner.guest.id_block_en
        assert owner.guest.id_block == owner.block.pack()
        assert owner.guest.author_key_digest == BLANK

    def test_a_failure_is_not_the_end(self, machine: Machine, owner: Owner) -> None:
        good = owner.block.ld
        self.spoil(owner, "ld")
        assert owner.finish(machine) == S.BAD_MEASUREMENT
        owner.block.ld = good
        assert owner.finish(machine) == OK

    def test_without_the_page_of_signatures(self, machine: Machine, owner: Owner) -> None:
        assert machine.psp.launch_finish(GCTX, id_block=owner.block.pack()) == S.INVALID_PARAM

    def test_without_cryptography(self, machine: Machine, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
        block, auth = owner.block.pack(), owner.auth.pack()
        monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
        with pytest.raises(IdBlockUnavailable, match=r"pip install 'gmemu\[idblock\]'"):
            machine.psp.launch_finish(GCTX, id_block=block, id_auth=auth)
        assert machine.psp.launch_finish(GCTX) == OK

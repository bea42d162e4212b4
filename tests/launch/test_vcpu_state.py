# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers and VMSA of fresh vCPUs, CPU types, kernel hashes: each against sev-snp-measure."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sevsnpmeasure.sev_hashes import SevHashes
from sevsnpmeasure.vcpu_types import CPU_SIGS, cpu_sig
from sevsnpmeasure.vmsa import VMSA

from gmemu.launch.cpu_types import CPU_TYPES, cpu_signature, signature
from gmemu.launch.errors import LaunchError
from gmemu.launch.kernel_hashes import HASHES_SIZE, hash_inputs, hashes_page
from gmemu.launch.vcpu_state import RESET_VECTOR, initial_state, segment, segment_attributes
from gmemu.launch.vmm import QEMU, VMMS, vmm_named

from .oracle import VMM_TYPES
from .vmsa_oracle import build_vmsa


@pytest.mark.parametrize("name", CPU_SIGS)
def test_types_are_the_peers(name: str) -> None:
    assert cpu_signature(name) == CPU_SIGS[name]


def test_later_versions_have_the_signature_of_the_first() -> None:
    assert {"EPYC-v5", "EPYC-Rome-v5", "EPYC-Milan-v3", "EPYC-Genoa-v2", "EPYC-Turin-v1"} <= CPU_TYPES.keys()
    assert all(value == CPU_TYPES[name.rpartition("-v")[0] or name] for name, value in CPU_TYPES.items())


@given(st.integers(0, 270), st.integers(0, 255), st.integers(0, 15))
def test_signature(family: int, model: int, stepping: int) -> None:
    assert signature(family, model, stepping) == cpu_sig(family, model, stepping)


@pytest.mark.parametrize("numbers", [(271, 0, 0), (-1, 0, 0), (23, 256, 0), (23, 0, 16)])
def test_no_such_signature(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(LaunchError, match="is no CPU"):
        signature(*numbers)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("epyc-milan", "did you mean EPYC-Milan"),
        ("EPYC-Rom", "did you mean EPYC-Rome"),
        ("EPYC-v6", "did you mean EPYC-v"),
        ("zzz", "the known types are EPYC, "),
        ("", "the known types are EPYC, "),
    ],
)
def test_unknown_types_come_with_a_hint(name: str, sentence: str) -> None:
    with pytest.raises(LaunchError, match=sentence):
        cpu_signature(name)


def test_vmm_names_are_not_case_sensitive() -> None:
    assert vmm_named("QEMU") is QEMU
    with pytest.raises(LaunchError, match="the known ones are qemu, ec2, gce"):
        vmm_named("xen")


@pytest.mark.parametrize("vmm", VMMS)
@given(
    eip=st.one_of(st.just(RESET_VECTOR), st.integers(0, (1 << 32) - 1)),
    cpu=st.integers(0, (1 << 32) - 1),
    features=st.integers(0, (1 << 64) - 1),
    bsp=st.booleans(),
)
def test_vmsa_is_the_peers(vmm: str, eip: int, cpu: int, features: int, bsp: bool) -> None:
    state = initial_state(VMMS[vmm], cpu, eip, bsp=bsp)
    assert build_vmsa(state, features) == bytes(VMSA.build_save_area(eip, features, cpu, VMM_TYPES[vmm]))
    assert state.eip == eip


@given(st.integers(0, 0xFFF))
def test_segment_attributes_come_apart_and_together(attributes: int) -> None:
    assert segment_attributes(segment(attributes)) == attributes


def test_state_is_what_a_vmm_sets_not_what_kvm_makes_of_it() -> None:
    state = initial_state(QEMU, 0x800F12, RESET_VECTOR, bsp=True)
    assert (state.sregs.efer, state.sregs.cr4, state.sregs.cr0) == (0, 0, 0x60000010)
    assert state.sregs.apic_base == 0xFEE00900
    assert (state.sregs.cs.type, state.sregs.cs.s, state.sregs.cs.present) == (0xB, 1, 1)
    assert initial_state(QEMU, 0, 0, bsp=False).sregs.apic_base == 0xFEE00800


@pytest.mark.parametrize("append", [None, "", "root=/dev/vda ro"])
@pytest.mark.parametrize("with_initrd", [False, True])
@pytest.mark.parametrize("offset", [0, 0xC00, 4096 - HASHES_SIZE])
def test_hashes_page_is_the_peers(offset: int, with_initrd: bool, append: str | None, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(b"kernel" * 500_000)
    initrd.write_bytes(b"initrd")
    given_initrd = str(initrd) if with_initrd else None
    page = hashes_page(offset, *hash_inputs(kernel, given_initrd, append))
    assert page == SevHashes(str(kernel), given_initrd, append).construct_page(offset)


def test_absent_initrd_is_an_empty_one() -> None:
    assert hash_inputs("/dev/null", None, None)[1] == hashlib.sha256(b"").digest()
    assert hash_inputs("/dev/null", None, None) == hash_inputs("/dev/null", "/dev/null", "")


def test_command_line_of_odd_bytes_is_hashed_as_given() -> None:
    """A command line that isn't UTF-8 reaches Python with surrogates."""
    assert (
        hash_inputs("/dev/null", None, b"\xff".decode("utf-8", "surrogateescape"))[2] == hashlib.sha256(b"\xff\0").digest()
    )


@pytest.mark.parametrize("offset", [4096 - HASHES_SIZE + 1, 4095])
def test_hashes_that_do_not_fit_their_page(offset: int) -> None:
    with pytest.raises(LaunchError, match="doesn't fit"):
        hashes_page(offset, bytes(32), bytes(32), bytes(32))

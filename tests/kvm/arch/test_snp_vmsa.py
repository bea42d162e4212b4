# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMSA that KVM makes of a vCPU's registers, against one that is put together here from the APM's table of offsets."""

from __future__ import annotations

import struct
from hashlib import sha384
from random import Random
from typing import Any

import pytest

from gmemu.hw.memory import PAGE_SIZE
from gmemu.uapi.kvm_x86 import kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs
from gmemu.uapi.sev import SVM_SEV_FEAT_DEBUG_SWAP, SVM_SEV_FEAT_SECURE_TSC, SnpPageType

from .snp_world import World

MSRS = {
    0xC0000081: 0x200,  # STAR
    0xC0000082: 0x208,  # LSTAR
    0xC0000083: 0x210,  # CSTAR
    0xC0000084: 0x218,  # SFMASK
    0xC0000102: 0x220,  # KERNEL_GS_BASE
    0x174: 0x228,  # SYSENTER_CS
    0x175: 0x230,  # SYSENTER_ESP
    0x176: 0x238,  # SYSENTER_EIP
    0x277: 0x268,  # PAT
}
GPRS = {
    "rax": 0x1F8,
    "rcx": 0x308,
    "rdx": 0x310,
    "rbx": 0x318,
    "rbp": 0x328,
    "rsi": 0x330,
    "rdi": 0x338,
    **{f"r{i}": 0x340 + 8 * (i - 8) for i in range(8, 16)},
    "rsp": 0x1D8,
    "rip": 0x178,
    "rflags": 0x170,
}
SEGMENTS = {"es": 0, "cs": 0x10, "ss": 0x20, "ds": 0x30, "fs": 0x40, "gs": 0x50, "ldt": 0x70, "tr": 0x90}


class Page:
    """Bytes at offsets."""

    def __init__(self) -> None:
        self.data = bytearray(PAGE_SIZE)

    def put(self, at: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, self.data, at, *values)

    def segment(self, at: int, s: kvm_segment) -> None:
        present = 0 if s.unusable else s.present
        bits = ((s.type, 0), (s.s, 4), (s.dpl, 5), (present, 7), (s.avl, 8), (s.l, 9), (s.db, 10), (s.g, 11))
        self.put(at, "HHIQ", s.selector, sum(value << bit for value, bit in bits), s.limit, s.base)


def expected(regs: kvm_regs, sregs: kvm_sregs, fpu: kvm_fpu, msrs: dict[int, int], xcr0: int, features: int) -> bytes:
    page = Page()
    for name, at in SEGMENTS.items():
        page.segment(at, getattr(sregs, name))
    for at, table in ((0x60, sregs.gdt), (0x80, sregs.idt)):
        page.put(at, "HHIQ", 0, 0, table.limit, table.base)
    page.put(0xCB, "B", sregs.ss.dpl)
    page.put(0xD0, "Q", sregs.efer | 1 << 12)
    page.put(0x148, "QQQQQ", sregs.cr4 | 1 << 6, sregs.cr3, sregs.cr0 & ~0x60000000, 0x400, 0xFFFF0FF0)
    for name, at in GPRS.items():
        page.put(at, "Q", getattr(regs, name))
    for msr, value in msrs.items():
        page.put(MSRS[msr], "Q", value)
    page.put(0x3B0, "Q", features)
    page.put(0x3E8, "Q", xcr0)
    page.put(0x400, "QIHHHHHHQ", fpu.last_dp, fpu.mxcsr, fpu.ftwx, fpu.fsw, fpu.fcw, fpu.last_opcode, 0, 0, fpu.last_ip)
    for i in range(8):
        page.data[0x420 + 8 * i : 0x428 + 8 * i] = fpu.fpr[16 * i : 16 * i + 8]
        page.data[0x460 + 2 * i : 0x462 + 2 * i] = fpu.fpr[16 * i + 8 : 16 * i + 10]
    page.data[0x470:0x570] = fpu.xmm
    return bytes(page.data)


def random_segment(rng: Random) -> kvm_segment:
    return kvm_segment(
        base=rng.getrandbits(64),
        limit=rng.getrandbits(32),
        selector=rng.getrandbits(16),
        type=rng.getrandbits(4),
        s=rng.getrandbits(1),
        dpl=rng.getrandbits(2),
        present=rng.getrandbits(1),
        avl=rng.getrandbits(1),
        l=rng.getrandbits(1),
        db=rng.getrandbits(1),
        g=rng.getrandbits(1),
        unusable=rng.getrandbits(1),
    )


def vmsa(world: World, index: int = 0) -> bytes:
    """The page as the guest's processor reads it."""
    pfn = list(world.arch.vmsa_pfns.values())[index]
    return world.host.memory.read(pfn * PAGE_SIZE, PAGE_SIZE, world.key)


def test_power_on(world: World) -> None:
    """Whatever KVM sets by itself is what the vCPU says of itself."""
    world.started(vcpus=2)
    regs, sregs = world.vcpus[1].regs, world.vcpus[1].sregs
    [_, inner] = world.host.vms[0].vcpus
    world.finish()
    assert vmsa(world, 1) == expected(regs, sregs, inner.fpu, {0x277: 0x0007040600070406}, 1, 1)


@pytest.mark.parametrize("seed", range(10))
def test_random_registers(inplace: World, seed: int) -> None:
    rng = Random(seed)
    inplace.init2(vmsa_features=SVM_SEV_FEAT_DEBUG_SWAP if seed & 1 else 0)
    vcpu = inplace.add_vcpu()
    inplace.start()
    regs = kvm_regs(**{name: rng.getrandbits(64) for name in GPRS})
    regs.rflags = 2
    segments: dict[str, Any] = {name: random_segment(rng) for name in SEGMENTS}
    sregs = kvm_sregs(
        **segments,
        gdt=kvm_dtable(base=rng.getrandbits(64), limit=rng.getrandbits(16)),
        idt=kvm_dtable(base=rng.getrandbits(64), limit=rng.getrandbits(16)),
        cr0=0xE0050033,
        cr2=rng.getrandbits(64),
        cr3=rng.getrandbits(40) << 12,
        cr4=0x20,
        efer=0xD01,
    )
    fpu = kvm_fpu(
        fpr=rng.randbytes(128),
        fcw=rng.getrandbits(16),
        fsw=rng.getrandbits(16),
        ftwx=rng.getrandbits(8),
        last_opcode=rng.getrandbits(16),
        last_ip=rng.getrandbits(64),
        last_dp=rng.getrandbits(64),
        xmm=rng.randbytes(256),
        mxcsr=rng.getrandbits(16),
    )
    msrs = {msr: rng.getrandbits(47) for msr in MSRS}  # canonical: some must be
    msrs[0x277] = 0x0606060606060606
    vcpu.regs, vcpu.sregs = regs, sregs
    vcpu.set_fpu(fpu)
    vcpu.set_xcr0(7)
    for msr, value in msrs.items():
        vcpu.set_msr(msr, value)
    rows: list[tuple[int, bytes]] = []
    inplace.platform.psp.log = lambda context, kind, new: rows.extend((kind, contents) for _, contents, _ in new)
    assert inplace.finish()[0] == ""
    page = expected(regs, sregs, fpu, msrs, 7, inplace.arch.vmsa_features)
    assert vmsa(inplace) == page
    assert rows == [(SnpPageType.VMSA, sha384(page).digest())]


def test_secure_tsc_replaces_scale_and_offset_after_measuring(inplace: World) -> None:
    inplace.init2(vmsa_features=SVM_SEV_FEAT_SECURE_TSC)
    inplace.add_vcpu()
    inplace.start()
    inplace.finish()
    scale, offset = struct.unpack_from("<QQ", vmsa(inplace), 0x2F0)
    assert (scale, offset) == (20 << 32, 0)  # 2 GHz of 100 MHz


def test_vcpus_are_measured_in_order_of_creation(inplace: World) -> None:
    """KVM goes through them by index, which is the order in which they were made, not their ids."""
    inplace.init2()
    for number in (5, 0, 3):
        inplace.add_vcpu(number).regs = kvm_regs(rax=number, rflags=2)
    inplace.start()
    pages: list[bytes] = []
    inplace.platform.psp.log = lambda context, kind, new: pages.extend(contents for _, contents, _ in new)
    inplace.finish()
    assert [struct.unpack_from("<Q", vmsa(inplace, i), 0x1F8)[0] for i in range(3)] == [5, 0, 3]
    assert pages == [sha384(vmsa(inplace, i)).digest() for i in range(3)]

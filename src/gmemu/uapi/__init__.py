# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's user-space interface, declared once: structures, request numbers, flags and the numbers they carry.

Modules are named after where the kernel keeps a thing: `kvm` for <linux/kvm.h>, `kvm_x86` for x86's <asm/kvm.h>, `sev` for
SEV and SNP, `ghcb` for what a guest asks of its hypervisor, `mman` for the memory calls.  `layout` and `ioctl` are what they
are written in.  Nothing is re-exported here, so that importing one of them costs only that one.
"""

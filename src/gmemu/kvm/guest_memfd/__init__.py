# SPDX-License-Identifier: GPL-2.0-or-later
"""guest_memfd: memory for guests that the host may not be able to touch (virt/kvm/guest_memfd.c)."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""AMD SEV-SNP below the kernel: the reverse map table and its instructions (`rmp`), the firmware (`psp`), the launch digest.

All of it is simulated.  Nothing here was compared with SNP hardware.
"""

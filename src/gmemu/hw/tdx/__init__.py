# SPDX-License-Identifier: GPL-2.0-or-later
"""Intel TDX below the kernel: the TDX module with its leaves (`module`), secure EPT, PAMT, and the build-time measurement.

All of it is simulated.  Nothing here was compared with TDX hardware.
"""

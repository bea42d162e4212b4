# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that get it wrong on purpose, imported into the emulated kernel by GMEMU_EXEC_PLUGIN.

Tests of private memory must fail under them, or they test nothing.
"""

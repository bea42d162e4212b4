# SPDX-License-Identifier: GPL-2.0-or-later
"""Random sequences of calls on two kernels in lockstep: every errno, byte and signal must be the same."""

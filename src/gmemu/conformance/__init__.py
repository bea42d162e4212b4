# SPDX-License-Identifier: GPL-2.0-or-later
"""Is it true?  The same programs on the emulation and on real kernels, and every difference."""

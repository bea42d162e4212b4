# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own KVM selftests, built from a distribution's kernel source as they are, and run under `gmemu exec`."""

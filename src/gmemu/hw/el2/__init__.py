# SPDX-License-Identifier: GPL-2.0-or-later
"""pKVM's hypervisor at EL2: who owns each page, and guests' stage 2 tables, out of the host's reach."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""An x86 processor that executes machine code, by Unicorn: paging, privilege and events are here, instructions are there."""

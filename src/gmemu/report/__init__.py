# SPDX-License-Identifier: GPL-2.0-or-later
"""What people are shown: text for terminals, progress."""

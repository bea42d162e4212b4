# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures: `python -m bench` prints each beside its peer or its goal, from several runs on this machine."""

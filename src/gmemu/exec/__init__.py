# SPDX-License-Identifier: GPL-2.0-or-later
"""Unmodified programs on the emulated host.

`run` starts a program with a library in front of libc (preload.c).  When the program opens /dev/kvm, the library brings this
same package into the program's process (kernel.c), where `kernel` answers its system calls.
"""

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the preloaded library and the kernel beneath it have to say to each other.
 *
 * preload.c knows no Python: it sits in front of libc, tells which calls are for the emulated kernel, and lets all others through.
 * kernel.c is loaded when the program first asks for KVM.  It brings the interpreter along, and calls gmemu.exec.kernel.
 */
#ifndef GMEMU_EXEC_KERNEL_H
#define GMEMU_EXEC_KERNEL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The system calls that are handed to the emulated kernel.  gmemu.exec.kernel has a method for each, in this order. */
enum gmemu_call {
	GMEMU_OPEN,	  /* path, flags */
	GMEMU_CLOSE,	  /* fd */
	GMEMU_DUP,	  /* fd, new fd, which exists already */
	GMEMU_IOCTL,	  /* fd, request, arg */
	GMEMU_MMAP,	  /* address, length, prot, flags, fd, offset */
	GMEMU_MUNMAP,	  /* address, length */
	GMEMU_MPROTECT,	  /* address, length, prot */
	GMEMU_MADVISE,	  /* address, length, advice */
	GMEMU_MREMAP,	  /* address, old length, new length, flags, new address */
	GMEMU_FALLOCATE,  /* fd, mode, offset, length */
	GMEMU_FTRUNCATE,  /* fd, length */
	GMEMU_FSTAT,	  /* fd, struct stat * */
	GMEMU_READ,	  /* fd, buffer, length, offset or -1 */
	GMEMU_WRITE,	  /* fd, buffer, length, offset or -1 */
	GMEMU_FSYNC,	  /* fd */
	GMEMU_FAULT,	  /* address: 0 if the access may be tried again */
	GMEMU_FORK,	  /* 0: about to fork; 1: done, in the parent; 2: in the child */
	GMEMU_REPLACED,	  /* address, length: other memory has taken this place */
	GMEMU_EXIT,	  /* the process ends */
	GMEMU_PIN,	  /* enum gmemu_pin, fd, request, argument, number: about to make a call; a token, or 0 */
	GMEMU_PINNED,	  /* token, result: it returned */
	GMEMU_NR_CALLS,
};

/* Calls of the machine's own kernel by which it may come to hold memory of ours. */
enum gmemu_pin {
	GMEMU_VMSPLICE,		 /* pipe, 0, iov, how many */
	GMEMU_IO_URING_REGISTER, /* ring, opcode, argument, how many */
	GMEMU_DEVICE_IOCTL,	 /* fd, request, argument: VFIO's and iommufd's */
};

/* The emulated kernel doesn't know the path: the machine's own kernel is to be asked. */
#define GMEMU_NOT_OURS (-4096L)

/* What the preloaded library does for the kernel; none of it is intercepted. */
struct gmemu_libc {
	/* Descriptor `fd` leads to a file of the emulated kernel (1), or no longer does (0). */
	void (*mark_fd)(int fd, int ours);
	/* Calls that change the mappings in [start, end) are the emulated kernel's, or no longer are. */
	void (*watch)(uintptr_t start, uintptr_t end, int on);
	/* While a guest runs, signals are let in; one that has a handler stops the guest first. */
	void (*guest_enter)(void *stop, void *argument);
	int (*guest_exit)(void);
	/* The calling thread is the kernel's own. */
	void (*kernel_thread)(void);
	/* Whether signals that the program wants to hear of are waiting for this thread. */
	int (*signal_pending)(void);
	/* dlopen() where the program has a Python of its own. */
	void *(*open_apart)(const char *path, int mode);
	/* KVM_SET_SIGNAL_MASK: while this thread's guest runs these signals are blocked (1), or the program's (0). */
	void (*signal_mask)(int on, unsigned long mask);
};

/*
 * kernel.c: start the interpreter and the emulated kernel.  Returns 0, or -1 having said why on standard error.
 */
int gmemu_kernel_start(const struct gmemu_libc *libc);

/* kernel.c: one system call.  Returns its result or a negative errno. */
long gmemu_kernel_call(enum gmemu_call call, const long arguments[6]);

/* kernel.c: what Python has to know of a fork, in the thread that forks: no other may be inside the interpreter then. */
enum gmemu_fork { GMEMU_FORK_BEFORE, GMEMU_FORK_PARENT, GMEMU_FORK_CHILD };
void gmemu_kernel_fork(enum gmemu_fork stage);

#endif

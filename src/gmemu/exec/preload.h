/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the preloaded library have in common. */
#ifndef GMEMU_EXEC_PRELOAD_H
#define GMEMU_EXEC_PRELOAD_H

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdbool.h>

#define EXPORT __attribute__((visibility("default")))

/* The next definition of `name`: libc's.  Looked up once; that a second thread may look it up too does no harm. */
#define NEXT(name)                                                                                                               \
	({                                                                                                                       \
		static __typeof__(&name) _Atomic next;                                                                           \
		__typeof__(&name) found = atomic_load_explicit(&next, memory_order_relaxed);                                     \
		if (__builtin_expect(!found, 0)) {                                                                               \
			found = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                                      \
			atomic_store_explicit(&next, found, memory_order_relaxed);                                               \
		}                                                                                                                \
		found;                                                                                                           \
	})

/* Whether the calling program's descriptor `fd` leads to a file of the emulated kernel. */
bool fd_is_ours(int fd);

/* The lowest descriptor from `from` on that does; -1 if there is none. */
int next_of_ours(int from);

/* When the library has been loaded: remember what other programs have to be told. */
void remember_environment(void);

/* Load the library at `path`, which needs that of Python: by itself, or apart from a Python that the program has.  NULL: see dlerror(). */
void *load_with_python(const char *path, const char *libpython);

/* dlopen() for the Python that was loaded apart. */
void *open_apart(const char *path, int mode);

#endif

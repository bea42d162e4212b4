/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A Python of our own in a program that has one, too.
 *
 * A program that is, or embeds, Python has that interpreter's symbols where every library finds them first.  So ours gets a copy of each
 * library that belongs to it: of libpython, of the emulated kernel's half in C, of every extension module.  A copy is another file to the
 * dynamic linker, with data of its own.  And what they need of each other is looked for among them first (RTLD_DEEPBIND), then elsewhere:
 * each is loaded by way of an empty library, made in memory, that needs the copy and the copy of libpython.
 *
 * In a program without a Python none of that is done: RTLD_DEEPBIND is more than sanitizers bear.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload.h"

#define NAME_SIZE 512

struct loaded {
	struct loaded *next;
	char *path;
	void *handle;
};

static struct loaded *all;
static char python[NAME_SIZE];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* A name for `fd` that no other had: the dynamic linker takes libraries of one name for the same. */
static void name_of(int fd, char *name)
{
	static int number;
	char slashes[128] = "";

	memset(slashes, '/', (size_t)(++number % 120) + 1);
	snprintf(name, NAME_SIZE, "/proc/self/fd%s%d", slashes, fd);
}

static int copy_of(const char *path)
{
	int from = NEXT(openat)(AT_FDCWD, path, O_RDONLY | O_CLOEXEC), to;
	struct stat st;
	off_t left;

	if (from < 0)
		return -1;
	to = memfd_create(path + (strlen(path) > 200 ? strlen(path) - 200 : 0), MFD_CLOEXEC);
	left = to >= 0 && !NEXT(fstat)(from, &st) ? st.st_size : -1;
	while (left > 0) {
		ssize_t done = sendfile(to, from, NULL, (size_t)left);

		left = done > 0 ? left - done : -1;
	}
	NEXT(close)(from);
	if (left < 0 && to >= 0)
		NEXT(close)(to);
	return left < 0 ? -1 : to;
}

struct empty {
	Elf64_Ehdr head;
	Elf64_Phdr segments[3];
	Elf64_Dyn dynamic[8];
	Elf64_Sym symbol;
	uint32_t hash[4];
	char strings[2 * NAME_SIZE + 2];
};

/* A shared library with nothing in it that needs `names`, which are two. */
static int empty_library(const char *const names[2])
{
	struct empty library = {
		.head = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
			 .e_type = ET_DYN,
			 .e_machine = EM_X86_64,
			 .e_version = EV_CURRENT,
			 .e_phoff = sizeof(Elf64_Ehdr),
			 .e_ehsize = sizeof(Elf64_Ehdr),
			 .e_phentsize = sizeof(Elf64_Phdr),
			 .e_phnum = 3},
		.hash = {1, 1, 0, 0},
	};
	const size_t dynamic = offsetof(struct empty, dynamic), strings = offsetof(struct empty, strings);
	const size_t second = strlen(names[0]) + 2;
	int fd = memfd_create("needs", MFD_CLOEXEC);

	library.segments[0] = (Elf64_Phdr){.p_type = PT_LOAD,
					   .p_flags = PF_R | PF_W,
					   .p_filesz = sizeof(library),
					   .p_memsz = sizeof(library),
					   .p_align = 4096};
	library.segments[1] = (Elf64_Phdr){.p_type = PT_DYNAMIC,
					   .p_flags = PF_R | PF_W,
					   .p_offset = dynamic,
					   .p_vaddr = dynamic,
					   .p_filesz = sizeof(library.dynamic),
					   .p_memsz = sizeof(library.dynamic),
					   .p_align = 8};
	library.segments[2] = (Elf64_Phdr){.p_type = PT_GNU_STACK, .p_flags = PF_R | PF_W, .p_align = 16};
	library.dynamic[0] = (Elf64_Dyn){DT_NEEDED, {1}};
	library.dynamic[1] = (Elf64_Dyn){DT_NEEDED, {second}};
	library.dynamic[2] = (Elf64_Dyn){DT_STRTAB, {strings}};
	library.dynamic[3] = (Elf64_Dyn){DT_STRSZ, {sizeof(library.strings)}};
	library.dynamic[4] = (Elf64_Dyn){DT_SYMTAB, {offsetof(struct empty, symbol)}};
	library.dynamic[5] = (Elf64_Dyn){DT_SYMENT, {sizeof(Elf64_Sym)}};
	library.dynamic[6] = (Elf64_Dyn){DT_HASH, {offsetof(struct empty, hash)}};
	strcpy(library.strings + 1, names[0]);
	strcpy(library.strings + second, names[1]);
	if (fd >= 0 && NEXT(write)(fd, &library, sizeof(library)) != sizeof(library)) {
		NEXT(close)(fd);
		return -1;
	}
	return fd;
}

static void *load_copy(const char *path, int mode)
{
	char copy_name[NAME_SIZE], library_name[NAME_SIZE];
	const char *names[2] = {copy_name, python};
	int copy = copy_of(path), library;
	void *handle = NULL;

	if (copy < 0)
		return NULL;
	name_of(copy, copy_name);
	library = empty_library(names);
	if (library >= 0) {
		name_of(library, library_name);
		handle = dlopen(library_name, (mode & ~RTLD_GLOBAL) | RTLD_DEEPBIND);
		NEXT(close)(library);
	}
	NEXT(close)(copy);
	return handle;
}

void *open_apart(const char *path, int mode)
{
	struct loaded *found;

	if (!path || !strchr(path, '/') || mode & RTLD_NOLOAD)
		return dlopen(path, mode);
	pthread_mutex_lock(&lock);
	for (found = all; found && strcmp(found->path, path); found = found->next)
		;
	if (!found && (found = malloc(sizeof(*found)))) {
		*found = (struct loaded){all, strdup(path), load_copy(path, mode)};
		if (found->handle) {
			all = found;
		} else {
			free(found->path);
			free(found);
			found = NULL;
		}
	}
	pthread_mutex_unlock(&lock);
	return found ? found->handle : NULL;
}

void *load_with_python(const char *path, const char *libpython)
{
	void *handle = NULL;
	int copy;

	if (!dlsym(RTLD_DEFAULT, "Py_IsInitialized"))
		return dlopen(libpython, RTLD_NOW | RTLD_GLOBAL) ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
	copy = copy_of(libpython);
	if (copy >= 0) {
		name_of(copy, python);
		handle = open_apart(path, RTLD_NOW);
		NEXT(close)(copy);
	}
	return handle;
}

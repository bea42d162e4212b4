/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Programs that the program starts, and descriptors that it hands to other processes.
 *
 * A program that is started finds the emulated machine too (one of its own), also where its environment was cleared.  One that nothing
 * can be put in front of (statically linked, another C library, 32-bit) would find the real /dev/kvm: it isn't started if it names that
 * device, and gets no KVM from the real kernel if it doesn't.
 *
 * Code here runs in children of vfork(), too: no memory is allocated.
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload.h"

#define MAX_KEPT 32
#define MAX_SCRIPTS 5
#define PATH_SIZE 4096

extern char **environ;

enum verdict {
	INTERCEPTED, /* the dynamic linker puts this library in front of it */
	CONFINED,    /* it doesn't, but the program doesn't know of KVM */
	REFUSED,
};

struct judgement {
	enum verdict verdict;
	const char *why;
};

/* The environment */

static char *kept[MAX_KEPT];
static int nr_kept;
static char own_path[PATH_SIZE];

static bool is_preload(const char *variable)
{
	return !strncmp(variable, "LD_PRELOAD=", 11);
}

void remember_environment(void)
{
	Dl_info info;

	if (!getenv("GMEMU_EXEC_KERNEL") || !dladdr(&kept, &info) || strlen(info.dli_fname) >= sizeof(own_path))
		return;
	strcpy(own_path, info.dli_fname);
	for (char **at = environ; *at && nr_kept < MAX_KEPT; at++)
		if (!strncmp(*at, "GMEMU_EXEC_", 11))
			kept[nr_kept++] = strdup(*at);
}

static bool has_variable(char *const *environment, const char *wanted)
{
	size_t length = (size_t)(strchr(wanted, '=') - wanted) + 1;

	for (; *environment; environment++)
		if (!strncmp(*environment, wanted, length))
			return true;
	return false;
}

static size_t count(char *const *strings)
{
	size_t n = 0;

	while (strings && strings[n])
		n++;
	return n;
}

static size_t preload_size(char *const *environment)
{
	size_t size = 0;

	for (; environment && *environment; environment++)
		if (is_preload(*environment) && strlen(*environment) > size)
			size = strlen(*environment);
	return size + strlen(own_path) + sizeof("LD_PRELOAD=:");
}

/* Fill `result` (room for all of `environment` and MAX_KEPT + 2 more), and `preload` (preload_size()) if it's needed. */
static char *const *complete(char *const *environment, char **result, char *preload)
{
	size_t n = 0;

	if (!own_path[0])
		return environment;
	stpcpy(stpcpy(preload, "LD_PRELOAD="), own_path);
	for (char *const *at = environment; at && *at; at++) {
		if (is_preload(*at) && !strstr(*at, own_path))
			stpcpy(stpcpy(stpcpy(stpcpy(preload, "LD_PRELOAD="), own_path), ":"), *at + 11);
		else if (is_preload(*at))
			preload = *at;
		else
			result[n++] = *at;
	}
	result[n++] = preload;
	result[n] = NULL;
	for (int i = 0; i < nr_kept; i++) {
		if (has_variable(result, kept[i]))
			continue;
		result[n++] = kept[i];
		result[n] = NULL;
	}
	return result;
}

#define COMPLETE(environment)                                                                                                    \
	complete(environment, alloca((count(environment) + MAX_KEPT + 2) * sizeof(char *)), alloca(preload_size(environment)))

/* What kind of program it is */

static bool names_kvm(int fd, size_t size)
{
	void *text = NEXT(mmap)(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	bool found;

	if (text == MAP_FAILED)
		return true; /* nobody knows */
	found = memmem(text, size, "/dev/kvm", 8) != NULL;
	NEXT(munmap)(text, size);
	return found;
}

/* Why nothing can be put in front of an ELF program; NULL if it can. */
static const char *elf_obstacle(int fd, const Elf64_Ehdr *head)
{
	if (head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_machine != EM_X86_64)
		return "isn't a program for 64-bit x86";
	for (int i = 0; i < head->e_phnum; i++) {
		char interpreter[256] = "", *name;
		Elf64_Phdr segment;

		if (NEXT(pread)(fd, &segment, sizeof(segment), (off_t)(head->e_phoff + (size_t)i * head->e_phentsize)) != sizeof(segment))
			break;
		if (segment.p_type != PT_INTERP)
			continue;
		NEXT(pread)(fd, interpreter, sizeof(interpreter) - 1, (off_t)segment.p_offset);
		name = strrchr(interpreter, '/');
		return name && !strncmp(name, "/ld-linux", 9) ? NULL : "is linked with another C library than glibc";
	}
	return "is statically linked";
}

static struct judgement judge_file(const char *path, int depth);

static struct judgement judge_open(int fd, const struct stat *st, int depth)
{
	union {
		Elf64_Ehdr elf;
		char text[PATH_SIZE];
	} head = {.text = ""};
	ssize_t length = NEXT(pread)(fd, &head, sizeof(head) - 1, 0);
	const char *obstacle;

	if (length > 2 && !memcmp(head.text, "#!", 2)) {
		char *name = head.text + 2 + strspn(head.text + 2, " \t");

		name[strcspn(name, " \t\n")] = '\0';
		return depth < MAX_SCRIPTS ? judge_file(name, depth + 1) : (struct judgement){INTERCEPTED, NULL};
	}
	if (length < (ssize_t)sizeof(head.elf) || memcmp(head.elf.e_ident, ELFMAG, SELFMAG))
		return (struct judgement){INTERCEPTED, NULL}; /* the real kernel says what is wrong with it */
	obstacle = elf_obstacle(fd, &head.elf);
	if (obstacle)
		return (struct judgement){names_kvm(fd, (size_t)st->st_size) ? REFUSED : CONFINED, obstacle};
	if ((st->st_mode & S_ISUID && st->st_uid != geteuid()) || (st->st_mode & S_ISGID && st->st_gid != getegid()))
		return (struct judgement){CONFINED, "is set-user-ID"};
	return (struct judgement){INTERCEPTED, NULL};
}

static struct judgement judge_file(const char *path, int depth)
{
	struct judgement result = {INTERCEPTED, NULL};
	const char *name = strrchr(path, '/');
	int fd, error = errno;
	struct stat st;

	if (!own_path[0] || !strncmp(name ? name + 1 : path, "ld-linux", 8))
		return result;
	fd = NEXT(openat)(AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (!NEXT(fstat)(fd, &st) && S_ISREG(st.st_mode))
			result = judge_open(fd, &st, depth);
		NEXT(close)(fd);
	}
	errno = error;
	return result;
}

static void say(const char *path, const char *why, const char *consequence)
{
	dprintf(STDERR_FILENO, "gmemu exec: %s %s: nothing can be put in front of its system calls, so %s\n", path, why, consequence);
}

/*
 * From here on this thread, and whatever it becomes, gets nothing from a real KVM.  Without privilege, so none can be got later.
 * False, with errno EACCES and having said why, where the real kernel hasn't what it takes.
 */
static bool confine(const char *path)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 4),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff00),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xae00, 0, 1), /* KVMIO */
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENODEV),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(*filter), filter};

	if (!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return true;
	say(path, "can't be intercepted",
	    "it would have to be kept from this machine's own /dev/kvm by seccomp, which this machine's kernel lacks or refuses: it isn't "
	    "started. All programs that are dynamically linked with glibc still work");
	errno = EACCES;
	return false;
}

/* 0 if `path` may be started, confined or not, else -1 with errno EACCES, having said why. */
static int may_start(const char *path, bool *confined)
{
	struct judgement judgement = judge_file(path, 0);

	*confined = judgement.verdict == CONFINED;
	if (judgement.verdict != REFUSED)
		return 0;
	say(path, judgement.why, "it would reach this machine's own /dev/kvm, and isn't started. Link it dynamically, with glibc");
	errno = EACCES;
	return -1;
}

/* A new program doesn't have the emulated kernel that its descriptors lead to: it shall find them closed, and no other bytes. */
static void close_ours_on_exec(bool on)
{
	static __thread int changed[64], nr_changed;

	if (!on) {
		while (nr_changed)
			NEXT(fcntl)(changed[--nr_changed], F_SETFD, 0);
		return;
	}
	for (int fd = next_of_ours(0); fd >= 0 && nr_changed < 64; fd = next_of_ours(fd + 1))
		if (NEXT(fcntl)(fd, F_GETFD) == 0 && !NEXT(fcntl)(fd, F_SETFD, FD_CLOEXEC))
			changed[nr_changed++] = fd;
}

/* exec */

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	bool confined;

	if (may_start(path, &confined) || (confined && !confine(path)))
		return -1;
	close_ours_on_exec(true);
	NEXT(execve)(path, argv, COMPLETE(envp));
	close_ours_on_exec(false);
	return -1;
}

EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

/* Where a shell would find `file`; `file` itself if it's nowhere. */
static const char *search(const char *file, char *found)
{
	const char *directories = getenv("PATH");

	if (strchr(file, '/') || !*file)
		return file;
	for (const char *at = directories ? directories : "/bin:/usr/bin", *end; *at; at = *end ? end + 1 : end) {
		end = strchrnul(at, ':');
		if (snprintf(found, PATH_SIZE, "%.*s/%s", (int)(end - at), at == end ? "." : at, file) < PATH_SIZE &&
		    !NEXT(access)(found, X_OK))
			return found;
	}
	return file;
}

EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
	char found[PATH_SIZE];
	bool confined;

	if (may_start(search(file, found), &confined) || (confined && !confine(file)))
		return -1;
	close_ours_on_exec(true);
	NEXT(execvpe)(file, argv, COMPLETE(envp));
	close_ours_on_exec(false);
	return -1;
}

EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

EXPORT int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags)
{
	char named[PATH_SIZE];
	bool confined;

	if (path[0] == '/' || dirfd == AT_FDCWD)
		snprintf(named, sizeof(named), "%s", path);
	else
		snprintf(named, sizeof(named), "/proc/self/fd/%d%s%s", dirfd, path[0] ? "/" : "", path);
	if (may_start(named, &confined) || (confined && !confine(named)))
		return -1;
	close_ours_on_exec(true);
	NEXT(execveat)(dirfd, path, argv, COMPLETE(envp), flags);
	close_ours_on_exec(false);
	return -1;
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	return execveat(fd, "", argv, envp, AT_EMPTY_PATH);
}

/* The arguments from `first` on, up to a null pointer: argv of exec*l*(). */
#define ARGUMENTS(first, ap)                                                                                                     \
	({                                                                                                                       \
		size_t number = 1;                                                                                               \
		char **list;                                                                                                     \
                                                                                                                                 \
		va_start(ap, first);                                                                                             \
		while (va_arg(ap, char *))                                                                                       \
			number++;                                                                                                \
		va_end(ap);                                                                                                      \
		list = alloca((number + 1) * sizeof(char *));                                                                    \
		list[0] = (char *)(first);                                                                                       \
		va_start(ap, first);                                                                                             \
		for (size_t i = 1; i <= number; i++)                                                                             \
			list[i] = va_arg(ap, char *);                                                                            \
		list;                                                                                                            \
	})

EXPORT int execl(const char *path, const char *first, ...)
{
	va_list ap;
	char **argv = ARGUMENTS(first, ap);

	va_end(ap);
	return execve(path, argv, environ);
}

EXPORT int execlp(const char *file, const char *first, ...)
{
	va_list ap;
	char **argv = ARGUMENTS(first, ap);

	va_end(ap);
	return execvpe(file, argv, environ);
}

EXPORT int execle(const char *path, const char *first, ...)
{
	va_list ap;
	char **argv = ARGUMENTS(first, ap);
	char *const *envp = va_arg(ap, char *const *);

	va_end(ap);
	return execve(path, argv, envp);
}

/* posix_spawn: the child is confined by being started from a thread that is */

struct spawn {
	__typeof__(&posix_spawn) function;
	pid_t *pid;
	const char *path;
	const posix_spawn_file_actions_t *actions;
	const posix_spawnattr_t *attributes;
	char *const *argv, *const *envp;
	int result;
};

static void *spawn_confined(void *argument)
{
	struct spawn *s = argument;

	if (!confine(s->path)) {
		s->result = errno;
		return NULL;
	}
	s->result = s->function(s->pid, s->path, s->actions, s->attributes, s->argv, s->envp);
	return NULL;
}

static int spawn(struct spawn *s, const char *path)
{
	pthread_t thread;
	bool confined;

	if (may_start(path, &confined))
		return errno;
	if (!confined)
		return s->function(s->pid, s->path, s->actions, s->attributes, s->argv, s->envp);
	s->result = pthread_create(&thread, NULL, spawn_confined, s);
	if (!s->result)
		pthread_join(thread, NULL);
	return s->result;
}

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
		       char *const argv[], char *const envp[])
{
	struct spawn s = {NEXT(posix_spawn), pid, path, actions, attributes, argv, COMPLETE(envp), 0};

	return spawn(&s, path);
}

EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
			char *const argv[], char *const envp[])
{
	struct spawn s = {NEXT(posix_spawnp), pid, file, actions, attributes, argv, COMPLETE(envp), 0};
	char found[PATH_SIZE];

	return spawn(&s, search(file, found));
}

/* Descriptors in messages: the receiver hasn't the emulated kernel that they lead to. */

static bool carries_ours(const struct msghdr *message)
{
	for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at; at = CMSG_NXTHDR((struct msghdr *)message, at)) {
		size_t number = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < number; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(at) + i * sizeof(int), sizeof(int));
			if (fd_is_ours(fd))
				return true;
		}
	}
	return false;
}

static bool refuses(const struct msghdr *message)
{
	if (!message || !message->msg_control || message->msg_controllen < CMSG_LEN(sizeof(int)) || !carries_ours(message))
		return false;
	dprintf(STDERR_FILENO, "gmemu exec: a descriptor of the emulated kernel can't be sent in a message (SCM_RIGHTS): it's known in this "
			       "process and its forks only\n");
	errno = EOPNOTSUPP;
	return true;
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	return refuses(message) ? -1 : NEXT(sendmsg)(fd, message, flags);
}

EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned number, int flags)
{
	for (unsigned i = 0; i < number; i++)
		if (refuses(&messages[i].msg_hdr))
			return -1;
	return NEXT(sendmmsg)(fd, messages, number, flags);
}

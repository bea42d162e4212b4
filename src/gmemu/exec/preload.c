/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * In front of libc: which calls are for the emulated kernel?
 *
 * A descriptor is ours if its bit is set; an address is, if it lies in a watched range.  Everything else goes straight on, at the
 * price of one load and one branch.  A call that the kernel makes itself (it's Python, in this same process) is never taken.
 *
 * While the emulated kernel works for a thread, that thread's signals wait, as they do in a real kernel.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"
#include "preload.h"

#define MAX_FDS (1 << 20)
#define MAX_RANGES 4096

static _Atomic unsigned char fd_ours[MAX_FDS];
static __thread int in_kernel __attribute__((tls_model("initial-exec")));

static inline bool is_ours(int fd)
{
	return __builtin_expect((unsigned)fd < MAX_FDS, 1) &&
	       __builtin_expect(atomic_load_explicit(&fd_ours[fd], memory_order_acquire), 0) && !in_kernel;
}

bool fd_is_ours(int fd)
{
	return is_ours(fd);
}

int next_of_ours(int from)
{
	const void *found = from < MAX_FDS ? memchr((const void *)(fd_ours + from), 1, (size_t)(MAX_FDS - from)) : NULL;

	return found ? (int)((const _Atomic unsigned char *)found - fd_ours) : -1;
}

/* Watched ranges: few, sorted, read under a sequence count. */

static struct range {
	uintptr_t start, end;
} ranges[MAX_RANGES];
static _Atomic int nr_ranges;
static _Atomic unsigned ranges_seq;
static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER;

static bool watched_slow(uintptr_t start, uintptr_t end)
{
	unsigned seq;
	bool found;

	do {
		while ((seq = atomic_load(&ranges_seq)) & 1)
			;
		found = false;
		for (int i = 0, n = atomic_load(&nr_ranges); i < n && !found; i++)
			found = ranges[i].start < end && start < ranges[i].end;
	} while (atomic_load(&ranges_seq) != seq);
	return found;
}

static inline bool is_watched(const void *address, size_t length)
{
	if (__builtin_expect(!atomic_load_explicit(&nr_ranges, memory_order_acquire), 1) || in_kernel)
		return false;
	return watched_slow((uintptr_t)address, (uintptr_t)address + length);
}

/*
 * Take [start, end) out of what is watched, and put it in again if it's to be.  If there would be too many pieces, all that lies between
 * them is watched as well, which costs time and nothing else.
 */
static void watch(uintptr_t start, uintptr_t end, int on)
{
	static struct range kept[MAX_RANGES + 2];
	int n = 0;

	pthread_mutex_lock(&ranges_lock);
	for (int i = 0; i < nr_ranges; i++) {
		struct range r = ranges[i];

		if (on && r.start <= end && start <= r.end) {
			start = r.start < start ? r.start : start;
			end = r.end > end ? r.end : end;
			continue;
		}
		if (r.end <= start || end <= r.start) {
			kept[n++] = r;
			continue;
		}
		if (r.start < start)
			kept[n++] = (struct range){r.start, start};
		if (end < r.end)
			kept[n++] = (struct range){end, r.end};
	}
	if (on)
		kept[n++] = (struct range){start, end};
	if (n > MAX_RANGES) {
		for (int i = 1; i < n; i++) {
			kept[0].start = kept[i].start < kept[0].start ? kept[i].start : kept[0].start;
			kept[0].end = kept[i].end > kept[0].end ? kept[i].end : kept[0].end;
		}
		n = 1;
	}
	atomic_fetch_add(&ranges_seq, 1);
	memcpy(ranges, kept, n * sizeof(*kept));
	atomic_store(&nr_ranges, n);
	atomic_fetch_add(&ranges_seq, 1);
	pthread_mutex_unlock(&ranges_lock);
}

/* Signals */

static struct sigaction program_action[NSIG];
static __thread void *guest_stop __attribute__((tls_model("initial-exec")));
static __thread void *guest_argument __attribute__((tls_model("initial-exec")));
static __thread sigset_t program_mask __attribute__((tls_model("initial-exec")));
static __thread int held_signals __attribute__((tls_model("initial-exec")));
static __thread sigset_t run_mask __attribute__((tls_model("initial-exec")));
static __thread int has_run_mask __attribute__((tls_model("initial-exec")));

/*
 * To block signals for a call and let them in again costs as much as two system calls do, a third of a short ioctl.  So for those nothing
 * is blocked: a signal that comes in the middle is put back, blocked, by its handler, and let in after the call.
 */
#define RUN_VCPU 0xAE80UL
static __thread volatile sig_atomic_t deferring __attribute__((tls_model("initial-exec")));
static __thread volatile sig_atomic_t nr_deferred __attribute__((tls_model("initial-exec")));
static __thread sigset_t deferred __attribute__((tls_model("initial-exec")));

/*
 * A signal may come just before the guest's engine starts, which then doesn't see that it was stopped.  So it's stopped again every
 * millisecond until it has.
 */
#define SIG_AGAIN (SIGRTMAX - 1)
static __thread timer_t again_timer __attribute__((tls_model("initial-exec")));
static __thread int again __attribute__((tls_model("initial-exec"))); /* 0: no timer yet; 1: there; 2: runs */

static void stop_again(long nanoseconds)
{
	struct itimerspec when = {{0, nanoseconds}, {0, nanoseconds}};

	if (again) {
		timer_settime(again_timer, 0, &when, NULL);
		again = nanoseconds ? 2 : 1;
	}
}

static void on_again(int sig)
{
	(void)sig;
	if (guest_stop)
		((void (*)(void *))guest_stop)(guest_argument);
}

/* Without libc, which would keep its own signals out of the mask; and every call makes two of these. */
static int raw_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	register long size __asm__("r10") = NSIG / 8;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"((long)SYS_rt_sigprocmask), "D"((long)how), "S"(set), "d"(old), "r"(size)
			 : "rcx", "r11", "memory");
	return (int)result;
}

/* All but those of a fault in the kernel itself, which must be seen at once. */
static sigset_t blocked;

static void prepare_mask(void)
{
	static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT};

	sigfillset(&blocked);
	for (unsigned i = 0; i < sizeof(faults) / sizeof(*faults); i++)
		sigdelset(&blocked, faults[i]);
}

static void block_signals(sigset_t *old)
{
	raw_sigmask(SIG_SETMASK, &blocked, old);
}

static void mark_fd(int fd, int ours)
{
	if ((unsigned)fd < MAX_FDS)
		atomic_store_explicit(&fd_ours[fd], (unsigned char)ours, memory_order_release);
}

static const sigset_t *guest_mask(void)
{
	return has_run_mask ? &run_mask : &program_mask;
}

static void guest_enter(void *stop, void *argument)
{
	sigset_t mask;

	if (!again) {
		struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIG_AGAIN};
		struct sigaction action = {.sa_handler = on_again, .sa_flags = SA_RESTART};

		event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
		NEXT(sigaction)(SIG_AGAIN, &action, NULL);
		again = timer_create(CLOCK_MONOTONIC, &event, &again_timer) == 0;
	}
	guest_argument = argument;
	guest_stop = stop;
	held_signals = 0;
	mask = *guest_mask();
	sigdelset(&mask, SIG_AGAIN); /* also how other threads stop this one's guest */
	raw_sigmask(SIG_SETMASK, &mask, NULL);
}

/* 1 if a signal stopped the guest.  Its handler runs when the system call returns. */
static int guest_exit(void)
{
	sigset_t ignored;

	guest_stop = NULL;
	block_signals(&ignored);
	if (again == 2)
		stop_again(0);
	return held_signals;
}

static void kernel_thread(void)
{
	sigset_t ignored;

	in_kernel++;
	block_signals(&ignored);
}

static int signal_pending(void)
{
	sigset_t pending;

	if (held_signals)
		return 1;
	sigpending(&pending);
	for (int sig = 1; sig < NSIG; sig++) {
		if (sigismember(&pending, sig) != 1 || sigismember(guest_mask(), sig) == 1)
			continue;
		if (program_action[sig].sa_handler == SIG_IGN)
			continue;
		if (program_action[sig].sa_handler == SIG_DFL && (sig == SIGCHLD || sig == SIGURG || sig == SIGWINCH || sig == SIGCONT))
			continue;
		return 1;
	}
	return 0;
}

static void on_signal(int sig, siginfo_t *info, void *context);

/* Whether this thread's guest is to be met by all signals but those in `mask`, or by those that the program doesn't block. */
static void signal_mask(int on, unsigned long mask)
{
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};

	has_run_mask = on;
	if (!on)
		return;
	sigemptyset(&run_mask);
	for (int sig = 1; sig < NSIG; sig++) {
		if (mask >> (sig - 1) & 1) {
			sigaddset(&run_mask, sig);
			continue;
		}
		/* one that the program only waits for mustn't kill it while the guest runs */
		if (sigismember(&program_mask, sig) == 1 && program_action[sig].sa_handler == SIG_DFL && sig != SIGBUS &&
		    sig != SIGSEGV && sig != SIG_AGAIN)
			NEXT(sigaction)(sig, &action, NULL);
	}
}

/* The kernel */

static int (*kernel_start)(const struct gmemu_libc *);
static long (*kernel_call)(enum gmemu_call, const long[6]);
static void (*kernel_fork)(enum gmemu_fork);
static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int started; /* 1: there; -1: can't be had */

static const struct gmemu_libc libc_half = {mark_fd, watch, guest_enter, guest_exit, kernel_thread, signal_pending, open_apart, signal_mask};

static bool start(void)
{
	const char *path = getenv("GMEMU_EXEC_KERNEL"), *python = getenv("GMEMU_EXEC_LIBPYTHON");
	void *library;

	pthread_mutex_lock(&start_lock);
	if (!started) {
		atomic_store(&started, -1);
		library = path && python ? load_with_python(path, python) : NULL;
		if (!library) {
			fprintf(stderr, "gmemu exec: the emulated kernel can't be loaded: %s\n", path && python ? dlerror() : "GMEMU_EXEC_KERNEL and GMEMU_EXEC_LIBPYTHON aren't set");
		} else {
			kernel_start = (__typeof__(kernel_start))dlsym(library, "gmemu_kernel_start");
			kernel_call = (__typeof__(kernel_call))dlsym(library, "gmemu_kernel_call");
			kernel_fork = (__typeof__(kernel_fork))dlsym(library, "gmemu_kernel_fork");
			if (kernel_start && kernel_call && kernel_fork && kernel_start(&libc_half) == 0)
				atomic_store(&started, 1);
		}
	}
	pthread_mutex_unlock(&start_lock);
	return started == 1;
}

static void let_in(void)
{
	sigset_t waiting = deferred;

	nr_deferred = 0;
	sigemptyset(&deferred);
	raw_sigmask(SIG_UNBLOCK, &waiting, NULL);
}

static long call(enum gmemu_call nr, long a, long b, long c, long d, long e, long f)
{
	const long arguments[6] = {a, b, c, d, e, f};
	int error = errno;
	bool defer = nr == GMEMU_IOCTL && (unsigned)b != RUN_VCPU && started == 1;
	sigset_t outer;
	long result;

	if (defer) {
		deferring = 1;
	} else {
		block_signals(&outer);
		program_mask = outer;
	}
	in_kernel++;
	if (__builtin_expect(started != 1, 0) && !start())
		result = -ENODEV;
	else
		result = kernel_call(nr, arguments);
	in_kernel--;
	held_signals = 0;
	if (defer) {
		deferring = 0;
		if (nr_deferred)
			let_in();
	} else {
		raw_sigmask(SIG_SETMASK, &outer, NULL);
	}
	errno = error;
	return result;
}

#define CALL6(nr, a, b, c, d, e, f, ...) call(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define KERNEL(nr, ...) CALL6(nr, __VA_ARGS__, 0, 0, 0, 0, 0, 0)

static long returned(long result)
{
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/* Files */

static bool path_is_ours(const char *path)
{
	if (in_kernel || path[0] != '/' || started == -1)
		return false;
	if (!strncmp(path, "/dev/", 5))
		return !strcmp(path + 5, "kvm") || !strcmp(path + 5, "sev");
	if (!strncmp(path, "/sys/", 5))
		return !strncmp(path + 5, "module/kvm", 10) || !strcmp(path + 5, "kernel/debug/gup_test");
	if (!strncmp(path, "/proc/self/fd/", 14))
		return is_ours(atoi(path + 14));
	return false;
}

/* Whether the machine's own /dev/kvm was opened by another name: then it's given back. */
static int not_the_real_one(int fd)
{
	struct stat st;

	if (fd >= 0 && !NEXT(fstat)(fd, &st) && S_ISCHR(st.st_mode) && st.st_rdev == ((10UL << 8) | 232)) {
		NEXT(close)(fd);
		errno = ENXIO;
		return -1;
	}
	return fd;
}

static long open_ours(const char *path, int flags)
{
	return path_is_ours(path) ? KERNEL(GMEMU_OPEN, path, flags) : GMEMU_NOT_OURS;
}

#define OPEN(name, parameters, arguments)                                                                                        \
	EXPORT int name parameters                                                                                               \
	{                                                                                                                        \
		mode_t mode = 0;                                                                                                 \
		long result;                                                                                                     \
                                                                                                                                 \
		if (flags & (O_CREAT | __O_TMPFILE)) {                                                                           \
			va_list ap;                                                                                              \
                                                                                                                                 \
			va_start(ap, flags);                                                                                     \
			mode = va_arg(ap, mode_t);                                                                               \
			va_end(ap);                                                                                              \
		}                                                                                                                \
		result = open_ours(path, flags);                                                                                 \
		if (result != GMEMU_NOT_OURS)                                                                                    \
			return (int)returned(result);                                                                            \
		result = NEXT(name) arguments;                                                                                   \
		return !in_kernel && strstr(path, "kvm") ? not_the_real_one((int)result) : (int)result;                  \
	}

OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int dirfd, const char *path, int flags, ...), (dirfd, path, flags, mode))
OPEN(openat64, (int dirfd, const char *path, int flags, ...), (dirfd, path, flags, mode))

EXPORT int __open_2(const char *path, int flags)
{
	return open(path, flags);
}

EXPORT int __open64_2(const char *path, int flags)
{
	return open64(path, flags);
}

EXPORT int __openat_2(int dirfd, const char *path, int flags)
{
	return openat(dirfd, path, flags);
}

EXPORT int __openat64_2(int dirfd, const char *path, int flags)
{
	return openat64(dirfd, path, flags);
}

EXPORT int access(const char *path, int mode)
{
	if (path_is_ours(path) && !strncmp(path, "/dev/", 5)) {
		int fd = open(path, O_RDWR | O_CLOEXEC);

		return fd < 0 ? -1 : close(fd);
	}
	return NEXT(access)(path, mode);
}

static void forget_fd(int fd)
{
	KERNEL(GMEMU_CLOSE, fd);
}

EXPORT int close(int fd)
{
	if (is_ours(fd))
		forget_fd(fd);
	return NEXT(close)(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	if (!in_kernel && !flags)
		for (unsigned fd = first; fd <= last && fd < MAX_FDS; fd++)
			if (is_ours((int)fd))
				forget_fd((int)fd);
	return NEXT(close_range)(first, last, flags);
}

EXPORT void closefrom(int first)
{
	if (!in_kernel)
		for (int fd = first < 0 ? 0 : first; fd < MAX_FDS; fd++)
			if (is_ours(fd))
				forget_fd(fd);
	NEXT(closefrom)(first);
}

static int duplicated(int fd, int copy)
{
	if (copy >= 0 && is_ours(fd) && copy != fd) {
		long result = KERNEL(GMEMU_DUP, fd, copy);

		if (result < 0) {
			NEXT(close)(copy);
			return (int)returned(result);
		}
	}
	return copy;
}

EXPORT int dup(int fd)
{
	return duplicated(fd, NEXT(dup)(fd));
}

EXPORT int dup2(int fd, int copy)
{
	if (fd != copy && is_ours(copy))
		forget_fd(copy);
	return duplicated(fd, NEXT(dup2)(fd, copy));
}

EXPORT int dup3(int fd, int copy, int flags)
{
	if (fd != copy && is_ours(copy))
		forget_fd(copy);
	return duplicated(fd, NEXT(dup3)(fd, copy, flags));
}

#define FCNTL(name)                                                                                                              \
	EXPORT int name(int fd, int command, ...)                                                                                \
	{                                                                                                                        \
		va_list ap;                                                                                                      \
		long argument;                                                                                                   \
		int result;                                                                                                      \
                                                                                                                                 \
		va_start(ap, command);                                                                                           \
		argument = va_arg(ap, long);                                                                                     \
		va_end(ap);                                                                                                      \
		result = NEXT(name)(fd, command, argument);                                                                      \
		return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? duplicated(fd, result) : result;                       \
	}

FCNTL(fcntl)
FCNTL(fcntl64)

/* A call by which the machine's kernel may come to hold memory of ours: the emulated one is told, before and after. */
#define PINNING(made, ...)                                                                                                       \
	({                                                                                                                       \
		long token = nr_ranges && !in_kernel ? KERNEL(GMEMU_PIN, __VA_ARGS__) : 0, result = (made);                      \
                                                                                                                                 \
		if (token > 0)                                                                                                   \
			KERNEL(GMEMU_PINNED, token, result);                                                                     \
		result;                                                                                                          \
	})

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	long argument;

	va_start(ap, request);
	argument = va_arg(ap, long);
	va_end(ap);
	if (is_ours(fd))
		return (int)returned(KERNEL(GMEMU_IOCTL, fd, request, argument));
	if (__builtin_expect((request >> 8 & 0xff) == ';', 0)) /* VFIO's and iommufd's */
		return (int)PINNING(NEXT(ioctl)(fd, request, argument), GMEMU_DEVICE_IOCTL, fd, request, argument);
	return NEXT(ioctl)(fd, request, argument);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
	if (is_ours(fd))
		return (int)returned(KERNEL(GMEMU_FALLOCATE, fd, mode, offset, length));
	return NEXT(fallocate)(fd, mode, offset, length);
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
	return fallocate(fd, mode, offset, length);
}

EXPORT int ftruncate(int fd, off_t length)
{
	if (is_ours(fd))
		return (int)returned(KERNEL(GMEMU_FTRUNCATE, fd, length));
	return NEXT(ftruncate)(fd, length);
}

EXPORT int ftruncate64(int fd, off64_t length)
{
	return ftruncate(fd, length);
}

EXPORT int fstat(int fd, struct stat *st)
{
	if (is_ours(fd)) {
		if (NEXT(fstat)(fd, st))
			return -1;
		return (int)returned(KERNEL(GMEMU_FSTAT, fd, st));
	}
	return NEXT(fstat)(fd, st);
}

EXPORT int fstat64(int fd, struct stat64 *st)
{
	return fstat(fd, (struct stat *)st);
}

EXPORT int fsync(int fd)
{
	return is_ours(fd) ? (int)returned(KERNEL(GMEMU_FSYNC, fd)) : NEXT(fsync)(fd);
}

EXPORT int fdatasync(int fd)
{
	return is_ours(fd) ? (int)returned(KERNEL(GMEMU_FSYNC, fd)) : NEXT(fdatasync)(fd);
}

EXPORT ssize_t read(int fd, void *buffer, size_t length)
{
	return is_ours(fd) ? returned(KERNEL(GMEMU_READ, fd, buffer, length, -1)) : NEXT(read)(fd, buffer, length);
}

EXPORT ssize_t write(int fd, const void *buffer, size_t length)
{
	return is_ours(fd) ? returned(KERNEL(GMEMU_WRITE, fd, buffer, length, -1)) : NEXT(write)(fd, buffer, length);
}

EXPORT ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
	return is_ours(fd) ? returned(KERNEL(GMEMU_READ, fd, buffer, length, offset)) : NEXT(pread)(fd, buffer, length, offset);
}

EXPORT ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
	return is_ours(fd) ? returned(KERNEL(GMEMU_WRITE, fd, buffer, length, offset)) : NEXT(pwrite)(fd, buffer, length, offset);
}

EXPORT ssize_t pread64(int fd, void *buffer, size_t length, off64_t offset)
{
	return pread(fd, buffer, length, offset);
}

EXPORT ssize_t pwrite64(int fd, const void *buffer, size_t length, off64_t offset)
{
	return pwrite(fd, buffer, length, offset);
}

/* Memory */

EXPORT void *mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
	void *result;

	if (!(flags & MAP_ANONYMOUS) && is_ours(fd))
		return (void *)returned(KERNEL(GMEMU_MMAP, address, length, prot, flags, fd, offset));
	result = NEXT(mmap)(address, length, prot, flags, fd, offset);
	if (flags & MAP_FIXED && result != MAP_FAILED && is_watched(address, length))
		KERNEL(GMEMU_REPLACED, address, length);
	return result;
}

EXPORT void *mmap64(void *address, size_t length, int prot, int flags, int fd, off64_t offset)
{
	return mmap(address, length, prot, flags, fd, offset);
}

EXPORT int munmap(void *address, size_t length)
{
	if (is_watched(address, length))
		return (int)returned(KERNEL(GMEMU_MUNMAP, address, length));
	return NEXT(munmap)(address, length);
}

EXPORT int mprotect(void *address, size_t length, int prot)
{
	if (is_watched(address, length))
		return (int)returned(KERNEL(GMEMU_MPROTECT, address, length, prot));
	return NEXT(mprotect)(address, length, prot);
}

EXPORT int madvise(void *address, size_t length, int advice)
{
	if (is_watched(address, length))
		return (int)returned(KERNEL(GMEMU_MADVISE, address, length, advice));
	return NEXT(madvise)(address, length, advice);
}

EXPORT void *mremap(void *address, size_t old, size_t new, int flags, ...)
{
	va_list ap;
	void *to;

	va_start(ap, flags);
	to = va_arg(ap, void *);
	va_end(ap);
	if (is_watched(address, old) || (flags & MREMAP_FIXED && is_watched(to, new)))
		return (void *)returned(KERNEL(GMEMU_MREMAP, address, old, new, flags, to));
	return NEXT(mremap)(address, old, new, flags, to);
}

/* References to memory that the machine's own kernel takes for the program */

EXPORT ssize_t vmsplice(int fd, const struct iovec *iov, size_t number, unsigned flags)
{
	return PINNING(NEXT(vmsplice)(fd, iov, number, flags), GMEMU_VMSPLICE, fd, 0, iov, number);
}

/* liburing, where it is linked to: as its own header has these. */
struct io_uring;
int io_uring_register_buffers(struct io_uring *, const struct iovec *, unsigned);
int io_uring_register_buffers_tags(struct io_uring *, const struct iovec *, const unsigned long long *, unsigned);
int io_uring_register_buffers_update_tag(struct io_uring *, unsigned, const struct iovec *, const unsigned long long *, unsigned);

static int ring_fd(const struct io_uring *ring)
{
	return ((const int *)ring)[49]; /* behind the two queues (104 and 88 bytes) and the flags */
}

EXPORT int io_uring_register_buffers(struct io_uring *ring, const struct iovec *iov, unsigned number)
{
	return (int)PINNING(NEXT(io_uring_register_buffers)(ring, iov, number), GMEMU_IO_URING_REGISTER, ring_fd(ring), 0, iov, number);
}

EXPORT int io_uring_register_buffers_tags(struct io_uring *ring, const struct iovec *iov, const unsigned long long *tags, unsigned number)
{
	return (int)PINNING(NEXT(io_uring_register_buffers_tags)(ring, iov, tags, number), GMEMU_IO_URING_REGISTER, ring_fd(ring), 0, iov,
			    number);
}

EXPORT int io_uring_register_buffers_update_tag(struct io_uring *ring, unsigned first, const struct iovec *iov,
						const unsigned long long *tags, unsigned number)
{
	return (int)PINNING(NEXT(io_uring_register_buffers_update_tag)(ring, first, iov, tags, number), GMEMU_IO_URING_REGISTER,
			    ring_fd(ring), 0, iov, number);
}

EXPORT long syscall(long number, ...)
{
	va_list ap;
	long a[6];

	va_start(ap, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	switch (number) { /* what is caught by its name in libc is caught by its number, too */
	case SYS_vmsplice:
		return vmsplice((int)a[0], (const struct iovec *)a[1], (size_t)a[2], (unsigned)a[3]);
	case SYS_io_uring_register:
		return PINNING(NEXT(syscall)(number, a[0], a[1], a[2], a[3]), GMEMU_IO_URING_REGISTER, a[0], a[1], a[2], a[3]);
	case SYS_open:
		return open((const char *)a[0], (int)a[1], (mode_t)a[2]);
	case SYS_openat:
		return openat((int)a[0], (const char *)a[1], (int)a[2], (mode_t)a[3]);
	case SYS_close:
		return close((int)a[0]);
	case SYS_close_range:
		return close_range((unsigned)a[0], (unsigned)a[1], (int)a[2]);
	case SYS_dup:
		return dup((int)a[0]);
	case SYS_dup2:
		return dup2((int)a[0], (int)a[1]);
	case SYS_dup3:
		return dup3((int)a[0], (int)a[1], (int)a[2]);
	case SYS_fcntl:
		return fcntl((int)a[0], (int)a[1], a[2]);
	case SYS_ioctl:
		return ioctl((int)a[0], (unsigned long)a[1], a[2]);
	case SYS_fstat:
		return fstat((int)a[0], (struct stat *)a[1]);
	case SYS_fallocate:
		return fallocate((int)a[0], (int)a[1], a[2], a[3]);
	case SYS_ftruncate:
		return ftruncate((int)a[0], a[1]);
	case SYS_read:
		return read((int)a[0], (void *)a[1], (size_t)a[2]);
	case SYS_write:
		return write((int)a[0], (const void *)a[1], (size_t)a[2]);
	case SYS_pread64:
		return pread((int)a[0], (void *)a[1], (size_t)a[2], a[3]);
	case SYS_pwrite64:
		return pwrite((int)a[0], (const void *)a[1], (size_t)a[2], a[3]);
	case SYS_mmap:
		return (long)mmap((void *)a[0], (size_t)a[1], (int)a[2], (int)a[3], (int)a[4], a[5]);
	case SYS_munmap:
		return munmap((void *)a[0], (size_t)a[1]);
	case SYS_mprotect:
		return mprotect((void *)a[0], (size_t)a[1], (int)a[2]);
	case SYS_madvise:
		return madvise((void *)a[0], (size_t)a[1], (int)a[2]);
	case SYS_mremap:
		return (long)mremap((void *)a[0], (size_t)a[1], (size_t)a[2], (int)a[3], (void *)a[4]);
	case SYS_sendmsg:
		return sendmsg((int)a[0], (const struct msghdr *)a[1], (int)a[2]);
	case SYS_execve:
		return execve((const char *)a[0], (char *const *)a[1], (char *const *)a[2]);
	case SYS_execveat:
		return execveat((int)a[0], (const char *)a[1], (char *const *)a[2], (char *const *)a[3], (int)a[4]);
	}
	return NEXT(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Signals that the program sends itself, or gets */

static void deliver(int sig, siginfo_t *info, void *context)
{
	struct sigaction action = program_action[sig];

	if (action.sa_flags & (int)SA_RESETHAND) {
		struct sigaction reset = {.sa_handler = SIG_DFL};

		program_action[sig].sa_handler = SIG_DFL;
		if (sig != SIGBUS)
			NEXT(sigaction)(sig, &reset, NULL);
	}
	if (action.sa_flags & SA_SIGINFO)
		action.sa_sigaction(sig, info, context);
	else if (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN)
		action.sa_handler(sig);
}

static void die_of(int sig)
{
	struct sigaction action = {.sa_handler = SIG_DFL};

	NEXT(sigaction)(sig, &action, NULL); /* the access is made again, and nobody is in its way */
}

/* SIGBUS: the emulated kernel may know the page.  Then the access is made again; else the program's handler gets the signal. */
static void on_bus_error(int sig, siginfo_t *info, void *context)
{
	if (info->si_code > 0 && is_watched(info->si_addr, 1) && KERNEL(GMEMU_FAULT, info->si_addr) == 0)
		return;
	if (program_action[sig].sa_handler == SIG_DFL || program_action[sig].sa_handler == SIG_IGN) {
		die_of(sig);
		if (info->si_code <= 0)
			raise(sig);
		return;
	}
	deliver(sig, info, context);
}

/* The signal comes again when it's no longer blocked, which it is from here on. */
static void put_back(int sig, siginfo_t *info, void *context)
{
	sigaddset(&((ucontext_t *)context)->uc_sigmask, sig);
	syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), sig, info);
}

/* Any other signal: if it met a guest, the guest is stopped first, and the signal comes again when KVM_RUN has returned. */
static void on_signal(int sig, siginfo_t *info, void *context)
{
	if (guest_stop) {
		((void (*)(void *))guest_stop)(guest_argument);
		held_signals = 1;
		stop_again(1000000);
		put_back(sig, info, context);
	} else if (deferring) {
		sigaddset(&deferred, sig);
		nr_deferred = 1;
		put_back(sig, info, context);
	} else if (program_action[sig].sa_handler == SIG_DFL) {
		die_of(sig);
		raise(sig);
	} else {
		deliver(sig, info, context);
	}
}

EXPORT int sigaction(int sig, const struct sigaction *new, struct sigaction *old)
{
	struct sigaction previous, action;

	if (in_kernel || sig <= 0 || sig >= NSIG || sig == SIGSEGV || sig == SIGKILL || sig == SIGSTOP)
		return NEXT(sigaction)(sig, new, old);
	previous = program_action[sig];
	if (new) {
		bool handled = new->sa_handler != SIG_DFL && new->sa_handler != SIG_IGN;

		action = *new;
		if (sig == SIGBUS) {
			action.sa_sigaction = on_bus_error;
			action.sa_flags = (action.sa_flags | SA_SIGINFO) & ~(int)SA_RESETHAND;
			if (!handled)
				sigemptyset(&action.sa_mask);
		} else if (handled) {
			action.sa_sigaction = on_signal;
			action.sa_flags = (action.sa_flags | SA_SIGINFO) & ~(int)SA_RESETHAND;
		}
		program_action[sig] = *new;
		if (NEXT(sigaction)(sig, &action, NULL)) {
			program_action[sig] = previous;
			return -1;
		}
	} else if (NEXT(sigaction)(sig, NULL, &action)) {
		return -1;
	}
	if (old)
		*old = previous;
	return 0;
}

EXPORT sighandler_t signal(int sig, sighandler_t handler)
{
	struct sigaction new = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;

	return sigaction(sig, &new, &old) ? SIG_ERR : old.sa_handler;
}

/* Life */

static void fork_stage(enum gmemu_fork stage)
{
	if (started != 1 || in_kernel)
		return;
	in_kernel++;
	kernel_fork(stage);
	in_kernel--;
}

static void before_fork(void)
{
	if (started == 1 && !in_kernel)
		KERNEL(GMEMU_FORK, 0);
	fork_stage(GMEMU_FORK_BEFORE);
}

static void forked_parent(void)
{
	fork_stage(GMEMU_FORK_PARENT);
	if (started == 1 && !in_kernel)
		KERNEL(GMEMU_FORK, 1);
}

static void forked_child(void)
{
	again = 0; /* timers aren't handed on */
	fork_stage(GMEMU_FORK_CHILD);
	if (started == 1 && !in_kernel)
		KERNEL(GMEMU_FORK, 2);
}

static void at_exit(void)
{
	if (started == 1 && !in_kernel)
		KERNEL(GMEMU_EXIT, 0);
}

__attribute__((constructor)) static void loaded(void)
{
	struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};

	prepare_mask();
	for (int sig = 1; sig < NSIG; sig++)
		NEXT(sigaction)(sig, NULL, &program_action[sig]);
	NEXT(sigaction)(SIGBUS, &action, NULL);
	remember_environment();
	pthread_atfork(before_fork, forked_parent, forked_child);
	atexit(at_exit);
}

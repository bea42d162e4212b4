/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The emulated kernel's half: brings the interpreter into the process, and hands system calls to gmemu.exec.kernel.
 *
 * Loaded by the preloaded library when the program first asks for KVM; a program that never does pays nothing.  The interpreter is set
 * up from what `gmemu exec` put into the environment, and not from the program's own Python settings.
 *
 * The module `_gmemu_exec` is what Python gets to work with: the process's real memory, and userfaultfd.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"

#define EXPORT __attribute__((visibility("default")))
#define PAGE 4096UL

static const struct gmemu_libc *libc_half;
static PyObject *calls[GMEMU_NR_CALLS];
static int uffd = -1;
static pthread_key_t thread_key;
static __thread PyThreadState *thread_state;

static const char *const call_names[GMEMU_NR_CALLS] = {
	"open",	    "close", "dup",  "ioctl", "mmap",  "munmap", "mprotect", "madvise",	 "mremap", "fallocate",
	"ftruncate", "fstat", "read", "write", "fsync", "fault",  "fork",   "replaced", "exit",
	"pin",	    "pinned",
};

/*
 * Copies between the process's memory and ours, either way.  A page that isn't there is EFAULT, never a signal.
 *
 * What fits into a page goes by way of a file that is mapped here: to write user memory to a file, or to read a file into it, costs a
 * fifth of what process_vm_readv() does.
 */
static long raw_syscall(long nr, long a, const void *b, unsigned long c, const void *d, unsigned long e, unsigned long f)
{
	register const void *r10 __asm__("r10") = d;
	register unsigned long r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return result;
}

/* Neither this nor the system calls by way of libc: a program's AddressSanitizer has its own there, and finds fault with ours. */
static void copy_bytes(void *to, const void *from, size_t length)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
}

static pid_t self_pid;
static int scratch_fd = -1;
static char *scratch;

static void make_scratch(void)
{
	int fd = (int)syscall(SYS_memfd_create, "gmemu-copy", 1 /* MFD_CLOEXEC */), high = fcntl(fd, F_DUPFD_CLOEXEC, 800);
	void *at = MAP_FAILED;

	if (high >= 0) {
		close(fd);
		fd = high;
	}
	if (fd >= 0 && !ftruncate(fd, PAGE))
		at = (void *)syscall(SYS_mmap, NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0L);
	scratch_fd = at == MAP_FAILED ? -1 : fd;
	scratch = at;
}

/* In the child of a fork: the parent goes on using the old one. */
static void drop_scratch(void)
{
	if (scratch_fd >= 0) {
		close(scratch_fd);
		syscall(SYS_munmap, scratch, PAGE);
	}
	scratch_fd = -1;
}

/* Whether the bytes are on this thread's stack, above where we are: then they are there for certain. */
static int on_stack(unsigned long address, size_t length)
{
	static __thread unsigned long bottom, top;
	unsigned long here = (unsigned long)__builtin_frame_address(0);
	pthread_attr_t attributes;
	void *lowest;
	size_t size;

	if (!top) {
		top = 1;
		if (!pthread_getattr_np(pthread_self(), &attributes)) {
			if (!pthread_attr_getstack(&attributes, &lowest, &size)) {
				bottom = (unsigned long)lowest;
				top = bottom + size;
			}
			pthread_attr_destroy(&attributes);
		}
	}
	return bottom <= here && here <= address && address + length <= top;
}

static int copy_in(unsigned long address, char *buffer, size_t length)
{
	struct iovec local = {buffer, length}, remote = {(void *)address, length};

	if (on_stack(address, length)) {
		copy_bytes(buffer, (void *)address, length);
		return 0;
	}
	if (scratch_fd >= 0 && length <= PAGE) {
		if (raw_syscall(SYS_pwrite64, scratch_fd, (void *)address, length, NULL, 0, 0) != (long)length)
			return -1;
		copy_bytes(buffer, scratch, length);
		return 0;
	}
	return raw_syscall(SYS_process_vm_readv, self_pid, &local, 1, &remote, 1, 0) == (long)length ? 0 : -1;
}

static int copy_out(unsigned long address, char *buffer, size_t length)
{
	struct iovec local = {buffer, length}, remote = {(void *)address, length};

	if (scratch_fd >= 0 && length <= PAGE) {
		copy_bytes(scratch, buffer, length);
		return raw_syscall(SYS_pread64, scratch_fd, (void *)address, length, NULL, 0, 0) == (long)length ? 0 : -1;
	}
	return raw_syscall(SYS_process_vm_writev, self_pid, &local, 1, &remote, 1, 0) == (long)length ? 0 : -1;
}

static PyObject *fault(void)
{
	errno = EFAULT;
	return PyErr_SetFromErrno(PyExc_OSError);
}

/* Whether there are so many arguments, all of them numbers: they are put into `words`. */
static int numbers(PyObject *const *args, Py_ssize_t have, Py_ssize_t wanted, unsigned long *words)
{
	if (have != wanted) {
		PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
		return 0;
	}
	for (Py_ssize_t i = 0; i < have; i++) {
		words[i] = PyLong_AsUnsignedLongMask(args[i]);
		if (words[i] == (unsigned long)-1 && PyErr_Occurred())
			return 0;
	}
	return 1;
}

static PyObject *memory_read(PyObject *self, PyObject *const *args, Py_ssize_t nr)
{
	unsigned long words[2];
	PyObject *bytes;

	(void)self;
	if (!numbers(args, nr, 2, words))
		return NULL;
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)words[1]);
	if (bytes && words[1] && copy_in(words[0], PyBytes_AS_STRING(bytes), words[1])) {
		Py_DECREF(bytes);
		return fault();
	}
	return bytes;
}

static PyObject *memory_write(PyObject *self, PyObject *args)
{
	unsigned long address;
	Py_buffer data;
	int failed;

	(void)self;
	if (!PyArg_ParseTuple(args, "ky*", &address, &data))
		return NULL;
	failed = data.len && copy_out(address, data.buf, (size_t)data.len);
	PyBuffer_Release(&data);
	if (failed)
		return fault();
	Py_RETURN_NONE;
}

static PyObject *memory_view(PyObject *self, PyObject *args)
{
	unsigned long address;
	Py_ssize_t length;

	(void)self;
	if (!PyArg_ParseTuple(args, "kn", &address, &length))
		return NULL;
	return PyMemoryView_FromMemory((char *)address, length, PyBUF_WRITE);
}

static PyObject *answer(long result)
{
	if (result < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyLong_FromUnsignedLong((unsigned long)result);
}

static PyObject *memory_mmap(PyObject *self, PyObject *args)
{
	unsigned long address, length, offset;
	int prot, flags, fd;

	(void)self;
	if (!PyArg_ParseTuple(args, "kkiiik", &address, &length, &prot, &flags, &fd, &offset))
		return NULL;
	return answer(syscall(SYS_mmap, address, length, prot, flags, fd, offset));
}

static PyObject *memory_munmap(PyObject *self, PyObject *args)
{
	unsigned long address, length;

	(void)self;
	if (!PyArg_ParseTuple(args, "kk", &address, &length))
		return NULL;
	return answer(syscall(SYS_munmap, address, length));
}

static PyObject *memory_mprotect(PyObject *self, PyObject *args)
{
	unsigned long address, length;
	int prot;

	(void)self;
	if (!PyArg_ParseTuple(args, "kki", &address, &length, &prot))
		return NULL;
	return answer(syscall(SYS_mprotect, address, length, prot));
}

/* Populating may wait for the program's own userfaultfd, so others run meanwhile. */
static PyObject *memory_madvise(PyObject *self, PyObject *const *args, Py_ssize_t nr)
{
	unsigned long words[3];
	long result;

	(void)self;
	if (!numbers(args, nr, 3, words))
		return NULL;
	if (words[2] == MADV_DONTNEED)
		return answer(syscall(SYS_madvise, words[0], words[1], words[2]));
	Py_BEGIN_ALLOW_THREADS
	result = syscall(SYS_madvise, words[0], words[1], words[2]);
	Py_END_ALLOW_THREADS
	return answer(result);
}

static PyObject *memory_mremap(PyObject *self, PyObject *args)
{
	unsigned long address, old, new, to;
	int flags;

	(void)self;
	if (!PyArg_ParseTuple(args, "kkkik", &address, &old, &new, &flags, &to))
		return NULL;
	return answer(syscall(SYS_mremap, address, old, new, flags, to));
}

/* userfaultfd: what the process may not touch */

static PyObject *gate_open(PyObject *self, PyObject *args)
{
	const unsigned long wanted = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
	struct uffdio_api api = {.api = UFFD_API, .features = wanted};
	int error;

	(void)self, (void)args;
	if (uffd >= 0)
		close(uffd);
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (ioctl(uffd, UFFDIO_API, &api)) {
		error = errno;
		close(uffd);
		uffd = -1;
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	int high = fcntl(uffd, F_DUPFD_CLOEXEC, 800); /* low numbers are the program's */

	if (high >= 0) {
		close(uffd);
		uffd = high;
	}
	Py_RETURN_NONE;
}

static PyObject *gate_register(PyObject *self, PyObject *args)
{
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR};
	unsigned long address, length;

	(void)self;
	if (!PyArg_ParseTuple(args, "kk", &address, &length))
		return NULL;
	reg.range = (struct uffdio_range){address, length};
	return answer(ioctl(uffd, UFFDIO_REGISTER, &reg));
}

static PyObject *gate_unregister(PyObject *self, PyObject *args)
{
	unsigned long address, length;
	struct uffdio_range range;

	(void)self;
	if (!PyArg_ParseTuple(args, "kk", &address, &length))
		return NULL;
	range = (struct uffdio_range){address, length};
	return answer(ioctl(uffd, UFFDIO_UNREGISTER, &range));
}

/* Map every page of [address, address + length), which shows `fd` from `offset`: those that are mapped stay, holes are filled. */
static long map_pages(unsigned long address, unsigned long length, int fd, off_t offset)
{
	unsigned long at = 0;

	while (at < length) {
		struct uffdio_continue go = {
			.range = {address + at, length - at},
			.mode = UFFDIO_CONTINUE_MODE_DONTWAKE, /* nobody waits: it's a signal that they got */
		};

		if (!ioctl(uffd, UFFDIO_CONTINUE, &go))
			return 0;
		if (go.mapped > 0) {
			at += (unsigned long)go.mapped;
			continue;
		}
		if (errno == EEXIST || errno == EAGAIN) {
			at += errno == EEXIST ? PAGE : 0;
		} else if (errno != EFAULT || fallocate(fd, 0, offset + (off_t)at, (off_t)(length - at))) {
			return -1;
		}
	}
	return 0;
}

static PyObject *gate_map(PyObject *self, PyObject *const *args, Py_ssize_t nr)
{
	unsigned long words[4];

	(void)self;
	if (!numbers(args, nr, 4, words))
		return NULL;
	return answer(map_pages(words[0], words[1], (int)words[2], (off_t)words[3]));
}

/* libc's half */

static PyObject *mark_fd(PyObject *self, PyObject *args)
{
	int fd, ours;

	(void)self;
	if (!PyArg_ParseTuple(args, "ip", &fd, &ours))
		return NULL;
	libc_half->mark_fd(fd, ours);
	Py_RETURN_NONE;
}

static PyObject *watch(PyObject *self, PyObject *args)
{
	unsigned long start, end;
	int on;

	(void)self;
	if (!PyArg_ParseTuple(args, "kkp", &start, &end, &on))
		return NULL;
	libc_half->watch(start, end, on);
	Py_RETURN_NONE;
}

static PyObject *guest_enter(PyObject *self, PyObject *args)
{
	unsigned long stop, argument;

	(void)self;
	if (!PyArg_ParseTuple(args, "kk", &stop, &argument))
		return NULL;
	libc_half->guest_enter((void *)stop, (void *)argument);
	Py_RETURN_NONE;
}

static PyObject *guest_exit(PyObject *self, PyObject *args)
{
	(void)self, (void)args;
	return PyBool_FromLong(libc_half->guest_exit());
}

static PyObject *kernel_thread(PyObject *self, PyObject *args)
{
	(void)self, (void)args;
	libc_half->kernel_thread();
	Py_RETURN_NONE;
}

static PyObject *signal_pending(PyObject *self, PyObject *args)
{
	(void)self, (void)args;
	return PyBool_FromLong(libc_half->signal_pending());
}

static PyObject *signal_mask(PyObject *self, PyObject *args)
{
	unsigned long mask;
	int on;

	(void)self;
	if (!PyArg_ParseTuple(args, "pk", &on, &mask))
		return NULL;
	libc_half->signal_mask(on, mask);
	Py_RETURN_NONE;
}

static unsigned long long first_tsc, first_ns;

static unsigned long long tsc(void)
{
	unsigned int low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (unsigned long long)high << 32 | low;
}

static PyObject *read_tsc(PyObject *self, PyObject *args)
{
	(void)self, (void)args;
	return Py_BuildValue("KKK", tsc(), first_tsc, first_ns);
}

static PyMethodDef methods[] = {
	{"read", (PyCFunction)(void (*)(void))memory_read, METH_FASTCALL, NULL},
	{"write", memory_write, METH_VARARGS, NULL},
	{"view", memory_view, METH_VARARGS, NULL},
	{"mmap", memory_mmap, METH_VARARGS, NULL},
	{"munmap", memory_munmap, METH_VARARGS, NULL},
	{"mprotect", memory_mprotect, METH_VARARGS, NULL},
	{"madvise", (PyCFunction)(void (*)(void))memory_madvise, METH_FASTCALL, NULL},
	{"mremap", memory_mremap, METH_VARARGS, NULL},
	{"gate_open", gate_open, METH_NOARGS, NULL},
	{"gate_register", gate_register, METH_VARARGS, NULL},
	{"gate_unregister", gate_unregister, METH_VARARGS, NULL},
	{"gate_map", (PyCFunction)(void (*)(void))gate_map, METH_FASTCALL, NULL},
	{"mark_fd", mark_fd, METH_VARARGS, NULL},
	{"watch", watch, METH_VARARGS, NULL},
	{"guest_enter", guest_enter, METH_VARARGS, NULL},
	{"guest_exit", guest_exit, METH_NOARGS, NULL},
	{"kernel_thread", kernel_thread, METH_NOARGS, NULL},
	{"signal_pending", signal_pending, METH_NOARGS, NULL},
	{"signal_mask", signal_mask, METH_VARARGS, NULL},
	{"read_tsc", read_tsc, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_gmemu_exec", NULL, -1, methods, NULL, NULL, NULL, NULL};

static PyObject *make_module(void)
{
	return PyModule_Create(&module);
}

/* Threads: each keeps its thread state from its first call to its end. */

static void thread_ends(void *state)
{
	PyEval_RestoreThread(state);
	PyThreadState_Clear(state);
	PyThreadState_DeleteCurrent();
	thread_state = NULL;
}

static void enter_python(void)
{
	if (!thread_state) {
		thread_state = PyThreadState_New(PyInterpreterState_Main());
		pthread_setspecific(thread_key, thread_state);
	}
	PyEval_RestoreThread(thread_state);
}

/* How many words a call has; all, unless it's one that is made often. */
static int words_of(enum gmemu_call nr)
{
	return nr == GMEMU_IOCTL ? 3 : 6;
}

EXPORT long gmemu_kernel_call(enum gmemu_call nr, const long arguments[6])
{
	PyObject *numbers[6], *result;
	long value = -EIO;
	int count = words_of(nr);

	enter_python();
	for (int i = 0; i < count; i++)
		numbers[i] = PyLong_FromUnsignedLong((unsigned long)arguments[i]);
	result = PyObject_Vectorcall(calls[nr], numbers, (size_t)count, NULL);
	for (int i = 0; i < count; i++)
		Py_XDECREF(numbers[i]);
	if (result) {
		value = PyLong_AsLong(result);
		Py_DECREF(result);
	}
	if (PyErr_Occurred()) {
		PyErr_Print(); /* a bug of ours: its story goes to standard error, and the program gets EIO */
		value = -EIO;
	}
	thread_state = PyEval_SaveThread();
	return value;
}

EXPORT void gmemu_kernel_fork(enum gmemu_fork stage)
{
	switch (stage) {
	case GMEMU_FORK_BEFORE:
		enter_python();
		PyOS_BeforeFork();
		break;
	case GMEMU_FORK_PARENT:
		PyOS_AfterFork_Parent();
		thread_state = PyEval_SaveThread();
		break;
	case GMEMU_FORK_CHILD:
		self_pid = getpid();
		drop_scratch();
		make_scratch();
		PyOS_AfterFork_Child();
		thread_state = PyEval_SaveThread();
		break;
	}
}

/* Where the program has a Python of its own, ours is loaded so that it finds this one before libc's. */
EXPORT void *dlopen(const char *path, int mode)
{
	return libc_half->open_apart(path, mode);
}

/* Start */

static int complain(const char *what)
{
	fprintf(stderr, "gmemu exec: %s\n", what);
	if (PyErr_Occurred())
		PyErr_Print();
	return -1;
}

/* GMEMU_EXEC_PATH is the module search path of the gmemu that was started, with ':' between. */
static int set_paths(PyConfig *config)
{
	const char *path = getenv("GMEMU_EXEC_PATH"), *program = getenv("GMEMU_EXEC_PYTHON");
	char *parts, *rest, *part;

	if (!path || !program)
		return complain("GMEMU_EXEC_PATH and GMEMU_EXEC_PYTHON aren't set: start the program by gmemu exec");
	if (PyStatus_Exception(PyConfig_SetBytesString(config, &config->program_name, program)))
		return -1;
	parts = rest = strdup(path);
	config->module_search_paths_set = 1;
	while ((part = strsep(&rest, ":"))) {
		wchar_t *wide = Py_DecodeLocale(part, NULL);

		if (wide && *part)
			PyWideStringList_Append(&config->module_search_paths, wide);
		PyMem_RawFree(wide);
	}
	free(parts);
	return 0;
}

static int start_python(void)
{
	PyConfig config;
	PyStatus status;

	PyConfig_InitIsolatedConfig(&config);
	config.site_import = 0; /* the search path is given, and nothing of a site's start-up files is wanted here */
	config.install_signal_handlers = 0;
	config.write_bytecode = 1;
	if (set_paths(&config)) {
		PyConfig_Clear(&config);
		return -1;
	}
	status = Py_InitializeFromConfig(&config);
	PyConfig_Clear(&config);
	if (PyStatus_Exception(status)) {
		fprintf(stderr, "gmemu exec: Python doesn't start: %s\n", status.err_msg ? status.err_msg : "no reason given");
		return -1;
	}
	return 0;
}

static int start_kernel(void)
{
	PyObject *kernel = PyImport_ImportModule("gmemu.exec.kernel"), *start, *real, *object;

	if (!kernel)
		return complain("gmemu.exec.kernel can't be imported");
	start = PyObject_GetAttrString(kernel, "start");
	real = make_module();
	object = start && real ? PyObject_CallOneArg(start, real) : NULL;
	if (!object)
		return complain("the emulated kernel doesn't start");
	for (int i = 0; i < GMEMU_NR_CALLS; i++) {
		calls[i] = PyObject_GetAttrString(object, call_names[i]);
		if (!calls[i])
			return complain(call_names[i]);
	}
	return 0;
}

EXPORT int gmemu_kernel_start(const struct gmemu_libc *libc)
{
	struct timespec now;
	int result;

	clock_gettime(CLOCK_MONOTONIC, &now);
	first_tsc = tsc();
	first_ns = now.tv_sec * 1000000000ULL + now.tv_nsec;
	libc_half = libc;
	self_pid = getpid();
	make_scratch();
	if (pthread_key_create(&thread_key, thread_ends))
		return complain("no thread key is left");
	if (start_python())
		return -1;
	result = start_kernel();
	thread_state = PyEval_SaveThread();
	pthread_setspecific(thread_key, NULL); /* the first thread's state is the interpreter's own */
	return result;
}

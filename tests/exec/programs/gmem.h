/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The uAPI of guest_memfd with in-place conversion, and what test programs in C need besides. */
#ifndef GMEM_H
#define GMEM_H

#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define KVMIO 0xAE

struct create_guest_memfd {
	uint64_t size, flags, reserved[6];
};

struct memory_attributes {
	uint64_t address, size, attributes, flags;
};

struct memory_attributes2 {
	uint64_t offset, size, attributes, flags, error_offset, reserved[11];
};

struct memory_region2 {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};

/* As they are in kernels that are newer than this machine's headers may be. */
#undef KVM_SET_USER_MEMORY_REGION2
#undef KVM_SET_MEMORY_ATTRIBUTES
#undef KVM_SET_MEMORY_ATTRIBUTES2
#undef KVM_CREATE_GUEST_MEMFD
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct memory_region2)
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xD2, struct memory_attributes)
#define KVM_SET_MEMORY_ATTRIBUTES2 _IOWR(KVMIO, 0xD2, struct memory_attributes2)
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xD4, struct create_guest_memfd)
#undef KVM_CAP_GUEST_MEMFD
#define KVM_CAP_GUEST_MEMFD 234
#undef KVM_CAP_VM_TYPES
#define KVM_CAP_VM_TYPES 235

#define GMEM_MMAP 1UL
#define GMEM_INIT_SHARED 2UL
#define PRIVATE 8UL
#define SHARED 0UL
#undef KVM_MEM_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD 4U
#define SW_PROTECTED 1

#pragma GCC diagnostic ignored "-Wformat-zero-length"

#define CHECK(condition, ...)                                                                                                    \
	do {                                                                                                                     \
		if (!(condition)) {                                                                                              \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                          \
			fprintf(stderr, "" __VA_ARGS__);                                                                         \
			fprintf(stderr, " (errno %d, %s)\n", errno, strerror(errno));                                            \
			exit(1);                                                                                                 \
		}                                                                                                                \
	} while (0)

#define FAILS(wanted, call)                                                                                                      \
	do {                                                                                                                     \
		errno = 0;                                                                                                       \
		CHECK((long)(call) == -1 && errno == (wanted), "wanted errno %d", wanted);                                       \
	} while (0)

static int kvm_fd, vm_fd;

static inline void make_vm(int type)
{
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	CHECK(kvm_fd >= 0);
	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, type);
	CHECK(vm_fd >= 0);
}

static inline int make_gmem(uint64_t size, uint64_t flags)
{
	struct create_guest_memfd args = {.size = size, .flags = flags};
	int fd = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &args);

	CHECK(fd >= 0, "size %#lx flags %#lx", size, flags);
	return fd;
}

static inline unsigned char *map_gmem(int fd, uint64_t size)
{
	unsigned char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

/* Convert; 0 or the errno, and where it stopped. */
static inline int try_convert(int fd, uint64_t offset, uint64_t size, uint64_t attributes, uint64_t *error_offset)
{
	struct memory_attributes2 args = {.offset = offset, .size = size, .attributes = attributes, .error_offset = ~0UL};
	int result = ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &args);

	if (error_offset)
		*error_offset = args.error_offset;
	return result ? errno : 0;
}

static inline void convert(int fd, uint64_t offset, uint64_t size, uint64_t attributes)
{
	CHECK(try_convert(fd, offset, size, attributes, NULL) == 0);
}

/* SIGBUS of this thread */

static __thread sigjmp_buf bus_jump;
static __thread volatile sig_atomic_t bus_expected;
static __thread void *volatile bus_address;
static __thread volatile int bus_code;

static void bus_handler(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (!bus_expected) {
		signal(sig, SIG_DFL);
		return;
	}
	bus_address = info->si_addr;
	bus_code = info->si_code;
	siglongjmp(bus_jump, 1);
}

static inline void catch_bus_errors(void)
{
	struct sigaction action = {.sa_sigaction = bus_handler, .sa_flags = SA_SIGINFO};

	CHECK(sigaction(SIGBUS, &action, NULL) == 0);
}

/* Whether touching the byte raises SIGBUS, at that address. */
static inline bool is_bus_error(volatile unsigned char *byte, bool write)
{
	volatile bool hit = true;

	bus_expected = 1;
	if (!sigsetjmp(bus_jump, 1)) {
		if (write)
			*byte = *byte + 1;
		else
			(void)*byte;
		hit = false;
	}
	bus_expected = 0;
	if (hit)
		CHECK(bus_address == (void *)byte && bus_code == BUS_ADRERR, "address %p for %p, code %d", bus_address, (void *)byte, bus_code);
	return hit;
}

static inline void expect_private(unsigned char *at, uint64_t length)
{
	for (uint64_t i = 0; i < length; i += PAGE) {
		CHECK(is_bus_error(at + i, false), "page %lu can be read", i / PAGE);
		CHECK(is_bus_error(at + i, true), "page %lu can be written", i / PAGE);
	}
}

static inline void expect_shared(unsigned char *at, uint64_t length)
{
	for (uint64_t i = 0; i < length; i += PAGE)
		CHECK(!is_bus_error(at + i, false), "page %lu can't be read", i / PAGE);
}

struct test {
	const char *name;
	void (*run)(void);
};

static inline int run_tests(const struct test *tests, int argc, char **argv)
{
	for (; tests->name; tests++) {
		if (argc > 1 && strcmp(argv[1], tests->name))
			continue;
		if (argc == 1) {
			printf("%s\n", tests->name);
			continue;
		}
		tests->run();
		printf("ok %s\n", tests->name);
		return 0;
	}
	return argc > 1;
}

#endif

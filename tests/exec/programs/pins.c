/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who holds a page of guest_memfd keeps it from becoming private: EAGAIN, error_offset, and success once it's let go. */
#include "gmem.h"

#include <linux/io_uring.h>
#include <sys/syscall.h>

#define PAGES 8UL
#define SIZE (PAGES * PAGE)

static int fd;
static unsigned char *at;

static void setup(void)
{
	make_vm(SW_PROTECTED);
	catch_bus_errors();
	fd = make_gmem(SIZE, GMEM_MMAP | GMEM_INIT_SHARED);
	at = map_gmem(fd, SIZE);
	for (unsigned i = 0; i < PAGES; i++)
		memset(at + i * PAGE, (int)i + 1, PAGE);
}

/* Page `held`, and no other, can't become private.  All are shared before and after. */
static void expect_held(unsigned held)
{
	uint64_t where;

	for (unsigned i = 0; i < PAGES; i++) {
		int error = try_convert(fd, i * PAGE, PAGE, PRIVATE, &where);

		CHECK(error == (i == held ? EAGAIN : 0), "page %u: %d", i, error);
		if (i == held)
			CHECK(where == i * PAGE, "error_offset %#lx", where);
		else
			CHECK(is_bus_error(at + i * PAGE, false) && where == ~0UL, "error_offset %#lx", where);
		convert(fd, i * PAGE, PAGE, SHARED);
		CHECK(at[i * PAGE] == i + 1 && at[i * PAGE + PAGE - 1] == i + 1);
	}
	CHECK(try_convert(fd, 0, SIZE, PRIVATE, &where) == EAGAIN && where == held * PAGE, "error_offset %#lx", where);
	expect_shared(at, SIZE);
	if (held)
		convert(fd, 0, held * PAGE, PRIVATE);
	if (held + 1 < PAGES)
		convert(fd, (held + 1) * PAGE, (PAGES - held - 1) * PAGE, PRIVATE);
	CHECK(!is_bus_error(at + held * PAGE, false));
	convert(fd, 0, SIZE, SHARED);
}

static void expect_free(void)
{
	convert(fd, 0, SIZE, PRIVATE);
	expect_private(at, SIZE);
	convert(fd, 0, SIZE, SHARED);
	for (unsigned i = 0; i < PAGES; i++)
		CHECK(at[i * PAGE] == i + 1 && at[i * PAGE + PAGE - 1] == i + 1);
}

/* gup_test, as mm/gup_test.h has it */

struct pin_longterm_test {
	uint64_t addr, size;
	uint32_t flags;
};
#define START _IOW('g', 7, struct pin_longterm_test)
#define STOP _IO('g', 8)
#define READ _IOW('g', 9, uint64_t)
#define USE_WRITE 1
#define USE_FAST 2

static int open_gup_test(void)
{
	int test = open("/sys/kernel/debug/gup_test", O_RDWR);

	CHECK(test >= 0);
	return test;
}

static void gup_test(void)
{
	struct pin_longterm_test args = {.size = PAGE, .flags = USE_WRITE};
	int test;

	setup();
	test = open_gup_test();
	for (unsigned page = 0; page < PAGES; page += 3) {
		args.addr = (uint64_t)(at + page * PAGE);
		CHECK(ioctl(test, START, &args) == 0);
		FAILS(EINVAL, ioctl(test, START, &args));
		expect_held(page);
		CHECK(ioctl(test, STOP) == 0);
		expect_free();
		CHECK(ioctl(test, STOP) == 0);
	}
	args.flags = USE_FAST;
	CHECK(ioctl(test, START, &args) == 0);
	expect_held(6);
	CHECK(close(test) == 0);
	expect_free();
}

static void gup_test_reads_and_refuses(void)
{
	static unsigned char copy[2 * PAGE] __attribute__((aligned(4096)));
	uint64_t to = (uint64_t)copy;
	struct pin_longterm_test args = {.addr = (uint64_t)at, .size = 2 * PAGE};
	int test;

	setup();
	test = open_gup_test();
	args.addr = (uint64_t)(at + PAGE);
	FAILS(EINVAL, ioctl(test, READ, &to));
	FAILS(EINVAL, ioctl(test, START, &((struct pin_longterm_test){args.addr, 0, 0})));
	FAILS(EINVAL, ioctl(test, START, &((struct pin_longterm_test){args.addr, PAGE - 1, 0})));
	FAILS(EINVAL, ioctl(test, START, &((struct pin_longterm_test){args.addr + 1, PAGE, 0})));
	FAILS(EINVAL, ioctl(test, START, &((struct pin_longterm_test){args.addr, PAGE, 4})));
	FAILS(EFAULT, ioctl(test, START, NULL));
	FAILS(EINVAL, ioctl(test, _IO('g', 99)));
	convert(fd, 2 * PAGE, PAGE, PRIVATE);
	FAILS(EFAULT, ioctl(test, START, &args));
	FAILS(EINVAL, ioctl(test, READ, &to));
	convert(fd, PAGE, PAGE, PRIVATE); /* nothing was left pinned */
	convert(fd, 0, SIZE, SHARED);
	CHECK(ioctl(test, START, &args) == 0);
	FAILS(EFAULT, ioctl(test, READ, NULL));
	CHECK(ioctl(test, READ, &to) == 0 && copy[0] == 2 && copy[2 * PAGE - 1] == 3);
	/* the pin keeps the old page; mapping and file have a new one */
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE) == 0);
	CHECK(at[PAGE] == 0);
	at[PAGE] = 9;
	memset(copy, 0, sizeof(copy));
	CHECK(ioctl(test, READ, &to) == 0 && copy[0] == 2 && copy[PAGE - 1] == 2 && copy[PAGE] == 3);
	convert(fd, PAGE, PAGE, PRIVATE);
	CHECK(try_convert(fd, 0, SIZE, PRIVATE, &to) == EAGAIN && to == 2 * PAGE);
	/* memory of the program's own can be pinned as well */
	CHECK(ioctl(test, STOP) == 0);
	args.addr = (uint64_t)copy;
	CHECK(ioctl(test, START, &args) == 0 && ioctl(test, STOP) == 0);
}

/* A file that is gone while it's pinned: what comes after it isn't. */
static void file_closed_while_pinned(void)
{
	struct pin_longterm_test args = {.size = SIZE};
	int test;

	setup();
	test = open_gup_test();
	args.addr = (uint64_t)at;
	CHECK(ioctl(test, START, &args) == 0);
	CHECK(munmap(at, SIZE) == 0 && close(fd) == 0);
	fd = make_gmem(SIZE, GMEM_MMAP | GMEM_INIT_SHARED);
	at = map_gmem(fd, SIZE);
	CHECK(at[0] == 0);
	for (unsigned i = 0; i < PAGES; i++)
		memset(at + i * PAGE, (int)i + 1, PAGE);
	expect_free();
	CHECK(ioctl(test, STOP) == 0);
	expect_free();
}

static void splice_into_a_pipe(void)
{
	static unsigned char buffer[3 * PAGE];
	struct iovec iov = {};
	int p[2];

	setup();
	CHECK(pipe(p) == 0);
	iov = (struct iovec){at + 5 * PAGE, PAGE};
	CHECK(vmsplice(p[1], &iov, 1, 0) == (ssize_t)PAGE);
	expect_held(5);
	CHECK(close(p[0]) == 0);
	expect_held(5);
	CHECK(close(p[1]) == 0);
	expect_free();

	/* reading lets a page go when its last byte is out */
	CHECK(pipe(p) == 0);
	iov = (struct iovec){at + 2 * PAGE + 100, PAGE};
	CHECK(vmsplice(p[1], &iov, 1, 0) == (ssize_t)PAGE);
	CHECK(try_convert(fd, 2 * PAGE, PAGE, PRIVATE, NULL) == EAGAIN && try_convert(fd, 3 * PAGE, PAGE, PRIVATE, NULL) == EAGAIN);
	CHECK(read(p[0], buffer, PAGE - 101) == (ssize_t)PAGE - 101 && buffer[0] == 3);
	CHECK(try_convert(fd, 2 * PAGE, PAGE, PRIVATE, NULL) == EAGAIN && try_convert(fd, 3 * PAGE, PAGE, PRIVATE, NULL) == EAGAIN);
	CHECK(read(p[0], buffer, 1) == 1);
	convert(fd, 2 * PAGE, PAGE, PRIVATE);
	expect_private(at + 2 * PAGE, PAGE);
	convert(fd, 2 * PAGE, PAGE, SHARED);
	expect_held(3);
	CHECK(read(p[0], buffer, 3 * PAGE) == 100 && buffer[0] == 4 && buffer[99] == 4);
	expect_free();

	/* what is private can't be spliced, and what was before it is */
	convert(fd, 4 * PAGE, PAGE, PRIVATE);
	iov = (struct iovec){at + 4 * PAGE, PAGE};
	FAILS(EFAULT, vmsplice(p[1], &iov, 1, 0));
	iov = (struct iovec){at + 3 * PAGE, 2 * PAGE};
	CHECK(vmsplice(p[1], &iov, 1, 0) == (ssize_t)PAGE);
	convert(fd, 4 * PAGE, PAGE, SHARED);
	expect_held(3);
	CHECK(read(p[0], buffer, 3 * PAGE) == (ssize_t)PAGE);
	expect_free();

	/* the page in the pipe is the one that was there when the hole was punched */
	iov = (struct iovec){at + PAGE, PAGE};
	CHECK(syscall(SYS_vmsplice, p[1], &iov, 1, 0) == (long)PAGE);
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE) == 0 && at[PAGE] == 0);
	memset(at + PAGE, 2, PAGE);
	expect_free();
	at[PAGE] = 7;
	CHECK(read(p[0], buffer, PAGE) == (ssize_t)PAGE && buffer[0] == 2);
}

static int ring_register(int ring, unsigned opcode, const void *argument, unsigned number)
{
	return (int)syscall(SYS_io_uring_register, ring, opcode, argument, number);
}

static void ring_buffers(void)
{
	struct io_uring_params params = {};
	struct iovec iov[2];
	int ring = (int)syscall(SYS_io_uring_setup, 4, &params), copy;

	if (ring < 0) {
		printf("skip: io_uring_setup(): %s\n", strerror(errno));
		exit(77);
	}
	setup();
	iov[0] = (struct iovec){at + PAGE, PAGE};
	iov[1] = (struct iovec){&iov, sizeof(iov)};
	CHECK(ring_register(ring, IORING_REGISTER_BUFFERS, iov, 2) == 0);
	expect_held(1);
	FAILS(EBUSY, ring_register(ring, IORING_REGISTER_BUFFERS, iov, 2));
	expect_held(1);
	CHECK(ring_register(ring, IORING_UNREGISTER_BUFFERS, NULL, 0) == 0);
	expect_free();
	convert(fd, PAGE, PAGE, PRIVATE);
	FAILS(EFAULT, ring_register(ring, IORING_REGISTER_BUFFERS, iov, 2));
	convert(fd, PAGE, PAGE, SHARED);
	expect_free();
	iov[0].iov_base = at + 7 * PAGE;
	CHECK(ring_register(ring, IORING_REGISTER_BUFFERS, iov, 1) == 0);
	CHECK((copy = dup(ring)) >= 0 && close(ring) == 0);
	expect_held(7);
	CHECK(close(copy) == 0);
	expect_free();
}

#ifdef LIBURING /* which makes its system calls by itself: only what it's asked for can be seen */
struct io_uring {
	unsigned char rest[256];
};
int io_uring_queue_init(unsigned, struct io_uring *, unsigned);
int io_uring_register_buffers(struct io_uring *, const struct iovec *, unsigned);
int io_uring_register_buffers_sparse(struct io_uring *, unsigned);
int io_uring_register_buffers_update_tag(struct io_uring *, unsigned, const struct iovec *, const __u64 *, unsigned);
int io_uring_unregister_buffers(struct io_uring *);
void io_uring_queue_exit(struct io_uring *);

static void ring_buffers_by_liburing(void)
{
	struct io_uring ring;
	struct iovec iov[2];

	if (io_uring_queue_init(4, &ring, 0)) {
		printf("skip: io_uring_queue_init() fails\n");
		exit(77);
	}
	setup();
	iov[0] = (struct iovec){at + 4 * PAGE, PAGE};
	CHECK(io_uring_register_buffers(&ring, iov, 1) == 0);
	expect_held(4);
	CHECK(io_uring_unregister_buffers(&ring) == 0);
	expect_free();
	CHECK(io_uring_register_buffers_sparse(&ring, 2) == 0);
	CHECK(io_uring_register_buffers_update_tag(&ring, 1, iov, NULL, 1) == 1);
	expect_held(4);
	iov[0] = (struct iovec){at + 5 * PAGE, PAGE};
	CHECK(io_uring_register_buffers_update_tag(&ring, 1, iov, NULL, 1) == 1);
	expect_held(5);
	io_uring_queue_exit(&ring);
	expect_free();
}
#endif

/* VFIO's and iommufd's calls.  No device is needed: the test's own library stands below, and answers them. */

struct dma_map {
	uint32_t argsz, flags;
	uint64_t vaddr, iova, size;
};
struct dma_unmap {
	uint32_t argsz, flags;
	uint64_t iova, size;
};
struct ioas_map {
	uint32_t size, flags, ioas_id, reserved;
	uint64_t user_va, length, iova;
};
struct ioas_unmap {
	uint32_t size, ioas_id;
	uint64_t iova, length;
};
#define MAP_DMA _IO(';', 113)
#define UNMAP_DMA _IO(';', 114)
#define IOAS_MAP _IO(';', 0x85)
#define IOAS_UNMAP _IO(';', 0x86)

static void device_mappings(void)
{
	struct dma_map map = {.argsz = sizeof(map), .flags = 3, .iova = 0x10000, .size = PAGE};
	struct dma_unmap unmap = {.argsz = sizeof(unmap), .iova = 0x10000, .size = PAGE};
	struct ioas_map ioas = {.size = sizeof(ioas), .flags = 7, .ioas_id = 1, .iova = 0x10000, .length = PAGE};
	struct ioas_unmap gone = {.size = sizeof(gone), .ioas_id = 1, .iova = 0x10000, .length = PAGE};
	int container = memfd_create("container", 0), copy;

	if (ioctl(container, MAP_DMA, &map) != 0) {
		printf("skip: nobody answers VFIO's calls\n");
		exit(77);
	}
	setup();
	map.vaddr = (uint64_t)(at + 3 * PAGE);
	CHECK(ioctl(container, MAP_DMA, &map) == 0);
	expect_held(3);
	unmap.iova = 0x11000;
	CHECK(ioctl(container, UNMAP_DMA, &unmap) == 0);
	expect_held(3);
	unmap.iova = 0x10000;
	CHECK(ioctl(container, UNMAP_DMA, &unmap) == 0);
	expect_free();
	map.flags = 0; /* which the driver refuses */
	FAILS(EINVAL, ioctl(container, MAP_DMA, &map));
	expect_free();
	map.flags = 3;
	CHECK(ioctl(container, MAP_DMA, &map) == 0);
	CHECK((copy = dup(container)) >= 0 && close(container) == 0);
	expect_held(3);
	CHECK(close(copy) == 0);
	expect_free();
	container = memfd_create("iommufd", 0);
	ioas.user_va = (uint64_t)at;
	CHECK(ioctl(container, IOAS_MAP, &ioas) == 0);
	expect_held(0);
	gone.ioas_id = 2;
	CHECK(ioctl(container, IOAS_UNMAP, &gone) == 0);
	expect_held(0);
	gone.ioas_id = 1;
	CHECK(ioctl(container, IOAS_UNMAP, &gone) == 0);
	expect_free();
}

static const struct test tests[] = {
	{"gup_test", gup_test},
	{"gup_test_reads_and_refuses", gup_test_reads_and_refuses},
	{"file_closed_while_pinned", file_closed_while_pinned},
	{"splice_into_a_pipe", splice_into_a_pipe},
	{"ring_buffers", ring_buffers},
	{"device_mappings", device_mappings},
#ifdef LIBURING
	{"ring_buffers_by_liburing", ring_buffers_by_liburing},
#endif
	{NULL, NULL},
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}

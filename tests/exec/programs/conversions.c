/* SPDX-License-Identifier: GPL-2.0-or-later */
/* In-place conversion as a C program sees it: who may touch which page, and when. */
#include "gmem.h"

#define PAGES 8UL
#define SIZE (PAGES * PAGE)
#define LARGE (8UL << 20)

static unsigned char *setup(uint64_t size, uint64_t flags, int *fd)
{
	make_vm(SW_PROTECTED);
	catch_bus_errors();
	*fd = make_gmem(size, flags);
	return map_gmem(*fd, size);
}

static void private_at_start(void)
{
	int fd;
	unsigned char *at = setup(SIZE, GMEM_MMAP, &fd);

	expect_private(at, SIZE);
	convert(fd, 0, SIZE, SHARED);
	expect_shared(at, SIZE);
	for (unsigned i = 0; i < SIZE; i++)
		CHECK(at[i] == 0, "byte %u", i);
	memset(at, 0x5a, SIZE);
	convert(fd, 0, SIZE, PRIVATE);
	expect_private(at, SIZE);
	convert(fd, 0, SIZE, SHARED);
	for (unsigned i = 0; i < SIZE; i++)
		CHECK(at[i] == 0x5a, "byte %u lost its contents", i);
}

static void shared_at_start(void)
{
	int fd;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	memset(at, 0xa5, SIZE);
	convert(fd, 0, SIZE, PRIVATE);
	expect_private(at, SIZE);
}

static void one_among_many(void)
{
	int fd;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	for (unsigned i = 0; i < PAGES; i++)
		memset(at + i * PAGE, (int)i + 1, PAGE);
	for (unsigned one = 0; one < PAGES; one++) {
		convert(fd, one * PAGE, PAGE, PRIVATE);
		for (unsigned i = 0; i < PAGES; i++) {
			CHECK(is_bus_error(at + i * PAGE, false) == (i == one), "page %u while %u is private", i, one);
			if (i != one)
				CHECK(at[i * PAGE] == i + 1);
		}
		convert(fd, one * PAGE, PAGE, SHARED);
		CHECK(at[one * PAGE] == one + 1);
	}
}

static void large_and_fragmented(void)
{
	int fd;
	unsigned char *at = setup(LARGE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	for (uint64_t i = 0; i < LARGE; i += PAGE)
		*(uint64_t *)(at + i) = i;
	for (uint64_t i = 0; i < LARGE; i += 2 * PAGE)
		convert(fd, i, PAGE, PRIVATE);
	for (uint64_t i = 0; i < LARGE; i += 2 * PAGE) {
		CHECK(is_bus_error(at + i, true));
		CHECK(*(uint64_t *)(at + i + PAGE) == i + PAGE);
	}
	convert(fd, 0, LARGE, SHARED);
	for (uint64_t i = 0; i < LARGE; i += PAGE)
		CHECK(*(uint64_t *)(at + i) == i);
	convert(fd, 2UL << 20, 4UL << 20, PRIVATE);
	for (uint64_t i = 0; i < LARGE; i += PAGE)
		CHECK(is_bus_error(at + i, false) == (i >= 2UL << 20 && i < 6UL << 20));
}

static void before_allocation(void)
{
	int fd;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	convert(fd, PAGE, PAGE, PRIVATE);
	CHECK(!is_bus_error(at, true) && is_bus_error(at + PAGE, true) && !is_bus_error(at + 2 * PAGE, true));
	convert(fd, PAGE, PAGE, SHARED);
	CHECK(at[PAGE] == 0);
}

static void truncation(void)
{
	int fd;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	memset(at, 1, SIZE);
	convert(fd, PAGE, PAGE, PRIVATE);
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * PAGE) == 0);
	CHECK(at[0] == 0 && at[2 * PAGE] == 1);
	CHECK(is_bus_error(at + PAGE, false), "punching doesn't change the attribute");
	convert(fd, PAGE, PAGE, SHARED);
	CHECK(at[PAGE] == 0, "what was punched is zero");
	at[PAGE] = 7;
	CHECK(at[PAGE] == 7);
	FAILS(EINVAL, ftruncate(fd, 0));
}

static void system_calls(void)
{
	int fd, p[2];
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	CHECK(pipe(p) == 0);
	convert(fd, 0, PAGE, PRIVATE);
	FAILS(EFAULT, write(p[1], at, 16));
	CHECK(write(p[1], at + PAGE, 16) == 16, "a page that was never touched is mapped by the system call");
	CHECK(read(p[0], at + 2 * PAGE, 16) == 16);
	FAILS(EFAULT, ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, at));
	struct create_guest_memfd *args = (void *)(at + PAGE);
	args->size = PAGE;
	int other = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, args);
	CHECK(other >= 0);
}

static void second_mapping(void)
{
	int fd;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);
	int copy = dup(fd);
	unsigned char *part = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, copy, PAGE);

	CHECK(part != MAP_FAILED);
	at[PAGE] = 3;
	CHECK(part[0] == 3);
	convert(copy, PAGE, PAGE, PRIVATE);
	CHECK(is_bus_error(at + PAGE, false) && is_bus_error(part, false) && !is_bus_error(part + PAGE, false));
	CHECK(munmap(at, SIZE) == 0 && close(fd) == 0);
	convert(copy, PAGE, PAGE, SHARED);
	CHECK(part[0] == 3);
	CHECK(munmap(part, PAGE) == 0);
	convert(copy, 2 * PAGE, PAGE, PRIVATE);
	CHECK(is_bus_error(part + PAGE, false));
	unsigned char *late = map_gmem(copy, SIZE);
	CHECK(is_bus_error(late + 2 * PAGE, false) && late[PAGE] == 3);
}

static void partial_unmap_and_replace(void)
{
	int fd;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	convert(fd, 0, SIZE, PRIVATE);
	CHECK(mmap(at + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at + PAGE);
	CHECK(!is_bus_error(at + PAGE, true) && is_bus_error(at, true) && is_bus_error(at + 2 * PAGE, true));
	convert(fd, 0, SIZE, SHARED);
	CHECK(at[0] == 0 && at[PAGE] == 1 && at[2 * PAGE] == 0);
}

static void errors(void)
{
	int fd;
	uint64_t where;

	setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);
	CHECK(try_convert(fd, 1, PAGE, PRIVATE, NULL) == EINVAL);
	CHECK(try_convert(fd, 0, 0, PRIVATE, NULL) == EINVAL);
	CHECK(try_convert(fd, 0, SIZE + PAGE, PRIVATE, &where) == EINVAL && where == ~0UL);
	CHECK(try_convert(fd, 0, PAGE, 4, NULL) == EINVAL);
	CHECK(mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == EINVAL);
	char byte;
	CHECK(read(fd, &byte, 1) == -1 && write(fd, &byte, 1) == -1 && pread(fd, &byte, 1, 0) == -1);
	struct stat st;
	CHECK(fstat(fd, &st) == 0 && st.st_size == (off_t)SIZE && st.st_blksize == (blksize_t)PAGE);
	FAILS(EINVAL, ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &(struct create_guest_memfd){.size = PAGE + 1}));
}

/* What is checked first wins, nothing is written back, and nothing has happened. */
static void checks_in_order(void)
{
	static const struct {
		struct memory_attributes2 args;
		int error;
	} bad[] = {
		{{.flags = 1, .reserved = {1}, .attributes = 1}, EINVAL},
		{{.size = PAGE, .reserved = {[10] = 1}}, EINVAL},
		{{.size = PAGE, .attributes = PRIVATE | 1}, EINVAL},
		{{.size = PAGE, .attributes = ~0UL}, EINVAL},
		{{.offset = 0, .size = 0}, EINVAL},
		{{.offset = ~0UL - PAGE + 1, .size = 2 * PAGE}, EINVAL},
		{{.offset = ~0UL - PAGE + 1, .size = PAGE}, EINVAL},
		{{.offset = 1, .size = PAGE}, EINVAL},
		{{.offset = 0, .size = PAGE - 1}, EINVAL},
		{{.offset = SIZE, .size = PAGE}, EINVAL},
		{{.offset = SIZE - PAGE, .size = 2 * PAGE}, EINVAL},
	};
	unsigned char *at;
	int fd;

	at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);
	memset(at, 1, SIZE);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct memory_attributes2 args = bad[i].args;

		args.error_offset = 0x1234;
		FAILS(bad[i].error, ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &args));
		CHECK(args.error_offset == 0x1234, "case %u wrote %#llx", i, (unsigned long long)args.error_offset);
		expect_shared(at, SIZE);
	}
	FAILS(EFAULT, ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL));
	FAILS(EFAULT, ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, (void *)-PAGE));
	FAILS(ENOTTY, ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES, &(struct memory_attributes){.size = PAGE}));
	FAILS(ENOTTY, ioctl(vm_fd, KVM_SET_MEMORY_ATTRIBUTES2, &bad[0].args));
	FAILS(EINVAL, ioctl(kvm_fd, KVM_SET_MEMORY_ATTRIBUTES2, &bad[0].args)); /* as of x86: kvm_arch_dev_ioctl() */
	FAILS(ENOTTY, ioctl(fd, KVM_CREATE_VM, 0));
}

/* The argument is written to when it has something to say, and not otherwise: it may lie in memory that can't be written. */
static void what_is_written_back(void)
{
	struct memory_attributes2 *args;
	int fd, p[2];
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);
	struct iovec iov = {at + 2 * PAGE, PAGE};

	memset(at, 1, SIZE);
	args = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(args != MAP_FAILED && pipe(p) == 0);
	*args = (struct memory_attributes2){.size = 2 * PAGE, .attributes = PRIVATE, .error_offset = 0x1234};
	CHECK(mprotect(args, PAGE, PROT_READ) == 0);
	CHECK(ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, args) == 0 && args->error_offset == 0x1234);
	expect_private(at, 2 * PAGE);
	CHECK(vmsplice(p[1], &iov, 1, 0) == (ssize_t)PAGE);
	CHECK(mprotect(args, PAGE, PROT_READ | PROT_WRITE) == 0);
	*args = (struct memory_attributes2){.size = SIZE, .attributes = PRIVATE, .error_offset = 0x1234};
	CHECK(mprotect(args, PAGE, PROT_READ) == 0);
	FAILS(EFAULT, ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, args));
	CHECK(args->error_offset == 0x1234);
	CHECK(is_bus_error(at, false) && is_bus_error(at + PAGE, false), "as they were before");
	expect_shared(at + 2 * PAGE, SIZE - 2 * PAGE);
	CHECK(mprotect(args, PAGE, PROT_READ | PROT_WRITE) == 0);
	FAILS(EAGAIN, ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, args));
	CHECK(args->error_offset == 2 * PAGE && args->size == SIZE && args->offset == 0 && args->attributes == PRIVATE);
	/* what is private already isn't looked at, nor is what isn't there */
	*args = (struct memory_attributes2){.size = 2 * PAGE, .attributes = PRIVATE};
	CHECK(ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, args) == 0);
	*args = (struct memory_attributes2){.offset = 2 * PAGE, .size = PAGE, .attributes = SHARED};
	CHECK(ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, args) == 0, "shared already: nobody asks who holds it");
	/* to shared nobody is asked either */
	*args = (struct memory_attributes2){.size = SIZE, .attributes = SHARED};
	CHECK(ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, args) == 0);
	for (unsigned i = 0; i < SIZE; i++)
		CHECK(at[i] == 1, "byte %u", i);
}

static void capabilities(void)
{
	int fd;

	setup(SIZE, GMEM_MMAP, &fd);
	CHECK(ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD) == 1);
	CHECK(ioctl(kvm_fd, KVM_CHECK_EXTENSION, 233) == 0, "the VM has no attributes where guest_memfd has them");
	CHECK(ioctl(kvm_fd, KVM_CHECK_EXTENSION, 244) == (GMEM_MMAP | GMEM_INIT_SHARED));
	CHECK(ioctl(vm_fd, KVM_CHECK_EXTENSION, 244) == (GMEM_MMAP | GMEM_INIT_SHARED));
	CHECK(ioctl(kvm_fd, KVM_CHECK_EXTENSION, 250) == (int)PRIVATE && ioctl(vm_fd, KVM_CHECK_EXTENSION, 250) == (int)PRIVATE);
	CHECK(ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES) & 1 << SW_PROTECTED);
	/* a VM without private memory */
	CHECK(close(fd) == 0 && close(vm_fd) == 0);
	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	CHECK(vm_fd >= 0 && ioctl(vm_fd, KVM_CHECK_EXTENSION, 250) == 0);
	fd = make_gmem(SIZE, GMEM_MMAP | GMEM_INIT_SHARED);
	CHECK(try_convert(fd, 0, PAGE, PRIVATE, NULL) == EINVAL && try_convert(fd, 0, PAGE, SHARED, NULL) == EINVAL);
	expect_shared(map_gmem(fd, SIZE), SIZE);
}

static void lifetime(void)
{
	int fd;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	at[0] = 9;
	convert(fd, PAGE, PAGE, PRIVATE);
	CHECK(close(fd) == 0 && close(vm_fd) == 0 && close(kvm_fd) == 0);
	CHECK(at[0] == 9 && is_bus_error(at + PAGE, false), "the mapping keeps the file");
	FAILS(EBADF, ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL));
	CHECK(munmap(at, SIZE) == 0);
	make_vm(SW_PROTECTED);
	fd = make_gmem(SIZE, GMEM_MMAP | GMEM_INIT_SHARED);
	at = map_gmem(fd, SIZE);
	CHECK(at[0] == 0, "memory that was another file's is zero");
}

/* Threads: four touch pages while one converts them.  Each access either works on the page's own bytes, or is SIGBUS. */

#define ROUNDS 300
static unsigned char *race_at;
static atomic_bool race_over;
static atomic_ulong touched, refused;

static void *toucher(void *argument)
{
	unsigned seed = (unsigned)(uintptr_t)argument;

	while (!race_over) {
		unsigned page = (unsigned)rand_r(&seed) % PAGES;

		if (is_bus_error(race_at + page * PAGE + 8 * (uintptr_t)argument, true)) {
			refused++;
		} else {
			CHECK(race_at[page * PAGE + PAGE - 1] == page + 1 || is_bus_error(race_at + page * PAGE, false));
			touched++;
		}
	}
	return NULL;
}

static void threads(void)
{
	pthread_t thread[4];
	unsigned seed = 1;
	int fd;

	race_at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);
	for (unsigned i = 0; i < PAGES; i++)
		race_at[i * PAGE + PAGE - 1] = (unsigned char)(i + 1);
	for (uintptr_t i = 0; i < 4; i++)
		CHECK(pthread_create(&thread[i], NULL, toucher, (void *)(i + 1)) == 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		unsigned first = (unsigned)rand_r(&seed) % PAGES, count = 1 + (unsigned)rand_r(&seed) % (PAGES - first);

		convert(fd, first * PAGE, count * PAGE, i & 1 ? SHARED : PRIVATE);
	}
	convert(fd, 0, SIZE, SHARED);
	race_over = true;
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	for (unsigned i = 0; i < PAGES; i++)
		CHECK(race_at[i * PAGE + PAGE - 1] == i + 1);
	CHECK(touched > 0);
}

/* Signals that meet a call come after it, every one of them; a handler may make calls of its own. */

static volatile sig_atomic_t signals;
static int signal_fd;

static void on_signal(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	CHECK(info->si_code == SI_QUEUE);
	signals = signals + 1;
	CHECK(ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD) == 1);
	convert(signal_fd, (SIZE - PAGE), PAGE, signals & 1 ? PRIVATE : SHARED);
}

static void *signaller(void *argument)
{
	pthread_t *to = argument;

	for (unsigned i = 0; i < 2000; i++) {
		while (touched < i / 8)
			sched_yield();
		while (pthread_sigqueue(*to, SIGRTMIN, (union sigval){}))
			sched_yield();
	}
	race_over = true;
	return NULL;
}

static void signals_in_the_middle(void)
{
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
	pthread_t self = pthread_self(), thread;
	unsigned char *at;
	int fd;

	at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);
	memset(at, 1, SIZE);
	signal_fd = fd;
	CHECK(sigaction(SIGRTMIN, &action, NULL) == 0);
	CHECK(pthread_create(&thread, NULL, signaller, &self) == 0);
	for (; !race_over; touched++) {
		convert(fd, 0, PAGE, PRIVATE);
		CHECK(is_bus_error(at, false));
		convert(fd, 0, PAGE, SHARED);
		CHECK(at[0] == 1);
	}
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(signals == 2000, "%d signals", (int)signals);
	/* one that is handled once, and then kills: but not before it has been handled */
	action.sa_flags |= (int)SA_RESETHAND;
	CHECK(sigaction(SIGRTMIN, &action, NULL) == 0 && sigqueue(getpid(), SIGRTMIN, (union sigval){}) == 0);
	CHECK(signals == 2001 && sigaction(SIGRTMIN, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
}

/* fork: the child may touch what the parent may, at the start and later. */

static void say(int fd)
{
	CHECK(write(fd, "", 1) == 1);
}

static void hear(int fd)
{
	char byte;

	CHECK(read(fd, &byte, 1) == 1);
}

static void forked_accesses(void)
{
	int fd, down[2], up[2], status;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);
	pid_t pid;

	CHECK(pipe(down) == 0 && pipe(up) == 0);
	memset(at, 1, SIZE);
	convert(fd, PAGE, PAGE, PRIVATE);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		CHECK(close(up[0]) == 0 && close(down[1]) == 0);
		CHECK(is_bus_error(at + PAGE, false), "private in the child from the start");
		CHECK(at[0] == 1 && at[2 * PAGE] == 1);
		at[0] = 2;
		say(up[1]);
		hear(down[0]);
		CHECK(is_bus_error(at, false) && is_bus_error(at + 2 * PAGE, true), "the parent took them");
		CHECK(at[PAGE] == 1, "and gave this one");
		FAILS(EIO, ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD));
		convert(fd, 3 * PAGE, PAGE, PRIVATE);
		CHECK(is_bus_error(at + 3 * PAGE, false));
		say(up[1]);
		hear(down[0]);
		CHECK(at[0] == 2);
		exit(0);
	}
	CHECK(close(up[1]) == 0 && close(down[0]) == 0);
	hear(up[0]);
	CHECK(at[0] == 2, "what the child wrote");
	convert(fd, 0, SIZE, PRIVATE);
	convert(fd, PAGE, PAGE, SHARED);
	convert(fd, 3 * PAGE, PAGE, SHARED);
	say(down[1]);
	hear(up[0]);
	CHECK(is_bus_error(at + 3 * PAGE, false), "the child took it");
	convert(fd, 0, PAGE, SHARED);
	say(down[1]);
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	convert(fd, 0, SIZE, PRIVATE);
	expect_private(at, SIZE);
}

static void child_with_a_vm_of_its_own(void)
{
	int fd, status;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		make_vm(SW_PROTECTED);
		int own = make_gmem(SIZE, GMEM_MMAP);
		unsigned char *there = map_gmem(own, SIZE);
		expect_private(there, SIZE);
		convert(own, 0, SIZE, SHARED);
		memset(there, 0xcc, SIZE);
		exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	int other = make_gmem(SIZE, GMEM_MMAP | GMEM_INIT_SHARED);
	CHECK(map_gmem(other, SIZE)[0] == 0, "the child's memory is its own");
	convert(fd, 0, SIZE, PRIVATE);
	expect_private(at, SIZE);
}

/* With somebody holding file page 2 (ordered on the command line). */
static void elevated_reference(void)
{
	int fd;
	uint64_t where;
	unsigned char *at = setup(SIZE, GMEM_MMAP | GMEM_INIT_SHARED, &fd);

	memset(at, 4, SIZE);
	CHECK(try_convert(fd, 0, SIZE, PRIVATE, &where) == EAGAIN && where == 2 * PAGE, "stopped at %#lx", where);
	expect_shared(at, SIZE);
	for (unsigned i = 0; i < SIZE; i++)
		CHECK(at[i] == 4);
	convert(fd, 0, SIZE, PRIVATE);
	expect_private(at, SIZE);
}

static const struct test tests[] = {
	{"elevated_reference", elevated_reference},
	{"forked_accesses", forked_accesses},
	{"child_with_a_vm_of_its_own", child_with_a_vm_of_its_own},
	{"private_at_start", private_at_start},
	{"shared_at_start", shared_at_start},
	{"one_among_many", one_among_many},
	{"large_and_fragmented", large_and_fragmented},
	{"before_allocation", before_allocation},
	{"truncation", truncation},
	{"system_calls", system_calls},
	{"second_mapping", second_mapping},
	{"partial_unmap_and_replace", partial_unmap_and_replace},
	{"errors", errors},
	{"checks_in_order", checks_in_order},
	{"what_is_written_back", what_is_written_back},
	{"capabilities", capabilities},
	{"lifetime", lifetime},
	{"threads", threads},
	{"signals_in_the_middle", signals_in_the_middle},
	{NULL, NULL},
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}

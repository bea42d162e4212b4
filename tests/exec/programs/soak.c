/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Eight vCPU threads run a guest, convert, touch, punch and map at random for a while, and calls fail on order.  A page that was written
 * to carries its number: no byte may be wrong, nothing may hang, and nothing may leak.
 */
#include "gmem.h"

#include <dirent.h>
#include <time.h>

#define PAGES 1024UL
#define SIZE (PAGES * PAGE)
#define THREADS 8
#define CODE 0x1000UL
#define DATA 0x400000UL /* where guests have the guest_memfd */

static unsigned char *at, *own;
static int fd, vcpu_fd[THREADS];
static struct kvm_run *run[THREADS];
static atomic_bool over;
static atomic_ulong done[7];
enum { CONVERTED, BUSY, TOUCHED, REFUSED, MAPPED, RAN, NOT_RUN };

static int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int count_mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	int n = 0, c;

	while ((c = getc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

/* What the process has of its own, in KiB: not the guest's memory, which is a file's. */
static long anonymous_memory(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[256];
	long n = -1;

	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %ld", &n) == 1)
			break;
	fclose(f);
	return n;
}

static bool ordered(int error)
{
	return error == EAGAIN || error == EBUSY || error == ENOMEM;
}

static void convert_some(unsigned *seed)
{
	uint64_t first = (unsigned)rand_r(seed) % PAGES, left = PAGES - first, where;
	uint64_t count = 1 + (unsigned)rand_r(seed) % (rand_r(seed) % 4 ? (left < 8 ? left : 8) : left);
	int error = try_convert(fd, first * PAGE, count * PAGE, rand_r(seed) & 1 ? PRIVATE : SHARED, &where);

	CHECK(!error || ordered(error), "error %d", error);
	if (error && where != ~0UL) /* it came as far as the pages */
		CHECK(where >= first * PAGE && where < (first + count) * PAGE, "error_offset %#lx", where);
	done[error ? BUSY : CONVERTED]++;
}

static void touch_some(unsigned *seed)
{
	uint64_t page = (unsigned)rand_r(seed) % PAGES;
	volatile uint64_t *word = (volatile uint64_t *)(at + page * PAGE);
	uint64_t seen;

	bus_expected = 1;
	if (sigsetjmp(bus_jump, 1)) {
		bus_expected = 0;
		done[REFUSED]++;
		return;
	}
	seen = *word;
	*word = page + 1;
	bus_expected = 0;
	CHECK(seen == 0 || seen == page + 1, "page %lu has %#lx", page, seen);
	done[TOUCHED]++;
}

static void map_some(unsigned *seed)
{
	uint64_t first = (unsigned)rand_r(seed) % PAGES, count = 1 + (unsigned)rand_r(seed) % (PAGES - first);
	unsigned char *there = mmap(NULL, count * PAGE, PROT_READ, MAP_SHARED, fd, (off_t)(first * PAGE));

	CHECK(there != MAP_FAILED);
	is_bus_error(there + ((unsigned)rand_r(seed) % count) * PAGE, false);
	CHECK(munmap(there, count * PAGE) == 0);
	if (rand_r(seed) % 8 == 0)
		CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(first * PAGE), (off_t)PAGE) == 0);
	done[MAPPED]++;
}

/* mov ecx,[bx]; mov [bx],eax; out 0x10,al; jmp -- with ds where the page is */
static const unsigned char guest[] = {0x66, 0x8b, 0x0f, 0x66, 0x89, 0x07, 0xe6, 0x10, 0xeb, 0xf6};

static void run_guest(int me, unsigned *seed)
{
	uint64_t page = (unsigned)rand_r(seed) % PAGES;
	struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rax = page + 1, .rcx = 0xdeadbeef};
	struct kvm_sregs sregs;

	CHECK(ioctl(vcpu_fd[me], KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ds.base = DATA + page * PAGE;
	CHECK(ioctl(vcpu_fd[me], KVM_SET_SREGS, &sregs) == 0);
	CHECK(ioctl(vcpu_fd[me], KVM_SET_REGS, &regs) == 0);
	while (ioctl(vcpu_fd[me], KVM_RUN, 0)) {
		CHECK(errno == EBUSY || errno == EINTR || errno == EAGAIN, "KVM_RUN, exit reason %u", run[me]->exit_reason);
		done[NOT_RUN]++;
	}
	CHECK(run[me]->exit_reason == KVM_EXIT_IO && run[me]->io.port == 0x10, "exit reason %u", run[me]->exit_reason);
	CHECK(ioctl(vcpu_fd[me], KVM_GET_REGS, &regs) == 0);
	CHECK(regs.rcx == 0 || regs.rcx == page + 1, "the guest finds %#llx in page %lu", (unsigned long long)regs.rcx, page);
	regs.rip = CODE; /* the OUT is over when KVM_RUN is called again: not for this one */
	run[me]->immediate_exit = 1;
	CHECK(ioctl(vcpu_fd[me], KVM_RUN, 0) == -1 && (errno == EINTR || errno == EBUSY), "the exit is to be finished");
	run[me]->immediate_exit = 0;
	done[RAN]++;
}

static void *work(void *argument)
{
	unsigned seed = (unsigned)(uintptr_t)argument + 1;
	int me = (int)(uintptr_t)argument;

	while (!over) {
		unsigned what = (unsigned)rand_r(&seed) % 16;

		if (what < 3)
			convert_some(&seed);
		else if (what < 4)
			map_some(&seed);
		else if (what < 8)
			run_guest(me, &seed);
		else
			touch_some(&seed);
	}
	return NULL;
}

static void add_slot(unsigned slot, uint64_t gpa, unsigned char *where, uint64_t size, int gmem)
{
	struct memory_region2 region = {.slot = slot, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uint64_t)where};

	if (gmem >= 0) {
		region.flags = KVM_MEM_GUEST_MEMFD;
		region.guest_memfd = (uint32_t)gmem;
	}
	CHECK(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &region) == 0);
}

static void make_machine(void)
{
	size_t size;

	make_vm(SW_PROTECTED);
	catch_bus_errors();
	size = (size_t)ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	fd = make_gmem(SIZE, GMEM_MMAP | GMEM_INIT_SHARED);
	at = map_gmem(fd, SIZE);
	own = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(own != MAP_FAILED);
	memcpy(own + CODE, guest, sizeof(guest));
	add_slot(0, 0, own, 16 * PAGE, -1);
	add_slot(1, DATA, at, SIZE, fd);
	for (int i = 0; i < THREADS; i++) {
		vcpu_fd[i] = ioctl(vm_fd, KVM_CREATE_VCPU, i);
		CHECK(vcpu_fd[i] >= 0);
		run[i] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd[i], 0);
		CHECK(run[i] != MAP_FAILED);
	}
}

static void do_all_once(void)
{
	unsigned seed = 99;

	for (int i = 0; i < THREADS; i++)
		run_guest(i, &seed);
	for (int i = 0; i < 100; i++) {
		convert_some(&seed);
		map_some(&seed);
		touch_some(&seed);
	}
}

int main(int argc, char **argv)
{
	unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 5;
	time_t began = time(NULL), end = began + (time_t)seconds;
	pthread_t thread[THREADS];
	long memory = 0, grown;
	int fds, mappings;

	make_machine();
	do_all_once();
	fds = count_fds();
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&thread[i], NULL, work, (void *)i) == 0);
	while (time(NULL) < end) {
		unsigned long before = done[CONVERTED];

		usleep(100000);
		if (!memory && time(NULL) - began >= (time_t)(seconds + 3) / 4)
			memory = anonymous_memory(); /* after a quarter everything has been touched that ever is */
		if (time(NULL) < end)
			continue;
		CHECK(done[CONVERTED] > before || seconds < 10, "nothing moves any more");
	}
	grown = anonymous_memory() - memory;
	over = true;
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	while (try_convert(fd, 0, SIZE, SHARED, NULL) != 0)
		;
	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t seen = *(uint64_t *)(at + page * PAGE);

		CHECK(seen == 0 || seen == page + 1, "page %lu has %#lx in the end", page, seen);
	}
	mappings = count_mappings();
	CHECK(count_fds() == fds, "%d descriptors, %d at the start", count_fds(), fds);
	CHECK(mappings < 500, "%d mappings", mappings);
	CHECK(grown < 16 << 10, "%ld KiB more memory than after a quarter of the time", grown);
	printf("converted %lu, refused to convert %lu, touched %lu, refused to touch %lu, mapped %lu, guests ran %lu, refused to run %lu, "
	       "%ld KiB more memory\n",
	       done[CONVERTED], done[BUSY], done[TOUCHED], done[REFUSED], done[MAPPED], done[RAN], done[NOT_RUN], grown);
	return 0;
}

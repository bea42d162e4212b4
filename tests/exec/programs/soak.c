/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads convert, touch, punch and map at random for a while.  Each page carries its number: no byte may be wrong, nothing may leak. */
#include "gmem.h"

#include <dirent.h>
#include <time.h>

#define PAGES 1024UL
#define SIZE (PAGES * PAGE)
#define THREADS 8

static unsigned char *at;
static int fd;
static atomic_bool over;
static atomic_ulong done[5];
enum { CONVERTED, BUSY, TOUCHED, REFUSED, MAPPED };

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

static void convert_some(unsigned *seed)
{
	uint64_t first = (unsigned)rand_r(seed) % PAGES, left = PAGES - first, where;
	uint64_t count = 1 + (unsigned)rand_r(seed) % (rand_r(seed) % 4 ? (left < 8 ? left : 8) : left);
	int error = try_convert(fd, first * PAGE, count * PAGE, rand_r(seed) & 1 ? PRIVATE : SHARED, &where);

	CHECK(!error || error == EAGAIN || error == ENOMEM, "error %d", error);
	if (error)
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

static void *work(void *argument)
{
	unsigned seed = (unsigned)(uintptr_t)argument;

	while (!over) {
		unsigned what = (unsigned)rand_r(&seed) % 16;

		if (what < 3)
			convert_some(&seed);
		else if (what < 4)
			map_some(&seed);
		else
			touch_some(&seed);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[THREADS];
	unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 5;
	time_t end = time(NULL) + (time_t)seconds;
	int fds, mappings;

	make_vm(SW_PROTECTED);
	catch_bus_errors();
	fd = make_gmem(SIZE, GMEM_MMAP | GMEM_INIT_SHARED);
	at = map_gmem(fd, SIZE);
	convert(fd, 0, SIZE, PRIVATE);
	convert(fd, 0, SIZE, SHARED);
	fds = count_fds();
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&thread[i], NULL, work, (void *)(i + 1)) == 0);
	while (time(NULL) < end)
		usleep(100000);
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
	CHECK(mappings < 400, "%d mappings", mappings);
	printf("converted %lu, refused to convert %lu, touched %lu, refused to touch %lu, mapped %lu\n", done[CONVERTED], done[BUSY],
	       done[TOUCHED], done[REFUSED], done[MAPPED]);
	return 0;
}

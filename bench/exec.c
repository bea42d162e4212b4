/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What calls cost a program: on the emulated kernel, and those that it has nothing to do with.  Prints JSON, microseconds. */
#include "../tests/exec/programs/gmem.h"

#include <time.h>

#define MIB (1UL << 20)

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_size(const void *a, const void *b)
{
	double d = *(const double *)a - *(const double *)b;

	return (d > 0) - (d < 0);
}

#define ROUNDS 41

/* The median of ROUNDS measurements of `times` repetitions, each. */
#define MEASURE(times, what)                                                                                                     \
	({                                                                                                                       \
		double all[ROUNDS];                                                                                              \
		for (int round = 0; round < ROUNDS; round++) {                                                                   \
			double began = now();                                                                                    \
			for (int i = 0; i < (times); i++)                                                                        \
				what;                                                                                            \
			all[round] = (now() - began) / (times);                                                                  \
		}                                                                                                                \
		qsort(all, ROUNDS, sizeof(*all), by_size);                                                                       \
		all[ROUNDS / 2];                                                                                                 \
	})

int main(int argc, char **argv)
{
	int zero = open("/dev/zero", O_RDONLY), p[2], n;
	char byte;

	(void)argv;
	CHECK(zero >= 0 && pipe(p) == 0);
	double reads = MEASURE(20000, CHECK(read(zero, &byte, 1) == 1));
	double ioctls = MEASURE(20000, CHECK(ioctl(p[0], 0x541B, &n) == 0));

	unsigned char *own = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(own != MAP_FAILED);
	printf("{\"read\": %f, \"other_ioctl\": %f", reads, ioctls);
	/* what a program can do by itself: take a page away, and give it back */
	printf(", \"bare\": %f", MEASURE(500, {
		       CHECK(mprotect(own, PAGE, i & 1 ? PROT_READ | PROT_WRITE : PROT_NONE) == 0);
		       CHECK(madvise(own, PAGE, MADV_DONTNEED) == 0);
	       }));
	if (argc > 1) {
		make_vm(SW_PROTECTED);
		int fd = make_gmem(64 * MIB, GMEM_MMAP | GMEM_INIT_SHARED);
		unsigned char *at = map_gmem(fd, 64 * MIB);

		memset(at, 1, 64 * MIB);
		printf(", \"ioctl\": %f", MEASURE(500, CHECK(ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD) >= 0)));
		printf(", \"convert_4k\": %f", MEASURE(200, convert(fd, 8 * MIB, PAGE, i & 1 ? SHARED : PRIVATE)));
		printf(", \"convert_2m\": %f", MEASURE(100, convert(fd, 16 * MIB, 2 * MIB, i & 1 ? SHARED : PRIVATE)));
		printf(", \"convert_2m_touched\": %f", MEASURE(20, {
			       convert(fd, 16 * MIB, 2 * MIB, i & 1 ? SHARED : PRIVATE);
			       if (i & 1)
				       memset(at + 16 * MIB, 1, 2 * MIB);
		       }));
	}
	printf("}\n");
	return 0;
}

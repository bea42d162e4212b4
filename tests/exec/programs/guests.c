/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guests in real mode, run by a small VMM: what they do with shared and private memory, and who may interrupt them. */
#include "gmem.h"


#define SIZE (16 * PAGE)
#define CODE 0x1000UL
#define DATA 0x4000UL

static unsigned char *ram;
static struct kvm_run *run;
static int vcpu_fd, gmem_fd;

/* With memory of its own for what is shared, if a guest_memfd can't be mapped: two pools. */
static void boot(const unsigned char *code, size_t length, uint64_t flags)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rax = 0x42};
	struct memory_region2 region = {.memory_size = SIZE, .flags = KVM_MEM_GUEST_MEMFD};

	make_vm(SW_PROTECTED);
	catch_bus_errors();
	gmem_fd = make_gmem(SIZE, flags);
	if (flags & GMEM_MMAP)
		ram = map_gmem(gmem_fd, SIZE);
	else
		ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(ram != MAP_FAILED);
	memcpy(ram + CODE, code, length);
	region.userspace_addr = (uint64_t)ram;
	region.guest_memfd = (uint32_t)gmem_fd;
	CHECK(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &region) == 0);
	vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	CHECK(vcpu_fd >= 0);
	run = mmap(NULL, (size_t)ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	CHECK(run != MAP_FAILED);
	CHECK(ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = sregs.cs.selector = 0;
	CHECK(ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) == 0);
	CHECK(ioctl(vcpu_fd, KVM_SET_REGS, &regs) == 0);
}

#define BOOT(flags, ...)                                                                                                         \
	do {                                                                                                                     \
		const unsigned char code[] = {__VA_ARGS__};                                                                      \
		boot(code, sizeof(code), flags);                                                                                 \
	} while (0)

static void expect_exit(unsigned reason)
{
	CHECK(ioctl(vcpu_fd, KVM_RUN, 0) == 0, "exit reason %u", run->exit_reason);
	CHECK(run->exit_reason == reason, "%u for %u", run->exit_reason, reason);
}

/* mov [0x4000],al; in al,0x10; out 0x11,al; hlt */
static void port_and_memory(void)
{
	BOOT(GMEM_MMAP | GMEM_INIT_SHARED, 0xa2, 0x00, 0x40, 0xe4, 0x10, 0xe6, 0x11, 0xf4);
	expect_exit(KVM_EXIT_IO);
	CHECK(ram[DATA] == 0x42, "the guest's store is in the page that the VMM has mapped");
	CHECK(run->io.direction == KVM_EXIT_IO_IN && run->io.port == 0x10 && run->io.size == 1);
	*((unsigned char *)run + run->io.data_offset) = 0x99;
	expect_exit(KVM_EXIT_IO);
	CHECK(run->io.direction == KVM_EXIT_IO_OUT && run->io.port == 0x11);
	CHECK(*((unsigned char *)run + run->io.data_offset) == 0x99);
	expect_exit(KVM_EXIT_HLT);
}

/* again: inc byte [0x4000]; out 0x10,al; jmp again */
static void conversion_takes_the_page_from_the_vmm(void)
{
	BOOT(GMEM_MMAP | GMEM_INIT_SHARED, 0xfe, 0x06, 0x00, 0x40, 0xe6, 0x10, 0xeb, 0xf8);
	expect_exit(KVM_EXIT_IO);
	CHECK(ram[DATA] == 1);
	convert(gmem_fd, DATA, PAGE, PRIVATE);
	/* a software-protected VM's guest has the private page where it had the shared one: nothing tells it */
	expect_exit(KVM_EXIT_IO);
	CHECK(is_bus_error(ram + DATA, false));
	convert(gmem_fd, DATA, PAGE, SHARED);
	CHECK(ram[DATA] == 2, "what the guest wrote while the page was private");
	CHECK(close(gmem_fd) == 0);
	expect_exit(KVM_EXIT_IO);
	CHECK(ram[DATA] == 3);
}

/* again: mov al,[0x4000]; out 0x10,al; inc byte [0x4000]; jmp again -- in a kernel that has the VM's attributes (linux-6.12) */
static void two_pools(void)
{
	struct memory_attributes attributes = {.address = DATA, .size = PAGE, .attributes = PRIVATE};

	BOOT(0, 0xa0, 0x00, 0x40, 0xe6, 0x10, 0xfe, 0x06, 0x00, 0x40, 0xeb, 0xf5);
	ram[DATA] = 0x55;
	expect_exit(KVM_EXIT_IO);
	CHECK(*((unsigned char *)run + run->io.data_offset) == 0x55);
	CHECK(ioctl(vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes) == 0);
	expect_exit(KVM_EXIT_IO); /* what it counted up is private memory, and so is what it reads */
	CHECK(*((unsigned char *)run + run->io.data_offset) == 1, "the private page was zero");
	CHECK(ram[DATA] == 0x55, "the guest's private stores don't show in shared memory: %#x", ram[DATA]);
	ram[DATA] = 0x66;
	expect_exit(KVM_EXIT_IO);
	CHECK(*((unsigned char *)run + run->io.data_offset) == 2, "nor do the VMM's in private memory");
	attributes.attributes = SHARED;
	CHECK(ioctl(vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes) == 0);
	expect_exit(KVM_EXIT_IO);
	CHECK(*((unsigned char *)run + run->io.data_offset) == 0x67 && ram[DATA] == 0x67);
}

static volatile sig_atomic_t handled;
static pthread_t runner;

static void count(int sig)
{
	(void)sig;
	handled++;
}

static void *interrupter(void *argument)
{
	(void)argument;
	while (!handled) {
		pthread_kill(runner, SIGUSR1);
		usleep(2000);
	}
	return NULL;
}

/* jmp $ */
static void signals_interrupt(void)
{
	struct sigaction action = {.sa_handler = count};
	sigset_t set, old;
	pthread_t thread;

	BOOT(GMEM_MMAP | GMEM_INIT_SHARED, 0xeb, 0xfe);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	runner = pthread_self();
	CHECK(pthread_create(&thread, NULL, interrupter, NULL) == 0);
	FAILS(EINTR, ioctl(vcpu_fd, KVM_RUN, 0));
	CHECK(handled >= 1 && run->exit_reason == KVM_EXIT_INTR);
	CHECK(pthread_join(thread, NULL) == 0);
	/* one that waits already */
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	CHECK(pthread_sigmask(SIG_BLOCK, &set, &old) == 0);
	handled = 0;
	pthread_kill(runner, SIGUSR1);
	run->immediate_exit = 1;
	FAILS(EINTR, ioctl(vcpu_fd, KVM_RUN, 0));
	CHECK(handled == 0, "a blocked signal isn't delivered");
	CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
	CHECK(handled == 1);
}

static void *kicked(void *argument)
{
	(void)argument;
	FAILS(EINTR, ioctl(vcpu_fd, KVM_RUN, 0));
	return NULL;
}

/* again: inc word [0x4000]; jmp again -- while the page goes back and forth */
static void converting_under_a_running_guest(void)
{
	struct sigaction action = {.sa_handler = count};
	pthread_t thread;

	BOOT(GMEM_MMAP | GMEM_INIT_SHARED, 0xff, 0x06, 0x00, 0x40, 0xeb, 0xfa);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(pthread_create(&thread, NULL, kicked, NULL) == 0);
	for (int i = 0; i < 15; i++) { /* each waits four times for the guest's thread to be scheduled: on a busy machine long */
		convert(gmem_fd, DATA, PAGE, PRIVATE);
		CHECK(is_bus_error(ram + DATA, true));
		convert(gmem_fd, DATA, PAGE, SHARED);
		usleep(200);
	}
	while (*(volatile unsigned short *)(ram + DATA) == 0)
		usleep(1000);
	while (!handled) {
		pthread_kill(thread, SIGUSR1);
		usleep(2000);
	}
	CHECK(pthread_join(thread, NULL) == 0);
}

/* The slot's memory is the VMM's own; it's unmapped under the guest. */
static void memory_that_goes_away(void)
{
	struct memory_region2 region = {.slot = 1, .guest_phys_addr = 0x10000, .memory_size = PAGE};
	unsigned char *own = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	/* mov bx,0x1000; mov ds,bx; again: inc byte [0]; out 0x10,al; jmp again */
	BOOT(GMEM_MMAP | GMEM_INIT_SHARED, 0xbb, 0x00, 0x10, 0x8e, 0xdb, 0xfe, 0x06, 0x00, 0x00, 0xe6, 0x10, 0xeb, 0xf8);
	region.userspace_addr = (uint64_t)own;
	CHECK(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &region) == 0);
	expect_exit(KVM_EXIT_IO);
	CHECK(own[0] == 1);
	CHECK(mprotect(own, PAGE, PROT_READ) == 0);
	FAILS(EFAULT, ioctl(vcpu_fd, KVM_RUN, 0));
	CHECK(mprotect(own, PAGE, PROT_READ | PROT_WRITE) == 0);
	expect_exit(KVM_EXIT_IO);
	CHECK(own[0] == 2);
	CHECK(munmap(own, PAGE) == 0);
	FAILS(EFAULT, ioctl(vcpu_fd, KVM_RUN, 0));
}

static void *looped(void *argument)
{
	(void)argument;
	runner = pthread_self();
	FAILS(EINTR, ioctl(vcpu_fd, KVM_RUN, 0));
	return NULL;
}

/* jmp $ -- with a signal that the program blocks and has no handler for, and that KVM_SET_SIGNAL_MASK lets in */
static void a_signal_that_only_kvm_lets_in(void)
{
	struct {
		struct kvm_signal_mask head;
		uint64_t set;
	} __attribute__((packed)) mask = {{8}, ~0UL};
	struct timespec no_time = {0, 0};
	pthread_t thread;
	sigset_t set;

	BOOT(GMEM_MMAP | GMEM_INIT_SHARED, 0xeb, 0xfe);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
	mask.set &= ~(1UL << (SIGUSR2 - 1));
	CHECK(ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, &mask) == 0);
	/* one that waits already */
	raise(SIGUSR2);
	FAILS(EINTR, ioctl(vcpu_fd, KVM_RUN, 0));
	CHECK(run->exit_reason == KVM_EXIT_INTR);
	CHECK(sigtimedwait(&set, NULL, &no_time) == SIGUSR2, "it still waits");
	/* one that comes while the guest runs */
	CHECK(pthread_create(&thread, NULL, looped, NULL) == 0);
	usleep(20000);
	pthread_kill(thread, SIGUSR2);
	CHECK(pthread_join(thread, NULL) == 0);
	/* and once the mask is gone, the signal is the program's affair */
	CHECK(ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, NULL) == 0);
	raise(SIGUSR2);
	run->immediate_exit = 1;
	FAILS(EINTR, ioctl(vcpu_fd, KVM_RUN, 0));
	CHECK(sigtimedwait(&set, NULL, &no_time) == SIGUSR2);
}

static volatile int turns, over;

static void *shoot_down(void *argument)
{
	(void)argument;
	while (!over) {
		int turn = turns;

		convert(gmem_fd, DATA, PAGE, PRIVATE);
		convert(gmem_fd, DATA, PAGE, SHARED);
		while (turns == turn && !over)
			usleep(10);
	}
	return NULL;
}

/* again: inc ax; out 0x10,ax; jmp again -- while another thread has the guest stopped, at any instruction */
static void no_instruction_is_lost(void)
{
	pthread_t thread;

	BOOT(GMEM_MMAP | GMEM_INIT_SHARED, 0x40, 0xe7, 0x10, 0xeb, 0xfb);
	CHECK(pthread_create(&thread, NULL, shoot_down, NULL) == 0);
	for (unsigned i = 0x43; i < 0x43 + 500; i++) {
		turns++;
		expect_exit(KVM_EXIT_IO);
		CHECK(*(uint16_t *)((char *)run + run->io.data_offset) == i, "%u", i);
	}
	over = 1;
	CHECK(pthread_join(thread, NULL) == 0);
}

static const struct test tests[] = {
	{"port_and_memory", port_and_memory},
	{"conversion_takes_the_page_from_the_vmm", conversion_takes_the_page_from_the_vmm},
	{"two_pools", two_pools},
	{"signals_interrupt", signals_interrupt},
	{"converting_under_a_running_guest", converting_under_a_running_guest},
	{"memory_that_goes_away", memory_that_goes_away},
	{"a_signal_that_only_kvm_lets_in", a_signal_that_only_kvm_lets_in},
	{"no_instruction_is_lost", no_instruction_is_lost},
	{NULL, NULL},
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}

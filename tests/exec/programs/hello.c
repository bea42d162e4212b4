/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The smallest VMM: nothing but libc and linux/kvm.h, as anyone would write it for a real KVM.
 *
 *	hello real	a guest in real mode: prints by port, adds two numbers, asks a device in memory, halts
 *	hello long	a guest in 64-bit mode, with page tables: the same
 *
 * Compiled with -DBY_NUMBER, it makes its system calls by syscall().  What the guest prints goes to standard output.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef BY_NUMBER
#define open(path, flags) (int)syscall(SYS_openat, AT_FDCWD, path, flags)
#define ioctl(...) (int)syscall(SYS_ioctl, __VA_ARGS__)
#define mmap(...) (void *)syscall(SYS_mmap, __VA_ARGS__)
#endif

#define RAM_SIZE 0x200000UL
#define CODE 0x1000UL
#define SERIAL 0x3f8
#define DEVICE 0x400000UL

/* mov dx, 0x3f8; add al, bl; add al, '0'; out dx, al; mov al, '\n'; out dx, al; hlt */
static const uint8_t real_code[] = {0xba, 0xf8, 0x03, 0x00, 0xd8, 0x04, '0', 0xee, 0xb0, '\n', 0xee, 0xf4};

/* mov eax, [0x400000]; mov dx, 0x3f8; add al, '0'; out dx, al; mov al, '\n'; out dx, al; mov byte [0x400004], 7; hlt */
static const uint8_t long_code[] = {0x8b, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, 0x66, 0xba, 0xf8, 0x03, 0x04, '0',  0xee, 0xb0,
				    '\n', 0xee, 0xc6, 0x04, 0x25, 0x04, 0x00, 0x40, 0x00, 0x07, 0xf4};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void start_in_real_mode(int vcpu)
{
	struct kvm_regs regs = {.rip = CODE, .rax = 2, .rbx = 3, .rflags = 2};
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		die("KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		die("registers");
}

static void start_in_long_mode(int vcpu, uint8_t *ram)
{
	struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
	struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	struct kvm_regs regs = {.rip = CODE, .rsp = RAM_SIZE, .rflags = 2};
	uint64_t *pml4 = (uint64_t *)(ram + 0x2000), *pdpt = (uint64_t *)(ram + 0x3000), *pd = (uint64_t *)(ram + 0x4000);
	struct kvm_sregs sregs;

	pml4[0] = 0x3003;
	pdpt[0] = 0x4003;
	for (int i = 0; i < 512; i++)
		pd[i] = (uint64_t)i << 21 | 0x83;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		die("KVM_GET_SREGS");
	sregs.cr3 = 0x2000;
	sregs.cr4 = 1 << 5;
	sregs.cr0 = 0x80000001;
	sregs.efer = 1 << 8 | 1 << 10;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		die("registers");
}

static void answer(struct kvm_run *run)
{
	const uint8_t *data = (const uint8_t *)run + run->io.data_offset;
	uint32_t five = 5;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		if (run->io.direction != KVM_EXIT_IO_OUT || run->io.port != SERIAL)
			exit(2);
		fwrite(data, run->io.size, run->io.count, stdout);
		return;
	case KVM_EXIT_MMIO:
		if (run->mmio.is_write)
			printf("device: %u at %#llx\n", run->mmio.data[0], run->mmio.phys_addr);
		else if (run->mmio.phys_addr == DEVICE && run->mmio.len == 4)
			memcpy(run->mmio.data, &five, 4);
		else
			exit(3);
		return;
	case KVM_EXIT_HLT:
		puts("halted");
		exit(0);
	default:
		fprintf(stderr, "exit %u\n", run->exit_reason);
		exit(4);
	}
}

int main(int argc, char **argv)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu;
	struct kvm_userspace_memory_region region = {.memory_size = RAM_SIZE};
	struct kvm_run *run;
	uint8_t *ram;

	if (kvm < 0)
		die("/dev/kvm");
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		die("KVM_GET_API_VERSION");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (vm < 0 || ram == MAP_FAILED)
		die("KVM_CREATE_VM");
	region.userspace_addr = (uint64_t)ram;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		die("KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (vcpu < 0 || run == MAP_FAILED)
		die("KVM_CREATE_VCPU");
	if (argc > 1 && !strcmp(argv[1], "long")) {
		memcpy(ram + CODE, long_code, sizeof(long_code));
		start_in_long_mode(vcpu, ram);
	} else {
		memcpy(ram + CODE, real_code, sizeof(real_code));
		start_in_real_mode(vcpu);
	}
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0))
			die("KVM_RUN");
		answer(run);
	}
}

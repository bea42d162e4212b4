/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VMM that looks at no result. */
#include "gmem.h"

int main(void)
{
	struct create_guest_memfd args = {.size = 2 * PAGE, .flags = GMEM_MMAP | GMEM_INIT_SHARED};
	struct memory_attributes2 to_private = {.size = PAGE, .attributes = PRIVATE}, to_shared = {.size = PAGE};
	int fd = ioctl(ioctl(open("/dev/kvm", O_RDWR), KVM_CREATE_VM, SW_PROTECTED), KVM_CREATE_GUEST_MEMFD, &args);
	unsigned char *at = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	at[0] = 1;
	ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &to_private);
	ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &to_shared);
	at[0] = 2;
	return 0;
}

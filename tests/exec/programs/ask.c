/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether a device is a KVM: its API version, or the error.  The device's name isn't in the program. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
	int fd = argc > 1 ? open(argv[1], O_RDWR) : -1;
	int version = ioctl(fd, _IO(0xAE, 0), 0);

	if (version < 0)
		printf("no KVM: %s\n", strerror(errno));
	else
		printf("KVM %d\n", version);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program that embeds Python, and asks KVM for its version from there and from C. */
#include <Python.h>

#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>

static const char script[] = "import decimal, fcntl, os, sys, struct\n"
			     "fd = os.open('/dev/kvm', os.O_RDWR)\n"
			     "print('Python', fcntl.ioctl(fd, 0xAE00, 0), [name for name in sys.modules if 'gmemu' in name], kept)\n"
			     "kept = decimal.Decimal('0.1') * 3\n";

int main(void)
{
	int fd, failed;

	Py_Initialize();
	failed = PyRun_SimpleString("kept = 'a value from before'");
	failed |= PyRun_SimpleString(script);
	fflush(stdout);
	fd = open("/dev/kvm", O_RDWR);
	printf("C %d\n", ioctl(fd, 0xAE00, 0));
	fflush(stdout);
	failed |= PyRun_SimpleString("print(kept)");
	return Py_FinalizeEx() < 0 || failed;
}

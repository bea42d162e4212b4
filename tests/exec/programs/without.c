/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Start a program as on a machine that lacks something:  without userfaultfd|seccomp|privilege PROGRAM ARGUMENTS */
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* System call `number` fails with EPERM, if its first argument is `argument` or that is negative. */
static int refuse(int number, int argument)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument < 0 ? offsetof(struct seccomp_data, nr) : offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(argument < 0 ? number : argument), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(*filter), filter};

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {0};

	if (prctl(PR_SET_SECUREBITS, SECBIT_NOROOT, 0, 0, 0) && errno != EPERM)
		return -1;
	return (int)syscall(SYS_capset, &head, none);
}

int main(int argc, char **argv)
{
	int failed = argc < 3;

	if (!failed && !strcmp(argv[1], "userfaultfd"))
		failed = refuse(SYS_userfaultfd, -1);
	else if (!failed && !strcmp(argv[1], "seccomp"))
		failed = refuse(SYS_prctl, PR_SET_SECCOMP);
	else if (!failed)
		failed = drop_capabilities();
	if (!failed)
		execvp(argv[2], argv + 2);
	perror(argv[1]);
	return 9;
}

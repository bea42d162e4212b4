/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What becomes of programs that a program starts, and of descriptors.
 *
 *	children execve|execv|execvp|execl|execle|fexecve|vfork|spawn|spawnp|bare PROGRAM ARGUMENT
 *	children alive FD		whether FD is open
 *	children dup|message|inherit
 */
#include "gmem.h"

#include <spawn.h>
#include <sys/socket.h>

extern char **environ;

static int wait_for(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status), "status %#x", status);
	return WEXITSTATUS(status);
}

static int start(const char *how, char *const argv[])
{
	char *const none[] = {NULL};
	pid_t pid;
	int error = 0;

	if (!strcmp(how, "execve"))
		execve(argv[0], argv, environ);
	else if (!strcmp(how, "bare"))
		execve(argv[0], argv, none);
	else if (!strcmp(how, "execv"))
		execv(argv[0], argv);
	else if (!strcmp(how, "execvp"))
		execvp(argv[0], argv);
	else if (!strcmp(how, "execl"))
		execl(argv[0], argv[0], argv[1], NULL);
	else if (!strcmp(how, "execle"))
		execle(argv[0], argv[0], argv[1], NULL, none);
	else if (!strcmp(how, "fexecve"))
		fexecve(open(argv[0], O_RDONLY | O_CLOEXEC), argv, environ);
	else if (!strcmp(how, "vfork")) {
		pid = vfork();
		if (!pid) {
			execve(argv[0], argv, environ);
			_exit(126);
		}
		return wait_for(pid);
	} else {
		error = (!strcmp(how, "spawnp") ? posix_spawnp : posix_spawn)(&pid, argv[0], NULL, NULL, argv, environ);
		if (!error)
			return wait_for(pid);
		errno = error;
	}
	perror(how);
	return 126;
}

/* A descriptor is a number; the file lives as long as any number leads to it. */
static int check_dup(void)
{
	int original, copy, status;
	pid_t pid;

	make_vm(SW_PROTECTED);
	original = vm_fd;
	copy = fcntl(vm_fd, F_DUPFD_CLOEXEC, 100);
	CHECK(copy >= 100 && dup2(copy, 90) == 90 && !close(original) && !close(copy));
	vm_fd = 90;
	CHECK(ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
	FAILS(EBADF, ioctl(original, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY));
	CHECK(dup2(open("/dev/null", O_RDONLY), 90) == 90);
	FAILS(ENOTTY, ioctl(90, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY));
	make_vm(SW_PROTECTED);
	pid = fork();
	if (!pid) {
		FAILS(EIO, ioctl(vm_fd, KVM_CREATE_VCPU, 0)); /* a VM is its creator's */
		CHECK(ioctl(kvm_fd, KVM_CREATE_VM, SW_PROTECTED) >= 0);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0, "status %#x", status);
	CHECK(ioctl(vm_fd, KVM_CREATE_VCPU, 0) >= 0);
	puts("ok");
	return 0;
}

static int check_message(void)
{
	char control[CMSG_SPACE(sizeof(int))] = "", byte = 0;
	struct iovec iov = {&byte, 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	int ends[2], other = open("/dev/null", O_RDONLY);

	make_vm(SW_PROTECTED);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &other, sizeof(int));
	CHECK(sendmsg(ends[0], &message, 0) == 1);
	memcpy(CMSG_DATA(head), &vm_fd, sizeof(int));
	FAILS(EOPNOTSUPP, sendmsg(ends[0], &message, 0));
	puts("ok");
	return 0;
}

/* A guest_memfd isn't closed by exec, but the emulated kernel ends with its program: there must be nothing that looks like memory. */
static int check_inherit(char *self)
{
	char number[16], *argv[] = {self, "alive", number, NULL};
	int fd;

	make_vm(SW_PROTECTED);
	fd = make_gmem(PAGE, 0);
	CHECK(!(fcntl(fd, F_GETFD) & FD_CLOEXEC));
	snprintf(number, sizeof(number), "%d", fd);
	CHECK(execv("/nowhere/program", argv) == -1 && errno == ENOENT);
	CHECK(!(fcntl(fd, F_GETFD) & FD_CLOEXEC));
	return start("vfork", argv);
}

int main(int argc, char **argv)
{
	CHECK(argc >= 2);
	if (!strcmp(argv[1], "dup"))
		return check_dup();
	if (!strcmp(argv[1], "message"))
		return check_message();
	if (!strcmp(argv[1], "inherit"))
		return check_inherit(argv[0]);
	CHECK(argc >= 3);
	if (!strcmp(argv[1], "alive"))
		return printf("%s\n", fcntl(atoi(argv[2]), F_GETFD) < 0 ? "closed" : "open") < 0;
	return start(argv[1], argv + 2);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The agent: a process that makes the system calls it's told to, and touches the memory it's told to.
 *
 * It reads requests from a channel and answers each: standard input and output if it's started as a program, the first
 * virtio-serial port if it's process 1 of a machine (it then mounts what a Linux system has, forks, and ends the machine
 * when the fork ends).  Numbers are little-endian.
 *
 *   request   u32 length of the rest, u8 operation, the operation's own
 *   answer    u32 length of the rest, struct answer, data
 *
 *   CALL      u32 number, u32 milliseconds, u64 arguments[6], u32 sizes[6], the buffers' bytes.  An argument whose size
 *             isn't NO_BUFFER becomes the address of a copy of its bytes, which is sent back.  The copy ends at a page that
 *             can't be touched, so a call that goes beyond it fails with EFAULT.  A call that lasts longer than the
 *             milliseconds (0: for ever) is interrupted by a signal.
 *   LOAD      u64 address, u32 length: data is what was read
 *   STORE     u64 address, bytes
 *   SPAWN     u8 'f' or 't': a fork or a thread; result is its number
 *   TELL      u32 child, a request: passes it on, doesn't wait
 *   HEAR      u32 child: data is the child's next answer, its length included
 *   ASK       as TELL, then HEAR
 *   REAP      u32 child, u8 whether to kill it: waits for its end; result is wait()'s status
 *   LEAVE     ends the process or thread
 *
 * Everything the agent needs lies in its own .bss, apart from where mmap() puts things: no mapping that a probe makes can
 * come to lie beside one of the agent's, and nothing is allocated while a probe runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, BUFFER = 1 << 20, FRAME = BUFFER + PAGE, STACK = 16 * PAGE };
enum { AGENTS = 9, CHILDREN = 8, ARGS = 6, OWN_FDS = 960 };
enum { CALL = 1, LOAD, STORE, SPAWN, TELL, HEAR, ASK, REAP, LEAVE };
static const uint32_t NO_BUFFER = UINT32_MAX;

struct answer {
	int64_t result;   /* of the call, or minus an errno; EBADMSG for a request that isn't understood */
	uint32_t signal;  /* that came meanwhile, if one did */
	uint32_t code;    /* its si_code */
	uint64_t address; /* and si_addr */
};

struct child {
	int used, to, from;
	pid_t pid; /* 0: a thread */
	pthread_t thread;
};

struct agent {
	char buffer[ARGS][BUFFER + PAGE] __attribute__((aligned(PAGE)));
	char request[FRAME] __attribute__((aligned(PAGE)));
	char reply[4 + sizeof(struct answer) + FRAME];
	char stack[STACK] __attribute__((aligned(PAGE)));
	struct child children[CHILDREN];
	sigjmp_buf env;
	volatile int armed;
	struct answer *volatile answer;
	timer_t timer;
	int in, out, used;
};

static struct agent agents[AGENTS] __attribute__((aligned(PAGE)));
static __thread struct agent *self;

/* Signals */

static void on_fault(int signal, siginfo_t *info, void *context)
{
	int poison = signal == SIGBUS && (info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO);

	(void)context;
	if (self && self->answer) {
		self->answer->signal = signal;
		self->answer->code = info->si_code;
		self->answer->address = (uintptr_t)info->si_addr;
		if (self->armed)
			siglongjmp(self->env, 1);
		if (poison || info->si_code <= 0)
			return;
	}
	_exit(128 + signal);
}

static void on_alarm(int signal) { (void)signal; }

static void catch_signals(void)
{
	struct sigaction fault = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
	struct sigaction alarm = { .sa_handler = on_alarm };

	sigaction(SIGBUS, &fault, NULL);
	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGALRM, &alarm, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
}

/* Each thread has its own timer.  Once it's due it goes on ticking: the first signal may come before the call begins. */
static void make_timer(struct agent *a)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM };

	event._sigev_un._tid = syscall(SYS_gettid);
	timer_create(CLOCK_MONOTONIC, &event, &a->timer);
}

static void set_timer(struct agent *a, uint32_t ms)
{
	struct itimerspec due = {
		.it_value = { ms / 1000, ms % 1000 * 1000000L },
		.it_interval = { 0, ms ? 10 * 1000000L : 0 },
	};

	timer_settime(a->timer, 0, &due, NULL);
}

/* The channel */

static int read_all(int fd, void *into, size_t length)
{
	for (char *at = into; length;) {
		ssize_t n = read(fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		at += n;
		length -= n;
	}
	return 0;
}

static int write_all(int fd, const void *from, size_t length)
{
	for (const char *at = from; length;) {
		ssize_t n = write(fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		at += n;
		length -= n;
	}
	return 0;
}

static int64_t read_frame(int fd, char *into, size_t room)
{
	uint32_t length;

	if (read_all(fd, &length, 4) || length > room || read_all(fd, into, length))
		return -1;
	return length;
}

/* What is left of a request, and whether more was asked of it than it has */
struct cursor {
	const char *at, *end;
	int short_of;
};

static const void *take(struct cursor *c, size_t length)
{
	const char *at = c->at;

	if ((size_t)(c->end - at) < length)
		c->short_of = 1;
	if (c->short_of)
		return NULL;
	c->at += length;
	return at;
}

static uint64_t take_number(struct cursor *c, size_t size)
{
	uint64_t number = 0;
	const void *at = take(c, size);

	if (at)
		memcpy(&number, at, size);
	return number;
}

/* Calls and memory */

static long do_syscall(long number, const uint64_t *a)
{
	register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static size_t call(struct agent *a, struct cursor *c, struct answer *answer, char *data)
{
	uint32_t number = take_number(c, 4), ms = take_number(c, 4), size[ARGS];
	uint64_t arg[ARGS];
	size_t total = 0;

	for (int i = 0; i < ARGS; i++)
		arg[i] = take_number(c, 8);
	for (int i = 0; i < ARGS; i++)
		size[i] = take_number(c, 4);
	for (int i = 0; i < ARGS; i++) {
		const void *bytes;

		if (size[i] == NO_BUFFER)
			continue;
		bytes = size[i] <= BUFFER ? take(c, size[i]) : NULL;
		if (!bytes) {
			answer->result = -EBADMSG;
			return 0;
		}
		arg[i] = (uintptr_t)memcpy(a->buffer[i] + BUFFER - size[i], bytes, size[i]);
	}
	if (ms)
		set_timer(a, ms);
	answer->result = do_syscall(number, arg);
	if (ms)
		set_timer(a, 0);
	for (int i = 0; i < ARGS; i++) {
		if (size[i] == NO_BUFFER)
			continue;
		memcpy(data + total, a->buffer[i] + BUFFER - size[i], size[i]);
		total += size[i];
	}
	return total;
}

/* From low to high addresses, in aligned words where it can: the address that faults is the first that can't be had. */
static void copy(char *to, const char *from, size_t length, const char *aligned)
{
	size_t head = -(uintptr_t)aligned & 7, words;

	head = head < length ? head : length;
	words = (length - head) / 8;
	length = (length - head) % 8;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(head) : : "memory");
	__asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
}

static int64_t copy_carefully(struct agent *a, char *to, const char *from, size_t length, const char *aligned)
{
	if (sigsetjmp(a->env, 0) == 0) {
		a->armed = 1;
		copy(to, from, length, aligned);
	}
	a->armed = 0;
	return a->answer->signal ? -EFAULT : (int64_t)length;
}

/* Children */

static int serve(struct agent *a);

static struct agent *new_agent(void)
{
	for (struct agent *a = agents; a < agents + AGENTS; a++) {
		if (!__atomic_exchange_n(&a->used, 1, __ATOMIC_SEQ_CST))
			return a;
	}
	return NULL;
}

static void prepare(struct agent *a, int in, int out)
{
	for (int i = 0; i < ARGS; i++)
		mprotect(a->buffer[i] + BUFFER, PAGE, PROT_NONE);
	memset(a->children, 0, sizeof(a->children));
	a->in = in;
	a->out = out;
}

static int64_t serve_as(struct agent *a)
{
	self = a;
	make_timer(a);
	return serve(a);
}

static void *run_thread(void *agent)
{
	struct agent *a = agent;

	serve_as(a);
	timer_delete(a->timer);
	close(a->in);
	close(a->out);
	__atomic_store_n(&a->used, 0, __ATOMIC_SEQ_CST);
	return NULL;
}

static void own_pipe(int *ends)
{
	int low[2];

	ends[0] = ends[1] = -1;
	if (pipe2(low, O_CLOEXEC))
		return;
	for (int i = 0; i < 2; i++) {
		ends[i] = fcntl(low[i], F_DUPFD_CLOEXEC, OWN_FDS);
		close(low[i]);
	}
}

static int64_t spawn_fork(struct agent *a, struct child *child, int in, int out)
{
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		int highest = sysconf(_SC_OPEN_MAX) - 1;

		for (int fd = OWN_FDS; fd <= highest && fd < OWN_FDS + 64; fd++) {
			if (fd != in && fd != out)
				close(fd);
		}
		for (struct agent *other = agents; other < agents + AGENTS; other++)
			other->used = other == a;
		prepare(a, in, out);
		_exit(serve_as(a));
	}
	child->pid = pid;
	close(in);
	close(out);
	return 0;
}

static int64_t spawn_thread(struct child *child, int in, int out)
{
	struct agent *a = new_agent();
	pthread_attr_t attr;
	int error;

	if (!a)
		return -EAGAIN;
	prepare(a, in, out);
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, a->stack, STACK);
	child->pid = 0;
	error = pthread_create(&child->thread, &attr, run_thread, a);
	if (error)
		a->used = 0;
	return -error;
}

static int64_t spawn(struct agent *a, int kind)
{
	int requests[2], answers[2], number = 0;
	struct child *child = a->children;
	int64_t error;

	while (number < CHILDREN && child->used)
		number++, child++;
	if (number == CHILDREN)
		return -EAGAIN;
	own_pipe(requests);
	own_pipe(answers);
	child->to = requests[1];
	child->from = answers[0];
	error = kind == 'f' ? spawn_fork(a, child, requests[0], answers[1]) : spawn_thread(child, requests[0], answers[1]);
	if (error)
		return error;
	child->used = 1;
	return number;
}

static int64_t reap(struct child *child, int kill_it)
{
	int status = 0;

	if (child->pid && kill_it)
		kill(child->pid, SIGKILL);
	close(child->to);
	if (child->pid)
		waitpid(child->pid, &status, 0);
	else
		pthread_join(child->thread, NULL);
	close(child->from);
	child->used = 0;
	return status;
}

static int64_t tell(struct child *child, struct cursor *c)
{
	uint32_t length = c->end - c->at;

	return write_all(child->to, &length, 4) || write_all(child->to, c->at, length) ? -EPIPE : 0;
}

static size_t hear(struct child *child, struct answer *answer, char *data)
{
	int64_t length = read_frame(child->from, data + 4, FRAME - 4);

	answer->result = length < 0 ? -EPIPE : 0;
	if (length < 0)
		return 0;
	memcpy(data, &(uint32_t){ length }, 4);
	return length + 4;
}

static size_t pass_on(struct agent *a, int operation, struct cursor *c, struct answer *answer, char *data)
{
	uint32_t number = take_number(c, 4);
	struct child *child = &a->children[number % CHILDREN];

	answer->result = -ECHILD;
	if (number >= CHILDREN || !child->used || c->short_of)
		return 0;
	if (operation == REAP) {
		answer->result = reap(child, take_number(c, 1));
		return 0;
	}
	if (operation != HEAR)
		answer->result = tell(child, c);
	if (operation == HEAR || (operation == ASK && answer->result == 0))
		return hear(child, answer, data);
	return 0;
}

static size_t carry_out(struct agent *a, int operation, struct cursor *c, struct answer *answer, char *data)
{
	char *address;
	size_t length;

	switch (operation) {
	case CALL:
		return call(a, c, answer, data);
	case LOAD:
		address = (char *)take_number(c, 8);
		length = take_number(c, 4);
		if (length > BUFFER || c->short_of)
			break;
		answer->result = copy_carefully(a, data, address, length, address);
		return answer->result < 0 ? 0 : length;
	case STORE:
		address = (char *)take_number(c, 8);
		if (c->short_of)
			break;
		answer->result = copy_carefully(a, address, c->at, c->end - c->at, address);
		return 0;
	case SPAWN:
		answer->result = spawn(a, take_number(c, 1));
		return 0;
	case TELL:
	case HEAR:
	case ASK:
	case REAP:
		return pass_on(a, operation, c, answer, data);
	case LEAVE:
		return 0;
	}
	answer->result = -EBADMSG;
	return 0;
}

static int serve(struct agent *a)
{
	char *data = a->reply + 4 + sizeof(struct answer);
	struct answer answer;
	int operation;

	do {
		int64_t length = read_frame(a->in, a->request, FRAME);
		struct cursor c = { a->request + 1, a->request + length, 0 };
		uint32_t size = sizeof(answer);

		if (length < 1)
			return 0;
		operation = a->request[0];
		memset(&answer, 0, sizeof(answer));
		a->answer = &answer;
		size += carry_out(a, operation, &c, &answer, data);
		a->answer = NULL;
		memcpy(a->reply, &size, 4);
		memcpy(a->reply + 4, &answer, sizeof(answer));
		if (write_all(a->out, a->reply, 4 + size))
			return 1;
	} while (operation != LEAVE);
	return 0;
}

/* Process 1 of a machine */

static void make_system(void)
{
	static const char *const mounts[][2] = {
		{ "devtmpfs", "/dev" }, { "proc", "/proc" }, { "sysfs", "/sys" }, { "debugfs", "/sys/kernel/debug" }, { "tmpfs", "/tmp" },
	};

	for (size_t i = 0; i < sizeof(mounts) / sizeof(*mounts); i++) {
		mkdir(mounts[i][1], 0755);
		mount(mounts[i][0], mounts[i][1], mounts[i][0], 0, NULL);
	}
}

static int open_port(void)
{
	for (int tries = 0; tries < 10000; tries++) {
		int fd = open("/dev/vport0p1", O_RDWR | O_CLOEXEC);

		if (fd >= 0)
			return fd;
		nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
	}
	return -1;
}

static void null_streams(int count)
{
	int null = open("/dev/null", O_RDWR);

	for (int fd = 0; fd < count; fd++)
		dup2(null, fd);
	if (null >= count)
		close(null);
}

static int run(int in, int out, int streams)
{
	struct agent *a = new_agent();

	in = fcntl(in, F_DUPFD_CLOEXEC, OWN_FDS);
	out = fcntl(out, F_DUPFD_CLOEXEC, OWN_FDS);
	null_streams(streams);
	catch_signals();
	prepare(a, in, out);
	return serve_as(a);
}

int main(void)
{
	pid_t pid;
	int port;

	if (getpid() != 1)
		return run(0, 1, 2);
	make_system();
	port = open_port();
	pid = fork();
	if (pid == 0) {
		setsid();
		int own = fcntl(port, F_DUPFD_CLOEXEC, OWN_FDS);

		close(port);
		_exit(run(own, own, 3));
	}
	close(port);
	while (waitpid(-1, NULL, 0) != pid)
		;
	reboot(RB_AUTOBOOT);
	return 1;
}

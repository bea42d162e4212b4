# SPDX-License-Identifier: GPL-2.0-or-later
"""A C program in the manner of the KVM selftests that makes the trace's calls, in its order as far as user space can.

A thread waits before each call for what came before it in the trace.  Where another task ran in the middle of a call, the
kernel has to be held up there; the program says where, and what was held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ...rules import catalogue
from ...uapi.kvm import ioctl_name
from .calls import WORD, Named, Word, fields, named, waits_for
from .story import function, held_by, title, token, verdict

if TYPE_CHECKING:
    from ...explore.trace import Step, Trace

__all__ = ["write"]


def write(traces: Sequence[Trace]) -> str:
    """The first trace.  Raises `NotExpressible`."""
    trace = traces[0]
    calls = named(trace)
    made = [call.makes for call in calls if call.makes]
    fds = [name for name in made if not name.startswith("mem") or name.startswith("memfd")]
    out = [_HEAD.format(title=title(trace), verdict=_comment(verdict(trace)), token=token(trace), count=len(calls))]
    if fds:
        out.append(f"static int {', '.join(f'{name} = -1' for name in fds)};\n")
    if maps := [name for name in made if name not in fds]:
        out.append(f"static char {', '.join(f'*{name}' for name in maps)};\n")
    for task, name in enumerate(trace.tasks):
        out.append(f"\nstatic void *{_identifier(name)}(void *unused)\n{{\n\tlong r;\n\n\t(void)unused;\n")
        out += [_call(trace, calls, call) for call in calls if call.call.task == task]
        out.append("\t(void)r;\n\treturn NULL;\n}\n")
    out.append("\nint main(void)\n{\n")
    out.append(f"\tpthread_t threads[{len(trace.tasks)}];\n\tlong r;\n\n{_MAIN}")
    out += [_call(trace, calls, call) for call in calls if call.call.task < 0]
    out.append("\t(void)r;\n\n")
    for task, name in enumerate(trace.tasks):
        out.append(f"\tpthread_create(&threads[{task}], NULL, {_identifier(name)}, NULL);\n")
    out += [f"\tpthread_join(threads[{task}], NULL);\n" for task in range(len(trace.tasks))]
    out.append(f"\n\t/* {_comment(verdict(trace))} */\n\treturn 0;\n}}\n")
    return "".join(out)


def _call(trace: Trace, calls: list[Named], this: Named) -> str:
    """The statements of one call."""
    waits = "".join(
        f"\twait_for({other.number}, {'OVER' if over else 'BEGUN'});\n"
        for other, over in (waits_for(calls, this) if this.call.task >= 0 else ())
    )
    notes = "".join(f"\t/* {_comment(note)} */\n" for note in _notes(trace, this))
    made = f"\t{this.makes} = {'(char *)' if _is_memory(this.makes) else ''}r;\n" if this.makes else ""
    return f"{waits}{notes}\tadvance({this.number}, BEGUN);\n\t{_statement(this)}\n{made}\tadvance({this.number}, OVER);\n\n"


def _notes(trace: Trace, this: Named) -> Iterator[str]:
    call = this.call
    if said := fields(call):
        yield said
    if call.process:
        yield f"made in a child of fork() (process {call.process}); here it's made in this one"
    if call.rule:
        yield f"in the trace: {_result(call.result)}, {catalogue()[call.rule].id}: {catalogue()[call.rule].text}"
    elif call.end < 0:
        yield "in the trace it never comes back"
    if call.task < 0:
        return
    inside = trace.steps[call.begin : call.end if call.end >= 0 else None]
    for step, following in pairwise(inside):
        if step.task == call.task != following.task:
            until = next((s.number for s in inside if s.number > step.number and s.task == call.task), inside[-1].number + 1)
            yield _held_up(trace, step, until)


def _held_up(trace: Trace, step: Step, until: int) -> str:
    others = ", ".join(dict.fromkeys(trace.tasks[s.task] for s in trace.steps[step.number + 1 : until]))
    held = ", ".join(held_by(step.after, step.task)) or "no lock"
    where = f"{function(step)}() after step {step.number} (it holds {held})"
    return f"hold it up in {where} while {others} runs to step {until - 1}"


def _statement(this: Named) -> str:
    call, a = this.call, this.call.args
    at = f"{this.memory} + {this.offset:#x}" if this.memory else f"(char *){this.offset:#x}ul"
    fd = this.fd or "-1"
    match call.name:
        case "open":
            return f'r = CALL(open("{a[0]}", O_RDWR | O_CLOEXEC));'
        case "ioctl":
            argument = _buffer(this) if this.words or this.tail else f"{a[2] if len(a) > 2 else 0:#x}ul"
            return f"r = CALL(ioctl({fd}, {a[1]:#x}ul /* {ioctl_name(a[1])} */, {argument}));"
        case "mmap":
            offset = a[5] if len(a) > 5 else 0
            return f"r = CALL(mmap(NULL, {a[1]:#x}, {a[2]:#x}, {a[3]:#x}, {fd}, {offset:#x}));"
        case "munmap":
            return f"r = CALL(munmap({at}, {a[1]:#x}));"
        case "mprotect" | "madvise":
            return f"r = CALL({call.name}({at}, {a[1]:#x}, {a[2]:#x}));"
        case "load":
            return f"r = TOUCH(memcpy(buffer, {at}, {a[1]:#x}));"
        case "store":
            return f"r = TOUCH(memcpy({at}, {_buffer(this)}, {len(a[1]):#x}));"
        case "fallocate":
            return f"r = CALL(fallocate({fd}, {a[1]:#x}, {a[2]:#x}, {a[3]:#x}));"
        case "ftruncate":
            return f"r = CALL(ftruncate({fd}, {a[1]:#x}));"
        case "close" | "dup" | "fsync":
            return f"r = CALL({call.name}({fd}));"
        case "memfd_create":
            return f'r = CALL(memfd_create("{a[0]}", 0));'
        case "load_guest":
            return f"r = 0; /* a scripted guest is put into {fd}: its code isn't C */"
        case "fork":
            return "r = 0; /* fork(): see the calls that say so */"
        case other:
            return f"r = 0; /* {other}({', '.join(map(_comment, map(repr, a)))}) isn't written out */"


def _buffer(this: Named) -> str:
    words = [_word(word) for word in this.words]
    if this.tail:
        words.append(f"{int.from_bytes(this.tail, 'little'):#x}")
    while len(words) > 1 and words[-1] == "0":
        words.pop()
    return f"(uint64_t[{len(this.words) + bool(this.tail)}]){{ {', '.join(words)} }}"


def _word(word: Word) -> str:
    if word.fd and word.high:
        return f"(uint64_t){word.fd} << 32" + (f" | {word.value:#x}" if word.value else "")
    if word.fd:
        return f"(uint32_t){word.fd}" + (f" | {word.value:#x}ull << 32" if word.value else "")
    if word.memory:
        return f"(uintptr_t){word.memory}" + (f" + {word.value:#x}" if word.value else "")
    return f"{word.value:#x}ull" if word.value else "0"


def _is_memory(name: str) -> bool:
    return name.startswith("mem") and not name.startswith("memfd")


def _result(result: object) -> str:
    return f"errno {-result}" if isinstance(result, int) else str(result)


def _identifier(name: str) -> str:
    return "task_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("\n", " ")


assert WORD == 8, "buffers are written as uint64_t"

_HEAD = """\
// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * {title}: a skeleton made by gmemu from a simulated run.
 *
 * {verdict}
 *
 * gmemu replay '{token}'
 *
 * Build with: cc -pthread.  Threads make the calls of the trace, each after what came before it there.  What the kernel
 * does inside of a call can't be ordered from here: where comments say "hold it up", add a delay to the kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum state {{ NOT_YET, BEGUN, OVER }};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static enum state calls[{count}];

static __thread sigjmp_buf jmpbuf;
static __thread volatile sig_atomic_t got;
static __thread char buffer[4096] __attribute__((unused));

/* What a call came to: its value or -errno; of a load or store, 0 or the signal's number. */
#define CALL(e) ({{ long r_ = (long)(e); r_ == -1 ? -errno : r_; }})
#define TOUCH(e) (got = 0, sigsetjmp(jmpbuf, 1) ? (long)got : ({{ (void)(e); 0L; }}))

static void on_signal(int nr)
{{
	got = nr;
	siglongjmp(jmpbuf, 1);
}}

static void advance(int call, enum state state)
{{
	pthread_mutex_lock(&lock);
	calls[call] = state;
	pthread_cond_broadcast(&moved);
	pthread_mutex_unlock(&lock);
}}

static void __attribute__((unused)) wait_for(int call, enum state state)
{{
	pthread_mutex_lock(&lock);
	while (calls[call] < state)
		pthread_cond_wait(&moved, &lock);
	pthread_mutex_unlock(&lock);
}}

"""

_MAIN = """\
	signal(SIGBUS, on_signal);
	signal(SIGSEGV, on_signal);

"""

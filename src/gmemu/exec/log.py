# SPDX-License-Identifier: GPL-2.0-or-later
"""`gmemu exec --log`: each call on the emulated kernel, with the rule behind each error, and what the kernel did meanwhile.

Three forms: lines in strace's manner, JSON Lines, and a trace for Perfetto.  All say first that what follows is simulated.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..hw.real_memory import out_of_the_way
from ..rules import KernelError, MemoryFault
from ..uapi.errno import errno_name
from . import decode

if TYPE_CHECKING:
    from .kernel import ExecKernel

__all__ = ["JsonLog", "Log", "LoggedCalls", "NoLog", "TextLog", "open_log"]

Told = Callable[[tuple[int, ...], dict[str, Any]], None]

PERFETTO = (".pftrace", ".perfetto-trace")
_HIDDEN = {"fork", "exit", "pin", "pinned"}


class Log(Protocol):
    """Where calls and events go."""

    def call(self, entry: dict[str, Any]) -> None:
        """A call returned."""

    def event(self, entry: dict[str, Any]) -> None:
        """The emulated kernel did something."""


class _File:
    """A file that each line is written to at once, by whichever thread or process."""

    def __init__(self, path: str) -> None:
        self._fd = out_of_the_way(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))

    def line(self, text: str) -> None:
        os.write(self._fd, f"{text}\n".encode(errors="backslashreplace"))


class JsonLog(_File):
    """JSON Lines: `call` or `event` in each."""

    def __init__(self, path: str, title: dict[str, Any]) -> None:
        super().__init__(path)
        self.line(json.dumps(title))

    def call(self, entry: dict[str, Any]) -> None:
        self.line(json.dumps(entry))

    event = call


class NoLog:
    """Nobody wants to read it."""

    def call(self, entry: dict[str, Any]) -> None:
        pass

    event = call


class TextLog(_File):
    """One line a call, as strace writes it; events are indented."""

    def __init__(self, path: str, title: dict[str, Any]) -> None:
        super().__init__(path)
        self.line("# " + ", ".join(f"{key} {value}" for key, value in title.items()))

    def call(self, entry: dict[str, Any]) -> None:
        shown = ", ".join(_shown(key, value) for key, value in entry["args"].items())
        result = entry["result"]
        text = f"{entry['thread']} {entry['call']}({shown}) = {result if -4096 < result < 65536 else hex(result)}"
        if "errno" in entry:
            text += f" {entry['errno']}"
        if "exit" in entry:
            text += f" KVM_EXIT_{_shown('', entry['exit'])}"
        if "rule" in entry:
            text += f"  # {entry['rule']}: {entry['why']}"
        self.line(text)

    def event(self, entry: dict[str, Any]) -> None:
        details = ", ".join(_shown(key, value) for key, value in entry.items() if key not in ("event", "time", "thread"))
        self.line(f"{entry['thread']}   * {entry['event']}: {details}")


def _shown(key: str, value: object) -> str:
    if isinstance(value, dict):
        fields = dict(value)
        reason = fields.pop("reason", None)
        inner = ", ".join(f"{k}={_number(v)}" for k, v in fields.items() if v not in ((), None) and not _is_empty(k, v))
        text = f"{{{inner}}}" if inner or reason is None else ""
        return f"{reason}{' ' if text else ''}{text}" if reason is not None else text
    return f"{_number(value)}" if key in ("", "fd", "request", "arg", "path") else f"{key}={_number(value)}"


def _is_empty(name: str, value: object) -> bool:
    """Reserved fields and padding that hold nothing."""
    return name.startswith(("pad", "reserved")) and (value == 0 or (isinstance(value, tuple) and not any(value)))


def _number(value: object) -> str:
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) and value > 9 else str(value)


def open_log(path: str, title: dict[str, Any]) -> Log:
    """The log at `path`: JSON Lines if its name ends in .jsonl, a Perfetto trace if it ends in .pftrace.

    Raises `ModuleNotFoundError` if a Perfetto trace is wanted and the package isn't installed.
    """
    if path.endswith(PERFETTO):
        from .perfetto import PerfettoLog

        return PerfettoLog(path, title)
    return JsonLog(path, title) if path.endswith((".jsonl", ".json")) else TextLog(path, title)


class LoggedCalls:
    """Stands before an `ExecKernel` and writes down what goes in and comes out."""

    def __init__(self, kernel: ExecKernel, log: Log, told: Told | None = None) -> None:
        self._kernel, self._log, self._told = kernel, log, told
        self._start = time.monotonic()

    def __getattr__(self, name: str) -> Callable[..., int]:
        call: Callable[..., int] = getattr(self._kernel, name)
        if name in _HIDDEN:
            return call

        def logged(*words: int) -> int:
            kernel = self._kernel
            began = time.monotonic()
            entry: dict[str, Any] = {"time": round(began - self._start, 9), "thread": threading.get_native_id()}
            entry |= {"call": name, "args": decode.arguments(kernel, name, words)}
            kernel.failed.error = None
            result = entry["result"] = call(*words)
            entry["took"] = round(time.monotonic() - began, 9)
            if result == kernel.NOT_OURS:
                return result
            if name == "ioctl" and result >= 0 and words[1] >> 31 & 1:  # _IOC_READ: the argument is an answer
                entry["args"] = decode.arguments(kernel, name, words)
            if -4096 < result < 0:
                entry["errno"] = errno_name(-result)
                entry["result"] = -1
            self._add_error(entry, kernel.failed.error)
            exit_ = decode.exit_of(kernel, name, words)
            if exit_ is not None:
                entry["exit"] = exit_
            self._log.call(entry)
            if self._told is not None:
                self._told(words, entry)
            return result

        return logged

    @staticmethod
    def _add_error(entry: dict[str, Any], error: Exception | None) -> None:
        if isinstance(error, KernelError | MemoryFault):
            entry |= {"rule": error.rule.id, "source": error.rule.source, "why": error.why}
            if error.rule.id.startswith("gmemu.") and not error.rule.id.startswith("gmemu.ordered."):
                entry["lacking"] = True
            if entry["call"] == "fault" and isinstance(error, MemoryFault):
                entry["errno"] = error.rule.signal

    def event(self, name: str, **details: Any) -> None:
        """The emulated kernel did `name`."""
        now = round(time.monotonic() - self._start, 9)
        self._log.event({"time": now, "thread": threading.get_native_id(), "event": name, **details})

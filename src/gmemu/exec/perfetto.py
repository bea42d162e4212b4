# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of `gmemu exec` as a Perfetto trace (TrackEvent protobuf): a process for each that a fork made, a thread for each
that called, a slice for each call, an instant for each thing that the emulated kernel did.

Packets are appended as they come.  A trace that was cut off, as by SIGKILL, can be read up to there.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import DebugAnnotation, Trace, TracePacket, TrackEvent

from ..hw.real_memory import out_of_the_way

__all__ = ["PerfettoLog"]

_PROCESS = 1 << 32
"""what is added to a pid to have its track's number; a thread's is its own"""


class PerfettoLog:
    """A file for ui.perfetto.dev.  Times are the log's own: seconds since the program opened /dev/kvm."""

    def __init__(self, path: str, title: dict[str, Any]) -> None:
        self._fd = out_of_the_way(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
        self._lock = threading.Lock()
        self._title = "gmemu exec (simulated), " + ", ".join(f"{key} {title[key]}" for key in ("profile", "platform"))
        self._known: set[int] = set()

    def call(self, entry: dict[str, Any]) -> None:
        """A slice from the call's beginning to its end."""
        begin = _ns(entry["time"])
        request = entry["args"].get("request")
        name = f"ioctl({request})" if request else entry["call"]
        notes = {key: _text(value) for key, value in entry["args"].items()}
        notes |= {key: _text(entry[key]) for key in ("result", "errno", "exit", "rule", "why") if key in entry}
        trace = self._begun(entry["thread"])
        self._add(trace, begin, entry["thread"], TrackEvent.TYPE_SLICE_BEGIN, _outcome(name, entry), notes)
        self._add(trace, begin + _ns(entry["took"]), entry["thread"], TrackEvent.TYPE_SLICE_END)
        os.write(self._fd, trace.SerializeToString())

    def event(self, entry: dict[str, Any]) -> None:
        """An instant on the track of the thread that the kernel worked for."""
        notes = {key: _text(value) for key, value in entry.items() if key not in ("time", "thread", "event")}
        trace = self._begun(entry["thread"])
        self._add(trace, _ns(entry["time"]), entry["thread"], TrackEvent.TYPE_INSTANT, entry["event"], notes)
        os.write(self._fd, trace.SerializeToString())

    def _begun(self, tid: int) -> Trace:
        """A trace to add to, with the tracks of this process and of the thread if they are new."""
        trace, pid = Trace(), os.getpid()
        with self._lock:
            if pid not in self._known:
                self._known = {pid}  # those of a fork's parent are the parent's
                process = self._packet(trace, 0).track_descriptor
                process.uuid, process.process.pid = _PROCESS + pid, pid
                process.process.process_name = self._title
            if -tid not in self._known:
                self._known.add(-tid)
                thread = self._packet(trace, 0).track_descriptor
                thread.uuid, thread.parent_uuid = tid, _PROCESS + pid
                thread.thread.pid, thread.thread.tid, thread.thread.thread_name = pid, tid, f"thread {tid}"
        return trace

    def _add(self, trace: Trace, at: int, tid: int, kind: int, name: str = "", notes: dict[str, str] | None = None) -> None:
        event = self._packet(trace, at).track_event
        event.track_uuid, event.type = tid, kind
        if name:
            event.name = name
        notes = notes or {}
        event.debug_annotations.extend(DebugAnnotation(name=key, string_value=value) for key, value in notes.items())

    @staticmethod
    def _packet(trace: Trace, at: int) -> Any:
        packet: TracePacket = trace.packet.add()
        packet.timestamp = at
        packet.trusted_packet_sequence_id = os.getpid()
        return packet


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(part)}" for key, part in value.items() if not key.startswith(("pad", "reserved")))
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) and value > 9 else str(value)


def _outcome(name: str, entry: dict[str, Any]) -> str:
    """What a slice is called: the call, and what it came to if that is more than success."""
    if "errno" in entry:
        return f"{name} = {entry['errno']}"
    if "exit" in entry:
        return f"{name}: {entry['exit']['reason']}"
    return str(name)

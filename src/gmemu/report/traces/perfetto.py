# SPDX-License-Identifier: GPL-2.0-or-later
"""A Perfetto trace (TrackEvent protobuf): a thread for each task, a track for each lock with who holds it, counters for
the references of each page, and its state as a slice.  One step is one microsecond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    CounterDescriptor,
    DebugAnnotation,
    TracePacket,
    TrackEvent,
)
from perfetto.trace_builder.proto_builder import TraceProtoBuilder

from .story import changes, event, function, held_by, page_text, title, token, verdict

if TYPE_CHECKING:
    from ...explore.trace import Trace

__all__ = ["STEP_NS", "write"]

STEP_NS = 1000
_PID = 1
_SEQUENCE = 1


def write(traces: Sequence[Trace]) -> bytes:
    """Each trace as a process of its own."""
    writer = _Writer()
    for number, trace in enumerate(traces):
        _trace(writer, trace, _PID + number)
    return bytes(writer.builder.serialize())


class _Writer:
    """Packets of one sequence; tracks are numbered as they are made."""

    def __init__(self) -> None:
        self.builder = TraceProtoBuilder()
        self._tracks = 0

    def track(self, name: str, parent: int = 0, **more: Any) -> int:
        """A new track: `process` and `thread` give pid, tid and name; `counter` makes it one."""
        self._tracks += 1
        descriptor = self._packet(0).track_descriptor
        descriptor.uuid = self._tracks
        if parent:
            descriptor.parent_uuid = parent
        if "tid" in more:
            descriptor.thread.pid, descriptor.thread.tid, descriptor.thread.thread_name = more["pid"], more["tid"], name
        elif "pid" in more:
            descriptor.process.pid, descriptor.process.process_name = more["pid"], name
        else:
            descriptor.name = name
        if more.get("counter"):
            descriptor.counter.unit = CounterDescriptor.UNIT_COUNT
        return self._tracks

    def slice(self, track: int, begin: int, end: int, name: str, **notes: str) -> None:
        """Something that lasts from step `begin` to step `end`."""
        event = self._event(track, begin, TrackEvent.TYPE_SLICE_BEGIN)
        event.name = name
        event.debug_annotations.extend(
            DebugAnnotation(name=key, string_value=value) for key, value in notes.items() if value
        )
        self._event(track, end, TrackEvent.TYPE_SLICE_END)

    def counter(self, track: int, step: int, value: int) -> None:
        """A counter's value from `step` on."""
        self._event(track, step, TrackEvent.TYPE_COUNTER).counter_value = value

    def _event(self, track: int, step: int, type: int) -> Any:
        event = self._packet(step).track_event
        event.track_uuid, event.type = track, type
        return event

    def _packet(self, step: int) -> Any:
        packet: TracePacket = self.builder.add_packet()
        packet.timestamp = step * STEP_NS
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet


def _trace(writer: _Writer, trace: Trace, pid: int) -> None:
    process = writer.track(f"gmemu (simulated): {title(trace)}", pid=pid)
    end = len(trace.steps)
    threads = [writer.track(name, process, pid=pid, tid=pid * 100 + number) for number, name in enumerate(trace.tasks)]
    for step in trace.steps:
        writer.slice(
            threads[step.task],
            step.number,
            step.number + 1,
            event(step),
            function=function(step),
            where=str(step.where or ""),
            changes="; ".join(changes(trace.before_step(step.number), step.after)),
            locks=", ".join(held_by(step.after, step.task)),
            rules=", ".join(step.rules),
        )
    for waiting in trace.waiting:
        writer.slice(threads[waiting.task], end, end + 1, f"waits to {waiting.kind} {waiting.object}")
    _locks(writer, trace, process, threads)
    _pages(writer, trace, process)
    writer.slice(process, end, end + 1, verdict(trace), token=token(trace))


def _locks(writer: _Writer, trace: Trace, process: int, threads: list[int]) -> None:
    """A track for each lock and holder, as shared holders overlap."""
    held: dict[tuple[str, int], list[tuple[int, str]]] = {}
    tracks: dict[tuple[str, int], int] = {}
    for step in (*trace.steps, None):
        now = {(lock.name, task): mode for lock in (step.after.locks if step else ()) for task, mode in lock.holders}
        at = step.number + 1 if step else len(trace.steps) + 1
        for key, mode in now.items():
            if not held.get(key):
                held[key] = [(at, mode)]
        for key in [key for key, begun in held.items() if begun and key not in now]:
            [(begin, mode)] = held.pop(key)
            name = f"{key[0]} by {trace.tasks[key[1]]}"
            track = tracks.setdefault(key, 0) or writer.track(key[0], process)
            tracks[key] = track
            writer.slice(track, begin, at, f"{name} ({mode})")


def _pages(writer: _Writer, trace: Trace, process: int) -> None:
    """For each page its state as slices, and its references as a counter."""
    worlds = [trace.before, *(step.after for step in trace.steps)]
    for name in dict.fromkeys(page.name for world in worlds for page in world.pages):
        state, refs = writer.track(name, process), writer.track(f"{name} references", process, counter=True)
        found = [next((page for page in world.pages if page.name == name), None) for world in worlds]
        begin = 0
        for at in range(1, len(found) + 1):
            if at < len(found) and found[at] == found[begin]:
                continue
            page = found[begin]
            if page is not None:
                writer.slice(state, begin, at, page_text(page))
                writer.counter(refs, begin, page.refs)
            begin = at

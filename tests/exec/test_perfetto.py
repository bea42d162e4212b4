# SPDX-License-Identifier: GPL-2.0-or-later
"""The log as a Perfetto trace, read back with Perfetto's own declarations."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import gmemu.cli.exec
from gmemu.cli.main import main

from .conftest import Compile, Exec
from .test_log import HELD

protobuf = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="gmemu[perfetto] isn't installed")


def read(path: Path) -> tuple[list[Any], list[Any]]:
    """Descriptors of tracks, and packets with events in the order of time."""
    trace = protobuf.Trace()
    trace.ParseFromString(path.read_bytes())
    tracks = [packet.track_descriptor for packet in trace.packet if packet.HasField("track_descriptor")]
    return tracks, sorted((p for p in trace.packet if p.HasField("track_event")), key=lambda packet: packet.timestamp)


def notes(packet: Any) -> dict[str, str]:
    return {note.name: note.string_value for note in packet.track_event.debug_annotations}


def test_a_slice_for_each_call(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    log = tmp_path / "log.pftrace"
    done = gmemu_exec(compile_c("conversions"), "elevated_reference", options=("--log", str(log), *HELD))
    assert (done.returncode, done.stderr) == (0, "")
    tracks, packets = read(log)
    [process, thread] = tracks
    assert process.process.process_name.startswith("gmemu exec (simulated), profile inplace-v13, platform ")
    assert (thread.parent_uuid, thread.thread.pid, thread.thread.tid) == (process.uuid, process.process.pid, thread.uuid)
    assert {packet.track_event.track_uuid for packet in packets} == {thread.uuid}
    kinds = [packet.track_event.type for packet in packets if packet.track_event.type != protobuf.TrackEvent.TYPE_INSTANT]
    assert kinds == [protobuf.TrackEvent.TYPE_SLICE_BEGIN, protobuf.TrackEvent.TYPE_SLICE_END] * (len(kinds) // 2)
    assert all(a.timestamp <= b.timestamp for a, b in pairwise(packets))
    begun = [packet for packet in packets if packet.track_event.type == protobuf.TrackEvent.TYPE_SLICE_BEGIN]
    assert [packet.track_event.name for packet in begun[:2]] == ["open", "ioctl(KVM_CREATE_VM)"]
    [busy] = [packet for packet in begun if packet.track_event.name.endswith("= EAGAIN")]
    assert busy.track_event.name == "ioctl(KVM_SET_MEMORY_ATTRIBUTES2) = EAGAIN"
    assert notes(busy)["rule"] == "gmem.attributes.busy"
    assert "size=0x8000" in notes(busy)["arg"]
    instants = [packet for packet in packets if packet.track_event.type == protobuf.TrackEvent.TYPE_INSTANT]
    assert [packet.track_event.name for packet in instants] == ["zap", "zap", "convert"]
    assert notes(instants[-1])["end"] == "8"


def test_a_process_for_each_of_a_fork(tmp_path: Path, compile_c: Compile, gmemu_exec: Exec) -> None:
    log = tmp_path / "log.perfetto-trace"
    assert gmemu_exec(compile_c("conversions"), "child_with_a_vm_of_its_own", options=("--log", str(log))).returncode == 0
    tracks, packets = read(log)
    names: dict[int, set[str]] = defaultdict(set)
    thread_of = {track.uuid: track.thread.pid for track in tracks if track.HasField("thread")}
    for packet in packets:
        if packet.track_event.name.startswith("ioctl"):
            names[thread_of[packet.track_event.track_uuid]].add(packet.track_event.name)
            assert packet.trusted_packet_sequence_id == thread_of[packet.track_event.track_uuid]
    assert len(names) == len([track for track in tracks if track.HasField("process")]) == 2
    assert all("ioctl(KVM_CREATE_VM)" in found for found in names.values())


def test_it_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gmemu.cli.exec, "find_spec", lambda name: None)
    assert main(["exec", "--log", "log.pftrace", "--", "true"]) == 2
    assert "pip install 'gmemu[perfetto]'" in capsys.readouterr().err

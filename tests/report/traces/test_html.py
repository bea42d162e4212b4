# SPDX-License-Identifier: GPL-2.0-or-later
"""The page: whole in one file, and driven in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gmemu.explore.trace import Trace
from gmemu.report.traces import FORMATS

from .browser import chromium


def page(traces: list[Trace]) -> str:
    written = FORMATS["html"].write(traces)
    assert isinstance(written, str)
    return written


def test_nothing_is_fetched(private_and_mapped: tuple[Trace, Trace]) -> None:
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", page(list(private_and_mapped)))


def test_text_cannot_end_the_script(private_and_mapped: tuple[Trace, Trace]) -> None:
    hostile = private_and_mapped[0]._replace(detail="</script><b>bold</b>", scenario="<i>name")
    written = page([hostile])
    assert "</script><b>" not in written
    assert "<i>name" not in written.split('<script type="application/json"')[0]
    [data] = json.loads(re.search(r'id="traces">(.*)</script>\n<script>', written, re.S)[1])  # type: ignore[index]
    assert data["detail"] == "</script><b>bold</b>"
    assert data["simulated"] is True


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


class TestInTheBrowser:
    @pytest.fixture
    def opened(self, browser: Any, tmp_path: Path, private_and_mapped: tuple[Trace, Trace]) -> Any:
        path = tmp_path / "trace.html"
        path.write_text(page(list(private_and_mapped)))
        browser.get(path.as_uri())
        return browser

    @staticmethod
    def press(browser: Any, *keys: str) -> None:
        for key in keys:
            browser.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))", key)

    @staticmethod
    def all(browser: Any, selector: str, pane: int = 0) -> list[str]:
        found: list[str] = browser.execute_script(
            "const pane = document.querySelectorAll('.pane')[arguments[1]];"
            "return [...pane.querySelectorAll(arguments[0])].map((found) => found.textContent)",
            selector,
            pane,
        )
        return found

    def selected(self, browser: Any, pane: int = 0) -> int:
        [row] = self.all(browser, "tr.selected td.nr", pane)
        return int(row)

    def test_two_traces_side_by_side(self, opened: Any, private_and_mapped: tuple[Trace, Trace]) -> None:
        for pane, trace in enumerate(private_and_mapped):
            assert len(self.all(opened, "tbody tr[data-step]", pane)) == len(trace.steps)
            assert self.all(opened, "th.lane", pane) == list(trace.tasks)
        assert "invariant" in self.all(opened, ".verdict.bad", 0)[0]
        assert self.all(opened, ".verdict.good", 1) == ["nothing was violated"]

    def test_keys_step(self, opened: Any, private_and_mapped: tuple[Trace, Trace]) -> None:
        trace = private_and_mapped[0]
        assert self.selected(opened) == 0
        self.press(opened, "ArrowDown", "j", "ArrowDown", "k")
        assert (self.selected(opened), self.selected(opened, 1)) == (2, 2)
        self.press(opened, "End", "ArrowDown")
        assert self.selected(opened) == len(trace.steps) - 1
        self.press(opened, "Home", "]")
        switch = next(n for n in range(1, len(trace.steps)) if trace.steps[n].task != trace.steps[n - 1].task)
        assert self.selected(opened) == switch
        self.press(opened, "s", "ArrowRight", "ArrowDown", "ArrowDown")
        assert (self.selected(opened, 0), self.selected(opened, 1)) == (switch, switch + 2)

    def test_a_click_shows_function_and_state_before_and_after(
        self, opened: Any, private_and_mapped: tuple[Trace, Trace]
    ) -> None:
        trace = private_and_mapped[0]
        step = next(s for s in trace.steps if s.domain == "attribute" and s.kind == "write")
        opened.find_element("css selector", f".pane tr[data-step='{step.number}'] td.lane.runs").click()
        said = " ".join(self.all(opened, "aside *"))
        assert "store_attributes" in said
        assert "shared \u2192 private" in said
        assert "gmem:invalidate_lock" in said

    def test_locks_are_bars_and_pages_a_strip(self, opened: Any, private_and_mapped: tuple[Trace, Trace]) -> None:
        trace = private_and_mapped[0]
        held = sum(len(lock.holders) for step in trace.steps for lock in step.after.locks)
        assert len(self.all(opened, "td.lock i")) == held
        assert len(self.all(opened, "td.page.private")) == sum(
            page.attribute == "private" and page.pfn >= 0 for step in trace.steps for page in step.after.pages
        )

    def test_nothing_was_asked_of_the_network_and_no_error_logged(self, opened: Any) -> None:
        assert opened.get_log("browser") == []
        sent = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith("file:") for url in asked)

    def test_a_deadlock_shows_who_waits(self, browser: Any, tmp_path: Path, deadlock: tuple[Trace, Trace]) -> None:
        path = tmp_path / "deadlock.html"
        path.write_text(page([deadlock[0]]))
        browser.get(path.as_uri())
        assert len(self.all(browser, "td.lane.waits")) == 3

# SPDX-License-Identifier: GPL-2.0-or-later
"""A map from page numbers to values, kept as merged runs.

Attributes, page-cache entries, page tables, reference counts, RMP states: all are the same value over long ranges with a
few exceptions, so their cost is the number of runs, not of pages.  `None` means "nothing here" and is what an untouched
map holds everywhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["RangeMap"]

V = TypeVar("V")

_END = 1 << 64  # one past the largest page number


class RangeMap(Generic[V]):
    """Runs over [0, 2**64).  Run i covers [_keys[i], _keys[i + 1]) with _values[i]; neighbours always differ."""

    __slots__ = ("_keys", "_values")

    def __init__(self) -> None:
        self._keys: list[int] = [0]
        self._values: list[V | None] = [None]

    def __getitem__(self, index: int) -> V | None:
        return self._values[bisect_right(self._keys, index) - 1]

    def __len__(self) -> int:
        """How many runs hold a value."""
        return len(self._values) - self._values.count(None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeMap) and self._keys == other._keys and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "RangeMap(" + ", ".join(f"[{s:#x}, {e:#x}) {v!r}" for s, e, v in self.runs()) + ")"

    def copy(self) -> RangeMap[V]:
        """An independent map with the same runs (values are shared)."""
        other: RangeMap[V] = RangeMap()
        other._keys, other._values = self._keys[:], self._values[:]
        return other

    def run(self, index: int) -> tuple[int, int, V | None]:
        """The whole run that contains `index`: (start, end, value)."""
        keys = self._keys
        i = bisect_right(keys, index)
        return keys[i - 1], keys[i] if i < len(keys) else _END, self._values[i - 1]

    def set(self, start: int, end: int, value: V | None) -> None:
        """Make [start, end) hold `value`, merging with equal neighbours."""
        if start >= end:
            return
        keys, values = self._keys, self._values
        i = bisect_left(keys, start)
        j = bisect_right(keys, end, i)
        tail = values[j - 1]
        if i and values[i - 1] == value:
            if tail == value:
                del keys[i:j], values[i:j]
            else:
                keys[i:j], values[i:j] = (end,), (tail,)
        elif tail == value:
            keys[i:j], values[i:j] = (start,), (value,)
        else:
            keys[i:j], values[i:j] = (start, end), (value, tail)

    def clear(self, start: int = 0, end: int = _END - 1) -> None:
        """Make [start, end) hold nothing."""
        self.set(start, end, None)

    def covers(self, start: int, end: int, value: V | None) -> bool:
        """Whether every page of [start, end) holds `value`."""
        keys = self._keys
        i = bisect_right(keys, start)
        return self._values[i - 1] == value and (i == len(keys) or keys[i] >= end)

    def empty(self, start: int, end: int) -> bool:
        """Whether nothing is held in [start, end)."""
        keys = self._keys
        i = bisect_right(keys, start)
        return self._values[i - 1] is None and (i == len(keys) or keys[i] >= end)

    def spans(self, start: int, end: int) -> Iterator[tuple[int, int, V | None]]:
        """Every run that meets [start, end), clipped to it, gaps included.  Sees the map as it is when called."""
        if start >= end:
            return iter(())
        keys, values = self._keys, self._values
        i = bisect_right(keys, start) - 1
        j = bisect_left(keys, end, i + 1)
        if j == i + 1:
            return iter(((start, end, values[i]),))
        bounds = [start, *keys[i + 1 : j], end]
        return zip(bounds, bounds[1:], values[i:j], strict=False)

    def runs(self, start: int = 0, end: int = _END - 1) -> Iterator[tuple[int, int, V]]:
        """Every run that meets [start, end) and holds a value, clipped to it."""
        if start >= end:
            return iter(())
        keys = self._keys
        i = bisect_right(keys, start)
        if i == len(keys) or keys[i] >= end:  # one run has all of it: the usual case, and the one to be quick in
            value = self._values[i - 1]
            return iter(()) if value is None else iter(((start, end, value),))
        return ((s, e, v) for s, e, v in self.spans(start, end) if v is not None)

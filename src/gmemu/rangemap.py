# SPDX-License-Identifier: GPL-2.0-or-later
"""A map from page numbers to values, kept as merged runs.

Attributes, page-cache entries, page tables, reference counts, RMP states: all are the same value over long ranges with a
few exceptions, so their cost is the number of runs, not of pages.  `None` means "nothing here" and is what an untouched
map holds everywhere.

Runs stand in two sorted lists, which is quick up to a few thousand; an insertion then moves what comes after it, and half a
million scattered pages would cost the square of that.  So a map that grows becomes *wide*: a sorted list of small maps, each
for a part of the numbers.  It's the same object, which changed its class; small ones pay nothing for it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["RangeMap"]

V = TypeVar("V")

_END = 1 << 64  # one past the largest page number
_LIMIT = 4096
"""Runs that a map may have before it becomes wide."""
_PART = 2048
"""Runs that one part of a wide map may have before it's split in two: so few that no change makes it wide itself."""


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
        return isinstance(other, RangeMap) and list(self.spans(0, _END)) == list(other.spans(0, _END))

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
            if len(keys) > _LIMIT:
                _widen(self)

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


class _Wide(RangeMap[V]):
    """A map of many runs.  `_values` holds its parts, small maps, and `_keys` where each begins; the first begins at 0.

    A part knows nothing but what lies between its beginning and the next one's, so a run may stand in several.
    """

    __slots__ = ()
    _values: list[RangeMap[V]]  # type: ignore[assignment]

    def _part(self, index: int) -> int:
        return bisect_right(self._keys, index) - 1

    def _end(self, part: int) -> int:
        """One past the last number of a part."""
        return self._keys[part + 1] if part + 1 < len(self._keys) else _END

    def __getitem__(self, index: int) -> V | None:
        return self._values[self._part(index)][index]

    def __len__(self) -> int:
        return sum(1 for _, _, value in self.spans(0, _END) if value is not None)

    def copy(self) -> RangeMap[V]:
        other: RangeMap[V] = RangeMap()
        other.__class__ = _Wide
        other._keys, other._values = self._keys[:], [part.copy() for part in self._values]  # type: ignore[misc]
        return other

    def run(self, index: int) -> tuple[int, int, V | None]:
        i = j = self._part(index)
        start, end, value = self._values[i].run(index)
        while start <= self._keys[i] and i:
            before, _, other = self._values[i - 1].run(self._keys[i] - 1)
            if other != value:
                break
            i, start = i - 1, before
        while end >= self._end(j) < _END:
            _, after, other = self._values[j + 1].run(self._end(j))
            if other != value:
                break
            j, end = j + 1, after
        return max(start, self._keys[i]), min(end, self._end(j)), value

    def set(self, start: int, end: int, value: V | None) -> None:
        if start >= end:
            return
        keys, parts = self._keys, self._values
        i = bisect_right(keys, start) - 1
        j = bisect_right(keys, end - 1, i) - 1
        if i < j:  # parts in between have but one run now, which becomes the first one's
            parts[i].set(start, keys[j], value)
            parts[j].set(keys[j], end, value)
            del keys[i + 1 : j], parts[i + 1 : j]
            self._keep_small(i + 1)
        else:
            parts[i].set(start, end, value)
        self._keep_small(i)
        if len(parts) == 1:
            self.__class__ = RangeMap  # type: ignore[assignment]
            self._keys, self._values = parts[0]._keys, parts[0]._values  # type: ignore[assignment]

    def _keep_small(self, i: int) -> None:
        """Split a part that has grown too large."""
        if len(self._values[i]._keys) > _PART:
            self._split(i)

    def _split(self, i: int) -> None:
        """Make two parts of one, in its middle."""
        left, right = self._values[i], RangeMap[V]()
        middle = max(len(left._keys) // 2, 2)  # after the part's own beginning, which may be the second
        at = left._keys[middle]
        taken = middle if left._values[middle] is not None else middle + 1
        right._keys += left._keys[taken:]
        right._values += left._values[taken:]
        del left._keys[middle:], left._values[middle:]
        if left._values[-1] is not None:
            left._keys.append(at)
            left._values.append(None)
        self._keys.insert(i + 1, at)
        self._values.insert(i + 1, right)

    def covers(self, start: int, end: int, value: V | None) -> bool:
        _, until, found = self.run(start)
        return found == value and until >= end

    def empty(self, start: int, end: int) -> bool:
        return self.covers(start, end, None)

    def spans(self, start: int, end: int) -> Iterator[tuple[int, int, V | None]]:
        if start >= end:
            return iter(())
        i = self._part(start)
        if end <= self._end(i):
            return self._values[i].spans(start, end)
        found: list[tuple[int, int, V | None]] = []
        for part in range(i, bisect_right(self._keys, end - 1)):
            runs = list(self._values[part].spans(max(start, self._keys[part]), min(end, self._end(part))))
            if found and found[-1][2] == runs[0][2]:
                runs[0] = found.pop()[0], *runs[0][1:]
            found += runs
        return iter(found)

    def runs(self, start: int = 0, end: int = _END - 1) -> Iterator[tuple[int, int, V]]:
        return ((s, e, v) for s, e, v in self.spans(start, end) if v is not None)


def _widen(flat: RangeMap[V]) -> None:
    """Make a wide map of one that has grown."""
    only: RangeMap[V] = RangeMap()
    only._keys, only._values = flat._keys, flat._values
    flat.__class__ = _Wide
    flat._keys, flat._values = [0], [only]  # type: ignore[list-item]
    flat._split(0)  # type: ignore[attr-defined]

# SPDX-License-Identifier: GPL-2.0-or-later
"""A world for each run: put back as it was after its set-up, where that can be done, else set up again.

What a world is made of is found by following references from it.  What two worlds share was there before either was set up
(classes, constants, what the caller collects results in) and is left alone.  Everything else that can change is remembered
once and overwritten before each run, in place, so that every object stays the one it was.  A world that has something in it
whose inside can't be seen (a generator, an open file) is set up anew each time.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import mmap
import random
import sys
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from ..rules.base import Rule
from ..sync.explored import Step

__all__ = ["Worlds"]


class _Closable(Protocol):
    def close(self) -> None: ...


W = TypeVar("W", bound=_Closable)

_FIXED = (
    int, float, complex, str, bytes, bool, type(None), type(Ellipsis), type, range, slice, property, Enum,
    types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.MappingProxyType, weakref.ReferenceType, Step, Rule,
)  # fmt: skip
"""What can't change, and leads nowhere that could."""

_THROUGH = (tuple, frozenset, partial, types.MethodType, staticmethod, classmethod)
"""What can't change, but leads on."""

_HASHES = tuple({type(hashlib.new(name)) for name in ("sha256", "sha384", "sha3_256")})
"""Running hashes: they can be copied, but not overwritten, so whoever has one as an attribute gets another."""

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
"""Locks of this interpreter: tasks don't leave one taken, as greenlets can't wait for it."""

_SMALL = 1e-4
"""seconds in which a world is set up that has little in it: putting one back gains little; an emulated host takes longer"""

_PLAIN_BASES = (object, list, dict, set, Generic, Protocol)


class _Unknown(Exception):
    """Something whose inside can't be remembered."""


class _Graph:
    """Everything that can be reached from an object."""

    def __init__(self, root: object) -> None:
        self.objects: dict[int, object] = {}
        todo = [root]
        while todo:
            thing = todo.pop()
            if isinstance(thing, _FIXED) or id(thing) in self.objects:
                continue
            self.objects[id(thing)] = thing
            if isinstance(thing, types.FunctionType):
                todo += [*(thing.__closure__ or ()), *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
            elif not isinstance(thing, mmap.mmap | ctypes.Structure | ctypes.Array | random.Random):
                todo += gc.get_referents(thing)


class _Snapshot:
    """What is to be put back: pairs of an object and what was in it, by how it's done."""

    def __init__(self, things: list[object]) -> None:
        self._lists: list[tuple[Any, Any]] = []
        self._dicts: list[tuple[Any, Any]] = []
        self._slots: list[tuple[Callable[[Any, Any], object], Any, Any]] = []
        self._others: list[tuple[Callable[[Any], object], Any]] = []
        self._hashes: set[int] = set()
        """those that an object was found to have"""
        for thing in things:
            self._remember(thing)
        for thing in things:
            if isinstance(thing, _HASHES) and id(thing) not in self._hashes:
                raise _Unknown(type(thing).__name__)

    def restore(self) -> None:
        """Put everything back."""
        for thing, was in self._lists:
            thing[:] = was
        for thing, was in self._dicts:
            thing.clear()
            thing.update(was)
        for set_slot, thing, was in self._slots:
            set_slot(thing, was)
        for put, was in self._others:
            put(was)

    def _remember(self, thing: Any) -> None:
        cls = type(thing)
        if cls is list or cls is bytearray:
            self._lists.append((thing, thing[:]))
        elif cls is dict or cls is set:
            self._dicts.append((thing, thing.copy()))
        elif cls is deque:
            self._others.append((_refill(thing), list(thing)))
        elif cls is types.CellType:
            self._remember_cell(thing)
        elif isinstance(thing, ctypes.Structure | ctypes.Array):
            self._others.append((_overwrite(thing), bytes(thing)))
        elif isinstance(thing, random.Random):
            self._others.append((thing.setstate, thing.getstate()))
        elif isinstance(thing, (*_THROUGH, *_HASHES, *_LOCKS, types.FunctionType, mmap.mmap)):
            return  # an mmap's bytes are its owner's affair
        elif _plain(cls):
            self._remember_instance(thing)
        else:
            raise _Unknown(cls.__name__)

    def _remember_cell(self, cell: types.CellType) -> None:
        try:
            self._others.append((lambda was: setattr(cell, "cell_contents", was), cell.cell_contents))
        except ValueError:
            self._others.append((lambda was: _empty(cell), None))

    def _remember_instance(self, thing: Any) -> None:
        saved = getattr(thing, "save_contents", None)
        if saved is not None:
            self._others.append((thing.restore_contents, saved()))
        if isinstance(thing, list):
            self._lists.append((thing, thing[:]))
        elif isinstance(thing, dict | set):
            self._dicts.append((thing, thing.copy()))
        attributes = getattr(thing, "__dict__", None)
        if attributes is not None:
            self._dicts.append((attributes, attributes.copy()))
            for name, value in attributes.items():
                if isinstance(value, _HASHES):
                    self._hashes.add(id(value))
                    self._others.append((_another(thing, name), value.copy()))
        for slot in _slots(type(thing)):
            try:
                was = slot.__get__(thing)
            except AttributeError:
                self._others.append((_deleter(slot, thing), None))
            else:
                self._slots.append((slot.__set__, thing, was))


def _plain(cls: type) -> bool:
    """Whether instances have no inside but attributes, and items where they are lists, dicts or sets: no C but Python's."""
    return all(base in _PLAIN_BASES or _in_python(base) for base in cls.__mro__)


def _in_python(cls: type) -> bool:
    if "__slots__" not in vars(cls) and any(isinstance(v, types.MemberDescriptorType) for v in vars(cls).values()):
        return False  # members that C declares, in a module that has Python beside
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return cls.__module__ == "__main__" if file is None else file.endswith(".py")


def _another(thing: object, name: str) -> Callable[[Any], object]:
    return lambda was: setattr(thing, name, was.copy())


def _slots(cls: type) -> list[types.MemberDescriptorType]:
    found = [value for base in cls.__mro__ for value in vars(base).values()]
    return [value for value in found if isinstance(value, types.MemberDescriptorType)]


def _deleter(slot: types.MemberDescriptorType, thing: object) -> Callable[[Any], object]:
    def put(was: object) -> None:
        try:
            slot.__delete__(thing)
        except AttributeError:
            return

    return put


def _refill(thing: deque[Any]) -> Callable[[Any], object]:
    def put(was: list[Any]) -> None:
        thing.clear()
        thing.extend(was)

    return put


def _overwrite(thing: Any) -> Callable[[Any], object]:
    return lambda was: ctypes.memmove(ctypes.addressof(thing), was, len(was))


def _empty(cell: types.CellType) -> None:
    try:
        del cell.cell_contents
    except ValueError:
        return


def _names(world: object) -> list[str]:
    return list(getattr(getattr(world, "runtime", None), "names", ()))


class Worlds(Generic[W]):
    """Worlds for the runs of one search.  `fresh` gives one that is just set up; `done` takes it back."""

    def __init__(self, build: Callable[[], W], restore: bool = True, at_once: bool = False) -> None:
        self._build, self._wanted = build, restore
        self._world: W | None = None
        self._snapshot: _Snapshot | None = None
        self._cheap = 8 if restore else 0
        """runs before it's worth remembering a world, which costs five to twenty set-ups"""
        self.names: list[str] = []
        self.set_up: frozenset[int] = frozenset()
        """ids of what was there when the world was set up, while it's put back and not built anew"""
        self.why = ""
        """why worlds are set up anew: the type that can't be seen into"""

    def fresh(self) -> W:
        """A world as the set-up leaves it."""
        if self._cheap:
            self._cheap -= 1
            start = time.perf_counter()
            self._world = self._build()
            if not self.names and time.perf_counter() - start < _SMALL:
                self._cheap = 60
            self.names = _names(self._world)
        elif self._snapshot is None and self._wanted and not self.why:
            self._first()
        elif self._snapshot is None:
            self._world = self._build()
            self.names = _names(self._world)
        else:
            self._snapshot.restore()
        assert self._world is not None
        return self._world

    def _first(self) -> None:
        self._world = world = self._build()
        self.names = _names(world)
        other = self._build()
        shared, mine = _Graph(other).objects, _Graph(world).objects
        try:
            self._snapshot = _Snapshot([thing for key, thing in mine.items() if key not in shared])
            self._alive = [*mine.values(), *shared.values()]
            self.set_up = frozenset(map(id, self._alive))
        except _Unknown as unknown:
            self.why = str(unknown)
        finally:
            other.close()

    def done(self, world: W, ended: bool) -> None:
        """The run is over."""
        if self._snapshot is None:
            world.close()

    def close(self) -> None:
        """No more runs."""
        if self._snapshot is not None and self._world is not None:
            self._snapshot.restore()
            self._world.close()
        self._world = self._snapshot = None

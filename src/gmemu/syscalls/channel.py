# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's protocol (`conformance/vm/agent.c` describes it), and what carries it: a socket, or another agent."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple, Protocol

__all__ = ["BUFFER", "AgentLost", "Answer", "Channel", "ChildChannel", "Op", "SocketChannel"]

BUFFER = 1 << 20
"""The most bytes that one buffer of a call, one load or one store can have."""

_LENGTH = struct.Struct("<I")
_ANSWER = struct.Struct("<qIIQ")
_TO_CHILD = struct.Struct("<BI")


class Op:
    """What an agent can be asked for: the first byte of a request."""

    CALL, LOAD, STORE, SPAWN, TELL, HEAR, ASK, REAP, LEAVE = range(1, 10)


class AgentLost(RuntimeError):
    """The agent doesn't answer any more: it ended, its machine crashed, or a call hangs."""


class Answer(NamedTuple):
    """`result` is what the call returned, or minus an errno; `signal`, if not 0, came meanwhile with si_code and si_addr."""

    result: int
    signal: int
    code: int
    address: int
    data: memoryview

    @classmethod
    def unpack(cls, frame: memoryview) -> Answer:
        """From the bytes after the length."""
        result, signal, code, address = _ANSWER.unpack_from(frame)
        return cls(result, signal, code, address, frame[_ANSWER.size :])


class Channel(Protocol):
    """A way to one agent."""

    def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer.  Raises `AgentLost`."""

    def close(self) -> None:
        """No more requests will come."""


class SocketChannel:
    """An agent at the other end of a connected socket.  `timeout` (seconds) bounds the wait for an answer; `obituary` tells
    what is known when none comes."""

    def __init__(self, connected: socket.socket, timeout: float = 60.0, obituary: Callable[[], str] = str) -> None:
        self._socket, self._obituary = connected, obituary
        self._lock, self._lost = Lock(), ""
        self._socket.settimeout(timeout)

    def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer.  Raises `AgentLost`."""
        with self._lock:
            if self._lost:
                raise AgentLost(self._lost)
            try:
                self._socket.sendall(_LENGTH.pack(len(request)) + request)
                return Answer.unpack(self._receive(_LENGTH.unpack(self._receive(4))[0]))
            except TimeoutError:
                self._lost = f"the agent hasn't answered for {self._socket.gettimeout():g} s"
            except OSError as error:
                self._lost = f"the agent is gone: {error}"
            story = self._obituary()
            self._lost += f"\n{story}" if story else ""
            raise AgentLost(self._lost)

    def _receive(self, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        done = 0
        while done < length:
            count = self._socket.recv_into(buffer[done:])
            if not count:
                raise ConnectionResetError("its end of the channel is closed")
            done += count
        return buffer

    def close(self) -> None:
        """Close the socket: an agent that finds its channel closed ends."""
        self._lost = self._lost or "the channel was closed"
        self._socket.close()


class ChildChannel:
    """Child `number` (a fork or a thread) of the agent behind `parent`, which passes requests and answers on."""

    def __init__(self, parent: Channel, number: int) -> None:
        self._parent, self._number, self._ended = parent, number, False

    def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer.  Raises `AgentLost`."""
        return self._unwrap(self._pass(Op.ASK, request))

    def tell(self, request: bytes) -> None:
        """Send a request.  Its answer must be heard before the next."""
        self._pass(Op.TELL, request)

    def hear(self) -> Answer:
        """Wait for the answer to what was told."""
        return self._unwrap(self._pass(Op.HEAR))

    def end(self, *, kill: bool = False) -> int:
        """Wait for the child to end: wait()'s status.  It must have been asked to leave, unless `kill`."""
        self._ended = True
        return self._parent.ask(_TO_CHILD.pack(Op.REAP, self._number) + bytes((kill,))).result

    def close(self) -> None:
        """Have the child end, if it hasn't been done."""
        if not self._ended:
            self.ask(bytes((Op.LEAVE,)))
            self.end()

    def _pass(self, op: int, request: bytes = b"") -> Answer:
        if self._ended:
            raise AgentLost("the child was ended before")
        answer = self._parent.ask(_TO_CHILD.pack(op, self._number) + request)
        if answer.result < 0:
            raise AgentLost(f"the child can't be reached (errno {-answer.result}): it has ended")
        return answer

    @staticmethod
    def _unwrap(answer: Answer) -> Answer:
        return Answer.unpack(answer.data[_LENGTH.size :])

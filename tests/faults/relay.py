"""A wire of our own between client and server, which can be cut, blocked and slowed down."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Self

CHUNK = 2**14


class Cut(Enum):
    """How a connection ends."""

    RESET = "reset"
    """As when a firewall forgets it: RST to both ends."""
    CLOSE = "close"
    """As when the other program ends: no more bytes, in either direction."""
    STALL = "stall"
    """As when a cable is drawn: nothing moves any more, and nobody is told."""
    FLIP = "flip"
    """No cut: one bit changes on the way, and all goes on."""


@dataclass(frozen=True)
class Fault:
    """One connection is cut once it carried so many bytes there, or so many back."""

    cut: Cut
    there: float = inf
    back: float = inf


@dataclass
class Relay:
    """Listens on loopback and passes all on to ``port``. The first connections have the ``faults``, in order."""

    port: int
    faults: list[Fault] = field(default_factory=list)
    rate: float = inf
    """Bytes a second, there; may be changed at any time."""
    buffer: int = 0
    """Bytes that wait to be passed on, about, where it is not for the kernel to choose."""
    host: str = "127.0.0.1"
    connections: int = 0
    cuts: int = 0
    carried: int = 0
    """Bytes that went there."""
    now: Cut | None = None
    """What becomes of every connection, old or new, until this is None again."""
    flips: int = 0
    """So many of the next pieces arrive with a bit flipped."""

    def __post_init__(self) -> None:
        self._listener = socket.create_server((self.host, 0))
        if self.buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def own_port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with suppress(OSError):
                near, _ = self._listener.accept()
                fault = self.faults.pop(0) if self.faults else None
                self.connections += 1
                threading.Thread(target=self._carry, args=(near, fault), daemon=True).start()

    def _carry(self, near: socket.socket, fault: Fault | None) -> None:
        """One thread for both directions, so that closing a socket takes effect at once."""
        with near, suppress(OSError), socket.create_connection((self.host, self.port)) as far:
            cut = self._pass_on(near, far, fault)
            self.cuts += cut is not None
            if cut is Cut.STALL:
                self._closed.wait()
            if cut is Cut.RESET:
                for end in (near, far):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _pass_on(self, near: socket.socket, far: socket.socket, fault: Fault | None) -> Cut | None:
        """Until one end closes, or the fault comes."""
        left = {near: fault.there if fault else inf, far: fault.back if fault else inf}
        while not self._closed.is_set():
            for source in select.select([near, far], [], [], 0.2)[0]:
                data = source.recv(int(min(CHUNK, left[source], max(1, self.rate / 4))))
                if not data or self.now is not None:
                    return self.now
                left[source] -= len(data)
                if fault and fault.cut is Cut.FLIP and not left[source]:
                    left[source] = inf
                    self.flips += 1
                    self.cuts += 1
                (far if source is near else near).sendall(self._flipped(data))
                if source is near:
                    self._count(len(data))
                if not left[source]:
                    return fault.cut if fault else None
            if self.now is not None:
                return self.now
        return None

    def _flipped(self, data: bytes) -> bytes:
        if not self.flips:
            return data
        self.flips -= 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]

    def _count(self, size: int) -> None:
        self.carried += size
        if self.rate != inf:
            time.sleep(size / self.rate)

"""An SFTP server that takes files only as some gateways to object stores do: as the subsystem of an sshd.

``write-only`` opens no file to be read and written at once; ``in-order`` takes no byte but the next one.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from collections import defaultdict
from typing import IO

OPEN, CLOSE, WRITE, STATUS = 3, 4, 6, 101
READ_AND_WRITE = 3
UNSUPPORTED = 8


class Picky:
    """Stands before the real server, and refuses what it does not like."""

    def __init__(self, mode: str, server: str) -> None:
        self._mode = mode
        self._server = subprocess.Popen([server], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._mutex = threading.Lock()
        self._next: defaultdict[bytes, int] = defaultdict(int)
        """The next offset of each handle."""

    def run(self) -> None:
        assert self._server.stdin is not None
        answers = threading.Thread(target=self._relay_answers)
        answers.start()
        while packet := _packet(sys.stdin.buffer):
            if self._likes(packet[4:]):
                self._server.stdin.write(packet)
                self._server.stdin.flush()
            else:
                self._refuse(packet[5:9])
        self._server.stdin.close()
        answers.join()

    def _relay_answers(self) -> None:
        assert self._server.stdout is not None
        while packet := _packet(self._server.stdout):
            self._say(packet)

    def _say(self, packet: bytes) -> None:
        with self._mutex:
            sys.stdout.buffer.write(packet)
            sys.stdout.buffer.flush()

    def _refuse(self, number: bytes) -> None:
        body = bytes([STATUS]) + number + struct.pack(">I", UNSUPPORTED) + bytes(8)
        self._say(struct.pack(">I", len(body)) + body)

    def _likes(self, request: bytes) -> bool:
        kind, rest = request[0], request[5:]
        if kind not in (OPEN, CLOSE, WRITE):
            return True
        (length,) = struct.unpack(">I", rest[:4])
        name, rest = rest[4 : 4 + length], rest[4 + length :]
        if kind == CLOSE:
            self._next.pop(name, None)
            return True
        if kind == OPEN:
            (flags,) = struct.unpack(">I", rest[:4])
            return self._mode != "write-only" or flags & READ_AND_WRITE != READ_AND_WRITE
        offset, size = struct.unpack(">QI", rest[:12])
        if self._mode == "in-order" and offset != self._next[name]:
            return False
        self._next[name] = offset + size
        return True


def _packet(stream: IO[bytes]) -> bytes:
    head = stream.read(4)
    return head + stream.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""


if __name__ == "__main__":
    Picky(*sys.argv[1:]).run()

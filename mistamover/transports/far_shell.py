"""A program in the account's shell at the far side that gives the digests of staged files.

The staged names are our own hexadecimal ones, and the directory comes over standard input: nothing that anyone
else chose is ever seen by a shell as anything but data.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import takewhile

from mistamover import digest
from mistamover.errors import TargetDown, TargetRefused
from mistamover.transports import ssh

SLOWEST_DISK = 10 * 2**20
"""Bytes a second that a far side may need to write or read without being taken for dead."""

LONGEST_ANSWER = 2**20
"""Bytes of an answer, and of what a shell's start-up prints: a batch has 256 lines of less than 200."""
HELLO = b"mistamover "

# In one line, so that every log-in shell can hand it on to sh. An answer ends in a line with a dot.
_SCRIPT = """
set -f; IFS= read -r d; cd "$d" || exit 1;
for c in {commands} false; do h=$(printf mistamover | $c 2>/dev/null) && break; done;
case "$(sync --help 2>&1)" in *-f*) s=sync;; *) s=-;; esac;
echo "mistamover ${{h%% *}} $s";
while IFS=' ' read -r v n; do
 case $v in sync) sync -f . && $c $n;; digest) $c $n;; esac </dev/null 2>/dev/null; echo .; done
"""


class FarShell:
    """The program, for one thread. Questions are answered in their order; an answer is taken by its number."""

    def __init__(self, connection: ssh.Connection, algorithm: str, directory: str) -> None:
        self._algorithm = algorithm
        self._received = b""
        self._asked = self._answered = 0
        self._answers: dict[int, dict[str, str]] = {}
        self._hello: list[bytes] | None = None
        self._channel: ssh.Channel | None = None
        self._stall = 0.0
        # A server that refuses commands is an ordinary one: files are then sent and read back over SFTP.
        with suppress(TargetDown, TargetRefused):
            self._channel = connection.command(f"exec sh -c {shlex.quote(_script(algorithm))}")
            self._stall = self._channel.patience
            self._channel.write(os.fsencode(directory) + b"\n")

    # -- what it can do ----------------------------------------------------------------------------------

    @property
    def works(self) -> bool:
        """Whether it gives digests: it said hello with the right one of a known text."""
        expected = digest.of_bytes(self._algorithm, b"mistamover").encode()
        return self._said()[1:2] == [expected]

    @property
    def syncs(self) -> bool:
        """Whether it puts all that was staged on disk, by one sync of the file system."""
        return self.works and self._said()[2:3] == [b"sync"]

    def _said(self) -> list[bytes]:
        """The words of its first line; none where there is no such program."""
        if self._hello is None:
            self._hello = []
            with suppress(TargetDown, TargetRefused):
                # What comes before is printed by a shell start-up.
                self._hello = next((line.split(b" ") for line in self._lines() if line.startswith(HELLO)), [])
        return self._hello

    # -- questions and answers ---------------------------------------------------------------------------

    def digest(self, names: Iterable[str], size: int, *, sync: bool) -> int:
        """Have it read staged files of ``size`` bytes in all, once they are on disk if ``sync``."""
        channel = self._open_channel()
        channel.patience = max(channel.patience, 2 * self._stall + size / SLOWEST_DISK)
        channel.write(f"{'sync' if sync else 'digest'} {' '.join(names)}\n".encode())
        self._asked += 1
        return self._asked

    def digests(self, number: int) -> dict[str, str]:
        """The answer to a question, digests by names; waits for it."""
        while number not in self._answers:
            self._answered += 1
            self._answers[self._answered] = dict(map(_name_and_digest, self._answer()))
        return self._answers.pop(number)

    def _answer(self) -> Iterator[bytes]:
        """The lines of the next answer."""
        return takewhile(lambda line: line != b".", self._lines())

    def _lines(self) -> Iterator[bytes]:
        """What comes, line by line: no more than is an answer."""
        left = LONGEST_ANSWER
        while left > 0:
            line = self._line()
            left -= len(line) + 1
            yield line
        raise TargetDown("the far side's shell says something without an end")

    def _line(self) -> bytes:
        channel = self._open_channel()
        while b"\n" not in self._received:
            data = channel.read()
            if not data:
                raise channel.ended()
            self._received += data
            if len(self._received) > LONGEST_ANSWER:
                raise TargetDown("the far side's shell says something without an end")
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _open_channel(self) -> ssh.Channel:
        if self._channel is None:
            raise TargetDown("the target runs no commands")
        return self._channel


def _name_and_digest(line: bytes) -> tuple[str, str]:
    """What a line as of sha256sum or ``openssl dgst -r`` says."""
    value, _, name = line.decode("ascii", "replace").partition(" ")
    return name.lstrip(" *"), value.lstrip("\\")


def _script(algorithm: str) -> str:
    commands = " ".join(shlex.quote(command) for command in digest.COMMANDS[algorithm])
    return _SCRIPT.format(commands=commands).replace("\n", "")

"""The SFTP client against a far side that says anything at all."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mistamover.disk import Space
from mistamover.errors import MistamoverError, TargetDown, TargetRefused
from mistamover.transports import sftp_client as wire
from mistamover.transports.sftp_client import IN_FLIGHT, SAFE_LENGTH, Packet, SftpClient, Status, string
from mistamover.transports.ssh import Channel

calm = settings(max_examples=100, deadline=None)
"""A machine may be busy."""

Answer = Callable[[int, int, bytes], Iterable[bytes]]
"""Takes the type, number and body of a request; gives the packets to answer it with."""
OURS = (TargetDown, TargetRefused)


class Scripted(Channel):
    """A far side that says what it is told to say."""

    def __init__(self, *said: bytes) -> None:
        self.said = list(said)
        self.heard = b""
        self.patience = 1.0

    def write(self, *buffers: bytes | memoryview) -> None:
        self.heard += b"".join(map(bytes, buffers))

    def read(self) -> bytes:
        return self.said.pop(0) if self.said else b""

    def ended(self) -> MistamoverError:
        return TargetDown("it ended")

    def close(self) -> None:
        self.said.clear()


class Answering(Scripted):
    """A far side that answers each request."""

    def __init__(self, answer: Answer, extensions: bytes = b"") -> None:
        super().__init__(version(extensions=extensions))
        self._answer = answer
        self._begun = False

    def write(self, *buffers: bytes | memoryview) -> None:
        super().write(*buffers)
        while len(self.heard) >= 4 and len(self.heard) >= 4 + (length := int.from_bytes(self.heard[:4], "big")):
            packet, self.heard = self.heard[4 : 4 + length], self.heard[4 + length :]
            if packet[0] != Packet.INIT:
                self.said += self._answer(packet[0], int.from_bytes(packet[1:5], "big"), packet[5:])


def framed(kind: int, number: int, body: bytes = b"") -> bytes:
    return struct.pack(">IBI", 5 + len(body), kind, number) + body


def version(number: int = 3, extensions: bytes = b"") -> bytes:
    return struct.pack(">IBI", 5 + len(extensions), Packet.VERSION, number) + extensions


def extension(name: str, data: str = "1") -> bytes:
    return string(name.encode()) + string(data.encode())


def status(number: int, code: int = Status.OK, message: bytes = b"") -> bytes:
    return framed(Packet.STATUS, number, struct.pack(">I", code) + string(message) + string(b""))


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The pieces between these places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    starts = [0, *ends[:-1]]
    return [data[start:end] for start, end in zip(starts, ends, strict=True) if start < end]


places = st.lists(st.integers(0, 10_000), max_size=12)


# -- anything at all -----------------------------------------------------------------------------------


@calm
@given(st.binary(max_size=200), places)
@example(b"\0\0\0\0", [])
@example(b"\0\0\0\1\2", [])
@example(b"\0\0\0\0" + version(), [])
@example(b"Welcome to this host\n" + version(), [3, 4, 5])
@example(version(2), [])
def test_whatever_greets_us_is_understood_or_refused(data: bytes, where: list[int]) -> None:
    with suppress(*OURS):
        SftpClient(Scripted(*cut(data, where)))


@calm
@given(st.binary(max_size=300), places)
def test_whatever_follows_the_greeting_is_understood_or_refused(data: bytes, where: list[int]) -> None:
    extensions = extension("limits@openssh.com") + extension("statvfs@openssh.com")
    with suppress(*OURS):
        client = SftpClient(Scripted(*cut(version(extensions=extensions) + data, where)))
        client.space(b"/")
        client.call(Packet.LSTAT, string(b"/"))


@calm
@given(st.integers(0, 255), st.binary(max_size=120))
@example(Packet.EXTENDED_REPLY, b"")
@example(Packet.EXTENDED_REPLY, bytes(31))
@example(Packet.STATUS, b"")
@example(Packet.STATUS, b"\0\0\0\4")
@example(Packet.STATUS, b"\0\0\0\4\xff\xff\xff\xff\xfe")
def test_whatever_answers_a_question_is_understood_or_refused(kind: int, body: bytes) -> None:
    extensions = extension("limits@openssh.com") + extension("statvfs@openssh.com")
    with suppress(*OURS):
        client = SftpClient(Answering(lambda _kind, number, _body: [framed(kind, number, body)], extensions))
        assert 0 < client.write_length <= 2**18
        assert 0 < client.read_length <= 2**18
        room = client.space(b"/")
        assert room is None or room.free >= 0
        reply = client.call(Packet.LSTAT, string(b"/"))
        assert (reply.kind, reply.body) == (kind, body)
        assert wire.is_ok(*reply) == (kind == Packet.STATUS and body[:4] == bytes(4))
        refused = reply.refusal
        assert (refused is None) == (kind != Packet.STATUS or wire.is_ok(*reply))
        assert refused is None or refused.message


@calm
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x80\0\0\0\xff\xff\xff\xff")
@example(b"\x80\0\0\0" + b"\xff\xff\xff\xff" + bytes(100))
def test_whatever_attributes_are_is_understood_or_refused(body: bytes) -> None:
    with suppress(*OURS):
        found, end = wire.attributes(body)
        assert 4 <= end <= len(body)
        assert found.size is None or found.size >= 0


@calm
@given(st.binary(max_size=200))
@example(b"\xff\xff\xff\xff")
@example(b"\0\0\0\1\0\0\0\5abc")
@example(struct.pack(">I", 2**32 - 1) + bytes(180))
def test_whatever_names_are_is_understood_or_refused(body: bytes) -> None:
    with suppress(*OURS):
        found = wire.names(body)
        assert len(found) == int.from_bytes(body[:4], "big")
        assert sum(map(len, found)) <= len(body)


# -- what is meant -------------------------------------------------------------------------------------


def _attributes(size: int | None, mode: int | None, owner: bool, times: bool, extended: list[bytes]) -> bytes:
    flags, body = 0, b""
    for flag, value in (
        (0x1, None if size is None else struct.pack(">Q", size)),
        (0x2, struct.pack(">II", 0, 0) if owner else None),
        (0x4, None if mode is None else struct.pack(">I", mode)),
        (0x8, struct.pack(">II", 7, 7) if times else None),
        (0x80000000, struct.pack(">I", len(extended)) + b"".join(string(b"x") + string(e) for e in extended)),
    ):
        if value is not None and (flag != 0x80000000 or extended):
            flags, body = flags | flag, body + value
    return struct.pack(">I", flags) + body


attributes = st.builds(
    _attributes,
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 2**32 - 1),
    st.booleans(),
    st.booleans(),
    st.lists(st.binary(max_size=5), max_size=3),
)


@calm
@given(
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 2**32 - 1),
    st.booleans(),
    st.booleans(),
    st.lists(st.binary(max_size=5), max_size=3),
    st.binary(max_size=5),
)
def test_attributes_are_understood(
    size: int | None, mode: int | None, owner: bool, times: bool, extended: list[bytes], more: bytes
) -> None:
    body = _attributes(size, mode, owner, times, extended)
    assert wire.attributes(b"xx" + body + more, 2) == (wire.Attributes(size, mode), 2 + len(body))


@calm
@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20), attributes), max_size=6))
def test_names_are_understood(entries: list[tuple[bytes, bytes, bytes]]) -> None:
    body = struct.pack(">I", len(entries))
    body += b"".join(string(name) + string(long) + found for name, long, found in entries)
    assert wire.names(body) == [name for name, _, _ in entries]
    if entries:
        with pytest.raises(OURS):
            wire.names(body[:-1])


@calm
@given(st.binary(min_size=4, max_size=4), st.text(max_size=20))
def test_refusals_say_why(code: bytes, message: str) -> None:
    assume(code != bytes(4))
    refused = wire.refusal(Packet.STATUS, code + string(message.encode("utf-8", "replace")) + string(b"en"))
    assert refused is not None
    assert refused.code == int.from_bytes(code, "big")
    assert refused.message == (message.strip() or f"status {refused.code}")


@calm
@given(places)
def test_packets_may_come_in_any_pieces(where: list[int]) -> None:
    extensions = b"".join(extension(name) for name in ("posix-rename@openssh.com", "fsync@openssh.com"))
    replies = [
        (Packet.HANDLE, b"handle"),
        (Packet.DATA, bytes(300)),
        (Packet.STATUS, bytes(4)),
        (Packet.ATTRS, b""),
    ]
    said = b"".join(framed(kind, number, body) for number, (kind, body) in enumerate(replies, 1))
    client = SftpClient(Scripted(*cut(version(extensions=extensions), where), *cut(said, where)))
    assert client.extensions == {"posix-rename@openssh.com", "fsync@openssh.com"}
    found: list[tuple[int, bytes]] = []
    for _ in replies:
        client.post(Packet.LSTAT, string(b"/"), lambda kind, body: found.append((kind, body)))
    client.settle()
    assert found == replies
    assert client.outstanding == 0


@calm
@given(st.permutations(range(8)))
def test_answers_may_come_in_any_order(order: list[int]) -> None:
    waiting: list[int] = []

    def answer(_kind: int, number: int, _body: bytes) -> Iterable[bytes]:
        waiting.append(number)
        if len(waiting) < len(order):
            return []
        return [framed(Packet.HANDLE, waiting[at], b"%d" % at) for at in order]

    client = SftpClient(Answering(answer))
    found: dict[int, bytes] = {}

    def take(asked: int) -> wire.Then:
        return lambda _kind, body: found.__setitem__(asked, body)

    for asked in range(len(order)):
        client.post(Packet.LSTAT, string(b"/"), take(asked))
    client.settle()
    assert found == {asked: b"%d" % asked for asked in range(len(order))}


def test_numbers_begin_again_after_the_last() -> None:
    client = SftpClient(Answering(lambda _kind, number, _body: [status(number)]))
    client._number = 2**32 - 2
    for _ in range(4):
        assert wire.is_ok(*client.call(Packet.LSTAT, string(b"/")))


def test_few_enough_questions_are_outstanding() -> None:
    """Their answers fit into the window of SSH, so that the far side never waits for us to read."""
    most = 0

    def answer(_kind: int, number: int, _body: bytes) -> Iterable[bytes]:
        nonlocal most
        most = max(most, client.outstanding)
        return [status(number)]

    client = SftpClient(Answering(answer))
    taken: list[int] = []
    for _ in range(5000):
        client.post(Packet.REMOVE, string(b"x" * 200), lambda kind, _: taken.append(kind))
    client.settle()
    assert len(taken) == 5000
    assert IN_FLIGHT / 2 < most <= 2 * IN_FLIGHT


def test_small_questions_go_out_together_and_none_is_forgotten() -> None:
    channel = Answering(lambda _kind, number, _body: [status(number)])
    client = SftpClient(channel)
    client.post(Packet.REMOVE, string(b"x"), lambda _kind, _body: None)
    assert client.outstanding == 1
    client.settle()
    assert client.outstanding == 0
    with pytest.raises(TargetDown, match="it ended"):
        client.receive()


@calm
@given(st.integers(0, 2**32 - 1))
def test_an_answer_to_no_question_is_refused(number: int) -> None:
    assume(number != 1)
    client = SftpClient(Scripted(version(), status(number)))
    client.post(Packet.LSTAT, string(b"/"), lambda _kind, _body: pytest.fail("not its answer"))
    with pytest.raises(TargetDown, match=f"not asked .number {number}"):
        client.settle()


def test_a_second_answer_is_refused() -> None:
    client = SftpClient(Scripted(version(), status(1), status(1)))
    client.post(Packet.LSTAT, string(b"/"), lambda _kind, _body: None)
    client.post(Packet.LSTAT, string(b"/"), lambda _kind, _body: None)
    with pytest.raises(TargetDown, match="not asked"):
        client.settle()


@pytest.mark.parametrize("said", [b"", version()[:3], version()[:7], version() + status(1)[:6]])
def test_an_end_in_the_middle_is_an_end(said: bytes) -> None:
    with pytest.raises(TargetDown, match="it ended"):
        SftpClient(Scripted(said)).call(Packet.LSTAT, string(b"/"))


@pytest.mark.parametrize("length", [0, 4, 2**20 + 1, 2**32 - 1])
def test_a_packet_of_an_impossible_length_is_refused(length: int) -> None:
    client = SftpClient(Scripted(version(), struct.pack(">I", length) + bytes(50)))
    with pytest.raises(OURS):
        client.call(Packet.LSTAT, string(b"/"))


# -- greetings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"Welcome to this host\n", b"\x1b[31mHOST\x1b[0m\n", b"hi\n", b"caf\xe9 " * 1000])
def test_text_before_the_greeting_is_shown_with_its_remedy(text: bytes) -> None:
    with pytest.raises(TargetRefused, match="shell start-up") as caught:
        SftpClient(Scripted(text + version()))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    if text.startswith(b"Welcome"):
        assert "Welcome to this host" in message


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_older_protocol_is_refused(number: int) -> None:
    with pytest.raises(TargetRefused, match="older"):
        SftpClient(Scripted(version(number)))


def test_without_extensions_the_lengths_are_safe() -> None:
    client = SftpClient(Scripted(version()))
    assert client.extensions == frozenset()
    assert (client.read_length, client.write_length) == (SAFE_LENGTH, SAFE_LENGTH)
    assert client.space(b"/") is None


@pytest.mark.parametrize(
    ("read", "write", "expected"),
    [
        (0, 0, (SAFE_LENGTH, SAFE_LENGTH)),
        (261120, 261120, (261120, 261120)),
        (2**40, 2**64 - 1, (2**18, 2**18)),
        (1000, 2000, (1000, 2000)),
    ],
)
def test_the_servers_limits_are_kept(read: int, write: int, expected: tuple[int, int]) -> None:
    limits = struct.pack(">4Q", 2**18, read, write, 100)
    client = SftpClient(
        Answering(
            lambda _kind, number, _body: [framed(Packet.EXTENDED_REPLY, number, limits)],
            extension("limits@openssh.com"),
        )
    )
    assert (client.read_length, client.write_length) == expected


@pytest.mark.parametrize(("inodes", "expected"), [(0, None), (500, 40)])
def test_free_space_is_what_we_may_use(inodes: int, expected: int | None) -> None:
    # Block size, fragment size, blocks, free, available to us, inodes, free, available to us, ...
    room = struct.pack(">11Q", 8192, 4096, 100, 50, 30, inodes, 60, 40, 1, 2, 255)
    client = SftpClient(
        Answering(
            lambda _kind, number, _body: [framed(Packet.EXTENDED_REPLY, number, room)],
            extension("statvfs@openssh.com", "2"),
        )
    )
    assert client.space(b"/") == Space(30 * 4096, expected, 100 * 4096, inodes, 4096)


def test_data_goes_out_as_it_is() -> None:
    channel = Scripted(version())
    client = SftpClient(channel)
    channel.heard = b""
    data = bytearray(b"0123456789")
    packet = client.packet(Packet.WRITE, b"handle", lambda _kind, _body: None, len(data))
    client.write_now(packet, memoryview(data))
    data[:] = b"overwritten"[:10]
    assert channel.heard == struct.pack(">IBI", 5 + 6 + 10, Packet.WRITE, 1) + b"handle0123456789"

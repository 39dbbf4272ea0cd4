"""What others send, as bytes that nobody meant: understood or refused, and never more than was allowed.

Each test tries some texts, always the same ones; with ``make faults`` many more, other ones each time. Elsewhere
are tried: SFTP packets (``tests/test_sftp_client.py``), files of the handshake (``tests/test_handshake.py``), and
INI files (``tests/test_config.py``).
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistamover import bags, board, digest, heartbeat, post, stop_files
from mistamover.arrivals import _read_job
from mistamover.checksums import DIGITS, LONGEST_PATH, parse_manifest, parse_sidecar
from mistamover.errors import MistamoverError, TargetDown
from mistamover.foreign import Refused
from mistamover.proofs import NotYet
from mistamover.testing.rig import Rig
from mistamover.transports import far_space, ftp, rsync_run, sftp, ssh
from mistamover.transports.contract import is_file_name
from mistamover.transports.far_shell import FarShell
from mistamover.transports.ftp_client import FtpClient, Reply, _Bounded, _reply
from mistamover.transports.ftp_digests import choose_digests
from mistamover.transports.rsync_run import Result, items
from mistamover.transports.sftp_client import Packet, SftpClient, Status, string
from mistamover.unit import Identity, Unit
from tests.test_sftp_client import Answering, Scripted, framed, status

FEW, MANY = 150, 3_000


def fuzz(*what: st.SearchStrategy[Any], few: int = FEW) -> Callable[[Callable[..., None]], Any]:
    """Have a test tried with few texts of these kinds, and with many by ``make faults``."""

    def of(check: Callable[..., None]) -> Any:
        tried = given(*what)(check)
        small = settings(max_examples=few, derandomize=True, database=None, deadline=None)(tried)
        large = settings(max_examples=few * MANY // FEW, database=None, deadline=None)(given(*what)(check))
        marks = [pytest.mark.campaign, pytest.mark.timeout(900)]

        @pytest.mark.parametrize(
            "tries", [pytest.param(small, id="few"), pytest.param(large, id="many", marks=marks)]
        )
        def test(tries: Callable[[], None]) -> None:
            tries()

        return test

    return of


def pieces(*known: bytes) -> st.SearchStrategy[bytes]:
    """Texts that are nearly right: these words in any order, among bytes of all kinds."""
    some = st.one_of(st.sampled_from(known), st.sampled_from(known), st.binary(max_size=6))
    return st.lists(some, max_size=24).map(b"".join)


# -- FTP ---------------------------------------------------------------------------------------------------


@contextmanager
def talking(said: bytes) -> Iterator[FtpClient]:
    """A client of a server that says this, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    ftp = _Bounded(encoding="latin-1")
    ftp.host, ftp.sock, ftp.file, ftp.welcome = "far", ours, ours.makefile("r", encoding="latin-1"), "220 here"
    with theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        yield FtpClient(ftp, 5.0, 5.0)
    ftp.close()


REPLIES = pieces(b"220", b"229", b"150 ", b"-", b" ", b"\r\n", b"\n", b"(|||", b"|)", b"MLST", b"HASH ", b";")


@fuzz(REPLIES)
def test_replies_of_ftp(said: bytes) -> None:
    with talking(said) as client, suppress(TargetDown):
        reply = client.call("FEAT")
        assert 200 <= reply.code < 600
        assert "\n" not in reply.message
        features = ftp._features(reply)
        chosen = choose_digests(features, "sha256")
        assert chosen is None or not chosen.confirms(reply.message, "no digest")
        ftp._facts(reply)


NUMBERS = st.one_of(
    st.text(max_size=12),
    st.integers(-10, 10**25).map(str),
    st.just("9" * 5000),
    st.sampled_from(["²", "0x1", "1_0"]),
)


@fuzz(NUMBERS, st.sampled_from(["229 in (|||{}|)", "227 in (1,2,3,4,{},1)", "227 in (1,2,3,4,1,{})", "229 {}"]))
def test_ports_of_ftp(number: str, form: str) -> None:
    text = form.format(number)
    client = SimpleNamespace(_passive="EPSV" if text.startswith("229") else "PASV", _peer="::1")
    client.down = lambda error: TargetDown(str(error))
    client._ftp = SimpleNamespace(host="far")
    with suppress(TargetDown):
        assert 0 < FtpClient._port(cast("FtpClient", client), Reply(int(text[:3]), text)) <= 65535


@fuzz(NUMBERS)
def test_sizes_of_ftp(number: str) -> None:
    client = SimpleNamespace(post=lambda _command, then: then(Reply(213, f"213 {number}")), settle=lambda: None)
    sizes = ftp.Ftp._sizes(cast("ftp.Ftp", SimpleNamespace(_client=client)), ["x"])
    assert all(0 <= size < 10**19 for size in sizes.values())


@fuzz(st.booleans(), pieces(b"type=file;size=1; ", b"a", b"/", b"..", b"\r\n", b"\0", b"./", b" "))
def test_listings_of_ftp(has_facts: bool, listing: bytes) -> None:
    features = {"MLST": ""} if has_facts else {}
    server = SimpleNamespace(_features=features, _retrieve=lambda _command, _most: listing)
    for name in ftp.Ftp._names(cast("ftp.Ftp", server), "/place"):
        assert is_file_name(name)
        assert not {*b"/\0\r\n"} & {*name}
        assert name not in (b".", b"..")


@pytest.mark.parametrize("text", ["", "2", "22", "-12 x", "²²² x", "600 x", "0220 x", "2200 x", " 220"])
def test_what_is_no_reply_of_ftp(text: str) -> None:
    with pytest.raises(ValueError, match="no FTP"):
        _reply(text)


@pytest.mark.parametrize(("said", "why"), [(b"220-\r\n" * 3000, "does not end"), (b"220-" * 3000, "more than")])
def test_a_reply_of_ftp_without_an_end_is_given_up(said: bytes, why: str) -> None:
    """The library's own class takes lines until memory ends."""
    with talking(said) as client, pytest.raises(TargetDown, match=why):
        client.call("FEAT")


# -- rsync -------------------------------------------------------------------------------------------------


@fuzz(
    pieces(
        b"<f+++++++++ ",
        b">f.st...... ",
        b"*deleting  ",
        b".d          ",
        b"a/b",
        b"..",
        b"\\#000",
        b"\\#777",
        b"\n",
    )
)
def test_what_rsync_itemizes(output: bytes) -> None:
    found = list(items(output))
    assert len(found) <= output.count(b"\n") + 1
    assert all(item.name and "\0" not in item.name and "\n" not in item.change for item in found)
    for item in found:
        assert not (item.is_same and item.is_sent)


@fuzz(st.lists(st.text(max_size=40), max_size=5), st.integers(-15, 130), st.text(max_size=20))
def test_what_rsync_says(lines: list[str], code: int, path: str) -> None:
    result = Result(code, {}, tuple("".join(lines).splitlines()))
    for said in (result.about(path), result.reason):
        assert len(said.splitlines()) <= 1
    assert isinstance(result.is_full, bool)


# -- the far side's shell ----------------------------------------------------------------------------------


@fuzz(
    pieces(
        b"Filesystem 1024-blocks",
        b" IFree",
        b"\n",
        b"---\n",
        b"/dev/a ",
        b"100 ",
        b"-7 ",
        b"40% ",
        b"/d",
        b"9" * 40,
    )
)
def test_what_df_says(said: bytes) -> None:
    space = far_space.parsed(said)
    assert space is None or (space.free >= 0 and space.total >= 0)


def shell(said: bytes) -> FarShell:
    """One that says this, in pieces, and ends."""
    channel = Scripted(*(said[at : at + 7] for at in range(0, len(said), 7)))
    return FarShell(cast("Any", SimpleNamespace(command=lambda _line: channel)), "sha256", "/place")


HELLO = b"mistamover " + digest.of_bytes("sha256", b"mistamover").encode()


@fuzz(pieces(b"mistamover ", HELLO, b" sync", b"\n", b".\n", b"00 *name", b"."))
def test_what_a_shell_says(said: bytes) -> None:
    far = shell(said)
    assert far.works is (b"\n" + HELLO in b"\n" + said) or not far.works
    with suppress(MistamoverError):
        answer = far.digests(far.digest(["name"], 1, sync=far.syncs))
        assert sum(map(len, answer)) <= len(said)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("said", [b"motd\n", b"x" * 1000])
def test_a_shell_that_says_things_without_an_end_is_no_such_shell(said: bytes) -> None:
    far = shell(b"")
    channel = cast("Scripted", far._channel)
    channel.read = lambda: said  # type: ignore[method-assign]
    assert not far.works
    with pytest.raises(TargetDown, match="without an end"):
        far.digests(far.digest(["name"], 1, sync=False))


# -- programs that speak for the far side ------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_command_says_no_more_than_it_has_to() -> None:
    assert len(ssh.said_by(["yes"], 30.0)) == ssh.MOST_SAID
    assert ssh.said_by(["sh", "-c", "echo a; echo b >&2; sleep 300"], 0.5, messages=True) == b"a\nb\n"
    assert ssh.said_by(["sh", "-c", "echo a; echo b >&2"], 30.0) == b"a\n"
    assert ssh.said_by(["/no/such/program"], 30.0) == b""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", ["yes", "yes >&2"])
def test_a_run_that_says_things_without_an_end_is_ended(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rsync prints, its far side may have chosen: it must not fill our disk."""
    monkeypatch.setattr(rsync_run, "MOST_SAID", 2**16)
    with rsync_run.Run(["sh", "-c", command]) as run, pytest.raises(TargetDown, match="without an end"):
        run.wait(30.0)
    assert not run.is_running


@pytest.mark.timeout(60)
def test_messages_without_an_end_end_the_program(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"outgoing": {"transfer_protocol": "sftp", "target_host": "archive.example.org"}})
    channel = ssh.PipeChannel(["dd", "if=/dev/zero", "of=/dev/stderr", "status=none"], rig.settings())
    try:
        assert channel.read() == b""
        assert isinstance(channel.ended(), TargetDown)
    finally:
        channel.close()
        rig.close()


# -- SFTP --------------------------------------------------------------------------------------------------


class Reading:
    """An SFTP server that gives other lengths than it is asked for."""

    def __init__(self, size: int, lengths: list[int]) -> None:
        self._size = size
        self._lengths = iter(lengths)

    def answer(self, kind: int, number: int, body: bytes) -> Iterator[bytes]:
        if kind == Packet.OPEN:
            yield framed(Packet.HANDLE, number, string(b"handle"))
            return
        offset, asked = int.from_bytes(body[10:18], "big"), int.from_bytes(body[18:22], "big")
        given_ = next(self._lengths, None)
        length = min(asked, max(0, self._size - offset)) if given_ is None else given_
        if kind == Packet.READ and length:
            yield framed(Packet.DATA, number, string(bytes(length)))
        else:
            yield status(number, Status.EOF)


@fuzz(st.integers(0, 70), st.lists(st.integers(0, 40), max_size=12), st.booleans())
def test_what_sftp_reads_back(size: int, lengths: list[int], is_right: bool) -> None:
    """It comes to an end, and only the very bytes count."""
    hashed = digest.of_bytes("sha256", bytes(size))
    unit = Unit("x", Identity(1, 1, size, 0, 0), staged="0", digest=hashed if is_right else "0" * 64)
    client = SftpClient(Answering(Reading(size, lengths).answer))
    client.read_length = 16
    transport = cast("Any", sftp.Sftp.__new__(sftp.Sftp))
    transport._client, transport._buffer = client, bytearray(16)
    transport.settings = SimpleNamespace(outgoing=SimpleNamespace(checksum="sha256"))
    (outcome,) = transport._download([(unit, b"/x")])
    assert is_right or outcome.error is not None
    assert lengths or not is_right or outcome.error is None


# -- checksum files ----------------------------------------------------------------------------------------

LINES = pieces(
    b"0" * 32,
    b"a" * 64,
    b"  ",
    b" *",
    b"\\",
    b"\\n",
    b"a/b",
    b"../",
    b"./",
    b"/",
    b"\n",
    b"MD5 (",
    b") = ",
    b"%0A",
    b"\0",
    b"#",
    b"\r",
)


@fuzz(LINES, st.sampled_from([*DIGITS]), st.booleans(), few=300)
def test_checksum_files(data: bytes, algorithm: str, is_bag: bool) -> None:
    with suppress(Refused):
        for path, hashed in parse_manifest(data, algorithm, bag=is_bag).items():
            assert len(hashed) == DIGITS[algorithm]
            assert 0 < len(path) <= LONGEST_PATH
            assert not {"", ".", ".."} & {*path.split("/")}
            assert "\0" not in path
    with suppress(Refused):
        assert len(parse_sidecar(data, algorithm, "a")) == DIGITS[algorithm]


@fuzz(
    pieces(
        b"BagIt-Version: 1.0\n", b"0.97", b"Tag-File-Character-Encoding: ", b"UTF-8\n", b"zlib", b"utf-16", b"\n"
    ),
    pieces(b"0" * 32, b"  ", b"data/a", b"data/../../etc/passwd", b"/", b"~", b"\n", b"%0A"),
    few=60,
)
def test_bags(declaration: bytes, manifest: bytes) -> None:
    pytest.importorskip("bagit")
    with tempfile.TemporaryDirectory() as top:
        Path(top, "data").mkdir()
        Path(top, "data/a").write_bytes(b"echoes")
        Path(top, "bagit.txt").write_bytes(declaration)
        Path(top, "manifest-md5.txt").write_bytes(manifest)
        fd = os.open(top, os.O_RDONLY)
        try:
            size, wrong = bags.prove(fd, bytearray(1024), lambda _: None)
            assert wrong, "no digest of it is right"
            assert "\n" not in wrong
            assert size in (-1, len(declaration + manifest) + 6)
            with suppress(Refused, NotYet):
                bags.look_for_parts(fd, bags.survey(fd))
        finally:
            os.close(fd)


# -- files of our own, in places of others -----------------------------------------------------------------

WORDS = st.sampled_from(
    ["streams", "state", "idle", "disks", "conditions", "email", "trouble", "told", "claim", "seen", "found", "id"]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=6)),
    max_leaves=12,
)


@fuzz(st.one_of(VALUES.map(json.dumps).map(str.encode), st.binary(max_size=60)), few=80)
def test_state_files(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / board.ALERTS / post.OUT).mkdir(parents=True)
        places = (heartbeat.HEARTBEAT, heartbeat.SERVICE, heartbeat.DISKS, "ID.job", ".stop")
        alerts = (post.MEMORY, post.ACKS, board.FILE, f"{post.OUT}/1.json")
        for path in (*(top / each for each in places), *(top / board.ALERTS / each for each in alerts)):
            path.write_bytes(data)
        heartbeat.read_heartbeat(top)
        heartbeat.read_service(top)
        heartbeat.read_disks(top)
        list(board.read_all(top))
        post.read_all_acks(top)
        post.waiting(top)
        post._read_memories(top / board.ALERTS / post.MEMORY)
        fd = os.open(top, os.O_RDONLY)
        try:
            stop_files.read(fd, ".stop")
            with suppress(Refused):
                _read_job("ID.job", fd)
        finally:
            os.close(fd)


@fuzz(
    pieces(
        b"stopped by the disk space monitor of mistamover",
        b"\n",
        b'{"monitor": ',
        b'"/state"',
        b', "file_systems": [',
        b"]}",
    )
)
def test_stop_files(content: bytes) -> None:
    found = stop_files._parsed(content)
    assert found is None or content.startswith(stop_files.SAYS.encode())

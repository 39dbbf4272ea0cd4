"""The transports of FTP: plain, and within TLS.

FTP says neither whether a name is a link nor when bytes are on disk, and has no rename that does not replace: it is
asked what stands there first, and looked at again after.
"""

from __future__ import annotations

import ftplib
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Self, TypeVar

from mistamover import digest
from mistamover.disk import Space
from mistamover.errors import (
    NotTaken,
    NotVerified,
    TargetDown,
    TargetFull,
    TargetRefused,
    UnitError,
    UnitRefused,
)
from mistamover.handshake import LARGEST
from mistamover.options import Ftp as FtpOptions
from mistamover.spool import Source
from mistamover.transports.contract import (
    Capabilities,
    Finding,
    Level,
    Proof,
    Transport,
    draft_name,
    endless_listing,
    is_file_name,
    space,
    taken,
    the_spool,
)
from mistamover.transports.ftp_client import FtpClient, Reply, Then, Transfer, log_in
from mistamover.transports.ftp_digests import choose_digests, hasher
from mistamover.transports.parents import Stands, directory, make_parents, parents, within_directories
from mistamover.unit import OWN_NAME, Directory, Outcome, Unit, batches

_Key = TypeVar("_Key")

FULL = re.compile("no space|quota|disk full|insufficient", re.IGNORECASE)
NO_NAME = re.compile("too long|invalid|illegal", re.IGNORECASE)
PROBES = (
    (re.compile("[\u0080-\ud7ff\ue000-\U0010ffff]"), "\u00e9e\u0301\u6f22"),
    (re.compile("[\udc80-\udcff]"), os.fsdecode(b"\xe9\x80")),
    (
        re.compile("[^A-Za-z0-9._=,+@%()/ \u0080-\U0010ffff-]|(^|/| ) | (/|$)|[.](/|$)"),
        " \\*?[]{}~'\"`$;&#:<>|\x1b\a\t\x7f . ",
    ),
)
"""What a server may not keep as it is, by kinds: letters of all scripts, bytes that are no text, the rest."""
UNSAYABLE = re.compile(r"[\r\n\0]|\udcff")
"""Line ends end a command; servers disagree on the byte 255, which begins a command of Telnet (RFC 854)."""
LONGEST_PATH = 1900
"""In bytes; servers cut longer commands short, some without a word (the least we know of takes 2,048).

A path in a tree that is staged is longer than its final one by no more than 110 bytes."""
CHUNK = 2**20
LARGE = 2**23
"""Files of more bytes are hashed by another thread while they are sent."""
MOST_ASKED = 4500
"""Digests that a session is asked for; ProFTPD remembers 10,000, one of each file that it receives among them."""
FOR_ALL = 0o644
"""The permissions that servers give: only where those of the source are others they are told so."""
MOST_LISTED = 2**25
"""Bytes of a listing of the staging directory: far more than we ever leave there."""
MOST_IN_TREE = 2**28
"""The same of a directory in a tree that is staged, or that stands where one is to go."""
LAST_YEAR = 253402300799
"""The last second that fourteen digits can say (RFC 3659, 2.3)."""


class _Upload:
    """One file on its way."""

    __slots__ = ("error", "other", "source", "transfer", "unit")

    def __init__(self, unit: Unit, source: Source, other: digest.Hasher | None, transfer: Transfer) -> None:
        self.unit = unit
        self.source = source
        self.other = other
        self.transfer = transfer
        self.error: UnitError | None = None


class Ftp(Transport):
    """One control connection, held over all batches of a lane."""

    batch_files: ClassVar[int] = 256

    _connection: FtpClient | None = None

    # -- beginning and end -----------------------------------------------------------------------------------

    def open(self) -> Self:
        """Log in, ask what the server can do, look at the target directory and make the staging directory."""
        options = self.settings.log_in
        assert isinstance(options, FtpOptions)  # noqa: S101 - the section that the protocol names
        self.staging = f"{self.target}/{options.staging_dir}/{self.settings.name}"
        self._buffer = bytearray(CHUNK)
        self._reader = self.spool.reader()
        self._hashing = ThreadPoolExecutor(1, "hash")
        self._others: dict[str, str] = {}
        """What is staged, with the digest that the server will give of it where that is not the stream's."""
        self._asked: set[str] = set()
        """Staged names whose digest was asked for: the server may remember the answer."""
        self._keeps: dict[str, bool] = {}
        """Whether the server keeps names such as these."""
        self._knows_names = True
        """Whether RNFR refuses names that are not there; some servers leave that to RNTO."""
        self._log_in()
        self._prepare(options)
        return self

    def _log_in(self) -> None:
        self._connection = log_in(self.settings)
        self._is_in_staging = False
        self._features = _features(self._call("FEAT"))
        self._digests = choose_digests(self._features, self.settings.outgoing.checksum)
        if "UTF8" in self._features:
            self._call("OPTS UTF8 ON")
        if not (reply := self._call("TYPE I")).is_ok:
            raise self._refused("", f"does not send files as they are (TYPE I): {reply.message}")
        self._client.choose_passive()
        if self._digests and self._digests.aside:
            self._call(self._digests.aside)

    def _log_in_anew(self) -> None:
        """Have a server forget the digests that it remembers: it holds so many and then gives none."""
        self._client.leave()
        self._log_in()
        self._asked.clear()

    def close(self) -> None:
        """Log out."""
        if self._connection is not None:
            self._reader.forget()
            self._hashing.shutdown()
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """Cut the connection."""
        if (client := self._connection) is not None:
            client.abort()

    @property
    def _client(self) -> FtpClient:
        assert self._connection is not None  # noqa: S101 - it is open
        return self._connection

    def _call(self, command: str) -> Reply:
        return self._client.call(command)

    def _refused(self, path: str, why: str) -> TargetRefused:
        return TargetRefused(f"{self.settings.outgoing.target_host}{path and ':'}{path}: {why}")

    def _prepare(self, options: FtpOptions) -> None:
        """Look at the target directory, and make ours in it, one after the other: neither may be a link."""
        real = self._real_path(self.target)
        if real is None and self.settings.outgoing.create_target:
            for path in (*filter(None, parents(self.target)), self.target):
                self._client.post(f"MKD {path}")
            real = self._real_path(self.target)
        if real is None:
            raise self._refused(
                self.target, "no such directory; mount or make it there, or set [outgoing] create_target = yes"
            )
        self._root = real.rstrip("/")
        self._knows_names = not self._taken([f"{self.target}/{self.tag}none"])
        for path in (f"{self.target}/{options.staging_dir}", self.staging):
            if self._stands([path])[path] is Stands.NOTHING and self._call(f"MKD {path}").is_ok:
                self.made.append(path)
            if self._stands([path])[path] is not Stands.DIRECTORY:
                raise self._refused(
                    path, "cannot be made; give the account the right to write in the target directory"
                )
        self._refuse_the_spool()

    def _real_path(self, path: str) -> str | None:
        return self._real_paths([path])[path]

    def _real_paths(self, paths: Sequence[str]) -> dict[str, str | None]:
        """What the server calls each directory once it is in it; None for what is none.

        That is the one way to tell a directory from a link to one.
        """
        self._is_in_staging = False
        found: dict[str, str | None] = dict.fromkeys(paths)
        entered: set[str] = set()

        def enter(path: str) -> Then:
            return lambda reply: entered.add(path) if reply.is_ok else None

        def look(path: str) -> Then:
            def then(reply: Reply) -> None:
                if path in entered and reply.code == 257:
                    found[path] = os.fsdecode(ftplib.parse257(reply.text).encode("latin-1"))  # noqa: S321 - it only reads

            return then

        for path in paths:
            self._client.post(f"CWD {path}", enter(path))
            self._client.post("PWD", look(path))
        self._client.settle()
        return found

    def _refuse_the_spool(self) -> None:
        """Refuse the spool itself as the target, by whatever detour: a source would prove its own delivery."""
        marker = f"{self.tag}{os.urandom(8).hex()}"
        self._enter_staging()
        reply = self._store(marker)
        if not reply.is_ok:
            raise self._refused(
                self.staging,
                f"cannot be written in: {reply.message}; "
                "give the account the right to, or look whether the disk is full",
            )
        is_here = self.is_here(marker)
        self._call(f"DELE {marker}")
        if is_here:
            raise the_spool(self.settings)

    def remove_made(self) -> None:
        """Remove the staging place by RMD, once nobody is in it."""
        self._is_in_staging = False
        for command in (f"CWD {self.target}", *(f"RMD {path}" for path in reversed(self.made))):
            if self.made:
                self._call(command)

    def _store(self, path: str) -> Reply:
        """Make an empty file."""
        transfer = self._client.transfer(f"STOR {path}")
        with self._client.data(transfer):
            pass
        return self._client.wait_for(transfer)

    @property
    def capabilities(self) -> Capabilities:
        """By the commands that the server offers."""
        proofs = {Proof.READBACK, Proof.SIZE, Proof.NONE}
        if self._digests is not None:
            proofs.add(Proof.DIGEST)
        return Capabilities(frozenset(proofs), replace=True, directories=True)

    def is_stopped(self) -> bool:
        """Whether the stop file lies in the target directory."""
        return bool(self._taken([f"{self.target}/{self.settings.outgoing.stop_file}"]))

    def room(self) -> Space | None:
        """By AVBL, where the server has it (draft-peterson-streamlined-ftp-command-extensions, 4): bytes alone."""
        if "AVBL" not in self._features:
            return None
        reply = self._call(f"AVBL {self.staging}")
        found = re.match(r"[0-9]{1,19}\b", reply.message)
        return Space(int(found[0])) if reply.is_ok and found else None

    def sweep(self) -> int:
        """Remove files of ours from the staging directory."""
        ours = [os.fsdecode(name) for name in self._names() if name.startswith(self.tag.encode())]
        trees = self._directories(f"{self.staging}/{name}" for name in ours)
        for path in trees:
            self._remove_tree(path)
        self._enter_staging()
        for name in ours:
            if f"{self.staging}/{name}" not in trees:
                self._client.post(f"DELE {name}")
        self._client.settle()
        return len(ours)

    def _enter_staging(self) -> None:
        """Have staged names be relative: commands are short, and several fit one segment."""
        if not self._is_in_staging:
            if not (reply := self._call(f"CWD {self.staging}")).is_ok:
                raise TargetDown(f"{self.settings.outgoing.target_host}:{self.staging}: {reply.message}")
            self._is_in_staging = True

    def _names(self, path: str = "", most: int = MOST_LISTED) -> list[bytes]:
        """The names in a directory, by MLSD (RFC 3659, 7) or NLST; without a path, in the staging directory."""
        if not path:
            self._enter_staging()
        has_facts = "MLST" in self._features
        # NLST alone may hide names that begin with a dot; none of ours in the staging directory does.
        command = "MLSD" if has_facts else "NLST -a" if path else "NLST"
        lines = self._retrieve(f"{command} {path}".rstrip(), most).splitlines()
        names = (line.partition(b" ")[2] if has_facts else line.rpartition(b"/")[2] for line in lines)
        return list(filter(is_file_name, names))

    def _retrieve(self, command: str, most: int = MOST_LISTED) -> bytes:
        """All that a command sends."""
        transfer = self._client.transfer(command)
        found = bytearray()
        with self._client.data(transfer) as data:
            while data is not None and (part := data.recv(digest.CHUNK)):
                found += part
                if len(found) > most:
                    raise endless_listing(f"{self.settings.outgoing.target_host}:{self.staging}")
        reply = self._client.wait_for(transfer)
        if not reply.is_ok and reply.code not in (450, 550):  # how some say that there is nothing
            raise TargetDown(f"{self.settings.outgoing.target_host}: {command}: {reply.message}")
        return bytes(found)

    # -- send ------------------------------------------------------------------------------------------------

    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Stage the units: the data connections of several are asked for at once."""
        self._reader.forget()
        if self._digests and self._digests.aside and len(self._asked) + len(units) > MOST_ASKED:
            self._log_in_anew()
        self._learn_names(unit.final for unit in units)
        self._enter_staging()
        for group in batches(units, self._client.together):
            uploads, failed = self._open_all(group)
            yield from failed
            yield from self._send(uploads)

    def _open_all(self, units: Sequence[Unit]) -> tuple[list[_Upload], list[Outcome]]:
        uploads: list[_Upload] = []
        failed: list[Outcome] = []
        with self.baton:
            for unit in units:
                try:
                    uploads.append(self._open(unit))
                except UnitError as error:
                    failed.append(Outcome(unit, error))
        return uploads, failed

    def _open(self, unit: Unit) -> _Upload:
        self._refuse_name(unit.final)
        source = self._reader.open(unit)
        if unit.staged in self._others:
            self._client.post(f"DELE {unit.staged}")  # it may be one that cannot be written again
        self._others[unit.staged] = ""
        return _Upload(unit, source, self._other_hasher(), self._client.transfer(f"STOR {unit.staged}"))

    def _refuse_name(self, path: str) -> None:
        """Refuse what FTP cannot carry, or this server would change; raises ``UnitRefused``."""
        if UNSAYABLE.search(path):
            raise UnitRefused("FTP cannot carry a name with a line end or the byte 0xFF; rename it")
        if len(os.fsencode(f"{self.target}/{path}")) > LONGEST_PATH:
            raise UnitRefused(f"FTP servers need not take a path of more than {LONGEST_PATH} bytes; shorten it")
        if not all(self._keeps[probe] for probe in _probes(path)):
            raise UnitRefused("the server does not keep a name such as this one as it is; rename it")

    def _send(self, uploads: Sequence[_Upload]) -> Iterator[Outcome]:
        try:
            for upload in uploads:
                self._fill(upload)
            self._client.settle()
        finally:
            for upload in uploads:
                upload.source.close()
        late = [upload for upload in uploads if upload.transfer.is_late]
        outcomes = [self._judge(upload) for upload in uploads if upload not in late or len(uploads) == 1]
        self._describe(upload for upload in uploads if upload.error is None and upload not in late)
        yield from outcomes
        if late and len(uploads) > 1:
            self._client.together = 1  # its network cuts what we write into pieces
            yield from self.send([upload.unit for upload in late])

    def _other_hasher(self) -> digest.Hasher | None:
        """Hashes as the server does, where that is not as the stream does."""
        if self._digests is None or self._digests.algorithm == self.settings.outgoing.checksum:
            return None
        return hasher(self._digests.algorithm)

    def _fill(self, upload: _Upload) -> None:
        try:
            with self._client.data(upload.transfer) as data:
                if data is not None:
                    self._pour(upload, data)
        except UnitError as error:
            upload.error = error
        finally:
            upload.source.close()

    def _pour(self, upload: _Upload, data: socket.socket) -> None:
        other = upload.other
        for chunk in upload.source.chunks(self._buffer, self._hashing if upload.unit.size > LARGE else None):
            data.sendall(chunk)
            if other is not None:
                other.update(chunk)
            self.tick(len(chunk))
        upload.unit = upload.source.finish()
        if other is not None:
            self._others[upload.unit.staged] = other.hexdigest()

    def _judge(self, upload: _Upload) -> Outcome:
        reply = self._client.wait_for(upload.transfer)
        if upload.error is None and not reply.is_ok:
            upload.error = self._why_not_stored(reply)
        return Outcome(upload.unit, upload.error)

    def _why_not_stored(self, reply: Reply) -> UnitError:
        if reply.code in (451, 452, 552) or FULL.search(reply.text):
            # 451: what ProFTPD makes of a write that found room for a part.
            return TargetFull(f"the target has no room for it ({reply.message}); make room there")
        if reply.code in (425, 426):
            raise TargetDown(f"{self.settings.outgoing.target_host}: {reply.message}")
        return NotTaken(f"the target could not take it: {reply.message}")

    def _describe(self, uploads: Iterable[_Upload]) -> None:
        """Have what is staged get its times and permissions, if the server can. What it cannot loses no byte."""
        set_time = _set_time(self._features)
        for upload in uploads:
            unit, mode = upload.unit, upload.source.mode
            if set_time:
                self._client.post(f"{set_time} {_moment(unit.identity.mtime_ns)} {unit.staged}")
            if self.settings.outgoing.preserve_mode or mode & FOR_ALL != FOR_ALL:
                self._client.post(f"SITE CHMOD {mode:o} {unit.staged}")

    # -- names that a server may change ----------------------------------------------------------------------

    def _learn_names(self, paths: Iterable[str]) -> None:
        """Find out whether the server keeps names of the kinds that these paths have: by one of our own."""
        for probe in {probe for path in paths for probe in _probes(path)} - self._keeps.keys():
            name = f"{draft_name(self, 'name')}{probe}"
            self._enter_staging()
            self._keeps[probe] = self._store(name).is_ok and os.fsencode(name) in self._names()
            self._call(f"DELE {name}")

    # -- verify ----------------------------------------------------------------------------------------------

    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Have the server hash what is staged, or read it back."""
        proof = self.proof
        self._enter_staging()
        if proof is Proof.NONE:
            yield from (Outcome(unit._replace(proof=proof.value)) for unit in units)
        elif proof is Proof.SIZE:
            yield from self._compare_sizes(units)
        elif proof is Proof.READBACK:
            yield from self._read_back([(unit, unit.staged) for unit in units])
        else:
            answers = self._ask_digests([unit for unit in units if unit.staged not in self._asked])
            yield from (self._judge_answer(unit, answers[unit.staged]) for unit in units if unit.staged in answers)
            # It may remember what it was asked for before, and need not know all.
            yield from self._read_back([(unit, unit.staged) for unit in units if unit.staged not in answers])

    def _compare_sizes(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        sizes = self._sizes(unit.staged for unit in units)
        for unit in units:
            if sizes.get(unit.staged) == unit.size:
                yield Outcome(unit._replace(proof=Proof.SIZE.value))
            else:
                yield Outcome(unit, NotVerified("the staged file has another size than the source"))

    def _ask_digests(self, units: Sequence[Unit]) -> dict[str, Reply]:
        """What the server says of staged files, by their names; nothing of those of which it gives no digest."""
        digests = self._digests
        answers: dict[str, Reply] = {}
        if digests is None or not units:
            return answers
        client = self._client
        with client.patient(sum(unit.size for unit in units)):
            if digests.select:
                client.post(digests.select)
            for unit in units:
                client.post(f"{digests.command} {unit.staged}", _put(answers, unit.staged))
            if digests.aside:
                client.post(digests.aside)
            client.settle()
        self._asked.update(answers)
        return {name: answer for name, answer in answers.items() if answer.is_ok}

    def _judge_answer(self, unit: Unit, answer: Reply) -> Outcome:
        expected = self._others.get(unit.staged) or unit.digest
        if self._digests is None or not self._digests.confirms(answer.message, expected):
            return Outcome(unit, NotVerified("the digest that the server gives is not that of what was sent"))
        return Outcome(unit._replace(proof=Proof.DIGEST.value))

    def _read_back(self, units: Sequence[tuple[Unit, str]]) -> Iterator[Outcome]:
        """Read files and hash them here."""
        together = self._client.asked_together(f"RETR {path}" for _, path in units)
        for first in range(0, len(units), together):
            group = units[first : first + together]
            transfers = [self._client.transfer(f"RETR {path}") for _, path in group]
            outcomes = [self._drain(unit, transfer) for (unit, _), transfer in zip(group, transfers, strict=True)]
            late = [pair for pair, transfer in zip(group, transfers, strict=True) if transfer.is_late]
            if not late or len(group) == 1:
                yield from outcomes
                continue
            self._client.together = 1
            yield from (outcome for outcome, pair in zip(outcomes, group, strict=True) if pair not in late)
            yield from self._read_back(late)

    def _drain(self, unit: Unit, transfer: Transfer) -> Outcome:
        hashed = digest.ALGORITHMS[self.settings.outgoing.checksum]()
        view = memoryview(self._buffer)
        with self._client.data(transfer) as data:
            while data is not None and (size := data.recv_into(view)):
                hashed.update(view[:size])
        reply = self._client.wait_for(transfer)
        if not reply.is_ok:
            return Outcome(unit, NotVerified(f"cannot be read back: {reply.message}"))
        if hashed.hexdigest() != unit.digest:
            return Outcome(unit, NotVerified("what was read back is not what was sent"))
        return Outcome(unit._replace(proof=Proof.READBACK.value))

    # -- what stands there -----------------------------------------------------------------------------------

    def _stands(self, paths: Sequence[str]) -> dict[str, Stands]:
        """What stands at each path below the target directory, whose own name may lead through links."""
        real = self._real_paths(paths)
        others = self._taken([path for path in paths if real[path] is None])
        # Another lane may have made a directory between the two questions.
        real |= self._real_paths([path for path in paths if path in others])

        def what(path: str) -> Stands:
            found = real[path]
            if found is None:
                return Stands.OTHER if path in others else Stands.NOTHING
            return Stands.DIRECTORY if found == self._expected(path) else Stands.OTHER

        return {path: what(path) for path in paths}

    def _expected(self, path: str) -> str:
        """What the server calls a directory below the target that no link leads to."""
        return f"{self._root}{path.removeprefix(self.target)}"

    def _directories(self, paths: Iterable[str]) -> set[str]:
        """Which of these are directories, and no links to one."""
        return {path for path, real in self._real_paths(list(paths)).items() if real == self._expected(path)}

    def _taken(self, paths: Sequence[str]) -> set[str]:
        """At which paths something stands."""
        found: dict[str, Reply] = {}
        for path in paths:
            if self._knows_names:
                # RNFR alone tells of links that lead nowhere. A file may be renamed to itself: nothing is done.
                self._client.post(f"RNFR {path}", _put(found, path))
                self._client.post(f"RNTO {path}")
            else:
                look = "MLST" if "MLST" in self._features else "SIZE"
                self._client.post(f"{look} {path}", _put(found, path))
        self._client.settle()
        return {path for path, reply in found.items() if reply.code < 400}

    def _sizes(self, paths: Iterable[str]) -> dict[str, int]:
        """The sizes of those that are regular files."""
        answers: dict[str, Reply] = {}
        for path in paths:
            self._client.post(f"SIZE {path}", _put(answers, path))
        self._client.settle()
        return {path: int(reply.message) for path, reply in answers.items() if reply.is_ok and _is_size(reply)}

    # -- publish ---------------------------------------------------------------------------------------------

    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Rename into place, all at once, where nothing stands; then look at what stands there."""
        broken, _ = make_parents(units, self._look_below, self._make)
        ready: list[Unit] = []
        for unit in units:
            if error := broken.get(directory(unit)):
                yield Outcome(unit, error)
            else:
                ready.append(unit)
        taken_names = self._taken([self._final(unit) for unit in ready if not self.may_replace(unit)])
        free = [unit for unit in ready if self._final(unit) not in taken_names]
        yield from (Outcome(unit, taken()) for unit in ready if self._final(unit) in taken_names)
        refused = self._rename(free)
        sizes = self._sizes(map(self._final, free))
        for unit in free:
            yield Outcome(unit, self._why_not_published(unit, refused.get(unit), sizes.get(self._final(unit))))

    def _rename(self, units: Iterable[Unit]) -> dict[Unit, Reply]:
        """Give the staged files their names; answers those that the server refused."""
        answers: dict[Unit, Reply] = {}
        self._enter_staging()
        for unit in units:
            self._client.post(f"RNFR {unit.staged}")
            self._client.post(f"RNTO {self._final(unit)}", _put(answers, unit))
        self._client.settle()
        return {unit: reply for unit, reply in answers.items() if not reply.is_ok}

    def _why_not_published(self, unit: Unit, refused: Reply | None, size: int | None) -> UnitError | None:
        if refused is None and size == unit.size:
            return None
        if refused is None:
            return UnitError("the server says that it was renamed, and does not show it under its name")
        if refused.code == 503:
            return UnitError("the staged file is gone")
        if size is None and self._taken([self._final(unit)]):
            return taken()
        if FULL.search(refused.text):
            return TargetFull(f"the target is full ({refused.message}); make room there")
        return NotTaken(f"the target cannot give it its name: {refused.message}")

    def _look_below(self, paths: Sequence[str]) -> dict[str, Stands]:
        found = self._stands([f"{self.target}/{path}" for path in paths])
        return {path: found[f"{self.target}/{path}"] for path in paths}

    def _make(self, directories: Sequence[str]) -> dict[str, UnitError]:
        answers: dict[str, Reply] = {}
        for path in directories:
            self._client.post(f"MKD {self.target}/{path}", _put(answers, path))
        self._client.settle()
        return {path: _why_no_directory(path, reply) for path, reply in answers.items() if not reply.is_ok}

    def compare(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Read what stands under each unit's name."""
        sizes = self._sizes(map(self._final, units))
        links = self._links(sizes)
        same: list[tuple[Unit, str]] = []
        for unit in units:
            path = self._final(unit)
            if sizes.get(path) == unit.size and path not in links:
                same.append((unit, path))
            else:
                yield Outcome(unit, taken())
        for unit, error in self._read_back(same):
            yield Outcome(unit, taken() if error else None)

    def _links(self, sizes: Mapping[str, int]) -> set[str]:
        """Those of which MLST tells another size than SIZE: one means the link, the other what it leads to."""
        if "MLST" not in self._features:
            return set()
        answers: dict[str, Reply] = {}
        for path in sizes:
            self._client.post(f"MLST {path}", _put(answers, path))
        self._client.settle()
        return {path for path, reply in answers.items() if _facts(reply).get("size") != str(sizes[path])}

    def resembling(self, units: Sequence[Unit]) -> list[Unit]:
        """By SIZE of the names, and by entering all parents."""
        sizes = self._sizes(map(self._final, units))
        alike = (unit for unit in units if sizes.get(self._final(unit)) == unit.size)
        return within_directories(alike, self._look_below)

    def discard(self, units: Iterable[Unit]) -> None:
        """Remove what is staged."""
        self._enter_staging()
        for unit in units:
            self._client.post(f"DELE {unit.staged}")
            self._others.pop(unit.staged, None)
        self._client.settle()

    # -- whole directories -----------------------------------------------------------------------------------

    def publish_directory(self, tree: Directory) -> None:
        """Rename the staged tree. What it replaces is renamed out of its way before, and removed after."""
        unit = tree.unit
        self._complete(tree)
        staged, final = f"{self.staging}/{unit.staged}", self._final(unit)
        stands = self._stands([final])[final]
        if stands is Stands.OTHER or (stands is Stands.DIRECTORY and not self.may_replace(unit)):
            raise taken()
        old = f"{staged}-old"
        if stands is Stands.DIRECTORY:
            self._rename_directory(final, old)
        try:
            self._rename_directory(staged, final)
        except UnitError:
            if stands is Stands.DIRECTORY:
                self._rename_directory(old, final)
            raise
        if stands is Stands.DIRECTORY:
            self._remove_tree(old)

    def _rename_directory(self, path: str, new: str) -> None:
        self._is_in_staging = False
        self._client.post(f"CWD {self.target}")  # no server has to rename a directory that it is in
        self._client.post(f"RNFR {path}")
        reply = self._call(f"RNTO {new}")
        if not reply.is_ok:
            raise NotTaken(f"the target does not rename directories: {reply.message}; set [outgoing] package = tar")
        if new not in self._directories([new]):
            raise UnitError("the server says that it was renamed, and does not show it under its name")

    def _complete(self, tree: Directory) -> None:
        """Make the directories of the staged tree that hold no file, and set the times of all."""
        self._learn_names(folder.path for folder in tree.folders)
        for folder in tree.folders:
            self._refuse_name(folder.path)
        below = self.staging.removeprefix(f"{self.target}/")
        paths = [f"{below}/{tree.unit.staged}/{tree.below(folder.path)}".rstrip("/") for folder in tree.folders]
        stands = self._look_below(paths)
        for error in self._make([path for path in paths if stands[path] is Stands.NOTHING]).values():
            raise error
        set_time = _set_time(self._features)
        for path, folder in reversed(list(zip(paths, tree.folders, strict=True))):
            if set_time:
                self._client.post(f"{set_time} {_moment(folder.mtime_ns)} {self.target}/{path}")
        self._client.settle()

    def entries(self, directory: Unit) -> set[str]:
        """List what stands there, by no link."""
        top = self._final(directory)
        if top not in self._directories([top]):
            raise taken()
        return set(self._walk(top))

    def _walk(self, top: str) -> Iterator[str]:
        """The paths of all that is in a directory, each directory before what is in it, with a slash at its end."""
        waiting, left = [""], MOST_IN_TREE
        while waiting:
            within = waiting.pop()
            if len(within) > LONGEST_PATH:
                raise endless_listing(f"{self.settings.outgoing.target_host}:{top}")
            names = self._names(f"{top}/{within}".rstrip("/"), left)
            left -= sum(map(len, names))
            paths = [within + os.fsdecode(name) for name in names]
            directories = self._directories(f"{top}/{path}" for path in paths)
            for path in paths:
                if f"{top}/{path}" in directories:
                    waiting.append(f"{path}/")
                    yield f"{path}/"
                else:
                    yield path

    def discard_directories(self, directories: Iterable[Unit]) -> None:
        """Remove the staged trees."""
        for path in self._directories(f"{self.staging}/{unit.staged}" for unit in directories):
            self._remove_tree(path)

    def _remove_tree(self, top: str) -> None:
        """Remove a directory of the staging place; what cannot be removed now is swept by a later pass."""
        directories = [top]
        files: list[str] = []
        for path in self._walk(top):
            (directories if path.endswith("/") else files).append(f"{top}/{path}".rstrip("/"))
        self._is_in_staging = False
        self._client.post(f"CWD {self.target}")
        for path in files:
            self._client.post(f"DELE {path}")
        for path in reversed(directories):
            self._client.post(f"RMD {path}")
        self._client.settle()

    # -- notes -----------------------------------------------------------------------------------------------

    def put_notes(self, notes: Mapping[str, bytes]) -> dict[str, UnitError]:
        """Store in the staging directory, and rename."""
        self._enter_staging()
        drafts = {name: draft_name(self, "note") for name in notes}
        stored = self._transfer(
            list(notes), lambda name: f"STOR {drafts[name]}", lambda name, data: data.sendall(notes[name])
        )
        renamed = self._rename_notes({name: drafts[name] for name, reply in stored.items() if reply.is_ok})
        return {
            name: NotTaken(f"the target could not take {name}: {reply.message}")
            for name, reply in (stored | renamed).items()
            if not reply.is_ok
        }

    def _rename_notes(self, drafts: Mapping[str, str]) -> dict[str, Reply]:
        """Give notes their names; a server that replaces nothing is asked again, once the old one is gone."""
        answers: dict[str, Reply] = {}
        for is_last in (False, True):
            for name, draft in drafts.items():
                if is_last and not answers[name].is_ok:
                    self._client.post(f"DELE {self.target}/{name}")
                if not (is_last and answers[name].is_ok):
                    self._client.post(f"RNFR {draft}")
                    self._client.post(f"RNTO {self.target}/{name}", _put(answers, name))
            self._client.settle()
        return answers

    def fetch_notes(self, names: Sequence[str]) -> dict[str, bytes]:
        """Ask for the sizes, and retrieve what is there."""
        sizes = self._sizes(f"{self.target}/{name}" for name in names)
        small = [name for name in names if sizes.get(f"{self.target}/{name}", LARGEST + 1) <= LARGEST]
        found = dict.fromkeys(small, b"")

        def take(name: str, data: socket.socket) -> None:
            while len(found[name]) <= LARGEST and (part := data.recv(LARGEST)):
                found[name] += part

        replies = self._transfer(small, lambda name: f"RETR {self.target}/{name}", take)
        return {name: data for name, data in found.items() if replies[name].is_ok and len(data) <= LARGEST}

    def _transfer(
        self, names: Sequence[str], command: Callable[[str], str], use: Callable[[str, socket.socket], None]
    ) -> dict[str, Reply]:
        """Have ``use`` the data connection of the command for each name; gives the last replies."""
        replies: dict[str, Reply] = {}
        together = self._client.asked_together(map(command, names))
        for first in range(0, len(names), together):
            group = {name: self._client.transfer(command(name)) for name in names[first : first + together]}
            for name, transfer in group.items():
                with self._client.data(transfer) as data:
                    if data is not None:
                        use(name, data)
            replies |= {name: self._client.wait_for(transfer) for name, transfer in group.items()}
            late = [name for name, transfer in group.items() if transfer.is_late]
            if late and len(group) > 1:
                self._client.together = 1
                replies |= self._transfer(late, command, use)
        return replies

    # -- look ------------------------------------------------------------------------------------------------

    def examine(self) -> Iterator[Finding]:
        """Look at rights, the staging place and the proofs."""
        yield Finding(Level.OK, f"logged in to {self.settings.outgoing.target_host}")
        yield Finding(Level.OK, f"{self.target} exists")
        yield self._examine_staging()
        yield self._examine_proof()
        yield from space(self.room())
        if not _set_time(self._features):
            yield Finding(
                Level.WARN, "the server sets no times: files get that of their arrival", "nothing to do here"
            )
        if self.settings.outgoing.transfer_protocol == "ftp":
            yield Finding(Level.WARN, "password and data cross the network in the clear", "use ftps or sftp")

    def _examine_staging(self) -> Finding:
        """Stage and rename a file of our own: the one way to know whether that works."""
        name = draft_name(self, "check")
        final = f"{self.target}/.{OWN_NAME[1:]}-{name}"
        self._enter_staging()
        self._store(name)
        self._client.post(f"RNFR {name}")
        renamed = self._call(f"RNTO {final}")
        self._call(f"DELE {final if renamed.is_ok else name}")
        if renamed.is_ok:
            return Finding(Level.OK, f"{self.target} is writable, on one file system with the staging place")
        return Finding(
            Level.FAIL,
            f"a staged file cannot be renamed to {self.target}: {renamed.message}",
            "staging and target must be one file system, both writable",
        )

    def _examine_proof(self) -> Finding:
        if self._digests is None:
            return Finding(Level.OK, "the server gives no digests: files are read back")
        if self._digests.algorithm == "crc32":
            return Finding(
                Level.WARN,
                f"the server gives CRC-32 alone ({self._digests.command}), which shows damage and nothing worse",
                "set [outgoing] verify = readback for a stronger proof",
            )
        return Finding(Level.OK, f"the server gives digests ({self._digests.command}, {self._digests.algorithm})")

    # -- names -----------------------------------------------------------------------------------------------

    def _final(self, unit: Unit) -> str:
        return f"{self.target}/{unit.final}"


def _put(answers: dict[_Key, Reply], key: _Key) -> Then:
    """A taker that keeps the last reply."""

    def then(reply: Reply) -> None:
        answers[key] = reply

    return then


def _is_size(reply: Reply) -> bool:
    """Whether it says a size, and nothing else (RFC 3659, 4)."""
    return bool(re.fullmatch(r"[0-9]{1,19}", reply.message))


def _features(reply: Reply) -> dict[str, str]:
    """What FEAT says (RFC 2389): words in capitals, and what follows each."""
    lines = (line.strip().partition(" ") for line in reply.text.split("\n")[1:-1])
    return {name.upper(): rest for name, _, rest in lines} if reply.is_ok else {}


def _facts(reply: Reply) -> dict[str, str]:
    """What MLST says of a path (RFC 3659, 7.2)."""
    lines = reply.text.split("\n")
    facts = lines[1].strip().partition(" ")[0] if reply.is_ok and len(lines) > 1 else ""
    return {name.lower(): value for name, _, value in (fact.partition("=") for fact in facts.split(";"))}


def _set_time(features: Mapping[str, str]) -> str:
    """The command that sets a time: MFMT (draft-somers-ftp-mfxx), or MDTM as vsftpd and others take it."""
    return next((command for command in ("MFMT", "MDTM") if command in features), "")


def _moment(mtime_ns: int) -> str:
    """A modification time as RFC 3659 (2.3) writes it, in UTC."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(min(max(mtime_ns // 10**9, 0), LAST_YEAR)))


def _probes(path: str) -> Iterator[str]:
    return (probe for pattern, probe in PROBES if pattern.search(path))


def _why_no_directory(path: str, reply: Reply) -> UnitError:
    if NO_NAME.search(reply.text):
        return UnitRefused(f"the target cannot hold a file of that name: {reply.message}")
    return NotTaken(f"the target allows no directory {path}: {reply.message}")


class Ftps(Ftp):
    """Within TLS; :func:`~mistamover.transports.ftp_client.log_in` sees to that."""

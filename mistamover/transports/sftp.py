"""The transport over SFTP: requests pipelined across files, digests by a program at the far side.

A server without a shell serves as well: what is staged is then read back over SFTP.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Self, TypeVar

from mistamover import disk
from mistamover.disk import Space
from mistamover.errors import (
    MistamoverError,
    NotTaken,
    NotVerified,
    Parked,
    TargetDown,
    TargetFull,
    TargetRefused,
    UnitError,
    UnitRefused,
)
from mistamover.handshake import LARGEST
from mistamover.options import Settings
from mistamover.spool import Source, Spool
from mistamover.transports import ranges, ssh
from mistamover.transports import sftp_client as wire
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
from mistamover.transports.far_shell import SLOWEST_DISK, FarShell
from mistamover.transports.parents import Stands, directory, make_parents, parents, within_directories
from mistamover.transports.read_back import read_back
from mistamover.transports.sftp_client import Packet, SftpClient, Status, string
from mistamover.unit import OWN_NAME, Directory, Outcome, Unit, batches

AHEAD = 128
FAR_AHEAD = 512
AHEAD_BYTES = 4 * 2**20
"""Files (more on a long line), and their bytes, whose staged names are opened while earlier ones are written."""
SYNCED_TOGETHER = 32
MOST_LISTED = 100_000
"""Names in the staging directory, or answers that hold none: far more than we ever leave there."""
MOST_IN_TREE = 10_000_000
"""The same of a tree that is staged, or that stands where one is to go."""
LONGEST_PATH = 4096
"""Characters of a path in a tree: a server that has a longer one makes directories up."""
MANY = 16
"""From so many files on, one syncfs(2) costs less than an fsync(2) of each."""


_Key = TypeVar("_Key", bound=Hashable)


class _Upload:
    """One file that is being staged."""

    __slots__ = ("data", "error", "handle", "in_ranges", "is_answered", "sent", "source", "unit")

    def __init__(self, unit: Unit, source: Source, *, in_ranges: bool) -> None:
        self.unit = unit
        self.source = source
        self.in_ranges = in_ranges
        self.data: bytes | None = None
        """All of a small file, read and hashed before it is sent; its source is closed by then."""
        self.sent = unit
        self.handle = b""
        self.error: MistamoverError | None = None
        self.is_answered = False
        """Whether its last request was answered, and thereby all others."""

    def opened(self, kind: int, body: bytes) -> None:
        if kind == HANDLE:
            self.handle = body
        else:
            # The name is ours and so is the directory: whatever is wrong, it is not this unit.
            self.error = TargetDown(f"cannot write in the staging directory: {wire.said(kind, body)}")

    def answered(self, kind: int, body: bytes) -> None:
        if not wire.is_ok(kind, body) and self.error is None:
            self.error = NotTaken(f"the target could not write it: {wire.said(kind, body)}")

    def closed(self, kind: int, body: bytes) -> None:
        self.answered(kind, body)
        self.is_answered = True

    def times_set(self, kind: int, body: bytes) -> None:
        if wire.is_ok(kind, body):
            return
        refused = wire.refusal(kind, body)
        # Some servers let nobody set times. That loses no byte.
        if refused and refused.code not in (Status.PERMISSION_DENIED, Status.OP_UNSUPPORTED):
            self.answered(kind, body)


class Sftp(Transport):
    """One log-in; one SFTP session; where there is a shell, one program that gives digests."""

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        tick: Callable[[int], None] = lambda _: None,
        baton: AbstractContextManager[object] | None = None,
    ) -> None:
        super().__init__(settings, spool, tick, baton)
        self._connection: ssh.Connection | None = None
        self._far_shell: FarShell | None = None
        self._takes_ranges = True
        """As far as this server was asked to."""
        self._unsynced: set[str] = set()
        """Staged names that :meth:`verify` has to put on disk."""
        self._staging = os.fsencode(self.staging) + b"/"
        self._begin = self._staging + self.tag.encode()

    # -- beginning and end -------------------------------------------------------------------------------

    def open(self) -> Self:
        """Log in, look at the target directory and make the staging directory."""
        self._reader = self.spool.reader()
        connection = ssh.connect(self.settings)
        self._siblings = ranges.Siblings(connection, self.settings.outgoing.lanes - 1)
        self._connection = connection  # last: another thread may abort what is there
        self._client = SftpClient(self._connection.sftp())
        self._is_far = self._client.round_trip() >= ranges.LONG
        if self._is_far:
            self._connection.keep_to_itself()
            self._client.in_flight = wire.FAR_IN_FLIGHT
        self._can_replace = "posix-rename@openssh.com" in self._client.extensions
        self._can_sync = "fsync@openssh.com" in self._client.extensions
        self._prepare()
        if Proof.DIGEST.value in _usable(self.settings.outgoing.verify):
            checksum = self.settings.outgoing.checksum
            self._far_shell = FarShell(self._connection, checksum, self.staging)
        return self

    def abort(self) -> None:
        """Cut the connection."""
        if (connection := self._connection) is not None:
            self._siblings.abort()
            connection.abort()

    def close(self) -> None:
        """Log out."""
        if self._connection is not None:
            self._reader.forget()
            self._siblings.close()
            self._connection.close()
            self._connection = None

    def _prepare(self) -> None:
        """Look at the target directory, and make ours in it, one after the other: neither may be a link."""
        target = self._attributes(self.target, follow=True)
        if target is None and self.settings.outgoing.create_target:
            self._post_directories([*filter(None, parents(self.target)), self.target])
            target = self._attributes(self.target, follow=True)
        if target is None:
            raise TargetRefused(
                f"{self.settings.outgoing.target_host}:{self.target}: no such directory; "
                "mount or make it there, or set [outgoing] create_target = yes"
            )
        if not _is_directory(target):
            raise TargetRefused(f"{self.settings.outgoing.target_host}:{self.target}: is no directory")
        for path in (f"{self.target}/{OWN_NAME}", self.staging):
            self._post_directories([path], self._note_made)
            if not _is_directory(self._attributes(path)):
                raise TargetRefused(
                    f"{self.settings.outgoing.target_host}:{path}: cannot be made; "
                    "give the account the right to write in the target directory"
                )
        self._refuse_the_spool()

    def _post_directories(
        self, paths: Iterable[str], then: Callable[[str], wire.Then] = lambda _: wire.ignore
    ) -> None:
        """Ask for directories, parents first; whether they are there is to be looked at."""
        for path in paths:
            self._client.post(Packet.MKDIR, _path(path) + wire.NO_ATTRIBUTES, then(path))

    def _note_made(self, path: str) -> wire.Then:
        return lambda kind, body: self.made.append(path) if wire.is_ok(kind, body) else None

    def remove_made(self) -> None:
        """Remove the staging place by RMDIR."""
        for path in reversed(self.made):
            self._client.post(Packet.RMDIR, _path(path), wire.ignore)
        if self.made:
            self._client.settle()

    def _refuse_the_spool(self) -> None:
        """Refuse the spool itself as the target, by whatever detour: a source would prove its own delivery."""
        marker = f"{self.tag}{os.urandom(8).hex()}"
        path = string(self._staging + marker.encode())
        opened = self._client.call(OPEN, path + _write_new + bytes(4))
        if opened.kind != HANDLE:
            raise TargetRefused(
                f"{self.settings.outgoing.target_host}:{self.staging}: cannot be written in: {wire.said(*opened)}; "
                "give the account the right to, or look whether the disk is full"
            )
        is_here = self.is_here(marker)
        self._client.post(CLOSE, opened.body, wire.ignore)
        self._client.post(Packet.REMOVE, path, wire.ignore)
        if is_here:
            self._client.settle()
            raise the_spool(self.settings)

    def _attributes(self, path: str, *, follow: bool = False) -> wire.Attributes | None:
        """What is at ``path``; None where there is nothing."""
        reply = self._client.call(Packet.STAT if follow else Packet.LSTAT, _path(path))
        if reply.kind == Packet.ATTRS:
            return wire.attributes(reply.body)[0]
        refused = reply.refusal
        if refused is not None and refused.code == Status.NO_SUCH_FILE:
            return None
        error = TargetRefused if refused and refused.code == Status.PERMISSION_DENIED else TargetDown
        raise error(f"{self.settings.outgoing.target_host}:{path}: {wire.said(*reply)}")

    @property
    def capabilities(self) -> Capabilities:
        """By the extensions that the server offers, and whether the account has a shell with a digest program."""
        proofs = {Proof.READBACK, Proof.SIZE, Proof.NONE}
        if self._far_shell is not None and self._far_shell.works:
            proofs.add(Proof.DIGEST)
        return Capabilities(frozenset(proofs), sync=self._can_sync, replace=self._can_replace, directories=True)

    def is_stopped(self) -> bool:
        """Whether the stop file lies in the target directory."""
        return self._attributes(f"{self.target}/{self.settings.outgoing.stop_file}") is not None

    def room(self) -> Space | None:
        """By statvfs@openssh.com, where the server has it."""
        found = self._client.space(os.fsencode(self.staging))
        return found and disk.room(found)

    def sweep(self) -> int:
        """Remove files of ours from the staging directory; those that can be resumed are spared once."""
        ours = [name for name in self._names(self.staging) if name.startswith(self.tag.encode())]
        unfinished = {name for name in ours if ranges.Part.is_one(name, self.tag.encode())}
        ranges.sweep(self._client, self._staging, unfinished)
        others = [name for name in ours if name not in unfinished]
        for name, found in self._look([(name, string(self._staging + name)) for name in others]):
            if _is_directory(found):
                self._remove_tree(f"{self.staging}/{os.fsdecode(name)}")
            else:
                self._client.post(Packet.REMOVE, string(self._staging + name), wire.ignore)
        self._client.settle()
        return len(ours)

    def _names(self, directory: str, most: int = MOST_LISTED) -> list[bytes]:
        opened = self._client.call(Packet.OPENDIR, _path(directory))
        if opened.kind != Packet.HANDLE:
            raise TargetDown(f"{directory}: cannot be listed: {wire.said(*opened)}")
        found: list[bytes] = []
        listed = 0
        while (reply := self._client.call(Packet.READDIR, opened.body)).kind == Packet.NAME:
            names = wire.names(reply.body)
            listed += max(1, len(names))
            if listed > most:
                raise endless_listing(f"{self.settings.outgoing.target_host}:{directory}")
            found += filter(is_file_name, names)
        self._client.post(Packet.CLOSE, opened.body, wire.ignore)
        return found

    # -- send ----------------------------------------------------------------------------------------------

    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Stage the units: while some are written, the staged names of the next are opened."""
        self._reader.forget()
        self._syncs_files = self._can_sync and not self._is_synced_at_once(units)
        opened: list[_Upload] = []
        filling: list[_Upload] = []
        written: deque[_Upload] = deque()
        try:
            for group in batches(units, self._ahead(), AHEAD_BYTES):
                filling = opened
                opened, failed = self._open_all(group)
                written += map(self._fill, filling)
                yield from failed
                while written and written[0].is_answered:
                    yield self._judge(written.popleft())
            written += map(self._fill, opened)
            while written:
                while not written[0].is_answered:
                    self._client.receive()
                yield self._judge(written.popleft())
        finally:
            for upload in (*filling, *opened):
                upload.source.close()

    def _ahead(self) -> int:
        """Files to a group: the server holds those of two open, and a few more."""
        return min(FAR_AHEAD if self._is_far else AHEAD, max(1, self._client.open_handles // 2 - 8))

    def _is_synced_at_once(self, units: Sequence[Unit]) -> bool:
        """Whether :meth:`verify` has all of them on disk by one call, as it pays for many small files."""
        if len(units) < MANY or self._far_shell is None or not self._far_shell.syncs:
            return False
        self._unsynced.update(unit.staged for unit in units)
        return True

    def _open_all(self, units: Sequence[Unit]) -> tuple[list[_Upload], list[Outcome]]:
        opened: list[_Upload] = []
        failed: list[Outcome] = []
        with self.baton:
            for unit in units:
                try:
                    opened.append(self._open(unit))
                except UnitError as error:
                    failed.append(Outcome(unit, error))
        return opened, failed

    def _open(self, unit: Unit) -> _Upload:
        source = self._reader.open(unit)
        upload = _Upload(unit, source, in_ranges=self._goes_in_ranges(unit))
        if unit.size <= self._client.write_length:
            try:
                upload.sent, upload.data = source.take()
            finally:
                source.close()
        if not upload.in_ranges:
            self._post_open(upload)
        return upload

    def _goes_in_ranges(self, unit: Unit) -> bool:
        return self._takes_ranges and unit.size >= (ranges.RANGED if self._is_far else ranges.RESUMED)

    def _post_open(self, upload: _Upload) -> None:
        self._client.post(OPEN, self._opening(upload), lambda kind, body: self._opened(upload, kind, body))

    def _opening(self, upload: _Upload) -> bytes:
        return self._staged(upload.unit) + _write_new + upload.source.mode.to_bytes(4, "big")

    def _opened(self, upload: _Upload, kind: int, body: bytes) -> None:
        """If it could not be opened, try once more, without what an earlier try left.

        That is never written anew: OpenSSH renames by a link, so that after a crash it may have its final name too.
        """
        if kind == HANDLE:
            upload.opened(kind, body)
        else:
            self._client.post(Packet.REMOVE, self._staged(upload.unit), wire.ignore)
            self._client.post(OPEN, self._opening(upload), upload.opened)

    def _fill(self, upload: _Upload) -> _Upload:
        try:
            if upload.in_ranges:
                if self._takes_ranges and self._write_ranges(upload):
                    return upload
                self._post_open(upload)
            while not upload.handle and not upload.error:
                self._client.receive()
            if upload.error:
                return self._not_opened(upload, upload.error)
            if upload.data is not None:
                self._write_small(upload, upload.data)
            else:
                self._write_large(upload)
        finally:
            upload.source.close()
        return upload

    def _not_opened(self, upload: _Upload, error: MistamoverError) -> _Upload:
        # The name is ours and so is the directory: whatever is wrong, it is not this unit.
        if not self._is_full(upload.unit):
            raise error
        upload.error = self._full()
        upload.is_answered = True
        return upload

    def _write_small(self, upload: _Upload, data: bytes) -> None:
        """All that a small file needs, in one write."""
        write = upload.handle + bytes(8) + len(data).to_bytes(4, "big")
        packet = self._client.packet(WRITE, write, upload.answered, len(data))
        self._client.write(packet, data, *self._finishing(upload, upload.closed))
        try:
            self.tick(len(data))
        except UnitError as error:
            upload.error = error

    def _write_large(self, upload: _Upload) -> None:
        self._write_in_order(upload)
        if upload.error:
            self._client.post(CLOSE, upload.handle, upload.closed)
            return
        self._allow_for(upload)
        self._client.write(*self._finishing(upload, upload.closed))

    def _allow_for(self, upload: _Upload) -> None:
        """It may take the server long to have it on disk."""
        self._client.allow(self.settings.sftp.stall_timeout + upload.unit.size / SLOWEST_DISK)

    def _write_ranges(self, upload: _Upload) -> bool:
        """Bring what is missing of it; it gets its staged name when it is whole.

        False where the server does not begin a file in that way, as gateways to object stores do not. Others refuse
        what does not come in order: with the next try it does.
        """
        client, unit = self._client, upload.unit
        # What a power cut there took from under its notes is found by its bytes alone.
        resumes = self.proof in (Proof.DIGEST, Proof.READBACK)
        # One process at a time has a stream's state directory: another's would go on writing what ours published.
        whose = str(self.settings.global_.state_dir) if resumes else unit.staged
        part = ranges.Part.of(unit, self._begin, whose)
        ranged = ranges.RangedFile(upload.source, part, self.tick)
        try:
            upload.handle = ranged.open(client, resume=resumes)
        except NotTaken:
            self._takes_ranges = False
            return False
        try:
            ranged.send(client, self._siblings, over_all=self._is_far)
            upload.sent = upload.source.finish()
        except UnitError as error:
            upload.error = error
            self._takes_ranges = not isinstance(error, NotTaken) or self._is_full(unit)
            ranged.leave(client, upload.closed, resumable=resumes and isinstance(error, Parked))
            return True
        self._allow_for(upload)
        client.write(*self._finishing(upload, upload.answered))
        ranged.give_name(client, self._staging + unit.staged.encode(), upload.closed)
        return True

    def _write_in_order(self, upload: _Upload) -> None:
        offset = 0
        try:
            for chunk in upload.source.chunks(bytearray(self._client.write_length)):
                write = upload.handle + offset.to_bytes(8, "big") + len(chunk).to_bytes(4, "big")
                packet = self._client.packet(WRITE, write, upload.answered, len(chunk))
                self._client.write_now(packet, chunk)
                offset += len(chunk)
                self.tick(len(chunk))
                if upload.error:
                    break
            else:
                upload.sent = upload.source.finish()
        except UnitError as error:
            upload.error = error

    def _finishing(self, upload: _Upload, then: wire.Then) -> list[bytes]:
        """Set its times, have it on disk, close it; ``then`` takes the last reply."""
        client, handle = self._client, upload.handle
        mtime = _seconds(upload.unit.identity.mtime_ns).to_bytes(4, "big")
        mode = b""
        flags = b"\0\0\0\x08"
        if self.settings.outgoing.preserve_mode:
            flags, mode = b"\0\0\0\x0c", upload.source.mode.to_bytes(4, "big")
        packets = [client.packet(FSETSTAT, handle + flags + mode + mtime + mtime, upload.times_set)]
        if self._syncs_files:
            packets.append(client.extended("fsync@openssh.com", handle, upload.answered))
        packets.append(client.packet(CLOSE, handle, then))
        return packets

    def _judge(self, upload: _Upload) -> Outcome:
        if upload.error is None:
            return Outcome(upload.sent)
        if isinstance(upload.error, NotTaken) and self._is_full(upload.unit):
            return Outcome(upload.unit, self._full())
        if isinstance(upload.error, UnitError):
            return Outcome(upload.unit, upload.error)
        raise upload.error

    def _is_full(self, unit: Unit) -> bool:
        """SFTP version 3 has no word for a full disk: it only says that something failed."""
        room = self.room()
        return room is not None and (room.free < unit.size + 2**16 or room.inodes == 0)

    def _full(self) -> TargetFull:
        return TargetFull(f"{self.settings.outgoing.target_host}:{self.target}: the disk is full; make room there")

    # -- verify --------------------------------------------------------------------------------------------

    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Begin to prove what was staged; the outcomes can be taken after other work."""
        proof = self.proof
        if proof is Proof.DIGEST and self._far_shell is not None:
            unsynced = self._unsynced.intersection(unit.staged for unit in units)
            self._unsynced -= unsynced
            size = sum(unit.size for unit in units)
            number = self._far_shell.digest((unit.staged for unit in units), size, sync=bool(unsynced))
            return self._proven(self._far_shell, number, units)
        if proof is Proof.READBACK:
            return self._read_back(units)
        if proof is Proof.SIZE:
            return self._compare_sizes(units)
        return (Outcome(unit._replace(proof=proof.value)) for unit in units)

    def _proven(self, shell: FarShell, number: int, units: Sequence[Unit]) -> Iterator[Outcome]:
        digests = shell.digests(number)
        if len(units) > 1 and not digests:
            # No one unit's fault: its disk was not synced, or its digest program does not run any more.
            raise TargetDown(
                f"{self.settings.outgoing.target_host}:{self.target}: gives no digests any more, or cannot put "
                "what was sent on disk; look at its disk and its messages"
            )
        for unit in units:
            if digests.get(unit.staged) == unit.digest:
                yield Outcome(unit._replace(proof=Proof.DIGEST.value))
            else:
                yield Outcome(unit, NotVerified("the staged file has another digest than the source"))

    def _read_back(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        return self._download([(unit, self._staging + unit.staged.encode()) for unit in units])

    def _download(self, wanted: Iterable[tuple[Unit, bytes]]) -> Iterator[Outcome]:
        return read_back(self._client, wanted, self.settings.outgoing.checksum)

    def _compare_sizes(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        for unit, found in self._look([(unit, self._staged(unit)) for unit in units]):
            if found is not None and found.size == unit.size:
                yield Outcome(unit._replace(proof=Proof.SIZE.value))
            else:
                yield Outcome(unit, NotVerified("the staged file has another size than the source"))

    def _look(self, wanted: Sequence[tuple[_Key, bytes]]) -> list[tuple[_Key, wire.Attributes | None]]:
        """What stands at each path; None where nothing does, or nobody can say."""
        found: dict[_Key, wire.Attributes] = {}

        def take(key: _Key) -> wire.Then:
            def then(kind: int, body: bytes) -> None:
                if kind == Packet.ATTRS:
                    found[key] = wire.attributes(body)[0]

            return then

        for key, path in wanted:
            self._client.post(Packet.LSTAT, path, take(key))
        self._client.settle()
        return [(key, found.get(key)) for key, _ in wanted]

    # -- publish -------------------------------------------------------------------------------------------

    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Rename into place, all at once; then have the names on disk."""
        broken, changed = make_parents(units, self._look_below, self._make)
        ready: list[Unit] = []
        for unit in units:
            if error := broken.get(directory(unit)):
                yield Outcome(unit, error)
            else:
                ready.append(unit)
        refused = self._rename(ready)
        self._sync(changed | {directory(unit) for unit in ready if unit not in refused})
        for unit, found in self._look([(unit, self._final(unit)) for unit in refused]):
            error = _why_not_renamed(refused[unit], found, replaces=self.may_replace(unit))
            yield Outcome(unit, self._full() if error.retry and self._is_full(unit) else error)
        yield from (Outcome(unit) for unit in ready if unit not in refused)

    def _rename(self, units: Sequence[Unit]) -> dict[Unit, wire.Refusal]:
        refused: dict[Unit, wire.Refusal] = {}
        taken = set() if self._can_replace else self._taken(units)

        def take(unit: Unit) -> wire.Then:
            def then(kind: int, body: bytes) -> None:
                if answer := wire.refusal(kind, body):
                    refused[unit] = answer

            return then

        packets: list[bytes] = []
        for unit in units:
            if unit in taken:
                code = Status.OP_UNSUPPORTED if self.may_replace(unit) else Status.FAILURE
                refused[unit] = wire.Refusal(code, "the name is taken")
                continue
            names = self._staged(unit) + self._final(unit)
            if self._can_replace and self.may_replace(unit):
                packets.append(self._client.extended("posix-rename@openssh.com", names, take(unit)))
            else:
                packets.append(self._client.packet(Packet.RENAME, names, take(unit)))
        if packets:
            self._client.write(b"".join(packets))
        self._client.settle()
        return refused

    def _taken(self, units: Sequence[Unit]) -> set[Unit]:
        """Those whose name is taken: a server that is not OpenSSH's may replace files by a plain RENAME."""
        return {unit for unit, found in self._look([(unit, self._final(unit)) for unit in units]) if found}

    def _make(self, directories: Sequence[str]) -> dict[str, UnitError]:
        refused: dict[str, UnitError] = {}

        def take(path: str) -> wire.Then:
            def then(kind: int, body: bytes) -> None:
                if answer := wire.refusal(kind, body):
                    refused[path] = _why_no_directory(path, answer)

            return then

        for path in directories:
            self._client.post(Packet.MKDIR, _path(f"{self.target}/{path}") + wire.NO_ATTRIBUTES, take(path))
        self._client.settle()
        return refused

    def _look_below(self, paths: Sequence[str]) -> dict[str, Stands]:
        """What stands at each path below the target."""
        found = self._look([(path, _path(f"{self.target}/{path}")) for path in paths])
        return {path: _what_stands(attributes) for path, attributes in found}

    def _sync(self, paths: Iterable[str]) -> None:
        """Have names in directories, or files, on disk, where the server can: OpenSSH opens directories too."""
        if self._can_sync:
            every = sorted(paths)
            for first in range(0, len(every), SYNCED_TOGETHER):
                self._sync_some(every[first : first + SYNCED_TOGETHER])

    def _sync_some(self, paths: Sequence[str]) -> None:
        """Few at once: a server that has no handle left would open none of the others."""
        handles: list[bytes] = []

        def opened(kind: int, body: bytes) -> None:
            if kind == Packet.HANDLE:
                handles.append(body)

        for path in paths:
            full = f"{self.target}/{path}" if path else self.target
            self._client.post(Packet.OPEN, _path(full) + wire.READ.to_bytes(4, "big") + wire.NO_ATTRIBUTES, opened)
        self._client.settle()
        failed: list[str] = []

        def synced(kind: int, body: bytes) -> None:
            # EINVAL and ENOSYS: file systems that sync no directories are taken at their word.
            refused = wire.refusal(kind, body)
            if refused and refused.code not in (Status.BAD_MESSAGE, Status.OP_UNSUPPORTED):
                failed.append(refused.message)

        for handle in handles:
            self._client.write(
                self._client.extended("fsync@openssh.com", handle, synced),
                self._client.packet(Packet.CLOSE, handle, wire.ignore),
            )
        self._client.settle()
        if failed:
            raise TargetDown(f"{self.target}: cannot be put on disk: {failed[0]}")

    def compare(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Read what stands under each unit's name."""
        same: list[tuple[Unit, bytes]] = []
        for unit, found in self._look([(unit, self._final(unit)) for unit in units]):
            if found is not None and _is_file(found) and found.size == unit.size:
                same.append((unit, os.fsencode(f"{self.target}/{unit.final}")))
            else:
                yield Outcome(unit, taken())
        compared = [Outcome(unit, taken() if error else None) for unit, error in self._download(same)]
        # We may have crashed between its rename and this; or it is another program's, which did not sync it.
        equal = [unit for unit, error in compared if error is None]
        self._sync({directory(unit) for unit in equal} | {unit.final for unit in equal})
        yield from compared

    def resembling(self, units: Sequence[Unit]) -> list[Unit]:
        """By LSTAT of the names and of all parents."""
        found = self._look([(unit, self._final(unit)) for unit in units])
        alike = (unit for unit, what in found if what and _is_file(what) and what.size == unit.size)
        return within_directories(alike, self._look_below)

    def discard(self, units: Iterable[Unit]) -> None:
        """Remove what is staged."""
        for unit in units:
            self._client.post(Packet.REMOVE, self._staged(unit), wire.ignore)
        self._client.settle()

    # -- whole directories ---------------------------------------------------------------------------------

    def publish_directory(self, tree: Directory) -> None:
        """Rename the staged tree. What it replaces is renamed out of its way before, and removed after."""
        unit = tree.unit
        self._complete(tree)
        staged, final = f"{self.staging}/{unit.staged}", f"{self.target}/{unit.final}"
        old = ""
        if (found := self._attributes(final)) is not None:
            if not (self.may_replace(unit) and _is_directory(found)):
                raise taken()
            old = f"{staged}-old"
            self._rename_directory(final, old)
        try:
            self._rename_directory(staged, final)
        except UnitError:
            if old:
                self._rename_directory(old, final)
            raise
        self._sync([""])
        if old:
            self._remove_tree(old)

    def _rename_directory(self, path: str, new: str) -> None:
        """By the rename that replaces nothing; OpenSSH's looks whether the name is free just before it."""
        reply = self._client.call(Packet.RENAME, _path(path) + _path(new))
        if refused := reply.refusal:
            raise _why_not_renamed(refused, self._attributes(new), replaces=False)

    def _complete(self, tree: Directory) -> None:
        """Make the directories of the staged tree that hold no file, and set the times of all."""
        below = self.staging.removeprefix(f"{self.target}/")
        paths = [f"{below}/{tree.unit.staged}/{tree.below(folder.path)}".rstrip("/") for folder in tree.folders]
        stands = self._look_below(paths)
        refused = self._make([path for path in paths if stands[path] is Stands.NOTHING])
        for error in refused.values():
            raise error
        for path, folder in reversed(list(zip(paths, tree.folders, strict=True))):
            mtime = _seconds(folder.mtime_ns).to_bytes(4, "big")
            self._client.post(
                Packet.SETSTAT, _path(f"{self.target}/{path}") + b"\0\0\0\x08" + mtime + mtime, wire.ignore
            )
        self._client.settle()
        self._sync(paths)

    def entries(self, directory: Unit) -> set[str]:
        """List what stands there, by no link."""
        top = f"{self.target}/{directory.final}"
        if not _is_directory(self._attributes(top)):
            raise taken()
        return set(self._walk(top))

    def _walk(self, top: str) -> Iterator[str]:
        """The paths of all that is in a directory, each directory before what is in it, with a slash at its end."""
        waiting, left = [""], MOST_IN_TREE
        while waiting:
            within = waiting.pop()
            if len(within) > LONGEST_PATH:
                raise endless_listing(f"{self.settings.outgoing.target_host}:{top}")
            paths = [within + os.fsdecode(name) for name in self._names(f"{top}/{within}", left)]
            left -= len(paths)
            for path, found in self._look([(path, _path(f"{top}/{path}")) for path in paths]):
                if _is_directory(found):
                    waiting.append(f"{path}/")
                    yield f"{path}/"
                else:
                    yield path

    def discard_directories(self, directories: Iterable[Unit]) -> None:
        """Remove the staged trees."""
        staged = [(unit, f"{self.staging}/{unit.staged}") for unit in directories]
        found = dict(self._look([(unit, _path(path)) for unit, path in staged]))
        for unit, path in staged:
            if found[unit] is not None:
                self._remove_tree(path)

    def _remove_tree(self, top: str) -> None:
        """Remove a directory of the staging place; what cannot be removed now is swept by a later pass."""
        directories = [top]
        for path in self._walk(top):
            if path.endswith("/"):
                directories.append(f"{top}/{path}".rstrip("/"))
            else:
                self._client.post(Packet.REMOVE, _path(f"{top}/{path}"), wire.ignore)
        for path in reversed(directories):
            self._client.post(Packet.RMDIR, _path(path), wire.ignore)
        self._client.settle()

    # -- notes ---------------------------------------------------------------------------------------------

    def put_notes(self, notes: Mapping[str, bytes]) -> dict[str, UnitError]:
        """Write in the staging directory, and rename: in three round trips for as many as may be open at once."""
        refused: dict[str, UnitError] = {}
        every = list(notes.items())
        for first in range(0, len(every), self._ahead()):
            self._put_some(every[first : first + self._ahead()], refused)
        return refused

    def _put_some(self, notes: Sequence[tuple[str, bytes]], refused: dict[str, UnitError]) -> None:
        drafts = {name: _path(f"{self.staging}/{draft_name(self, 'note')}") for name, _ in notes}

        def judged(name: str) -> wire.Then:
            def then(kind: int, body: bytes) -> None:
                if not wire.is_ok(kind, body):
                    refused.setdefault(name, NotTaken(f"the target could not take {name}: {wire.said(kind, body)}"))

            return then

        handles = self._open_notes(drafts, wire.WRITE_EXCLUSIVE, judged)
        for name, data in notes:
            if handle := handles.get(name):
                for offset in range(0, len(data) or 1, self._client.write_length):
                    piece = string(data[offset : offset + self._client.write_length])
                    self._client.post(WRITE, handle + offset.to_bytes(8, "big") + piece, judged(name))
                self._client.post(CLOSE, handle, judged(name))
        self._client.settle()
        for name in handles.keys() - refused.keys():
            final = _path(f"{self.target}/{name}")
            if self._can_replace:
                packet = self._client.extended("posix-rename@openssh.com", drafts[name] + final, judged(name))
                self._client.write(packet)
            else:
                self._client.post(Packet.REMOVE, final, wire.ignore)
                self._client.post(Packet.RENAME, drafts[name] + final, judged(name))
        self._client.settle()

    def _open_notes(
        self, paths: Mapping[str, bytes], flags: int, judged: Callable[[str], wire.Then] = lambda _: wire.ignore
    ) -> dict[str, bytes]:
        """The handles of those that can be opened; the answers of the others go to ``judged``."""
        handles: dict[str, bytes] = {}

        def opened(name: str) -> wire.Then:
            def then(kind: int, body: bytes) -> None:
                if kind == HANDLE:
                    handles[name] = body
                else:
                    judged(name)(kind, body)

            return then

        for name, path in paths.items():
            self._client.post(OPEN, path + flags.to_bytes(4, "big") + wire.NO_ATTRIBUTES, opened(name))
        self._client.settle()
        return handles

    def fetch_notes(self, names: Sequence[str]) -> dict[str, bytes]:
        """Look at all, then open and read those that are there."""
        found = self._look([(name, _path(f"{self.target}/{name}")) for name in names])
        small = [name for name, what in found if what and _is_file(what) and (what.size or 0) <= LARGEST]
        fetched: dict[str, bytes] = {}
        for first in range(0, len(small), self._ahead()):
            fetched |= self._fetch_some(small[first : first + self._ahead()])
        return fetched

    def _fetch_some(self, names: Sequence[str]) -> dict[str, bytes]:
        fetched: dict[str, bytes] = {}

        def read(name: str) -> wire.Then:
            def then(kind: int, body: bytes) -> None:
                refused = wire.refusal(kind, body)
                if refused and refused.code == Status.EOF:
                    fetched[name] = b""
                elif kind == Packet.DATA and 4 <= len(body) <= 4 + LARGEST:
                    fetched[name] = body[4:]

            return then

        handles = self._open_notes({name: _path(f"{self.target}/{name}") for name in names}, wire.READ)
        for name, handle in handles.items():
            self._client.post(Packet.READ, handle + bytes(8) + (LARGEST + 1).to_bytes(4, "big"), read(name))
            self._client.post(CLOSE, handle, wire.ignore)
        self._client.settle()
        return fetched

    # -- look ----------------------------------------------------------------------------------------------

    def examine(self) -> Iterator[Finding]:
        """Look at space, rights, the staging place and the proofs."""
        yield Finding(Level.OK, f"logged in to {self.settings.outgoing.target_host}")
        yield Finding(Level.OK, f"{self.target} exists")
        yield from self._examine_staging()
        yield from space(self.room())
        if not self._can_sync:
            yield Finding(Level.WARN, "the server does not tell when files are on disk", "nothing can be done here")

    def _examine_staging(self) -> Iterator[Finding]:
        """Stage and rename a file of our own: the one way to know whether that works."""
        name = draft_name(self, "check")
        staged, final = f"{self.staging}/{name}", f"{self.target}/.{OWN_NAME[1:]}-{name}"
        flags = wire.WRITE_EXCLUSIVE.to_bytes(4, "big")
        opened = self._client.call(Packet.OPEN, _path(staged) + flags + wire.NO_ATTRIBUTES)
        if opened.kind != Packet.HANDLE:
            yield Finding(
                Level.FAIL, f"{self.staging} is not writable: {wire.said(*opened)}", "give the account rights"
            )
            return
        self._client.call(Packet.CLOSE, opened.body)
        renamed = self._client.call(Packet.RENAME, _path(staged) + _path(final))
        self._client.call(Packet.REMOVE, _path(staged if renamed.refusal else final))
        if renamed.refusal:
            yield Finding(
                Level.FAIL,
                f"a staged file cannot be renamed to {self.target}: {renamed.refusal.message}",
                "staging and target must be one file system, both writable",
            )
        else:
            yield Finding(Level.OK, f"{self.target} is writable, on one file system with the staging place")

    # -- names -----------------------------------------------------------------------------------------------

    def _staged(self, unit: Unit) -> bytes:
        return string(self._staging + unit.staged.encode())

    def _final(self, unit: Unit) -> bytes:
        return _path(f"{self.target}/{unit.final}")


def _usable(verify: str) -> tuple[str, ...]:
    """The proofs that a stream with this ``verify`` may use."""
    return (Proof.DIGEST.value, Proof.READBACK.value) if verify == "auto" else (verify,)


_write_new = wire.WRITE_EXCLUSIVE.to_bytes(4, "big") + b"\0\0\0\x04"
"""Flags of an OPEN, with attributes that give the permissions."""
# Looked up once: members of an enumeration are slow to reach, and these are needed for every small file.
CLOSE, FSETSTAT, HANDLE, OPEN, WRITE = (
    int(kind) for kind in (Packet.CLOSE, Packet.FSETSTAT, Packet.HANDLE, Packet.OPEN, Packet.WRITE)
)


def _path(path: str) -> bytes:
    return string(os.fsencode(path))


def _seconds(mtime_ns: int) -> int:
    """A modification time as the protocols can say it: whole seconds since 1970, 32 bits."""
    return min(max(mtime_ns // 10**9, 0), 0xFFFFFFFF)


def _is_directory(found: wire.Attributes | None) -> bool:
    return found is not None and found.mode is not None and stat.S_ISDIR(found.mode)


def _what_stands(found: wire.Attributes | None) -> Stands:
    if found is None:
        return Stands.NOTHING
    return Stands.DIRECTORY if _is_directory(found) else Stands.OTHER


def _why_no_directory(path: str, refused: wire.Refusal) -> UnitError:
    if refused.code == Status.BAD_MESSAGE:  # how OpenSSH says ENAMETOOLONG
        return UnitRefused(f"the target cannot hold a file of that name: {refused.message}")
    return NotTaken(f"the target allows no directory {path}: {refused.message}")


def _is_file(found: wire.Attributes) -> bool:
    return found.mode is not None and stat.S_ISREG(found.mode)


def _why_not_renamed(refused: wire.Refusal, found: wire.Attributes | None, *, replaces: bool) -> UnitError:
    if found is not None and not (replaces and _is_file(found)):
        return taken()
    if refused.code == Status.OP_UNSUPPORTED:
        return NotTaken("the server cannot replace a file in one step; set existing = same-or-refuse")
    if refused.code == Status.PERMISSION_DENIED:
        return NotTaken("the target allows no such file there; give the account the right to write")
    return UnitError(f"the target cannot give it its name: {refused.message}")

"""The durable record of one stream: what was delivered where, with which digest and proof, and what failed why.

SQLite with a rollback journal (TRUNCATE) and ``synchronous=FULL``: what :meth:`Ledger.deliver` returned from is
on disk. No WAL: older SQLite can corrupt it (https://www.sqlite.org/wal.html#walresetbug), and it does not work
on network file systems.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from mistamover import fs
from mistamover.errors import Held, LedgerError
from mistamover.unit import Content, Identity, Record, State, Unit

VERSION = 2
LOCK = "lock"
"""Whoever runs the stream holds it."""
TIMEOUT = 10.0
"""Seconds to wait for another process that reads or writes."""

_SCHEMA = """
CREATE TABLE delivery (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path BLOB NOT NULL,
    target TEXT NOT NULL,
    state TEXT NOT NULL,
    dev INTEGER NOT NULL, ino INTEGER NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    algorithm TEXT NOT NULL DEFAULT '', digest TEXT NOT NULL DEFAULT '', proof TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    next_try REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    changed REAL NOT NULL
) STRICT;
CREATE INDEX delivery_open ON delivery (path, target) WHERE state <> 'removed';
"""

_MIGRATIONS = {
    2: """
CREATE TABLE content (
    delivery INTEGER NOT NULL,
    path BLOB NOT NULL,
    size INTEGER NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (delivery, path)
) STRICT, WITHOUT ROWID;
CREATE TABLE handshake (
    receipt BLOB NOT NULL,
    target TEXT NOT NULL,
    path BLOB NOT NULL,
    dev INTEGER NOT NULL, ino INTEGER NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    digest TEXT NOT NULL, md5 TEXT NOT NULL, attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    thankyou BLOB NOT NULL DEFAULT x'',
    asked REAL NOT NULL,
    PRIMARY KEY (receipt, target)
) STRICT;
"""
}
"""What makes a ledger of the version before one of this version."""

_MANIFESTS = """
CREATE TABLE IF NOT EXISTS manifest (
    target TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    name TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    PRIMARY KEY (target, first)
) STRICT
"""
_LAST_MANIFEST = """
SELECT first, last, name, algorithm, (
    SELECT count(*) FROM delivery WHERE id BETWEEN first AND last AND delivery.target = manifest.target
    AND delivery.algorithm = manifest.algorithm AND state IN ('delivered', 'removed') AND manifest.name <> ''
) FROM manifest WHERE target = ? ORDER BY first DESC LIMIT 1
"""
_UNLISTED = """
SELECT id FROM delivery WHERE id > ? AND target = ? AND algorithm = ? AND state IN ('delivered', 'removed')
ORDER BY id
"""
_LISTING_AGAIN = """
SELECT DISTINCT manifest.first, manifest.last, manifest.name, manifest.algorithm, 0
FROM manifest AS open CROSS JOIN delivery AS new CROSS JOIN delivery AS old CROSS JOIN manifest
WHERE open.target = ? AND open.first = ? AND new.id > open.last AND new.id <= ? AND new.target = open.target
AND new.state IN ('delivered', 'removed') AND old.path = new.path AND old.target = new.target
AND old.id < open.first AND old.state IN ('delivered', 'removed') AND manifest.target = new.target
AND old.id BETWEEN manifest.first AND manifest.last AND manifest.name <> ''
"""
_LISTING = """
SELECT path, (
    SELECT digest FROM delivery AS newest WHERE newest.path = delivery.path AND newest.target = delivery.target
    AND newest.algorithm = ? AND newest.state IN ('delivered', 'removed') ORDER BY newest.id DESC LIMIT 1
) FROM delivery WHERE id BETWEEN ? AND ? AND target = ? AND algorithm = ? AND state IN ('delivered', 'removed')
GROUP BY path ORDER BY min(id)
"""

_WAS_ASIDE = "; it was in quarantine: "
"""What stands between why a unit was deleted from quarantine and why it had been there."""
_COLUMNS = "id, path, target, state, size, algorithm, digest, proof, attempts, next_try, reason, changed"


class Stage(str, Enum):
    """How far the handshake about a unit is."""

    ASKED = "asked"
    """It was published, and its receipt is waited for."""
    STALE = "stale"
    """It was sent anew since: a receipt that comes all the same counts for nothing, but is owed a thank-you."""
    ANSWERED = "answered"
    """The thank-you has to be put."""


class Asked(NamedTuple):
    """A receipt that was asked for, and what for."""

    unit: Unit
    receipt: str
    stage: Stage
    asked: float
    """Seconds since the epoch at which the wait for it began."""
    thankyou: str = ""
    """The name of the thank-you that has to be put; its receipt may be that of an older attempt."""


class Manifest(NamedTuple):
    """A list of deliveries that lies at the target."""

    first: int
    """The number of the first delivery that it lists."""
    last: int
    """That of the last one."""
    name: str
    algorithm: str
    lines: int
    """How many it lists."""


class Entry(NamedTuple):
    """One row of the record, for people."""

    id: int
    path: str
    target: str
    state: State
    size: int
    algorithm: str
    digest: str
    proof: str
    attempts: int
    next_try: float
    reason: str
    changed: float
    """Seconds since the epoch at which it came into this state."""


class View:
    """What the record of one stream says, read without holding it; also where there is none yet.

    ``target`` names where the units go (``sftp://user@host/dir``); rows of other targets are not seen.
    """

    def __init__(self, directory: Path, target: str) -> None:
        self.path = directory / "ledger.sqlite"
        self._target = target
        self._db = self._connect()
        try:
            with self._explained():
                self._is_empty = self._has_no("1")
                self._has_waiting = not self._has_no(f"state = '{State.WAITING.value}'")
        except LedgerError:
            self._db.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        with self._explained():
            return _open_to_read(self.path) or _with_schema(sqlite3.connect(":memory:", isolation_level=None))

    def _has_no(self, condition: str) -> bool:
        query = f"SELECT 1 FROM delivery WHERE {condition} LIMIT 1"  # noqa: S608 - ours
        return self._db.execute(query).fetchone() is None

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing of anything."""
        return self._is_empty

    def close(self) -> None:
        """Let go of the record."""
        self._db.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: {error}; nothing is moved without a record{_remedy(error)}") from error

    def record(self, path: str) -> Record | None:
        """What was last known of this path, unless it was moved away for good."""
        if self._is_empty:
            return None
        with self._explained():
            row = self._db.execute(
                "SELECT id, dev, ino, size, mtime_ns, ctime_ns, state, attempts, next_try, reason"
                " FROM delivery WHERE path = ? AND target = ? AND state <> 'removed' ORDER BY id DESC LIMIT 1",
                (os.fsencode(path), self._target),
            ).fetchone()
        return row and Record(row[0], Identity(*row[1:6]), State(row[6]), row[7], row[8], row[9])

    def has_delivered(self, path: str) -> bool:
        """Whether any version of this path was delivered, and not moved away."""
        with self._explained():
            row = self._db.execute(
                "SELECT 1 FROM delivery WHERE path = ? AND target = ?"
                " AND state <> 'removed' AND state = 'delivered'",
                (os.fsencode(path), self._target),
            ).fetchone()
        return row is not None

    def quarantined(self) -> int:
        """How many units are set aside. Asks for more than it needs to, so that SQLite takes the small index."""
        with self._explained():
            query = (
                "SELECT count(*) FROM delivery WHERE target = ? AND state <> 'removed' AND state = 'quarantined'"
            )
            return int(self._db.execute(query, (self._target,)).fetchone()[0])

    def has_ever_delivered(self, path: str) -> bool:
        """Whether any version of this path was delivered, also if its source is gone. Reads the whole record."""
        with self._explained():
            row = self._db.execute(
                "SELECT 1 FROM delivery WHERE path = ? AND target = ?"
                " AND state IN ('delivered', 'removed') LIMIT 1",
                (os.fsencode(path), self._target),
            ).fetchone()
        return row is not None

    def aside(self) -> list[tuple[int, str, Identity, str]]:
        """Number, path, identity and reason of each unit that is set aside, oldest first."""
        with self._explained():
            rows = self._db.execute(
                "SELECT id, path, dev, ino, size, mtime_ns, ctime_ns, reason FROM delivery"
                " WHERE target = ? AND state <> 'removed' AND state = 'quarantined' ORDER BY mtime_ns, id",
                (self._target,),
            ).fetchall()
        return [(row[0], os.fsdecode(row[1]), Identity(*row[2:7]), row[7]) for row in rows]

    def deleted_aside(self, record: int) -> str | None:
        """The path of the unit of this record, if it was, or was to be, deleted from quarantine."""
        with self._explained():
            row = self._db.execute(
                "SELECT path FROM delivery WHERE id = ? AND target = ? AND state = ? AND instr(reason, ?)",
                (record, self._target, State.DELETED, _WAS_ASIDE),
            ).fetchone()
        return row and os.fsdecode(row[0])

    def waiting(self) -> list[tuple[int, str]]:
        """Number and path of each unit that failed and waits for its next try."""
        if not self._has_waiting:
            return []
        with self._explained():
            rows = self._db.execute(
                "SELECT id, path FROM delivery WHERE target = ? AND state <> 'removed' AND state = 'waiting'",
                (self._target,),
            ).fetchall()
        return [(row[0], os.fsdecode(row[1])) for row in rows]

    def when_delivered(self, path: str) -> float | None:
        """When any version of this path was last delivered, or its source removed, in seconds since the epoch.

        None where it never was. Slow without :meth:`Ledger.index_paths`.
        """
        with self._explained():
            row = self._db.execute(
                "SELECT max(changed) FROM delivery WHERE path = ? AND target = ?"
                " AND state IN ('delivered', 'removed')",
                (os.fsencode(path), self._target),
            ).fetchone()
        return None if row[0] is None else float(row[0])

    def known(self, record: int) -> tuple[str, Identity, bool] | None:
        """Path, identity, and whether it was delivered, of the record with this number."""
        with self._explained():
            row = self._db.execute(
                "SELECT path, dev, ino, size, mtime_ns, ctime_ns, state FROM delivery WHERE id = ?", (record,)
            ).fetchone()
        if row is None:
            return None
        return os.fsdecode(row[0]), Identity(*row[1:6]), row[6] in (State.DELIVERED, State.REMOVED)


class Ledger(View):
    """The record of one stream, held by its one writer."""

    def __init__(self, directory: Path, target: str, algorithm: str) -> None:
        self._algorithm = algorithm
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(f"{directory}: no place for the ledger: {error.strerror}") from error
        if not fs.lock(self._lock):
            os.close(self._lock)
            raise Held(f"{directory}: another mistamover runs this stream; let it end, or stop it")
        try:
            super().__init__(directory, target)
        except BaseException:
            os.close(self._lock)
            raise

    def _connect(self) -> sqlite3.Connection:
        with self._explained():
            return _open(self.path)

    def close(self) -> None:
        """Let go of the record and of its lock."""
        super().close()
        os.close(self._lock)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it itself where the disk is full or fails
                    self._db.execute("ROLLBACK")
                raise

    def index_paths(self) -> None:
        """Have what was moved away found by its path: for the few streams that ask for that."""
        with self._transaction() as db:
            db.execute("CREATE INDEX IF NOT EXISTS delivery_path ON delivery (path, target, id)")

    # -- what happened -----------------------------------------------------------------------------------

    def deliver(self, units: Sequence[Unit], now: float, answered: Iterable[Asked] = ()) -> list[int]:
        """Record units as delivered, on disk when this returns; gives the number of each one's record.

        ``answered`` are the handshakes that came to that.
        """
        with self._transaction() as db:
            for asked in answered:
                self._note(db, asked)
            records = [self._insert(db, unit, State.DELIVERED, now) for unit in units]
            db.executemany(
                "INSERT INTO content VALUES (?,?,?,?)",
                (
                    (record, os.fsencode(content.path), content.size, content.digest)
                    for record, unit in zip(records, units, strict=True)
                    for content in unit.contents
                ),
            )
            return records

    def removed(self, records: Iterable[int], now: float) -> None:
        """Record that the sources of these deliveries are gone."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE delivery SET state = ?, changed = ? WHERE id = ?",
                ((State.REMOVED, now, record) for record in records),
            )

    def wait(self, unit: Unit, attempts: int, next_try: float, reason: str, now: float) -> int:
        """Record a failure: the unit waits until ``next_try`` (seconds since the epoch)."""
        self._has_waiting = True
        with self._transaction() as db:
            return self._insert(db, unit, State.WAITING, now, attempts=attempts, next_try=next_try, reason=reason)

    def quarantine(self, unit: Unit, attempts: int, reason: str, now: float) -> int:
        """Record that a unit is set aside."""
        with self._transaction() as db:
            return self._insert(db, unit, State.QUARANTINED, now, attempts=attempts, reason=reason)

    def delete(self, unit: Unit, reason: str, now: float) -> int:
        """Record that a unit is about to be deleted that was never delivered; gives the number of the record."""
        with self._transaction() as db:
            return self._insert(db, unit, State.DELETED, now, reason=reason)

    def note_deletion(self, record: int, state: State, reason: str, now: float) -> None:
        """Record of a known unit that its source was, or is about to be, deleted, and its state from then on."""
        with self._transaction() as db:
            db.execute(
                "UPDATE delivery SET state = ?, reason = ?, changed = ? WHERE id = ?",
                (state, _storable(reason), now, record),
            )

    def delete_aside(self, record: int, why: str, reason: str, now: float) -> None:
        """Record that a unit is about to be deleted that was set aside for this reason."""
        self.note_deletion(record, State.DELETED, f"{why}{_WAS_ASIDE}{reason}", now)

    def set_aside_again(self, record: int) -> None:
        """Record that a unit is still set aside, for the reason that it was, and not deleted from there."""
        with self._transaction() as db:
            db.execute(
                "UPDATE delivery SET state = ?, reason = substr(reason, instr(reason, ?) + length(?))"
                " WHERE id = ? AND state = ?",
                (State.QUARANTINED, _WAS_ASIDE, _WAS_ASIDE, record, State.DELETED),
            )

    def undo_deletion(self, record: int) -> None:
        """Forget a unit that was to be deleted and was not: it is as if newly found."""
        with self._transaction() as db:
            db.execute("DELETE FROM delivery WHERE id = ? AND state = ?", (record, State.DELETED))

    def release(self, record: int) -> None:
        """Forget that a unit was set aside: it is as if newly found."""
        with self._transaction() as db:
            db.execute("DELETE FROM delivery WHERE id = ? AND state = ?", (record, State.QUARANTINED))

    def stop_waiting(self, records: Iterable[int]) -> None:
        """Forget failures of units that are gone."""
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM delivery WHERE id = ? AND state = ?", ((record, State.WAITING) for record in records)
            )

    # -- manifests ---------------------------------------------------------------------------------------

    def keep_manifests(self) -> None:
        """From now on, know which deliveries no manifest lists: for the few streams that ask for that."""
        self.index_paths()
        with self._transaction() as db:
            db.execute(_MANIFESTS)
            # What was delivered before is in none of them.
            db.execute(
                "INSERT OR IGNORE INTO manifest SELECT ?, 0, coalesce(max(id), 0), '', '' FROM delivery",
                (self._target,),
            )

    def unlisted(self, algorithm: str) -> tuple[Manifest | None, list[int]]:
        """The last manifest, if there is one, and the numbers of the deliveries that none lists, oldest first."""
        with self._explained():
            last = Manifest(*self._db.execute(_LAST_MANIFEST, (self._target,)).fetchone())
            new = self._db.execute(_UNLISTED, (last.last, self._target, algorithm)).fetchall()
        return last if last.name else None, [number for (number,) in new]

    def listing_again(self, before: int, until: int) -> list[Manifest]:
        """The manifests before the one that begins with delivery ``before`` that list what was delivered anew.

        That is, between the end of that one and ``until``, the number of a delivery.
        """
        with self._explained():
            rows = self._db.execute(_LISTING_AGAIN, (self._target, before, until)).fetchall()
        return [Manifest(*row) for row in rows]

    def listing(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        """The paths that a manifest lists, each with the digest of its last delivery."""
        number, algorithm = (manifest.first, manifest.last, self._target), manifest.algorithm
        with self._explained():
            for path, digest in self._db.execute(_LISTING, (algorithm, *number, algorithm)):
                yield os.fsdecode(path), digest

    def reserve(self, manifests: Iterable[Manifest]) -> None:
        """Record the names of manifests, before anything is written under them."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO manifest VALUES (?, ?, ?, ?, ?)",
                ((self._target, one.first, one.first - 1, one.name, one.algorithm) for one in manifests),
            )

    def listed(self, manifests: Iterable[Manifest]) -> None:
        """Record that manifests lie at the target."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE manifest SET last = ? WHERE target = ? AND first = ?",
                ((one.last, self._target, one.first) for one in manifests),
            )

    # -- handshakes --------------------------------------------------------------------------------------

    def note(self, handshakes: Iterable[Asked]) -> None:
        """Record how far handshakes are, on disk when this returns."""
        with self._transaction() as db:
            for asked in handshakes:
                self._note(db, asked)

    def _note(self, db: sqlite3.Connection, asked: Asked) -> None:
        unit = asked.unit
        db.execute(
            "INSERT OR REPLACE INTO handshake VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                os.fsencode(asked.receipt), self._target, os.fsencode(unit.path), *unit.identity, unit.digest,
                unit.md5, unit.attempt, asked.stage, os.fsencode(asked.thankyou), asked.asked,
            ),
        )  # fmt: skip

    def forget(self, receipts: Iterable[str]) -> None:
        """The handshakes by these receipts have ended."""
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM handshake WHERE receipt = ? AND target = ?",
                ((os.fsencode(receipt), self._target) for receipt in receipts),
            )

    def handshakes(self) -> list[Asked]:
        """Those that have not ended, oldest first."""
        with self._explained():
            rows = self._db.execute(
                "SELECT path, dev, ino, size, mtime_ns, ctime_ns, digest, md5, attempt, receipt, state, asked,"
                " thankyou FROM handshake WHERE target = ? ORDER BY asked",
                (self._target,),
            ).fetchall()
        return [
            Asked(
                Unit(os.fsdecode(row[0]), Identity(*row[1:6]), digest=row[6], md5=row[7], attempt=row[8]),
                os.fsdecode(row[9]), Stage(row[10]), row[11], os.fsdecode(row[12]),
            )
            for row in rows
        ]  # fmt: skip

    def _insert(
        self,
        db: sqlite3.Connection,
        unit: Unit,
        state: State,
        now: float,
        *,
        attempts: int = 0,
        next_try: float = 0.0,
        reason: str = "",
    ) -> int:
        path = os.fsencode(unit.path)
        if self._has_waiting:
            # Its failures are answered by what comes now; earlier deliveries stay, they are history.
            db.execute(
                "DELETE FROM delivery WHERE path = ? AND target = ? AND state = 'waiting' AND state <> 'removed'",
                (path, self._target),
            )
        self._is_empty = False
        cursor = db.execute(
            "INSERT INTO delivery (path, target, state, dev, ino, size, mtime_ns, ctime_ns, algorithm, digest,"
            " proof, attempts, next_try, reason, changed) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                path, self._target, state, *unit.identity, self._algorithm if unit.digest else "",
                unit.digest, unit.proof, attempts, next_try, _storable(reason), now,
            ),
        )  # fmt: skip
        assert cursor.lastrowid is not None  # noqa: S101 - an INSERT of one row always has one
        return cursor.lastrowid


_REMEDIES = {
    "SQLITE_FULL": "; make room there",
    "SQLITE_NOTADB": "; put a copy of it back, or move it away and begin a new one",
    "SQLITE_CORRUPT": "; put a copy of it back, or move it away and begin a new one",
}


def _remedy(error: sqlite3.Error) -> str:
    """What to do about it; errors of the module itself have no name."""
    return _REMEDIES.get(getattr(error, "sqlite_errorname", ""), "")


def _storable(text: str) -> str:
    """Text that SQLite takes: lone surrogates, which stand for bytes that are no UTF-8, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=TIMEOUT)
    try:
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = FULL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise LedgerError(f"{path}: written by a newer mistamover (format {version}); upgrade this one")
        if not version:
            return _with_schema(db)
        if version < VERSION:
            db.executescript(_script(_migrations(version)))
        return db
    except BaseException:
        db.close()
        raise


def _migrations(version: int) -> str:
    """What makes a ledger of that version one of ours."""
    return "".join(_MIGRATIONS[number] for number in range(version + 1, VERSION + 1))


def _script(statements: str) -> str:
    return f"BEGIN IMMEDIATE; {statements} PRAGMA user_version = {VERSION}; COMMIT;"


def _open_to_read(path: Path) -> sqlite3.Connection | None:
    """A ledger that somebody else may be writing; None where there is none, or one that was only begun."""
    if not path.exists():
        return None
    db = _connect_to_read(path, "ro")
    try:
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            # A writer crashed: what it left half done, whoever comes first rolls back.
            db.close()
            db = _connect_to_read(path, "rw")
            version = db.execute("PRAGMA user_version").fetchone()[0]
    except BaseException:
        db.close()
        raise
    if version:
        return db
    db.close()
    return None


def _connect_to_read(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=TIMEOUT)


def _with_schema(db: sqlite3.Connection) -> sqlite3.Connection:
    db.executescript(_script(_SCHEMA + _migrations(1)))
    return db


_UNANSWERED = """ AND NOT EXISTS (
    SELECT 1 FROM delivery AS later
    WHERE later.path = delivery.path AND later.target = delivery.target AND later.state <> 'removed'
    AND later.id > delivery.id)"""


def entries(
    path: Path,
    *,
    states: Iterable[State] = (),
    since: float = 0.0,
    record: int | None = None,
    unanswered: bool = False,
) -> Iterator[Entry]:
    """Read a ledger without holding it, oldest change first: all, or those in ``states``, or one ``record``.

    ``unanswered``: without those of a path of which something else was recorded since. In a mirror that was the
    same file, or a newer one in its place; what a move had set aside still lies there.
    """
    wanted = tuple(states)
    where = "changed >= ?" + (f" AND state IN ({','.join('?' * len(wanted))})" if wanted else "")
    values: list[object] = [since, *wanted]
    if record is not None:
        where += " AND id = ?"
        values.append(record)
    if unanswered:
        where += _UNANSWERED
    try:
        if (db := _open_to_read(path)) is None:
            return
        try:
            for row in db.execute(
                f"SELECT {_COLUMNS} FROM delivery WHERE {where} ORDER BY changed, id",  # noqa: S608 - no values in it
                values,
            ):
                yield Entry(row[0], os.fsdecode(row[1]), row[2], State(row[3]), *row[4:])
        finally:
            db.close()
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: cannot be read: {error}{_remedy(error)}") from error


def contents(path: Path, record: int) -> list[Content]:
    """The files of a directory that was delivered, by the number of its record; of a file there are none."""
    try:
        if (db := _open_to_read(path)) is None:
            return []
        try:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'content'").fetchone():
                return []  # written by an earlier version
            rows = db.execute("SELECT path, size, digest FROM content WHERE delivery = ? ORDER BY path", (record,))
            return [Content(os.fsdecode(row[0]), row[1], row[2]) for row in rows]
        finally:
            db.close()
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: cannot be read: {error}{_remedy(error)}") from error

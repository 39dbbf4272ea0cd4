"""One pass of the arrivals monitor: what others have pushed is proven, moved into the spool, and answered for.

Each file that something proves is a job, and each state of a job can be told from the disk alone, so that every
step may be repeated after a crash. A job lies in ``SPOOL/.mistamover/.arrivals``, out of reach of those who push::

    ID.job        what is claimed of the file; later also what was found, which is the decision
    ID.data       the file, once it was taken out of the directory of arrivals; or a whole bag
    ID.proof      what proves it, where that is to follow it
    HASH.receipt  a job that is done, until its receipt is thanked for: only what is here was written by us
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, Self

from mistamover import digest, foreign, fs, handshake
from mistamover.errors import Held, SpoolError, is_shortage
from mistamover.events import Event, Kind, Report, nothing
from mistamover.foreign import Refused
from mistamover.handshake import Control, Extensions, Receipt, Status
from mistamover.options import Settings
from mistamover.spool import QUARANTINE, REASON
from mistamover.unit import OWN_NAME, Identity, Unit

PLACE = f"{OWN_NAME}/.arrivals"
"""No stream that stages in the spool can have this name."""
TOGETHER = 256
MANY = 16
"""Jobs that are put on disk, and answered, TOGETHER; if they are MANY, by one syncfs(2)."""
LARGEST_JOB = 2**20
"""Bytes of the file of a job: a few names, and a reason that may hold a path."""
ASIDE = "arrival-"
"""What begins the names of directories in quarantine that are not those of units."""


# -- what proves an arrival --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What somebody says of a file that has arrived."""

    name: str
    """Of the file, in the directory of arrivals."""
    size: int
    """-1 where nobody says."""
    digests: Mapping[str, str]
    """By algorithm; all of them have to be right."""
    proof: str
    """The name of the file that says so, which is dealt with once the claim is taken up; empty where it stays."""
    seen: Identity
    """That file as it was read."""
    receipt: str = ""
    """The name of the receipt that is waited for; empty where none is."""
    follows: bool = False
    """Whether the proof goes into the spool too; else it is removed."""
    is_bag: bool = False
    """Whether it is a directory, which proves itself."""


class Ready(NamedTuple):
    """A file that can be proven."""

    claim: Claim


class NotYet(NamedTuple):
    """Something that may become a proof, or whose file may still be arriving."""

    name: str
    reason: str
    is_told: bool = False
    """Whether it is a file that waits for a proof, and people should know."""


class Wrong(NamedTuple):
    """Something that can never be a proof: it is set aside."""

    name: str
    reason: str


Judgement = Ready | NotYet | Wrong


class Prover(Protocol):
    """A kind of proof: finds in the directory of arrivals what says of which files that they are whole."""

    def judge(self, names: Iterable[str], dir_fd: int, now: float) -> Iterator[Judgement]:
        """Judge all that is a proof among these names; ``now`` in seconds since the epoch."""


class Stager:
    """Proof by the control files of the handshake."""

    def __init__(self, settings: Settings) -> None:
        self._extensions = _extensions(settings)
        self._stop_file = settings.incoming.stop_file
        self._flattens = settings.incoming.flatten

    def judge(self, names: Iterable[str], dir_fd: int, now: float) -> Iterator[Judgement]:
        """Read each control file, and see whether its data file is there."""
        for name in names:
            if name.startswith(".") and name.endswith(f".{self._extensions.control}"):
                judgement = self._judge(name, dir_fd, now)
                if judgement is not None:
                    yield judgement

    def _judge(self, name: str, dir_fd: int, now: float) -> Judgement | None:
        try:
            data, found = handshake.read(name, dir_fd)
            control = self._proven(name, handshake.parse_control(data))
        except FileNotFoundError:
            return None
        except (Refused, OSError) as error:
            if is_shortage(error):
                raise
            what = _said(error)
            is_young = _age(name, dir_fd, now) < handshake.YOUNG
            return NotYet(name, f"not readable yet: {what}") if is_young else Wrong(name, what)
        digests = {"md5": control.md5} | ({"sha256": control.sha256} if control.sha256 else {})
        claim = Claim(control.name, control.size, digests, name, Identity.of(found), control.receipt)
        return self._looked_for(claim, dir_fd, now)

    def _proven(self, name: str, control: Control) -> Control:
        if name != handshake.control_name(control.name, self._extensions):
            raise Refused("it is named after another file than it is about")
        ends = f".{self._extensions.control}", f".{self._extensions.thankyou}"
        if control.receipt == self._stop_file or control.receipt.endswith(ends):
            raise Refused("it asks for a receipt under a name that is not for receipts")
        if self._flattens and "%" in control.name:
            handshake.unflattened(control.name)
        return control

    @staticmethod
    def _looked_for(claim: Claim, dir_fd: int, now: float) -> Judgement:
        """The claim, unless its file may still be arriving."""
        try:
            fd = os.open(claim.name, fs.FILE, dir_fd=dir_fd)
        except OSError:
            # Nothing, or nothing to read: that is told by the job, in time.
            is_young = now - claim.seen.mtime_ns / 1e9 < handshake.YOUNG
            return NotYet(claim.proof, "its data file is not there yet") if is_young else Ready(claim)
        try:
            is_written = fs.is_being_written(fd)
            return NotYet(claim.proof, "its data file is being written") if is_written else Ready(claim)
        finally:
            os.close(fd)


def _age(name: str, dir_fd: int, now: float) -> float:
    """Seconds since something was changed; infinity for times in the future, which prove nothing."""
    try:
        age = now - os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0
    return age if age >= 0 else handshake.YOUNG


# -- jobs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A claim that was taken up, and what was found."""

    id: str
    claim: Claim
    found: Receipt | None = None
    """The decision; None while there is none."""
    reason: str = ""
    """Why the file is not what it should be."""

    @property
    def file(self) -> str:
        """Its own name."""
        return f"{self.id}.job"

    @property
    def data(self) -> str:
        """The name of its file."""
        return f"{self.id}.data"

    @property
    def proof(self) -> str:
        """The name of what proves it."""
        return f"{self.id}.proof"

    def text(self) -> bytes:
        """What is written of it."""
        return json.dumps({**vars(self), "claim": vars(self.claim)}).encode()


class _NotOurs(Refused):
    """Whoever owns the spool can put files, or our own ones under other names, where our jobs lie."""

    def __str__(self) -> str:
        return "somebody else put it among our jobs; look who may write in this spool"


def _read_job(name: str, dir_fd: int) -> Job:
    """The job, or its record, in a file that we have written under this very name; raises :class:`Refused`."""
    data, found = foreign.read(name, LARGEST_JOB, dir_fd)
    if not foreign.is_ours(found):
        raise _NotOurs
    try:
        job = _job(foreign.members(data))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Refused("it is no job") from error
    if name not in (job.file, _receipt_record(job.claim.receipt)):
        raise _NotOurs
    return job


def _job(said: Mapping[str, Any]) -> Job:
    claim, found = said["claim"], said["found"]
    return Job(
        said["id"],
        Claim(**{**claim, "seen": Identity(*claim["seen"])}),
        found and Receipt(found[0], Status(found[1]), *found[2:]),
        said["reason"],
    )


def _receipt_record(receipt: str) -> str:
    return f"{sha256(os.fsencode(receipt)).hexdigest()[:32]}.receipt"


def _extensions(settings: Settings) -> Extensions:
    incoming = settings.incoming
    return Extensions(
        incoming.control_file_extension, incoming.receipt_file_extension, incoming.thankyou_file_extension
    )


def _said(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


class Arrivals:
    """The directory into which others push, and the spool into which it is emptied; held by this process."""

    def __init__(
        self,
        settings: Settings,
        report: Report,
        prover: Prover | None = None,
        *,
        breathe: Callable[[], object] = nothing,
    ) -> None:
        assert settings.incoming.directory is not None  # noqa: S101 - the configuration was checked
        self._incoming = settings.incoming
        self._extensions = _extensions(settings)
        self._prover = prover or Stager(settings)
        self._report = report
        self._breathe = breathe
        self._buffer = bytearray(digest.CHUNK)
        self._held_up: set[str] = set()
        """Paths that an older file could not get in this pass, and that newer ones must not get before it."""
        self._compared: dict[str, Identity] = {}
        """Jobs whose names are taken, and by what, which was found to be another file."""
        self.why_paused = ""
        """Why nothing is taken; empty where it is."""
        self._directory = settings.incoming.directory
        self._opened = ExitStack()
        try:
            self._arrived = self._open(self._directory, "the directory of arrivals")
            spool = self._open(settings.data_stream.directory, "the spool")
            self._place = fs.open_directory(spool, PLACE, create=True)
            self._opened.callback(os.close, self._place)
            self._hold()
        except BaseException:
            self._opened.close()
            raise
        self._spool = fs.Below(spool)
        self._opened.callback(self._spool.forget)

    def _open(self, directory: Path, what: str) -> int:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SpoolError(f"{directory}: {what} cannot be opened: {error.strerror}") from error
        self._opened.callback(os.close, fd)
        return fd

    def _hold(self) -> None:
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._place)
        self._opened.callback(os.close, lock)
        if not fs.lock(lock):
            raise Held(f"{self._directory}: another mistamover receives into this spool; let it end, or stop it")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    # -- a pass ------------------------------------------------------------------------------------------

    def run_pass(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """Take all that has arrived and is proven, and answer for it."""
        try:
            self._run_pass(is_stopping)
        except OSError as error:
            raise SpoolError(f"{self._directory}: {error.strerror}; nothing is received") from error

    def _run_pass(self, is_stopping: Callable[[], bool]) -> None:
        self._look_at_place()
        stop_file = self._incoming.stop_file
        is_paused = fs.is_there(stop_file, self._arrived)
        self.why_paused = f"paused by {self._directory}/{stop_file}; remove it to go on" if is_paused else ""
        if is_paused:
            self._report(Event(Kind.PAUSED, reason=self.why_paused))
            return
        self._held_up.clear()
        self._work_off(self._open_jobs(), is_stopping)
        names = os.listdir(self._arrived)
        self._work_off(map(self._take_up, self._claims(names)), is_stopping)
        for name in names:
            if name.startswith(".") and name.endswith(f".{self._extensions.thankyou}") and not is_stopping():
                self._take_thanks(name)

    def _look_at_place(self) -> None:
        """Raise :class:`SpoolError` where another directory has the name by now: replaced, or mounted over."""
        if not os.path.samestat(os.stat(self._directory), os.fstat(self._arrived)):
            raise SpoolError(f"{self._directory}: another directory took the place of that of arrivals")

    def _claims(self, names: Iterable[str]) -> Iterator[Claim]:
        for judgement in self._prover.judge(names, self._arrived, time.time()):
            self._breathe()
            if isinstance(judgement, Ready):
                yield judgement.claim
            elif isinstance(judgement, Wrong):
                self._set_aside(judgement.name, judgement.reason)
            elif judgement.is_told:
                self._report(Event(Kind.WAITING, judgement.name, judgement.reason))

    def _work_off(self, jobs: Iterable[Job], is_stopping: Callable[[], bool]) -> None:
        """Bring jobs to their end, some at a time."""
        every = iter(jobs)
        while not is_stopping() and (some := list(islice(every, TOGETHER))):
            self._end(self._decided(some, is_stopping))

    def _decided(self, jobs: Iterable[Job], is_stopping: Callable[[], bool]) -> list[Job]:
        """Those of the jobs that have a decision, which with all that it is about is on disk."""
        decided = [job if job.found else self._decide(job) for job in jobs if job.found or not is_stopping()]
        self._sync([job for job in decided if job.found])
        return decided

    # -- a job, step by step -----------------------------------------------------------------------------

    def _take_up(self, claim: Claim) -> Job:
        job = Job(os.urandom(8).hex(), claim)
        self._write(job)
        return job

    def _write(self, job: Job) -> None:
        draft = f"{job.id}.new"
        with open(fs.create(draft, self._place, 0o600), "wb") as file:
            file.write(job.text())
        os.rename(draft, job.file, src_dir_fd=self._place, dst_dir_fd=self._place)

    def _open_jobs(self) -> list[Job]:
        """What an earlier pass has left, oldest first: jobs that a crash cut off, or whose names are taken."""
        jobs: list[Job] = []
        files: list[str] = []
        for name in os.listdir(self._place):
            kind = name.rpartition(".")[2]
            if kind == "job":
                jobs += self._read(name)
            elif kind in ("data", "proof"):
                files.append(name)
            elif kind in ("new", "copy"):
                os.unlink(name, dir_fd=self._place)
        for name in set(files) - {name for job in jobs for name in (job.data, job.proof)}:
            self._quarantine(name, name, "what was claimed of it is lost; its sender sends it again")
        return sorted(jobs, key=lambda job: job.claim.seen.ctime_ns)

    def _read(self, name: str) -> list[Job]:
        """The job of that name; none where a power cut has left nothing of it, or it is not ours."""
        try:
            return [_read_job(name, self._place)]
        except Refused as why:
            os.unlink(name, dir_fd=self._place)
            if isinstance(why, _NotOurs):
                self._report(Event(Kind.REFUSED, f"{PLACE}/{name}", str(why)))
            return []

    def _decide(self, job: Job) -> Job:
        """Take the file out of the reach of others, and see whether it is what was claimed.

        The file goes first: to a sender that looks, a file without its control file is one that nobody has taken.
        """
        claim = job.claim
        try:
            try:
                self._capture(job)
            finally:
                self._take_proof(job)
            found, reason = self._look(job)
        except OSError as error:
            if is_shortage(error):
                raise
            found, reason = (Status.IO_ERROR, -1, ""), f"cannot be read: {error.strerror}"
        job = replace(job, found=Receipt(claim.name, *found, self._thankyou(claim)), reason=reason)
        self._write(job)
        return job

    def _take_proof(self, job: Job) -> None:
        """Remove what was read, or take it along; not what took its place since: that is another attempt."""
        claim = job.claim
        if not claim.proof:
            return
        with suppress(FileNotFoundError):
            if Identity.of(os.stat(claim.proof, dir_fd=self._arrived, follow_symlinks=False)) != claim.seen:
                return
            if claim.follows:
                self._take(claim.proof, job.proof)
            else:
                os.unlink(claim.proof, dir_fd=self._arrived)

    def _capture(self, job: Job) -> None:
        name = job.claim.name
        if fs.is_there(job.data, self._place) or not fs.is_there(name, self._arrived):
            return
        if not job.claim.is_bag and not _is_regular(name, self._arrived):
            self._set_aside(name, "it is no regular file")
            return
        with suppress(FileNotFoundError):
            self._take(name, job.data)

    def _take(self, name: str, taken: str) -> None:
        try:
            os.rename(name, taken, src_dir_fd=self._arrived, dst_dir_fd=self._place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            if self._incoming.control == "bagit":
                where = f"{self._directory}: whole bags are taken by one rename"
                raise SpoolError(f"{where}; have it on the file system of the spool") from error
            self._copy(name, taken)

    def _copy(self, name: str, taken: str) -> None:
        """Take over a file from another file system: what is proven then is the copy."""
        draft = f"{taken}.copy"
        source = os.open(name, fs.FILE, dir_fd=self._arrived)
        try:
            found = os.fstat(source)
            with open(fs.create(draft, self._place, found.st_mode & 0o777), "wb") as file:
                digest.read_into(lambda part: _write(file, part), source, self._buffer, self._tick)
                os.utime(file.fileno(), ns=(found.st_mtime_ns, found.st_mtime_ns))
            os.rename(draft, taken, src_dir_fd=self._place, dst_dir_fd=self._place)
            if os.path.samestat(found, os.stat(name, dir_fd=self._arrived, follow_symlinks=False)):
                os.unlink(name, dir_fd=self._arrived)
        finally:
            os.close(source)

    def _look(self, job: Job) -> tuple[tuple[Status, int, str], str]:
        """Status, size and MD5 of what was captured, and what is wrong with it."""
        claim = job.claim
        try:
            fd = os.open(job.data, fs.FILE, dir_fd=self._place)
        except FileNotFoundError:
            return (Status.NO_DATA, -1, ""), "there is no such data file"
        try:
            if claim.is_bag:
                return self._look_at_bag(fd)
            found = Identity.of(os.fstat(fd))
            size = found.size
            if claim.size not in (size, -1):
                return (Status.BAD_SIZE, size, ""), f"it has {size:,} bytes, and {claim.size:,} were claimed"
            digests = self._digests(fd, {"md5", *claim.digests} if claim.receipt else claim.digests)
            if Identity.of(os.fstat(fd)) != found or fs.is_being_written(fd):
                return (Status.BAD_CHECKSUM, size, ""), "somebody wrote into it while it was proven"
        finally:
            os.close(fd)
        for algorithm, expected in claim.digests.items():
            if digests[algorithm] != expected:
                wrong = f"its {algorithm} is {digests[algorithm]}, and {expected} was claimed"
                return (Status.BAD_CHECKSUM, size, digests.get("md5", "")), wrong
        return (Status.SUCCESS, size, digests.get("md5", "")), ""

    def _look_at_bag(self, fd: int) -> tuple[tuple[Status, int, str], str]:
        """The same of a bag; its size is that of all its files."""
        from mistamover.bags import prove  # an extra: only those who ask for it need it

        size, wrong = prove(fd, self._buffer, self._tick)
        return (Status.BAD_CHECKSUM if wrong else Status.SUCCESS, size, ""), wrong

    def _digests(self, fd: int, algorithms: Iterable[str]) -> dict[str, str]:
        hashers = {algorithm: digest.ALGORITHMS[algorithm]() for algorithm in algorithms}
        if not hashers:
            return {}
        update = digest.together(*hashers.values())
        digest.read_into(update, fd, self._buffer, self._tick)
        return {algorithm: hasher.hexdigest() for algorithm, hasher in hashers.items()}

    def _tick(self, _size: int) -> None:
        self._breathe()

    def _thankyou(self, claim: Claim) -> str:
        name = handshake.thankyou_name(claim.name, time.time(), self._extensions)
        if handshake.is_plain(name):
            return name
        return handshake.thankyou_name(sha256(os.fsencode(claim.name)).hexdigest(), time.time(), self._extensions)

    def _sync(self, jobs: Sequence[Job]) -> None:
        """Have decisions and files on disk, before anybody is told of them."""
        is_much = len(jobs) >= MANY or any(job.claim.is_bag for job in jobs)
        if is_much and fs.sync_file_system(self._place):
            return
        for name in (name for job in jobs for name in (job.file, job.data, job.proof)):
            with suppress(FileNotFoundError):
                fd = os.open(name, fs.FILE, dir_fd=self._place)
                os.fsync(fd)
                os.close(fd)
        if jobs:
            fs.sync_directory(self._place)

    def _end(self, jobs: Sequence[Job]) -> None:
        """Carry decisions out, and answer."""
        ended: list[Job] = []
        for job in jobs:
            assert job.found is not None  # noqa: S101 - they are decided
            if job.found.status is not Status.SUCCESS:
                self._refuse(job, job.found)
                ended.append(job)
            elif self._publish(job, job.found) and self._publish_proof(job):
                ended.append(job)
        for directory in {self._path(job).rpartition("/")[0] for job in ended}:
            with suppress(FileNotFoundError):
                fs.sync_directory(self._spool.directory(directory))
        for job in ended:
            self._answer(job)

    # -- decisions carried out ---------------------------------------------------------------------------

    def _path(self, job: Job) -> str:
        """Where a file belongs in the spool."""
        name = job.claim.name
        return handshake.unflattened(name) if self._incoming.flatten else name

    def _publish(self, job: Job, found: Receipt) -> bool:
        """Give a file that is proven its name in the spool; whether it has that."""
        path = self._path(job)
        if not fs.is_there(job.data, self._place):
            return True  # it had it before a crash
        if path in self._held_up:
            self._report(Event(Kind.WAITING, path, "an older file of that name waits"))
            return False
        unit = Unit(path, Identity.of(os.stat(job.data, dir_fd=self._place, follow_symlinks=False)))
        try:
            directory, _, name = path.rpartition("/")
            parent = self._spool.directory(directory, create=bool(directory))
            if self._incoming.existing == "replace":
                os.rename(job.data, name, src_dir_fd=self._place, dst_dir_fd=parent)
            else:
                fs.rename_new(job.data, self._place, name, parent)
        except OSError as error:
            self._spool.forget()
            if not self._is_same(job, path):
                taken = isinstance(error, FileExistsError)
                reason = "the spool holds another file of that name" if taken else f"the spool: {error.strerror}"
                self._report(Event(Kind.WAITING, path, f"{reason}; it waits until that is gone"))
                if self._incoming.existing == "replace":
                    self._held_up.add(path)
                return False
            os.unlink(job.data, dir_fd=self._place)
        self._compared.pop(job.id, None)
        self._report(Event(Kind.ARRIVED, path, f"{found.size:,} bytes, {_digest_said(job.claim, found)}", unit))
        return True

    def _publish_proof(self, job: Job) -> bool:
        """Give what proves a file its name beside it; whether it has that."""
        if not fs.is_there(job.proof, self._place):
            return True
        name = job.claim.proof
        root = self._spool.directory("")
        try:
            if self._incoming.existing == "replace":
                os.rename(job.proof, name, src_dir_fd=self._place, dst_dir_fd=root)
            else:
                fs.rename_new(job.proof, self._place, name, root)
        except FileExistsError:
            mine = _text(job.proof, self._place)
            if mine is None or mine != _text(name, root):
                reason = "the spool holds another file of that name; it waits until that is gone"
                self._report(Event(Kind.WAITING, name, reason))
                return False
            os.unlink(job.proof, dir_fd=self._place)
        return True

    def _is_same(self, job: Job, path: str) -> bool:
        """Whether the spool's file of that name is what the job is about, byte for byte."""
        try:
            parent, name = self._spool.parent(path)
            fd = os.open(name, fs.FILE, dir_fd=parent)
        except OSError:
            self._spool.forget()
            return False
        try:
            found = os.fstat(fd)
            identity = Identity.of(found)
            if job.claim.is_bag or not stat.S_ISREG(found.st_mode) or self._compared.get(job.id) == identity:
                return False
            if self._is_alike(fd, found.st_size, job):
                os.fsync(fd)
                return True
            self._compared[job.id] = identity
            return False
        finally:
            os.close(fd)

    def _is_alike(self, fd: int, size: int, job: Job) -> bool:
        """Whether an open file has the very bytes of the job's."""
        mine = os.open(job.data, fs.FILE, dir_fd=self._place)
        try:
            if size != os.fstat(mine).st_size:
                return False
            digests = dict(job.claim.digests) or self._digests(mine, ("sha256",))
            return self._digests(fd, digests) == digests
        finally:
            os.close(mine)

    def _refuse(self, job: Job, found: Receipt) -> None:
        if not self._quarantine(job.data, job.claim.name, job.reason):
            self._report(Event(Kind.REFUSED, found.name, job.reason))
        self._quarantine(job.proof, job.claim.proof, f"it proves {job.claim.name}, and {job.reason}")

    def _quarantine(self, source: str, name: str, reason: str) -> bool:
        """Set a file of ours aside with the reason; whether there was one."""
        if not fs.is_there(source, self._place):
            return False
        self._move_aside(source, self._place, name, reason)
        return True

    def _set_aside(self, name: str, reason: str) -> None:
        """Set something aside that lies among the arrivals and is not what it should be."""
        try:
            self._move_aside(name, self._arrived, name, reason)
        except OSError as error:
            self._report(Event(Kind.REFUSED, name, f"{reason}; it cannot be set aside: {error.strerror}"))

    def _move_aside(self, source: str, source_fd: int, name: str, reason: str) -> None:
        place = f"{ASIDE}{os.urandom(4).hex()}"
        aside = self._spool.directory(f"{QUARANTINE}/{place}", create=True)
        with open(fs.create(REASON, aside, 0o644), "wb") as file:
            file.write(os.fsencode(f"{name}\n{reason}\n"))
        try:
            fs.rename_aside(source, source_fd, name, aside)
        except OSError:
            os.unlink(REASON, dir_fd=aside)
            os.rmdir(place, dir_fd=self._spool.directory(QUARANTINE))
            raise
        self._report(Event(Kind.REFUSED, name, reason))

    # -- answers -----------------------------------------------------------------------------------------

    def _answer(self, job: Job) -> None:
        """Write the receipt, if one is waited for, and remember that it is ours."""
        assert job.found is not None  # noqa: S101 - it is decided
        receipt = job.claim.receipt
        if receipt and self._write_receipt(receipt, job.found, f".{OWN_NAME[1:]}-{job.id}.new"):
            record = _receipt_record(receipt)
            os.rename(job.file, record, src_dir_fd=self._place, dst_dir_fd=self._place)
        else:
            os.unlink(job.file, dir_fd=self._place)

    def _write_receipt(self, name: str, receipt: Receipt, draft: str) -> bool:
        """Whether it is there; whatever else has its name stays as it is."""
        text = handshake.receipt_text(receipt)
        try:
            handshake.write(name, text, self._arrived, draft)
        except FileExistsError:
            os.unlink(draft, dir_fd=self._arrived)
            if _text(name, self._arrived) == text:
                return True
            self._report(Event(Kind.REFUSED, name, "it is asked for as a receipt, and the name is taken"))
            return False
        return True

    def _take_thanks(self, name: str) -> None:
        """Remove a receipt that was thanked for, and the thank-you."""
        try:
            receipt = handshake.parse_thankyou(handshake.read(name, self._arrived)[0])
            self._remove_receipt(receipt, name)
        except FileNotFoundError:
            return
        except (Refused, OSError) as error:
            if not is_shortage(error) and _age(name, self._arrived, time.time()) >= handshake.YOUNG:
                self._set_aside(name, _said(error))
            return
        os.unlink(name, dir_fd=self._arrived)

    def _remove_receipt(self, receipt: str, thankyou: str) -> None:
        """Remove a receipt of ours that asked for this very thank-you; raises ``Refused`` where it is none."""
        record = _receipt_record(receipt)
        if not fs.is_there(record, self._place):
            if fs.is_there(receipt, self._arrived):
                raise Refused("it thanks for something that is no receipt of ours")
            return  # removed before a crash
        found = _read_job(record, self._place).found
        if found is None or found.thankyou != thankyou:
            raise Refused("its receipt asks for another thank-you")
        if _text(receipt, self._arrived) == handshake.receipt_text(found):
            os.unlink(receipt, dir_fd=self._arrived)
        os.unlink(record, dir_fd=self._place)


class Aside(NamedTuple):
    """Something that was set aside at its arrival."""

    number: str
    """The name of the directory in quarantine that it lies in."""
    since: float
    """Seconds since the epoch."""
    name: str
    reason: str


def set_aside(spool: Path) -> list[Aside]:
    """What was set aside at its arrival, oldest first."""
    found: list[Aside] = []
    for place in (spool / QUARANTINE).glob(f"{ASIDE}*"):
        with suppress(OSError, Refused):
            name, _, reason = os.fsdecode(foreign.read(place / REASON, LARGEST_JOB)[0]).partition("\n")
            if handshake.is_plain(name) and os.path.lexists(place / name):
                found.append(Aside(place.name, place.stat().st_mtime, name, reason.rstrip("\n")))
    return sorted(found, key=lambda one: (one.since, one.number))


def _digest_said(claim: Claim, found: Receipt) -> str:
    """What the log says of the digest of what arrived."""
    if found.md5:
        return f"md5 {found.md5}"
    if claim.is_bag:
        return "a bag"
    return " ".join(f"{algorithm} {digest}" for algorithm, digest in claim.digests.items()) or "no digest claimed"


def _write(file: IO[bytes], part: memoryview) -> None:
    file.write(part)


def _is_regular(name: str, dir_fd: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _text(name: str, dir_fd: int) -> bytes | None:
    """What a small file holds; None where there is none."""
    try:
        return handshake.read(name, dir_fd)[0]
    except (Refused, OSError):
        return None

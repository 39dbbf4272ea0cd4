"""What a lane does with directories: staged file by file, verified file by file, published in one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from mistamover.directories import DirectorySpool, digest_of, of_directory
from mistamover.errors import NameTaken, NotTaken, SourceGone, SourceMoved, UnitError
from mistamover.lane import Lane, already_there, stage
from mistamover.lane import deliver as deliver_files
from mistamover.packages import packaged
from mistamover.transports.contract import Proof, Transport
from mistamover.unit import Content, Directory, Outcome, Unit, batches

_STRENGTH = [proof.value for proof in Proof]


def deliver(transport: Transport, batch: Sequence[Unit], lane: Lane) -> Iterator[Outcome]:
    """Deliver directories, one after the other: all of one, or nothing of it."""
    for unit in batch:
        try:
            yield Outcome(_deliver(transport, unit, lane))
        except UnitError as error:
            yield Outcome(unit, error)


def deliver_packages(transport: Transport, batch: Sequence[Unit], lane: Lane) -> Iterator[Outcome]:
    """Deliver directories as archives, one after the other: only one is there at a time."""
    for unit in batch:
        try:
            lane.enter("packaging")
            with packaged(transport.settings, unit, transport.tick) as archive:
                (outcome,) = deliver_files(transport, [archive], lane)
        except UnitError as error:
            yield Outcome(unit, error)
        else:
            sent, why = outcome
            if isinstance(why, SourceGone):
                why = SourceMoved("somebody removed its archive")  # the directory is there
            yield Outcome(unit._replace(digest=sent.digest, proof=sent.proof), why)


def _deliver(transport: Transport, unit: Unit, lane: Lane) -> Unit:
    spool = transport.spool
    assert isinstance(spool, DirectorySpool)  # noqa: S101 - that of a stream of directories
    found = spool.look(unit)
    tree = found._replace(files=_named(unit, found.files))
    if unit.may_be_there and (there := _all_there(transport, tree, lane)):
        return _delivered(transport, tree, there)
    try:
        placed = list(_placed(transport, tree, lane))
        if spool.identity(unit.path) != unit.identity:
            raise SourceMoved("something in it changed while it was sent")
        lane.enter("publishing")
        files = _publish(transport, tree._replace(files=placed))
    except UnitError:
        transport.discard_directories([unit])
        raise
    return _delivered(transport, tree, files)


def _named(unit: Unit, files: Sequence[Unit]) -> list[Unit]:
    """The files of a directory with staged names that begin as its own."""
    return [file._replace(staged=f"{unit.staged}{number:06x}") for number, file in enumerate(files)]


def _placed(transport: Transport, tree: Directory, lane: Lane) -> Iterator[Unit]:
    """Stage, verify, and put in their places, the files of a directory; the first that fails ends it."""
    for part in batches(tree.files):
        lane.enter("sending")
        failed: list[Outcome] = []
        proving = chain.from_iterable(stage(transport, part, failed))
        lane.enter("verifying")
        proven = _good(transport, chain(failed, proving))
        yield from _good(transport, transport.place(tree.unit, proven))


def _good(transport: Transport, outcomes: Iterator[Outcome]) -> list[Unit]:
    """The units of all outcomes; where one is an error, discards the others and raises it as the directory's."""
    every = list(outcomes)
    for file, error in every:
        if error is not None:
            transport.discard(unit for unit, _ in every)
            # A name in our own tree that is taken: the next try makes the tree anew.
            raise of_directory(file, NotTaken(str(error)) if isinstance(error, NameTaken) else error)
    return [unit for unit, _ in every]


def _publish(transport: Transport, tree: Directory) -> Sequence[Unit]:
    """Publish a directory; what stands under its name and is the same counts as published. Gives its files."""
    try:
        transport.publish_directory(tree)
    except NameTaken:
        there = _compare(transport, tree)
        if there is None:
            raise
        transport.discard_directories([tree.unit])
        return there
    return tree.files


def _compare(transport: Transport, tree: Directory) -> Sequence[Unit] | None:
    """The files of a directory, proven by what stands under its name; None where that is not the same."""
    if transport.entries(tree.unit) - tree.entries:
        return None
    compared = list(transport.compare(tree.files))
    return None if any(error for _, error in compared) else [unit for unit, _ in compared]


def _all_there(transport: Transport, tree: Directory, lane: Lane) -> Sequence[Unit] | None:
    """The files of a directory that the target holds as it is, which need not be sent."""
    there = already_there(transport, tree.files, lane)
    if len(there) < len(tree.files):
        return None
    try:
        return None if transport.entries(tree.unit) - tree.entries else list(there.values())
    except NameTaken:
        return None


def _delivered(transport: Transport, tree: Directory, files: Sequence[Unit]) -> Unit:
    """The directory with its digest, that of its files together, and the weakest of their proofs."""
    contents = tuple(Content(file.path, file.size, file.digest) for file in files)
    proof = max((file.proof for file in files), key=_STRENGTH.index)
    return tree.unit._replace(
        digest=digest_of(contents, transport.settings.outgoing.checksum), proof=proof, contents=contents
    )

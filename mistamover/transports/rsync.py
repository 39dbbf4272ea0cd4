"""What the transports of rsync have in common, whichever way they go (``rsync_ways``). No shell is needed there.

A batch takes three runs of the program. It is staged; the receiver compares checksums of what is staged with the
sources, and links what is the same to the final names; the staged names are removed. Nothing but what was proven
can get a final name: when the receiver begins, rsync finds no source here any more that it could send.

What is proven before it is published, as the files of whole directories, is published by stand-ins that rsync
cannot open: a source that changes meanwhile is never sent.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, groupby
from pathlib import Path
from typing import ClassVar, Self

from mistamover import digest, foreign, fs, handshake, rsync_options
from mistamover.directories import manifest
from mistamover.errors import (
    MistamoverError,
    NotTaken,
    NotVerified,
    Parked,
    TargetDown,
    TargetRefused,
    TooManyConnections,
    UnitError,
    UnitRefused,
)
from mistamover.options import RsyncNative as NativeOptions
from mistamover.options import RsyncSsh as SshOptions
from mistamover.rsync_options import Words
from mistamover.transports import ssh
from mistamover.transports.contract import (
    Capabilities,
    Finding,
    Level,
    Proof,
    Transport,
    down,
    draft_name,
    space,
    taken,
    the_spool,
)
from mistamover.transports.far_shell import SLOWEST_DISK
from mistamover.transports.parents import no_directory, parents
from mistamover.transports.rsync_answers import (
    full,
    is_there,
    literal,
    pattern,
    target_refused,
    why_not_published,
    why_not_staged,
)
from mistamover.transports.rsync_run import (
    DOWN,
    NOT_FOUND,
    PARTLY_DONE,
    Item,
    Result,
    Run,
    version,
    without_override,
)
from mistamover.transports.rsync_trees import Ground, Mark, Sources, Tree
from mistamover.unit import BATCH_BYTES, BATCH_DIGITS, OWN_NAME, Content, Directory, Outcome, Unit, batches

PLAIN = ("--no-recursive", "--no-links", "--no-perms", "--no-times", "--no-owner", "--no-group")
SAID = ("-ii", "--out-format=%i %n")
DRY = ("--dry-run", *SAID)
ONE_TOO_MANY = ("Another instance of rrsync is already accessing", "max connections")
"""What a far side says that serves one run only, or so many: rrsync(1), and rsyncd.conf(5)."""
_ONE_AT_A_TIME: set[str] = set()
"""The far sides that have said so to this process."""
_NO_PROGRAM = re.compile(r"\S*sh:.*(not found|No such file or directory|Unknown command)")
"""What the shells at the far side say where a program is missing; rsync's own exit code may come before theirs."""
MARKER = ".done"
"""What the name of a directory's marker ends in: rsync renames no directories, so that one shows while it fills."""
MOST_OPEN = 4096
"""Sources of one lane that are open at the same time, where the system lets us open as many."""
OTHERS_OPEN = 128
"""What the rest of a process may have open besides."""


class Rsync(Transport):
    """Delivers by runs of rsync; how it reaches the far side is for its heirs to say."""

    capabilities: ClassVar[Capabilities] = Capabilities(frozenset({Proof.DIGEST, Proof.SIZE, Proof.NONE}))
    batch_files: ClassVar[int] = MOST_OPEN
    """Many, since each run of rsync takes its time to begin and to end."""
    proves_at_publishing: ClassVar[bool] = True

    _private: str | None = None

    # -- how the far side is reached -------------------------------------------------------------------------

    _words: Words

    @abstractmethod
    def _connect(self) -> None:
        """Make ready what every run needs."""

    @abstractmethod
    def _reach(self) -> list[str]:
        """The options of a run that lead to the far side."""

    @abstractmethod
    def _place(self, path: str) -> str:
        """What rsync calls a path at the far side."""

    @abstractmethod
    def _explain(self, result: Result) -> MistamoverError | None:
        """What a run's failure means that only this way of reaching the far side has."""

    @abstractmethod
    def _known_faults(self) -> Iterator[Finding]:
        """What is known of the far side's faults."""

    @property
    @abstractmethod
    def _options(self) -> SshOptions | NativeOptions:
        """The section of the protocol."""

    def open(self) -> Self:
        """Connect, look at the target directory and make the staging directory."""
        self._runs: set[Run] = set()
        self._seen_stopped: bool | None = None
        self._is_new_place = False
        self._is_cut_short = False
        self._held: list[Sources] = []
        self._staged: dict[str, set[str]] = {}
        """The staged names of each batch that this lane has sent, until they are discarded."""
        self._proving: list[_Part] = []
        self._trouble: dict[str, Result] = {}
        options = self._options
        command = rsync_options.read_command(options.cmd)
        extra = rsync_options.read_options(options.extra_options)
        self._words = command._replace(
            shell=command.shell + extra.shell,
            every_run=command.every_run + extra.every_run,
            staging=command.staging + extra.staging,
        )
        lanes = self.settings.outgoing.lanes
        self._most_open = max(1, (fs.may_open(lanes * MOST_OPEN + OTHERS_OPEN) - OTHERS_OPEN) // lanes)
        self._buffer = bytearray(digest.CHUNK)
        self._reader = self.spool.reader()
        self._private = ssh.private_directory(self.settings)
        self._ground = Ground(self._private)
        self._nothing = self._tree()
        self._sync = ["--fsync"] if version(self._words.program) >= (3, 2, 4) else []
        self._connect()
        self._look_at_target()
        return self

    def close(self) -> None:
        """End what runs, and remove what is ours here."""
        if self._private is not None:
            self.abort()
            self._let_go()
            self._reader.forget()
            self._ground.close()
            shutil.rmtree(self._private, ignore_errors=True)
            self._private = None

    def abort(self) -> None:
        """Kill what runs."""
        for run in tuple(self._runs):
            run.kill()

    # -- runs ------------------------------------------------------------------------------------------------

    def _start(
        self, options: Sequence[str], tree: Tree, place: str, names: Iterable[str], before: Sequence[str] = ()
    ) -> Run:
        """Begin a run from a tree of ours to a directory at the far side."""
        command = self._command([*options, "--from0", "--files-from=-"], tree, place)
        # A name that begins with # or ; would be taken for a comment.
        return self._begun([*before, *command], (f"./{name}" for name in names))

    def _begun(self, argv: Sequence[str], lines: Iterable[str] = (), *, held: bool = False) -> Run:
        run = Run(argv, lines, held=held)
        self._runs = {run, *(other for other in self._runs if other.is_running)}
        return run

    def _command(self, options: Sequence[str], tree: Tree | Ground, place: str) -> list[str]:
        words = self._words
        ends = f"{tree.path}/", self._place(place)
        return [words.program, *self._reach(), *words.every_run, *PLAIN, *options, *ends]

    def _finish(self, run: Run, size: int = 0, tick: Callable[[int], None] = lambda _: None) -> Result:
        """Wait for its end, which the far side may put off by reading or writing ``size`` bytes.

        Raises ``TargetDown`` and ``TargetRefused``; a run that did part of its work returns.
        """
        with self._explained():
            result = run.wait(self._patience(size), tick)
        if result.code in PARTLY_DONE or result.is_full:
            return result
        raise self._failure(result)

    def _patience(self, size: int) -> float:
        return self._options.stall_timeout + size / SLOWEST_DISK

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say whose silence it is."""
        try:
            yield
        except TargetDown as error:
            raise TargetDown(f"{self.settings.outgoing.target_host}: {error}") from error

    def _failure(self, result: Result) -> MistamoverError:
        host = self.settings.outgoing.target_host
        if any(text in line for line in result.messages for text in ONE_TOO_MANY):
            _ONE_AT_A_TIME.add(self._far_side)
            return TooManyConnections(f"{host}: {result.reason}")
        if error := self._explain(result):
            return error
        if result.code == NOT_FOUND or any(_NO_PROGRAM.match(line) for line in result.messages):
            return TargetRefused(f"{host}: there is no rsync; install it there, or give --rsync-path in cmd")
        if result.code in DOWN or result.code < 0:
            return down(self.settings, result.reason)
        return TargetRefused(f"{host}: {result.reason}")

    def _ask(
        self, options: Sequence[str], tree: Tree, place: str, names: Iterable[str], before: Sequence[str] = ()
    ) -> Result:
        """A short run, from its beginning to its end."""
        with self._start(options, tree, place, names, before) as run:
            return self._finish(run)

    def _look(self, tree: Tree, place: str, names: Iterable[str]) -> dict[str, Item]:
        """What is missing at the far side, or is a directory where the tree has one; all else is not told."""
        return self._ask(("-d", *DRY, "--ignore-existing"), tree, place, names).items

    def _tree(self) -> Tree:
        return Tree(self._ground.path)

    def _sources(self) -> Sources:
        return Sources(self._ground.path, self._reader)

    # -- the target ------------------------------------------------------------------------------------------

    def _look_at_target(self) -> None:
        """Look at the target and at the staging directory, which is made where it is missing.

        What stands in its place is left alone: it could be a link that leads elsewhere.
        """
        own = [OWN_NAME, f"{OWN_NAME}/{self.settings.name}"]
        stop_file = self.settings.outgoing.stop_file
        if self.settings.outgoing.create_target:
            self._make(["."], "--mkpath")
        found = self._directories([".", *own], stop_file)
        if not is_there(found.get(".")):
            raise TargetRefused(
                f"{self.target}: no such directory there; mount or make it, or set [outgoing] create_target = yes"
            )
        if wrong := [name for name in own if name not in found]:
            raise TargetRefused(f"{self.target}/{wrong[0]}: is no directory; move it away")
        if missing := [name for name in own if not is_there(found[name])]:
            self.made = [f"{self.target}/{name}" for name in missing]
            self._is_new_place = True
            made = self._make(own, "--chmod=D0777")
            if not all(name in made for name in missing):
                raise TargetRefused(f"{self.staging}: cannot be made there; give the account the right to write")
        self._refuse_the_spool()
        self._seen_stopped = stop_file not in found

    def _refuse_the_spool(self) -> None:
        """Refuse the spool itself as the target, by whatever detour: a source would prove its own delivery."""
        if not any(map(os.path.isdir, self.staging_here())):
            return  # what was just made there is not in the spool
        marker = f"{self.tag}{os.urandom(8).hex()}"
        self._make([f"{OWN_NAME}/{self.settings.name}/{marker}"], "--chmod=D0777")
        is_here = self.is_here(marker)
        self._delete(self.staging, [f"+ /{marker}/", "- *"])
        if is_here:
            raise the_spool(self.settings)

    def remove_made(self) -> None:
        """Have the receiver remove the staging place; what is in it is left out, and keeps it."""
        if self.made:
            above = os.path.dirname(self.made[0])
            rules = [f"+ {literal(path.removeprefix(above))}/" for path in self.made]
            self._delete(above, [*rules, "- *"])

    def _directories(self, names: Sequence[str], *files: str) -> dict[str, Item]:
        """Which of these are directories below the target, or nothing; and which of the files are nothing."""
        with self._tree() as tree:
            for name in names:
                tree.directory(name)
            for name in files:
                tree.stand_in(name, 0)
            with target_refused():
                return self._look(tree, self.target, [*names, *files])

    def _make(self, names: Sequence[str], how: str) -> dict[str, Item]:
        """Make directories; gives those that were."""
        with self._tree() as tree, target_refused():
            for name in names:
                tree.directory(name)
            return self._ask(("-d", how, *SAID), tree, self.target, names).items

    def is_stopped(self) -> bool:
        """Whether the stop file lies in the target directory; :meth:`open` has looked for it already."""
        seen, self._seen_stopped = self._seen_stopped, None
        if seen is not None:
            return seen
        name = self.settings.outgoing.stop_file
        with self._tree() as tree:
            tree.stand_in(name, 0)
            return name not in self._look(tree, self.target, [name])

    def sweep(self) -> int:
        """Remove the directories of earlier runs of this stream."""
        is_new, self._is_new_place = self._is_new_place, False
        if is_new:
            return 0
        gone = self._delete(self.staging, [f"+ /{self.tag}*", "- /*"])
        return sum(not item.name.endswith("/") for item in gone)

    def _delete(self, place: str, rules: Iterable[str], *more: str) -> list[Item]:
        """Remove what filter rules let through (rsync(1), FILTER RULES), as missing from an empty tree of ours.

        Not by ``--delete-missing-args``: receivers with the checks of 3.2.7-1+deb12u2 take that for a broken list.
        """
        options = ("-r", "--delete", *SAID, *more, "--from0", "--filter=merge -")
        with self._begun(self._command(options, self._nothing, place), rules) as run:
            found = self._finish(run)
        return [item for item in found.items.values() if item.change.startswith("*deleting")]

    # -- send ------------------------------------------------------------------------------------------------

    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Stage each unit, and hash it while rsync sends it; a large one when it is proven (:meth:`_compare`)."""
        for part in self._together(units):
            yield from self._send(part)

    def _send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        if not units:
            return
        if sum(map(len, self._held)) + len(units) > self._most_open:
            self._let_go()
        self._held.append(sources := self._sources())
        self._staged.setdefault(_batch(units[0]), set()).update(unit.staged for unit in units)
        with self.baton:
            good, failed = _parted(sources.open(units))
        yield from failed
        place = self._staged_in(units)
        is_hashed_later = self._hashes_later(units)
        with self._begun(self._command(["-r", *self._staging_options()], sources, place)) as run:
            if not is_hashed_later:
                good, failed = _parted(sources.hash(good, self._buffer, self.tick))
                yield from failed
            self._is_cut_short = True
            size = sum(unit.size for unit in good)
            progress = _Progress(size if is_hashed_later else 0, self.tick)
            try:
                result = self._finish(run, size, progress) if good else None
                progress(size)
            except Parked as parked:
                yield from (Outcome(unit, parked) for unit in good)
                return
            self._is_cut_short = not good
        if result and result.is_full and result.code not in PARTLY_DONE:
            yield from self._send_what_fits(good, sources, result)
            return
        if result and result.code:
            self._trouble |= {unit.staged: result for unit in good}
        with self.baton:
            finished = [self._finished(unit, sources) for unit in good]
        yield from finished

    def _hashes_later(self, units: Sequence[Unit]) -> bool:
        """Whether this is a large file: while it is sent both ends are busy, while it is proven one of them."""
        return self.proof is Proof.DIGEST and _is_large(units[0])

    def _send_what_fits(self, units: Sequence[Unit], sources: Sources, result: Result) -> Iterator[Outcome]:
        """The run ended at the first unit that found no room: go on with those that are smaller."""
        staged, missing = _parted(self._compare(units, self._staged_in(units), Proof.SIZE, sources))
        yield from (self._finished(unit, sources) for unit in staged)
        left = [outcome.unit for outcome in missing]
        named = [unit for unit in left if f'/{unit.final}"' in "".join(result.messages)]
        size = min((unit.size for unit in named or left), default=0)
        yield from (Outcome(unit, full()) for unit in left if unit.size >= size)
        yield from self._send([unit for unit in left if unit.size < size])

    @staticmethod
    def _finished(unit: Unit, sources: Sources) -> Outcome:
        try:
            return Outcome(sources.finish(unit))
        except UnitError as error:
            return Outcome(unit, error)

    def _staging_options(self) -> list[str]:
        options = ["-L", "-t", "-O", "-W", *self._sync, *self._words.staging]
        if self.settings.outgoing.preserve_mode:
            options += ["-p", "--chmod=Fu+r,Fu-s,Fg-s,Fo-t"]
        if self._options.compress:
            options.append("-z")
        if self._options.bandwidth_limit:
            options.append(f"--bwlimit={max(1, self._options.bandwidth_limit // 1024)}")
        return options

    def _staged_in(self, units: Sequence[Unit]) -> str:
        """The directory of a batch, which no other try and no other lane uses."""
        return f"{self.staging}/{_batch(units[0])}"

    # -- verify ----------------------------------------------------------------------------------------------

    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Have the far side compare; all parts of a batch in one run, when the first outcome is taken."""
        part = _Part(units)
        self._proving.append(part)
        return self._outcomes(part)

    def _outcomes(self, part: _Part) -> Iterator[Outcome]:
        if part.outcomes is None:
            parts, self._proving = self._proving, []
            every = [unit for one in parts for unit in one.units]
            outcomes = {outcome.unit.staged: outcome for outcome in self._verify(every)}
            for one in parts:
                one.outcomes = [outcomes[unit.staged] for unit in one.units]
        yield from part.outcomes or ()

    def _verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        proof = self.proof
        for part in self._together(units):
            for unit, error in self._compare(part, self._staged_in(part), proof, self._holding(part)):
                trouble = self._trouble.pop(unit.staged, None)
                yield Outcome(unit, why_not_staged(unit, trouble) if trouble and error else error)
        self._let_go()

    def _together(self, units: Sequence[Unit]) -> Iterator[list[Unit]]:
        """The units of each batch, no more than may be open at once."""
        for _, group in groupby(units, _batch):
            yield from batches(group, files=self._most_open)

    def _holding(self, units: Sequence[Unit]) -> Sources | None:
        """The sources of these as they were opened to be staged, where they are still held."""
        return next((one for one in reversed(self._held) if one.holds(units)), None)

    def _let_go(self) -> None:
        with self.baton:
            for sources in self._held:
                sources.close()
        self._held.clear()

    def _compare(
        self, units: Sequence[Unit], place: str, proof: Proof, sources: Sources | None = None
    ) -> Iterator[Outcome]:
        """Which of the units the far side holds at ``place``: byte for byte, or whatever else is proof enough."""
        if proof is Proof.NONE:
            yield from (Outcome(unit._replace(proof=proof.value)) for unit in units)
            return
        if sources is None:
            with self._sources() as sources:
                with self.baton:
                    good, failed = _parted(sources.open(units))
                yield from failed
                yield from self._compare(good, place, proof, sources)
            return
        how = "-c" if proof is Proof.DIGEST else "--size-only"
        with self._start(("-L", how, *DRY), sources, place, (unit.final for unit in units)) as run:
            unread = self._hash_what_is_not(units, sources) if proof is Proof.DIGEST else {}
            is_awaited = len(unread) < len(units)
            found = self._finish(run, sum(unit.size for unit in units)).items if is_awaited else {}
        for unit in units:
            try:
                if unit in unread:
                    raise unread[unit]
                finished = sources.finish(unit)
                if unit.final not in found or not found[unit.final].is_same:
                    raise NotVerified("the target's file is not the same as the source")
            except UnitError as error:
                yield Outcome(unit, error)
            else:
                yield Outcome(finished._replace(proof=proof.value))

    def _hash_what_is_not(self, units: Sequence[Unit], sources: Sources) -> dict[Unit, UnitError]:
        """Hash what was not hashed while it was sent; gives why some could not be."""
        late = [unit for unit in units if not unit.digest]
        read = sources.hash(late, self._buffer, lambda _: self.tick(0))
        return {unit: error for unit, error in read if error is not None}

    def compare(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Compare what stands under each unit's name with its source."""
        for part in batches(units, files=self._most_open):
            for unit, error in self._compare(part, self.target, Proof.DIGEST):
                yield Outcome(unit, taken() if isinstance(error, NotVerified) else error)

    def resembling(self, units: Sequence[Unit]) -> list[Unit]:
        """By a dry run that compares sizes."""
        compared = (self._compare(part, self.target, Proof.SIZE) for part in batches(units, files=self._most_open))
        return [unit._replace(proof="") for unit, error in chain.from_iterable(compared) if error is None]

    # -- publish ---------------------------------------------------------------------------------------------

    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Have the receiver link each staged file to its final name, then remove the staged names."""
        published: list[Unit] = []
        for part in self._together(units):
            for outcome in self._publish_part(part):
                if outcome.error is None:
                    published.append(outcome.unit)
                else:
                    yield outcome
        self._let_go()
        self.discard(published)
        yield from map(Outcome, published)

    def _publish_part(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """What has no proof gets it together with its name where it can, else before."""
        proven = [unit for unit in units if unit.proof]
        unproven = [unit for unit in units if not unit.proof]
        at_once = [unit for unit in unproven if not (unit.is_update or _is_large(unit))]
        linked = self._prove_and_link(at_once)
        yield from linked.values()
        more, failed = _parted(self._verify([unit for unit in unproven if unit.staged not in linked]))
        yield from failed
        if proven or more:
            yield from self._publish([*proven, *more])

    def _prove_and_link(self, units: Sequence[Unit]) -> dict[str, Outcome]:
        """Have the receiver compare checksums of what is staged, and link what is the same to names that are free.

        What is not the same rsync would send. It cannot: once it has read all sources they are hidden from it, and
        only then is it given the end of its list, before which the receiver does nothing.

        Gives what came of those that were linked, by their staged names. To the others nothing has happened. Where
        anything but a directory stands above one of their names, which is looked at meanwhile, that is so for all.
        """
        if not units or self.proof is not Proof.DIGEST:
            return {}
        if not self._runs_together and self._is_blocked(units):
            return {}
        place, last = self._linked_from(units), units[0].final
        try:
            mark = Mark(self._ground.path, f"{place}/{last}")
        except OSError:  # more of what it needs than this user may have
            return {}
        with mark:
            sources = self._opened(units)
            with self.baton:
                sources.hide(but=units)
            options = ("-r", "-m", "--no-inc-recursive", "-L", "-c", "--ignore-existing", *self._linking(place))
            command = self._command([*options, "--from0", "--files-from=-"], self._ground, self.target)
            names = f"{sources.name}/./", f"{mark.name}/./{place}/{last}"
            size = sum(unit.size for unit in units)
            with self._begun(command, names, held=True) as run:
                if self._runs_together and self._is_blocked(units):
                    return {}
                with self._explained():
                    run.wait_until(mark.fd, self._patience(size))
                with self.baton:
                    sources.hide()
                    mark.hide()
                run.go_on()
                result = self._finish(run, size)
        named = [unit for unit in units if unit.final in result.items and result.items[unit.final].is_named]
        proven = [unit._replace(proof=Proof.DIGEST.value) for unit in named]
        return {outcome.unit.staged: outcome for outcome in self._named(proven, result)}

    def _is_blocked(self, units: Sequence[Unit]) -> bool:
        """Whether anything but a directory stands above one of their names."""
        above = {part: None for unit in units for part in parents(unit.final)}
        return bool(above) and not above.keys() <= self._directories(list(above)).keys()

    def _opened(self, units: Sequence[Unit]) -> Sources:
        """The sources of units as they were opened to be staged, or anew."""
        if (held := self._holding(units)) is not None:
            return held
        self._let_go()
        self._held.append(sources := self._sources())
        with self.baton:
            list(sources.open(units))  # what is wrong with one of them is told when it is verified
        return sources

    def _publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Link what is proven, by stand-ins: a source that changes meanwhile is never sent."""
        with self._tree() as tree:
            with self.baton:
                good, refused = _stand_in(tree, units)
            yield from refused
            yield from self._publish_from(tree, good)

    def _publish_from(self, tree: Tree, good: Sequence[Unit]) -> Iterator[Outcome]:
        above = {part: None for unit in good for part in parents(unit.final)}
        found = self._look(tree, self.target, [*above, *(unit.final for unit in good)])
        broken = above.keys() - found.keys()
        free: list[Unit] = []
        held: list[Unit] = []
        for unit in good:
            if not broken.isdisjoint(parents(unit.final)):
                yield Outcome(unit, no_directory())
            elif unit.final in found:
                free.append(unit)
            elif self.may_replace(unit):
                held.append(unit)
            else:
                yield Outcome(unit, taken())
        looked_at = self._directories([unit.final for unit in held]) if held else {}
        directories = {unit for unit in held if is_there(looked_at.get(unit.final))}
        yield from (Outcome(unit, taken()) for unit in directories)
        yield from self._link(tree, free, "--ignore-existing")
        yield from self._link(tree, [unit for unit in held if unit not in directories])

    def _linked_from(self, units: Sequence[Unit]) -> str:
        """The directory of a batch as seen from the target."""
        return f"{OWN_NAME}/{self.settings.name}/{_batch(units[0])}"

    def _linking(self, place: str) -> list[str]:
        """The options by which files get their names."""
        return ["--chmod=D0777,F0666", f"--link-dest={place}", *SAID, *self._sync]

    def _link(self, tree: Tree, units: Sequence[Unit], *more: str) -> Iterator[Outcome]:
        """Link staged files to their final names; where the file system cannot, the receiver copies them.

        A file that is replaced is unlinked first: for an instant there is none of that name.
        """
        if not units:
            return
        options = ("-d", "--size-only", *self._linking(self._linked_from(units)), *more)
        names = {part for unit in units for part in (*parents(unit.final), unit.final)}
        result = self._ask(options, tree, self.target, names, self._powerless())
        yield from self._named(units, result)

    def _named(self, units: Sequence[Unit], result: Result) -> Iterator[Outcome]:
        """What came of units that were to get their names; those that were copied are compared."""
        copied: list[Unit] = []
        for unit in units:
            item = result.items.get(unit.final)
            if item is not None and item.is_linked:
                yield Outcome(unit)
            elif item is not None and item.is_copied:
                copied.append(unit)
            else:
                yield Outcome(unit, why_not_published(unit, result))
        for unit, error in self._compare(copied, self.target, Proof.DIGEST) if copied else ():
            yield Outcome(unit._replace(proof=unit.proof), error)

    def _powerless(self) -> tuple[str, ...]:
        """What a run begins with that must not be able to send anything."""
        assert self._private is not None  # noqa: S101 - it is open
        return without_override(self._private)

    def discard(self, units: Iterable[Unit]) -> None:
        """Remove staged names, and what the receiver of a run that was cut short still writes."""
        if rules := self._staged_rules(units):
            while self._delete(self.staging, rules) and self._is_cut_short:
                pass
            self._is_cut_short = False

    @property
    def _runs_together(self) -> bool:
        """Whether the far side serves several runs at once, as far as we know."""
        return self._far_side not in _ONE_AT_A_TIME

    @property
    def _far_side(self) -> str:
        return f"{self.settings.outgoing.target_host}:{self.target}"

    def _staged_rules(self, units: Iterable[Unit]) -> list[str]:
        """What lets through these units, and with the last one of a batch its directory as a whole."""
        rules: dict[str, None] = {}
        for batch, group in groupby(units, _batch):
            gone = list(group)
            for unit in gone:
                self._trouble.pop(unit.staged, None)
            left = self._staged.get(batch, {""})
            left.difference_update(unit.staged for unit in gone)
            if not left:
                del self._staged[batch]
                rules |= dict.fromkeys([f"+ /{batch}/", f"+ /{batch}/**"])
                continue
            for path in (f"{batch}/{unit.final}" for unit in gone):
                rules |= dict.fromkeys(f"+ /{literal(parent)}/" for parent in parents(path))
                rules[f"+ /{literal(path)}"] = None
        return [*rules, "- *"] if rules else []

    # -- whole directories -----------------------------------------------------------------------------------

    def place(self, directory: Unit, units: Sequence[Unit]) -> Iterator[Outcome]:  # noqa: ARG002 - of the contract
        """Nothing is to be done: they are staged under their own paths."""
        yield from map(Outcome, units)

    def publish_directory(self, tree: Directory) -> None:
        """Link file by file; last of all, a marker says that the directory is complete (:meth:`_mark`).

        A version that is to be replaced loses its marker first, and then what the new one does not have.
        """
        unit, marker = tree.unit, f"{tree.unit.path}{MARKER}"
        if len(os.fsencode(marker)) > fs.LONGEST_NAME:
            raise UnitRefused(f"its name is too long for that of its marker, {MARKER} included")
        there, is_marked = self._what_stands(unit.path, marker)
        files = tree.files
        if self.may_replace(unit):
            if there is not None or is_marked:
                self._delete_below(self.target, [marker, *(f"{unit.path}/{path}" for path in there or ())], tree)
        elif (there is None and is_marked) or (there or set()) - tree.entries:
            raise taken()
        elif there is not None:
            files = self._not_there(tree, there)
        for outcome in self.publish(files):
            if outcome.error is not None:
                raise outcome.error
        self._set_folders(tree)
        self._mark(marker, tree)
        if len(files) < len(tree.files):
            self.discard_directories([unit])

    def _not_there(self, tree: Directory, there: set[str]) -> list[Unit]:
        """The files that are still to be published. Those that an earlier try has published must be the same."""
        for outcome in self.compare([file for file in tree.files if tree.below(file.path) in there]):
            if outcome.error is not None:
                raise outcome.error
        return [file for file in tree.files if tree.below(file.path) not in there]

    def _what_stands(self, name: str, marker: str) -> tuple[set[str] | None, bool]:
        """What is in the directory of that name, None where there is none; and whether its marker is there."""
        with self._tree() as tree:
            tree.directory(name)
            tree.stand_in(marker, 0)
            found = self._look(tree, self.target, [name, marker])
        if name not in found:
            raise taken()
        return self._listed(name) if is_there(found[name]) else None, marker not in found

    def _listed(self, name: str) -> set[str]:
        """What is in a directory at the target: all that a dry run would remove."""
        rules = [f"+ /{literal(name)}/", f"+ /{pattern(name)}/**", "- *"]
        listed = self._delete(self.target, rules, "--dry-run")
        return {item.name[len(name) + 1 :] for item in listed} - {""}

    def entries(self, directory: Unit) -> set[str]:
        """By a dry run that would remove all that stands there."""
        if not is_there(self._directories([directory.path]).get(directory.path)):
            raise taken()
        return self._listed(directory.path)

    def _delete_below(self, place: str, paths: Iterable[str], tree: Directory) -> None:
        """Remove these, but for what the tree has."""
        ours = {f"{tree.unit.path}/{path}" for path in tree.entries}
        rules: dict[str, None] = {}
        for path in paths:
            if path not in ours:
                rules |= dict.fromkeys(f"+ /{literal(parent)}/" for parent in parents(path.rstrip("/")))
                rules[f"+ /{literal(path)}"] = None
        self._delete(place, [*rules, "- *"])

    def _set_folders(self, tree: Directory) -> None:
        """Make the directories that hold no file, and set the times of all."""
        with self._tree() as ours:
            for folder in tree.folders:
                ours.directory(folder.path)
            for folder in reversed(tree.folders):
                os.utime(f"{ours.path}/{folder.path}", ns=(folder.mtime_ns, folder.mtime_ns))
            names = [folder.path for folder in tree.folders]
            result = self._ask(("-d", "-t", "--chmod=D0777", *SAID), ours, self.target, names)
        if result.code:
            raise NotTaken(f"the target could not take a directory: {result.reason}")

    def _mark(self, marker: str, tree: Directory) -> None:
        """Write beside the directory that it is complete: a line for each file, as sha256sum(1) checks them."""
        contents = (Content(file.path, file.size, file.digest) for file in tree.files)
        with self._tree() as ours:
            Path(ours.path, marker).write_bytes(os.fsencode(manifest(contents)))
            # Checksums, since it may be there from an earlier try; what is sent, the receiver proves by itself.
            result = self._ask(("-c", *self._sync, *SAID), ours, self.target, [marker])
        item = result.items.get(marker)
        if result.code or item is None or not (item.is_same or item.change.startswith("<f")):
            raise NotTaken(f"the target could not take {marker}: {result.reason}")

    def discard_directories(self, directories: Iterable[Unit]) -> None:
        """Remove what is staged of these, by their names."""
        rules: dict[str, None] = {}
        for unit in directories:
            batch = _batch(unit)
            self._staged.pop(batch, None)
            rules |= dict.fromkeys([f"+ /{batch}/", f"+ /{batch}/{literal(unit.path)}/"])
            rules[f"+ /{batch}/{pattern(unit.path)}/**"] = None
        if rules:
            self._delete(self.staging, [*rules, "- *"])

    # -- notes -----------------------------------------------------------------------------------------------

    def put_notes(self, notes: Mapping[str, bytes]) -> dict[str, UnitError]:
        """Send them all in one run: the receiver itself writes each under another name, and renames it."""
        if not notes:
            return {}
        with self._tree() as tree:
            for name, data in notes.items():
                tree.write(name, data)
            result = self._ask(("-I", *SAID), tree, self.target, notes)
        return {
            name: NotTaken(f"the target could not take {name}: {result.about(name)}")
            for name in notes
            if name not in result.items or not result.items[name].is_sent
        }

    def fetch_notes(self, names: Sequence[str]) -> dict[str, bytes]:
        """Have a tree of ours filled with them, in one run."""
        if not names:
            return {}
        with self._tree() as tree:
            self._fetch(tree, names)
            found: dict[str, bytes] = {}
            directory = os.open(tree.path, fs.DIRECTORY)
            for name in names:
                with suppress(OSError, foreign.Refused):
                    found[name] = handshake.read(name, directory)[0]
            os.close(directory)
        return found

    def _fetch(self, tree: Tree, names: Iterable[str]) -> None:
        """Not by ``--files-from``: daemons of 3.2.7-1+deb12u6 take what that names for vanished."""
        words = self._words
        options = ("-r", "--from0", "--filter=merge -", f"--max-size={handshake.LARGEST}")
        ends = self._place(self.target), f"{tree.path}/"
        command = [words.program, *self._reach(), *words.every_run, *PLAIN[1:], *options, *ends]
        with self._begun(command, [*(f"+ /{literal(name)}" for name in names), "- *"]) as run:
            result = self._finish(run)
        if any("send_files failed to open" in line and "Invalid argument" in line for line in result.messages):
            raise TargetRefused(
                f"{self.settings.outgoing.target_host}: the daemon cannot send files of a module whose path is /, "
                "so that nobody can read receipts; give the module the directory of arrivals as its path"
            )

    # -- look ------------------------------------------------------------------------------------------------

    def examine(self) -> Iterator[Finding]:
        """Look at rights, the staging place and how names are published."""
        yield Finding(Level.OK, f"reached {self.settings.outgoing.target_host} by rsync")
        yield Finding(Level.OK, f"{self.target} exists")
        yield from self._examine_staging()
        yield from space(self.room())
        yield Finding(Level.WARN, "rsync does not tell when names are on disk", "nothing can be done here")
        yield from self._known_faults()

    def _examine_staging(self) -> Iterator[Finding]:
        """Stage a file of our own and link it to another name: the one way to know whether that works."""
        staged = draft_name(self, "check")
        final = f"{staged}-final"
        with self._tree() as tree:
            tree.stand_in(final, 0)
            os.chmod(f"{tree.path}/{final}", 0o600)
            sent = self._ask(SAID, tree, f"{self.staging}/{staged}", [final])
            how = ("--size-only", f"--link-dest={staged}", *SAID)
            found = self._ask(how, tree, self.staging, [final]).items.get(final)
        self._delete(self.staging, [f"+ /{staged}*", "- /*"])
        if sent.code:
            yield Finding(Level.FAIL, f"{self.staging} is not writable: {sent.reason}", "give the account rights")
        elif found is not None and found.is_linked:
            yield Finding(Level.OK, f"{self.staging} is writable, and staged files get their names by hard links")
        else:
            yield Finding(
                Level.WARN,
                "the target's file system makes no hard links: there, staged files are copied to their names",
                "nothing is lost by that; sftp renames them instead",
            )


class _Progress:
    """Tells of no more bytes than there are, however much a program reads besides."""

    def __init__(self, size: int, tick: Callable[[int], None]) -> None:
        self._left = size
        self._tick = tick

    def __call__(self, read: int) -> None:
        step = min(read, self._left)
        self._left -= step
        self._tick(step)


class _Part:
    """Units that are to be proven, and what came of it."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.outcomes: list[Outcome] | None = None


def _parted(outcomes: Iterable[Outcome]) -> tuple[list[Unit], list[Outcome]]:
    """The units with which all is well, and the outcomes of the others."""
    good: list[Unit] = []
    failed: list[Outcome] = []
    for outcome in outcomes:
        if outcome.error is None:
            good.append(outcome.unit)
        else:
            failed.append(outcome)
    return good, failed


def _stand_in(tree: Tree, units: Sequence[Unit]) -> tuple[list[Unit], list[Outcome]]:
    """Fill a tree with stand-ins; gives the units that have one, and the others with their errors."""
    good: list[Unit] = []
    refused: list[Outcome] = []
    for unit in units:
        try:
            tree.stand_in(unit.final, unit.size)
            good.append(unit)
        except OSError as error:
            refused.append(Outcome(unit, tree.cannot_hold(error)))
    return good, refused


def _batch(unit: Unit) -> str:
    """The directory in which a unit is staged: that of its try's batch."""
    return unit.staged[:BATCH_DIGITS]


def _is_large(unit: Unit) -> bool:
    """Whether it is alone in its batch.

    It takes long to be proven: a link could take the place of a directory above it meanwhile, and be followed.
    """
    return unit.size > BATCH_BYTES

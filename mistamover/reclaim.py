"""Deleting units of one stream for want of space, as the disk space monitor asks for it.

Whoever deletes holds the stream: its record, which has one writer, and its spool. So nothing is on its way
meanwhile. Each deletion is in the ledger, on disk, before anything is touched.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from mistamover.directories import spool_of
from mistamover.disk import Need, Stage
from mistamover.errors import UnitError
from mistamover.ledger import Ledger
from mistamover.lines import shown, size
from mistamover.options import Settings
from mistamover.spool import QUARANTINE, Spool
from mistamover.stream import recovered, state_directory, target_name
from mistamover.unit import ORDERS, Ignored, Record, State, Unit, looks_settled

AT_ONCE = 10_000
"""Units of one stream and stage at most that one look deletes; the next one goes on."""


class Asked(NamedTuple):
    """What the monitor wants of a stream."""

    stage: Stage
    need: Need
    """What is missing: no more than that is deleted."""
    device: int
    """Of the file system that has to have room."""
    why: str


@contextmanager
def held(settings: Settings) -> Iterator[tuple[Spool, Ledger]]:
    """The spool and the record of a stream, for us alone; raises ``Held`` where somebody else has them.

    Also a mirrored spool is held here, and may be written to: its stream has said so by ``deletion_enabled``.
    """
    checksum = settings.outgoing.checksum
    with (
        closing(Ledger(state_directory(settings), target_name(settings), checksum)) as ledger,
        closing(spool_of(settings, mirror=False)) as spool,
    ):
        spool.hold()
        yield spool, ledger


@dataclass
class Reclaim:
    """One deletion from one stream, which the caller holds.

    ``measure`` gives what is missing by now, ``tell`` takes a line about each unit, ``alive`` is called for each.
    """

    settings: Settings
    spool: Spool
    ledger: Ledger
    measure: Callable[[], Need]
    tell: Callable[[str], object]
    alive: Callable[[], object]

    def run(self, asked: Asked) -> Need:
        """Delete until enough is free; gives what is missing then."""
        self._left, self._why = asked.need, asked.why
        self.spool.look_at_place()
        if self.spool.device != asked.device:
            return self._left
        if asked.stage is Stage.DELIVERED:
            self._empty_trash()
            self._delete_units(self._is_delivered)
        elif asked.stage is Stage.QUARANTINE:
            self._delete_quarantine()
        else:
            self._delete_units(self._is_unsent)
        return self._left

    @property
    def _is_mirror(self) -> bool:
        return self.settings.outgoing.transfer_mode == "mirror"

    def _is_enough(self) -> bool:
        """Whether no more is to be deleted: by what is free, or by what must soon be so.

        Some file systems give free what was deleted only after a while: what we freed counts at once.
        """
        return self._left.is_met or self.measure().is_met

    def _empty_trash(self) -> None:
        for path, what in recovered(self.spool, self.ledger):
            self.tell(f"{shown(path)}: {what}")
            missing = self.measure()
            self._left = Need(min(self._left.bytes, missing.bytes), min(self._left.inodes, missing.inodes))

    # -- units in the spool ----------------------------------------------------------------------------------

    def _is_delivered(self, unit: Unit, record: Record | None) -> bool:
        """Whether the ledger says of this very file that the target has it."""
        return record is not None and record.identity == unit.identity and record.state is State.DELIVERED

    def _is_unsent(self, unit: Unit, record: Record | None) -> bool:
        """Whether it was left alone for long enough, and exists nowhere else."""
        settle_time = self.settings.data_stream.settle_time
        return not self._is_delivered(unit, record) and looks_settled(unit.identity, settle_time, time.time())

    def _delete_units(self, is_wanted: Callable[[Unit, Record | None], bool]) -> None:
        """Delete units, the oldest first."""
        if self._is_enough():
            return
        emptied: set[str] = set()
        wanted = (found for found in self._found() if is_wanted(*found))
        for unit, record in heapq.nsmallest(AT_ONCE, wanted, key=lambda found: ORDERS["oldest"](found[0])):
            if self._is_enough():
                break
            if (gain := self.spool.gain(unit.path)) and self._delete(unit, record):
                self._left = self._left.less(Need(gain, 1))
                emptied.add(unit.path.rpartition("/")[0])
        if not self._is_mirror:
            self.spool.prune(emptied - {""}, self.settings.data_stream.settle_time, time.time())

    def _found(self) -> Iterable[tuple[Unit, Record | None]]:
        for unit in self.spool.scan(Ignored(self.settings.data_stream.ignore)):
            self.alive()
            yield unit, self.ledger.record(unit.path)

    def _delete(self, unit: Unit, record: Record | None) -> bool:
        """Delete one unit, recorded before; whether it is gone."""
        self.alive()
        is_sent = self._is_delivered(unit, record)
        if record is not None and is_sent:
            number = record.id
            self.ledger.note_deletion(number, State.DELIVERED, self._why, time.time())
        else:
            number = self.ledger.delete(unit, self._why, time.time())
        try:
            self.spool.remove(unit, number)
        except UnitError as error:
            if is_sent:
                self.ledger.note_deletion(number, State.DELIVERED, "", time.time())
            else:
                self.ledger.undo_deletion(number)
            self.tell(f"not deleted: {shown(unit.path)}: {error}")
            return False
        finally:
            self.spool.let_go_of_twins()
        if is_sent and not self._is_mirror:
            self.ledger.removed([number], time.time())
        what = "which the target has" if is_sent else "which was never delivered"
        self.tell(f"deleted: {shown(unit.path)} ({size(unit.size)}), {what}: {self._why}")
        return True

    # -- units set aside -------------------------------------------------------------------------------------

    def _delete_quarantine(self) -> None:
        """Delete what was set aside, the oldest first. A mirror leaves that in its place, as a unit like others."""
        for record, path, identity, reason in [] if self._is_mirror else self.ledger.aside():
            if self._is_enough():
                return
            gain = self.spool.gain(f"{QUARANTINE}/{record}/{path.rpartition('/')[2]}")
            if gain and self._delete_aside(Unit(path, identity), record, reason):
                self._left = self._left.less(Need(gain, 1))

    def _delete_aside(self, unit: Unit, record: int, reason: str) -> bool:
        self.alive()
        self.ledger.delete_aside(record, self._why, reason, time.time())
        try:
            self.spool.delete_aside(unit.path, record, unit.identity)
        except UnitError as error:
            self.ledger.set_aside_again(record)
            self.tell(f"not deleted: {shown(unit.path)}: {error}")
            return False
        self.tell(f"deleted: {shown(unit.path)} ({size(unit.size)}), which was in quarantine: {self._why}")
        return True

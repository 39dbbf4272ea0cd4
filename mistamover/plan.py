"""What a pass would do, for ``run --dry-run``: decided as a pass decides, with nothing touched."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from mistamover.directories import spool_of
from mistamover.events import Event, Kind
from mistamover.ledger import View
from mistamover.options import Settings
from mistamover.proofs import NotYet, Proofs
from mistamover.spool import Skipped
from mistamover.stream import skipped_event, state_directory, target_name, when
from mistamover.unit import OWN_NAME, Ignored, Record, Unit, Verdict, judge, looks_settled


def plan(settings: Settings) -> Iterator[Event]:
    """What a pass would send, and why it would skip what it would skip. Touches nothing."""
    if settings.outgoing.transfer_protocol == "none":
        return
    mirror = settings.outgoing.transfer_mode == "mirror"
    spool = spool_of(settings, mirror=True)
    view = View(state_directory(settings), target_name(settings))
    skipped: list[Skipped] = []
    try:
        if spool.has_stop_file(settings.incoming.stop_file):
            yield Event(Kind.PAUSED, reason=f"paused by {settings.incoming.stop_file} in the spool")
        proofs = Proofs.of(settings, spool, view)
        for unit in spool.scan(Ignored(settings.data_stream.ignore), skipped.append):
            planned = _planned(unit, view.record(unit.path), settings, mirror=mirror, now=time.time())
            is_new = planned.kind in (Kind.WOULD_SEND, Kind.SETTLING)
            yield _proven(planned, unit, proofs) if proofs and is_new else planned
            yield from _drained(skipped)
        yield from _drained(skipped)
    finally:
        view.close()
        spool.close()


def _proven(planned: Event, unit: Unit, proofs: Proofs) -> Event:
    """The same, unless a proof is missing, or it is one itself."""
    if proofs.is_proof(unit):
        if not proofs.follows:
            return Event(Kind.SKIPPED, unit.path, "is a proof, and stays")
        return planned._replace(reason="after what it names")
    try:
        proofs.proven(unit)
    except NotYet as why:
        return Event(Kind.WAITING, unit.path, str(why), unit)
    return planned


def _drained(skipped: list[Skipped]) -> Iterable[Event]:
    events = [skipped_event(one) for one in skipped if one.path != OWN_NAME]
    skipped.clear()
    return events


def _planned(unit: Unit, record: Record | None, settings: Settings, *, mirror: bool, now: float) -> Event:
    verdict = judge(unit, record, mirror=mirror, now=now)
    if record is None or verdict is Verdict.SEND:
        if looks_settled(unit.identity, settings.data_stream.settle_time, now):
            return Event(Kind.WOULD_SEND, unit.path, unit=unit)
        return Event(Kind.SETTLING, unit.path, "it changed a moment ago; sent once it has settled", unit)
    if verdict is Verdict.REMOVE:
        return Event(Kind.WOULD_REMOVE, unit.path, "delivered before; its source is still here", unit)
    if verdict is Verdict.KEEP:
        return Event(Kind.UNCHANGED, unit.path, "mirrored before, unchanged since", unit)
    if verdict is Verdict.WAIT:
        return Event(Kind.WAITING, unit.path, f"{record.reason}; next try {when(record.next_try)}", unit)
    return Event(Kind.QUARANTINED, unit.path, record.reason, unit)

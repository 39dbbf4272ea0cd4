"""The sender's side of the handshake with an arrivals monitor: who was asked, what was answered, what is owed.

What was asked is in the ledger, so that after a crash the next pass goes on asking and sends nothing again. The
talk itself is a lane's (:func:`mistamover.lane.converse`), about all units at once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from mistamover.errors import NoReceipt, NotTaken, NotVerified, UnitError
from mistamover.foreign import Refused
from mistamover.handshake import (
    Control,
    Extensions,
    Receipt,
    Status,
    control_name,
    control_text,
    flattened,
    judge,
    parse_receipt,
    receipt_name,
    thankyou_text,
    why_unsayable,
)
from mistamover.lane import Heard, Talk
from mistamover.ledger import Asked, Ledger, Stage
from mistamover.lines import duration
from mistamover.options import Settings
from mistamover.unit import Unit

FIRST_LOOK = 0.2
"""Seconds after which receipts are looked for first; doubles up to ``receipt_file_poll_interval``."""
MOST_WANTED = 4096
"""Receipts that are looked for at once, the oldest first."""
PROOF = "receipt"
"""How a delivery is proven that a receiver has confirmed."""


@dataclass
class Answers:
    """What came of one talk."""

    delivered: list[Unit] = field(default_factory=list)
    failed: dict[Unit, UnitError] = field(default_factory=dict)
    answered: list[Asked] = field(default_factory=list)
    """Handshakes that have got their receipt, good or bad, and owe a thank-you."""
    strange: list[tuple[Unit, str]] = field(default_factory=list)
    """Units whose receipts do not count, and why."""


class Exchange:
    """All handshakes of one stream that have not ended. For the one thread that writes the ledger."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        outgoing = settings.outgoing
        self._outgoing = outgoing
        self._extensions = Extensions(
            outgoing.control_file_extension, outgoing.receipt_file_extension, outgoing.thankyou_file_extension
        )
        self._patience = outgoing.receipt_file_poll_count * outgoing.receipt_file_poll_interval
        self._ledger = ledger
        self._asked: dict[str, Asked] = {}
        """By the paths of their units."""
        self._stale: defaultdict[str, list[Asked]] = defaultdict(list)
        self._left: dict[str, Asked] = {}
        """Stale ones whose units were delivered after all, by their receipts: looked for once."""
        self._thanks: dict[str, Asked] = {}
        """Those that owe a thank-you, by its name."""
        self._later: dict[str, Asked] = {}
        """Those whose thank-you could not be put in this pass."""
        self._unput: dict[str, Asked] = {}
        """Those whose control file has to be put, by its name."""
        self._doubtful: set[str] = set()
        """Paths of which an earlier process may have crashed before it put the control file."""
        self._overdue: set[str] = set()
        """Paths that this pass has told of as overdue."""
        self.noted: set[str] = set()
        """Paths that this pass has counted as waiting."""
        self._pause = FIRST_LOOK
        self._next_look = -inf
        """On the monotonic clock."""
        for asked in ledger.handshakes():
            self._take_up(asked)

    def _take_up(self, asked: Asked) -> None:
        if asked.stage is Stage.ASKED:
            self._asked[asked.unit.path] = asked
            self._doubtful.add(asked.unit.path)
        elif asked.stage is Stage.ANSWERED:
            self._thanks[asked.thankyou] = asked
        else:
            self._stale[asked.unit.path].append(asked)

    # -- units -------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """A pass begins."""
        self._overdue.clear()
        self.noted.clear()
        self._thanks |= self._later
        self._later.clear()

    def named(self, unit: Unit) -> Unit:
        """A unit that is about to be sent, with the name that it gets at the target.

        Raises :class:`~mistamover.foreign.Refused` where no handshake is possible about it.
        """
        if self._outgoing.flatten and flattened(unit.path) != unit.path:
            unit = unit._replace(renamed=flattened(unit.path))
        if why := why_unsayable(unit.final, self._extensions):
            raise Refused(why)
        # A version that was sent before, and stands there still, is ours to replace.
        return unit._replace(is_update=True) if unit.path in self._asked else unit

    def awaits(self, unit: Unit) -> bool:
        """Whether this very file was published, and its receipt is waited for."""
        asked = self._asked.get(unit.path)
        if asked is None or asked.unit.identity != unit.identity:
            return False
        self.noted.add(unit.path)
        return True

    def begin(self, units: Iterable[Unit], now: float) -> None:
        """Ask about units that were published; ``now`` in seconds since the epoch."""
        if not self._asked:
            self._look_soon()
        rows: list[Asked] = []
        for unit in units:
            if (old := self._asked.pop(unit.path, None)) is not None:
                rows.append(self._give_up(old))
            asked = Asked(unit, self._new_receipt(unit, now), Stage.ASKED, now)
            rows.append(asked)
            self._ask(asked)
        self._ledger.note(rows)

    def _new_receipt(self, unit: Unit, moment: float) -> str:
        """The name of a receipt that no earlier attempt has asked for."""
        sha256 = unit.digest if self._outgoing.receipt_checksum == "sha256" else ""
        earlier = {old.receipt for old in self._stale.get(unit.path, ())}
        while (name := receipt_name(unit.final, moment, self._extensions, sha256)) in earlier:
            moment += 0.01
        return name

    def _ask(self, asked: Asked) -> None:
        path = asked.unit.path
        self._asked[path] = asked
        self.noted.add(path)
        self._doubtful.discard(path)
        self._unput[self._control_name(asked.unit)] = asked

    def _control(self, asked: Asked) -> Control:
        unit = self._with_name(asked.unit)
        return Control(unit.final, unit.size, unit.md5 or unit.digest, asked.receipt)

    def _control_name(self, unit: Unit) -> str:
        return control_name(self._with_name(unit).final, self._extensions)

    def _with_name(self, unit: Unit) -> Unit:
        return unit._replace(renamed=flattened(unit.path)) if self._outgoing.flatten else unit

    def _give_up(self, asked: Asked) -> Asked:
        stale = asked._replace(stage=Stage.STALE)
        self._stale[asked.unit.path].append(stale)
        return stale

    # -- talks -------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether any handshake has not ended."""
        return bool(self._asked) or self.owes

    @property
    def owes(self) -> bool:
        """Whether something is to be said at once."""
        return bool(self._unput or self._thanks or self._left)

    @property
    def hopeful(self) -> int:
        """How many receipts are waited for that are not overdue."""
        return len(self._asked.keys() - self._overdue)

    def left(self, moment: float) -> float:
        """Seconds until the next talk is due; infinity where none is. ``moment`` on the monotonic clock."""
        if self.owes:
            return 0.0
        return max(0.0, self._next_look - moment) if self._asked else inf

    def talk(self, now: float, moment: float) -> Talk | None:
        """What is to be said now, if anything; ``now`` since the epoch, ``moment`` on the monotonic clock."""
        if self.left(moment) > 0:
            return None
        thanks = {name: thankyou_text(asked.receipt) for name, asked in self._thanks.items()}
        wanted: list[str] = list(self._left)[:MOST_WANTED]
        units: list[Unit] = []
        if moment >= self._next_look:
            looked = sorted(self._asked.values(), key=lambda asked: asked.asked)[: MOST_WANTED - len(wanted)]
            wanted += [asked.receipt for asked in looked]
            units = [self._with_name(asked.unit) for asked in looked if self._is_in_doubt(asked, now)]
            wanted += map(self._control_name, units)
        controls = {name: control_text(self._control(asked)) for name, asked in self._unput.items()}
        return Talk({**controls, **thanks}, wanted, units)

    def _is_in_doubt(self, asked: Asked, now: float) -> bool:
        return asked.unit.path in self._doubtful or self._is_overdue(asked, now)

    def _is_overdue(self, asked: Asked, now: float) -> bool:
        """Whether it was waited for too long, unless the clock was set back since."""
        return now - asked.asked > self._patience

    def hear(self, talk: Talk, heard: Heard, now: float) -> Answers:
        """Take what came of a talk; what is answered goes to :meth:`thank` once that is recorded."""
        answers = Answers()
        self._note_put(talk, heard, answers)
        self._take_left(talk, heard, answers)
        wanted = set(talk.wanted)
        silent = [
            asked
            for asked in list(self._asked.values())
            if asked.receipt in wanted and not self._take_receipt(asked, heard.found.get(asked.receipt), answers)
        ]
        in_doubt = {unit.path for unit in talk.units}
        self._note_silent([asked for asked in silent if asked.unit.path in in_doubt], heard, answers, now)
        if answers.answered:
            self._look_soon()
        elif talk.wanted:
            self._pause = min(2 * self._pause, self._outgoing.receipt_file_poll_interval)
            self._next_look = time.monotonic() + self._pause
        return answers

    def _look_soon(self) -> None:
        self._pause = min(FIRST_LOOK, self._outgoing.receipt_file_poll_interval)
        self._next_look = time.monotonic() + self._pause

    def _note_put(self, talk: Talk, heard: Heard, answers: Answers) -> None:
        """What was said need not be said again."""
        said = {name: self._thanks.pop(name) for name in talk.notes if name in self._thanks}
        self._later |= {name: asked for name, asked in said.items() if name in heard.refused}
        if thanked := [asked.receipt for name, asked in said.items() if name not in heard.refused]:
            self._ledger.forget(thanked)
        for name, asked in list(self._unput.items()):
            if talk.notes.get(name) != control_text(self._control(asked)):
                continue  # an attempt that began meanwhile
            del self._unput[name]
            if error := heard.refused.get(name):
                del self._asked[asked.unit.path]
                self._ledger.forget([asked.receipt])
                answers.failed[asked.unit] = error

    def _take_left(self, talk: Talk, heard: Heard, answers: Answers) -> None:
        """Thank for the receipts of attempts that were given up, so that none is left over."""
        gone: list[str] = []
        for name in [name for name in talk.wanted if name in self._left]:
            asked = self._left.pop(name)
            try:
                receipt = self._parsed(heard.found.get(name, b""))
            except Refused:
                gone.append(name)
            else:
                answers.answered.append(_answered(asked, receipt))
        if gone:
            self._ledger.forget(gone)

    def _take_receipt(self, asked: Asked, text: bytes | None, answers: Answers) -> bool:
        """Whether there is a receipt that counts."""
        if text is None:
            return False
        unit = asked.unit
        try:
            receipt = self._parsed(text)
            judge(self._control(asked), receipt)
        except Refused as why:
            answers.strange.append((unit, f"the receipt {asked.receipt} does not count: {why}"))
            return False
        del self._asked[unit.path]
        self._unput.pop(self._control_name(unit), None)
        answers.answered.append(_answered(asked, receipt))
        if receipt.status is Status.SUCCESS:
            answers.delivered.append(unit._replace(proof=PROOF))
            self._left |= {old.receipt: old for old in self._stale.pop(unit.path, ())}
        else:
            answers.failed[unit] = _error(receipt)
        return True

    def _parsed(self, text: bytes) -> Receipt:
        receipt = parse_receipt(text)
        if receipt.thankyou.endswith((f".{self._extensions.control}", f".{self._extensions.receipt}")):
            raise Refused("it asks for a thank-you under a name that is not for thank-yous")
        return receipt

    def _note_silent(self, silent: Sequence[Asked], heard: Heard, answers: Answers, now: float) -> None:
        """Ask again about what still stands there; what does not, and is overdue, has to be sent again.

        Receivers take the file before they remove its control file, and we have looked for these the other way
        round: where only the file is there, nobody has taken it, and nobody was asked.
        """
        rows: list[Asked] = []
        for asked in silent:
            path = asked.unit.path
            is_there, is_overdue = path in heard.standing, self._is_overdue(asked, now)
            self._doubtful.discard(path)
            if is_overdue:
                answers.failed[asked.unit] = self._no_receipt(is_there=is_there)
            if is_there:
                if is_overdue:
                    asked = asked._replace(asked=now)
                    rows.append(asked)
                    self._overdue.add(path)
                self._asked[path] = asked
                if self._control_name(asked.unit) not in heard.found:
                    self._ask(asked)
            elif is_overdue:
                del self._asked[path]
                rows.append(self._give_up(asked))
        if rows:
            self._ledger.note(rows)

    def _no_receipt(self, *, is_there: bool) -> UnitError:
        waited = f"no receipt came from the target's arrivals monitor within {duration(self._patience)}"
        then = "look whether it runs" if is_there else "and the file is not there any more; it is sent again"
        return NoReceipt(f"{waited}; {then}")

    def thank(self, answered: Iterable[Asked]) -> None:
        """Owe a thank-you for each of these receipts."""
        self._thanks |= {asked.thankyou: asked for asked in answered}


def _answered(asked: Asked, receipt: Receipt) -> Asked:
    return asked._replace(stage=Stage.ANSWERED, thankyou=receipt.thankyou)


def _error(receipt: Receipt) -> UnitError:
    """What a receipt that tells no success means for the unit."""
    if receipt.status is Status.BAD_SIZE:
        return NotVerified(f"the receiver has got another size: {receipt.size:,} bytes")
    if receipt.status is Status.BAD_CHECKSUM:
        return NotVerified(f"the receiver has got another digest: {receipt.md5 or 'unknown'}")
    if receipt.status is Status.NO_DATA:
        return NotTaken("the receiver has found no such file; it is sent again")
    return NotTaken("the receiver could not read or store it; look at its log")

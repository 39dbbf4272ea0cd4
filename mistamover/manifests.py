"""Manifests that are left at the target: what was delivered, as ``sha256sum -c`` takes it.

What they say is what the ledger says, so that they can be written again at any time: only what was delivered is in
them. Each holds some deliveries; the last one is written anew, in one rename, until it is full.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from mistamover.checksums import checksum_line
from mistamover.ledger import Ledger, Manifest
from mistamover.options import Settings

MOST_LINES = 2000
"""Lines of one: it is sent as a whole each time that one comes to it."""


class Manifests:
    """Those of one stream."""

    def __init__(self, algorithm: str, stream: str, ledger: Ledger) -> None:
        self._algorithm = algorithm
        self._stream = stream
        self._ledger = ledger
        self._written: list[Manifest] = []
        """What they will hold once the notes are put."""
        ledger.keep_manifests()

    @classmethod
    def of(cls, settings: Settings, ledger: Ledger) -> Manifests | None:
        """Those of a stream; None where it leaves none."""
        algorithm = settings.outgoing.write_manifest
        return None if algorithm == "none" else cls(algorithm, settings.name, ledger)

    def notes(self) -> dict[str, bytes]:
        """The manifests that are to be put, by their names; none where all is listed."""
        last, unlisted = self._ledger.unlisted(self._algorithm)
        if not unlisted:
            return {}
        self._written = self._filled(last, unlisted)
        changed = self._ledger.listing_again(self._written[0].first, unlisted[-1])
        return {one.name: self._text(one) for one in (*changed, *self._written)}

    def note_put(self) -> None:
        """The notes were put, all of them."""
        self._ledger.listed(self._written)

    def _filled(self, last: Manifest | None, unlisted: Sequence[int]) -> list[Manifest]:
        """The manifest that is not full, and new ones, with deliveries that none lists."""
        is_open = last is not None and last.algorithm == self._algorithm and last.lines < MOST_LINES
        filled = [last] if last is not None and is_open else []
        left = list(unlisted)
        while left:
            if not filled or filled[-1].lines >= MOST_LINES:
                filled.append(Manifest(left[0], left[0] - 1, self._new_name(), self._algorithm, 0))
            room = MOST_LINES - filled[-1].lines
            some, left = left[:room], left[room:]
            filled[-1] = filled[-1]._replace(last=some[-1], lines=filled[-1].lines + len(some))
        self._ledger.reserve(filled)
        return filled

    def _new_name(self) -> str:
        """A name that no other stream, and no earlier ledger of this one, has given."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return f"{self._algorithm.upper()}SUMS.{self._stream}.{moment}.{os.urandom(4).hex()}"

    def _text(self, one: Manifest) -> bytes:
        return b"".join(checksum_line(digest, path) for path, digest in self._ledger.listing(one))

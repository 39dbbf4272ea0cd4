"""What happens as JSON for machines: one object on each line, of ASCII (docs/commands.rst)."""

from __future__ import annotations

import sys
import threading
import time
from functools import lru_cache
from json import JSONEncoder
from typing import Any, Self, TextIO

from mistamover.events import Event, Kind, Summary
from mistamover.lines import redacted
from mistamover.options import Settings
from mistamover.worker import Ticker

HELD_BACK = 200
"""Lines that wait at most: a write for each would cost more than moving a small file."""

# Lone surrogates, which stand for bytes that are no UTF-8, come as \udc80 to \udcff: ASCII, and they go back.
encode = JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def moment(seconds: float) -> str:
    """A time as ISO 8601 in UTC, to the millisecond; from seconds since the epoch."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03}Z"


@lru_cache(1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Lines:
    """Writes events and the summary to standard output, at least once a second."""

    def __init__(self, settings: Settings, *, verbose: bool = False, out: TextIO | None = None) -> None:
        self._name = settings.name
        self._algorithm = settings.outgoing.checksum
        self._verbose = verbose
        self._out = sys.stdout if out is None else out
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._ticker = Ticker(self.flush)
        self._is_read = True

    def __enter__(self) -> Self:
        self._ticker.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._ticker.__exit__()

    def event(self, event: Event) -> None:
        """Add what happened. Units that a mirror left alone are many and no news: only where asked for."""
        if event.kind is not Kind.UNCHANGED or self._verbose:
            self._add(_event(event, self._algorithm))

    def summary(self, summary: Summary) -> None:
        """Add what it all came to."""
        self.last(_summary(summary))

    def last(self, fields: dict[str, Any]) -> None:
        """Add the last object, and write all that was held back."""
        self._add({"event": "summary", "stream": self._name, **fields, "time": moment(time.time())})
        self.flush()

    def _add(self, fields: dict[str, Any]) -> None:
        line = encode(fields)
        with self._lock:
            self._lines.append(line)
        if len(self._lines) >= HELD_BACK:
            self.flush()

    def flush(self) -> None:
        """Write what was held back; where nobody reads any more, the stream goes on all the same."""
        with self._lock:
            lines, self._lines = self._lines, []
            if lines and self._is_read:
                try:
                    self._out.write("\n".join(lines) + "\n")
                    self._out.flush()
                except (OSError, ValueError):
                    self._is_read = False


def _event(event: Event, algorithm: str) -> dict[str, Any]:
    unit = event.unit
    return {
        "event": event.kind.value,
        "path": event.path,
        "bytes": None if unit is None else unit.size,
        "digest": unit.digest if unit else "",
        "algorithm": algorithm if unit and unit.digest else "",
        "proof": unit.proof if unit else "",
        "reason": redacted(event.reason),
        "time": moment(time.time()),
    }


_COUNTS = (
    Kind.ARRIVED,
    Kind.REFUSED,
    Kind.DELIVERED,
    Kind.REMOVED,
    Kind.UNCHANGED,
    Kind.WAITING,
    Kind.QUARANTINED,
    Kind.CHANGED,
    Kind.SETTLING,
    Kind.VANISHED,
    Kind.NOT_REMOVED,
    Kind.SKIPPED,
)


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        **{kind.value: summary.counts[kind] for kind in _COUNTS},
        "found": summary.found,
        "bytes": summary.delivered_bytes,
        "seconds": round(summary.seconds, 3),
        "proofs": dict(summary.proofs),
        "awaited": summary.awaited,
        "paused": summary.is_paused,
        "error": redacted(str(summary.error or "")),
        "exit": int(summary.exit),
    }

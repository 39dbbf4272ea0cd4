"""How often the tests have killed something on its way, by protocol: each notes it, and the run's end tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

PROPERTY = "kill points"

_hit: Counter[str] = Counter()


def note(protocol: str) -> None:
    """A run over this protocol was killed where a test wanted it."""
    _hit[protocol] += 1


def taken() -> list[tuple[str, object]]:
    """What was noted since the last call, as a property of the test that did so; nothing where that is nothing."""
    hit = dict(_hit)
    _hit.clear()
    return [(PROPERTY, hit)] if hit else []


def of_all(properties: Iterable[tuple[str, object]]) -> Counter[str]:
    """What all tests have hit, by their properties."""
    hit: Counter[str] = Counter()
    for name, value in properties:
        if name == PROPERTY and isinstance(value, Mapping):
            hit.update(value)
    return hit

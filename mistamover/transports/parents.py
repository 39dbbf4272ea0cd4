"""The directories at the target that units lie in: which have to be made, and which cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum

from mistamover.errors import UnitError, UnitRefused
from mistamover.unit import Unit


class Stands(Enum):
    """What is found at a path below the target."""

    NOTHING = "nothing"
    DIRECTORY = "directory"
    OTHER = "other"


Look = Callable[[Sequence[str]], Mapping[str, Stands]]
Make = Callable[[Sequence[str]], Mapping[str, UnitError]]


def make_parents(units: Iterable[Unit], look: Look, make: Make) -> tuple[dict[str, UnitError], set[str]]:
    """Make the directories that the units lie in; gives the error of each that cannot be had.

    And those in which something was made. ``make`` is given directories, parents first, and answers those that
    it was refused.

    They are looked at each time: nothing is to be made or published through a link that took one's place.
    """
    directories = {directory(unit) for unit in units}
    wanted = sorted({part for path in directories for part in (*parents(path), path)} - {""})
    found = look(wanted)
    broken: dict[str, UnitError] = {path: no_directory() for path in wanted if found[path] is Stands.OTHER}
    new = [path for path in wanted if found[path] is Stands.NOTHING and not _first(broken, parents(path))]
    if refused := make(new):
        for path, stands in look(list(refused)).items():
            if stands is not Stands.DIRECTORY:  # another lane may have made it
                broken[path] = refused[path] if stands is Stands.NOTHING else no_directory()
    changed = {path.rpartition("/")[0] for path in new if path not in broken}
    lost = {path: error for path in directories if (error := _first(broken, (*parents(path), path)))}
    return lost, changed


def within_directories(units: Iterable[Unit], look: Look) -> list[Unit]:
    """The units of which all parents are directories at the target, and no links."""
    units = list(units)
    above = {unit.final: parents(unit.final) for unit in units}
    found = look(sorted({path for paths in above.values() for path in paths}))
    return [unit for unit in units if all(found[path] is Stands.DIRECTORY for path in above[unit.final])]


def directory(unit: Unit) -> str:
    """The directory that a unit lies in, below the target; empty for the target itself."""
    return unit.final.rpartition("/")[0]


def parents(path: str) -> list[str]:
    """``a/b/c`` gives ``a`` and ``a/b``."""
    parts = path.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts))]


def _first(broken: Mapping[str, UnitError], paths: Iterable[str]) -> UnitError | None:
    return next((broken[path] for path in paths if path in broken), None)


def no_directory() -> UnitError:
    """The error of a unit that would be published through a link, or below a file."""
    return UnitRefused("a link or a file stands at the target where one of its directories should be")

"""What rsync's answers mean for units and for the target, and how its filter rules name paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mistamover.errors import NotTaken, TargetDown, TargetFull, TargetRefused, UnitError, UnitRefused
from mistamover.transports.contract import taken
from mistamover.transports.rsync_run import Item, Result
from mistamover.unit import Unit

# -- answers -----------------------------------------------------------------------------------------------


@contextmanager
def target_refused() -> Iterator[None]:
    """What receivers answer where a parent of the target is missing, or a file stands in its place."""
    try:
        yield
    except TargetDown as error:
        if any(text in str(error) for text in ("No such file or directory", "File exists", "Not a directory")):
            raise TargetRefused(str(error)) from error
        raise


def is_there(item: Item | None) -> bool:
    """Whether a dry run found a directory where the tree has one."""
    return item is not None and item.change.startswith(".d")


def full() -> UnitError:
    """The error of a unit for which there was no room."""
    return TargetFull("the target is full; make room there")


def why_not_staged(unit: Unit, result: Result) -> UnitError:
    """Why a unit is not staged as it should be, by the messages of the run that sent it."""
    said = result.about(unit.final)
    if "File name too long" in said:
        return UnitRefused(f"the target cannot hold a file of that name: {said}")
    if result.is_full:
        return full()
    return NotTaken(f"the target could not take it: {said}")


def why_not_published(unit: Unit, result: Result) -> UnitError:
    """Why a unit did not get its name, by the messages of the run that was to give it."""
    said = result.about(unit.final)
    if result.code == 0:
        return taken()  # somebody took the name since we looked
    if result.is_full or "File name too long" in said:
        return why_not_staged(unit, result)
    if "ermission denied" in said:
        return NotTaken(f"the target allows no such file there: {said}; give the account the right to write")
    return UnitError(f"the target cannot give it its name: {said}")


# -- filter rules (rsync(1), FILTER RULES) -----------------------------------------------------------------


def literal(name: str) -> str:
    """A name as filter rules take it: only where it holds wildcards does a backslash escape them, and itself."""
    return re.sub(r"([*?\[\\])", r"\\\1", name) if re.search(r"[*?[]", name) else name


def pattern(name: str) -> str:
    """The same where the rule has wildcards of its own."""
    return re.sub(r"([*?\[\\])", r"\\\1", name)

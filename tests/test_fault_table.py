"""The table of faults is whole, and what it says to be shown by a test is shown by one that is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/faults.rst"
FAULTS = 82
HEAD = ["no.", "fault", "what happens", "shown by"]
REASONS = ("impossible here: ", "accepted: ")
"""What may stand where no test does."""

Row = list[str]


def rows(text: str) -> list[Row]:
    """The cells of all rows but the heads, each in one line."""
    cells = [
        re.split(r"^ +- ", row, flags=re.MULTILINE) for row in re.split(r"^   \* - ", text, flags=re.MULTILINE)
    ]
    found = [[" ".join(cell.split("\n\n")[0].split()) for cell in row] for row in cells[1:]]
    return [row for row in found if row != HEAD]


def faults_of(row: Row) -> Iterator[str]:
    """What is wrong with a row, for a person."""
    if len(row) != len(HEAD) or not row[0].isdigit() or not all(row):
        yield f"not four cells, the first a number: {row}"
        return
    number, *_, shown = row
    tests = re.findall(r"``((?:tests|mistamover/testing)/\S+?\.py)::(\w+)``", shown)
    if not tests and not shown.startswith(REASONS):
        yield f"{number} names neither a test nor a reason: {shown}"
    for path, name in tests:
        if name not in names_in(ROOT / path):
            yield f"{number} names {path}::{name}, which is not there"
    if shown.count("::") != len(tests):
        yield f"{number} has a name of a test in another form: {shown}"


@cache
def names_in(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    found = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    return frozenset(node.name for node in found if node.name.startswith("test_"))


def test_each_row_says_what_shows_it() -> None:
    assert [fault for row in rows(PAGE.read_text()) for fault in faults_of(row)] == []


def test_the_faults_are_all_there_in_their_order() -> None:
    assert [int(row[0]) for row in rows(PAGE.read_text())] == list(range(1, FAULTS + 1))


GOOD = """
   * - 1
     - kill
     - nothing
     - ``tests/test_fault_table.py::test_each_row_says_what_shows_it``,
       ``tests/test_fault_table.py::test_the_faults_are_all_there_in_their_order``
"""


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("each_row", "no_row"),
        GOOD.replace("test_fault_table", "test_nothing"),
        GOOD.replace("``", ""),
        GOOD.replace("tests/", "", 1),
        GOOD.replace("- 1", "- one"),
        GOOD.replace("     - nothing\n", ""),
        GOOD[: GOOD.index("     - ``")] + "     - we hope\n",
    ],
)
def test_what_is_wrong_is_found(text: str) -> None:
    assert [fault for row in rows(GOOD) for fault in faults_of(row)] == []
    assert [fault for row in rows(text) for fault in faults_of(row)]

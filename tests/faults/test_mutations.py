"""The detectors are tested: each promise is broken on purpose in a copy of the program, and a test has to go red.

A mutation that survives is a missing test. So that the table in ``mutations.py`` follows the program, each text has
to be in it exactly once, and each test has to be there: that is looked at in every run of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from mistamover import testing
from tests.faults.mutations import MUTATIONS, Mutation
from tests.test_fault_table import ROOT, names_in

PROMISES = range(1, 10)
"""Those of docs/design.rst."""
SUITES = Path(testing.__file__).parent / "contract.py"
"""Where tests are that classes of tests have from others."""
BESIDE = ("pyproject.toml", "bin", "conf", "docs", "benchmarks")
"""What tests look for next to the package."""
EVERY = "campaign or not campaign"
DEADLINE = 300
"""Seconds for one test, with all the programs that it starts."""


def test_each_mutation_fits() -> None:
    """Its text is there, and its test."""
    assert [wrong for mutation in MUTATIONS for wrong in what_does_not_fit(mutation)] == []


def what_does_not_fit(mutation: Mutation) -> Iterator[str]:
    count = source_of(mutation.file).count(mutation.old)
    if count != 1:
        yield f"{mutation}: its text is {count} times in {mutation.file}: have the table follow the program"
    path, *_, name = mutation.test.split("::")
    if name not in names_in(ROOT / path) | names_in(SUITES):
        yield f"{mutation}: {path} has no test {name}"


@cache
def source_of(file: str) -> str:
    return (ROOT / "mistamover" / file).read_text()


def test_each_promise_is_broken() -> None:
    assert {mutation.promise for mutation in MUTATIONS} == set(PROMISES)
    assert len({str(mutation) for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.campaign
@pytest.mark.timeout(DEADLINE + 60)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_caught(tmp_path: Path, mutation: Mutation) -> None:
    code, said = mutated(tmp_path / "mutant", mutation)
    if code == 0 and " skipped" in said and " passed" not in said:
        pytest.skip(f"its test was not run: {said.splitlines()[-1]}")
    assert code == 1, f"survived: no test noticed that promise {mutation.promise} is broken:\n{said}"
    assert re.search(r"^FAILED ", said, re.MULTILINE), f"no test failed, but something else did:\n{said}"


def mutated(place: Path, mutation: Mutation) -> tuple[int, str]:
    """Run the mutation's test on a copy of the program in which it is made; gives exit code and output."""
    for name in ("mistamover", "tests"):
        shutil.copytree(ROOT / name, place / name)
    for name in BESIDE:
        (place / name).symlink_to(ROOT / name)
    path = place / "mistamover" / mutation.file
    path.write_text(path.read_text().replace(mutation.old, mutation.new))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    argv = ["-m", "pytest", "-x", "-q", "-rf", "-m", EVERY, "-p", "no:cacheprovider", mutation.test]
    said = place / "said"
    # What is left of a program that leaves processes behind would hold a pipe open.
    with said.open("wb") as file:
        run = subprocess.Popen(
            [sys.executable, *argv],
            cwd=place,
            env={**kept, "PYTHONPATH": str(place)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            code = run.wait(DEADLINE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    return code, said.read_text(errors="replace")

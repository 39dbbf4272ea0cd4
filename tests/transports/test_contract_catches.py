"""The conformance suite finds planted bugs: each of these transports is the local one, spoilt in one way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from mistamover.errors import NotVerified, TargetRefused, UnitError
from mistamover.transports.contract import Proof
from mistamover.transports.local import Local
from mistamover.unit import Directory, Outcome, Unit


class AlwaysAgrees(Local):
    """Verifies nothing, and says that it did."""

    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        for unit in units:
            yield Outcome(unit._replace(proof=Proof.READBACK.value))


class LooksAtSizesOnly(Local):
    """Takes an equal length for proof."""

    def verify(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        for unit in units:
            staged = Path(self.staging, unit.staged)
            if staged.exists() and staged.stat().st_size == unit.size:
                yield Outcome(unit._replace(proof=Proof.READBACK.value))
            else:
                yield Outcome(unit, NotVerified("another size"))


class DoesNotStage(Local):
    """Sends straight to the final name."""

    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        for unit, error in super().send(units):
            if error is None:
                shutil.copy2(f"{self.staging}/{unit.staged}", self._final_path(unit))
            yield Outcome(unit, error)

    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        self.discard(units)
        return map(Outcome, units)

    def _final_path(self, unit: Unit) -> Path:
        path = Path(self.target, unit.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class OneBadUnitEndsTheBatch(Local):
    """Raises what it should give."""

    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        for outcome in super().send(units):
            if outcome.error is not None:
                raise outcome.error
            yield outcome


class OneBadUnitIsLeftOut(Local):
    """Says nothing of those that failed."""

    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        return (outcome for outcome in super().send(units) if outcome.error is None)


class MakesAMissingTarget(Local):
    """Fills the mount point of a disk that is not mounted."""

    def open(self) -> Self:
        os.makedirs(self.target, exist_ok=True)
        return super().open()


class Overwrites(Local):
    """Replaces whatever stands under the name."""

    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        self.replaces = True
        return super().publish(units)


class FollowsLinks(Local):
    """Publishes by paths, so that links in the target lead it out of there."""

    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        for unit in units:
            final = Path(self.target, unit.path)
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                os.link(f"{self.staging}/{unit.staged}", final)
                os.unlink(f"{self.staging}/{unit.staged}")
            except OSError as error:
                yield Outcome(unit, UnitError(str(error)))
            else:
                yield Outcome(unit)


class SweepsAll(Local):
    """Removes what other streams and hosts have staged."""

    def sweep(self) -> int:
        swept = super().sweep()
        for name in os.listdir(self._staging):
            os.unlink(name, dir_fd=self._staging)
        return swept


class DiscardsAll(Local):
    """Removes what nobody named."""

    def discard(self, units: Iterable[Unit]) -> None:
        super().discard(units)
        self.sweep()


class DiscardsNothing(Local):
    """Leaves what failed where it is."""

    def discard(self, units: Iterable[Unit]) -> None:
        pass


class ForgetsTimes(Local):
    """Gives each file the time of its delivery."""

    def publish(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        for unit in units:
            if os.path.exists(f"{self.staging}/{unit.staged}"):
                os.utime(f"{self.staging}/{unit.staged}")
        return super().publish(units)


class AppendsWhenItSendsAgain(Local):
    """Does not truncate what an earlier try left."""

    def send(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        before = {}
        for unit in units:
            staged = Path(self.staging, unit.staged)
            if staged.exists():
                before[unit.staged] = staged.read_bytes()
        for outcome in super().send(units):
            left = before.get(outcome.unit.staged, b"")[outcome.unit.size :]
            if outcome.error is None and left:
                with Path(self.staging, outcome.unit.staged).open("ab") as file:
                    file.write(left)
            yield outcome


class SaysItIsNeverStopped(Local):
    """Does not look for the stop file."""

    def is_stopped(self) -> bool:
        return False


class GivesASecondTarget(Local):
    """Takes a file for a target, and finds another place."""

    def open(self) -> Self:
        try:
            return super().open()
        except TargetRefused:
            self.close()
            self.target += ".d"
            os.makedirs(self.target, exist_ok=True)
            return super().open()


class ShowsDirectoriesWhileTheyFill(Local):
    """Publishes the files of a directory one by one."""

    def place(self, directory: Unit, units: Sequence[Unit]) -> Iterator[Outcome]:
        return self.publish(units)


class MergesDirectories(Local):
    """Adds what it has to what stands there."""

    def publish_directory(self, tree: Directory) -> None:
        there = Path(self.target, tree.unit.path)
        if not there.is_dir() or there.is_symlink():
            return super().publish_directory(tree)
        shutil.copytree(f"{self.staging}/{tree.unit.staged}", there, dirs_exist_ok=True)
        return self.discard_directories([tree.unit])


class ForgetsEmptyDirectories(Local):
    """Makes only those that files lie in."""

    def publish_directory(self, tree: Directory) -> None:
        super().publish_directory(tree._replace(folders=tree.folders[:1]))


class FollowsLinksOfTheOldVersion(Local):
    """Removes by paths what it replaces, and what links there lead to."""

    def publish_directory(self, tree: Directory) -> None:
        for path in Path(self.target, tree.unit.path).rglob("*"):
            if path.is_symlink() and tree.unit.is_update:
                shutil.rmtree(os.path.realpath(path), ignore_errors=True)
        super().publish_directory(tree)


class SweepsFilesAlone(Local):
    """Leaves the trees of directories where they are."""

    def _remove_staged(self, name: str) -> None:
        if not os.path.isdir(f"{self.staging}/{name}"):
            super()._remove_staged(name)


CATCHES = {
    AlwaysAgrees: "test_verify_finds_what_is_damaged_and_nothing_else",
    LooksAtSizesOnly: "test_verify_finds_what_is_damaged_and_nothing_else",
    DoesNotStage: "test_nothing_shows_before_it_is_published",
    OneBadUnitEndsTheBatch: "test_a_bad_unit_never_ends_the_batch",
    OneBadUnitIsLeftOut: "test_a_bad_unit_never_ends_the_batch",
    MakesAMissingTarget: "test_a_missing_target_is_refused_and_not_made",
    Overwrites: "test_a_name_that_is_taken_stays_as_it_is",
    FollowsLinks: "test_what_stands_in_a_directorys_place_refuses_the_unit",
    SweepsAll: "test_sweep_removes_what_this_stream_left_and_nothing_else",
    DiscardsAll: "test_discard_removes_what_is_named_and_nothing_else",
    DiscardsNothing: "test_discard_removes_what_is_named_and_nothing_else",
    ForgetsTimes: "test_times_are_kept",
    AppendsWhenItSendsAgain: "test_sending_again_writes_anew",
    SaysItIsNeverStopped: "test_a_stop_file_is_seen",
    GivesASecondTarget: "test_what_is_no_directory_is_refused",
    ShowsDirectoriesWhileTheyFill: "test_a_directory_arrives_as_a_whole",
    MergesDirectories: "test_a_directory_whose_name_is_taken_stays_staged",
    ForgetsEmptyDirectories: "test_a_directory_arrives_as_a_whole",
    FollowsLinksOfTheOldVersion: "test_a_directory_replaces_an_earlier_version_and_nothing_outside",
    SweepsFilesAlone: "test_what_a_crash_left_of_a_directory_is_swept",
}
"""Each bug, and the test that is there to find it."""

SUITE = """
    from tests.transports.test_contract_catches import {kind}
    from tests.transports.test_local import LocalContract

    class TestSpoilt(LocalContract):
        kind = {kind}
"""


@pytest.mark.parametrize(("kind", "test"), CATCHES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_found(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, kind: type[Local], test: str
) -> None:
    assert failures(pytester, monkeypatch, kind, {test}) == {test}


def test_the_transport_without_a_bug_passes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(pytester, monkeypatch, Local, set(CATCHES.values())) == set()


def failures(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, kind: type[Local], tests: set[str]
) -> set[str]:
    """Run these tests of the suite on a transport; gives those that failed."""
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(test_spoilt=SUITE.format(kind=kind.__name__))
    result = pytester.inline_run(
        "-p", "mistamover.testing.plugin", "-p", "no:cacheprovider", "-p", "no:terminal", "-k", " or ".join(tests)
    )
    passed, skipped, failed = result.listoutcomes()
    assert not skipped
    run = {_test(report) for report in (*passed, *failed)}
    assert run == tests, "not all of them were run"
    return {_test(report) for report in failed}


def _test(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The test's own name, of ``file.py::Class::test[parameters]``."""
    return report.nodeid.rpartition("::")[2].partition("[")[0]

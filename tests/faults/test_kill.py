"""SIGKILL of our process at each system call that changes what is on disk, then a run that nobody disturbs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from mistamover.testing.needs import require
from tests.daemon import running
from tests.faults.rig import Options, Rig, Server, at_rest, strace, was_killed
from tests.ftpd import Proftpd
from tests.rsyncd import Rsyncd
from tests.sshd import Sshd

pytestmark = pytest.mark.needs("strace")

MANY = 200
SMALL_TREE = {
    "one": b"1",
    "two": b"22" * 1000,
    "a/empty": b"",
    "a/b/four": b"4444" * 3000,
    "a/b/five": b"5" * 70_000,
    "c/six": b"666666",
}
SPOOL = (".", ".mistamover")
TRASH = (".mistamover/trash",)
QUARANTINE = (*SPOOL, ".mistamover/quarantine", ".mistamover/quarantine/6", "a/b")
MIRROR: Options = {"outgoing": {"transfer_mode": "mirror"}}
EACH: tuple[int, ...] = ()
"""Kill at each call, not only at those of some numbers."""


def fill(rig: Rig) -> None:
    for name, data in SMALL_TREE.items():
        rig.oracle.put(name, data)


def second_version(rig: Rig) -> None:
    """All was mirrored; then everything was changed."""
    rig.write(MIRROR)
    fill(rig)
    rig.run_clean()
    for name, data in SMALL_TREE.items():
        rig.oracle.replace(name, b"2nd " + data)


def taken(rig: Rig) -> None:
    """One name is another program's at the target."""
    fill(rig)
    rig.oracle.put_at_target("a/b/four", b"theirs")


def twice_killed(rig: Rig) -> None:
    """An earlier run was killed between taking a source out of the spool and removing it."""
    fill(rig)
    assert was_killed(rig.run(under=strace("unlinkat", "signal=SIGKILL:when=3")))
    assert rig.oracle.set_aside()


def most_calls(log: Path) -> int:
    """How often the busiest thread made a call, by strace's log: it counts for each thread and call."""
    calls = re.findall(r"^(\d+) +(\w+)\(", log.read_text(errors="replace"), re.MULTILINE)
    return max(Counter(calls).values(), default=0)


def sweep(*cases: tuple[object, ...]) -> list[ParameterSet]:
    """Each case as it is, its last value the calls at which to kill; and with all of them where there is time."""
    every = [
        pytest.param(*case[:-1], EACH, marks=[pytest.mark.campaign, pytest.mark.timeout(900)]) for case in cases
    ]
    return [*(pytest.param(*case) for case in cases), *every]


def kill_everywhere(
    base: Path,
    call: str,
    numbers: Sequence[int],
    prepare: Callable[[Rig], None] = fill,
    *,
    server: Server | None = None,
    connector: str = "openssh",
    places: tuple[str, ...] = (),
) -> list[Rig]:
    """Kill a run at this system call: at those of these numbers, or at its first one, its second and so on.

    Then let each be followed by another run. ``places``: only calls on these directories of the spool.
    """
    rigs: list[Rig] = []
    log = base / "strace.log"
    for number in numbers or count(1):
        assert number < MANY, "no run survives"
        rig = Rig(base / str(number), server, connector)
        prepare(rig)
        rigs.append(rig)
        paths = [rig.spool / place for place in places]
        run = rig.run(under=strace(call, f"signal=SIGKILL:when={number}", paths=paths, log=log))
        rig.oracle.check()
        if not was_killed(run):
            assert not numbers, f"a run should have been killed and was not: {run.text}"
            assert number > most_calls(log), f"a run should have been killed and was not: {run.text}"
            break
    at_rest(server)
    for rig in rigs:
        run = rig.run()
        if rig.oracle.theirs:
            assert run.code in (0, 1), run.text  # the killed run may have set it aside already
            rig.oracle.check()
        else:
            assert run.code == 0, run.text
            rig.oracle.check_delivered()
    assert numbers or len(rigs) > 1, f"no run makes the call {call}"
    return rigs


# strace counts the calls of each thread by itself: those that only one thread makes are all hit. Where the main
# thread and the lane both make it, those of the main thread are in the spool.
@pytest.mark.parametrize(
    ("call", "places", "numbers"),
    sweep(
        ("mkdirat", (), (5,)),
        ("mkdirat", SPOOL, (2,)),
        ("fsync", (), (6, 11)),
        ("fsync", SPOOL, (1,)),
        ("renameat2", (), (4,)),
        ("renameat2", TRASH, (2,)),
        ("unlinkat", (), (3,)),
        ("fdatasync", (), (5, 9, 12)),
        ("ftruncate", (), (2,)),
    ),
)
def test_local(tmp_path: Path, call: str, places: tuple[str, ...], numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, places=places)


@pytest.mark.parametrize(("call", "numbers"), sweep(("unlinkat", (1, 3)), ("fdatasync", (4,))))
def test_recovery_itself(tmp_path: Path, call: str, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, twice_killed)


@pytest.mark.parametrize(
    ("call", "places", "numbers"),
    sweep(("mkdirat", SPOOL, (4,)), ("renameat2", QUARANTINE, (3,)), ("fdatasync", (), (9, 14))),
)
def test_quarantine(tmp_path: Path, call: str, places: tuple[str, ...], numbers: tuple[int, ...]) -> None:
    for rig in kill_everywhere(tmp_path, call, numbers, taken, places=places):
        assert rig.oracle.quarantined() == ["four"]
        reasons = [path.read_text() for path in (rig.spool / ".mistamover/quarantine").glob("*/.reason")]
        assert len(reasons) == 1
        assert "another file" in reasons[0]


@pytest.mark.parametrize(("call", "numbers"), sweep(("renameat", (3,)), ("fsync", (8,)), ("fdatasync", (3,))))
def test_mirror(tmp_path: Path, call: str, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, second_version)


@pytest.mark.needs("sshd", "ssh", "ssh-keygen")
@pytest.mark.parametrize(
    ("call", "numbers"),
    sweep(("writev", (8, 19)), ("renameat2", (3,)), ("unlinkat", (4,)), ("fdatasync", (9,))),
)
def test_sftp(tmp_path: Path, sshd: Sshd, call: str, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, server=sshd)


RSYNC = sweep(("symlink", (4,)), ("unlink", (3,)), ("pidfd_open", (3, 5)), ("renameat2", (3,)))


@pytest.mark.needs("sshd", "ssh", "ssh-keygen", "rsync", "setpriv")
@pytest.mark.parametrize(("call", "numbers"), RSYNC)
def test_rsync_over_ssh(tmp_path: Path, sshd: Sshd, call: str, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, server=sshd, connector="rsync_ssh")


@pytest.mark.needs("rsync", "setpriv")
@pytest.mark.parametrize(("call", "numbers"), RSYNC)
def test_rsync_to_a_daemon(tmp_path: Path, rsyncd: Rsyncd, call: str, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, server=rsyncd)


@pytest.fixture(scope="module")
def own_proftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proftpd]:
    """A server whose sessions may be killed."""
    require("root", "proftpd", "openssl")
    with running(Proftpd(tmp_path_factory.mktemp("proftpd"))) as server:
        yield server


# Each command, and each piece of a file, leaves us by a sendto.
@pytest.mark.parametrize(
    ("call", "numbers"),
    sweep(("sendto", (15, 29)), ("connect", (4,)), ("renameat2", (3,)), ("fdatasync", (9,))),
)
def test_ftp(tmp_path: Path, own_proftpd: Proftpd, call: str, numbers: tuple[int, ...]) -> None:
    kill_everywhere(tmp_path, call, numbers, server=own_proftpd)


@pytest.mark.parametrize("numbers", sweep(((25,),)))
def test_a_mirror_by_ftp(tmp_path: Path, own_proftpd: Proftpd, numbers: tuple[int, ...]) -> None:
    """A version takes another's place by one of the commands that are sent."""
    kill_everywhere(tmp_path, "sendto", numbers, second_version, server=own_proftpd)

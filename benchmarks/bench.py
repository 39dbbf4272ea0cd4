"""Time whole commands in turn, ours and the peers', and print their medians and our ratio to each."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import data, movers
from benchmarks.data import FileSet
from benchmarks.movers import COURSES, GOALS, OURS, Mover
from benchmarks.relay import ONE_WAY
from benchmarks.rig import Rig, Run, rig, run

RESULTS = Path(__file__).parent / "results"
SETTLED = 5.5
"""Seconds after which a file is older than our default settle_time; waited for outside the timing."""
MEMORY_GOAL_MIB = 100
SCAN_GOAL_SECONDS = 1.0
NEEDED_GIB = 5


@dataclass
class Result:
    """All runs of one mover with one set."""

    course: str
    set: str
    mover: str
    runs: list[Run] = field(default_factory=list)

    @property
    def failed(self) -> str | None:
        """Why a run failed: a mover that failed once has no time."""
        return next((one.failed for one in self.runs if one.failed), None)

    @property
    def median(self) -> float | None:
        """The middle one of all times."""
        return None if self.failed or not self.runs else statistics.median(one.seconds for one in self.runs)

    @property
    def peak_mib(self) -> float:
        """The most memory of all runs."""
        return max((one.peak_mib for one in self.runs), default=0.0)


@dataclass
class Crowd:
    """What a spool of very many files costs."""

    move: Run
    """Moving all of them, between two directories of this host."""
    scan_seconds: float
    """Finding all of them, the scan alone."""


_SCAN = """
import sys, time
from pathlib import Path
from mistamover.spool import Spool
from mistamover.unit import Ignored
spool = Spool(Path(sys.argv[1]), mirror=True)
began = time.perf_counter()
found = sum(1 for _ in spool.scan(Ignored(())))
print(found, time.perf_counter() - began)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; 1 when any run failed."""
    options = parse(arguments)
    if reason := unfit(options):
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    # So that all is taken down after "kill", too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    results: list[Result] = []
    crowd = None
    with rig() as place:
        for files in options.sets:
            results += measure(place, files, options)
        if options.crowd:
            crowd = measure_crowd(place)
    report(results, crowd)
    print(f"\nsaved as {save(results, crowd, options.runs)}")
    if options.rst is not None:
        options.rst.write_text(page(results, crowd, options.runs))
    return int(any(result.failed for result in results))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    every = [mover.name for course in COURSES.values() for mover in course.movers if mover.name != OURS]
    peers = list(dict.fromkeys(every))
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--sets", type=_choice(list(data.SETS)), default=list(data.SETS), metavar="SET,...")
    parser.add_argument("--courses", type=_choice(list(COURSES)), default=list(COURSES), metavar="COURSE,...")
    parser.add_argument("--peers", type=_choice(peers), metavar="PEER,...")
    parser.add_argument("--all", action="store_const", const=peers, dest="peers", help="all peers")
    parser.add_argument("--runs", type=int, default=int(os.environ.get("RUNS", "3")), help="of each command")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the page of the documentation")
    parser.add_argument("--no-ours", action="store_false", dest="ours", help="time the peers only")
    parser.add_argument("--no-crowd", action="store_false", dest="crowd", help="skip the 100,000 files")
    options = parser.parse_args(arguments)
    options.sets = [data.SETS[name] for name in options.sets]
    options.crowd &= options.ours
    return options


def _choice(known: list[str]) -> Callable[[str], list[str]]:
    def choose(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {unknown[0]}; known are {', '.join(known)}")
        return names

    return choose


def unfit(options: argparse.Namespace) -> str | None:
    """Say why nothing can be measured here."""
    if os.geteuid() != 0:
        return "needs root: it mounts tmpfs and makes an account"
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < NEEDED_GIB * data.GIB:
        return f"needs {NEEDED_GIB} GiB of free memory, since all files are on tmpfs"
    if options.ours and not os.access(movers.program(), os.X_OK):
        return f"{movers.program()} is not there: make venv"
    lacking = [name for name in ("sshd", *_peers(options)) if shutil.which(name) is None]
    return f"needs {lacking[0]}" if lacking else None


def _peers(options: argparse.Namespace) -> set[str]:
    """The peers that are to be timed."""
    return set(options.peers or [name for course in options.courses for name in COURSES[course].usual_peers])


def _takes_part(mover: Mover, course: str, options: argparse.Namespace) -> bool:
    if mover.name == OURS:
        return bool(options.ours)
    return mover.name in (options.peers or COURSES[course].usual_peers)


def measure(place: Rig, files: FileSet, options: argparse.Namespace) -> list[Result]:
    """Time all movers with one set, in turn, so that a noisy moment does not hit one alone."""
    master = place.near / "master"
    data.make(files, master)
    expected = data.manifest(master)
    chosen = [
        (Result(course, files.name, mover.name), mover)
        for course in options.courses
        for mover in COURSES[course].movers
        if files.name in COURSES[course].sets and _takes_part(mover, course, options)
    ]
    for turn in range(options.runs):
        for result, mover in chosen:
            place.lay(master)
            here = place.at_a_distance() if COURSES[result.course].is_distant else place
            result.runs.append(one := measure_once(here, mover, expected))
            told = f"FAILED: {one.failed}" if one.failed else f"{one.seconds:.2f} s"
            print(f"{files} {result.course} {turn + 1}/{options.runs} {mover.name}: {told}", file=sys.stderr)
    place.clear()
    shutil.rmtree(master)
    return [result for result, _ in chosen]


def measure_once(place: Rig, mover: Mover, expected: data.Manifest) -> Run:
    """Time one command and look whether it did what it was asked for."""
    command = mover.command(place)
    if mover.name == OURS:
        settle(place.spool)
    one = run(command, place.environment(), place.scratch / "output")
    if not one.failed:
        wrong = data.what_is_wrong(expected, place.spool, place.target, emptied=mover.removes)
        one = Run(one.seconds, one.peak_mib, wrong)
    return one


def settle(spool: Path) -> None:
    """Wait until our program would not wait any more."""
    time.sleep(max(0.0, data.newest_change(spool) + SETTLED - time.time()))


def measure_crowd(place: Rig) -> Crowd:
    """Scan a very large spool, then move it."""
    place.clear()
    data.make(data.EMPTY, place.spool)
    settle(place.spool)
    scan = [sys.executable, "-c", _SCAN, str(place.spool)]
    done = subprocess.run(scan, env=place.environment(), capture_output=True, text=True, check=True)
    found, seconds = done.stdout.split()
    move = run(movers.ours_locally(place), place.environment(), place.scratch / "output")
    place.clear()
    if int(found) != data.EMPTY.count:
        move = Run(move.seconds, move.peak_mib, f"the scan found {found} files")
    return Crowd(move, float(seconds))


def report(results: Sequence[Result], crowd: Crowd | None) -> None:
    """Print the tables."""
    for course in COURSES:
        if own := [result for result in results if result.course == course]:
            print(f"\n{course}: whole commands, median of {len(own[0].runs)}\n")
            print(table(own))
    ours = [result for result in results if result.mover == OURS]
    if ours:
        print(f"\npeak memory (goal {MEMORY_GOAL_MIB} MiB)\n")
    for result in ours:
        print(f"  {data.SETS[result.set]!s:16} {result.course:6} {result.peak_mib:6.1f} MiB")
    if crowd:
        print(f"  {data.EMPTY!s:16} {told_crowd(crowd)}")
    for result in results:
        if result.failed:
            print(f"\nFAILED: {result.mover}, {data.SETS[result.set]}, {result.course}: {result.failed}")


def table(results: Sequence[Result]) -> str:
    """Lay out the medians of one course for a terminal."""
    lines = rows(results)
    widths = [max(map(len, column)) for column in zip(*lines, strict=False)]
    return "\n".join(
        "  " + "   ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=False)) for line in lines
    )


def rows(results: Sequence[Result]) -> list[list[str]]:
    """The medians of one course, a row for each set, with our ratio to each peer and its goal."""
    names = list(dict.fromkeys(result.mover for result in results))
    lines = [["", *names, *(f"ours ÷ {name}" for name in names if name != OURS and OURS in names)]]
    for files in dict.fromkeys(result.set for result in results):
        row = {result.mover: result for result in results if result.set == files}
        times = [_seconds(row[name]) for name in names]
        lines.append([str(data.SETS[files]), *times, *(_ratio(row, name) for name in names if name != OURS)])
    return lines


_PAGE = """\
Benchmarks
==========

.. Written by "make bench ARGS='--rst docs/benchmarks.rst'", which is also how to bring it up to date.

Whole commands, from their start to their end, ours and those of programs that people use for the same job: the
median of {runs}. Ours proves each file at the target before its source is removed; ``lftp`` and ``sftp`` prove
nothing, ``rclone`` compares MD5 of both ends, ``rsync`` stands for two runs of it, the second with ``--checksum``,
and ``cp`` for ``cp``, ``sync``, ``sha256sum`` at both ends, and ``rm``. A ratio stands beside its goal.

To repeat it, as root on Debian, on a machine that does nothing else and has {needed} GiB of free memory::

    make bench

Servers run on loopback (OpenSSH, rsync, ProFTPD with mod_digest), files are on tmpfs, the ledger is on disk. In the
courses that begin with ``wan``, all goes through a relay that holds each byte back for {delay:g} ms each way; a TCP
connection as such is made at once, which it is not on a real line.

{tables}

The machine
-----------

{machine}
"""


def page(results: Sequence[Result], crowd: Crowd | None, runs: int) -> str:
    """The page of the documentation that holds the tables."""
    parts = []
    for course in COURSES:
        if own := [result for result in results if result.course == course]:
            parts += [f"{course}\n{'-' * len(course)}", list_table(rows(own))]
    if crowd:
        title = "Very many files"
        parts += [f"{title}\n{'-' * len(title)}", f"{data.EMPTY}, moved between two directories of this host:"]
        parts += [f"{told_crowd(crowd).removeprefix('local').strip()}."]
    machine = "\n".join(f"- {name}: {fact}" for name, fact in facts().items() if fact is not None)
    return _PAGE.format(
        runs=runs, needed=NEEDED_GIB, delay=ONE_WAY * 1000, tables="\n\n".join(parts), machine=machine
    )


def list_table(lines: Sequence[Sequence[str]]) -> str:
    """A table in reStructuredText; its first line is its head."""
    cells = [[cell or "\\ " for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=False)]
    rule = " ".join("=" * width for width in widths)
    told = [" ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([rule, told[0], rule, *told[1:], rule])


def _seconds(result: Result) -> str:
    return "FAILED" if result.median is None else f"{result.median:.2f} s"


def _ratio(row: dict[str, Result], peer: str) -> str:
    ours, theirs = row[OURS].median if OURS in row else None, row[peer].median
    if ours is None or theirs is None:
        return "-"
    goal = GOALS.get((row[peer].course, row[peer].set, peer))
    return f"{ours / theirs:.2f}" + _against(ours / theirs, goal)


def _against(value: float, goal: float | None) -> str:
    if goal is None:
        return ""
    return f" ≤ {goal:.2f}" if value <= goal else f" > {goal:.2f} MISSED"


def told_crowd(crowd: Crowd) -> str:
    """Tell what very many files cost, in one line."""
    if crowd.move.failed:
        return f"FAILED: {crowd.move.failed}"
    return (
        f"local  {crowd.move.peak_mib:6.1f} MiB, moved in {crowd.move.seconds:.1f} s; "
        f"the scan alone {crowd.scan_seconds:.2f} s (goal {SCAN_GOAL_SECONDS:g} s)"
    )


def save(results: Sequence[Result], crowd: Crowd | None, runs: int) -> Path:
    """Write everything as JSON, with what the machine was."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    everything = {
        "machine": facts(),
        "runs": runs,
        "sets": {name: str(files) for name, files in data.SETS.items()},
        "results": [{**asdict(result), "median": result.median, "failed": result.failed} for result in results],
        "crowd": crowd and asdict(crowd),
    }
    path.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    return path


def facts() -> dict[str, str | int | None]:
    """Tell what the times depend on."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / data.GIB),
        "python": platform.python_version(),
        "ssh": _first_line("ssh", "-V"),
        "lftp": _first_line("lftp", "--version"),
        "rclone": _first_line("rclone", "version"),
        "rsync": _first_line("rsync", "--version"),
        "proftpd": _first_line("proftpd", "--version"),
        OURS: _first_line(movers.program(), "--version"),
    }


def _processor() -> str | None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return next(iter((result.stdout + result.stderr).splitlines()), None)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

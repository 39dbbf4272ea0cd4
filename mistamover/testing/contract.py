"""The conformance suite of the transport contract: what passes all of it is a transport.

A subclass says in a few lines which far side it means (``options``). The servers of the tests run on this host,
so that the target directory can be looked at, and tampered with, through the file system.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import pytest

from mistamover import digest
from mistamover.errors import (
    NameTaken,
    NotTaken,
    NotVerified,
    Parked,
    SourceMoved,
    TargetDown,
    TargetFull,
    TargetRefused,
    UnitError,
    UnitRefused,
)
from mistamover.handshake import LARGEST
from mistamover.testing.rig import (
    BIG,
    HUGE,
    STREAM,
    Rig,
    Spoilt,
    Taken,
    Tree,
    append,
    by_path,
    deliver,
    errors,
    failed,
    far_down_is,
    files,
    flip,
    good,
    make_hole,
    noise,
    place,
    prove,
    put_far_down,
    small_disk,
    tree,
    watching,
    write,
)
from mistamover.transports.contract import Level, Proof, Transport
from mistamover.unit import OWN_NAME, Outcome, Stated, Unit, named

WRITE_LENGTHS = (32768, 65536, 261120, 262144)
"""How much our transports send at once, at most; around these their loops have their corners."""
LONG = "n" * 251 + ".txt"
NAMES = (
    "plain",
    "two words",
    "-rf",
    "--help",
    "line\nbreak",
    "tab\tand\rreturn",
    "bell\a\x1b[31mred",
    "'single'",
    '"double"',
    "$(touch x)",
    "`touch x`",
    "; touch x",
    "&& touch x |",
    "*",
    "?",
    "[a]",
    "{a,b}",
    "%s",
    "%(name)s",
    "$(data_stream:name)",
    "back\\slash",
    "\\n",
    "~",
    "#",
    " leading blank",
    "trailing blank ",
    "trailing dot.",
    " ",
    "ends in newline\n",
    "caf\u00e9",
    "cafe\u0301",
    "\u202eright to left",
    "File",
    "file",
    os.fsdecode(b"\xff"),
    os.fsdecode(b"caf\xe9 latin"),
    os.fsdecode(b"\xed\xa0\x80"),
    LONG,
    os.fsdecode(b"\xf0\x9f\x92\xbe" * 63 + b"abc"),
    "\x7f",
)
"""Names that a shell, a listing, a format or a codec could take for something else."""


def good_one_by_one(outcomes: Iterable[Outcome]) -> Iterator[Unit]:
    for unit, error in outcomes:
        assert error is None
        yield unit


def stated_rightly(rig: Rig, unit: Unit) -> Unit:
    """A unit of which a file says what its bytes are."""
    right = digest.of_bytes("md5", (rig.spool / unit.path).read_bytes())
    return unit._replace(stated=(Stated("md5", right, f"{unit.path}.md5"),))


class SendingContract:
    """What concerns files on their way: all that depends on how they are sent and proven."""

    kind: ClassVar[type[Transport] | None] = None
    """The class to test, where it is not the one that the options name."""
    strongest: ClassVar[Proof]
    """The proof that ``verify = auto`` gives."""
    proofs: ClassVar[frozenset[Proof]]
    """All that the far side allows."""
    compared: ClassVar[Proof] = Proof.READBACK
    """The proof that ``compare`` gives."""
    syncs: ClassVar[bool] = True
    replaces: ClassVar[bool] = True
    module: ClassVar[str] = ""
    """What comes before each target directory."""
    time_step: ClassVar[int] = 1
    """In nanoseconds; how exact the times of files are at the target."""
    crowds: ClassVar[tuple[int, ...]] = (0, 40)
    """How many small files go along with those of a test: a transport may treat many as a group."""
    unsayable: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    """What is in the paths that the protocol cannot carry."""
    shows_links: ClassVar[bool] = True
    """Whether the far side tells links from what they lead to, and shows those that lead nowhere."""
    directories: ClassVar[bool] = True
    """Whether it sends directories as a whole."""
    renames_directories: ClassVar[bool] = True
    """Whether these get their names in one rename."""
    sets_times_of_directories: ClassVar[bool] = True
    long_paths: ClassVar[bool] = False
    """Whether a path may be longer than the 4096 bytes that one system call takes."""

    def options(self, request: pytest.FixtureRequest) -> Mapping[str, Mapping[str, str]]:
        """The options, by section, that lead to the far side."""
        raise NotImplementedError

    def staged_name(self, unit: Unit) -> str:
        """Where in the staging directory a unit is staged."""
        return unit.staged

    @pytest.fixture
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
        rig = Rig(tmp_path, self.options(request), self.kind, self.module, self.staged_name)
        yield rig
        rig.close()

    # -- what arrives ------------------------------------------------------------------------------------

    def test_a_tree_arrives(self, rig: Rig) -> None:
        sizes = {0, 1, BIG, HUGE // 2 + 1, *(length + more for length in WRITE_LENGTHS for more in (-1, 0, 1))}
        for size in sizes:
            rig.put(f"deep/{size % 3}/{size}/bytes", noise(size))
        rig.put("top")
        transport = rig.open()
        delivered = deliver(transport, rig.units(transport))
        assert failed(delivered) == {}
        assert tree(rig.target) == tree(rig.spool)
        for path, (unit, _) in delivered.items():
            assert unit.digest == hashlib.sha256((rig.spool / path).read_bytes()).hexdigest()
            assert unit.proof == self.strongest.value
        assert rig.all_staged() == set()

    def test_many_small_files_arrive(self, rig: Rig) -> None:
        for number in range(700):
            rig.put(f"{number % 7}/{number}", noise(number, "small"))
        for number in range(80):
            rig.put(f"not so small/{number}", noise(60_000 + number, "small"))
        transport = rig.open()
        delivered = deliver(transport, rig.units(transport))
        assert failed(delivered) == {}
        assert tree(rig.target) == tree(rig.spool)
        assert {outcome.unit.proof for outcome in delivered.values()} == {self.strongest.value}
        assert rig.all_staged() == set()

    def test_several_batches_arrive_over_one_connection(self, rig: Rig) -> None:
        transport = rig.open()
        for batch in ("one", "two", "three"):
            for number in range(20):
                rig.put(f"same/{batch}/{number}", noise(number, batch))
            units = rig.units(transport, *(f"same/{batch}/{number}" for number in range(20)))
            assert failed(deliver(transport, units)) == {}
        assert tree(rig.target) == tree(rig.spool)

    def test_nothing_to_do_is_done(self, rig: Rig) -> None:
        transport = rig.open()
        for verb in (transport.send, transport.verify, transport.publish, transport.compare):
            assert list(verb([])) == []
        transport.discard([])
        assert tree(rig.target) == {}

    def test_names_are_bytes(self, rig: Rig, crowd: int) -> None:
        for name in NAMES:
            rig.put(f"{name}/{name}" if len(os.fsencode(name)) < 100 else name, os.fsencode(name))
        rig.crowd(crowd)
        transport = rig.open()
        units = rig.units(transport)
        for first in range(0, len(units), len(units) if crowd else 8):
            part = units[first : first + (len(units) if crowd else 8)]
            refused = {unit.path: UnitRefused for unit in part if self.unsayable.search(unit.path)}
            assert failed(deliver(transport, part)) == refused
        sayable = {path: what for path, what in files(rig.spool).items() if not self.unsayable.search(path)}
        assert files(rig.target) == sayable
        assert not [path for path in rig.base.rglob("x") if path.name == "x"], "a shell read a name"

    def test_a_long_path_is_delivered_or_refused_alone(self, rig: Rig) -> None:
        rig.put("a")
        rig.put("z")
        long = "/".join(["d" * 200] * 25)
        put_far_down(rig.spool, long)
        transport = rig.open()
        problems = failed(deliver(transport, rig.units(transport)))
        assert {"a", "z"} <= files(rig.target).keys()
        if self.long_paths:
            assert problems == {}
            assert far_down_is(rig.target, long, b"far down")
        else:
            assert set(problems) == {f"{long}/file"}

    def test_times_are_kept(self, rig: Rig, crowd: int) -> None:
        times = {
            "recent": 1_700_000_000_123_456_789,
            "first": 0,
            "second": 1_999_999_999,
            "2037": 2**31 * 10**9 - 1,
        }
        strange = {"before 1970": -(10**9), "after 2106": 2**32 * 10**9, "after 2262": 2**63}
        for name, mtime in (times | strange).items():
            os.utime(rig.put(name), ns=(mtime, mtime))
        rig.crowd(crowd)
        transport = rig.open()
        assert failed(deliver(transport, rig.units(transport))) == {}
        for name, mtime in times.items():
            found = (rig.target / name).stat().st_mtime_ns
            assert found // self.time_step == mtime // self.time_step, name
        assert files(rig.target) == files(rig.spool), "a strange time must not cost the content"

    def test_nothing_shows_before_it_is_published(self, rig: Rig) -> None:
        rig.put("deep/down/file", noise(BIG))
        rig.crowd(20)
        seen: list[Tree] = []
        transport = rig.open(lambda _: seen.append(tree(rig.target)))
        units = rig.units(transport)
        sent = good(transport.send(units))
        seen.append(tree(rig.target))
        proven = good(transport.verify(sent))
        seen.append(tree(rig.target))
        assert len(seen) > 2
        assert all(found == {} for found in seen)
        good(transport.publish(proven))
        assert tree(rig.target) == tree(rig.spool)

    def test_staged_files_have_only_the_names_that_we_gave(self, rig: Rig) -> None:
        for name in NAMES:
            if not self.unsayable.search(name):
                rig.put(name, os.fsencode(name))
        transport = rig.open()
        sent = good(transport.send(rig.units(transport)))
        assert rig.all_staged() == set(map(rig.staged_name, sent))
        assert os.listdir(rig.target) == [OWN_NAME]

    def test_permissions(self, rig: Rig, crowd: int) -> None:
        modes = {"0755": 0o755, "0640": 0o640, "0444": 0o444, "setuid": 0o4755, "sticky": 0o1777, "setgid": 0o2775}
        for name, mode in modes.items():
            rig.put(name).chmod(mode)
        rig.crowd(crowd)
        for preserve in ("yes", "no"):
            transport = rig.open(preserve_mode=preserve, existing="replace")
            assert failed(deliver(transport, rig.units(transport))) == {}
            for name, mode in modes.items():
                found = stat.S_IMODE((rig.target / name).stat().st_mode)
                assert found & ~0o777 == 0, f"{name} has more than permission bits"
                if preserve == "yes":
                    assert found == mode & 0o777, name
                else:
                    assert found & ~mode == 0, f"{name} is open to more people than its source"

    # -- notes -------------------------------------------------------------------------------------------

    def test_notes_are_put_whole_and_fetched(self, rig: Rig) -> None:
        """Small files by which both ends tell each other something: many at once, some of them not there."""
        transport = rig.open()
        notes = {f".{number} caf\u00e9 -x [*].note": b"line\n" * number for number in range(200)}
        with watching(rig.target / ".199 caf\u00e9 -x [*].note") as seen:
            assert transport.put_notes(notes) == {}
        assert {name: (rig.target / name).read_bytes() for name in notes} == notes
        (rig.target / ".large").write_bytes(bytes(LARGEST + 1))
        (rig.target / ".directory").mkdir()
        (rig.target / ".largest").write_bytes(bytes(LARGEST))
        wanted = [*notes, ".missing", ".large", ".directory", ".largest"]
        assert transport.fetch_notes(wanted) == {**notes, ".largest": bytes(LARGEST)}
        assert transport.put_notes(dict.fromkeys(notes, b"again")) == {}
        assert set(transport.fetch_notes(list(notes)).values()) == {b"again"}
        assert rig.all_staged() == set()
        assert seen <= {"ENOENT", hashlib.sha256(b"line\n" * 199).hexdigest()}

    @pytest.mark.parametrize("aim", ["file", "directory", "nothing"])
    def test_no_draft_leads_out_of_the_target(self, rig: Rig, aim: str) -> None:
        """Links stand in the staging directory under all names that could be known beforehand."""
        write(rig.outside / "file", b"of somebody")
        (rig.outside / "directory").mkdir()
        before = tree(rig.outside)
        transport = rig.open()
        for name in ("note", "note0", "check"):
            (rig.target / OWN_NAME / STREAM / f"{transport.tag}{name}").symlink_to(rig.outside / aim)
        assert transport.put_notes({".note": b"note"}) == {}
        assert Level.FAIL not in {found.level for found in transport.examine()}
        assert tree(rig.outside) == before
        assert tree(rig.target) == {".note": b"note"}

    def test_a_large_note_is_put_whole(self, rig: Rig) -> None:
        transport = rig.open()
        notes = {"LARGE": noise(BIG), "EMPTY": b""}
        assert transport.put_notes(notes) == {}
        assert {name: (rig.target / name).read_bytes() for name in notes} == notes

    def test_a_note_that_cannot_be_put_hinders_no_other(self, rig: Rig) -> None:
        (rig.target / ".taken" / "inside").mkdir(parents=True)
        transport = rig.open()
        refused = transport.put_notes({".taken": b"a", ".free": b"b"})
        assert refused.keys() == {".taken"}
        assert isinstance(refused[".taken"], NotTaken)
        assert (rig.target / ".free").read_bytes() == b"b"
        assert (rig.target / ".taken" / "inside").is_dir()

    def test_a_unit_that_is_not_what_somebody_states_is_never_published(self, rig: Rig, crowd: int) -> None:
        """Told when it was read to be sent, with both digests, whatever its size; its neighbours are delivered."""
        sizes = {"small": 10, "big": BIG, "empty": 0, "huge": HUGE}
        for name, size in sizes.items():
            rig.put(f"right {name}", noise(size))
            rig.put(f"wrong {name}", noise(size))
        rig.crowd(crowd)
        transport = rig.open()
        units: list[Unit] = []
        for unit in rig.units(transport):
            kind, name = unit.path.split(maxsplit=1) if " " in unit.path else ("right", unit.path)
            algorithm = {"big": "md5", "huge": "sha512"}.get(name, "sha256")
            right = digest.of_bytes(algorithm, (rig.spool / unit.path).read_bytes())
            said = right if kind == "right" else "0" * len(right)
            units.append(unit._replace(stated=(Stated(algorithm, said, f"{unit.path}.proof"),)))
        delivered = deliver(transport, units)
        assert failed(delivered) == {f"wrong {name}": UnitRefused for name in sizes}
        for name in sizes:
            assert f"wrong {name}.proof says 000" in str(delivered[f"wrong {name}"].error)
        assert files(rig.target).keys() == {unit.path for unit in units if not unit.path.startswith("wrong")}
        transport.discard(units)
        assert rig.all_staged() == set()

    def test_what_somebody_states_holds_where_a_name_is_taken(self, rig: Rig) -> None:
        """A unit may be looked at again then, without being read: it is as right as it was when it was sent."""
        for name in ("same", "other"):
            rig.put(name, noise(1000, name))
            write(rig.target / name, noise(1000, "same"))
        transport = rig.open()
        sent = good(transport.send([stated_rightly(rig, unit) for unit in rig.units(transport)]))
        verified = sent if transport.proves_at_publishing else good(transport.verify(sent))
        assert errors(transport.publish(verified)) == {"same": NameTaken, "other": NameTaken}
        assert errors(transport.compare(verified)) == {"other": NameTaken}
        assert {unit.path for unit in transport.resembling(sent)} <= {"same", "other"}

    def test_what_somebody_states_holds_where_a_file_is_replaced(self, rig: Rig) -> None:
        """The same, where it may have the name."""
        rig.put("file")
        write(rig.target / "file", b"an older one")
        transport = rig.open(existing="replace")
        sent = good(transport.send([stated_rightly(rig, unit) for unit in rig.units(transport)]))
        verified = sent if transport.proves_at_publishing else good(transport.verify(sent))
        assert errors(transport.publish(verified)) == {}
        assert tree(rig.target) == tree(rig.spool)

    def test_an_md5_is_made_along_the_way_where_it_is_asked_for(self, rig: Rig, crowd: int) -> None:
        """That of the very bytes that are sent, for the control file of an arrivals monitor."""
        rig.put("big", noise(BIG))
        rig.put("small")
        rig.crowd(crowd)
        transport = rig.open(target_uses_arrival_monitor="yes")
        for unit in good(transport.send(rig.units(transport))):
            assert unit.md5 == digest.of_bytes("md5", (rig.spool / unit.path).read_bytes())

    def test_a_unit_may_have_another_name_at_the_target(self, rig: Rig) -> None:
        for name in ("a/b", "a/c/d", "top"):
            rig.put(name, name.encode())
        transport = rig.open()
        units = [unit._replace(renamed=unit.path.replace("/", "%2F")) for unit in rig.units(transport)]
        delivered = deliver(transport, units)
        assert failed(delivered) == {}
        assert files(rig.target) == {"a%2Fb": b"a/b", "a%2Fc%2Fd": b"a/c/d", "top": b"top"}
        assert {unit.path for unit in transport.resembling(units)} == {"a/b", "a/c/d", "top"}
        assert not errors(transport.compare([unit for unit, _ in delivered.values()]))

    # -- digests and proofs ------------------------------------------------------------------------------

    @pytest.mark.parametrize("checksum", sorted(digest.ALGORITHMS))
    def test_every_checksum_can_be_used(self, rig: Rig, checksum: str) -> None:
        if checksum == "xxh128":
            pytest.importorskip("xxhash")
        rig.put("big", noise(BIG))
        rig.put("empty", b"")
        rig.put("small")
        transport = rig.open(checksum=checksum)
        delivered = deliver(transport, rig.units(transport))
        assert failed(delivered) == {}
        for path, (unit, _) in delivered.items():
            assert unit.digest == digest.of_bytes(checksum, (rig.spool / path).read_bytes())
            # The far side need not have a program for each of them.
            assert unit.proof in {self.strongest.value, Proof.READBACK.value}

    def test_the_strongest_proof_is_taken_unless_another_is_asked_for(self, rig: Rig) -> None:
        rig.put("file")
        for verify in ("auto", *(proof.value for proof in Proof)):
            transport = rig.open(verify=verify, existing="replace")
            if verify != "auto" and verify not in self.proofs:
                with pytest.raises(TargetRefused, match="verify"):
                    transport.proof  # noqa: B018 - raises
                continue
            expected = self.strongest.value if verify == "auto" else verify
            assert transport.proof.value == expected
            delivered = deliver(transport, rig.units(transport))
            assert delivered["file"].error is None
            assert delivered["file"].unit.proof == expected

    def test_what_it_can_do_is_known(self, rig: Rig) -> None:
        capabilities = rig.open().capabilities
        assert capabilities.proofs == self.proofs
        assert (capabilities.sync, capabilities.replace) == (self.syncs, self.replaces)
        assert capabilities.directories == self.renames_directories

    @pytest.mark.parametrize(
        ("verify", "crowd"), [("auto", 0), ("auto", 40), ("readback", 0), ("size", 0), ("none", 40)]
    )
    def test_verify_finds_what_is_damaged_and_nothing_else(self, rig: Rig, verify: str, crowd: int) -> None:
        if verify != "auto" and verify not in self.proofs:
            with pytest.raises(TargetRefused, match="verify"):
                rig.open(verify=verify).proof  # noqa: B018 - raises
            return
        damages: dict[str, Callable[[Path], None]] = {
            "flipped first": lambda staged: flip(staged, 0),
            "flipped in the middle": lambda staged: flip(staged, BIG // 2),
            "flipped last": lambda staged: flip(staged, BIG - 1),
            "small, flipped": lambda staged: flip(staged, 3),
            "truncated": lambda staged: os.truncate(staged, BIG - 1),
            "truncated to nothing": lambda staged: os.truncate(staged, 0),
            "with a hole": lambda staged: make_hole(staged),
            "longer": lambda staged: os.truncate(staged, BIG + 1),
            "empty made longer": lambda staged: os.truncate(staged, 1),
            "missing": os.unlink,
        }
        for name in damages:
            size = 0 if name.startswith("empty") else 100 if name.startswith("small") else BIG
            rig.put(name, noise(size))
            rig.put(f"{name}, its neighbour", noise(size))
        rig.crowd(crowd)
        transport = rig.open(verify=verify)
        units = good(transport.send(rig.units(transport)))
        for unit in units:
            if unit.path in damages:
                damages[unit.path](rig.staged(unit))
        expected = set(damages)
        if verify == "size":
            expected -= {"with a hole", *(name for name in damages if "flipped" in name)}
        if verify == "none":
            expected = set()
        outcomes = by_path(transport.verify(units))
        assert outcomes.keys() == {unit.path for unit in units}
        found = errors(outcomes.values())
        assert set(found) == expected
        assert {found[name] for name in expected - {"missing"}} <= {NotVerified}
        for unit, error in outcomes.values():
            proof = self.strongest.value if verify == "auto" else verify
            assert unit.proof == ("" if error else proof)

    def test_one_part_may_be_proven_while_the_next_is_sent(self, rig: Rig) -> None:
        for number in range(60):
            rig.put(f"{number:02}", noise(number * 3000))
        transport = rig.open()
        units = rig.units(transport)
        proving = []
        part: list[Unit] = []
        for sent in good_one_by_one(transport.send(units)):
            part.append(sent)
            if len(part) == 7:
                proving.append(transport.verify(part))
                part = []
        proving.append(transport.verify(part))
        rig.put("later", noise(BIG))
        (later,) = named(rig.units(transport, "later"), f"{transport.tag}5eed", 1)
        proving.append(transport.verify(good(transport.send([later]))))
        proven = [unit for outcomes in proving for unit in good(outcomes)]
        assert len(proven) == 61
        good(transport.publish(proven))
        assert tree(rig.target) == tree(rig.spool)

    # -- bad units ---------------------------------------------------------------------------------------

    def test_a_bad_unit_never_ends_the_batch(self, rig: Rig, crowd: int) -> None:
        kinds = Spoilt(rig)
        for size, name in ((10, "small"), (BIG, "big")):
            for kind in kinds.all:
                rig.put(f"{name} {kind}/file", noise(size))
                rig.put(f"{name} {kind}, its neighbour", noise(size // 10))
        rig.put("zz last", noise(10))
        rig.crowd(crowd)
        transport = rig.open()
        units = rig.units(transport)
        with kinds.spoil():
            found = failed(deliver(transport, units))
        expected: dict[str, type[UnitError]] = {
            f"{size} {kind}/file": error for size in ("small", "big") for kind, error in kinds.all.items()
        }
        assert found == expected
        assert files(rig.target).keys() == {unit.path for unit in units} - expected.keys()
        assert "secret" not in str(tree(rig.target).values())

    def test_a_source_that_moves_while_it_is_sent_is_not_sent(self, rig: Rig) -> None:
        path = rig.spool / "big"
        before = rig.outside / "before"
        moves: dict[str, Callable[[], None]] = {
            "grows": lambda: append(path),
            "shrinks": lambda: os.truncate(path, BIG // 2),
            "is rewritten in place": lambda: flip(path, BIG - 1),
            "is replaced": lambda: os.replace(write(before, noise(BIG, "other")), path),
            "is removed": lambda: os.unlink(path),
        }
        rig.put("neighbour")
        todo: list[Callable[[], None]] = []

        def tick(size: int) -> None:
            if size > 1000 and todo:
                todo.pop()()

        transport = rig.open(tick, existing="replace")
        for what, move in moves.items():
            rig.put("big", noise(BIG))
            units = rig.units(transport)
            todo.append(move)
            outcomes = by_path(transport.send(units))
            assert not todo
            assert outcomes["neighbour"].error is None, what
            if outcomes["big"].error is None:
                # Renaming or removing the name leaves the file that was read as it was found.
                assert what in {"is replaced", "is removed"}
                assert rig.staged(outcomes["big"].unit).read_bytes() == noise(BIG)
            else:
                assert isinstance(outcomes["big"].error, SourceMoved), what

    def test_every_byte_ticks(self, rig: Rig, crowd: int) -> None:
        rig.put("big", noise(BIG))
        rig.put("empty", b"")
        rig.put("small")
        rig.crowd(crowd)
        ticks: list[int] = []
        transport = rig.open(ticks.append)
        units = rig.units(transport)
        good(transport.send(units))
        assert sum(ticks) == sum(unit.size for unit in units)
        assert max(ticks) <= 2**20, "progress comes in steps"

    @pytest.mark.parametrize("first", ["a big one", "a small one"])
    def test_parking_ends_the_unit_on_its_way_and_no_other(self, rig: Rig, first: str, crowd: int) -> None:
        rig.put("0", noise(BIG) if first == "a big one" else b"small")
        rig.put("1", noise(BIG, 1))
        rig.put("2", b"another")
        rig.crowd(crowd)
        parks = [Parked("asked to stop")]

        def tick(_size: int) -> None:
            if parks:
                raise parks.pop()

        transport = rig.open(tick)
        units = rig.units(transport)
        outcomes = deliver(transport, units)
        assert list(failed(outcomes).values()) == [Parked]
        (parked,) = failed(outcomes)
        assert files(rig.target).keys() == {unit.path for unit in units} - {parked}
        # It starts again, under its old staged name.
        assert failed(deliver(transport, [unit for unit in units if unit.path == parked])) == {}
        assert tree(rig.target) == tree(rig.spool)

    def test_parking_all_leaves_all_as_it_was(self, rig: Rig, crowd: int) -> None:
        rig.put("big", noise(BIG))
        rig.put("small")
        rig.crowd(crowd)
        before = tree(rig.spool)

        def tick(_size: int) -> None:
            raise Parked("asked to stop")

        transport = rig.open(tick)
        units = rig.units(transport)
        outcomes = by_path(transport.send(units))
        assert outcomes.keys() == {unit.path for unit in units}
        assert set(errors(outcomes.values())) >= {unit.path for unit in units if unit.size}
        transport.discard(units)
        assert rig.all_staged() == set()
        assert tree(rig.spool) == before
        assert tree(rig.target) == {}

    # -- repeating ---------------------------------------------------------------------------------------

    def test_sending_again_writes_anew(self, rig: Rig, crowd: int) -> None:
        rig.put("big", noise(BIG))
        rig.put("small", noise(1000)).chmod(0o400)
        rig.crowd(crowd)
        transport = rig.open()
        first = rig.units(transport)
        assert good(transport.send(first)) == good(transport.send(first))
        rig.put("big", noise(BIG // 2, "shorter"))
        rig.put("small", noise(10, "shorter"))
        second = rig.units(transport)
        assert [unit.staged for unit in first] == [unit.staged for unit in second]
        assert failed(deliver(transport, second)) == {}
        assert tree(rig.target) == tree(rig.spool)

    def test_verifying_again_gives_the_same_answer(self, rig: Rig) -> None:
        rig.put("good")
        rig.put("bad")
        transport = rig.open()
        sent = good(transport.send(rig.units(transport)))
        flip(rig.staged(sent[0] if sent[0].path == "bad" else sent[1]), 0)
        for _ in range(2):
            assert errors(transport.verify(sent)) == {"bad": NotVerified}

    def test_publishing_again_is_harmless(self, rig: Rig, crowd: int) -> None:
        rig.put("big", noise(BIG))
        rig.put("empty", b"")
        rig.put("deep/small")
        rig.crowd(crowd)
        transport = rig.open()
        units = prove(transport, rig.units(transport))
        good(transport.publish(units))
        for again in (lambda: None, lambda: prove(transport, units)):
            again()
            assert errors(transport.publish(units)) == {unit.path: NameTaken for unit in units}
            compared = good(transport.compare(units))
            assert {unit.path for unit in compared} == {unit.path for unit in units}
            assert all(unit.proof == self.compared.value for unit in compared)
        assert tree(rig.target) == tree(rig.spool)

    def test_another_connection_goes_on_after_a_crash(self, rig: Rig) -> None:
        for name in ("published", "proven", "sent", "found"):
            rig.put(name, noise(1000, name))
        first = rig.open()
        units = {unit.path: unit for unit in rig.units(first)}
        good(first.publish(prove(first, [units["published"]])))
        prove(first, [units["proven"]])
        good(first.send([units["sent"]]))
        first.close()
        second = rig.open()
        assert second.sweep() == 2
        found = failed(deliver(second, list(units.values())))
        assert found == {"published": NameTaken}
        good(second.compare(good(second.send([units["published"]]))))
        second.discard([units["published"]])
        assert tree(rig.target) == tree(rig.spool)
        assert rig.all_staged() == set()


class TransportContract(SendingContract):
    """Every transport's tests, with those of the target: ``test_local`` shows how little a subclass needs."""

    # -- names that are taken ----------------------------------------------------------------------------

    @pytest.mark.timeout(30)  # a FIFO among them must not be waited for
    def test_a_name_that_is_taken_stays_as_it_is(self, rig: Rig, crowd: int) -> None:
        taken = Taken(rig, links=self.shows_links)
        rig.crowd(crowd)
        transport = rig.open()
        units = prove(transport, rig.units(transport))
        published = by_path(transport.publish(units))
        assert published.keys() == {unit.path for unit in units}
        assert errors(published.values()) == dict.fromkeys(taken.kinds, NameTaken)
        refused = [unit for unit in units if unit.path in taken.kinds]
        assert all(rig.staged(unit).exists() for unit in refused)
        compared = by_path(transport.compare(refused))
        assert errors(compared.values()) == dict.fromkeys(set(taken.kinds) - {"same content"}, NameTaken)
        transport.discard(refused)
        assert rig.all_staged() == set()
        assert tree(rig.outside) == taken.outside
        assert {path: what for path, what in tree(rig.target).items() if path in taken.before} == taken.before

    def test_what_resembles_a_unit_is_found(self, rig: Rig) -> None:
        taken = Taken(rig, links=self.shows_links)
        rig.put("deep/same", b"content")
        rig.put("deep/longer", b"content")
        rig.put("link/same", b"content")
        rig.put("new", b"content")
        write(rig.target / "deep/same", b"CONTENT")
        write(rig.target / "deep/longer", b"content.")
        write(rig.outside / "directory/same", b"content")
        (rig.target / "link").symlink_to(rig.outside / "directory")
        transport = rig.open()
        units = {unit.path: unit for unit in rig.units(transport)}
        found = transport.resembling(list(units.values()))
        assert {unit.path for unit in found} - taken.links == {"same size", "same content", "big", "deep/same"}
        assert all(unit == units[unit.path] for unit in found)

    def test_what_was_taken_between_proof_and_publishing_stays_as_it_is(self, rig: Rig) -> None:
        rig.put("file")
        transport = rig.open()
        units = prove(transport, rig.units(transport))
        write(rig.target / "file", b"came in between")
        assert errors(transport.publish(units)) == {"file": NameTaken}
        assert files(rig.target) == {"file": b"came in between"}

    @pytest.mark.parametrize("is_update", [False, True])
    def test_replacing_replaces_files_and_never_directories(self, rig: Rig, is_update: bool, crowd: int) -> None:
        taken = Taken(rig, links=self.shows_links)
        rig.crowd(crowd)
        transport = rig.open(existing="same-or-refuse" if is_update else "replace")
        units = [unit._replace(is_update=is_update) for unit in prove(transport, rig.units(transport))]
        published = by_path(transport.publish(units))
        assert published.keys() == {unit.path for unit in units}
        problems = errors(published.values())
        assert set(problems.values()) <= {NameTaken}
        assert problems.keys() >= {"directory", "empty directory"}
        assert problems.keys() <= {"directory", "empty directory", "FIFO"} | taken.links
        after = tree(rig.target)
        for unit in units:
            if unit.path in problems:
                assert after[unit.path] == taken.before[unit.path]
            else:
                assert after[unit.path] == (rig.spool / unit.path).read_bytes()
        assert after["directory/inside"] == b"inside"
        assert tree(rig.outside) == taken.outside

    def test_each_unit_replaces_only_what_it_may(self, rig: Rig) -> None:
        for name in ("earlier delivery", "foreign", "new"):
            rig.put(name, b"ours")
        for name in ("earlier delivery", "foreign"):
            write(rig.target / name, b"theirs")
        transport = rig.open()
        units = prove(transport, rig.units(transport))
        units = [unit._replace(is_update=unit.path != "foreign") for unit in units]
        assert errors(transport.publish(units)) == {"foreign": NameTaken}
        assert files(rig.target) == {"earlier delivery": b"ours", "foreign": b"theirs", "new": b"ours"}

    def test_who_reads_a_file_that_is_replaced_reads_all_of_one(self, rig: Rig) -> None:
        versions = [noise(200_000, version) for version in range(12)]
        write(rig.target / "file", versions[0])
        transport = rig.open(existing="replace")
        with watching(rig.target / "file") as seen:
            for version in versions[1:]:
                rig.put("file", version)
                assert failed(deliver(transport, rig.units(transport))) == {}
        assert seen
        for_an_instant = set() if self.replaces else {"ENOENT"}
        assert seen - for_an_instant <= {hashlib.sha256(version).hexdigest() for version in versions}

    def test_one_missing_staged_file_does_not_end_the_publishing(self, rig: Rig) -> None:
        for name in "abc":
            rig.put(name)
        transport = rig.open()
        units = prove(transport, rig.units(transport))
        rig.staged(units[1]).unlink()
        assert set(errors(transport.publish(units))) == {units[1].path}
        assert files(rig.target).keys() == {units[0].path, units[2].path}

    @pytest.mark.parametrize("existing", ["same-or-refuse", "replace"])
    def test_what_stands_in_a_directorys_place_refuses_the_unit(self, rig: Rig, existing: str) -> None:
        in_the_way = ["link", "file", "fifo", "deep/link", *(["dangling"] if self.shows_links else [])]
        for directory in (*in_the_way, "good"):
            rig.put(f"{directory}/a")
            rig.put(f"{directory}/below/b")
        (rig.outside / "below").mkdir()
        (rig.target / "link").symlink_to(rig.outside)
        (rig.target / "dangling").symlink_to(rig.outside / "nowhere")
        (rig.target / "deep").mkdir()
        (rig.target / "deep/link").symlink_to("../../outside")
        write(rig.target / "file", b"in the way")
        os.mkfifo(rig.target / "fifo")
        outside, before = tree(rig.outside), tree(rig.target)
        transport = rig.open(existing=existing)
        problems = failed(deliver(transport, rig.units(transport)))
        assert problems == {
            path: UnitRefused for directory in in_the_way for path in (f"{directory}/a", f"{directory}/below/b")
        }
        assert tree(rig.outside) == outside
        after = tree(rig.target)
        assert {path: after.get(path) for path in before} == before
        assert {"good/a", "good/below/b"} <= after.keys()

    def test_no_directory_is_made_outside(self, rig: Rig) -> None:
        rig.put("link/new/and/newer/file")
        (rig.target / "link").symlink_to(rig.outside)
        transport = rig.open()
        assert failed(deliver(transport, rig.units(transport))) == {"link/new/and/newer/file": UnitRefused}
        assert tree(rig.outside) == {}

    def test_a_directory_that_became_a_link_is_noticed(self, rig: Rig) -> None:
        rig.put("directory/first")
        transport = rig.open()
        assert failed(deliver(transport, rig.units(transport))) == {}
        (rig.target / "directory").rename(rig.outside / "directory")
        (rig.target / "directory").symlink_to(rig.outside / "directory")
        rig.put("directory/second")
        problems = failed(deliver(transport, rig.units(transport, "directory/second")))
        assert problems == {"directory/second": UnitRefused}
        assert files(rig.outside).keys() == {"directory/first"}

    def test_a_directory_that_was_removed_is_made_again(self, rig: Rig) -> None:
        rig.put("directory/first")
        transport = rig.open()
        assert failed(deliver(transport, rig.units(transport))) == {}
        (rig.target / "directory/first").unlink()
        (rig.target / "directory").rmdir()
        rig.put("directory/second")
        units = rig.units(transport, "directory/second")
        if failed(deliver(transport, units)):
            assert failed(deliver(transport, units)) == {}, "a second try must find out"
        assert files(rig.target).keys() == {"directory/second"}

    # -- whole directories -------------------------------------------------------------------------------

    def put_directory(self, rig: Rig, name: str = "unit") -> None:
        """A directory with all that may be in one, but for names that a protocol cannot carry."""
        if not self.directories:
            pytest.skip("it sends no directories as a whole")
        for path in ("file", ".hidden", "deep/down/file", "deep/ - *[x] -rf", "deep/back\\slash"):
            rig.put(f"{name}/{path}", path.encode())
        rig.put(f"{name}/big", noise(BIG))
        (rig.spool / name / "empty/deep").mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(("deep/down", "deep", "empty/deep", "empty", "")):
            os.utime(rig.spool / name / path, (1_600_000_000 + number, 1_600_000_000 + number))

    def test_a_directory_arrives_as_a_whole(self, rig: Rig) -> None:
        self.put_directory(rig)
        transport = rig.open()
        placed = place(transport, rig.directory(transport, "unit"))
        assert tree(rig.target) == {}
        transport.publish_directory(placed)
        assert {path: what for path, what in tree(rig.target).items() if path != "unit.done"} == tree(rig.spool)
        for path in ("unit", "unit/deep", "unit/deep/down", "unit/empty", "unit/empty/deep"):
            found, wanted = (rig.target / path).stat().st_mtime, (rig.spool / path).stat().st_mtime
            assert found == wanted or not self.sets_times_of_directories, path
        assert rig.all_staged() == set()
        assert transport.entries(placed.unit) == placed.entries
        assert len(good(transport.compare(placed.files))) == len(placed.files)

    def test_a_directory_whose_name_is_taken_stays_staged(self, rig: Rig) -> None:
        takes: dict[str, Callable[[Path], object]] = {
            "file": lambda path: write(path, b"theirs"),
            "directory": lambda path: write(path / "theirs", b"theirs"),
            "more": lambda path: shutil.copytree(rig.spool / "more", path) and write(path / "deep/more", b"more"),
            "other": lambda path: shutil.copytree(rig.spool / "other", path) and write(path / "file", b"FILE"),
            "link": lambda path: path.symlink_to(rig.outside),
        }
        write(rig.outside / "precious", b"precious")
        transport = rig.open()
        for number, (name, take) in enumerate(takes.items()):
            self.put_directory(rig, name)
            take(rig.target / name)
            before = tree(rig.target)
            placed = place(transport, rig.directory(transport, name, number))
            with pytest.raises(NameTaken):
                transport.publish_directory(placed)
            assert tree(rig.target) == before, name
            assert rig.all_staged() != set()
            transport.discard_directories([placed.unit])
            assert rig.all_staged() == set()
            if name in {"file", "link"}:
                with pytest.raises(NameTaken):
                    transport.entries(placed.unit)
        assert files(rig.outside) == {"precious": b"precious"}

    def test_a_directory_replaces_an_earlier_version_and_nothing_outside(self, rig: Rig) -> None:
        self.put_directory(rig)
        write(rig.outside / "precious", b"precious")
        write(rig.target / "unit/old/file", b"old")
        write(rig.target / "unit/file", b"old")
        write(rig.target / "unit/deep/down", b"a directory now")
        (rig.target / "unit/old/link").symlink_to(rig.outside)
        (rig.target / "unit/empty").symlink_to(rig.outside)
        transport = rig.open()
        placed = place(transport, rig.directory(transport, "unit"))
        updates = [unit._replace(is_update=True) for unit in placed.files]
        transport.publish_directory(placed._replace(unit=placed.unit._replace(is_update=True), files=updates))
        assert tree(rig.target / "unit") == tree(rig.spool / "unit")
        assert rig.all_staged() == set()
        assert files(rig.outside) == {"precious": b"precious"}

    def test_what_a_crash_left_of_a_directory_is_swept(self, rig: Rig) -> None:
        self.put_directory(rig)
        transport = rig.open()
        placed = place(transport, rig.directory(transport, "unit"))
        transport.close()
        transport = rig.open()
        assert transport.sweep() > 0
        assert not [name for name in os.listdir(rig.target / OWN_NAME / STREAM) if name.startswith(transport.tag)]
        transport.publish_directory(place(transport, placed))
        assert tree(rig.target / "unit") == tree(rig.spool / "unit")

    # -- cleaning up -------------------------------------------------------------------------------------

    def test_discard_removes_what_is_named_and_nothing_else(self, rig: Rig, crowd: int) -> None:
        for name in "abcd":
            rig.put(name)
        rig.crowd(crowd)
        transport = rig.open()
        units = good(transport.send(rig.units(transport)))
        gone = [unit for unit in units if unit.path in {"a", "c"}]
        never_staged = units[0]._replace(staged=f"{transport.tag}never")
        for _ in range(2):
            transport.discard(unit for unit in [*gone, never_staged])
        assert rig.all_staged() == set(map(rig.staged_name, units)) - set(map(rig.staged_name, gone))
        left = [unit for unit in units if unit not in gone]
        good(transport.publish(good(transport.verify(left))))
        assert files(rig.target).keys() == {unit.path for unit in left}

    def test_sweep_removes_what_this_stream_left_and_nothing_else(self, rig: Rig) -> None:
        rig.put("delivered")
        rig.put("left")
        rig.crowd(30)
        transport = rig.open()
        good(transport.publish(prove(transport, rig.units(transport, "delivered"))))
        good(transport.send(rig.units(transport)))
        left = len(rig.units(transport))
        foreign = {f"{'0' * 8}0001", "readme", transport.tag[:-1]}
        for name in foreign:
            write(rig.target / OWN_NAME / STREAM / name, b"foreign")
        other = write(rig.target / OWN_NAME / "other" / f"{transport.tag}0001", b"another stream's")
        final = write(rig.target / f"{transport.tag}0001", b"no staged file")
        transport.close()
        transport = rig.open()
        assert transport.sweep() == left
        assert transport.sweep() == 0
        assert rig.all_staged() == foreign
        assert other.exists()
        assert final.exists()
        assert (rig.target / "delivered").exists()

    # -- the target directory ----------------------------------------------------------------------------

    def test_a_missing_target_is_refused_and_not_made(self, rig: Rig) -> None:
        rig.target.rmdir()
        transport = rig.transport()
        with pytest.raises(TargetRefused, match=r"no such directory.*create_target"):
            transport.open()
        assert not rig.target.exists()
        transport.close()
        transport.close()

    def test_a_missing_target_is_made_where_that_is_asked_for(self, rig: Rig) -> None:
        rig.target.rmdir()
        rig.put("file")
        deep = rig.target / "deep" / "down"
        transport = rig.open(create_target="yes", target_dir=str(deep))
        assert failed(deliver(transport, rig.units(transport))) == {}
        assert files(deep) == files(rig.spool)

    @pytest.mark.parametrize(
        ("what", "place"),
        [
            ("file", ""),
            ("link", ""),
            ("FIFO", OWN_NAME),
            ("link", OWN_NAME),
            ("file", f"{OWN_NAME}/{STREAM}"),
            ("link", f"{OWN_NAME}/{STREAM}"),
        ],
    )
    def test_what_is_no_directory_is_refused(self, rig: Rig, what: str, place: str) -> None:
        path = rig.target / place
        path.parent.mkdir(exist_ok=True)
        if not place:
            rig.target.rmdir()
        if what == "link":
            # To the target itself a link may lead: that is the choice of whoever configured it.
            path.symlink_to(rig.outside if place else rig.outside / "nowhere")
        elif what == "FIFO":
            os.mkfifo(path)
        else:
            path.write_bytes(b"a file")
        with pytest.raises(TargetRefused):
            rig.open(create_target="yes")
        assert tree(rig.outside) == {}

    def test_the_target_may_be_a_link_to_a_directory(self, rig: Rig) -> None:
        rig.put("file")
        rig.target.rmdir()
        rig.target.symlink_to(rig.outside)
        transport = rig.open()
        assert failed(deliver(transport, rig.units(transport))) == {}
        assert files(rig.outside).keys() == {"file"}

    @pytest.mark.parametrize("name", [".stop", "HALT"])
    def test_a_stop_file_is_seen(self, rig: Rig, name: str) -> None:
        stop = rig.target / name
        transport = rig.open(stop_file=name)
        assert not transport.is_stopped()
        stop.touch()
        assert transport.is_stopped()
        stop.unlink()
        assert not transport.is_stopped()
        stop.symlink_to("nowhere")
        assert transport.is_stopped() or not self.shows_links
        stop.unlink()
        stop.mkdir()
        assert transport.is_stopped()

    def test_examining_finds_nothing_wrong_and_changes_nothing(self, rig: Rig) -> None:
        write(rig.target / "file", b"theirs")
        transport = rig.open()
        before = tree(rig.target)
        findings = list(transport.examine())
        assert findings
        assert [finding for finding in findings if finding.level is Level.FAIL] == []
        assert tree(rig.target) == before
        assert rig.all_staged() == set()

    def test_what_was_made_for_a_look_can_be_removed(self, rig: Rig) -> None:
        """And nothing that was there before, or that is somebody's by now."""
        own = rig.target / OWN_NAME
        for others, left in (((), []), (("made/before",), ["made"]), (("foreign",), ["foreign", "made"])):
            for other in others:
                (own / other).mkdir(parents=True)
            transport = rig.open()
            list(transport.examine())
            transport.remove_made()
            transport.close()
            assert sorted(os.listdir(own) if own.exists() else []) == left
        (own / STREAM).mkdir()
        transport = rig.open()
        list(transport.examine())
        transport.remove_made()
        assert (own / STREAM).is_dir()
        transport.close()
        (own / STREAM).rmdir()
        transport = rig.open()
        write(own / STREAM / "foreign", b"foreign")
        transport.remove_made()
        assert (own / STREAM / "foreign").exists()

    @pytest.mark.needs("root", "mount", "umount")
    def test_a_full_disk_is_the_targets_fault(self, rig: Rig, crowd: int) -> None:
        with small_disk(rig.target, "size=1m"):
            rig.put("big", noise(HUGE))
            rig.put("small")
            rig.crowd(crowd)
            transport = rig.open()
            units = rig.units(transport)
            problems = failed(deliver(transport, units))
            assert problems["big"] is TargetFull
            # While it lies there, others may find no room either; once it is gone, they do.
            assert set(problems.values()) == {TargetFull}
            transport.discard(units)
            assert rig.all_staged() == set()
            rest = [unit for unit in units if unit.path in problems.keys() - {"big"}]
            assert failed(deliver(transport, rest)) == {}
            assert files(rig.target).keys() == {unit.path for unit in units} - {"big"}
            rig.close()

    @pytest.mark.needs("root", "mount", "umount")
    def test_a_disk_without_inodes_is_the_targets_fault(self, rig: Rig) -> None:
        with small_disk(rig.target, "nr_inodes=20"):
            rig.crowd(40)
            transport = rig.open()
            units = rig.units(transport)
            try:
                problems = set(errors(transport.send(units)).values())
            except TargetDown:
                problems = set()
            assert problems <= {TargetFull, NotTaken}
            assert files(rig.target) == {}
            transport.discard(units)
            assert rig.all_staged() == set()
            rig.close()

    def test_closing_twice_is_harmless(self, rig: Rig) -> None:
        transport = rig.open()
        transport.close()
        transport.close()


class Server(Protocol):
    """A server on this host whose sessions the tests may hurt."""

    host: str

    def kill_sessions(self) -> object:
        """Kill the processes of all who are logged in."""

    def freeze_sessions(self) -> object:
        """Stop them, as a far side that hangs."""

    def thaw_sessions(self) -> object:
        """Let them go on."""

    def stop(self) -> object:
        """Have nobody answer."""

    def start(self) -> object:
        """Serve again, on the same port."""


class ConnectionContract:
    """What transports to other hosts have to pass besides; the tests hurt the ``server``."""

    module: ClassVar[str] = ""

    @pytest.fixture
    def server(self) -> Server:
        """A server of which nobody else needs anything."""
        raise NotImplementedError

    def options_of(self, server: Server) -> Mapping[str, Mapping[str, str]]:
        """The options that lead to this server."""
        raise NotImplementedError

    @pytest.fixture
    def own(self, server: Server, tmp_path: Path) -> Iterator[Rig]:
        rig = Rig(tmp_path, self.options_of(server), module=self.module)
        yield rig
        server.thaw_sessions()
        rig.close()

    @pytest.mark.parametrize(
        ("verb", "crowd"),
        [
            ("send", 0),
            ("send", 40),
            ("verify", 40),
            ("publish", 40),
            ("compare", 0),
            ("sweep", 0),
            ("is_stopped", 0),
        ],
    )
    def test_a_connection_that_breaks_is_the_targets_fault(
        self, own: Rig, server: Server, verb: str, crowd: int
    ) -> None:
        own.put("big", noise(HUGE))
        own.put("small")
        own.crowd(crowd)
        hurt = _Once(server.kill_sessions)
        transport = own.open(lambda size: hurt(size > 1000 and verb == "send"))
        units = own.units(transport)
        if verb != "send":
            units = good(transport.send(units))
            if verb in {"publish", "compare"}:
                units = good(transport.verify(units))
            if verb in {"sweep", "is_stopped"}:
                _say(transport, verb, units)  # the first answer may be known since it was opened
            hurt(True)
        with pytest.raises(TargetDown):
            _say(transport, verb, units)
        assert files(own.target) == {}
        transport.close()
        transport = own.open()
        transport.sweep()
        assert own.all_staged() == set()
        assert failed(deliver(transport, own.units(transport))) == {}
        assert tree(own.target) == tree(own.spool)

    @pytest.mark.parametrize(("verb", "crowd"), [("send", 0), ("verify", 40)])
    def test_a_far_side_that_stalls_is_given_up(self, own: Rig, server: Server, verb: str, crowd: int) -> None:
        own.put("big", noise(HUGE))
        own.crowd(crowd)
        hurt = _Once(server.freeze_sessions)
        transport = own.open(lambda size: hurt(size > 1000 and verb == "send"), log_in={"stall_timeout": "1"})
        units = own.units(transport)
        if verb != "send":
            units = good(transport.send(units))
            hurt(True)
        began = time.monotonic()
        with pytest.raises(TargetDown, match=rf"^{re.escape(server.host)}: \S"):
            _say(transport, verb, units)
        transport.close()
        assert time.monotonic() - began < 12
        server.thaw_sessions()
        assert files(own.target) == {}

    def test_nobody_answers(self, own: Rig, server: Server) -> None:
        transport = own.transport(log_in={"connect_timeout": "2"})
        server.stop()
        try:
            with pytest.raises(TargetDown, match=server.host):
                transport.open()
            transport.close()
        finally:
            server.start()

    def test_somebody_takes_the_connection_and_says_nothing(self, own: Rig, server: Server) -> None:
        with socket.create_server((server.host, 0)) as silent:
            port = str(silent.getsockname()[1])
            transport = own.transport(log_in={"connect_timeout": "1", "stall_timeout": "1", "port": port})
            began = time.monotonic()
            with pytest.raises(TargetDown):
                transport.open()
            transport.close()
            assert time.monotonic() - began < 12


def _say(transport: Transport, verb: str, units: list[Unit]) -> None:
    if verb in {"send", "verify", "publish", "compare"}:
        list(getattr(transport, verb)(units))
    else:
        getattr(transport, verb)()


class _Once:
    """Does something the first time that the time has come."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def __call__(self, is_time: bool) -> None:
        if is_time and self._action is not None:
            action, self._action = self._action, None
            action()

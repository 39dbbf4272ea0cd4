"""Proofs that data providers send: what waits for them, what a wrong one does, and how they follow."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mistamover.bags import prove
from mistamover.checksums import checksum_line, parse_manifest, parse_sidecar
from mistamover.config import load
from mistamover.errors import ConfigError
from mistamover.foreign import Refused
from mistamover.ledger import entries
from mistamover.stream import Stream
from tests.program import Local, Result

DATA = b"echoes of rain"
HEX = {name: hashlib.new(name, DATA).hexdigest() for name in ("md5", "sha256", "sha512")}


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


def configure(local: Local, control: str, outgoing: str = "") -> None:
    local.configure(outgoing)
    local.ini.write_text(local.ini.read_text().replace("[data_stream]\n", f"[data_stream]\n{control}\n"))


def waiting(result: Result) -> dict[str, str]:
    return _reasons(result, "waiting")


def _reasons(result: Result, kind: str) -> dict[str, str]:
    events = [json.loads(line) for line in result.lines]
    return {event["path"]: event["reason"] for event in events if event["event"] == kind}


# -- sidecars ----------------------------------------------------------------------------------------------


def test_a_unit_waits_for_its_sidecar_which_follows_it(local: Local) -> None:
    configure(local, "control = sidecar")
    local.put("north/a.dat", DATA)
    first = local.once("--json")
    assert first.code == 1
    assert "a.dat.sha256" in waiting(first)["north/a.dat"]
    local.put("north/a.dat.sha256", f"{HEX['sha256']}  a.dat\n".encode())
    local.put("b.dat.md5", f"MD5 (b.dat) = {HEX['md5']}\n".encode())
    second = local.once("--json")
    assert local.names(local.target) == {"north/a.dat", "north/a.dat.sha256"}
    assert local.names(local.spool) == {"b.dat.md5"}
    assert "b.dat" in waiting(second)["b.dat.md5"]
    # A proof that came first is still there when its file comes, also the second one of that name.
    for _ in range(2):
        local.put("b.dat", DATA)
        assert local.once().code == 0
        assert local.names(local.target) >= {"b.dat", "b.dat.md5"}
        (local.target / "b.dat").unlink()
        (local.target / "b.dat.md5").unlink()
        local.put("b.dat.md5", f"{HEX['md5']}\n".encode())
        assert local.once().code == 1
    order = [entry.path for entry in entries(local.state / "x/ledger.sqlite")]
    assert order.index("north/a.dat") < order.index("north/a.dat.sha256")


@pytest.mark.parametrize("algorithm", ["md5", "sha256", "sha512"])
def test_a_wrong_sidecar_sends_its_file_to_quarantine_and_never_to_the_target(local: Local, algorithm: str) -> None:
    configure(local, "control = sidecar")
    wrong = "0" * len(HEX[algorithm])
    local.put("a.dat", DATA)
    local.put(f"a.dat.{algorithm}", f"{wrong} *a.dat\n".encode())
    result = local.once("--json")
    assert result.code == 1
    reason = _reasons(result, "quarantined")["a.dat"]
    assert HEX[algorithm] in reason
    assert wrong in reason
    assert local.names(local.target) == set()
    assert [path.read_bytes() for path in local.spool.glob(".mistamover/quarantine/*/a.dat")] == [DATA]


def test_a_unit_that_is_newer_than_its_proof_waits_for_the_next_one(local: Local) -> None:
    """A mirror's file that is written again before its sidecar is."""
    configure(local, "control = sidecar", "transfer_mode = mirror\nretry_interval = 0\nretry_count = 2\n")
    sidecar = local.put("a.dat.md5", HEX["md5"].encode())
    file = local.put("a.dat", b"a later version")
    os.utime(sidecar, (1, 1))
    result = local.once("--json")
    assert HEX["md5"] in waiting(result)["a.dat"]
    assert local.names(local.target) == set()
    sidecar.write_text(hashlib.md5(file.read_bytes()).hexdigest())
    assert local.once().code == 0
    assert local.names(local.target) == {"a.dat", "a.dat.md5"}
    file.write_bytes(b"the last version")
    os.utime(sidecar, (1, 1))
    assert local.once("--json").code == 1
    assert _reasons(local.once("--json"), "quarantined").keys() == {"a.dat"}
    assert (local.target / "a.dat").read_bytes() == b"a later version"


# -- manifests, bags and markers ---------------------------------------------------------------------------


def test_a_manifest_proves_what_is_below_it_and_follows_all_of_that(local: Local) -> None:
    configure(local, "control = manifest")
    for name in ("north/a.dat", "north/deep/b.dat", "north/c.dat", "alone.dat"):
        local.put(name, DATA)
    text = f"{HEX['sha512']} *a.dat\r\n# rain\n\nSHA512 (deep/b.dat) = {HEX['sha512']}\n".encode()
    local.put("north/SHA512SUMS", text)
    result = local.once("--json")
    assert local.names(local.target) == {"north/a.dat", "north/deep/b.dat", "north/SHA512SUMS"}
    assert waiting(result).keys() == {"alone.dat", "north/c.dat"}
    # A manifest that grows lists files again that are gone long since.
    local.put("north/SHA512SUMS", text + f"{HEX['sha512']}  c.dat\n{HEX['sha512']}  later.dat\n".encode())
    (local.target / "north/SHA512SUMS").unlink()
    result = local.once("--json")
    assert "north/c.dat" in local.names(local.target)
    assert "north/later.dat" in waiting(result)["north/SHA512SUMS"]
    local.put("north/later.dat", DATA)
    local.once()
    assert local.names(local.spool) == {"alone.dat"}


def test_the_files_of_a_bag_are_proven_and_its_manifests_come_last(local: Local) -> None:
    configure(local, "control = bagit")
    top = bag(local.spool / "in/bag")
    expected = {f"in/bag/{path.relative_to(top)}": path.read_bytes() for path in top.rglob("*") if path.is_file()}
    (top / "data/more").write_bytes(b"more")
    local.put("alone.dat", DATA)
    result = local.once("--json")
    assert {name: (local.target / name).read_bytes() for name in local.names(local.target)} == expected
    assert waiting(result).keys() == {"alone.dat", "in/bag/data/more"}
    order = [entry.path for entry in entries(local.state / "x/ledger.sqlite") if entry.path in expected]
    names = [path.removeprefix("in/bag/") for path in order]
    assert max(names.index(name) for name in names if name.startswith("data/")) < names.index("bagit.txt")
    assert names.index("bagit.txt") < names.index("manifest-sha256.txt") < names.index("tagmanifest-sha256.txt")


def test_a_unit_waits_for_its_ready_marker(local: Local) -> None:
    configure(local, "ready_marker = {name}.done\nproof_files = stay")
    local.put("a.dat", DATA)
    local.put("b.dat", DATA)
    local.put("b.dat.done", b"")
    result = local.once("--json")
    assert local.names(local.target) == {"b.dat"}
    assert waiting(result).keys() == {"a.dat"}
    assert local.names(local.spool) == {"a.dat", "b.dat.done"}


def test_a_dry_run_knows_of_proofs(local: Local) -> None:
    configure(local, "control = sidecar")
    local.put("a.dat", DATA)
    local.put("b.dat", DATA)
    local.put("b.dat.md5", HEX["md5"].encode())
    result = local.once("--dry-run", "--json")
    assert _reasons(result, "would-send") == {"b.dat": "", "b.dat.md5": "after what it names"}
    assert waiting(result).keys() == {"a.dat"}


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"data_stream__control": "sidecar", "data_stream__ready_marker": "{name}.ok"}, "is a proof of its own"),
        ({"data_stream__ready_marker": "done"}, "with {name} in it once"),
        ({"data_stream__ready_marker": "../{name}"}, "with {name} in it once"),
        ({"incoming__control": "manifest", "incoming__flatten": "yes"}, "is of the handshake"),
        ({"outgoing__write_manifest": "sha512"}, "needs [outgoing] checksum = sha512"),
        (
            {"data_stream__control": "sidecar", "data_stream__transfer_unit": "directory"},
            "[data_stream] control: is about files; set [data_stream] transfer_unit = file",
        ),
        (
            {"outgoing__write_manifest": "sha256", "data_stream__transfer_unit": "directory"},
            "[outgoing] write_manifest: is about files",
        ),
        (
            {"outgoing__target_uses_arrival_monitor": "yes", "data_stream__transfer_unit": "directory"},
            "[outgoing] target_uses_arrival_monitor: is for files",
        ),
        (
            {"outgoing__write_manifest": "sha256", "outgoing__target_uses_arrival_monitor": "yes"},
            "takes the files away",
        ),
    ],
)
def test_what_cannot_be_together_is_told(local: Local, options: dict[str, str], wrong: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(local.ini, None, {f"CONFIG__{name}": value for name, value in options.items()})
    assert wrong in str(told.value)


# -- what is in proofs is not trusted ----------------------------------------------------------------------


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda path: path.symlink_to("/etc/passwd"), "it is a link"),
    "fifo": (os.mkfifo, "it is no regular file"),
    "directory": (Path.mkdir, "it is no regular file"),
    "huge": (sparse, "it has 1,073,741,824 bytes"),
    "lines": (lambda path: path.write_bytes(b"\n" * 2_000_000), "it has"),
    "garbage": (lambda path: path.write_bytes(bytes(range(256))), "it"),
    "short": (lambda path: path.write_text(f"{HEX['md5'][:-1]}  a.dat\n"), "31 digits"),
    "kind": (lambda path: path.write_text(f"SHA1 (a.dat) = {HEX['md5']}\n"), "no checksum line of md5"),
    "nul": (lambda path: path.write_bytes(HEX["md5"].encode() + b"  a.dat\0\n"), "NUL"),
}
LEADING_OUT = ("../a.dat", "/etc/passwd", "x/../../a.dat", "x//a.dat", "x/./a.dat")


@pytest.mark.parametrize("control", ["sidecar", "manifest"])
def test_hostile_proofs_prove_nothing_and_say_so_in_one_line(local: Local, control: str) -> None:
    configure(local, f"control = {control}")
    hostile = dict(HOSTILE)
    if control == "manifest":
        for number, name in enumerate(LEADING_OUT):
            line = f"{HEX['md5']}  a.dat\n{HEX['md5']}  {name}\n"
            hostile[f"out{number}"] = (lambda path, line=line: path.write_text(line), "line 2: it names")  # type: ignore[misc]
        dots = f"{HEX['md5']}  {'./' * 2**21}a.dat\n"  # taken off one by one, they took minutes
        hostile["dots"] = (lambda path: path.write_text(dots), "line 1: it names no file")
        twice = f"{HEX['md5']}  a.dat\n{'0' * 32}  a.dat\n"
        hostile["twice"] = (lambda path: path.write_text(twice), "line 2: it names a file twice")
    for kind, (make, _) in hostile.items():
        local.put(f"{kind}/a.dat", DATA)
        make(local.spool / kind / ("MD5SUMS" if control == "manifest" else "a.dat.md5"))
    result = local.once("--json")
    assert result.code == 1, result
    assert local.names(local.target) == set()
    reasons = waiting(result)
    for kind, (_, reason) in hostile.items():
        assert reason in reasons[f"{kind}/a.dat"], kind
        assert "proves nothing" in reasons[f"{kind}/a.dat"], kind
        assert "\n" not in reasons[f"{kind}/a.dat"], kind
        assert len(reasons[f"{kind}/a.dat"]) < 200, kind


def test_checksum_lines_are_read_as_md5sum_writes_them(tmp_path: Path) -> None:
    names = ["plain", " two  words ", "*star", "back\\slash", "new\nline", "r\r", "caf\u00e9", os.fsdecode(b"\xff")]
    for name in names:
        (tmp_path / name).write_bytes(DATA)
    for options in ([], ["--binary"], ["--tag"]):
        made = subprocess.run(["sha256sum", *options, "--", *names], cwd=tmp_path, capture_output=True, check=True)
        assert parse_manifest(made.stdout, "sha256") == dict.fromkeys(names, HEX["sha256"]), options
    lines = b"".join(checksum_line(HEX["sha256"], name) for name in names)
    assert parse_manifest(lines, "sha256") == dict.fromkeys(names, HEX["sha256"])
    subprocess.run(["sha256sum", "-c", "--strict"], cwd=tmp_path, input=lines, capture_output=True, check=True)
    assert parse_sidecar(f"{HEX['md5'].upper()}  /data/out/a.dat".encode(), "md5", "a.dat") == HEX["md5"]
    assert parse_manifest(b"0" * 32 + b"  data/a%0Ab%25.dat\n", "md5", bag=True) == {"data/a\nb%.dat": "0" * 32}
    with pytest.raises(Refused, match="another file"):
        parse_sidecar(f"{HEX['md5']}  b.dat\n".encode(), "md5", "a.dat")


# -- arrivals ----------------------------------------------------------------------------------------------


@pytest.fixture
def incoming(local: Local) -> Path:
    directory = local.top / "incoming"
    directory.mkdir()
    return directory


def receive(local: Local, incoming: Path, options: str, settle: str = "0") -> Result:
    """One pass of a stream that only receives."""
    local.configure(
        settle=settle, more=f"[incoming]\nrequire_arrival_monitor = yes\ndirectory = {incoming}\n{options}\n"
    )
    local.ini.write_text(local.ini.read_text().replace("= local", "= none"))
    return local.once("--json")


def aside(local: Local) -> dict[str, str]:
    """What was set aside, with the reasons."""
    reasons = local.spool.glob(".mistamover/quarantine/*/.reason")
    lines = [path.read_text().splitlines() for path in reasons]
    return {name: reason for name, reason in lines}  # noqa: C416 - two lines each


def test_arrivals_are_proven_by_sidecars(local: Local, incoming: Path) -> None:
    for name, line in {
        "good.dat": f"{HEX['sha512']} *good.dat\n",
        "bad.dat": f"{'0' * 128}  bad.dat\n",
        "other.dat": f"{HEX['sha512']}  good.dat\n",
    }.items():
        local.put(name, DATA, at=incoming)
        local.put(f"{name}.sha512", line.encode(), at=incoming)
    local.put("alone.dat", DATA, at=incoming)
    result = receive(local, incoming, "control = sidecar")
    assert result.code == 1, result
    assert local.names(local.spool) == {"good.dat", "good.dat.sha512"}
    assert set(os.listdir(incoming)) == {"alone.dat", "other.dat", "other.dat.sha512"}
    assert waiting(result).keys() == {"alone.dat", "other.dat"}
    assert aside(local).keys() == {"bad.dat", "bad.dat.sha512"}
    assert HEX["sha512"] in aside(local)["bad.dat"]
    assert "0" * 128 in aside(local)["bad.dat"]
    # Kept apart, they stay.
    local.put("good2.dat", DATA, at=incoming)
    local.put("good2.dat.md5", HEX["md5"].encode(), at=incoming)
    receive(local, incoming, "control = sidecar\nproof_files = stay")
    assert local.names(local.spool) == {"good.dat", "good.dat.sha512", "good2.dat"}
    assert "good2.dat.md5" in os.listdir(incoming)


def test_arrivals_are_proven_by_manifests(local: Local, incoming: Path) -> None:
    for name in ("a.dat", "b.dat", "c.dat"):
        local.put(name, DATA, at=incoming)
    local.put("SHA256SUMS", f"{HEX['sha256']}  ./a.dat\n{'0' * 64}  b.dat\n".encode(), at=incoming)
    result = receive(local, incoming, "control = manifest")
    assert local.names(local.spool) == {"a.dat"}
    assert set(os.listdir(incoming)) == {"SHA256SUMS", "c.dat"}
    assert waiting(result).keys() == {"c.dat"}
    assert aside(local).keys() == {"b.dat"}


def test_arrivals_are_taken_with_their_ready_markers(local: Local, incoming: Path) -> None:
    local.put("a.dat", DATA, at=incoming)
    result = receive(local, incoming, "control = none\nready_marker = {name}.done")
    assert waiting(result).keys() == {"a.dat"}
    (incoming / "a.dat.done").symlink_to("/etc/passwd")
    assert waiting(receive(local, incoming, "control = none\nready_marker = {name}.done")).keys() == {"a.dat"}
    (incoming / "a.dat.done").unlink()
    local.put("a.dat.done", b"", at=incoming)
    assert receive(local, incoming, "control = none\nready_marker = {name}.done").code == 0
    assert local.names(local.spool) == {"a.dat", "a.dat.done"}
    assert os.listdir(incoming) == []


def test_a_sidecar_never_takes_the_place_of_another_file(local: Local, incoming: Path) -> None:
    there = local.put("a.dat.md5", b"another")
    local.put("a.dat", DATA, at=incoming)
    local.put("a.dat.md5", HEX["md5"].encode(), at=incoming)
    for _ in range(2):
        result = receive(local, incoming, "control = sidecar")
        assert waiting(result).keys() == {"a.dat.md5"}
        assert there.read_bytes() == b"another"
        assert (local.spool / "a.dat").read_bytes() == DATA
    there.unlink()
    assert receive(local, incoming, "control = sidecar").code == 0
    assert there.read_bytes() == HEX["md5"].encode()


def test_what_still_settles_is_left_alone_and_what_a_crash_left_is_set_aside(local: Local, incoming: Path) -> None:
    local.put("a.dat", DATA, at=incoming)
    local.put("a.dat.md5", b"0" * 32, at=incoming)
    local.put(".mistamover/.arrivals/dead.proof", b"of a job that a power cut took")
    result = receive(local, incoming, "control = sidecar", settle="1h")
    assert aside(local).keys() == {"dead.proof"}
    assert waiting(result) == {}
    assert set(os.listdir(incoming)) == {"a.dat", "a.dat.md5"}


def bag(directory: Path) -> Path:
    """A bag with a few files."""
    (directory / "north").mkdir(parents=True)
    (directory / "north/a.dat").write_bytes(DATA)
    (directory / "b 100%.dat").write_bytes(DATA * 2)
    import bagit

    bagit.make_bag(str(directory), checksums=["sha256", "md5"])
    return directory


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (
        lambda top: (top / "data/north/a.dat").write_bytes(b"Echoes of rain"),
        "the sha256 of data/north/a.dat is ",
    ),
    "more": (lambda top: (top / "data/more").write_bytes(b""), "3 files"),
    "manifest": (lambda top: (top / "manifest-sha256.txt").write_bytes(b"\n"), "manifest"),
    "link": (lambda top: (top / "data/link").symlink_to("/etc/passwd"), "data/link is no regular file"),
    "fifo": (lambda top: os.mkfifo(top / "data/fifo"), "data/fifo is no regular file"),
    "out": (lambda top: append(top / "manifest-md5.txt", f"{HEX['md5']}  data/../../x\n"), "outside"),
    "tags": (lambda top: (top / "bag-info.txt").write_bytes(b"x" * 2**21), "bag-info.txt"),
    "zlib": (lambda top: squeeze(top), "does not say a version and an encoding"),
    "lists": (lambda top: many_lists(top), "bytes together"),
    "version": (lambda top: (top / "bagit.txt").write_bytes(b"BagIt-Version: 1.0\n" * 2), "bag"),
}


def many_lists(top: Path) -> None:
    for number in range(9):
        (top / f"manifest-x{number}.txt").touch()
        os.truncate(top / f"manifest-x{number}.txt", 2**24)


def squeeze(top: Path) -> None:
    """Have the library read five MiB from a few KiB."""
    declared = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: zlib\n"
    (top / "bagit.txt").write_bytes(declared)
    (top / "bag-info.txt").write_bytes(zlib.compress(b"a: b\n" * 2**20))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_bags_arrive_whole_or_not_at_all(local: Local, incoming: Path) -> None:
    good = bag(incoming / "good")
    expected = {path.relative_to(incoming) for path in good.rglob("*")}
    late = bag(incoming / "late")
    (late / "data/north/a.dat").unlink()
    for name, (spoil, _) in BROKEN.items():
        spoil(bag(incoming / name))
    result = receive(local, incoming, "control = bagit")
    assert result.code == 1, result
    assert {path.relative_to(local.spool) for path in (local.spool / "good").rglob("*")} == expected
    assert set(os.listdir(incoming)) == {"late"}
    assert "data/north/a.dat" in waiting(result)["late"]
    assert {path.name for path in local.spool.iterdir()} == {".mistamover", "good"}
    reasons = aside(local)
    assert reasons.keys() == BROKEN.keys()
    for name, (_, reason) in BROKEN.items():
        assert reason in reasons[name], name


def test_a_bag_that_is_written_into_while_it_is_proven_is_none(tmp_path: Path) -> None:
    top = bag(tmp_path / "bag")
    fd = os.open(top, os.O_RDONLY)
    try:
        size, wrong = prove(fd, bytearray(1024), lambda _: None)
        assert (size, wrong) == (sum(path.stat().st_size for path in top.rglob("*") if path.is_file()), "")
        (top / "late").mkdir()
        for name in ("late/more", "data/north/a.dat"):  # the second one while it is read, without end
            _, wrong = prove(fd, bytearray(1024), lambda _, path=top / name: append(path, "x"))  # type: ignore[misc]
            assert wrong == "somebody wrote into it while it was proven", name
    finally:
        os.close(fd)


# -- manifests at the target -------------------------------------------------------------------------------


def manifests(local: Local) -> list[Path]:
    return sorted(local.target.glob("SHA256SUMS.x.*"))


def checked(local: Local) -> set[str]:
    """The files that the manifests at the target list; all of them are as listed."""
    names = [path.name for path in manifests(local)]
    result = subprocess.run(
        ["sha256sum", "--strict", "-c", *names], cwd=local.target, capture_output=True, check=False
    )
    assert result.returncode == 0, result
    listed: set[str] = set()
    for path in manifests(local):
        listed |= parse_manifest(path.read_bytes(), "sha256").keys()
    return listed


def test_manifests_list_what_was_delivered_and_nothing_else(local: Local) -> None:
    local.configure("write_manifest = sha256\ntransfer_mode = mirror\n")
    strange = "a\\b\nc\rd  *e"
    local.put("north/a.dat", DATA)
    local.put(strange, DATA)
    (local.target / "taken").write_bytes(b"another")
    local.put("taken", DATA)
    local.once()
    assert checked(local) == {"north/a.dat", strange}
    for number in range(5):
        local.put(f"more/{number}", b"%d" % number)
        local.once()
    assert len(manifests(local)) == 1
    assert len(checked(local)) == 7
    # A mirror's file that has changed is listed as it is now.
    local.put("north/a.dat", b"changed")
    local.once()
    assert len(checked(local)) == 7
    before = manifests(local)[0].stat()
    local.once()
    assert manifests(local)[0].stat() == before, "it is put again for nothing"


def test_manifests_are_full_at_some_time_and_survive_a_lost_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mistamover.manifests.MOST_LINES", 10)
    local = Local(tmp_path)
    local.configure("write_manifest = sha256\n")
    settings = load(local.ini, None, {})
    with Stream(settings) as stream:
        for first in (0, 25, 26):
            for number in range(first, first + 25 if first != 25 else 26):
                local.put(f"{number:02}", b"%d" % number)
            assert stream.run_pass(patient=True).exit == 0
    sizes = sorted(path.read_bytes().count(b"\n") for path in manifests(local))
    assert sizes == [1, 10, 10, 10, 10, 10]
    assert checked(local) == {f"{number:02}" for number in range(51)}
    shutil.rmtree(local.state)
    before = {path: path.read_bytes() for path in manifests(local)}
    local.put("new", DATA)
    with Stream(settings) as stream:
        stream.run_pass(patient=True)
    assert {path: path.read_bytes() for path in manifests(local) if path in before} == before
    assert "new" in checked(local)

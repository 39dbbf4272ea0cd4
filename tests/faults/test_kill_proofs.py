"""Streams that prove by sidecars and list what they delivered, killed at every step."""

from __future__ import annotations

import hashlib
import os
import subprocess
from itertools import count
from pathlib import Path

import pytest

from mistamover.arrivals import PLACE, Arrivals
from mistamover.checksums import checksum_line, parse_manifest
from mistamover.config import load
from mistamover.options import Settings
from mistamover.provers import prover
from mistamover.stream import Stream
from mistamover.testing.rig import files
from tests.faults.test_handshake import MOST_STEPS, killed_at

CONTENTS = {"a": b"a", "b": b"bb"}
BAD = b"not what its sidecar says"


def put(directory: Path) -> dict[str, bytes]:
    """Two files and their sidecars, and one whose sidecar is wrong; gives all that is good."""
    directory.mkdir(parents=True)
    good = {**CONTENTS}
    for name, data in CONTENTS.items():
        good[f"{name}.md5"] = checksum_line(hashlib.md5(data).hexdigest(), name)
    for name, data in {**good, "bad": BAD, "bad.md5": b"0" * 32}.items():
        (directory / name).write_bytes(data)
    return good


def settings(top: Path, near: str, incoming: str, outgoing: str) -> Settings:
    file = top / "x.ini"
    file.write_text(
        f"[global]\nstate_dir = {top}/state\n[data_stream]\ndirectory = {top}/spool\nsettle_time = 0\n{near}\n"
        f"[incoming]\n{incoming}\n[outgoing]\n{outgoing}\n"
    )
    return load(file, None, {})


def test_a_stream_that_is_killed_at_any_step_sends_proofs_and_lists_all(tmp_path: Path) -> None:
    for number in count(1):
        assert number < MOST_STEPS
        top = tmp_path / str(number)
        good = put(top / "spool")
        target = top / "target"
        target.mkdir()
        local = f"transfer_protocol = local\ntarget_dir = {target}\nlanes = 1\nwrite_manifest = sha256"
        stream = settings(top, "control = sidecar", "", local)

        def run(stream: Settings = stream) -> None:
            with Stream(stream) as held:
                held.run_pass(patient=True)

        was_killed = killed_at(number, run)
        run()
        delivered = {name: data for name, data in files(target).items() if not name.startswith("SHA256SUMS")}
        assert delivered == good, number
        assert files(top / "spool") == {"bad.md5": b"0" * 32}, number
        aside = [path.read_bytes() for path in (top / "spool/.mistamover/quarantine").glob("*/bad")]
        assert aside == [BAD], number
        listed: list[str] = []
        for manifest in target.glob("SHA256SUMS.x.*"):
            subprocess.run(["sha256sum", "--strict", "-c", manifest], cwd=target, check=True, capture_output=True)
            listed += parse_manifest(manifest.read_bytes(), "sha256")
        assert sorted(listed) == sorted(good), number
        if not was_killed:
            break
    assert number > 30, "the steps were counted"


@pytest.mark.parametrize("kind", ["sidecar", "bagit"])
def test_a_receiver_that_is_killed_at_any_step_goes_on(tmp_path: Path, kind: str) -> None:
    for number in count(1):
        assert number < MOST_STEPS
        top = tmp_path / str(number)
        expected = put(top / "incoming") if kind == "sidecar" else put_bag(top / "incoming")
        (top / "spool").mkdir()
        monitor = f"require_arrival_monitor = yes\ndirectory = {top}/incoming\ncontrol = {kind}"
        stream = settings(top, "", monitor, "transfer_protocol = none")

        def run(stream: Settings = stream) -> None:
            with Arrivals(stream, lambda _: None, prover(stream)) as arrivals:
                arrivals.run_pass()

        was_killed = killed_at(number, run)
        run()
        assert files(top / "spool") == expected, number
        assert files(top / "incoming") == {}, number
        aside = {path.name for path in (top / "spool/.mistamover/quarantine").glob("*/*")} - {".reason"}
        assert aside == ({"bad", "bad.md5"} if kind == "sidecar" else set()), number
        assert os.listdir(top / "spool" / PLACE) == ["lock"], number
        if not was_killed:
            break
    assert number > 5, "the steps were counted"


def put_bag(directory: Path) -> dict[str, bytes]:
    bagit = pytest.importorskip("bagit")
    (directory / "bag").mkdir(parents=True)
    (directory / "bag/a").write_bytes(b"a")
    bagit.make_bag(str(directory / "bag"), checksums=["sha256"])
    return files(directory)

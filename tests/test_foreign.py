"""Small files of somebody else: whatever stands under their names, nobody waits, follows or reads without end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mistamover import board, foreign, heartbeat, post
from mistamover.alert import Trouble
from mistamover.foreign import Refused
from mistamover.options import Email


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.with_name("elsewhere").write_text("{}")
    path.symlink_to("elsewhere")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, foreign.LARGEST_STATE + 1)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def other(path: Path) -> None:
    path.write_text(json.dumps({"streams": [1], "disks": {"a": 1}, "conditions": [1], "told": 1, "a": 1}))


STRANGE = [fifo, link, huge, deep, other]


@pytest.mark.parametrize("make", STRANGE)
def test_state_files_that_are_none_say_nothing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A FIFO would be waited for, and a thousand brackets would end Python's reader by RecursionError."""
    alerts = tmp_path / "alerts"
    (alerts / "out").mkdir(parents=True)
    stream = tmp_path / "images"
    stream.mkdir()
    for path in (
        stream / heartbeat.HEARTBEAT,
        tmp_path / heartbeat.SERVICE,
        tmp_path / heartbeat.DISKS,
        stream / board.FILE,
        alerts / post.ACKS,
        alerts / post.OUT / "1.json",
    ):
        make(path)
    assert heartbeat.read_heartbeat(stream) == heartbeat.Heartbeat()
    assert heartbeat.read_service(tmp_path) == heartbeat.Service()
    assert heartbeat.read_disks(tmp_path) == []
    assert list(board.read_all(tmp_path)) == []
    assert post.read_all_acks(tmp_path) == {}
    assert post.waiting(tmp_path) == []


@pytest.mark.needs("root")
def test_a_board_that_others_wrote_names_no_commands(tmp_path: Path) -> None:
    """Nor one that a link leads to: who may put links there may write that file's neighbours, too."""
    directory = tmp_path / "images"
    email = Email.model_validate({"alert_command": ("true",)})
    board.Board(directory, "images", email).hold(Trouble.TARGET, "it is down")
    path = directory / board.FILE
    assert list(board.read_all(tmp_path, only_ours=True))
    path.chmod(0o666)
    assert not list(board.read_all(tmp_path, only_ours=True))
    path.chmod(0o644)
    os.chown(path, 65534, 65534)
    assert not list(board.read_all(tmp_path, only_ours=True))
    assert list(board.read_all(tmp_path))


def test_no_more_is_read_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert foreign.read(path, 5)[0] == b"12345"
    with pytest.raises(Refused, match="5 bytes, and may have 4"):
        foreign.read(path, 4)
    with foreign.opened(path, 5) as (fd, _):
        path.write_bytes(b"123456789")  # it grows after we looked
        assert foreign.content(fd, 5) == b"12345"


@pytest.mark.needs("root")
def test_a_letter_that_others_wrote_is_not_carried(tmp_path: Path) -> None:
    path = tmp_path / "alerts" / post.OUT / "1.json"
    email = Email.model_validate({"alert_command": ("true",)})
    item = post.Item(path, "command", email, "{}", "subject", 1.0)
    path.parent.mkdir(parents=True)
    members = item._asdict() | {"email": email.for_the_postman()}
    del members["path"]
    path.write_text(json.dumps(members))
    assert post.waiting(tmp_path) == [item]
    os.chown(path, 65534, 65534)
    assert post.waiting(tmp_path) == []
    assert path.exists()

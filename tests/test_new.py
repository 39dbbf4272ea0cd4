"""``mistamover new``: the questions on a real terminal, and the same by options."""

from __future__ import annotations

import errno
import os
import select
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from mistamover import config, ini
from mistamover.values import BUILT_IN
from tests.program import Result, command, ended, environment
from tests.rsyncd import MODULE, PASSWORD, USER, Rsyncd
from tests.sshd import Sshd, free_port

DEADLINE = 30.0


class Terminal:
    """The program as somebody meets it who sits before a terminal."""

    def __init__(self, at: Path, *arguments: str) -> None:
        self._mine, theirs = os.openpty()
        self.seen = ""
        self._read = 0
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=at,
            env=environment(at) | {"CONFIG__global__state_dir": str(at / "state"), "COLUMNS": "80"},
            preexec_fn=lambda: os.login_tty(theirs),
        )
        os.close(theirs)

    def answer(self, question: str, line: str) -> None:
        """Wait for a question, and type a line."""
        self._wait_for(question)
        os.write(self._mine, f"{line}\n".encode())

    def leave(self, question: str, key: bytes) -> int:
        """Wait for a question, and press a key until the program ends, as people do; gives the exit code."""
        self._wait_for(question)
        os.write(self._mine, key)
        # Python misses a signal that comes just before it begins to read.
        while self._take(1.0):
            if self.process.poll() is None and not select.select([self._mine], [], [], 1.0)[0]:
                os.write(self._mine, key)
        return self.process.wait(DEADLINE)

    def _wait_for(self, text: str) -> None:
        end = time.monotonic() + DEADLINE
        while text not in self.seen[self._read :]:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            assert self._take(1.0), f"ended before {text!r}: {self.seen}"
        self._read = self.seen.index(text, self._read) + len(text)

    def _take(self, seconds: float) -> bool:
        if not select.select([self._mine], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self._mine, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal says whose other side is closed
                raise
            return False
        self.seen += piece.decode()
        return bool(piece)

    def end(self) -> int:
        """Read all that is still said; gives the exit code."""
        end = time.monotonic() + DEADLINE
        while self._take(1.0):
            assert time.monotonic() < end, self.seen
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._mine)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path


class Sit(Protocol):
    """Start the program at a terminal; it ends with the test."""

    def __call__(self, *arguments: str) -> Terminal: ...


@pytest.fixture
def sit(at: Path) -> Iterator[Sit]:
    made: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        made.append(Terminal(at, *arguments))
        return made[-1]

    yield start
    for one in made:
        one.close()


def run(at: Path, *arguments: str, under: Sequence[str] = ()) -> Result:
    process = subprocess.Popen(
        [*under, *command(*arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=at,
        env=environment(at) | {"CONFIG__global__state_dir": str(at / "state")},
    )
    return ended(process)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- questions ---------------------------------------------------------------------------------------------


def test_a_stream_on_this_host_from_questions_alone(at: Path, sit: Sit) -> None:
    here = sit("new")
    here.answer("Type: ", "pigeon")
    here.answer("'pigeon' is no type; give one of local, sftp", "local")
    here.answer("Name: ", "a/b")
    here.answer("'a/b' cannot be used", "images")
    here.answer("The spool: the directory in which units appear.", "")
    here.answer("missing, but compulsory", "spool")
    here.answer("transfer_mode [move]: ", "copy")
    here.answer("'copy' cannot be used; give one of move, mirror", "")
    here.answer("target_dir: ", "spool/below")
    here.answer("lies in the spool", "target")
    here.answer(f"There is no directory {at}/target. Make it? [Y/n]: ", "")
    here.answer("Try it now, as mistamover check --connect does? [Y/n]: ", "")
    assert here.end() == 0, here.seen
    assert "ok    proof: readback" in here.seen
    assert here.seen.splitlines()[-2:] == ["written: images.ini", "next:    mistamover run --once images.ini"]
    assert mode(at / "images.ini") == 0o600
    text = (at / "images.ini").read_text()
    assert "# The spool: the directory in which units appear." in text
    assert "\n#transfer_mode = move\n" in text
    settings = config.load(at / "images.ini", None, {})
    assert (settings.data_stream.directory, settings.outgoing.target_dir) == (at / "spool", at / "target")
    (at / "spool" / "file").write_text("content")
    assert run(at, "run", "--once", "images.ini").code == 0
    assert (at / "target" / "file").read_text() == "content"


@pytest.mark.needs("rsync")
def test_a_log_in_is_tried_and_may_be_answered_again(at: Path, sit: Sit, rsyncd: Rsyncd) -> None:
    """With a password that nobody sees, and that is in the file alone."""
    (at / "target").mkdir()
    here = sit("new", "rsync_native", "images", "--connect")
    here.answer("directory: ", "spool")
    here.answer("transfer_mode [move]: ", "mirror")
    for password, choice in (("wrong-12", "a"), (PASSWORD, "")):
        here.answer("target_host", rsyncd.host)
        here.answer("[rsync_native] port", str(rsyncd.port))
        here.answer("target_dir", f"{MODULE}{at}/target")
        here.answer("username", USER)
        here.answer("password: ", password)
        if choice:
            here.answer("Not all is well; what now? (t, a, w, q) [t]: ", choice)
    assert here.end() == 0, here.seen
    assert "fail  127.0.0.1: log-in refused; check [rsync_native] username and password" in here.seen
    assert "ok    proof: digest" in here.seen
    assert not {"wrong-12", PASSWORD} & set(here.seen.split())
    settings = config.load(at / "images.ini", None, {})
    assert settings.rsync_native.password is not None
    assert settings.rsync_native.password.get_secret_value() == PASSWORD
    assert (mode(at / "images.ini"), settings.outgoing.transfer_mode) == (0o600, "mirror")


def test_whoever_gives_up_on_a_target_has_nothing_written(at: Path, sit: Sit) -> None:
    here = sit("new", "ftp", "images", "--set", "data_stream.directory=spool", "--connect")
    here.answer("transfer_mode [move]: ", "")
    here.answer("target_host: ", "127.0.0.1")
    here.answer("[ftp] port: ", str(free_port()))
    here.answer("target_dir: ", "/incoming")
    here.answer("username: ", "mover")
    here.answer("password: ", "wrong-12")
    here.answer("    q  leave, and write nothing", "q")
    assert here.end() == 130, here.seen
    assert not (at / "images.ini").exists()


@pytest.mark.parametrize("key", [b"\x03", b"\x04"], ids=["Ctrl-C", "end"])
def test_whoever_leaves_has_nothing_written(at: Path, sit: Sit, key: bytes) -> None:
    here = sit("new", "local", "images")
    here.answer("directory: ", "spool")
    assert here.leave("transfer_mode [move]: ", key) == 130
    assert not (at / "images.ini").exists()


def test_the_global_file_and_what_the_service_needs(at: Path, sit: Sit) -> None:
    here = sit("new", "global")
    here.answer("state_dir: ", "state")
    here.answer("config_dir: ", "")
    here.answer("base_log_dir: ", "log")
    here.answer(f"There is no directory {at}/log. Make it?", "")
    here.answer(f"There is no directory {at}/streams. Make it?", "y")
    assert here.end() == 0, here.seen
    assert here.seen.splitlines()[-1] == (
        "next:    mistamover new -o streams/NAME.ini, then: mistamover start --config global.ini"
    )
    settings = config.load_service(at / "global.ini", {})
    assert (settings.global_.state_dir, settings.logging.base_log_dir) == (at / "state", at / "log")
    assert settings.global_.config_dir == at / "streams"


# -- options -----------------------------------------------------------------------------------------------

HERE = ("--set", "data_stream.directory=spool", "--set", "outgoing.target_dir=/target")


@pytest.mark.parametrize("kind", BUILT_IN)
def test_each_type_by_options(at: Path, kind: str) -> None:
    more = () if kind in ("local", "none") else ("--set", "outgoing.target_host=archive.example.org")
    base = ("--set", f"incoming.directory={at}") if kind == "none" else ()
    result = run(at, "new", kind, "images", *HERE, *more, *base, "--set", "outgoing.lanes=8")
    assert (result.code, result.err) == (0, "")
    assert result.lines == ["written: images.ini", "next:    mistamover check --connect images.ini"]
    settings = config.load(at / "images.ini", None, {})
    assert (settings.name, settings.outgoing.transfer_protocol, settings.outgoing.lanes) == ("images", kind, 8)
    assert settings.data_stream.directory == at / "spool"


def test_a_file_that_is_there_stays(at: Path) -> None:
    (at / "images.ini").symlink_to("nowhere")
    result = run(at, "new", "local", "images", *HERE)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("mistamover: images.ini: exists already, and is left as it is")
    other = run(at, "new", "local", "images", *HERE, "-o", "other.ini")
    assert other.code == 0
    assert config.load(at / "other.ini", None, {}).name == "images"


def test_a_file_that_cannot_be_written_whole_is_not_left(at: Path) -> None:
    result = run(at, "new", "local", "images", *HERE, under=["bash", "-c", 'ulimit -f 0; exec "$@"', "bash"])
    assert (result.code, result.err) == (2, "mistamover: images.ini: File too large; give another by -o FILE\n")
    assert not (at / "images.ini").exists()
    nameless = os.fsdecode(os.fsencode(at) + b"/\xff")
    os.mkdir(nameless)
    result = run(Path(nameless), "new", "local", "images", *HERE)
    assert (result.code, os.listdir(nameless)) == (2, []), result.err
    assert result.err.count("\n") == 1


def test_what_is_missing_is_told_at_once_where_nobody_can_be_asked(at: Path) -> None:
    result = run(at, "new", "sftp", "images", "--set", "outgoing.lans=8")
    assert (result.code, result.out) == (2, "")
    first, *rest = result.err.splitlines()
    assert first == "mistamover: standard input is no terminal, and so nothing is asked"
    assert [line.split(": ")[1] for line in rest] == [
        "--set outgoing.lans",
        "--set data_stream.directory",
        "--set outgoing.target_dir",
        "--set outgoing.target_host",
    ]
    assert "give TYPE and NAME" in run(at, "new").err
    assert "give NAME" in run(at, "new", "local").err
    assert list(at.glob("*.ini")) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ftp.password=canary-77", "others can read the arguments of a program; give ftp.password_file"),
        ("outgoing.lanes=8\n[sftp]\nport = 1", "a value is one line of text"),
        ("lanes=8", "give SECTION.OPTION=VALUE"),
        ("logging.port=2000", "there is no log server"),
        ("outgoing.lanes=many", "'many' cannot be used; give a whole number, from 1 to 32"),
    ],
)
def test_a_wrong_option_is_refused(at: Path, given: str, said: str) -> None:
    result = run(at, "new", "local", "images", *HERE, "--set", given)
    assert result.code == 2
    assert said in result.err
    assert "canary-77" not in result.out + result.err
    assert not (at / "images.ini").exists()


def test_a_wrong_option_of_streams_in_the_global_file_is_refused(at: Path) -> None:
    result = run(at, "new", "global", "--set", "outgoing.lanes=many", "--set", "logging.max_files=none")
    assert [line.split(": ")[1] for line in result.err.splitlines()[1:]] == [
        "--set logging.max_files",
        "--set outgoing.lanes",
    ]
    assert run(at, "new", "global", "--set", "outgoing.lanes=8").code == 0
    assert ini.read(at / "global.ini").entries[0].key == ("outgoing", "lanes")


@pytest.mark.parametrize("kind", ["gridftp_myproxy", "gridftp_certificate"])
def test_types_that_are_gone_are_told_what_to_choose(at: Path, kind: str) -> None:
    result = run(at, "new", kind, "images")
    assert result.code == 2
    assert "give sftp or rsync_ssh" in result.err


@pytest.mark.needs("sshd", "ssh")
@pytest.mark.parametrize(("place", "code"), [("", 0), ("/nowhere", 3)])
def test_a_target_is_tried_before_anything_is_written(
    at: Path, sshd: Sshd, far: Path, place: str, code: int
) -> None:
    given = {
        "data_stream.directory": "spool",
        "outgoing.target_host": sshd.host,
        "outgoing.target_dir": f"{far}{place}",
        "sftp.port": sshd.port,
        "sftp.username": sshd.username,
        "sftp.key_file": sshd.key_file,
        "sftp.known_hosts": sshd.known_hosts,
    }
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    result = run(at, "new", "sftp", "images", "--connect", *words)
    assert result.code == code, result.out + result.err
    assert (at / "images.ini").exists() == (code == 0)
    last = "next:    mistamover run --once images.ini" if code == 0 else "nothing was written"
    assert result.lines[-1] == last


def test_the_global_file_that_is_named_counts_and_is_named_again(at: Path) -> None:
    shared = at / "shared.ini"
    shared.write_text(f"[global]\nbase_data_dir = {at}\n")
    result = run(at, "new", "local", "spool", "--set", "outgoing.target_dir=/target", "--config", "shared.ini")
    assert result.lines[-1] == "next:    mistamover check --connect --config shared.ini spool.ini"

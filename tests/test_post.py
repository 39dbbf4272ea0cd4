"""The postman and its couriers, with real SMTP servers."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from mistamover import alert, couriers, fs, heartbeat, post
from mistamover.aides import Aide, Known
from mistamover.alert import Trouble
from mistamover.board import Board
from mistamover.heartbeat import State
from mistamover.ledger import LOCK
from mistamover.log import BaseLog
from mistamover.options import Email
from mistamover.post import Postman
from tests.ftpd import Certificate
from tests.installed import Installed
from tests.program import Local, ended
from tests.smtpd import HOST, PASSWORD, USER, Smtpd, drops_in_the_middle, hangs, misbehaving, running
from tests.sshd import free_port, wait_for
from tests.test_secrets import Looking
from tests.test_supervisor import Installation, dies, installation, until

__all__ = ["installation"]
NASTY = "rain\r\nBcc: all@example.org\n\x1b[2J\u202eölig \udcff.dat"


class Office:
    """A state directory, what is wrong there, and a postman whose clock stands."""

    def __init__(self, top: Path, **options: Any) -> None:
        self.state = top / "state"
        self.now = 1_800_000_000.0
        self.lines: list[str] = []
        self.postman = Postman(self.state, lambda _level, text: self.lines.append(text), lambda: self.now)
        assert self.postman.takes_office()
        self.options: dict[str, Any] = {
            "recipient": "ops@example.org, root",
            "from": "Mover <mover@example.org>",
        } | options
        self.board = self.board_of("images")

    def board_of(self, stream: str, **options: Any) -> Board:
        email = Email.model_validate(self.options | options)
        return Board(self.state / (stream or "alerts"), stream, email, lambda: self.now)

    def work(self) -> None:
        self.postman.look()
        self.postman.hand_over()

    @property
    def waiting(self) -> list[post.Item]:
        return list(post.waiting(self.state))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("certificate"), HOST)


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text(f"{PASSWORD}\n")
    return path


def body(mail: EmailMessage) -> str:
    return str(mail.get_content())


# -- the mail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["none", "auto", "starttls", "implicit"])
def test_a_mail_arrives(tmp_path: Path, certificate: Certificate, password_file: Path, tls: str) -> None:
    is_safe = tls in ("starttls", "implicit")
    server = Smtpd(certificate if is_safe else None, implicit=tls == "implicit", log_in=is_safe)
    log_in = {"username": USER, "password_file": password_file, "ca_file": certificate.file} if is_safe else {}
    with running(server):
        office = Office(tmp_path, smarthost=HOST, port=server.port, tls=tls, **log_in)
        office.board.hold(Trouble.TARGET, "Connection refused", mend="mistamover check images.ini")
        office.now += 120
        office.work()
    (mail,) = server.mails
    assert server.recipients == [["ops@example.org", "root"]]
    assert server.was_within_tls is is_safe
    assert server.log_ins == [USER] * is_safe
    host = post.here().host
    assert mail["Subject"] == f"[MiStaMover] {host}: images: target unreachable"
    assert mail["From"] == "Mover <mover@example.org>"
    assert mail["To"] == "ops@example.org, root"
    assert mail["X-Mistamover-Stream"] == "images"
    assert mail["X-Mistamover-Condition"] == "target"
    assert mail["X-Mistamover-State"] == "begins"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"]
    assert mail.get_content_type() == "text/plain"
    assert "Connection refused" in body(mail)
    assert "mistamover check images.ini" in body(mail)
    assert office.waiting == []


def test_the_mails_about_one_condition_are_one_thread(tmp_path: Path) -> None:
    server = Smtpd()
    with running(server):
        office = Office(tmp_path, smarthost=HOST, port=server.port)
        for _ in range(2):
            office.board.hold(Trouble.TARGET, "down")
            office.now += 100
            office.work()
            office.now += 4000
            office.board.end(Trouble.TARGET)
            office.now += 100
            office.work()
            office.now += 9000
    assert [mail["X-Mistamover-State"] for mail in server.mails] == ["begins", "ends", "begins", "ends"]
    threads = [mail["References"] for mail in server.mails]
    assert threads[0] == threads[1] != threads[2] == threads[3]
    assert len({mail["Message-ID"] for mail in server.mails}) == 4
    assert server.mails[1]["Subject"].endswith("images: target unreachable: over after 1:08:20 h")


def test_no_name_breaks_out_of_its_line(tmp_path: Path) -> None:
    server = Smtpd()
    with running(server):
        office = Office(tmp_path, smarthost=HOST, port=server.port)
        office.board.hold(Trouble.UNITS, f"{NASTY}: no", names=[NASTY], about=NASTY)
        office.board.hear(40, NASTY)
        office.now += 120
        office.work()
    (mail,) = server.mails
    assert mail["Bcc"] is None
    assert not any("\n" in value or "\x1b" in value for value in map(str, mail.values()))
    assert "\\nBcc: all@example.org" in mail["Subject"]
    assert "ölig" in mail["Subject"]
    assert "\\u202e" in body(mail)
    assert "\x1b" not in body(mail)
    assert not [line for line in body(mail).splitlines() if line.startswith("Bcc")]


def test_each_stream_may_tell_others(tmp_path: Path) -> None:
    server = Smtpd()
    with running(server):
        office = Office(tmp_path, smarthost=HOST, port=server.port)
        other = office.board_of("radar", recipient="radar@example.org")
        silent = office.board_of("quiet", recipient="")
        for board in (office.board, other, silent):
            board.hold(Trouble.TARGET, "down")
        office.now += 120
        office.work()
    told = {
        tuple(to): mail["X-Mistamover-Stream"] for to, mail in zip(server.recipients, server.mails, strict=True)
    }
    assert told == {("ops@example.org", "root"): "images", ("radar@example.org",): "radar"}


def test_what_was_told_is_known_to_the_next_postman(tmp_path: Path) -> None:
    server = Smtpd()
    with running(server):
        office = Office(tmp_path, smarthost=HOST, port=server.port)
        office.board.hold(Trouble.TARGET, "down")
        office.now += 120
        office.work()
        second = Postman(office.state, lambda *_: None, lambda: office.now + 500)
        assert not second.takes_office()
        office.postman.leaves_office()
        assert second.takes_office()
        second.look()
        second.hand_over()
    assert len(server.mails) == 1


# -- what goes wrong ---------------------------------------------------------------------------------------


def refusing(answers: dict[str, str]) -> Callable[[ExitStack], int]:
    def serve(stack: ExitStack) -> int:
        return stack.enter_context(running(Smtpd(answers=answers))).port

    return serve


TROUBLES: dict[str, tuple[Callable[[ExitStack], int], str, bool]] = {
    "nobody": (lambda _: free_port(), "nobody takes mail there (connection refused)", False),
    "hangs": (lambda stack: stack.enter_context(misbehaving(hangs)), "no answer within 0.3 s", False),
    "drops": (
        lambda stack: stack.enter_context(misbehaving(drops_in_the_middle)),
        "ended the connection in the middle",
        False,
    ),
    "later": (refusing({"DATA": "451 busy"}), "refuses: 451 busy", False),
    "grey": (refusing({"RCPT": "450 greylisted"}), "ops@example.org (450 greylisted)", False),
    "never": (refusing({"DATA": "554 spam"}), "refuses: 554 spam", True),
    "recipient": (
        refusing({"RCPT": "550 unknown"}),
        "refuses every recipient: ops@example.org (550 unknown)",
        True,
    ),
    "sender": (
        refusing({"MAIL": "553 no"}),
        "refuses the sender mover@example.org: 553 no; see [email] from",
        True,
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_handed_over_waits_and_is_told_once(tmp_path: Path, trouble: str) -> None:
    serve, said, needs_a_person = TROUBLES[trouble]
    with ExitStack() as stack:
        port = serve(stack)
        office = Office(tmp_path, smarthost=HOST, port=port, timeout=0.3)
        office.board.hold(Trouble.TARGET, "down")
        office.now += 120
        office.work()
        office.work()
        (item,) = office.waiting
        assert said in item.reason
        assert item.tries == 1
        assert item.next_try == office.now + (3600 if needs_a_person else 60)
        office.now = item.next_try
        office.work()
        (item,) = office.waiting
        assert item.tries == 2
        assert item.next_try == office.now + (3600 if needs_a_person else 120)
    assert sum(said in line for line in office.lines) == 1
    office.now = item.next_try
    with running(Smtpd(port=port)) as server:
        office.work()
        office.work()
    assert len(server.mails) == 1
    assert office.waiting == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "its certificate is not trusted: self-signed certificate; give [email] ca_file"),
        ({"tls": "implicit"}, "no TLS could be agreed on"),
        ({"ca_file": "yes", "username": "other"}, "refuses the log-in of other: 535"),
        (
            {"ca_file": "yes", "smarthost": "localhost", "tls": "starttls"},
            "its certificate is not trusted: Hostname",
        ),
        ({"smarthost": "no-such-host.invalid"}, "no-such-host.invalid: no such host"),
    ],
)
def test_a_log_in_goes_nowhere_but_to_the_right_host(
    tmp_path: Path, certificate: Certificate, password_file: Path, options: dict[str, str], said: str
) -> None:
    with running(Smtpd(certificate, log_in=True)) as server:
        more: dict[str, Any] = {"tls": "starttls", "username": USER, "password_file": password_file} | options
        if "ca_file" in more:
            more["ca_file"] = certificate.file
        office = Office(tmp_path, **{"smarthost": HOST, "port": server.port} | more)
        office.board.hold(Trouble.TARGET, "down")
        office.now += 120
        office.work()
        (item,) = office.waiting
        assert said in item.reason
        assert server.mails == []
        assert USER not in server.log_ins


@pytest.mark.parametrize("tls", ["auto", "starttls"])
def test_a_password_is_never_sent_in_the_clear(
    tmp_path: Path, password_file: Path, tls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(couriers, "_is_here", lambda _: False)  # as if it were another host
    with running(Smtpd()) as server:
        office = Office(
            tmp_path, smarthost=HOST, port=server.port, tls=tls, username=USER, password_file=password_file
        )
        office.board.hold(Trouble.TARGET, "down")
        office.now += 120
        office.work()
        assert "offers no STARTTLS; see [email] tls and port" in office.waiting[0].reason
    assert server.log_ins == []


def test_a_password_file_that_others_may_read_is_refused(tmp_path: Path, password_file: Path) -> None:
    password_file.chmod(0o644)
    office = Office(tmp_path, smarthost=HOST, port=free_port(), username=USER, password_file=password_file)
    office.board.hold(Trouble.TARGET, "down")
    office.now += 120
    office.work()
    assert "group or others may use" in office.waiting[0].reason


def test_one_recipient_of_two_is_better_than_none(tmp_path: Path) -> None:
    with running(Smtpd(answers={"root": "550 no root here"})) as server:
        office = Office(tmp_path, smarthost=HOST, port=server.port)
        office.board.hold(Trouble.TARGET, "down")
        office.now += 120
        office.work()
    assert server.recipients == [["ops@example.org"]]
    assert office.waiting == []
    assert any("but not for root (550 no root here)" in line for line in office.lines)


def test_the_spool_of_mails_is_bounded_and_they_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "MOST_WAITING", 4)
    office = Office(tmp_path, smarthost=HOST, port=free_port())
    for _ in range(7):
        office.board.hold(Trouble.TARGET, "down")
        office.now += 4000
        office.work()
        office.board.end(Trouble.TARGET)
        office.now += 4000
        office.work()
    assert len(office.waiting) == 4
    assert sum("too many wait" in line for line in office.lines) == 10
    office.now += post.EXPIRES_AFTER + 1
    office.work()
    assert {item.created for item in office.waiting} <= {office.now}
    assert all(not stat.S_IMODE(path.stat().st_mode) & 0o007 for path in (office.state / "alerts").rglob("*.json"))


def test_a_board_of_another_user_runs_nothing(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    office = Office(tmp_path, recipient="", alert_command=["touch", str(tmp_path / "touched")])
    office.board.hold(Trouble.TARGET, "down")
    path = office.state / "images/conditions.json"
    os.chown(path, 12345, 12345)
    office.now += 120
    office.work()
    assert not (tmp_path / "touched").exists()
    os.chown(path, 0, 0)
    office.work()
    assert (tmp_path / "touched").exists()


# -- other ways --------------------------------------------------------------------------------------------


def test_a_command_gets_json_and_has_to_end(tmp_path: Path) -> None:
    script = tmp_path / "pager"
    script.write_text(f"#!/bin/sh\ncat >>{tmp_path}/heard\n[ ! -e {tmp_path}/hang ] || sleep 1000\n")
    script.chmod(0o755)
    office = Office(tmp_path, recipient="", alert_command=[str(script), "--page"], timeout=0.5)
    (tmp_path / "hang").touch()
    office.board.hold(Trouble.QUARANTINE, "a name\nwith a break", count=3, names=["a\nb"])
    office.now += 120
    office.work()
    assert "did not end within 0.5 s" in office.waiting[0].reason
    (tmp_path / "hang").unlink()
    office.now += 120
    office.work()
    assert office.waiting == []
    told = json.loads((tmp_path / "heard").read_text().splitlines()[-1])
    assert (told["stream"], told["condition"], told["state"]) == ("images", "quarantine", "begins")
    assert (told["count"], told["units"], told["ended"]) == (3, ["a\\nb"], None)


@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "it hangs"])
def test_what_a_command_leaves_behind_holds_nobody_up(tmp_path: Path, ends: bool) -> None:
    """A program in a session of its own, which no signal to ours reaches, keeps the command's output open."""
    script, left = tmp_path / "pager", tmp_path / "left"
    hangs = "" if ends else f"echo $$ >{tmp_path}/own\nsleep 1000\n"
    script.write_text(f"#!/bin/sh\nsetsid sh -c 'echo $$ >{left}; exec sleep 1000' &\n{hangs}")
    script.chmod(0o755)
    office = Office(tmp_path, recipient="", alert_command=[str(script)], timeout=20 if ends else 2)
    office.board.hold(Trouble.QUARANTINE, "a unit", count=1, names=["a"])
    office.now += 120
    try:
        office.work()
    finally:
        wait_for(lambda: left.exists() and left.read_text().endswith("\n"), "it to say its number")
        os.kill(int(left.read_text()), signal.SIGKILL)
    assert [letter.reason for letter in office.waiting] == ([] if ends else [f"{script}: did not end within 2 s"])
    assert ends or not psutil.pid_exists(int((tmp_path / "own").read_text()))


def test_a_mail_through_sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/sendmail"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\ncat >{tmp_path}/mail\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    office = Office(tmp_path, smarthost="sendmail:")
    office.board.hold(Trouble.TARGET, "down")
    office.now += 120
    office.work()
    assert (tmp_path / "arguments").read_text() == "-i -- ops@example.org root\n"
    mail = (tmp_path / "mail").read_bytes()
    assert b"Subject: [MiStaMover] " in mail
    assert b"\r" not in mail


def test_apprise_is_told_too(tmp_path: Path) -> None:
    pytest.importorskip("apprise")
    heard: list[dict[str, Any]] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer((HOST, 0), Service) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        urls = tmp_path / "apprise.conf"
        urls.write_text(f"json://{HOST}:{service.server_port}/token\n")
        office = Office(tmp_path, recipient="", alert_apprise=urls)
        office.board.hold(Trouble.TARGET, "down")
        office.now += 120
        office.work()
        service.shutdown()
    assert office.waiting == []
    assert "images: target unreachable" in heard[0]["title"]
    assert "down" in heard[0]["message"]


# -- the whole program -------------------------------------------------------------------------------------


def to(server: Smtpd | int, more: str = "") -> str:
    port = server if isinstance(server, int) else server.port
    return f"[email]\nrecipient = ops@example.org\nsmarthost = {HOST}\nport = {port}\n{more}\n"


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


def test_ten_thousand_failing_units_are_one_mail_with_the_right_count() -> None:
    with TemporaryDirectory(dir="/dev/shm") as top:  # an fsync for each of them would take minutes
        _see_ten_thousand_fail(Local(Path(top)))


def _see_ten_thousand_fail(local: Local) -> None:
    for number in range(10_000):
        (local.spool / f"{number:05}").write_bytes(b"new")
        (local.target / f"{number:05}").write_bytes(b"other")
    with running(Smtpd()) as server:
        local.configure(more=to(server))
        assert local.once("--quiet").code == 1
        assert local.once("--quiet").code == 0
    (mail,) = server.mails
    assert mail["Subject"].endswith(": x: quarantine grew")
    assert "10,000 units" in body(mail)
    assert "and 9,980 more" in body(mail)
    assert body(mail).count("\n    0") == 20
    assert f"mistamover quarantine list {local.ini}" in body(mail)


def test_a_smarthost_that_hangs_costs_a_transfer_nothing_and_the_next_run_tells(local: Local) -> None:
    local.put("good")
    local.put("bad")
    local.put("bad", b"other", at=local.target)
    with misbehaving(hangs) as port:
        local.configure(more=to(port))
        result = local.once()
        assert result.code == 1
        assert local.names(local.target) == {"good", "bad"}
    (item,) = post.waiting(local.state)
    listed = local.run("alerts", "list", "--config", local.ini)
    assert listed.code == 1
    assert "x/quarantine" in listed.out
    assert "waits to be told by mail" in listed.out
    path = item.path
    path.write_text(json.dumps(json.loads(path.read_text()) | {"next_try": 0, "email": _moved(item.email, 0)}))
    with running(Smtpd()) as server:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"email": _moved(item.email, server.port)}))
        local.configure(more=to(server))
        assert local.once().code == 0
    assert [mail["X-Mistamover-Condition"] for mail in server.mails] == ["quarantine"]


def _moved(email: Email, port: int) -> dict[str, Any]:
    return email.for_the_postman() | {"port": port or 25}


def test_the_service_tells_what_it_gave_up_and_what_is_broken(installation: Installation) -> None:
    def postman(known: Known, alive: Callable[[], None]) -> None:
        post.LOOK_EVERY, post.GATHER, alert.MINUTE = 0.05, 0.2, 0.2
        with BaseLog("postman", "", known.service.logging, directory=installation.top, detached=True) as log:
            post.serve(known, log, alive)

    with running(Smtpd()) as server:
        installation.configure("max_restarts = 1\n" + to(server))
        installation.add("a")
        installation.start(dies, Aide("postman", postman, post.is_wanted))
        until(lambda: installation.stream("a").state is State.FATAL)
        wait_for(lambda: len(server.mails) == 1, "a mail")
        assert server.mails[0]["Subject"].endswith(": a: worker fatal")
        assert "ended with code 3" in body(server.mails[0])
        broken = installation.add("b", "lans = 3")
        wait_for(lambda: len(server.mails) == 2, "a mail")
        assert "service: configuration broken" in server.mails[1]["Subject"]
        assert "did you mean lanes?" in body(server.mails[1])
        broken.unlink()
        wait_for(lambda: len(server.mails) == 3, "a mail")
        assert server.mails[2]["X-Mistamover-State"] == "ends"
    assert heartbeat.read_service(installation.state).pid


def test_the_service_has_a_postman_where_somebody_is_told_and_it_goes_with_the_service(tmp_path: Path) -> None:
    installed = Installed(tmp_path)
    try:
        installed.add("a", outgoing=f"target_dir = {tmp_path}/missing\n")
        installed.put("a", "file")
        installed.start()
        assert _postmen(installed.pid) == []
        installed.configure(to(free_port()))
        assert installed.run("reload").code == 0
        until(lambda: len(_postmen(installed.pid)) == 1)
        (postman,) = _postmen(installed.pid)
        until(lambda: "a/refused" in installed.run("alerts", "list").out)
        assert installed.run("stop").code == 0
        assert not postman.is_running()
        assert "a/refused" in installed.run("alerts", "list").out, "that it was stopped is no remedy"
    finally:
        installed.close()


def _postmen(service: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(service).children() if one.cmdline()[:1] == ["mistamover: postman"]]


# -- mistamover alerts -------------------------------------------------------------------------------------


def test_a_test_mail_says_what_the_server_answers(
    local: Local, certificate: Certificate, password_file: Path
) -> None:
    assert local.run("alerts", "test", "--config", local.ini).code == 1
    with running(Smtpd(certificate, log_in=True)) as server:
        trusted = f"ca_file = {certificate.file}\n"
        log_in = f"tls = starttls\nusername = {USER}\npassword_file = {password_file}\n"
        local.configure(more=to(server, trusted + log_in))
        result = local.run("alerts", "test", "--config", local.ini)
        assert (result.code, result.err) == (0, "")
        assert result.out == f"mail to ops@example.org: {HOST} took it: 250 queued as 4711\n"
        assert server.mails[0]["X-Mistamover-Condition"] == "test"
        local.configure(more=to(server, log_in))
        result = local.run("alerts", "test", "--config", local.ini, local.ini)
        assert result.code == 3
        assert "its certificate is not trusted" in result.out
        password_file.write_text("wrong\n")
        local.configure(more=to(server, trusted + log_in))
        result = local.run("alerts", "test", "--config", local.ini)
        assert result.code == 3
        assert f"refuses the log-in of {USER}: 535" in result.out
        password_file.chmod(0o640)
        result = local.run("alerts", "test", "--config", local.ini)
        assert result.code == 2
        assert "chmod 600" in result.err


def test_a_condition_is_listed_and_silenced_until_it_is_not(local: Local) -> None:
    assert local.run("alerts", "list", "--config", local.ini).code == 0
    local.put("a")
    local.put("a", b"other", at=local.target)
    assert local.once().code == 1
    listed = local.run("alerts", "list", "--config", local.ini)
    assert listed.code == 1
    assert "x/quarantine" in listed.out
    assert "nobody is told: there is no [email] recipient" in listed.out
    unknown = local.run("alerts", "ack", "y", "--until", "1h", "--config", local.ini)
    assert unknown.code == 2
    assert "no stream or condition is called y; there are service, x, x/quarantine" in unknown.err
    done = local.run("alerts", "ack", "x", "--until", "1h", "--reason", "known", "--config", local.ini)
    assert done.code == 0
    told = json.loads(local.run("alerts", "list", "--json", "--config", local.ini).out)
    assert told["silenced"]["x"]["reason"] == "known"
    assert [one["key"] for one in told["conditions"]] == ["x/quarantine"]
    with running(Smtpd()) as server:
        local.configure(more=to(server))
        assert local.once().code == 0
        assert server.mails == []
        assert local.run("alerts", "ack", "x", "--until", "0s", "--config", local.ini).code == 0
        assert local.once().code == 0
        assert len(server.mails) == 1


def test_what_was_wrong_with_a_stream_that_nobody_runs_any_more_is_dropped(local: Local) -> None:
    drop = ("alerts", "drop", "--config", str(local.ini))
    local.put("a")
    local.put("a", b"other", at=local.target)
    assert local.once().code == 1
    polling = local.start("run", local.ini)
    try:
        until(lambda: fs.is_locked(local.state / "x" / LOCK))
        held = local.run(*drop, "x")
    finally:
        polling.terminate()
        ended(polling)
    assert held.code == 4
    assert "x: somebody runs it; " in held.err
    assert "x/quarantine" in local.run("alerts", "list", "--config", local.ini).out
    dropped = local.run(*drop, "x")
    assert (dropped.code, dropped.out, dropped.err) == (0, "forgotten: what was wrong with x\n", "")
    listed = local.run("alerts", "list", "--config", local.ini)
    assert (listed.code, listed.out.splitlines()[0]) == (0, "nothing is wrong")
    assert "a" in local.run("quarantine", "list", local.ini).out, "the record stays"
    assert local.run(*drop, "../x").code == local.run(*drop, "x").code == 2


def test_what_is_wrong_with_a_stream_of_the_service_is_not_dropped(tmp_path: Path) -> None:
    installed = Installed(tmp_path)
    try:
        installed.add("a")
        installed.put("a", "file")
        (installed.target("a") / "file").write_bytes(b"other")
        installed.start()
        until(lambda: "a/quarantine" in installed.run("alerts", "list").out)
        held = installed.run("alerts", "drop", "a")
        assert held.code == 4
        assert "a: the service runs it; " in held.err
    finally:
        installed.close()


def test_a_password_shows_nowhere(local: Local, certificate: Certificate, password_file: Path) -> None:
    (local.top / "log").mkdir()
    local.put("a")
    local.put("a", b"other", at=local.target)
    with running(Smtpd(certificate, log_in=True)) as server:
        options = (
            f"tls = starttls\nusername = {USER}\npassword_file = {password_file}\nca_file = {certificate.file}\n"
        )
        logging = f"[logging]\nbase_log_dir = {local.top}/log\nlog_level = debug\n"
        local.configure(more=to(server, options) + logging)
        process = local.start("run", "--once", "--debug", "--verbose", local.ini)
        looking = Looking(process, PASSWORD)
        result = ended(process)
        looking.end()
        test = local.run("alerts", "test", "--debug", "--config", local.ini)
        listed = local.run("alerts", "list", "--json", "--config", local.ini)
    assert len(server.mails) == 2
    assert looking.seen
    assert looking.found == []
    assert PASSWORD not in result.out + result.err + test.out + test.err + listed.out + listed.err
    assert all(PASSWORD not in mail.as_string() for mail in server.mails)
    found = [path for path in local.top.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert found == [password_file]

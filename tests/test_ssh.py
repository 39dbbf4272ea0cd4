"""Log-ins, and what is said to a person when one fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mistamover import config
from mistamover.errors import ConfigError, Exit, MistamoverError, TargetDown, TargetRefused
from mistamover.options import Settings
from mistamover.testing.needs import find
from mistamover.testing.rig import Rig, deliver, failed, tree
from mistamover.transports import ssh
from mistamover.transports.contract import Proof
from tests.conftest import StartSshd
from tests.faults import rig as faults
from tests.sshd import Account, Sshd, make_key
from tests.transports.sftp_contract import options

connectors = pytest.mark.parametrize("connector", ["openssh", "paramiko"])
LogIn = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the user's own log-ins counts."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def log_in(tmp_path: Path) -> Iterator[LogIn]:
    """Deliver a file to a server, with these options besides those that lead to it."""
    with ExitStack() as stack:

        def log_in(server: Sshd, connector: str, *, host: str = "", **sftp: str) -> None:
            rig = Rig(Path(tempfile.mkdtemp(dir=tmp_path)), options(server, connector))
            stack.callback(rig.close)
            rig.put("file")
            transport = rig.open(log_in=sftp, target_host=host or server.host)
            assert failed(deliver(transport, rig.units(transport))) == {}
            assert tree(rig.target) == tree(rig.spool)
            rig.close()

        yield log_in


def settings(tmp_path: Path, host: str = "archive.example.org", **sftp: str) -> Settings:
    """Settings that lead nowhere."""
    file = tmp_path / "ds_images.ini"
    file.touch(mode=0o600)
    lines = [f"{name} = {value}" for name, value in sftp.items()]
    file.write_text(
        f"[data_stream]\ndirectory = {tmp_path}/spool\n[outgoing]\ntransfer_protocol = sftp\n"
        f"target_host = {host}\ntarget_dir = /data\n[sftp]\n" + "\n".join(lines)
    )
    return config.load(file, None, {"HOME": str(tmp_path)})


def commands(error: BaseException, *, after: str) -> str:
    """The commands that a message says, from the one that follows these words."""
    return str(error).partition(after)[2].strip().partition("   ")[0]


def run(command: str) -> str:
    """Type it into a shell, at home."""
    home = os.environ["HOME"]
    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, timeout=30, cwd=home
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def fingerprint(server: Sshd) -> str:
    return run(f"ssh-keygen -lf {server.host_key}.pub").split()[1]


# -- host keys -----------------------------------------------------------------------------------------


@pytest.mark.needs("sshd", "ssh", "ssh-keygen", "ssh-keyscan")
class TestHostKeys:
    @connectors
    def test_an_unknown_key_is_refused_and_the_message_lets_us_in(
        self, start_sshd: StartSshd, log_in: LogIn, connector: str
    ) -> None:
        server = start_sshd()
        server.known_hosts.write_text("")
        with pytest.raises(TargetRefused, match="not known") as caught:
            log_in(server, connector)
        assert "\n" not in str(caught.value)
        assert fingerprint(server) in run(commands(caught.value, after="get and show it:"))
        run(commands(caught.value, after="add it:"))
        log_in(server, connector)

    @connectors
    def test_another_hosts_key_does_not_count(
        self, start_sshd: StartSshd, sshd: Sshd, log_in: LogIn, connector: str
    ) -> None:
        server = start_sshd()
        server.known_hosts.write_bytes(sshd.known_hosts.read_bytes())
        with pytest.raises(TargetRefused, match="not known"):
            log_in(server, connector)

    @connectors
    def test_a_changed_key_is_refused_and_the_message_lets_us_in(
        self, start_sshd: StartSshd, log_in: LogIn, connector: str
    ) -> None:
        server = start_sshd()
        log_in(server, connector)
        server.change_host_key()
        with pytest.raises(TargetRefused, match="HAS CHANGED") as caught:
            log_in(server, connector)
        assert "\n" not in str(caught.value)
        assert fingerprint(server) in run(commands(caught.value, after="Get and show the new one:"))
        run(commands(caught.value, after="confirms it:"))
        log_in(server, connector)

    @pytest.mark.parametrize(
        ("is_changed", "words"), [(False, ("get and show it:", "add it:")), (True, ("one:", "confirms it:"))]
    )
    def test_the_message_about_an_alias_names_the_host_and_port_that_it_stands_for(
        self, start_sshd: StartSshd, log_in: LogIn, tmp_path: Path, is_changed: bool, words: tuple[str, str]
    ) -> None:
        server = start_sshd()
        if is_changed:
            server.change_host_key()
        else:
            server.known_hosts.write_text("")
        ini = tmp_path / "config"
        ini.write_text(
            f"Host archive\nHostName {server.host}\nPort {server.port}\nStrictHostKeyChecking yes\n"
            f"UserKnownHostsFile {server.known_hosts}\n"
        )
        said = subprocess.run(["ssh", "-F", ini, "archive", "true"], capture_output=True, text=True, check=False)
        error = ssh.explain_ssh(said.stderr, settings(tmp_path, "archive", known_hosts=str(server.known_hosts)))
        assert str(error).startswith("archive: ")
        show, add = words
        assert fingerprint(server) in run(commands(error, after=show))
        run(commands(error, after=add))
        log_in(server, "openssh")

    @pytest.mark.needs("root", "useradd")
    def test_no_password_is_sent_to_a_host_whose_key_changed(
        self, start_sshd: StartSshd, account: Account, log_in: LogIn
    ) -> None:
        server = start_sshd(account=account, extra=("LogLevel DEBUG1",))
        server.change_host_key()
        with pytest.raises(TargetRefused, match="HAS CHANGED"):
            log_in(server, "paramiko", password=account.password or "")
        log = server.log.read_text()
        assert "Connection from" in log
        assert "userauth-request" not in log

    @connectors
    def test_a_revoked_key_is_refused(self, start_sshd: StartSshd, log_in: LogIn, connector: str) -> None:
        server = start_sshd()
        server.known_hosts.write_text(f"@revoked * {' '.join(server.known_hosts.read_text().split()[1:])}\n")
        with pytest.raises(TargetRefused):
            log_in(server, connector)

    @connectors
    def test_a_known_hosts_that_is_gone_meanwhile_knows_nobody(
        self, start_sshd: StartSshd, tmp_path: Path, connector: str
    ) -> None:
        server = start_sshd()
        rig = Rig(tmp_path, options(server, connector))
        transport = rig.transport()
        server.known_hosts.unlink()
        with pytest.raises(TargetRefused, match="not known"):
            transport.open()
        rig.close()

    @connectors
    def test_file_names_may_hold_blanks_and_percent_signs(
        self, sshd: Sshd, log_in: LogIn, tmp_path: Path, connector: str
    ) -> None:
        odd = tmp_path / "it's 50%h of a 'name'"
        odd.mkdir()
        shutil.copy(sshd.key_file, odd / "the key")
        shutil.copy(sshd.known_hosts, odd / "known hosts")
        log_in(sshd, connector, key_file=str(odd / "the key"), known_hosts=str(odd / "known hosts"))


# -- log-ins -------------------------------------------------------------------------------------------


@pytest.mark.needs("sshd", "ssh")
class TestLogIns:
    @connectors
    @pytest.mark.parametrize("tries", [6, 1])
    def test_a_wrong_key_is_refused_and_not_tried_again(
        self, start_sshd: StartSshd, log_in: LogIn, tmp_path: Path, connector: str, tries: int
    ) -> None:
        server = start_sshd(extra=(f"MaxAuthTries {tries}",))
        make_key(tmp_path / "stranger")
        with pytest.raises(TargetRefused, match="log-in refused") as caught:
            log_in(server, connector, key_file=str(tmp_path / "stranger"))
        assert not caught.value.retry
        assert server.log.read_text().count("Connection from") == 1
        assert "\n" not in str(caught.value)
        command = commands(caught.value, after="authorized_keys:")
        assert f"-p {server.port}" in command
        assert str(tmp_path / "stranger") in command
        assert command.endswith(f"{server.username}@{server.host}")

    @connectors
    def test_an_unknown_user_is_refused(self, sshd: Sshd, log_in: LogIn, connector: str) -> None:
        with pytest.raises(TargetRefused, match="log-in refused"):
            log_in(sshd, connector, username="nobody-of-that-name")

    @connectors
    def test_a_key_with_a_passphrase_is_said(
        self, sshd: Sshd, log_in: LogIn, tmp_path: Path, connector: str
    ) -> None:
        shutil.copy(sshd.key_file, tmp_path / "key")
        run(f"ssh-keygen -q -p -P '' -N secret -f {tmp_path}/key")
        with pytest.raises(TargetRefused, match=r"asks for no passphrase|password-protected"):
            log_in(sshd, connector, key_file=str(tmp_path / "key"))

    @connectors
    def test_what_is_no_key_is_said(self, sshd: Sshd, log_in: LogIn, tmp_path: Path, connector: str) -> None:
        (tmp_path / "key").touch(mode=0o600)
        (tmp_path / "key").write_text("no key\n")
        with pytest.raises(TargetRefused):
            log_in(sshd, connector, key_file=str(tmp_path / "key"))

    @pytest.mark.parametrize("lane", range(3))
    def test_lanes_share_a_log_in_and_outlive_each_other(self, sshd: Sshd, tmp_path: Path, lane: int) -> None:
        """Whichever ends first, the others go on."""
        rig = Rig(tmp_path, options(sshd, "openssh"))
        rig.put("file")
        settings = rig.settings()
        transports = [type(rig.transport())(settings, rig.transport().spool) for _ in range(3)]
        for transport in transports:
            transport.open()
        transports.pop(lane).close()
        for number, transport in enumerate(transports):
            units = [unit._replace(staged=f"{unit.staged}{number}") for unit in rig.units(transport)]
            assert [outcome.error for outcome in transport.send(units)] == [None]
            transport.discard(units)
            transport.close()
        rig.close()

    def test_a_temporary_directory_of_any_name_will_do(
        self, sshd: Sshd, log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The path of a socket has a hundred bytes, and ssh takes some characters for its own."""
        odd = tmp_path / ("50%h of a temporary directory " + "x" * 100)
        odd.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(odd))
        log_in(sshd, "openssh")

    def test_nothing_is_left_behind(
        self, sshd: Sshd, log_in: LogIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "t").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
        log_in(sshd, "openssh")
        assert os.listdir(tmp_path / "t") == []


@pytest.mark.needs("sshd", "root", "useradd")
class TestPasswords:
    @pytest.mark.parametrize("connector", ["paramiko", "auto"])
    @pytest.mark.parametrize("way", ["password", "password_file"])
    def test_a_password_logs_in(
        self, start_sshd: StartSshd, account: Account, tmp_path: Path, connector: str, way: str
    ) -> None:
        server = start_sshd(account=account)
        file = tmp_path / "password"
        file.touch(mode=0o600)
        file.write_text(f"{account.password}\n")
        sftp = {"password": account.password or ""} if way == "password" else {"password_file": str(file)}
        sections = {key: dict(value) for key, value in options(server, connector).items()}
        del sections["sftp"]["key_file"]
        (tmp_path / "rig").mkdir()
        rig = Rig(tmp_path / "rig", sections)
        rig.target = server.root
        rig.put("file")
        transport = rig.open(log_in=sftp)
        assert transport.proof is Proof.DIGEST
        assert failed(deliver(transport, rig.units(transport))) == {}
        rig.close()

    def test_a_wrong_password_is_refused_and_not_shown(
        self, start_sshd: StartSshd, account: Account, log_in: LogIn
    ) -> None:
        server = start_sshd(account=account)
        server.key_file.unlink()
        make_key(server.key_file)
        with pytest.raises(TargetRefused, match=r"log-in refused; check \[sftp\] username, password") as caught:
            log_in(server, "paramiko", password="xyzzy-plugh")
        assert "xyzzy" not in str(caught.value)
        assert "xyzzy" not in repr(caught.value.__cause__)

    def test_a_host_that_heard_too_many_wrong_keys_and_passwords_is_not_down(
        self, start_sshd: StartSshd, account: Account, log_in: LogIn
    ) -> None:
        """The wrong key uses up the one try; the password that follows finds no connection any more."""
        server = start_sshd(account=account, extra=("MaxAuthTries 1", "LogLevel VERBOSE"))
        server.key_file.unlink()
        make_key(server.key_file)
        with pytest.raises(TargetRefused, match="log-in refused"):
            log_in(server, "paramiko", password="xyzzy-plugh")
        assert server.log.read_text().count("Connection from") == 1


# -- hosts that are not there --------------------------------------------------------------------------


@pytest.mark.needs("sshd", "ssh")
class TestNobodyThere:
    @connectors
    def test_a_connection_that_is_refused_is_worth_another_try(
        self, start_sshd: StartSshd, log_in: LogIn, connector: str
    ) -> None:
        server = start_sshd()
        server.stop()
        with pytest.raises(
            TargetDown, match=rf"^{re.escape(server.host)}: .*(refused|Unable to connect)"
        ) as caught:
            log_in(server, connector)
        assert caught.value.retry
        assert caught.value.exit is Exit.TARGET
        assert "\n" not in str(caught.value)

    @connectors
    def test_a_name_that_does_not_resolve_is_worth_another_try(
        self, sshd: Sshd, log_in: LogIn, connector: str
    ) -> None:
        with pytest.raises(TargetDown, match=r"^no-such-host\.invalid: \S") as caught:
            log_in(sshd, connector, host="no-such-host.invalid")
        assert "\n" not in str(caught.value)

    @connectors
    def test_an_sftp_server_that_does_not_start_is_said(
        self, start_sshd: StartSshd, log_in: LogIn, connector: str
    ) -> None:
        server = start_sshd(subsystem="/no/such/server")
        with pytest.raises((TargetDown, TargetRefused), match=rf"^{re.escape(server.host)}: \S"):
            log_in(server, connector)


# -- choosing and starting -----------------------------------------------------------------------------


def test_the_connector_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    for connector, kind in (("openssh", ssh.OpenSsh), ("paramiko", ssh.Paramiko)):
        connection = ssh.connect(settings(tmp_path, connector=connector))
        assert type(connection) is kind
        connection.close()


@pytest.mark.needs("ssh")
def test_without_a_choice_it_is_openssh_unless_there_is_a_password(tmp_path: Path) -> None:
    for sftp, kind in (({}, ssh.OpenSsh), ({"password": "xyzzy-plugh"}, ssh.Paramiko)):
        connection = ssh.connect(settings(tmp_path, **sftp))
        assert type(connection) is kind
        connection.close()


def test_without_an_ssh_program_paramiko_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert type(ssh.connect(settings(tmp_path))) is ssh.Paramiko
    with pytest.raises(TargetRefused, match="connector = paramiko"):
        ssh.connect(settings(tmp_path, connector="openssh"))


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch /tmp/x",
        "-p22",
        "--",
        "user@host",
        "user:xyzzy-plugh@host",
        "two words",
        "a;b",
        "$(touch x)",
        "`touch x`",
        "a|b",
        "a/b",
        "host\toption",
        "%h",
        "[::1",
        "host:22",
    ],
)
def test_a_host_that_ssh_could_take_for_an_option_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="target_host"):
        settings(tmp_path, host)


@pytest.mark.parametrize("user", ["-oProxyCommand=touch /tmp/x", "-l", "two words", "a/b", "tab\tbed", "\x1b[31m"])
def test_a_user_that_ssh_could_take_for_an_option_is_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(ConfigError, match="username"):
        settings(tmp_path, username=user)


def test_options_of_ssh_are_strict_and_hold_no_secret(tmp_path: Path) -> None:
    given = settings(tmp_path, username="mover", port="2222", password="xyzzy-plugh")
    options = ssh.ssh_options(given)
    assert {"-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oClearAllForwardings=yes"} <= set(options)
    assert {"-lmover", "-p2222"} <= set(options)
    assert not [option for option in options if "xyzzy" in option]
    assert not [option for option in options if not option.startswith("-")]


# -- what ssh says -------------------------------------------------------------------------------------

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("messages", "kind", "said"),
    [
        (CHANGED, TargetRefused, "HAS CHANGED"),
        (
            "No ED25519 host key is known for archive.example.org and you have requested strict checking.\n"
            "Host key verification failed.\n",
            TargetRefused,
            "not known",
        ),
        ("mover@archive.example.org: Permission denied (publickey).", TargetRefused, "log-in refused"),
        ("Permission denied (publickey,password,keyboard-interactive).", TargetRefused, "log-in refused"),
        (
            "Received disconnect from 192.0.2.1 port 22:2: Too many authentication failures\n"
            "Disconnected from 192.0.2.1 port 22\n",
            TargetRefused,
            "log-in refused",
        ),
        ("subsystem request failed on channel 0", TargetRefused, "no SFTP"),
        ("ssh: connect to host archive.example.org port 22: Connection refused", TargetDown, "Connection refused"),
        ("ssh: connect to host archive.example.org port 22: Connection timed out", TargetDown, "timed out"),
        ("ssh: connect to host archive.example.org port 22: No route to host", TargetDown, "No route"),
        ("ssh: Could not resolve hostname archive.example.org: Name or service not known", TargetDown, "resolve"),
        ("client_loop: send disconnect: Broken pipe", TargetDown, "Broken pipe"),
        ("Connection closed by 192.0.2.1 port 22", TargetDown, "closed by"),
        ("kex_exchange_identification: read: Connection reset by peer", TargetDown, "reset by peer"),
        ("Timeout, server archive.example.org not responding.", TargetDown, "not responding"),
        ("", TargetDown, "the connection was closed"),
        ("\n \n", TargetDown, "the connection was closed"),
    ],
)
def test_what_ssh_says_is_explained(tmp_path: Path, messages: str, kind: type[MistamoverError], said: str) -> None:
    error = ssh.explain_ssh(messages, settings(tmp_path))
    assert type(error) is kind
    assert said in str(error)
    assert str(error).startswith("archive.example.org: ")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("host", "port", "scan", "name"),
    [
        ("archive.example.org", None, "archive.example.org ", "archive.example.org "),
        (
            "archive.example.org",
            "2222",
            "-p 2222 archive.example.org ",
            "'[archive.example.org]:2222' ",
        ),
        ("::1", "2222", "-p 2222 ::1 ", "'[::1]:2222' "),
    ],
)
def test_the_commands_name_host_port_and_file(
    tmp_path: Path, host: str, port: str | None, scan: str, name: str
) -> None:
    known_hosts = tmp_path / "known hosts"
    known_hosts.touch()
    given = settings(tmp_path, host, known_hosts=str(known_hosts), **({"port": port} if port else {}))
    assert f"ssh-keyscan {scan}" in ssh.unknown_key(given)
    assert f">>'{known_hosts}'" in ssh.unknown_key(given)
    assert f"ssh-keyscan {scan}" in ssh.changed_key(given)
    assert f"ssh-keygen -R {name}" in ssh.changed_key(given)
    assert f"-f '{known_hosts}'" in ssh.changed_key(given)


class TestAccountsThatMayNotLogIn:
    """Where the server asks PAM, it takes the key or password, and refuses the account only then."""

    @pytest.mark.needs("chage")
    @pytest.mark.parametrize("connector", ["openssh", "paramiko", "rsync_ssh"])
    def test_an_account_that_has_expired_is_refused_and_not_down(
        self, start_sshd: StartSshd, account: Account, tmp_path: Path, connector: str
    ) -> None:
        server = start_sshd(account=account, extra=("UsePAM yes",))
        subprocess.run([find("chage") or "chage", "-E0", account.name], check=True)
        run = moved(server, tmp_path, connector)
        assert run.code == 3, run.text
        assert re.search("log-in refused: .*account has expired", run.text)
        assert server.log.read_text().count("Connection from") == 1

    @pytest.mark.campaign
    @pytest.mark.needs("usermod")
    @pytest.mark.parametrize("connector", ["openssh", "paramiko"])
    def test_an_account_that_is_locked_is_refused(
        self, start_sshd: StartSshd, account: Account, tmp_path: Path, connector: str
    ) -> None:
        server = start_sshd(account=account, extra=("UsePAM no",))
        subprocess.run([find("usermod") or "usermod", "-L", account.name], check=True)
        run = moved(server, tmp_path, connector)
        assert run.code == 3, run.text
        assert "log-in refused" in run.text
        assert server.log.read_text().count("Connection from") == 1

    @pytest.mark.campaign
    @pytest.mark.needs("chage")
    def test_a_password_that_is_to_be_changed_first_is_said(
        self, start_sshd: StartSshd, account: Account, tmp_path: Path
    ) -> None:
        """But for SFTP, where the server says nothing at all."""
        server = start_sshd(account=account, extra=("UsePAM yes",))
        subprocess.run([find("chage") or "chage", "-d0", account.name], check=True)
        run = moved(server, tmp_path, "rsync_ssh")
        assert run.code == 3, run.text
        assert "log-in refused: WARNING: Your password has expired" in run.text


def moved(server: Sshd, tmp_path: Path, connector: str) -> faults.Run:
    """A run that moves a file there."""
    rig = faults.Rig(tmp_path / "rig", server, connector)
    rig.oracle.put("file", b"data")
    return rig.run()

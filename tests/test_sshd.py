"""The servers that other tests rely on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest

from mistamover.testing.needs import find
from tests.conftest import StartSshd
from tests.sshd import Account, Sshd, SshdError, running_sshd, sftp_server, wait_for

CHECKOUT = Path(__file__).parents[1]


def ssh(server: Sshd, *command: str) -> subprocess.CompletedProcess[str]:
    argv = ["ssh", *server.ssh_options, server.host, *command]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)


def sftp(server: Sshd, batch: str) -> subprocess.CompletedProcess[str]:
    argv = ["sftp", "-b", "-", *server.ssh_options, server.host]
    return subprocess.run(argv, input=batch, capture_output=True, text=True, check=False, timeout=30)


@contextmanager
def waiting_session(server: Sshd) -> Iterator[subprocess.Popen[bytes]]:
    """A log-in that echoes what it is sent, proven to be up."""
    argv = ["ssh", *server.ssh_options, server.host, "cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as client:
        try:
            assert _echo(client) == b"."
            yield client
        finally:
            client.kill()


def _echo(client: subprocess.Popen[bytes]) -> bytes:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(b".")
    return client.stdout.read(1)


def test_a_key_logs_in_and_runs_commands(sshd: Sshd) -> None:
    result = ssh(sshd, "id -un; pwd")
    assert result.stdout.splitlines()[0] == sshd.username, result.stderr
    assert result.returncode == 0


def test_sftp_writes_below_its_root(sshd: Sshd, far: Path) -> None:
    result = sftp(sshd, f"put {__file__} {far}/copy\n")
    assert result.returncode == 0, result.stderr
    assert (far / "copy").read_bytes() == Path(__file__).read_bytes()


def test_without_a_shell_commands_are_refused_and_sftp_works(sshd_no_shell: Sshd) -> None:
    refused = ssh(sshd_no_shell, "echo shell")
    assert refused.returncode != 0
    assert "shell" not in refused.stdout
    assert sftp(sshd_no_shell, f"ls {sshd_no_shell.root}\n").returncode == 0


def test_another_key_is_refused(sshd: Sshd, start_sshd: StartSshd) -> None:
    stranger = start_sshd()
    options = [option.replace(str(sshd.key_file), str(stranger.key_file)) for option in sshd.ssh_options]
    result = subprocess.run(
        ["ssh", *options, sshd.host, "true"], capture_output=True, text=True, check=False, timeout=30
    )
    assert "Permission denied" in result.stderr


def test_an_account_logs_in_with_its_password(start_sshd: StartSshd, account: Account) -> None:
    server = start_sshd(account=account)
    with paramiko.SSHClient() as client:
        client.load_host_keys(str(server.known_hosts))
        client.connect(
            server.host,
            server.port,
            server.username,
            server.password,
            look_for_keys=False,
            allow_agent=False,
        )
        _, stdout, _ = client.exec_command("id -un")
        assert stdout.read().decode().strip() == account.name
        with client.open_sftp() as session:
            session.mkdir(f"{server.root}/made")
    assert (server.root / "made").owner() == account.name


def test_an_account_logs_in_with_a_key_and_a_wrong_password_is_refused(
    start_sshd: StartSshd, account: Account
) -> None:
    server = start_sshd(account=account)
    assert ssh(server, "id -un").stdout.strip() == account.name
    with paramiko.SSHClient() as client:
        client.load_host_keys(str(server.known_hosts))
        with pytest.raises(paramiko.AuthenticationException):
            client.connect(
                server.host, server.port, server.username, "wrong", look_for_keys=False, allow_agent=False
            )


def test_the_users_shell_start_up_is_not_run(start_sshd: StartSshd, account: Account) -> None:
    (account.home / ".bashrc").write_text("echo noise\n")
    subprocess.run([find("usermod") or "usermod", "-s", "/bin/bash", account.name], check=True)
    assert ssh(start_sshd(account=account), "echo quiet").stdout == "quiet\n"


def test_killed_sessions_end_and_the_server_stays(start_sshd: StartSshd) -> None:
    server = start_sshd()
    with waiting_session(server) as client:
        assert server.kill_sessions() >= 2
        assert client.wait(10) == 255
    assert ssh(server, "true").returncode == 0


def test_frozen_sessions_say_nothing_until_thawed(start_sshd: StartSshd) -> None:
    server = start_sshd()
    with waiting_session(server) as client:
        assert server.freeze_sessions() >= 2
        wait_for(lambda: {process.status() for process in server.sessions()} == {"stopped"}, "all to be stopped")
        server.thaw_sessions()
        assert _echo(client) == b"."


def test_a_stopped_server_comes_back_on_its_port(start_sshd: StartSshd) -> None:
    server = start_sshd()
    with waiting_session(server) as client:
        server.stop()
        assert client.wait(10) == 255
    assert ssh(server, "true").returncode == 255
    server.start()
    assert ssh(server, "true").returncode == 0


def test_a_changed_host_key_is_noticed(start_sshd: StartSshd) -> None:
    server = start_sshd()
    server.change_host_key()
    assert "IDENTIFICATION HAS CHANGED" in ssh(server, "true").stderr


def test_extra_lines_and_environment_win(start_sshd: StartSshd) -> None:
    server = start_sshd(extra=("PermitTTY no", "Banner none"), environment={"PATH": "/nowhere"})
    assert ssh(server, "echo $PATH").stdout == "/nowhere\n"


@pytest.mark.needs("strace", "sftp")
def test_the_sftp_server_may_be_wrapped(start_sshd: StartSshd) -> None:
    fault = "-f -e trace=fsync,mkdir -e inject=mkdir:error=ENOSPC"
    server = start_sshd(subsystem=f"{find('strace')} -o /dev/null {fault} {sftp_server()}")
    result = sftp(server, f"mkdir {server.root}/new\n")
    assert result.returncode != 0
    assert not (server.root / "new").exists()


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(SshdError, match="NoSuchOption"), running_sshd(tmp_path, extra=("NoSuchOption yes",)):
        pass


def test_waiting_ends_at_its_deadline() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="a miracle"):
        wait_for(lambda: False, "a miracle", 0.05)
    assert time.monotonic() - began < 5


@pytest.mark.needs("root", "setpriv")
def test_it_needs_no_root(account: Account) -> None:
    program = (
        "import sys, subprocess; from pathlib import Path; from tests.sshd import running_sshd\n"
        "with running_sshd(Path(sys.argv[1])) as server:\n"
        "    command = ['ssh', *server.ssh_options, server.host, 'id -un']\n"
        "    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)\n"
    )
    identity = [f"--reuid={account.uid}", f"--regid={account.uid}", "--clear-groups", "--reset-env"]
    argv = ["setpriv", *identity, sys.executable, "-c", program, str(account.home / "sshd")]
    if subprocess.run([*argv[:-2], "import tests.sshd"], capture_output=True, check=False, cwd=CHECKOUT).returncode:
        pytest.skip("other users may not read this checkout or its Python")
    result = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=CHECKOUT)
    assert result.stdout.strip() == account.name, result.stderr

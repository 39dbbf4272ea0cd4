"""What all tests share: the marker for missing servers, and real servers on loopback."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from mistamover.testing.needs import require
from tests.daemon import running
from tests.ftpd import Certificate, Options, Proftpd, Vsftpd, within_tls
from tests.rsyncd import Rsyncd
from tests.sshd import PROGRAMS, Account, Sshd, running_sshd, temporary_account

pytest_plugins = ["pytester", "mistamover.testing.plugin"]


class StartSshd(Protocol):
    """``running_sshd`` without its directory; the server ends with the test."""

    def __call__(
        self,
        *,
        shell: bool = True,
        subsystem: str | None = None,
        extra: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        account: Account | None = None,
    ) -> Sshd: ...


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server with a shell, shared by all tests of a process: do not stop, kill or freeze it."""
    require(*PROGRAMS)
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="session")
def sshd_no_shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that gives SFTP and no commands, shared like ``sshd``."""
    require(*PROGRAMS)
    with running_sshd(tmp_path_factory.mktemp("sshd-no-shell"), shell=False) as server:
        yield server


@pytest.fixture
def start_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartSshd]:
    """Start servers of the test's own, with any option of ``running_sshd``."""
    require(*PROGRAMS)
    with ExitStack() as stack:

        def start(**options: object) -> Sshd:
            directory = tmp_path_factory.mktemp("own-sshd")
            return stack.enter_context(running_sshd(directory, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture(scope="session")
def rsyncd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rsyncd]:
    """A daemon that all tests of a process share: do not stop, kill or freeze it."""
    require("rsync")
    with running(Rsyncd(tmp_path_factory.mktemp("rsyncd"))) as server:
        yield server


@pytest.fixture(scope="session")
def proftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proftpd]:
    """A server that gives digests, shared by all tests of a process: do not stop, kill or freeze it."""
    require("root", "proftpd", "openssl")
    with running(Proftpd(tmp_path_factory.mktemp("proftpd"))) as server:
        yield server


@pytest.fixture(scope="session")
def vsftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Options]:
    """The options that lead to a server within TLS, which gives no digests; shared like ``proftpd``."""
    require("root", "vsftpd", "useradd", "chpasswd")
    certificate = Certificate.make(tmp_path_factory.mktemp("certificate"))
    with temporary_account(secrets.token_urlsafe(12)) as account:
        server = Vsftpd(tmp_path_factory.mktemp("vsftpd"), certificate=certificate)
        with running(server):
            yield within_tls(server, certificate, account.name, account.password or "")


@pytest.fixture
def account() -> Iterator[Account]:
    """A temporary user of this machine who logs in with a password or a key; root only."""
    require("root", "useradd", "chpasswd")
    with temporary_account(secrets.token_urlsafe(12)) as made:
        yield made


@pytest.fixture
def far(sshd: Sshd) -> Path:
    """An empty directory of the test's own on the far side of ``sshd``."""
    directory = sshd.root / secrets.token_hex(4)
    directory.mkdir()
    return directory

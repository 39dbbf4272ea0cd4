"""The two ways to a far side by rsync: over ssh, and to a daemon."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mistamover.disk import Space
from mistamover.errors import MistamoverError, TargetDown, TargetRefused
from mistamover.options import RsyncNative as NativeOptions
from mistamover.options import RsyncSsh as SshOptions
from mistamover.transports import far_space, known_faults, ssh
from mistamover.transports.contract import Finding
from mistamover.transports.rsync import Rsync
from mistamover.transports.rsync_run import Result

# -- over ssh ----------------------------------------------------------------------------------------------


class RsyncSsh(Rsync):
    """Over ssh: all runs of a lane, and of its neighbour, share one log-in."""

    _connection: ssh.OpenSsh | None = None
    _has_shell = True
    """As far as we know: a program for each question is too much where none is answered."""

    @property
    def _options(self) -> SshOptions:
        return self.settings.rsync_ssh

    def _connect(self) -> None:
        self._connection = ssh.OpenSsh(self.settings)
        words = ["ssh", *self._connection.shared(self._words.shell)]
        self._shell = " ".join(map(_rsh_word, words))

    def _reach(self) -> list[str]:
        assert self._connection is not None  # noqa: S101 - it is open
        if not self._connection.is_alive:
            # Else each run would log in by itself.
            raise self._connection.ended()
        return [f"--rsh={self._shell}", *(["-s"] if _is_special(self.target) else [])]

    def _place(self, path: str) -> str:
        host = str(self.settings.outgoing.target_host)
        return f"{f'[{host}]' if ':' in host else host}:{path}/"

    def room(self) -> Space | None:
        """By df(1) in the account's shell, where it has one."""
        if self._connection is None or not self._has_shell:
            return None
        shared = ["ssh", *self._connection.shared(self._words.shell), "--", str(self.settings.outgoing.target_host)]
        found = far_space.asked(shared, self.staging, self._options.stall_timeout)
        self._has_shell = found is not None
        return found

    def _explain(self, result: Result) -> MistamoverError | None:
        if self._connection is not None and not self._connection.is_alive:
            return self._connection.ended()
        said = "\n".join(result.messages)
        if "is your shell clean" in said:
            return TargetRefused(
                f"{self.settings.outgoing.target_host}: the account's shell there says something of its own before "
                f"rsync does; have its start-up files (.bashrc) be silent where nobody sits at a terminal"
            )
        return (
            ssh.explain_ssh(said, self.settings)
            if result.code == 255
            else ssh.account_at_its_end(said, self.settings)
        )

    def _known_faults(self) -> Iterator[Finding]:
        assert self._connection is not None  # noqa: S101 - it is open
        shared = ["ssh", *self._connection.shared(self._words.shell), "--", str(self.settings.outgoing.target_host)]
        yield from known_faults.of_receiver(shared, "rsync")
        yield from known_faults.of_ssh(self.settings, self._words.shell)

    def abort(self) -> None:
        """Kill what runs, and the connection."""
        super().abort()
        if self._connection is not None:
            self._connection.abort()

    def close(self) -> None:
        """Log out as well."""
        super().close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _rsh_word(word: str) -> str:
    """A word of ``--rsh`` as rsync parts it: in quotes, a quote doubled."""
    return f"""'{word.replace("'", "''")}'"""


def _is_special(path: str) -> bool:
    """Whether a shell could read more than itself in a path: then rsync hands it over by other means."""
    return shlex.quote(path) != path


# -- to a daemon -------------------------------------------------------------------------------------------


class RsyncNative(Rsync):
    """To a daemon; the target directory begins with its module."""

    @property
    def _options(self) -> NativeOptions:
        return self.settings.rsync_native

    def _connect(self) -> None:
        options = self._options
        # Else each of a run's short messages waits for the acknowledgement of the last: 90 ms a run on loopback.
        reach = ["--sockopts=TCP_NODELAY", f"--contimeout={max(1, round(options.connect_timeout))}"]
        if options.port is not None:
            reach.append(f"--port={options.port}")
        # Without a file rsync would ask for a password at our terminal.
        reach.append(f"--password-file={self._password_file()}")
        self._daemon = reach

    def _password_file(self) -> Path:
        """Where a password lies that rsync takes a file that nobody else may read (rsync(1), --password-file)."""
        assert self._private is not None  # noqa: S101 - it is open
        file = Path(self._private, "password")
        password = self._options.password
        with suppress(FileExistsError):
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, f"{password.get_secret_value() if password else ''}\n".encode())
            os.close(fd)
        return file

    def _reach(self) -> list[str]:
        return self._daemon

    def _place(self, path: str) -> str:
        host = str(self.settings.outgoing.target_host)
        user = f"{self._options.username}@" if self._options.username else ""
        return f"{user}{f'[{host}]' if ':' in host else host}::{path.removeprefix('/')}/"

    def _known_faults(self) -> Iterator[Finding]:
        yield from known_faults.of_daemon(str(self.settings.outgoing.target_host), self._options.port or 873)

    def _explain(self, result: Result) -> MistamoverError | None:
        host = self.settings.outgoing.target_host
        said = "\n".join(result.messages)
        if "auth failed" in said:
            return TargetRefused(f"{host}: log-in refused; check [rsync_native] username and password")
        if "@ERROR" in said:
            hint = "; [outgoing] target_dir begins with the module" if "Unknown module" in said else ""
            return TargetRefused(f"{host}: {result.reason}{hint}")
        if result.code == 5:
            return TargetDown(f"{host}: {result.reason}")
        return None

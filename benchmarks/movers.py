"""The commands: ours and those of the programs that people use for the same job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rig import Rig
from tests import ftpd
from tests.rsyncd import MODULE, PASSWORD, USER

OURS = "mistamover"


@dataclass(frozen=True)
class Mover:
    """A way to move the spool to the target."""

    name: str
    command: Callable[[Rig], list[str]]
    removes: bool = True
    """Whether the source is gone afterwards."""


def _ours(rig: Rig, outgoing: str, more: str = "", module: str = "") -> list[str]:
    stream = rig.scratch / "bench.ini"
    stream.touch(mode=0o600)  # it may hold a password
    stream.write_text(
        f"[global]\nstate_dir = {rig.state}\n"
        f"[data_stream]\nname = bench\ndirectory = {rig.spool}\n"
        f"[outgoing]\n{outgoing}\ntarget_dir = {module}{rig.target}\n{more}"
    )
    return [program(), "run", "--once", str(stream)]


def program() -> str:
    """Where our program is: installed beside the Python that runs this."""
    return str(Path(sys.executable).parent / OURS)


def _ours_by_ssh(protocol: str, more: str = "") -> Callable[[Rig], list[str]]:
    def command(rig: Rig) -> list[str]:
        server = rig.server
        return _ours(
            rig,
            f"transfer_protocol = {protocol}\ntarget_host = {server.host}",
            f"[{protocol}]\nport = {server.port}\nusername = {server.username}\n"
            f"key_file = {server.key_file}\nknown_hosts = {server.known_hosts}\n{more}",
        )

    return command


def _ours_to_daemon(rig: Rig) -> list[str]:
    daemon = rig.daemon
    return _ours(
        rig,
        f"transfer_protocol = rsync_native\ntarget_host = {daemon.host}",
        f"[rsync_native]\nport = {daemon.port}\nusername = {USER}\npassword = {PASSWORD}\n",
        MODULE,
    )


def _ours_by_ftp(rig: Rig) -> list[str]:
    server = rig.ftp_server
    return _ours(
        rig,
        f"transfer_protocol = ftp\ntarget_host = {server.host}",
        f"[ftp]\nport = {server.port}\nusername = {ftpd.USER}\npassword = {ftpd.PASSWORD}\n",
    )


def ours_locally(rig: Rig) -> list[str]:
    """Our own command between two directories of this host."""
    return _ours(rig, "transfer_protocol = local")


def _lftp_by_sftp(rig: Rig) -> list[str]:
    server = rig.server
    ssh = shlex.join(["ssh", "-a", "-x", *server.ssh_options])
    return _lftp(
        rig, f'set sftp:connect-program "{ssh}"; open -u {server.username}, sftp://{server.host}:{server.port}'
    )


def _lftp_by_ftp(rig: Rig) -> list[str]:
    server = rig.ftp_server
    how = "set ftp:prefer-epsv yes; set ftp:ssl-allow no"
    return _lftp(rig, f"{how}; open -u {ftpd.USER},{ftpd.PASSWORD} ftp://{server.host}:{server.port}")


def _lftp(rig: Rig, opening: str) -> list[str]:
    """Four connections, and no proof of what arrived."""
    return [
        "lftp",
        "--norc",
        "-c",
        f"set cmd:fail-exit yes; set net:max-retries 1; {opening}; "
        f"mirror --reverse --Remove-source-files --parallel=4 {rig.spool}/ {rig.target}/",
    ]


def _rclone(rig: Rig) -> list[str]:
    """Four transfers, MD5 at both ends; it need not find out what the far side can do."""
    server = rig.server
    options = {
        "config": "",
        "transfers": "4",
        "sftp-host": server.host,
        "sftp-port": str(server.port),
        "sftp-user": server.username,
        "sftp-key-file": str(server.key_file),
        "sftp-known-hosts-file": str(server.known_hosts),
        "sftp-shell-type": "unix",
        "sftp-md5sum-command": "md5sum",
        "sftp-sha1sum-command": "sha1sum",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return ["rclone", "move", *flags, str(rig.spool), f":sftp:{rig.target}"]


def _rsync_twice(rig: Rig) -> list[str]:
    """Send, then compare checksums at both ends and remove the source."""
    server = rig.server
    ssh = shlex.join(["ssh", *server.ssh_options])
    return _twice(["-e", ssh, f"{rig.spool}/", f"{server.host}:{rig.target}/"])


def _rsync_twice_to_daemon(rig: Rig) -> list[str]:
    daemon = rig.daemon
    password = rig.scratch / "password"
    password.touch(mode=0o600)
    password.write_text(f"{PASSWORD}\n")
    place = f"rsync://{USER}@{daemon.host}:{daemon.port}/{MODULE}{rig.target}/"
    return _twice([f"--password-file={password}", f"{rig.spool}/", place])


def _twice(more: list[str]) -> list[str]:
    send = shlex.join(["rsync", "-a", *more])
    check = shlex.join(["rsync", "-a", "--checksum", "--remove-source-files", *more])
    return ["sh", "-c", f"{send} && {check}"]


def _sftp_put(rig: Rig) -> list[str]:
    """Only send, by OpenSSH's own client."""
    server = rig.server
    sftp = shlex.join(["sftp", "-q", "-b", "-", *server.ssh_options, server.host])
    return ["sh", "-c", f"echo 'put -R {rig.spool}/. {rig.target}' | {sftp}"]


def _cp(rig: Rig) -> list[str]:
    """Copy, compare and remove, as a careful person types it."""
    spool, target, sums = (shlex.quote(str(path)) for path in (rig.spool, rig.target, rig.scratch / "sums"))
    return [
        "sh",
        "-c",
        f"cp -a {spool}/. {target} && sync && "
        f"(cd {spool} && find . -type f -print0 | xargs -0 sha256sum) > {sums} && "
        f"(cd {target} && sha256sum --quiet --check {sums}) && rm -rf {spool}/*",
    ]


BY_SFTP = [
    Mover(OURS, _ours_by_ssh("sftp", "connector = openssh\n")),
    Mover("lftp", _lftp_by_sftp),
    Mover("rclone", _rclone),
    Mover("rsync", _rsync_twice),
    Mover("sftp", _sftp_put, removes=False),
]
BY_RSYNC = [Mover(OURS, _ours_by_ssh("rsync_ssh")), Mover("rsync", _rsync_twice)]
TO_DAEMON = [Mover(OURS, _ours_to_daemon), Mover("rsync", _rsync_twice_to_daemon)]
BY_FTP = [Mover(OURS, _ours_by_ftp), Mover("lftp", _lftp_by_ftp)]
LOCALLY = [Mover(OURS, ours_locally), Mover("cp", _cp)]


@dataclass(frozen=True)
class Course:
    """Movers that are compared with each other, and what they move."""

    movers: list[Mover]
    usual_peers: tuple[str, ...]
    sets: tuple[str, ...] = ("small", "medium", "large")
    is_distant: bool = False
    """Whether the target is at the end of a long line."""


COURSES = {
    "sftp": Course(BY_SFTP, ("lftp", "rclone")),
    "rsync_ssh": Course(BY_RSYNC, ("rsync",)),
    "rsync_native": Course(TO_DAEMON, ("rsync",)),
    "ftp": Course(BY_FTP, ("lftp",)),
    "local": Course(LOCALLY, ("cp",)),
    "wan": Course(BY_SFTP, ("rsync", "lftp"), ("thousand", "quarter"), is_distant=True),
    "wan_rsync_ssh": Course(BY_RSYNC, ("rsync",), ("thousand", "quarter"), is_distant=True),
    "wan_ftp": Course(BY_FTP, ("lftp",), ("thousand", "quarter"), is_distant=True),
}

GOALS = {
    ("sftp", "small", "lftp"): 0.60,
    ("sftp", "small", "rclone"): 0.12,
    ("sftp", "medium", "lftp"): 1.15,
    ("sftp", "medium", "rclone"): 0.65,
    ("sftp", "large", "lftp"): 1.15,
    ("sftp", "large", "rclone"): 0.80,
    ("local", "small", "cp"): 1.0,
    ("local", "medium", "cp"): 1.0,
    ("local", "large", "cp"): 1.0,
    ("rsync_ssh", "small", "rsync"): 1.4,
    ("rsync_ssh", "medium", "rsync"): 1.1,
    ("rsync_ssh", "large", "rsync"): 1.1,
    ("rsync_native", "small", "rsync"): 2.0,
    ("rsync_native", "medium", "rsync"): 1.3,
    ("rsync_native", "large", "rsync"): 1.2,
    ("ftp", "small", "lftp"): 1.8,
    ("ftp", "medium", "lftp"): 2.5,
    ("ftp", "large", "lftp"): 2.0,
    ("wan_rsync_ssh", "thousand", "rsync"): 1.5,
    ("wan_ftp", "thousand", "lftp"): 0.5,
    ("wan", "thousand", "rsync"): 1.2,
    ("wan", "quarter", "rsync"): 0.5,
    ("wan", "quarter", "lftp"): 0.5,
}
"""Our time over the peer's: no more than this, by course, set and peer."""

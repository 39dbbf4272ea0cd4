"""Which programs (or rights) of this machine a test cannot do without.

A test that lacks one is skipped and named at the end of the run; under ``CI=true`` it fails instead, so that
a machine that lost a server cannot turn the suite green by running less of it. The marker ``needs`` and the
list at the end are in ``plugin``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache

# Servers live in directories that an ordinary user's PATH leaves out; servers.sh unpacks some into our own.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin", os.path.join(sys.prefix, "servers"))
ROOT = "root"
PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "sftp": "openssh-client",
    "ssh-keygen": "openssh-client",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "useradd": "passwd",
    "usermod": "passwd",
    "chage": "passwd",
    "proftpd": "proftpd-core",
    "vsftpd": "vsftpd",
    "chpasswd": "passwd",
    "systemd-analyze": "systemd",
    "systemd-sysusers": "systemd",
    "systemd-tmpfiles": "systemd",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "btrfs": "btrfs-progs",
}
REASON = "needs "
"""What each reason begins with."""


def find(program: str) -> str | None:
    """Where a program is, looked for in PATH and where servers are kept."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))


def lacking(*needs: str) -> str | None:
    """Say what this machine lacks and how to get it; None when it has everything."""
    return next(filter(None, map(_lack, needs)), None)


def require(*needs: str) -> None:
    """Skip the running test (or fail it under CI) unless the machine has all of these; for fixtures."""
    import pytest  # here, since the benchmarks use this module too

    if reason := lacking(*needs):
        if _in_ci():
            pytest.fail(f"{reason} (a skip is a failure under CI)", pytrace=False)
        pytest.skip(reason)


def _lack(need: str) -> str | None:
    if need == ROOT:
        return None if os.geteuid() == 0 else f"{REASON}{ROOT}: run the tests as root"
    if find(need) is None:
        return f"{REASON}{need}: apt-get install {PACKAGES.get(need, need)}"
    if need == "strace" and not _may_trace():
        return f"{REASON}strace: this machine does not let a process trace another"
    return None


@cache
def _may_trace() -> bool:
    """Tell whether strace works here: containers and the Yama module often forbid ptrace."""
    command = [find("strace") or "strace", "-o", os.devnull, sys.executable, "-S", "-c", ""]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true"}

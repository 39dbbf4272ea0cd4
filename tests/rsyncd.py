"""A real rsync daemon on loopback whose modules are the whole file system, and the part in which tests are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from mistamover.testing.needs import find
from tests.daemon import Daemon

MODULE = "all"
USER = "mover"
PASSWORD = "open-sesame-7f3a"


@dataclass
class Rsyncd(Daemon):
    """A running daemon; ``extra`` are lines of the module in rsyncd.conf(5)."""

    def prepare(self) -> Sequence[str]:
        secrets = self.directory / "secrets"
        secrets.touch(mode=0o600)
        secrets.write_text(f"{USER}:{PASSWORD}\n")
        me = ["uid = 0", "gid = 0"] if os.geteuid() == 0 else []
        # A module with the name of the directory that it is: a path there is a path here. Daemons of Debian 12
        # send no files out of a module that is the whole file system.
        top = self.directory.parts[1]
        users = [f"auth users = {USER}", f"secrets file = {secrets}"]
        lines = ["use chroot = no", *me, f"log file = {self.log}", "read only = no", *users]
        lines += [f"[{top}]", f"path = /{top}", f"[{MODULE}]", "path = /", *self.extra]
        self.config.write_text("\n".join([*lines, ""]))
        listening = [f"--port={self.port}", f"--address={self.host}"]
        return [find("rsync") or "rsync", "--daemon", "--no-detach", f"--config={self.config}", *listening]

"""An FTP server on loopback that differs from the usual: pyftpdlib, with commands missing and faults planted."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.log import config_logging
from pyftpdlib.servers import FTPServer

USER = "mover"
PASSWORD = "sesame-shut-55d0"


class Forgetful(io.FileIO):
    """Keeps the first bytes of what is written at once, and says that it has all."""

    def write(self, data: Any) -> int:
        super().write(data[:5])
        return len(data)


class ForgetfulFS(AbstractedFS):  # type: ignore[misc] # it has no types
    """A disk that loses data."""

    def open(self, filename: str, mode: str) -> Any:
        return Forgetful(filename, "w") if "w" in mode else super().open(filename, mode)


class Handler(FTPHandler):  # type: ignore[misc]
    """Notes what it was told, and what it was told too early."""

    banner = "a server that nobody knows"
    said: list[str]
    too_early: list[str]

    def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
        self.said.append(cmd)
        if self.ac_in_buffer:
            self.too_early.append(cmd)
        super().pre_process_command(line, cmd, arg)


@contextmanager
def strange_server(
    *lacks: str, max_cons_per_ip: int = 0, more: Mapping[str, Any] | None = None, **attributes: Any
) -> Iterator[tuple[int, type[Handler]]]:
    """A server without these commands, its handler with these attributes; gives its port, and the handler.

    ``more`` are commands of its own, which the attributes carry out.
    """
    config_logging(level=100)
    authorizer = DummyAuthorizer()
    authorizer.add_user(USER, PASSWORD, "/", perm="elradfmwMT")
    known = {name: how for name, how in FTPHandler.proto_cmds.items() if name not in lacks} | dict(more or {})
    own = {"authorizer": authorizer, "said": [], "too_early": [], "proto_cmds": known, **attributes}
    handler = type("Own", (Handler,), own)
    server = FTPServer(("127.0.0.1", 0), handler)
    server.max_cons_per_ip = max_cons_per_ip
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.05, "handle_exit": False})
    thread.start()
    try:
        yield server.address[1], handler
    finally:
        server.close_all()
        thread.join()

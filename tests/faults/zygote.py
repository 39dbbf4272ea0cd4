"""A process with all modules loaded, which forks for each run: the start of Python is most of a short run."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_PROGRAM = """
import json, os, sys
import paramiko
from mistamover import stream
from mistamover.cli import jsonl, main, run
from mistamover.transports import local, sftp
for line in sys.stdin:
    argv, directory, out, err = json.loads(line)
    if not (child := os.fork()):
        os.chdir(directory)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.argv[1:] = argv
        code = main()
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Zygote:
    """Runs the command line, each time in a process of its own."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._directory = TemporaryDirectory(prefix="mistamover-test-")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        atexit.register(self.end)

    def run(self, argv: Sequence[str], directory: Path, deadline: float) -> tuple[int, bytes, bytes]:
        """Exit code, output and errors of ``mistamover`` with these arguments."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = (Path(self._directory.name, name) for name in ("out", "err"))
        line = json.dumps([list(argv), str(directory), str(out), str(err)])
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], deadline)[0]:
            self.end()
            zygote.cache_clear()
            text = b"".join(path.read_bytes() for path in (out, err) if path.exists())
            raise TimeoutError(f"the run did not end within {deadline:g} s:\n{text.decode(errors='replace')}")
        code = int(self._process.stdout.readline())
        return code, out.read_bytes(), err.read_bytes()

    def end(self) -> None:
        """Kill it, and what it runs."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._directory.cleanup()


@cache
def zygote(package: Path) -> Zygote:
    """The one of this test process, for the package in this directory."""
    return Zygote(environment(package))


def environment(package: Path) -> dict[str, str]:
    """What a run of the package in this directory needs."""
    return {**os.environ, "PYTHONPATH": str(package), "LC_ALL": "C.UTF-8"}

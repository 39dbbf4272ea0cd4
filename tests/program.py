"""The real program on a local stream in a temporary directory, for tests of what a person sees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = 100
"""Of the terminal."""
DEADLINE = 60.0
"""Seconds until a program is given up."""

Tree = dict[bytes, tuple[int, int, bytes]]


@dataclass(frozen=True)
class Result:
    """What a program answered."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass
class Local:
    """A stream between two directories below ``top``, and its program."""

    top: Path
    packages: Path | None = None
    """A directory of installed packages, besides those of the tests."""

    def __post_init__(self) -> None:
        self.spool = self.top / "spool"
        self.target = self.top / "target"
        self.state = self.top / "state"
        self.ini = self.top / "x.ini"
        self.spool.mkdir()
        self.target.mkdir()
        self.configure()

    def configure(self, outgoing: str = "", *, settle: str = "0", more: str = "") -> None:
        self.ini.write_text(
            f"[global]\nstate_dir = {self.state}\ngeneral_poll_interval = 0.05\n"
            f"[data_stream]\ndirectory = {self.spool}\nsettle_time = {settle}\n"
            f"[outgoing]\ntransfer_protocol = local\ntarget_dir = {self.target}\n{outgoing}\n{more}\n"
        )

    def put(self, name: str | bytes, content: bytes = b"some bytes", at: Path | None = None) -> Path:
        path = (at or self.spool) / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def names(self, at: Path) -> set[str]:
        """The files below a directory, but for our own."""
        found = (path.relative_to(at) for path in at.rglob("*") if not path.is_dir())
        return {str(path) for path in found if path.parts[0] != ".mistamover"}

    def start(
        self, *arguments: str | bytes | Path, stdout: int | None = None, stderr: int | None = None
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE if stderr is None else stderr,
            cwd=self.top,
            env=environment(self.top, self.packages),
        )

    def run(self, *arguments: str | bytes | Path) -> Result:
        """``mistamover ARGUMENTS``; its output has to be UTF-8."""
        return ended(self.start(*arguments))

    def once(self, *arguments: str) -> Result:
        return self.run("run", "--once", *arguments, self.ini)


def ended(process: subprocess.Popen[bytes]) -> Result:
    """Wait for a program's end."""
    try:
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    return Result(process.returncode, (out or b"").decode(), (err or b"").decode())


def command(*arguments: str | bytes | Path) -> Sequence[str | bytes | Path]:
    return [sys.executable, "-P", "-m", "mistamover", *arguments]


def environment(home: Path, packages: Path | None = None) -> dict[str, str]:
    """Ours, without what would configure the program."""
    ours = ("CONFIG__", "XDG_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join(map(str, filter(None, [ROOT, packages])))
    return kept | {"HOME": str(home), "PYTHONPATH": path, "TERM": "xterm", "COLUMNS": str(COLUMNS)}


def tree(top: Path) -> Tree:
    """Everything below a directory, with times and contents: equal before and after means untouched."""
    found: Tree = {}
    for path in [top, *top.rglob("*")]:
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[os.fsencode(path)] = (stat.st_mtime_ns, stat.st_ctime_ns, content)
    return found

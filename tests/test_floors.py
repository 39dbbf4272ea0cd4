"""Who may import whom: a module knows only the floors below its own (docs/design.rst, "Rooms and floors")."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mistamover

PACKAGE = Path(mistamover.__file__).parent
TOP = "mistamover"
CLI = "cli"
"""A package of thin files on the top floor, which may know everything and each other."""

# Fractions are steps inside a floor: config reads through ini, a protocol stands on the contract and on ssh.
FLOORS = {
    "": 0,  # mistamover/__init__.py
    "errors": 0.2,
    "fs": 0.2,
    "foreign": 0.4,
    "ini": 0.5,
    "rsync_options": 0.5,
    "digest": 0.5,
    "checksums": 0.5,
    "processes": 0.5,
    "unit": 0.5,
    "obsolete": 0.7,
    "values": 0.75,
    "options": 0.8,
    "config": 1,
    "describe": 1,
    "differences": 1,
    "heartbeat": 1,
    "spool": 1,
    "directories": 1.2,
    "packages": 1.4,
    "watch": 1,
    "ledger": 1,
    "disk": 1,
    "stop_files": 1,
    "alert": 1,
    "handshake": 1,
    "proofs": 1.3,
    "bags": 1.4,
    "lines": 1.5,
    "origin": 1.7,
    "log_file": 1.7,
    "log": 2,
    "transports.contract": 2,
    "transports": 2.2,
    "transports.ssh": 2.2,
    "transports.far_shell": 2.3,
    "transports.far_space": 2.3,
    "transports.sftp_client": 2.3,
    "transports.ranges": 2.35,
    "transports.read_back": 2.35,
    "transports.parents": 2.3,
    "transports.ftp_digests": 2.3,
    "transports.ftp_client": 2.35,
    "transports.known_faults": 2.3,
    "transports.rsync_trees": 2.3,
    "transports.rsync_run": 2.35,
    "transports.rsync_answers": 2.37,
    "transports.local": 2.4,
    "transports.rsync": 2.4,
    "transports.rsync_ways": 2.5,
    "transports.sftp": 2.4,
    "transports.ftp": 2.4,
    "events": 1.2,
    "lane": 2.6,
    "whole": 2.8,
    "exchange": 2.8,
    "manifests": 2.8,
    "stream": 3,
    "plan": 3.2,
    "reclaim": 3.2,
    "monitor": 4.2,
    "arrivals": 3,
    "concerns": 3.5,
    "provers": 3.2,
    "pulse": 3.5,
    "worker": 4,
    "testing.needs": 4.2,
    "testing.plugin": 4.4,
    "testing.rig": 4.4,
    "testing.contract": 4.6,
    "testing": 4.8,
    "board": 1.7,
    "letter": 1.7,
    "couriers": 1.7,
    "aides": 4,
    "post": 4.2,
    "supervisor": 5,
    "service": 6,
    CLI: 7,
    "__main__": 8,
}
HEAVY = ("paramiko", "rich", "pydantic")
"""What takes longer to import than ``mistamover --version`` may take."""


def modules(package: Path) -> dict[str, Path]:
    """All modules of a package by their dotted names below it; the package itself is the empty name."""
    return {_dotted(path.relative_to(package)): path for path in sorted(package.rglob("*.py"))}


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(name: str, path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Each module of the package that a file imports, anywhere in it, with the line."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _ours(node.lineno, alias.name, known)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, package)
            for alias in node.names:
                # "from mistamover import spool" imports a module as "from mistamover.spool import x" does.
                inner = f"{origin}.{alias.name}"
                yield from _ours(node.lineno, inner if inner.removeprefix(f"{TOP}.") in known else origin, known)


def _origin(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = [TOP, *filter(None, package.split("."))]
    return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


def _ours(line: int, name: str, known: set[str]) -> Iterator[tuple[int, str]]:
    if name == TOP or name.startswith(f"{TOP}."):
        inner = name.removeprefix(TOP).removeprefix(".")
        # "import mistamover.spool.scan" names no module: the longest part that is one counts.
        while inner not in known and inner:
            inner = inner.rpartition(".")[0]
        yield line, inner


def floor(name: str) -> float | None:
    return FLOORS.get(CLI if name.split(".")[0] == CLI else name)


def violations(package: Path) -> list[str]:
    """What in a package breaks the rule of the floors, one line each."""
    found = modules(package)
    unknown = [name for name in found if floor(name) is None]
    return [f"{_named(name)}: add it to FLOORS and to docs/design.rst" for name in unknown] + [
        f"{path.relative_to(package)}:{line}: {_named(name)} imports {_named(other)}"
        for name, path in found.items()
        for line, other in imports(name, path, set(found))
        if not _may_import(name, other)
    ]


def _named(name: str) -> str:
    on = floor(name)
    return f"{name or TOP} ({'no floor' if on is None else f'floor {on}'})"


def _may_import(name: str, other: str) -> bool:
    own, its = floor(name), floor(other)
    if own is None or its is None:
        return True  # the table's gap is a finding of its own
    return its < own or own >= FLOORS[CLI] >= its


def test_modules_import_only_from_lower_floors() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "text", "finding"),
    [
        ("unit.py", "from mistamover import spool", "unit.py:1: unit (floor 0.5) imports spool (floor 1)"),
        ("unit.py", "import mistamover.spool", "imports spool"),
        ("unit.py", "from mistamover.spool import scan", "imports spool"),
        ("unit.py", "from .spool import scan", "imports spool"),
        ("unit.py", "from . import spool", "imports spool"),
        ("unit.py", "def late():\n    from mistamover import stream", "unit.py:2: unit"),
        ("unit.py", "if TYPE_CHECKING:\n    import mistamover.stream as s", "unit.py:2: unit"),
        ("ledger.py", "from mistamover import spool", "ledger (floor 1) imports spool (floor 1)"),
        ("transports/local.py", "from . import sftp", "imports transports.sftp"),
        ("transports/local.py", "from .. import stream", "imports stream"),
        ("transports/__init__.py", "from mistamover.transports import sftp", "imports transports.sftp"),
        ("transports/__init__.py", "from .sftp import Sftp", "imports transports.sftp"),
        ("stream.py", "from mistamover.cli import main", "imports cli"),
        ("newcomer.py", "", "newcomer (no floor): add it"),
    ],
)
def test_a_step_up_is_found(tmp_path: Path, file: str, text: str, finding: str) -> None:
    _plant(tmp_path, {file: text})
    assert [line for line in violations(tmp_path) if finding in line]


def test_steps_down_are_fine(tmp_path: Path) -> None:
    texts = {
        "unit.py": "import os\nfrom mistamover import __version__\nfrom mistamover.errors import UnitError",
        "transports/sftp.py": "from . import contract, ssh\nfrom mistamover import unit, config",
        "cli/run.py": "from mistamover import service, stream\nfrom mistamover.cli import check",
        "cli/check.py": "import mistamover.transports.sftp",
    }
    _plant(tmp_path, texts)
    assert violations(tmp_path) == []


def _plant(package: Path, texts: dict[str, str]) -> None:
    """Write an empty package with a file for each module of the table, and these texts in it."""
    empty = {
        f"{name.replace('.', '/')}.py": "" for name in FLOORS if name not in {"", CLI, "testing", "transports"}
    }
    packages = {"__init__.py": "", "cli/__init__.py": "", "testing/__init__.py": "", "transports/__init__.py": ""}
    for file, text in {**empty, **packages, **texts}.items():
        (package / file).parent.mkdir(exist_ok=True)
        (package / file).write_text(text)


def test_telling_the_version_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['mistamover', '--version']\n"
        "from mistamover.cli import main\n"
        "try: sys.exit(main())\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    version, heavy = result.stdout.splitlines()
    assert mistamover.__version__ in version
    assert heavy == "[]"

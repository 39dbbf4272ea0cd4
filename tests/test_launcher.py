"""bin/mistamover: the program of a checkout that is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[1] / "bin" / "mistamover"
MAIN = """
import os, sys
def main():
    os.write(1, repr([sys.prefix, __file__, *map(os.fsencode, sys.argv)]).encode())
    return 3
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout, in a directory with a blank in its name, whose program tells how it was called."""
    top = tmp_path / "a checkout"
    (top / "bin").mkdir(parents=True)
    (top / "mistamover").mkdir()
    shutil.copy(LAUNCHER, top / "bin")
    (top / "mistamover" / "__init__.py").touch()
    (top / "mistamover" / "cli.py").write_text(MAIN)
    return top


def launch(program: Path, *arguments: bytes, cwd: Path | None = None) -> tuple[int, list[bytes | str]]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        [str(program), *arguments],
        stdout=subprocess.PIPE,
        check=False,
        cwd=cwd,
        env={**os.environ, "PATH": path},
    )
    return result.returncode, eval(result.stdout)


def test_it_runs_the_checkouts_own_package_from_anywhere(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "mistamover.py").write_text("raise SystemExit('a stranger in the current directory')")
    status, told = launch(checkout / "bin" / "mistamover", cwd=tmp_path)
    assert status == 3
    assert told[1:] == [str(checkout / "mistamover" / "cli.py"), b"mistamover"]


def test_it_finds_its_checkout_through_links(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to(checkout / "bin" / "mistamover")
    (tmp_path / "second").symlink_to("first")
    assert launch(tmp_path / "second")[1][1] == str(checkout / "mistamover" / "cli.py")


def test_arguments_arrive_byte_by_byte(checkout: Path) -> None:
    arguments = [b"--", b"", b" a  b ", b"*", b"$(id)", b"-c", b"line\nbreak\n", b"\xff\xfe", b"'\""]
    assert launch(checkout / "bin" / "mistamover", *arguments)[1][3:] == arguments


def test_one_that_is_not_installed_says_so(checkout: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (checkout / "mistamover" / "cli.py").write_text("import click_or_the_like")
    done = subprocess.run(
        [checkout / "bin" / "mistamover", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"mistamover: not installed, {checkout}/.venv/bin/python has no click_or_the_like; "
        f"make demo in {checkout} installs it, docs/first-steps.rst says more\n"
    )


def test_it_prefers_the_checkouts_virtual_environment(checkout: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    assert launch(checkout / "bin" / "mistamover")[1][0] == str(checkout / ".venv")

"""File systems in files of this one: to be cut off as by a power cut, mounted again, and limited."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mistamover.testing.needs import find
from tests.sshd import wait_for

SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN: ext4 and xfs write nothing any more, whatever is asked of them."""
WITHOUT_FLUSH = struct.pack("I", 2)
"""Not even their journals."""
SIZES = {"ext4": 2**24, "btrfs": 120 * 2**20}


@dataclass
class Disk:
    """A file system that is mounted at a place."""

    image: Path
    place: Path

    def mount(self) -> None:
        done = run("mount", "-o", "loop", self.image, self.place)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount: {done.stderr.strip()}")

    def unmount(self) -> None:
        """Out of all mount namespaces: as long as one has it, what is mounted again is the old one."""
        done = run("umount", self.place)
        assert not done.returncode, done.stderr
        wait_for(lambda: not run("losetup", "-j", self.image).stdout, "its end in all namespaces", 60)

    def flush(self) -> None:
        """Have on disk what others wrote, who are not who is tried here."""
        must("sync", "-f", self.place)

    def cut(self) -> None:
        """From this instant on nothing reaches the disk; what had not been put there is lost."""
        fd = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, WITHOUT_FLUSH)
        finally:
            os.close(fd)

    def come_back(self) -> None:
        """The host starts again after :meth:`cut`."""
        self.unmount()
        self.mount()


@contextmanager
def disk(place: Path, kind: str = "ext4") -> Iterator[Disk]:
    """A new file system at this place; its end goes by whatever still uses it."""
    place.mkdir(parents=True, exist_ok=True)
    image = place.with_name(f"{place.name}.{kind}")
    with image.open("wb") as file:
        file.truncate(SIZES[kind])
    must(f"mkfs.{kind}", "-q", image)
    one = Disk(image, place)
    one.mount()
    try:
        yield one
    finally:
        run("umount", "--lazy", place)
        image.unlink()


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find(program) or program, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def must(program: str, *arguments: str | Path) -> None:
    done = run(program, *arguments)
    assert not done.returncode, done.stderr

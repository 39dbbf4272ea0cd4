"""Asks a far side's shell for free space, by df(1) as POSIX has it, and GNU's for inodes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from mistamover.disk import Space, room
from mistamover.processes import guarded
from mistamover.transports.ssh import said_by

_NUMBERS = re.compile(rb"^\S.*?\s([0-9]+)\s+([0-9]+)\s+(-?[0-9]+)\s+(?:[0-9]+%|-)\s", re.MULTILINE)


def asked(ssh: Sequence[str], directory: str, patience: float) -> Space | None:
    """What is free in a place behind an ssh command; None where nobody says it within ``patience`` seconds."""
    place = shlex.quote(directory)
    script = f"LC_ALL=C; export LC_ALL; df -Pk {place} && echo --- && df -Pi {place}"
    return parsed(said_by([*guarded(), *ssh, f"exec sh -c {shlex.quote(script)}"], patience))


def parsed(said: bytes) -> Space | None:
    """What the two tables say: blocks of 1 KiB, and inodes where the second one is about these."""
    blocks, _, inodes = said.partition(b"---\n")
    found = _NUMBERS.search(blocks)
    if b"1024-blocks" not in blocks or found is None:
        return None
    total, _, free = map(int, found.groups())
    counts = _NUMBERS.search(inodes) if b"IFree" in inodes else None
    all_inodes, _, left = map(int, counts.groups()) if counts else (0, 0, 0)
    return room(Space(max(0, free) * 1024, left if all_inodes else None, total * 1024, all_inodes, 4096))

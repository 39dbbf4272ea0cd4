"""Whose record it is: streams of one name in different places would share it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from mistamover.errors import LedgerError
from mistamover.lines import shown

FILE = "spool"
"""Lies beside the record."""


class Origin(NamedTuple):
    """A spool as it is known again."""

    number: str
    """Its device and its inode."""
    path: str

    @classmethod
    def of(cls, spool: Path) -> Self:
        """That of a directory that is there."""
        found = os.stat(spool)
        return cls(f"{found.st_dev}:{found.st_ino}", os.path.realpath(spool))

    def may_be(self, other: Origin) -> bool:
        """Whether both may be one: a spool may be renamed, or made anew under its name."""
        return self.number == other.number or self.path == other.path


def belong_to(directory: Path, spool: Path) -> None:
    """Have the record in a directory be that of one spool; raises ``LedgerError`` where it is another's.

    A mirror replaces what its record says that it delivered: that must not be what another stream did.
    """
    file = directory / FILE
    try:
        own, known = Origin.of(spool), _told(file)
        if known is not None and not own.may_be(known):
            raise LedgerError(
                f"{directory}: is of a stream of that name with another spool, {shown(known.path)}; "
                f"give this one a [data_stream] name of its own; or, if its spool was that one, remove {file}"
            )
        if known != own:
            _tell(file, own)
    except OSError as error:
        raise LedgerError(
            f"{error.filename or file}: {error.strerror}; nothing is moved without a record"
        ) from error


def _told(file: Path) -> Origin | None:
    with suppress(FileNotFoundError):
        number, _, path = os.fsdecode(file.read_bytes()).partition("\n")
        return Origin(number, path)
    return None


def _tell(file: Path, origin: Origin) -> None:
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as written:
        written.write(os.fsencode("\n".join(origin)))
        written.flush()
        os.fsync(written.fileno())  # or a power cut would leave an empty one, which is nobody's
    new.replace(file)

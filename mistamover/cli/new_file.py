"""The file that ``mistamover new`` is to write: what it says so far, what is left to ask, what is wrong."""

from __future__ import annotations

import os
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mistamover.cli.common import shell_word
from mistamover.errors import ConfigError

if TYPE_CHECKING:
    from mistamover.ini import Finding, Key
    from mistamover.options import Settings

GLOBAL = "global"
"""What is no stream: the file that all of the service share."""


class NewFile:
    """The file that is to be written: what it is to say, and what is wrong with that."""

    def __init__(self, kind: str, name: str, path: Path, global_file: Path | None, given: dict[Key, str]) -> None:
        from mistamover.config import find_global

        self.kind = kind
        self.path = path
        self._told_global = global_file
        self.global_file = None if kind == GLOBAL else find_global(global_file)
        self.texts: dict[Key, str] = {key: self.resolved(key, text) for key, text in given.items()}
        self.given = frozenset(given)
        if kind == "none":
            self.texts["incoming", "require_arrival_monitor"] = "yes"
        if kind != GLOBAL:
            self.texts["outgoing", "transfer_protocol"] = kind
            if path.stem.removeprefix("ds_") != name:
                self.texts["data_stream", "name"] = name

    @property
    def questions(self) -> list[Key]:
        """What a person has to say, or should have thought of, in order."""
        from mistamover.options import OPTIONS

        if self.kind == GLOBAL:
            return [("global", "state_dir"), ("global", "config_dir"), ("logging", "base_log_dir")]
        rest = [("incoming", "directory")]
        if self.kind != "none":
            rest = [("outgoing", "transfer_mode"), *self.far_questions]
        return [key for key in (("data_stream", "directory"), *rest) if key in OPTIONS and key not in self.given]

    @property
    def far_questions(self) -> list[Key]:
        """Those that a log-in may prove wrong."""
        from mistamover.options import OPTIONS

        log_in = "key_file" if (self.kind, "key_file") in OPTIONS else "password"
        host = [("outgoing", "target_host"), (self.kind, "port")] if (self.kind, "port") in OPTIONS else []
        wanted = [*host, ("outgoing", "target_dir"), (self.kind, "username"), (self.kind, log_in)]
        is_answered = (self.kind, "password_file") in self.given
        return [
            key
            for key in wanted
            if key in OPTIONS and key not in self.given and not (is_answered and key[1] == log_in)
        ]

    def is_near(self, key: Key) -> bool:
        """Whether an option names a directory of this host that has to be there."""
        near = {"data_stream.directory", "incoming.directory", "global.config_dir", "logging.base_log_dir"}
        return ".".join(key) in near or (self.kind == "local" and key == ("outgoing", "target_dir"))

    def resolved(self, key: Key, text: str) -> str:
        """A path on this host from the root on, as a file has to name it."""
        near = self.is_near(key) or key == ("global", "state_dir")
        return os.path.abspath(os.path.expanduser(text)) if near and text and not text.startswith("$(") else text

    @property
    def text(self) -> str:
        """What would be written now."""
        from mistamover.describe import commented

        return commented(self._head(), dict.fromkeys(self.questions, "") | self.texts)

    def _head(self) -> str:
        what = "what all streams of the service share" if self.kind == GLOBAL else "one stream"
        return (
            f'MiStaMover: {what}. Made by "mistamover new"; change it as you like.\n'
            "Comments stand on lines of their own. docs/configuration.rst has all options.\n"
        )

    def judge(self) -> tuple[Settings | None, list[Finding]]:
        """The settings as they are so far, of a stream, and what is wrong."""
        from mistamover import config

        text = ""
        for section, keys in groupby(sorted(key for key, text in self.texts.items() if text), key=itemgetter(0)):
            text += f"[{section}]\n" + "".join(f"{key[1]} = {self.texts[key]}\n" for key in keys)
        settings, findings = config.judge(self.path, text, self.global_file)
        if self.kind != GLOBAL:
            return settings, findings
        of_streams = [one for one in findings if (one.section, one.option) in self.texts]
        return None, list(dict.fromkeys([*config.judge_service(self.path, text)[1], *of_streams]))

    @property
    def streams(self) -> Path:
        """Where the service looks for stream files."""
        return Path(self.texts.get(("global", "config_dir")) or self.path.absolute().parent / "streams")

    def next_command(self, *, is_tried: bool) -> str:
        """What to type now."""
        file = shell_word(self.path)
        if self.kind == GLOBAL:
            return f"mistamover new -o {shell_word(self.streams)}/NAME.ini, then: mistamover start --config {file}"
        command = "run --once" if is_tried else "check --connect"
        config = f" --config {shell_word(self._told_global)}" if self._told_global else ""
        return f"mistamover {command}{config} {file}"


def write(path: Path, text: str) -> None:
    """Make the file, for its owner alone; one that is there stays. Raises ``ConfigError``, and leaves none then."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ConfigError([f"{path}: names a directory that is not UTF-8; give a path that is"]) from None
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            _fill(path, file, data)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; give another by -o FILE"]) from error


def _fill(path: Path, file: BinaryIO, data: bytes) -> None:
    """Write all of it, or leave nothing."""
    try:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise

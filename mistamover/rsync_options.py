# ruff: noqa: SIM905 - tables of words are easier to read as text
"""The options of rsync(1) that a person may give besides ours: told apart, or refused if they break a promise."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

EVERY_RUN = frozenset(
    # How the far side is reached and what it hashes with: for every run.
    "rsync-path address sockopts blocking-io 4 ipv4 6 ipv6 contimeout no-motd checksum-choice cc".split()
)
STAGING = frozenset(
    # How bytes travel, and what a file gets besides its bytes: for the run that sends.
    (
        "z compress compress-choice zc compress-level zl skip-compress bwlimit S sparse preallocate open-noatime "
        "B block-size A acls X xattrs E executability o owner g group chown chmod numeric-ids usermap groupmap"
    ).split()
)
OURS = frozenset(
    # What we do anyhow, or decide ourselves: taken, and left out.
    (
        "a archive r recursive l links t times p perms D devices specials c checksum W whole-file P partial "
        "progress fsync i itemize-changes stats v verbose q quiet h human-readable s protect-args secluded-args"
    ).split()
)
WITH_VALUE = frozenset(
    (
        "e rsh rsync-path address sockopts contimeout checksum-choice cc compress-choice zc compress-level zl "
        "skip-compress bwlimit B block-size chown chmod usermap groupmap"
    ).split()
)


class Words(NamedTuple):
    """A command line of rsync, told apart."""

    program: str = "rsync"
    shell: tuple[str, ...] = ()
    """The options of ssh in ``-e 'ssh ...'``."""
    every_run: tuple[str, ...] = ()
    staging: tuple[str, ...] = ()


def read_command(words: Sequence[str]) -> Words:
    """Return what ``cmd`` says: the program, then options; raises ``ValueError`` with a line for a person."""
    if not words:
        raise ValueError("is empty; give the rsync program")
    return read_options(words[1:])._replace(program=words[0])


def read_options(words: Sequence[str]) -> Words:
    """Return what options say; raises ``ValueError`` with a line for a person."""
    shell: tuple[str, ...] = ()
    every_run: list[str] = []
    staging: list[str] = []
    for name, option in _options(iter(words)):
        if name in {"e", "rsh"}:
            shell = _ssh(option)
        elif name in EVERY_RUN:
            every_run.append(option)
        elif name in STAGING:
            staging.append(option)
        elif name not in OURS:
            raise ValueError(
                f"{_dashed(name)} cannot be given: mistamover decides what is sent, how it is staged and proven, "
                "and when it is removed; docs/transports.rst lists what can be"
            )
    return Words(shell=shell, every_run=tuple(every_run), staging=tuple(staging))


def _options(words: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Each option's name and the option as one word; for ``-e`` the command alone."""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            if name in WITH_VALUE and not equals:
                value = _next(words, name)
            yield name, value if name == "rsh" else f"--{name}={value}" if name in WITH_VALUE else word
        elif word.startswith("-") and len(word) > 1:
            yield from _letters(word[1:], words)
        else:
            raise ValueError(f"{word!r} is no option; give options of rsync alone")


def _letters(letters: str, words: Iterator[str]) -> Iterator[tuple[str, str]]:
    """The options of a word such as ``-avz``; one that takes a value takes the rest, or the next word."""
    for number, letter in enumerate(letters, 1):
        if letter in WITH_VALUE:
            value = letters[number:].removeprefix("=") or _next(words, letter)
            yield letter, value if letter == "e" else f"-{letter}{value}"
            return
        yield letter, f"-{letter}"


def _next(words: Iterator[str], name: str) -> str:
    value = next(words, None)
    if value is None:
        raise ValueError(f"{_dashed(name)} lacks its value")
    return value


def _dashed(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name}"


def _ssh(command: str) -> tuple[str, ...]:
    program, *options = shlex.split(command) or [""]
    if program.rpartition("/")[2] != "ssh":
        raise ValueError(f"-e {shlex.quote(command)}: only ssh is possible; give -e 'ssh ...', or leave -e out")
    return tuple(options)

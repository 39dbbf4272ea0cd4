"""What a configuration of version 0.1.0 does otherwise here than it did there, for ``check``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from mistamover.obsolete import OBSOLETE, RETIRED
from mistamover.options import OPTIONS, PROTOCOLS, SECTIONS, Rsync, Settings


class Difference(NamedTuple):
    """One thing that is not as it was."""

    what: str
    before: str
    now: str
    """With the reason, or with what brings the old way back."""


def differences(settings: Settings) -> Iterator[Difference]:
    """Yield what concerns this stream; nothing where its files have no option of 0.1.0 that is gone."""
    if not settings.obsolete:
        return
    if settings.outgoing.transfer_protocol != "none":
        yield from _of_sending(settings)
    yield from _of_the_service(settings)
    yield from _of_the_spool(settings)
    yield from _of_options(settings)


def _of_sending(settings: Settings) -> Iterator[Difference]:
    outgoing, is_rsync = settings.outgoing, isinstance(settings.log_in, Rsync)
    is_mirror = outgoing.transfer_mode == "mirror"
    if is_mirror:
        now = "a mirror keeps them; that is so where either [outgoing] or the protocol's section says mirror"
        yield Difference("sources of a mirror", "were removed", now)
    proof = "of rsync" if is_rsync else "of the ftp program"
    rest = "and only a unit so proven counts" if is_mirror else "before its source is removed"
    yield Difference("proof", f"the exit code {proof}", f"each unit is read or hashed at the target, {rest}")
    if outgoing.existing != "replace":
        unless = ", unless this ledger has it," if is_mirror else ","
        now = f"is kept{unless} and the unit goes to quarantine; to replace it: [outgoing] existing = replace"
        yield Difference("another file of the name", "was overwritten", now)
    if is_rsync and not outgoing.create_target:
        now = "must be there: an unmounted disk is no target; to have it made: [outgoing] create_target = yes"
        yield Difference("target_dir", "rsync made it", now)
    if is_rsync and not outgoing.preserve_mode:
        now = "are the account's own; to keep the permissions: [outgoing] preserve_mode = yes"
        yield Difference("permissions, owners", "rsync copied them", now)
    now = "only that file pauses the stream; what else fails is told, and tried again"
    yield Difference("stop file at the target", "any failure to look for it held the stream, for ever", now)
    now = f"holds what is not proven yet, in {_staging(settings)}; readers pass over dot-names"
    yield Difference("target_dir", "had nothing but units", now)


def _staging(settings: Settings) -> str:
    return str(getattr(settings.log_in, "staging_dir", ".mistamover"))


def _of_the_service(settings: Settings) -> Iterator[Difference]:
    """The handshake, the disk space monitor and mail."""
    if settings.outgoing.target_uses_arrival_monitor:
        now = "only one with status 0 that names this unit, its size and its digest; others have it sent again"
        yield Difference("receipts", "any counted as success, and the source was removed", now)
    if settings.incoming.require_arrival_monitor:
        now = "are set aside in quarantine, with the reason"
        yield Difference("arrivals that are not as announced", "were deleted", now)
    if settings.data_stream.deletion_enabled:
        now = "only what the target holds is deleted; more only with [data_stream] deletion_of_unsent"
        yield Difference("a disk that runs full", "the newest units were deleted first, sent or not", now)
    if settings.email.recipient:
        now = "what is wrong is told when it begins, and again from time to time ([email] alert_repeat)"
        yield Difference("mail", "one in 12 hours at most, or none at all", now)


def _of_the_spool(settings: Settings) -> Iterator[Difference]:
    source = settings.data_stream
    yield Difference("spool", "was made where it was missing", "must be there: an unmounted disk is no spool")
    if source.transfer_unit == "file":
        now = "each file in it is a unit of its own, with its path below the spool"
        now += "; as one unit: [data_stream] transfer_unit = directory"
        yield Difference("a directory in the spool", "was one unit; a move zipped it", now)
    elif settings.outgoing.package == "none":
        now = "is sent as it is, and removed last; as an archive: [outgoing] package = zip"
        yield Difference("a directory in the spool", "was zipped by FTP, and removed before the transfer", now)
    usual = OPTIONS["data_stream", "ignore"].default
    if set(usual) <= set(source.ignore):
        now = "stay in the spool, as half-written; to take them: [data_stream] ignore = ,"
        yield Difference(f"files called {' '.join(usual)}", "were units", now)
    now = "lie in SPOOL/.mistamover/quarantine: mistamover quarantine list; the old place has no units"
    yield Difference("units set aside", "lay in SPOOL/quarantine or quarantine_dir", now)
    if settings.logging.base_log_dir is not None:
        yield Difference("log", f"was dtc_{settings.name}.log, through a log server", f"is {settings.name}.log")


def _of_options(settings: Settings) -> Iterator[Difference]:
    """What does nothing any more, one for each section and reason."""
    protocol = settings.outgoing.transfer_protocol
    concern = [
        (section, option, f"nothing: {OBSOLETE[section, option]}")
        for section, option in settings.obsolete
        if (section == protocol or section not in (*PROTOCOLS, *RETIRED))
    ]
    for (section, reason), group in groupby(sorted(concern, key=_by_reason), key=_by_reason):
        options = ", ".join(option for _, option, _ in group)
        what = f"[{section}] {options}" if section in SECTIONS else f"[{section}]"
        yield Difference(what, "did something", reason)


def _by_reason(one: tuple[str, str, str]) -> tuple[str, str]:
    return one[0], one[2]

"""What version 0.1.0 had and this one has not: options that are accepted and do nothing, and transports."""

from __future__ import annotations

from mistamover.ini import Key

_PROVEN = "every unit is proven by its digest, whatever its size and time"
_GRIDFTP = "GridFTP is not spoken any more"
_GRIDFTP_SECTIONS = ("gridftp", "gridftp_myproxy", "gridftp_certificate")

OBSOLETE: dict[Key, str] = {
    ("global", "debug_on"): "[logging] log_level = DEBUG writes more, and --debug shows it",
    ("logging", "port"): "there is no log server: each stream writes its own log",
    ("outgoing", "quarantine_dir"): "units are set aside in SPOOL/.mistamover/quarantine",
    ("outgoing", "dir_size_limit"): "a directory may be of any size; before it is packaged, room is looked for",
    ("outgoing", "always_zip"): "[outgoing] package = zip sends directories as archives",
    ("rsync_ssh", "use_checksum"): _PROVEN,
    ("rsync_ssh", "check_size"): _PROVEN,
    ("rsync_native", "use_checksum"): _PROVEN,
    ("rsync_native", "check_size"): _PROVEN,
    ("ftp", "cmd"): "no program is called: mistamover speaks FTP itself",
    **{
        (section, option): _GRIDFTP
        for section in _GRIDFTP_SECTIONS
        for option in ("cmd", "port", "proxy", "username", "password", "transfer_mode")
    },
}
"""Options that are accepted and do nothing, and why. One that is an option again does not belong here."""

OLD_SECTIONS = frozenset(section for section, _ in OBSOLETE)
OLD_SECRETS = frozenset(key for key in OBSOLETE if key[1] == "password")

PLACEHOLDER = "__MUST_DEFINE__"
"""What 0.1.0's templates say where a person has to write something."""

RETIRED: dict[str, str] = dict.fromkeys(
    _GRIDFTP_SECTIONS,
    f"{_GRIDFTP}; give sftp or rsync_ssh where the host has a log-in by SSH, or ftps where it has FTP within TLS, "
    "and put username, and key_file or password_file, into the section of that name",
)
"""Transports of 0.1.0 that are gone, and what to choose instead."""

"""Checksum files: the lines of md5sum and its kin, of BSD's md5 and of bags, read with suspicion, and written.

GNU coreutils, "md5sum invocation"; md5(1) of FreeBSD; RFC 8493, section 2.1.3. What is in such a file was written
by somebody else, and is hostile until proven.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from mistamover.foreign import Refused

DIGITS = {"md5": 32, "sha256": 64, "sha512": 128}
"""The algorithms of such files, and how many hexadecimal digits their digests have."""
SIDECARS = {"sha512": ".sha512", "sha256": ".sha256", "md5": ".md5"}
"""How the name of a file ends that holds the digest of one other, whose name is what comes before."""
MANIFESTS = {
    "SHA512SUMS": "sha512",
    "SHA256SUMS": "sha256",
    "MD5SUMS": "md5",
    **{f"manifest-{algorithm}.txt": algorithm for algorithm in SIDECARS},
}
"""The names of files that hold the digests of a directory, and their algorithms."""
DECLARATION = "bagit.txt"
"""The file that makes a directory a bag."""
PAYLOAD = "data/"
BAG_MANIFESTS = {f"{kind}-{name}.txt": name for kind in ("manifest", "tagmanifest") for name in DIGITS}
MOST_LINES = 200_000
"""Lines of one such file."""
MOST_BYTES = 64 * 2**20
LARGEST_SIDECAR = 4096
LONGEST_PATH = 4096
"""Characters of a path (PATH_MAX of Linux is as many bytes)."""

_GNU = re.compile(r"(\\?)([0-9a-fA-F]+)(?: [ *]|\t)(.+)")
_BSD = re.compile(r"(\\?)([A-Z0-9]+(?:-[0-9]+)?) ?\((.+)\) ?= ?([0-9a-fA-F]+)")
_BAG = re.compile(r"(\\?)([0-9a-fA-F]+)[ \t]+\*?(.+)")
_ESCAPED = re.compile(r"\\(.?)")
_ESCAPES = {"\\": "\\", "n": "\n", "r": "\r"}
_PERCENT = re.compile("%(0[AaDd]|25)")
_TAGS = {"MD5": "md5", "SHA256": "sha256", "SHA2-256": "sha256", "SHA512": "sha512", "SHA2-512": "sha512"}


def parse_sidecar(data: bytes, algorithm: str, name: str) -> str:
    """The digest in a sidecar of the file called ``name``; raises :class:`Refused`.

    One line; the digest may stand alone. People make them with whole paths, of which only the last part counts.
    """
    lines = [line for _, line in _lines(data)]
    if len(lines) != 1:
        raise Refused(f"it has {len(lines)} lines, and should have one")
    if re.fullmatch(f"[0-9a-fA-F]{{{DIGITS[algorithm]}}}", lines[0].strip()):
        return lines[0].strip().lower()
    about, digest = _parsed(lines[0], algorithm, bag=False)
    if about.rpartition("/")[2] != name:
        raise Refused("it is about another file than it is named after")
    return digest


def parse_manifest(data: bytes, algorithm: str, *, bag: bool = False) -> dict[str, str]:
    """The digests in a manifest, by paths below its directory; raises :class:`Refused`."""
    found: dict[str, str] = {}
    for number, line in _lines(data):
        try:
            name, digest = _parsed(line, algorithm, bag=bag)
            path = _path_below(name)
        except Refused as why:
            raise Refused(f"line {number}: {why}") from None
        if found.setdefault(path, digest) != digest:
            raise Refused(f"line {number}: it names a file twice, with different digests")
    return found


def checksum_line(digest: str, path: str) -> bytes:
    r"""What ``sha256sum -c`` takes for a file; ``\``, newline and CR in its path are escaped as its kin do."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != path else ""
    return os.fsencode(f"{mark}{digest}  {escaped}\n")


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    """The lines that say something, numbered; what ends a file without a newline may be half a line."""
    if data.count(b"\n") > MOST_LINES:
        raise Refused(f"it has more than {MOST_LINES:,} lines")
    for number, line in enumerate(data.split(b"\n"), 1):
        text = os.fsdecode(line.removesuffix(b"\r"))
        if text.strip() and not text.startswith("#"):
            yield number, text


def _parsed(line: str, algorithm: str, *, bag: bool) -> tuple[str, str]:
    """Name and digest of a line."""
    if bag and (found := _BAG.fullmatch(line)):
        _, digest, name = found.groups()
        name = _PERCENT.sub(lambda code: chr(int(code[1], 16)), name)
    elif found := _GNU.fullmatch(line):
        escaped, digest, name = found.groups()
        name = _unescaped(name) if escaped else name
    elif found := _BSD.fullmatch(line):
        escaped, tag, name, digest = found.groups()
        if _TAGS.get(tag) != algorithm:
            raise Refused(f"it is no checksum line of {algorithm}")
        name = _unescaped(name) if escaped else name
    else:
        raise Refused("it is no checksum line")
    if len(digest) != DIGITS[algorithm]:
        raise Refused(f"its digest has {len(digest)} digits, and {DIGITS[algorithm]} make one of {algorithm}")
    if "\0" in name:
        raise Refused("it names no file: there is a NUL in it")
    if len(name) > LONGEST_PATH:
        raise Refused(f"it names no file: that of {len(name):,} characters cannot be")
    return name, digest.lower()


def _unescaped(name: str) -> str:
    def character(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise Refused("a name in it is escaped as nobody does")
        return _ESCAPES[found[1]]

    return _ESCAPED.sub(character, name)


def _path_below(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    if name.startswith("/") or not name:
        raise Refused("it names a file outside of its directory")
    parts = name.split("/")
    if ".." in parts:
        raise Refused("it names a file outside of its directory")
    if "" in parts or "." in parts:
        raise Refused("it names a file in a way that nobody writes")
    return name

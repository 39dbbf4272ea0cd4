"""What proves arrivals other than the handshake: sidecars, manifests, whole bags, ready markers, or time alone.

All of them look at the directory of arrivals itself, not below it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping

from mistamover import fs
from mistamover.arrivals import Claim, Judgement, NotYet, Prover, Ready, Stager, Wrong
from mistamover.bags import look_for_parts, survey
from mistamover.checksums import (
    LARGEST_SIDECAR,
    MANIFESTS,
    MOST_BYTES,
    SIDECARS,
    parse_manifest,
    parse_sidecar,
)
from mistamover.foreign import Refused
from mistamover.options import Settings
from mistamover.proofs import NotYet as Unproven
from mistamover.proofs import marked, read
from mistamover.unit import OWN_NAME, Identity, Ignored

NOBODY = Identity(0, 0, 0, 0, 0)
"""Of a proof that stays."""


class Settled:
    """Proof by time alone, or by a ready marker: a file that nobody has changed for a while. Others stand on it."""

    def __init__(self, settings: Settings) -> None:
        self._settle_time = settings.data_stream.settle_time
        self._is_ignored = Ignored((*settings.data_stream.ignore, settings.incoming.stop_file, OWN_NAME))
        self.follows = settings.incoming.proof_files == "follow"
        self._marker = settings.incoming.ready_marker or ""
        self._marks = marked(self._marker) if self._marker else lambda _: ""

    def judge(self, names: Iterable[str], dir_fd: int, now: float) -> Iterator[Judgement]:
        """Judge each file that is none of the proofs."""
        every = set(names)
        self.begin(every, dir_fd, now)
        for name in sorted(every):
            if self._is_ignored(name) or self.is_proof(name):
                continue
            try:
                if (identity := self._settled(name, dir_fd, now)) is not None:
                    yield Ready(self.claim(name, identity, every, dir_fd))
            except Unproven as why:
                yield NotYet(name, str(why), is_told=True)
            except Refused as why:
                yield Wrong(name, str(why))
            except OSError as error:
                yield NotYet(name, f"cannot be read: {error.strerror}", is_told=True)

    def begin(self, every: Iterable[str], dir_fd: int, now: float) -> None:
        """A pass over all these names begins."""

    def is_proof(self, name: str) -> bool:
        """Whether a file of that name is a proof."""
        return bool(self._marks(name))

    def claim(self, name: str, _identity: Identity, every: Iterable[str], dir_fd: int) -> Claim:
        """What is said of a file that has settled; raises :class:`~mistamover.proofs.NotYet`."""
        if not self._marker:
            return Claim(name, -1, {}, "", NOBODY)
        marker = self._marker.replace("{name}", name)
        if marker not in every:
            raise Unproven(f"its ready marker {marker} is not there yet")
        found = os.stat(marker, dir_fd=dir_fd, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise Unproven(f"its ready marker {marker} is no regular file")
        return self._with_proof(name, {}, marker, Identity.of(found))

    def _with_proof(self, name: str, digests: Mapping[str, str], proof: str, seen: Identity) -> Claim:
        return Claim(name, -1, digests, proof if self.follows else "", seen, follows=self.follows)

    def _settled(self, name: str, dir_fd: int, now: float) -> Identity | None:
        """A file that is no longer written; None for one that is, and for what is none."""
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or now - found.st_ctime < self._settle_time:
            return None
        fd = os.open(name, fs.FILE, dir_fd=dir_fd)
        try:
            return None if fs.is_being_written(fd) else Identity.of(found)
        finally:
            os.close(fd)


class Sidecars(Settled):
    """Proof by files such as ``NAME.md5``."""

    def is_proof(self, name: str) -> bool:
        """Whether it ends as they do."""
        return any(name.endswith(suffix) and name != suffix for suffix in SIDECARS.values())

    def claim(self, name: str, _identity: Identity, every: Iterable[str], dir_fd: int) -> Claim:
        """What the sidecar of the strongest digest says."""
        for algorithm, suffix in SIDECARS.items():
            proof = name + suffix
            if proof not in every:
                continue
            try:
                data, found = read(proof, dir_fd, LARGEST_SIDECAR)
                digest = parse_sidecar(data, algorithm, name)
            except Refused as why:
                raise Unproven(f"{proof} proves nothing: {why}") from why
            return self._with_proof(name, {algorithm: digest}, proof, Identity.of(found))
        raise Unproven(f"its proof is not there yet: {name}.sha256, .sha512 or .md5")


class Manifests(Settled):
    """Proof by a file such as ``SHA256SUMS``, which stays: more may come that it lists."""

    def begin(self, every: Iterable[str], dir_fd: int, now: float) -> None:  # noqa: ARG002 - of the protocol
        """Read all manifests."""
        self._listed: dict[str, dict[str, str]] = {}
        self._wrong = ""
        for proof in MANIFESTS.keys() & set(every):
            algorithm = MANIFESTS[proof]
            try:
                listed = parse_manifest(read(proof, dir_fd, MOST_BYTES)[0], algorithm)
            except (Refused, Unproven, OSError) as why:
                self._wrong = f"; {proof} proves nothing: {why}"
                continue
            for name, digest in listed.items():
                self._listed.setdefault(name, {})[algorithm] = digest

    def is_proof(self, name: str) -> bool:
        """Whether it is called as they are."""
        return name in MANIFESTS

    def claim(self, name: str, _identity: Identity, every: Iterable[str], dir_fd: int) -> Claim:  # noqa: ARG002
        """What all manifests say."""
        if name not in self._listed:
            raise Unproven(f"no manifest lists it yet{self._wrong}")
        return Claim(name, -1, self._listed[name], "", NOBODY)


class Bags(Settled):
    """Proof by bags, which are taken whole."""

    def _settled(self, name: str, dir_fd: int, now: float) -> Identity | None:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise Unproven("it is in no bag")
        bag = os.open(name, fs.DIRECTORY, dir_fd=dir_fd)
        try:
            inside = survey(bag)
            if (
                now - max(each.ctime_ns for each in (Identity.of(found), *inside.values())) / 1e9
                < self._settle_time
            ):
                return None
            look_for_parts(bag, inside)
        except FileNotFoundError:
            return None  # somebody works in it
        finally:
            os.close(bag)
        return Identity.of(found)

    def claim(self, name: str, identity: Identity, every: Iterable[str], dir_fd: int) -> Claim:  # noqa: ARG002
        """What is in it says it."""
        return Claim(name, -1, {}, "", identity, is_bag=True)


KINDS: dict[str, Callable[[Settings], Prover]] = {
    "stager": Stager,
    "sidecar": Sidecars,
    "manifest": Manifests,
    "bagit": Bags,
    "none": Settled,
}


def prover(settings: Settings) -> Prover:
    """What proves the arrivals of a stream."""
    return KINDS[settings.incoming.control](settings)

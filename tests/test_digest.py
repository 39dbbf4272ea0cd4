"""Digests: ours, and those of the programs that the far side may have."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistamover import digest

calm = settings(max_examples=30, deadline=None)
"""A machine may be busy."""

EMPTY = {
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha512": (
        "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
        "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
    ),
    "md5": "d41d8cd98f00b204e9800998ecf8427e",
    "blake2b": (
        "786a02f742015903c6c6fd852552d272912f4740e15847618a86e217f71f5419"
        "d25e1031afee585313896444934eb04b903a685b1448b755d56f701afe9be2ce"
    ),
    "xxh128": "99aa06d3014798d86001c324468d497f",
}
"""Of no bytes at all, as published."""
ABC = {
    "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "md5": "900150983cd24fb0d6963f7d28e17f72",
    "xxh128": "06b05ab6733a618578af5f94892f3950",
}

algorithms = pytest.mark.parametrize("algorithm", sorted(digest.ALGORITHMS))


@pytest.fixture(autouse=True)
def _xxhash(request: pytest.FixtureRequest) -> None:
    """xxhash is an extra."""
    if "xxh128" in request.node.name:
        pytest.importorskip("xxhash")


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@algorithms
def test_known_answers(algorithm: str) -> None:
    assert digest.of_bytes(algorithm, b"") == EMPTY[algorithm]
    if algorithm in ABC:
        assert digest.of_bytes(algorithm, b"abc") == ABC[algorithm]


@algorithms
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 100_000])
def test_a_descriptor_is_read_to_its_end(descriptor: int, algorithm: str, size: int) -> None:
    data = os.urandom(size)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    buffer = bytearray(1000)
    assert digest.of_descriptor(algorithm, descriptor, buffer) == (digest.of_bytes(algorithm, data), size)


def test_a_descriptor_is_read_from_where_it_is(descriptor: int) -> None:
    os.write(descriptor, b"xxabc")
    os.lseek(descriptor, 2, os.SEEK_SET)
    assert digest.of_descriptor("sha256", descriptor, bytearray(10)) == (ABC["sha256"], 3)


def test_what_the_buffer_held_before_does_not_count(descriptor: int) -> None:
    os.write(descriptor, b"abc")
    os.lseek(descriptor, 0, os.SEEK_SET)
    assert digest.of_descriptor("sha256", descriptor, bytearray(b"z" * 64)) == (ABC["sha256"], 3)


@algorithms
@calm
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_pieces_make_the_whole(algorithm: str, pieces: list[bytes]) -> None:
    hasher = digest.ALGORITHMS[algorithm]()
    for number, piece in enumerate(pieces):
        hasher.update((bytes, bytearray, memoryview)[number % 3](piece))
    assert hasher.hexdigest() == digest.of_bytes(algorithm, b"".join(pieces))
    assert hasher.hexdigest() == hasher.hexdigest().lower()


@algorithms
def test_each_hasher_starts_anew(algorithm: str) -> None:
    digest.ALGORITHMS[algorithm]().update(b"left over")
    assert digest.ALGORITHMS[algorithm]().hexdigest() == EMPTY[algorithm]


@pytest.mark.parametrize(
    ("algorithm", "command"),
    [(algorithm, command) for algorithm, commands in digest.COMMANDS.items() for command in commands],
)
def test_programs_of_the_far_side_agree(tmp_path: Path, algorithm: str, command: str) -> None:
    """They are asked for the digests of staged files, and tried first with a text on standard input."""
    data = {"3fa9": os.urandom(5000), "77": b""}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    try:
        result = subprocess.run(
            [*shlex.split(command), *data], cwd=tmp_path, capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip(f"{command} is not installed")
    found = {}
    for line in result.stdout.splitlines():
        value, _, name = line.partition(" ")
        found[name.lstrip(" *")] = value.lstrip("\\")
    assert found == {name: digest.of_bytes(algorithm, content) for name, content in data.items()}
    said = subprocess.run(shlex.split(command), input=b"mistamover", capture_output=True, check=True).stdout
    assert said.split()[0].decode() == digest.of_bytes(algorithm, b"mistamover")


def test_each_algorithm_has_programs() -> None:
    assert digest.COMMANDS.keys() == digest.ALGORITHMS.keys() == EMPTY.keys()


def test_md5_works_where_it_is_forbidden_for_security(monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = hashlib.md5

    def strict(data: bytes = b"", *, usedforsecurity: bool = True) -> object:
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return md5(data, usedforsecurity=False)

    monkeypatch.setattr(hashlib, "md5", strict)
    assert digest.of_bytes("md5", b"") == EMPTY["md5"]

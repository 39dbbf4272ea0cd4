"""Files that are no configuration: what is wrong is told in little time and few lines."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mistamover import ini
from mistamover.config import load
from mistamover.errors import ConfigError

SOON = 10.0
"""Seconds; each of these takes some tenths, and took minutes where the time grew with the square of the size."""


def findings(path: Path, text: str, global_file: Path | None = None) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, global_file, {})
    return list(caught.value.findings)


def filled(line: str) -> str:
    """A file of the largest size, of lines that differ where ``line`` has room for a number."""
    count = (ini.LARGEST_FILE - 20) // len(line.format(9**6))
    return "".join(line.format(number) for number in range(count))


@pytest.mark.parametrize(
    "text",
    [
        filled("rubbish\n"),
        filled("a\n"),
        filled("[s{}]\n"),
        filled("[s{}] behind\n"),
        "[outgoing]\n" + filled("o{} = 1\n"),
        "[outgoing]\n" + filled("lanes = 1\n"),
        "[outgoing]\nlanes = 1\n" + filled(" indented\n"),
        "[outgoing]\nrubbish\n" + filled(" indented\n"),
        "[outgoing]\n" + filled("= 1\n"),
        "[outgoing]\na" + " " * 2**19 + "b\n",
        "[outgoing]\ntarget_dir = $(" + ":" * 2**19 + "\n",
        "[outgoing]\ntarget_dir = " + "$(a:" * 2**18 + "\n",
        "[outgoing]\n" + "x" * 2**19 + " = 1\n",
        "[" + "x" * 2**19 + "]\n",
        "x" * 2**19,
    ],
    ids=range(15),
)
def test_a_mebibyte_of_anything_is_soon_judged_and_in_few_words(tmp_path: Path, text: str) -> None:
    began = time.process_time()
    found = findings(tmp_path / "x.ini", text)
    assert time.process_time() - began < SOON
    assert len(found) <= ini.MOST_FINDINGS + 1
    assert max(map(len, found)) < 2000


def test_the_first_findings_of_each_file_are_told_and_how_many_more_there_are(tmp_path: Path) -> None:
    shared = tmp_path / "global.ini"
    shared.write_text("[logging]\n" + "rubbish\n" * 150)
    found = findings(tmp_path / "x.ini", "[outgoing]\n" + "rubbish\n" * 1234, shared)
    here = [line for line in found if line.startswith(f"{tmp_path}/x.ini")]
    there = [line for line in found if line.startswith(f"{shared}")]
    assert found == [*here, *there]
    assert len(here) == len(there) == ini.MOST_FINDINGS + 1
    assert there[0].startswith(f"{shared}:2: is no option")
    assert there[-2].startswith(f"{shared}:101: is no option")
    assert there[-1] == f"{shared}: and 50 more"
    assert here[-1].startswith(f"{tmp_path}/x.ini: and 1,1")


def test_what_follows_rubbish_with_an_indent_belongs_to_it(tmp_path: Path) -> None:
    found = findings(tmp_path / "x.ini", "[outgoing]\nrubbish\n and more of it\nlanes = none\n")
    assert [line.partition(": ")[0] for line in found if "lanes" in line or "no option" in line] == [
        f"{tmp_path}/x.ini:2",
        f"{tmp_path}/x.ini:4",
    ]

"""The documents name nothing that is not there, and their first examples do what they say."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from configparser import RawConfigParser
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import click
import pytest

import mistamover
from mistamover import config, options
from mistamover.cli import _mistamover
from mistamover.errors import ConfigError, Exit
from mistamover.rsync_options import EVERY_RUN, OURS, STAGING
from tests import mails
from tests.program import Local, command, environment
from tests.sshd import Sshd
from tests.test_floors import FLOORS, PACKAGE, modules
from tests.test_rsync_options import BREAKING

ROOT = Path(__file__).parents[1]
README = ROOT / "README.rst"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CHANGELOG.rst", ROOT / "CONTRIBUTING.rst", *sorted(DOCS.glob("*.rst"))]
TREES = ("docs", "conf", "tests", "mistamover", "bin", "benchmarks", ".ci")
"""Where the files are that documents may name by their path."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# -- the parts of a page -----------------------------------------------------------------------------------


def blocks(text: str) -> list[str]:
    """The literal blocks, without their indent."""
    return [_dedented(block) for block in re.findall(r"::\n\n((?:[ \t]+\S.*\n|\n(?=\n*[ \t]))+)", text + "\n")]


def _dedented(block: str) -> str:
    indent = len(block) - len(block.lstrip(" "))
    return "\n".join(line[indent:] for line in block.rstrip().splitlines())


def prose(text: str) -> str:
    """All but the literal blocks."""
    return re.sub(r"::\n\n(?:[ \t]+\S.*\n|\n(?=\n*[ \t]))+", "::\n\n", text + "\n")


def literals(text: str) -> list[str]:
    """What stands between double backticks, in one line each."""
    return [" ".join(found.split()) for found in re.findall(r"``(.+?)``", prose(text), re.DOTALL)]


def streams(text: str) -> list[str]:
    """The stream files, whole or in part: blocks of INI, and what a shell is to write into a file."""
    written = [found for block in blocks(text) for found in re.findall(r"<<END\n(.*?)\nEND\b", block, re.DOTALL)]
    return written + [block for block in blocks(text) if re.match(r"\[\w+\]\n", block)]


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of its kind."""
    _, found, rest = text.partition(f"\n{title}\n{'-' * len(title)}\n")
    assert found, title
    return re.split(r"\n[^\n]+\n-{3,}\n", rest)[0]


OF_RSYNC = {*BREAKING.split(), "--link-dest", *(f"--{name}" for name in EVERY_RUN | STAGING | OURS)}


# -- what is wrong with a page -----------------------------------------------------------------------------


def dead_links(text: str, page: Path) -> Iterator[str]:
    for link in re.findall(r"`[^`]*<([^<>`]+)>`_", text):
        if not re.match(r"https?://", link) and not (page.parent / link).exists():
            yield link


def missing_files(text: str) -> Iterator[str]:
    for name in literals(text):
        if re.fullmatch(r"[\w.-]+(/[\w.-]*)*", name):
            first, slash, _ = name.partition("/")
            is_ours = (slash and first in TREES) or re.search(r"\.(py|rst)$", name)
            if is_ours and not any((top / name).exists() for top in (ROOT, DOCS, PACKAGE)):
                yield name


def unknown_targets_of_make(text: str) -> Iterator[str]:
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for place in (*literals(text), *blocks(text)):
        for target in re.findall(r"(?:^|\n|\$ )make ([a-z]+)", place):
            if target not in known:
                yield f"make {target}"


def unknown_commands(text: str) -> Iterator[str]:
    for place in (*literals(text), *blocks(text)):
        for line in place.splitlines():
            for words in _command_lines(line):
                yield from _unknown_words(words)
            if re.match(r"--[a-z]", line) and line.split()[0].split("=")[0] not in _options(_mistamover) | OF_RSYNC:
                yield line


def _command_lines(line: str) -> Iterator[list[str]]:
    """The words behind each ``mistamover`` that begins a command, and those of short forms as ``run --once``."""
    first = line.split(" ")[0]
    if first in _mistamover.list_commands(_context()):
        yield _words(line)
    for found in re.findall(r"(?:^|[$:] |\(|bin/)mistamover ((?:[a-z]|--?[a-z]).*)", line):
        yield _words(found)


def _words(line: str) -> list[str]:
    line = re.split(r"[>#;:)\"…]", line)[0]
    return re.sub(r"[\[\]|]", " ", line).split()


def _unknown_words(words: list[str]) -> Iterator[str]:
    at: click.Command = _mistamover
    while isinstance(at, click.Group) and words and not words[0].startswith("-"):
        below = at.get_command(_context(), words[0])
        if below is None:
            yield f"mistamover … {words[0]}"
            return
        at, words = below, words[1:]
    options = _options(at)
    yield from (f"{at.name} {word}" for word in words if re.match(r"--?[a-z]", word) and word not in options)


def _context() -> click.Context:
    return click.Context(_mistamover)


def _options(at: click.Command) -> set[str]:
    """All options of a command and of those below it."""
    found = {"-h", "--help"} | {name for one in at.params if isinstance(one, click.Option) for name in one.opts}
    if isinstance(at, click.Group):
        for name in at.list_commands(_context()):
            below = at.get_command(_context(), name)
            assert below is not None
            found |= _options(below)
    return found


def unknown_options(text: str) -> Iterator[str]:
    for place in (*literals(text), *blocks(text)):
        for home, option in re.findall(r"\[(\w+)\] ([a-z_]+)\b(?!:)", place):
            if (home, option) not in options.OPTIONS:
                yield f"[{home}] {option}"
    for stream in streams(text):
        parser = RawConfigParser()
        parser.read_string(stream)
        for home in parser.sections():
            yield from (f"[{home}] {name}" for name in parser[home] if (home, name) not in options.OPTIONS)


def impossible_values(text: str, base: Path) -> Iterator[str]:
    """Each ``option = value`` that no section takes; ``base`` is a stream file that is right."""
    for literal in literals(text):
        if found := re.fullmatch(r"(?:\[\w+\] )?(?!option )([a-z_]+) = (\S+)", literal):
            option, value = found.groups()
            homes = [home for home, name in options.OPTIONS if name == option]
            if not any(_is_possible(base, f"CONFIG__{home}__{option}", value) for home in homes):
                yield literal


_HOST = {"CONFIG__outgoing__target_host": "archive.example.org"}
_ARRIVALS = {"CONFIG__incoming__require_arrival_monitor": "yes", "CONFIG__incoming__directory": "/data/arrivals"}
"""What values of other options ask for; a directory is no arrival."""


def _is_possible(base: Path, variable: str, value: str) -> bool:
    return any(_loads(base, {**needed, variable: value}) for needed in (_HOST, _HOST | _ARRIVALS))


def _loads(base: Path, environ: dict[str, str]) -> bool:
    try:
        config.load(base, None, environ)
    except ConfigError:
        return False
    return True


def faults_of_form(text: str) -> Iterator[str]:
    """What a page that no program can read as reStructuredText looks like; not all of it."""
    lines = prose(text).splitlines()
    for title, line in pairwise(lines):
        if re.fullmatch(r"([=~^-])\1{2,}", line) and title.strip() and len(title) != len(line):
            yield f"underlined too long or too short: {title}"
    for paragraph in prose(text).split("\n\n"):
        if not re.search(r"^=+ =+", paragraph, re.MULTILINE) and paragraph.count("``") % 2:
            yield f"odd number of double backticks: {paragraph}"
    yield from (f"tab: {line}" for line in text.splitlines() if "\t" in line)
    yield from (f"no blank line behind ::, {line}" for line in re.findall(r"::\n(\S.*)", text))
    yield from re.findall(r"\]\([^)\s]+\)|^#+ .*", prose(text), re.MULTILINE)  # Markdown


# -- no page has any of it ---------------------------------------------------------------------------------


@each_page
def test_links_and_files_are_there(page: Path) -> None:
    text = page.read_text()
    assert [*dead_links(text, page), *missing_files(text), *unknown_targets_of_make(text)] == []


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    assert list(unknown_commands(page.read_text())) == []


@each_page
def test_options_of_the_configuration_exist(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert [*unknown_options(text), *impossible_values(text, Local(tmp_path).ini)] == []


@each_page
def test_pages_are_well_formed(page: Path) -> None:
    text = page.read_text()
    assert list(faults_of_form(text)) == []
    if find_spec("docutils"):
        import_module("docutils.core").publish_doctree(
            text, settings_overrides={"halt_level": 2, "report_level": 2, "warning_stream": False}
        )


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.rst").read_text()
    assert [page.name for page in PAGES if page.parent == DOCS and f"<{page.name}>" not in index] == ["index.rst"]


@pytest.mark.parametrize(
    ("find", "text"),
    [
        (lambda text: dead_links(text, README), "see `there <docs/nowhere.rst>`__"),
        (missing_files, "see ``docs/nowhere.rst``"),
        (missing_files, "see ``mistamover/nothing.py``"),
        (missing_files, "see ``nothing.py``"),
        (unknown_targets_of_make, "try ``make haste``"),
        (unknown_targets_of_make, "try::\n\n    make haste\n"),
        (unknown_commands, "try ``mistamover begin``"),
        (unknown_commands, "try::\n\n    $ mistamover run --twice x.ini\n"),
        (unknown_commands, "try::\n\n    bin/mistamover quarantine empty x.ini\n"),
        (unknown_commands, "try ``mistamover check\n--once x.ini``"),
        (unknown_commands, "try ``--twice``"),
        (unknown_commands, "try ``run --connect``"),
        (unknown_options, "set ``[sftp]\nlanes``"),
        (unknown_options, "::\n\n    [outgoing]\n    lans = 4\n"),
        (unknown_options, "::\n\n    $ cat >x.ini <<END\n    [mail]\n    to = me\n    END\n"),
        (faults_of_form, "Title\n====\n"),
        (faults_of_form, "a ``literal`"),
        (faults_of_form, "text::\nmore"),
        (faults_of_form, "a [link](there)"),
    ],
)
def test_what_is_wrong_is_found(find: Callable[[str], Iterator[str]], text: str) -> None:
    assert list(find(text))


@pytest.mark.parametrize(
    ("text", "is_wrong"),
    [
        ("``verify = perhaps``", True),
        ("``lanes = 99``", True),
        ("``no_such = 1``", True),
        ("``lanes = 9``", False),
        ("``[outgoing] verify = size``", False),
    ],
)
def test_impossible_values_are_found(tmp_path: Path, text: str, is_wrong: bool) -> None:
    assert bool(list(impossible_values(text, Local(tmp_path).ini))) is is_wrong


# -- tables that say what the code says --------------------------------------------------------------------


def test_the_design_has_the_floors_of_the_code() -> None:
    table = section((DOCS / "design.rst").read_text(), "Rooms and floors")
    told = re.findall(r"^([\d.]+) +``([\w.]+)``", table, re.MULTILINE)
    code = {name.split(".")[0] if name.startswith("cli.") else name for name in modules(PACKAGE)}
    assert {name.removeprefix("__init__"): float(floor) for floor, name in told} == {
        name: FLOORS[name] for name in code
    }


@pytest.mark.parametrize("page", ["design.rst", "commands.rst"])
def test_exit_codes_are_those_of_the_program(page: str) -> None:
    table = section((DOCS / page).read_text(), "Exit codes")
    assert [int(code) for code in re.findall(r"^(\d+) +\S", table, re.MULTILINE)] == [int(code) for code in Exit]


def test_the_mails_are_as_they_are_sent() -> None:
    shown = (DOCS / "alerts.rst").read_text().partition(mails.BEGIN)[2].partition(mails.END)[0]
    assert shown == f"\n{mails.rendered()}\n", "python -m tests.mails"


# -- the examples ------------------------------------------------------------------------------------------

CONTENT = {"2026/weather at noon.txt": b"calm, 4 C\n", "2026/empty.log": b"", "radar.dat": bytes(300_000)}


def readme_stream() -> str:
    found = streams(README.read_text())
    assert found
    return found[0]


def test_the_stream_of_the_readme_has_ten_lines_and_loads_as_it_is(tmp_path: Path) -> None:
    assert len(readme_stream().splitlines()) == 10
    path = tmp_path / "images.ini"
    path.write_text(readme_stream())
    settings = config.load(path, None, {})
    assert (settings.name, settings.outgoing.transfer_mode) == ("images", "move")
    assert str(settings.data_stream.directory) == "/data/outgoing"
    assert (settings.outgoing.target_host, settings.sftp.username) == ("archive.example.org", "mover")


@pytest.mark.needs("sshd", "ssh")
def test_the_stream_of_the_readme_moves_a_tree(tmp_path: Path, sshd: Sshd, far: Path) -> None:
    here = Local(tmp_path)
    for name, content in CONTENT.items():
        here.put(name, content)
    (tmp_path / "images.ini").write_text(_led_to(readme_stream(), here.spool, sshd, far))
    result = subprocess.run(
        command("run", "--once", tmp_path / "images.ini"),
        env=environment(tmp_path) | _log_in(tmp_path, sshd),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("moved 3 files")
    assert {name: (far / name).read_bytes() for name in here.names(far)} == CONTENT
    assert here.names(here.spool) == set()


def _led_to(stream: str, spool: Path, sshd: Sshd, far: Path) -> str:
    for example, real in (
        ("/data/outgoing", str(spool)),
        ("/data/incoming", str(far)),
        ("archive.example.org", sshd.host),
        ("= mover", f"= {sshd.username}"),
    ):
        assert example in stream
        stream = stream.replace(example, real)
    return stream


def _log_in(top: Path, sshd: Sshd) -> dict[str, str]:
    return {
        "CONFIG__global__state_dir": str(top / "state"),
        "CONFIG__data_stream__settle_time": "0",
        "CONFIG__sftp__port": str(sshd.port),
        "CONFIG__sftp__key_file": str(sshd.key_file),
        "CONFIG__sftp__known_hosts": str(sshd.known_hosts),
    }


def sessions(text: str) -> list[tuple[str, str]]:
    """The commands of a page's blocks, each with what it is said to print."""
    lines = "\n".join(block for block in blocks(text) if block.startswith("$ "))
    found = re.findall(r"^\$ (.*<<END\n(?:.*\n)*?END|.*)\n((?:(?!\$ ).*\n)*)", f"{lines}\n", re.MULTILINE)
    return [(command, printed.strip("\n")) for command, printed in found]


def test_the_first_steps_on_this_host_are_as_shown(tmp_path: Path) -> None:
    text = (DOCS / "first-steps.rst").read_text()
    steps = sessions(section(text, "A move on this host")) + sessions(section(text, "Mirror"))
    assert sum(line.startswith("mistamover ") for line, _ in steps) >= 8
    env = _of_the_first_steps(tmp_path)
    at = tmp_path
    for line, printed in steps:
        if line.startswith("cd ~/"):
            at = tmp_path / line.removeprefix("cd ~/")
            continue
        result = _typed(line, at, env)
        assert result.returncode == 0, (line, result.stdout)
        assert _timeless(result.stdout) == _timeless(printed.replace("/home/alice", str(tmp_path))), line


@pytest.mark.needs("setpriv")
def test_the_further_steps_are_as_shown(tmp_path: Path) -> None:
    """To a directory of this host."""
    text = (DOCS / "first-steps.rst").read_text().replace("proven by digest", "proven by reading it back")
    titles = ("What waits", "What is in quarantine", "Pause")
    steps = [step for title in titles for step in sessions(section(text, title))]
    (stream,) = streams(section(text, "A move on this host"))
    at = tmp_path / "try"
    (at / "incoming").mkdir(parents=True)
    (at / "images.ini").write_text(stream.replace("/home/alice", str(tmp_path)))
    env = _of_the_first_steps(tmp_path)
    for name in ("2026/weather.txt", "2026/radar.dat", "2026/late.txt"):
        (at / "outgoing/2026").mkdir(parents=True, exist_ok=True)
        (at / "outgoing" / name).write_text("calm")
        subprocess.run(command("run", "--once", "-q", at / "images.ini"), env=env, check=True, timeout=60)
    assert not (at / "outgoing/2026").exists()
    for line, printed in steps:
        shown = printed.replace("sftp://mover@archive.example.org/home/mover", f"local://{at}")
        told = _typed(line, at, env, under=NOT_ALMIGHTY).stdout
        assert _timeless(told) == _timeless(shown.replace("/home/alice", str(tmp_path))), line


def _of_the_first_steps(home: Path) -> dict[str, str]:
    return environment(home) | {
        "PATH": f"{ROOT / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "CONFIG__global__state_dir": str(home / ".local/state/mistamover"),
        "CONFIG__data_stream__settle_time": "0",
    }


NOT_ALMIGHTY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
"""So that not even root reads what may not be read."""


def _typed(line: str, at: Path, env: dict[str, str], under: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(under if os.geteuid() == 0 else ()), "bash", "-c", f"{{ {line}\n}} 2>&1"],
        cwd=at,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _timeless(text: str) -> list[str]:
    """Without what differs from run to run, or by the settle time of the test; a directory has no order."""
    for pattern, instead in (
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "WHEN"),
        (r"in [\d.]+ s \([\d.,]+ \w+/s\)", "in TIME (RATE)"),
        (r"changed for \d+ s", "changed for TIME"),
    ):
        text = re.sub(pattern, instead, text)
    return sorted(text.strip("\n").splitlines())


def test_the_version_of_the_first_steps_is_this_one() -> None:
    shown = dict(sessions((DOCS / "first-steps.rst").read_text()))
    assert shown["mistamover --version"] == f"mistamover {mistamover.__version__}"

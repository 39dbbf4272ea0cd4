"""What a person may give rsync besides our own options."""

from __future__ import annotations

import shlex

import pytest

from mistamover.rsync_options import Words, read_command, read_options
from mistamover.transports.rsync_run import Result

GOOD = {
    "": Words(),
    "-avz": Words(staging=("-z",)),
    "-a --compress-level=9": Words(staging=("--compress-level=9",)),
    "--bwlimit 500 -B1000": Words(staging=("--bwlimit=500", "-B1000")),
    "-zB 1000": Words(staging=("-z", "-B1000")),
    "--rsync-path='sudo rsync' -4": Words(every_run=("--rsync-path=sudo rsync", "-4")),
    "-e 'ssh -p 22 -i \"/a key\"'": Words(shell=("-p", "22", "-i", "/a key")),
    "-ave/usr/bin/ssh": Words(),
    "--rsh='ssh -4' --progress": Words(shell=("-4",)),
    "--rsh 'ssh -4'": Words(shell=("-4",)),
}
BREAKING = """
    --remove-source-files --remove-sent-files --inplace --append --append-verify --delete --delete-before
    --delete-after --delete-excluded --delete-missing-args --del --force --size-only --ignore-times --existing
    --ignore-existing --ignore-errors --update -u -n --dry-run --backup -b --link-dest=/x --copy-dest=/x
    --compare-dest=/x --temp-dir=/x -T/x --partial-dir=/x --delay-updates --max-size=1 --min-size=1 --exclude=x
    --include=x --filter=x -f -F -C --files-from=x --from0 -0 --dirs -d --relative -R --no-relative --hard-links
    -H --copy-links -L --write-devices --copy-devices --write-batch=x --read-batch=x --daemon --server --sender
    --password-file=/x --log-file=/x --out-format=x --iconv=x --modify-window=5 -@5 --checksum-seed=1
    --timeout=0 -M--inplace --remote-option=--inplace --fake-super --copy-as=root --stop-after=1 --mkpath --no-W
    --unknown
"""


@pytest.mark.parametrize("text", GOOD)
def test_what_may_be_given(text: str) -> None:
    assert read_options(shlex.split(text)) == GOOD[text]


@pytest.mark.parametrize("word", BREAKING.split())
def test_what_would_break_a_promise_or_is_unknown_is_refused(word: str) -> None:
    for words in ([word], ["-a", word]):
        with pytest.raises(ValueError, match="cannot be given"):
            read_options(words)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("--bwlimit", "--bwlimit lacks its value"),
        ("-e", "-e lacks its value"),
        ("-e rsh", "only ssh is possible"),
        ("-e ''", "only ssh is possible"),
        ("src/ host:dst/", "is no option"),
        ("-", "is no option"),
        ("--", "cannot be given"),
    ],
)
def test_what_is_wrong_is_said(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        read_options(shlex.split(text))


def test_a_command_begins_with_its_program() -> None:
    assert read_command(["/usr/bin/rsync", "-z"]) == Words(program="/usr/bin/rsync", staging=("-z",))
    with pytest.raises(ValueError, match="is empty"):
        read_command([])


@pytest.mark.parametrize(
    ("messages", "code", "reason"),
    [
        ((), 11, "rsync ended with code 11: it could not read or write a file; is the target full?"),
        ((), 99, "rsync ended with code 99"),
        (("rsync error: error in file IO (code 11) at receiver.c(1) [receiver=3.2.7]",), 11, "error in file IO"),
        (("rsync: [receiver] mkstemp failed: No space left on device (28)", "rsync error: x"), 11, "No space left"),
    ],
)
def test_a_run_says_why_it_ended(messages: tuple[str, ...], code: int, reason: str) -> None:
    assert reason in Result(code, {}, messages).reason

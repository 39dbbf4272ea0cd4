"""The configuration: what is loaded, what is found to be wrong and on which line, and the generated pages."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import pickle
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError

from mistamover import config, describe, ini, options
from mistamover.config import load
from mistamover.errors import ConfigError, Exit
from mistamover.options import SECTIONS, Settings
from mistamover.unit import OWN_PLACES
from mistamover.values import ENTRY_POINTS, OWN_FILES, OWN_LOGS, Size

ROOT = Path(config.__file__).parent.parent
GOOD = """\
[data_stream]
directory = /spool/images
[outgoing]
transfer_protocol = local
target_dir = /target/images
"""
SFTP = """\
[data_stream]
directory = /spool/images
[outgoing]
transfer_protocol = sftp
target_host = archive.example.org
target_dir = /target/images
[sftp]
"""
STRANGER = 65534
SECRET = "xyzzy-plugh"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file that only its owner may read."""

    def _write(text: str | bytes, name: str = "ds_images.ini", mode: int = 0o600) -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    return _write


def found(stream: Path, global_file: Path | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
    """The findings of a configuration, with the names of the files without their directory."""
    with pytest.raises(ConfigError) as caught:
        load(stream, global_file, environ or {})
    assert caught.value.exit is Exit.USAGE
    return [line.replace(f"{stream.parent}/", "") for line in caught.value.findings]


# What is loaded


def test_a_short_file_is_enough(write: Write) -> None:
    path = write(GOOD)
    settings = load(path, environ={})
    assert settings.path == path
    assert settings.name == "images"
    assert settings.data_stream.directory == Path("/spool/images")
    assert settings.outgoing.target_dir == Path("/target/images")
    assert settings.outgoing.transfer_mode == "move"
    assert settings.outgoing.verify == "auto"
    assert settings.data_stream.ignore == ("*.tmp", "*.part", "*.partial", "*.filepart", "*.swp", "*~")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("[data_stream] settle_time = 0.5", 0.5),
        ("[data_stream] settle_time = 0", 0.0),
        ("[data_stream] settle_time = 5s", 5.0),
        ("[data_stream] settle_time = 2m", 120.0),
        ("[data_stream] settle_time = 1.5 h", 5400.0),
        ("[data_stream] settle_time: 1d", 86400.0),
        ("[data_stream] SETTLE_Time = 7", 7.0),
        ("[data_stream] ignore = *.a, *.b\n  [c-d]*\n  *.e,", ("*.a", "*.b", "[c-d]*", "*.e")),
        ("[data_stream] ignore = ,", ()),
        ("[data_stream] order = smallest", "smallest"),
        ("[data_stream] name = 7-of_9.x", "7-of_9.x"),
        ("[outgoing] lanes = 32", 32),
        ("[outgoing] lanes = 1", 1),
        ("[outgoing] create_target = YES", True),
        ("[outgoing] create_target = on", True),
        ("[outgoing] create_target = 1", True),
        ("[outgoing] create_target = true", True),
        ("[outgoing] preserve_mode = no", False),
        ("[outgoing] preserve_mode = Off", False),
        ("[outgoing] preserve_mode = 0", False),
        ("[outgoing] preserve_mode = false", False),
        ("[outgoing] checksum = blake2b", "blake2b"),
        ("[outgoing] target_host = archive-1.example.org", "archive-1.example.org"),
        ("[outgoing] target_host = 192.0.2.1", "192.0.2.1"),
        ("[outgoing] target_host = 2001:db8::1", "2001:db8::1"),
        ("[outgoing] target_host = [fe80::1%eth0]", "fe80::1%eth0"),
        ("[incoming] stop_file = 50%off ; #1 $HOME ${HOME} %(x)s $(date)", None),
        ("[logging] log_level = Warning", "WARNING"),
        ("[sftp] port = 65535", 65535),
        ("[sftp] username = DOMAIN\\mover", "DOMAIN\\mover"),
        ("[global] state_dir = /état/%d ; 1", Path("/état/%d ; 1")),
    ],
)
def test_texts_become_values(write: Write, line: str, value: object) -> None:
    section, _, rest = line.partition("] ")
    section = section[1:]
    option, text = (part.strip() for part in rest.replace(":", "=", "=" not in rest).split("=", 1))
    texts = {
        "data_stream": "directory = /spool/images\n",
        "outgoing": "transfer_protocol = local\ntarget_dir = /target/images\n",
    }
    texts[section] = texts.get(section, "") + rest + "\n"
    settings = load(write("".join(f"[{name}]\n{body}" for name, body in texts.items())), environ={})
    got = getattr(getattr(settings, f"{section}_" if section == "global" else section), option.lower())
    assert got == (text if value is None else value)
    assert type(got) is type(text if value is None else value)


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("10", 10), ("1.5K", 1536), ("2 KiB", 2048), ("3m", 3 << 20), ("1TB", 1 << 40)]
)
def test_sizes(text: str, value: int) -> None:
    assert TypeAdapter(Size).validate_python(text) == value


def test_what_is_no_size() -> None:
    for text in ("", "K", "1X", "-1", "1KK", "٣"):
        with pytest.raises(ValidationError):
            TypeAdapter(Size).validate_python(text)


def test_comments_are_whole_lines(write: Write) -> None:
    text = GOOD.replace("[outgoing]\n", "; one\n  # two\n[outgoing]\n\n# three\n")
    assert load(write(text), environ={}).name == "images"


def test_blank_lines_and_indents_hide_no_option(write: Write) -> None:
    text = GOOD.replace("target_dir", "\n  target_dir") + "\n    lanes = 2\n"
    assert load(write(text), environ={}).outgoing.lanes == 2


def test_a_byte_order_mark_and_dos_lines_are_accepted(write: Write) -> None:
    text = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    assert load(write(text), environ={}).outgoing.target_dir == Path("/target/images")


@pytest.mark.parametrize(
    ("file", "name"),
    [("ds_a.ini", "a"), ("a.ini", "a"), ("ds_ds_a.ini", "ds_a"), ("a.b.conf", "a.b"), ("myds_a", "myds_a")],
)
def test_a_stream_is_named_after_its_file(write: Write, file: str, name: str) -> None:
    assert load(write(GOOD, file), environ={}).name == name


def test_the_stream_overrides_the_global_file_option_by_option(write: Write) -> None:
    shared = write("[outgoing]\nlanes = 2\nretry_count = 9\n[data_stream]\nsettle_time = 1", "global.ini")
    settings = load(write(GOOD + "lanes = 8\n"), shared, {})
    assert settings.outgoing.lanes == 8
    assert settings.outgoing.retry_count == 9
    assert settings.data_stream.settle_time == 1


def test_the_environment_overrides_both(write: Write) -> None:
    shared = write("[outgoing]\nlanes = 2\n", "global.ini")
    environ = {"CONFIG__outgoing__LANES": "3", "CONFIG__outgoing__verify": "size", "CONFIG_x": "y"}
    settings = load(write(GOOD + "lanes = 8\n"), shared, environ)
    assert settings.outgoing.lanes == 3
    assert settings.outgoing.verify == "size"


def test_the_environment_of_the_process_is_the_default(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIG__outgoing__lanes", "5")
    assert load(write(GOOD)).outgoing.lanes == 5


def test_spools_lie_in_base_data_dir(write: Write) -> None:
    shared = write("[global]\nbase_data_dir = /data", "global.ini")
    text = GOOD.replace("directory = /spool/images\n", "")
    assert load(write(text), shared, {}).data_stream.directory == Path("/data/images")
    named = text.replace("[data_stream]\n", "[data_stream]\nname = other\n")
    assert load(write(named), shared, {}).data_stream.directory == Path("/data/other")


def test_where_the_state_is_kept(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(GOOD)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load(path, environ={"XDG_STATE_HOME": "/x"}).global_.state_dir == Path("/var/lib/mistamover")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    home = {"HOME": "/home/me"}
    assert load(path, environ=home).global_.state_dir == Path("/home/me/.local/state/mistamover")
    assert load(path, environ=home | {"XDG_STATE_HOME": "/x"}).global_.state_dir == Path("/x/mistamover")
    # the XDG specification: relative paths are to be ignored
    relative = load(path, environ=home | {"XDG_STATE_HOME": "x"}).global_.state_dir
    assert relative == Path("/home/me/.local/state/mistamover")


def test_settings_are_frozen_and_can_go_to_another_process(write: Write) -> None:
    settings = load(write(GOOD), environ={})
    with pytest.raises(ValidationError):
        settings.outgoing.lanes = 2
    with pytest.raises(ValidationError):
        settings.path = Path("/")
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_a_transport_of_another_package_is_accepted(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("local", "pigeon")
    known = importlib.metadata.EntryPoints([importlib.metadata.EntryPoint("pigeon", "aviary:Pigeon", ENTRY_POINTS)])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: known.select(group=group))
    assert load(write(text), environ={}).outgoing.transfer_protocol == "pigeon"
    lines = found(write(text.replace("pigeon", "dove")))
    assert lines == [
        "ds_images.ini:4: [outgoing] transfer_protocol: 'dove' is no transport here; "
        "give one of local, sftp, rsync_ssh, rsync_native, ftp, ftps, none, pigeon"
    ]


# Substitution


def test_references_are_replaced_by_effective_values(write: Write) -> None:
    shared = write(
        "[global]\nbase_data_dir = /data\n[outgoing]\ntarget_dir = /t/$(data_stream:name)/$(data_stream:ORDER)\n"
        "[incoming]\nstop_file = $(outgoing:stop_file).$(outgoing:lanes)\n",
        "global.ini",
    )
    stream = write("[data_stream]\nname = s\norder = newest\n[outgoing]\ntransfer_protocol = local\n")
    settings = load(stream, shared, {"CONFIG__outgoing__lanes": "7"})
    assert settings.outgoing.target_dir == Path("/t/s/newest")
    assert settings.incoming.stop_file == ".stop.7"


def test_defaults_are_substituted_as_a_person_writes_them(write: Write) -> None:
    text = "[incoming]\nstop_file = $(outgoing:retry_interval) $(outgoing:create_target) $(data_stream:ignore)"
    stop_file = load(write(GOOD + text), environ={}).incoming.stop_file
    assert stop_file == "60 no *.tmp *.part *.partial *.filepart *.swp *~"


@pytest.mark.parametrize(
    ("value", "finding"),
    [
        ("$(x:y)", "$(x:y) is no option; name one that there is"),
        ("a$(outgoing:lans)", "$(outgoing:lans) is no option; did you mean $(outgoing:lanes)?"),
        ("$(outgoing:order)", "$(outgoing:order) is no option; did you mean $(data_stream:order)?"),
        ("$()", "$() names nothing; write $(section:option)"),
        ("$(outgoing:)", "$(outgoing:) names nothing; write $(section:option)"),
        ("$( :lanes)", "$( :lanes) names nothing; write $(section:option)"),
        ("$(sftp:port)", "$(sftp:port) has no value; set it"),
        ("$(sftp:password)", "$(sftp:password) is a secret; it may not be copied into another option"),
        (
            "$(incoming:stop_file)",
            "the substitution loops ($(incoming:stop_file) -> $(incoming:stop_file)); "
            "give one of them a plain value",
        ),
    ],
)
def test_references_to_nothing(write: Write, value: str, finding: str) -> None:
    path = write(f"{GOOD}[incoming]\nstop_file = {value}\n[sftp]\npassword = {SECRET}\n")
    assert found(path) == [f"ds_images.ini:7: [incoming] stop_file: {finding}"]


def test_a_loop_is_found_once_and_names_its_chain(write: Write) -> None:
    text = GOOD.replace("directory = /spool/images", "directory = $(outgoing:target_dir)").replace(
        "/target/images", "/t/$(incoming:stop_file)"
    )
    assert found(write(text + "[incoming]\nstop_file = $(outgoing:target_dir)\n")) == [
        "ds_images.ini:7: [incoming] stop_file: the substitution loops ($(outgoing:target_dir) -> "
        "$(incoming:stop_file) -> $(outgoing:target_dir)); give one of them a plain value"
    ]


def test_substitution_cannot_grow_without_bound(write: Write) -> None:
    options = ("key_file", "known_hosts", "username", "password_file", "connector", "port")
    lines = [f"{one} = {f'$(sftp:{after})' * 400}\n" for one, after in itertools.pairwise(options)]
    text = f"{SFTP}{''.join(lines)}port = /0123456789\n"
    assert [line for line in found(write(text)) if "port" not in line and "connector" not in line] == [
        "ds_images.ini:11: [sftp] password_file: is longer than 64 KiB; give a shorter value"
    ]


def test_a_value_may_have_64_kibibytes(write: Write) -> None:
    text = GOOD.replace("/target/images", "/" + "x" * (ini.LONGEST_VALUE - 1))
    assert len(str(load(write(text), environ={}).outgoing.target_dir)) == ini.LONGEST_VALUE
    assert found(write(text + "[incoming]\nstop_file = $(outgoing:target_dir)x\n")) == [
        "ds_images.ini:7: [incoming] stop_file: is longer than 64 KiB; give a shorter value"
    ]


def test_secrets_are_taken_as_they_stand(write: Write) -> None:
    password = "a$(outgoing:lanes) $() %(x)s ; # 'b"
    settings = load(write(f"{SFTP}password = {password}\n"), environ={})
    assert settings.sftp.password is not None
    assert settings.sftp.password.get_secret_value() == password


def test_email_has_the_options_of_the_original_and_a_stream_may_tell_others(tmp_path: Path, write: Write) -> None:
    global_file = tmp_path / "global.ini"
    global_file.write_text(
        "[email]\nfrom = mover@example.org\nrecipient = a@example.org b@example.org,root\nsubject = MOVER\n"
        "smarthost = mail.example.org\nthreshold = error\n"
    )
    email = load(write(GOOD + "[email]\nrecipient = radar@example.org\n"), global_file, {}).email
    assert (email.from_, email.recipient, email.subject) == ("mover@example.org", ("radar@example.org",), "MOVER")
    assert (email.smarthost, email.level) == ("mail.example.org", 40)
    assert load(write(GOOD), global_file, {}).email.recipient == ("a@example.org", "b@example.org", "root")
    assert not load(write(GOOD), None, {}).email.tells_somebody


@pytest.mark.parametrize(
    ("text", "days", "hours"),
    [
        ("2h", range(7), (0, 1440)),
        ("2h weekdays", range(5), (0, 1440)),
        ("2h weekends 00:00-24:00", (5, 6), (0, 1440)),
        ("7200 fri-mon,wed 22:30-04:00", (0, 2, 4, 5, 6), (1350, 240)),
        ("2h 6:00-20:00", range(7), (360, 1200)),
    ],
)
def test_a_timetable(write: Write, text: str, days: Sequence[int], hours: tuple[int, int]) -> None:
    quiet = load(write(f"{GOOD}[email]\nalert_quiet = {text}\n"), None, {}).email.alert_quiet
    assert quiet == (7200, tuple(days), *hours)


# What is wrong


def _stream(*lines: str) -> str:
    return GOOD + "".join(f"{line}\n" for line in lines)


FINDINGS = {
    # one option: its line is 6
    _stream("lans = 4"): ["6: [outgoing] lans: unknown option; did you mean lanes?"],
    _stream("username = me"): [
        "6: [outgoing] username: unknown option of this section; "
        "did you mean [sftp], [rsync_ssh], [rsync_native], [ftp], [ftps] or [email] username?"
    ],
    _stream("user_name = me"): ["6: [outgoing] user_name: unknown option; did you mean [sftp] username?"],
    _stream("[incoming]", "qqq = 1"): [
        f"7: [incoming] qqq: unknown option; this section has {', '.join(SECTIONS['incoming'].model_fields)}"
    ],
    _stream("receipt_file_pol_count = 100"): [
        "6: [outgoing] receipt_file_pol_count: unknown option; did you mean receipt_file_poll_count?"
    ],
    GOOD.replace("local", "none"): [
        "1: [incoming] require_arrival_monitor: a stream with transfer_protocol = none only receives; set it to yes"
    ],
    _stream("[incoming]", "require_arrival_monitor = yes"): [
        "6: [incoming] directory: missing, but compulsory with require_arrival_monitor; give an absolute path"
    ],
    _stream("[incoming]", "require_arrival_monitor = yes", "directory = /spool/images/new"): [
        "8: [incoming] directory: lies in the spool '/spool/images'; give a directory outside of it"
    ],
    _stream("[incoming]", "require_arrival_monitor = yes", "directory = /target"): [
        "8: [incoming] directory: is where units are sent, '/target/images'; give another directory"
    ],
    _stream("control_file_extension = x", "receipt_file_extension = x"): [
        "7: [outgoing] receipt_file_extension: is that of other files of the handshake too; give each its own"
    ],
    _stream("checksum = md5", "receipt_checksum = sha256"): [
        "7: [outgoing] receipt_checksum: sha256 needs [outgoing] checksum = sha256 as well"
    ],
    _stream("[gopher]", "cmd = rsync"): [
        "6: [gopher]: unknown section; there are global, data_stream, incoming, outgoing, sftp, rsync_ssh, "
        "rsync_native, ftp, ftps, logging, email, disk_space_monitor"
    ],
    _stream("[email]", "recipient = a@b, <c@d>"): [
        "7: [email] recipient: '<c@d>' is no address of mail; give NAME@DOMAIN, or the name of a user here"
    ],
    _stream("[email]", "from = a b"): [
        "7: [email] from: 'a b' is no address of mail; give NAME@DOMAIN, or the name of a user here"
    ],
    _stream("[email]", "alert_quiet = 2h workdays"): [
        "7: [email] alert_quiet: '2h workdays' cannot be used; give a time, then days and hours if not all, such "
        "as 2h weekdays 06:00-20:00"
    ],
    _stream("[email]", "alert_quiet = 0"): [
        "7: [email] alert_quiet: nothing ever arrives within 0 seconds; give a longer time"
    ],
    _stream("[email]", "threshold = LOUD"): [
        "7: [email] threshold: 'LOUD' cannot be used; give one of DEBUG, INFO, WARNING, ERROR, CRITICAL"
    ],
    _stream("[email]", "username = me"): [
        "6: [email] password_file: missing, but username is set; give both or none"
    ],
    _stream("[email]", "password_file = /no/such"): [
        "6: [email] username: missing, but password_file is set; give both or none",
        "7: [email] password_file: '/no/such' cannot be read (no such file or directory); "
        "give the path of a readable file",
    ],
    _stream("[email]", "ca_file = /no/such"): [
        "7: [email] ca_file: there is no file '/no/such'; give one that exists"
    ],
    _stream("[email]", "alert_command = 'x"): [
        '7: [email] alert_command: "\'x" cannot be split into words: No closing quotation'
    ],
    _stream("", "[Sftp]", "port = 1"): ["7: [Sftp]: unknown section; did you mean [sftp]?"],
    _stream("[DEFAULT]", "lanes = 1"): [
        "6: [DEFAULT]: unknown section; there are global, data_stream, incoming, outgoing, sftp, rsync_ssh, "
        "rsync_native, ftp, ftps, logging, email, disk_space_monitor"
    ],
    _stream("lanes = 4", "lanes = 5"): ["7: [outgoing] lanes: given twice, first in line 6; keep one of them"],
    _stream("[outgoing]"): ["6: [outgoing]: section given twice, first in line 3; put both together"],
    _stream("[sftp] port = 22"): ["6: [sftp]: text behind the section's name; begin a new line"],
    _stream("lanes"): ["6: is no option; write option = value, [section] or # comment"],
    _stream("lanes", "x y"): [
        "6: is no option; write option = value, [section] or # comment",
        "7: is no option; write option = value, [section] or # comment",
    ],
    _stream("[]"): ["6: is no option; write option = value, [section] or # comment"],
    _stream("lanes ="): ["6: [outgoing] lanes: has no value; give one or remove it"],
    "lanes = 4\n" + GOOD: ["1: stands above the first section; put a [section] line above it"],
    # types
    _stream("lanes = four"): ["6: [outgoing] lanes: 'four' cannot be used; give a whole number, from 1 to 32"],
    _stream("lanes = 0"): ["6: [outgoing] lanes: '0' cannot be used; give a whole number, from 1 to 32"],
    _stream("lanes = 33"): ["6: [outgoing] lanes: '33' cannot be used; give a whole number, from 1 to 32"],
    _stream("lanes = -1"): ["6: [outgoing] lanes: '-1' cannot be used; give a whole number, from 1 to 32"],
    _stream("lanes = 4 ; four"): [
        "6: [outgoing] lanes: '4 ; four' cannot be used; give a whole number, from 1 to 32 "
        "(comments go on lines of their own)"
    ],
    _stream("lanes = ٣"): ["6: [outgoing] lanes: '٣' cannot be used; give a whole number, from 1 to 32"],
    _stream(f"lanes = {'9' * 5000}"): [
        f"6: [outgoing] lanes: '{'9' * 237}...' cannot be used; give a whole number, from 1 to 32"
    ],
    _stream("retry_interval = 5 minutes"): [
        "6: [outgoing] retry_interval: '5 minutes' cannot be used; "
        "give a time in seconds or with a unit (30s, 2m, 1h, 1d)"
    ],
    _stream("retry_interval = 3651d"): ["6: [outgoing] retry_interval: '3651d' is too long; give at most 3650d"],
    _stream("stop_file_poll_interval = 0"): [
        "6: [outgoing] stop_file_poll_interval: '0' cannot be used; "
        "give a time in seconds or with a unit (30s, 2m, 1h, 1d), above 0"
    ],
    _stream("create_target = maybe"): ["6: [outgoing] create_target: 'maybe' cannot be used; give yes or no"],
    _stream("transfer_mode = copy"): [
        "6: [outgoing] transfer_mode: 'copy' cannot be used; give one of move, mirror"
    ],
    _stream("checksum = sha1"): [
        "6: [outgoing] checksum: 'sha1' cannot be used; give one of sha256, sha512, md5, blake2b, xxh128"
    ],
    _stream("stop_file = a/b"): ["6: [outgoing] stop_file: 'a/b' cannot be used; give a file name without /"],
    _stream("stop_file = .."): ["6: [outgoing] stop_file: '..' cannot be used; give a file name without /"],
    _stream("[sftp]", "port = 0"): ["7: [sftp] port: '0' cannot be used; give a port number from 1 to 65535"],
    _stream("[sftp]", "username = -oProxyCommand=x"): [
        "7: [sftp] username: '-oProxyCommand=x' cannot be used; give the name of a user"
    ],
    _stream("[sftp]", "key_file = id"): [
        "7: [sftp] key_file: 'id' is relative; give an absolute path, beginning with /"
    ],
    _stream("[logging]", "log_level = loud"): [
        "7: [logging] log_level: 'loud' cannot be used; give one of DEBUG, INFO, WARNING, ERROR, CRITICAL"
    ],
    _stream("[logging]", "base_log_dir = /no/such"): [
        "7: [logging] base_log_dir: '/no/such' is no directory; make it or give another"
    ],
    GOOD.replace("local", "sftpx"): [
        "4: [outgoing] transfer_protocol: 'sftpx' is no transport here; "
        "give one of local, sftp, rsync_ssh, rsync_native, ftp, ftps, none"
    ],
    GOOD.replace("/target", "target"): [
        "5: [outgoing] target_dir: 'target/images' is relative; give an absolute path, beginning with /"
    ],
    GOOD.replace("/spool", "~"): [
        "2: [data_stream] directory: '~/images' is relative; give an absolute path, beginning with /"
    ],
    GOOD + "  lanes = 4": [
        "5: [outgoing] target_dir: holds a line break; "
        "give the path in one line, and begin other options without indent"
    ],
    GOOD.replace("[outgoing]", "ignore = *.tmp data/*\n[outgoing]"): [
        "3: [data_stream] ignore: '*.tmp data/*' holds a /; give patterns of names, not of paths"
    ],
    GOOD.replace("[outgoing]", "name = .x\n[outgoing]"): [
        "3: [data_stream] name: '.x' cannot be used; "
        "give at most 64 letters, digits and . _ -, not beginning with a dot"
    ],
    GOOD.replace("[outgoing]", "name = mistamover\n[outgoing]"): [
        "3: [data_stream] name: 'mistamover' is what mistamover calls a place of its own; give another name"
    ],
    # hosts
    _stream("target_host = -oProxyCommand=x"): [
        "6: [outgoing] target_host: '-oProxyCommand=x' cannot be used; give the name or the address of a host"
    ],
    _stream("target_host = a b"): [
        "6: [outgoing] target_host: 'a b' cannot be used; give the name or the address of a host"
    ],
    _stream("target_host = a/b"): [
        "6: [outgoing] target_host: 'a/b' cannot be used; give the name or the address of a host"
    ],
    _stream("target_host = $HOST"): [
        "6: [outgoing] target_host: '$HOST' cannot be used; give the name or the address of a host"
    ],
    _stream(f"target_host = me:{SECRET}@host"): [
        "6: [outgoing] target_host: holds a user; give the host alone and put the user in the protocol's section"
    ],
    _stream("target_host = host:22"): [
        "6: [outgoing] target_host: 'host:22' is no IPv6 address; "
        "give the host alone and put a port in the protocol's section"
    ],
    # compulsory options
    "": [
        "1: [data_stream] directory: missing, but compulsory; give an absolute path",
        "1: [outgoing] transfer_protocol: missing, but compulsory; give the name of a transport",
        "1: [outgoing] target_dir: missing, but compulsory; give an absolute path",
    ],
    "\n[data_stream]\n\n[outgoing]\ntransfer_protocol=sftp": [
        "2: [data_stream] directory: missing, but compulsory; give an absolute path",
        "4: [outgoing] target_dir: missing, but compulsory; give an absolute path",
        "4: [outgoing] target_host: missing, but compulsory for sftp; give the name or the address of a host",
    ],
    # source and target
    GOOD.replace("/target", "/spool"): [
        "5: [outgoing] target_dir: is the spool '/spool/images'; give a directory outside of it"
    ],
    GOOD.replace("/target", "/spool/images/x/.."): [
        "5: [outgoing] target_dir: lies in the spool '/spool/images'; give a directory outside of it"
    ],
    GOOD.replace("/target/images", "//spool/./"): [
        "5: [outgoing] target_dir: holds the spool '/spool/images'; give a directory that does not"
    ],
    GOOD + "[global]\nstate_dir = /spool/images/state": [
        "7: [global] state_dir: lies in the spool '/spool/images'; give a directory outside of it"
    ],
    # an error in a base is no error of what stands on it
    GOOD.replace("directory = /spool/images\n", "") + "[global]\nbase_data_dir = data": [
        "6: [global] base_data_dir: 'data' is relative; give an absolute path, beginning with /"
    ],
    # log-ins
    SFTP + "connector = openssh\npassword = x": [
        "8: [sftp] connector: openssh takes no password; give a key_file, or connector = auto or paramiko"
    ],
    SFTP + "key_file = /no/such\nknown_hosts = /no/hosts": [
        "8: [sftp] key_file: there is no file '/no/such'; give one that exists",
        "9: [sftp] known_hosts: there is no file '/no/hosts'; give one that exists",
    ],
    SFTP + "password_file = /no/such": [
        "8: [sftp] password_file: '/no/such' cannot be read (no such file or directory); "
        "give the path of a readable file"
    ],
    # all at once, in the order of the lines
    GOOD.replace("/spool", "spool") + "lanes = x\n[incomin]\n[sftp]\nport = x": [
        "2: [data_stream] directory: 'spool/images' is relative; give an absolute path, beginning with /",
        "6: [outgoing] lanes: 'x' cannot be used; give a whole number, from 1 to 32",
        "7: [incomin]: unknown section; did you mean [incoming]?",
        "9: [sftp] port: 'x' cannot be used; give a port number from 1 to 65535",
    ],
}


@pytest.mark.parametrize("text", FINDINGS, ids=lambda text: text.removeprefix(GOOD)[:40])
def test_findings(write: Write, text: str) -> None:
    assert found(write(text)) == [f"ds_images.ini:{line}" for line in FINDINGS[text]]


def test_checks_go_on_where_other_options_of_the_section_are_wrong(write: Write) -> None:
    lines = found(write(GOOD.replace("/target", "/spool") + "lanes = x\n"))
    assert [line.split()[2] for line in lines] == ["target_dir:", "lanes:"]


def test_findings_of_both_files_and_the_environment_come_together(write: Write) -> None:
    shared = write("[global]\nstate_dir = state\n[loging]\n[outgoing]\nlanes = x\nverify = y\n", "global.ini")
    environ = {
        "CONFIG__outgoing__retry_count": "z",
        "CONFIG__outgoing__lans": "1",
        "CONFIG__outgo__lanes": "1",
        "CONFIG__outgoing": "1",
    }
    assert found(write(GOOD + "lanes = 2\nx = 1\n"), shared, environ) == [
        "ds_images.ini:7: [outgoing] x: unknown option; this section has "
        + ", ".join(options.Outgoing.model_fields),
        "global.ini:2: [global] state_dir: 'state' is relative; give an absolute path, beginning with /",
        "global.ini:3: [loging]: unknown section; did you mean [logging]?",
        "global.ini:6: [outgoing] verify: 'y' cannot be used; give one of auto, digest, readback, size, none",
        "CONFIG__outgo__lanes: [outgo] lanes: unknown section; did you mean [outgoing]?",
        "CONFIG__outgoing: [outgoing]: unknown option; this section has "
        + ", ".join(options.Outgoing.model_fields),
        "CONFIG__outgoing__lans: [outgoing] lans: unknown option; did you mean lanes?",
        "CONFIG__outgoing__retry_count: [outgoing] retry_count: 'z' cannot be used; give a whole number",
    ]


def test_variables_that_differ_in_case_only(write: Write) -> None:
    environ = {"CONFIG__outgoing__LANES": "1", "CONFIG__outgoing__lanes": "2"}
    assert found(write(GOOD), environ=environ) == [
        "CONFIG__outgoing__lanes: [outgoing] lanes: given twice, by CONFIG__outgoing__LANES as well; "
        "keep one of them"
    ]


def test_a_file_whose_name_cannot_name_a_stream(write: Write) -> None:
    assert found(write(GOOD, "two words.ini")) == [
        "two words.ini:1: [data_stream] name: 'two words' cannot be used; "
        "give at most 64 letters, digits and . _ -, not beginning with a dot"
    ]


def test_a_finding_is_one_line_whatever_the_names(write: Write) -> None:
    lines = found(write(f"{GOOD}a\x1bb\u2028c = 1\n[d\x07]", "x\ny.ini"))
    assert [line.splitlines() for line in lines] == [[line] for line in lines]
    assert lines[0].startswith(r"x\ny.ini:1: [data_stream] name: 'x\ny' cannot")
    assert r"[outgoing] a\x1bb\u2028c: unknown option" in lines[1]


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"[data_stream]\nname = \xff\n", "2: byte 21 (0xff) is not UTF-8; save the file as UTF-8"),
        (b"\xef\xbb\xbf[data_stream]\n\xc3", "2: byte 14 (0xc3) is not UTF-8; save the file as UTF-8"),
        (b"[a]\n\n\0\n", "3: holds a NUL byte; give a text file in UTF-8"),
        (b"#" * (1 << 20) + b"\n", "1: is larger than 1 MiB; give a configuration file"),
    ],
)
def test_what_is_no_text_file(write: Write, content: bytes, finding: str) -> None:
    assert found(write(content)) == [f"ds_images.ini:{finding}"]


def test_a_file_of_just_one_mebibyte_is_read(write: Write) -> None:
    text = GOOD + "#" * ((1 << 20) - len(GOOD))
    assert load(write(text), environ={}).name == "images"


def test_files_that_cannot_be_read(tmp_path: Path, write: Write) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert found(tmp_path / "none.ini") == [
        "none.ini:1: cannot be read (no such file or directory); give the path of a readable file"
    ]
    assert found(tmp_path / "fifo") == ["fifo:1: is not a regular file; give the path of a file"]
    assert found(tmp_path / "fifo" / "x")[0].startswith("x:1: cannot be read (not a directory)")
    assert found(write(GOOD), tmp_path)[0].endswith(
        ":1: cannot be read (is a directory); give the path of a readable file"
    )
    assert "no possible path" in found(Path("a\0b"))[0]


def test_xxh128_needs_its_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(_stream("checksum = xxh128"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "xxhash" else 1 / 0)
    assert found(path) == [
        "ds_images.ini:6: [outgoing] checksum: 'xxh128' needs the Python package xxhash; install it, or give sha256"
    ]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert load(path, environ={}).outgoing.checksum == "xxh128"


# Places


def test_links_do_not_hide_that_source_and_target_overlap(tmp_path: Path, write: Write) -> None:
    (tmp_path / "spool" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("spool/below")
    text = f"[data_stream]\ndirectory={tmp_path}/spool\n[outgoing]\ntransfer_protocol=local\ntarget_dir="
    assert "lies in the spool" in found(write(f"{text}{tmp_path}/link/new/dir"))[0]
    assert "is the spool" in found(write(f"{text}{tmp_path}/link/.."))[0]
    assert load(write(f"{text}{tmp_path}/spool2"), environ={}).outgoing.transfer_protocol == "local"


def test_bind_mounts_do_not_hide_that_source_and_target_overlap(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("spool", "other/spool"):
        (tmp_path / name).mkdir(parents=True)
    stat = os.stat

    def mounted(path: Any, **more: Any) -> os.stat_result:
        return stat(tmp_path / "spool" if path == tmp_path / "other/spool" else path, **more)

    monkeypatch.setattr(os, "stat", mounted)
    text = f"[data_stream]\ndirectory={tmp_path}/spool\n[outgoing]\ntransfer_protocol=local\ntarget_dir="
    assert "is the spool" in found(write(f"{text}{tmp_path}/other/spool"))[0]
    assert "lies in the spool" in found(write(f"{text}{tmp_path}/other/spool/x/y"))[0]


def test_other_hosts_may_use_the_same_path(write: Write) -> None:
    text = SFTP.replace("/target", "/spool")
    assert load(write(text), environ={}).outgoing.target_dir == Path("/spool/images")


def test_a_missing_spool_is_no_matter_of_the_configuration(write: Write) -> None:
    assert not Path("/spool/images").exists()
    load(write(GOOD), environ={})


# Secrets


def test_the_password_file_gives_the_password(tmp_path: Path, write: Write) -> None:
    write(f"{SECRET} \r\nmore\n", "password")
    settings = load(write(f"{SFTP}password_file = {tmp_path}/password"), environ={})
    assert settings.sftp.password == SecretStr(f"{SECRET} ")
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("content", "mode", "finding"),
    [
        ("x\n", 0o640, "group or others may use the file (mode 0640), which holds a secret; chmod 600 {}"),
        ("x\n", 0o602, "group or others may use the file (mode 0602), which holds a secret; chmod 600 {}"),
        ("\nx\n", 0o600, "'{}' has an empty first line; write the password there"),
        ("", 0o600, "'{}' has an empty first line; write the password there"),
        (f"{SECRET}\x1b", 0o600, "'{}' has a control character in its first line; remove it"),
        (b"\xff\xfe", 0o600, "'{}' byte 0 (0xff) is not UTF-8; save the file as UTF-8"),
    ],
)
def test_password_files(write: Write, content: str | bytes, mode: int, finding: str) -> None:
    secret = write(content, "password", mode)
    lines = found(write(f"{SFTP}password_file = {secret}"))
    assert lines == [f"ds_images.ini:8: [sftp] password_file: {finding.format('password')}"] or lines == [
        f"ds_images.ini:8: [sftp] password_file: {finding.format(secret)}"
    ]


def test_two_passwords_and_an_ssh_that_takes_none(write: Write) -> None:
    secret = write("x", "password")
    text = f"{SFTP}password = {SECRET}\nconnector = openssh\npassword_file = {secret}"
    assert found(write(text)) == [
        "ds_images.ini:9: [sftp] connector: openssh takes no password; "
        "give a key_file, or connector = auto or paramiko",
        "ds_images.ini:10: [sftp] password_file: password is set as well; give one of them",
    ]


def test_keys_are_private(tmp_path: Path, write: Write) -> None:
    key = write("key", "my key", 0o644)
    assert found(write(f"{SFTP}key_file = {key}")) == [
        "ds_images.ini:8: [sftp] key_file: group or others may use the file (mode 0644), "
        "which holds a secret; chmod 600 'my key'"
    ]
    key.chmod(0o400)
    assert load(write(f"{SFTP}key_file = {key}"), environ={}).sftp.key_file == key


def test_files_from_home(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("key", "hosts", "password"):
        write(SECRET, name)
    text = f"{SFTP}key_file = ~/key\nknown_hosts = ~/hosts\npassword_file = ~/password"
    sftp = load(write(text), environ={}).sftp
    assert (sftp.key_file, sftp.known_hosts) == (tmp_path / "key", tmp_path / "hosts")
    assert sftp.password == SecretStr(SECRET)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_files_with_secrets_are_closed_to_others(write: Write, mode: int) -> None:
    shared = write(f"[sftp]\npassword = {SECRET}", "global.ini", mode)
    assert found(write(GOOD), shared) == [
        f"global.ini:2: [sftp] password: group or others may use the file (mode {mode:04o}), "
        "which holds a secret; chmod 600 global.ini"
    ]
    load(write(GOOD), write("[sftp]\nport = 1", "global.ini", mode), {})


@pytest.mark.parametrize("mode", [0o602, 0o646, 0o666])
def test_files_that_others_may_write_are_refused(write: Write, mode: int) -> None:
    """They name commands."""
    shared = write("[sftp]\nport = 1", "global.ini", mode)
    wrong = f"others may write the file (mode {mode:04o}), which names commands; chmod go-w"
    assert found(write(GOOD), shared) == [f"global.ini:1: {wrong} global.ini"]
    assert found(write(GOOD, mode=mode)) == [f"ds_images.ini:1: {wrong} ds_images.ini"]
    load(write(GOOD, mode=mode), environ={}, only_record=True)
    shared.chmod(0o644)
    load(write(GOOD), shared, {})
    with pytest.raises(ConfigError, match="others may write"):
        config.load_service(write("", "global.ini", mode), {})
    config.load_service(write("", "global.ini", mode), {}, only_place=True)


@pytest.mark.needs("root")
def test_whose_files_are_believed(write: Write) -> None:
    """A group of our own may write them, as with a umask of 002; and root does what root's files say."""
    stream = write(GOOD, mode=0o664)
    load(stream, environ={})
    os.chown(stream, 0, STRANGER)
    assert found(stream) == [
        "ds_images.ini:1: others may write the file (mode 0664), which names commands; chmod go-w ds_images.ini"
    ]
    stream.chmod(0o644)
    load(stream, environ={})
    os.chown(stream, STRANGER, STRANGER)
    assert found(stream) == [
        f"ds_images.ini:1: user {STRANGER} owns the file, and root would do what it says; chown root ds_images.ini"
    ]


def test_the_log_in_of_a_stream_that_needs_none_is_not_looked_at(write: Write) -> None:
    text = f"{GOOD}[sftp]\nkey_file = /no/such\npassword_file = /no/such\npassword = x\nconnector = openssh"
    assert load(write(text), environ={}).sftp.key_file == Path("/no/such")


def test_secrets_appear_nowhere(write: Write) -> None:
    wrong = f"{SFTP}password = {SECRET}\n  {SECRET}\npasswort = {SECRET}\n{SECRET}\n[{SECRET}"
    environ = {"CONFIG__sftp__passwd": SECRET, "CONFIG__sftp__port": "x"}
    with pytest.raises(ConfigError) as caught:
        load(write(wrong, mode=0o644), environ=environ)
    assert len(caught.value.findings) == 7
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error) + repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    settings = load(write(f"{SFTP}password = {SECRET}"), environ={})
    assert settings.sftp.password == SecretStr(SECRET)
    assert SECRET not in repr(settings) + str(settings) + repr(settings.sftp) + settings.model_dump_json()


def test_a_password_from_the_environment(write: Write) -> None:
    settings = load(write(SFTP, mode=0o644), environ={"CONFIG__sftp__PASSWORD": SECRET})
    assert settings.sftp.password == SecretStr(SECRET)


def test_a_password_that_is_no_text_is_not_quoted(write: Write) -> None:
    assert found(write(SFTP), environ={"CONFIG__sftp__password": f"{SECRET}\udcff"}) == [
        "CONFIG__sftp__password: [sftp] password: the value cannot be used; give one line of UTF-8 text"
    ]
    assert found(write(f"{SFTP}password = {SECRET}\n  {SECRET}")) == [
        "ds_images.ini:8: [sftp] password: the value cannot be used; give one line of UTF-8 text"
    ]


def test_errors_of_the_models_quote_nothing() -> None:
    with pytest.raises(ValidationError) as caught:
        options.Sftp.model_validate({"port": SECRET, "password": f"{SECRET}\n"})
    assert SECRET not in str(caught.value)


# The global file


def test_a_global_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.ini:1: cannot be read \(no such file"):
        config.find_global(tmp_path / "none.ini")


def test_which_global_file_is_taken(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "SYSTEM_GLOBAL", tmp_path / "none.ini")
    assert config.find_global(None) == ROOT / "conf" / "global.ini"
    system = write("", "system.ini")
    monkeypatch.setattr(config, "SYSTEM_GLOBAL", system)
    assert config.find_global(None) == system
    named = write("", "named.ini")
    assert config.find_global(named) == named


def test_an_installed_package_has_no_checkout(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    package = write("", "config.py").parent / "site-packages" / "mistamover"
    (package.parent / "conf").mkdir(parents=True)
    (package.parent / "conf" / "global.ini").write_text("")
    monkeypatch.setattr(config, "__file__", str(package / "config.py"))
    monkeypatch.setattr(config, "SYSTEM_GLOBAL", package / "none.ini")
    assert config.find_global(None) is None


# Any text

NAMES = st.sampled_from([f"{section}:{option}" for section, option in options.OPTIONS])
PIECES = st.one_of(
    st.sampled_from([f"[{section}]\n" for section in options.SECTIONS]),
    st.sampled_from([f"{option} = " for _, option in options.OPTIONS]),
    NAMES.map("$({})".format),
    st.sampled_from(["\n", "\n ", "\n\t", "\r", "=", ":", "[", "]", "#", ";", ",", "/", "$(", ")", "@", "~/"]),
    st.sampled_from(["/spool", "/target", "local", "sftp", "yes", "5", "2m", "sha256", "\u2028", "\x0b", "\x1c"]),
    st.text(max_size=8),
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text()), st.lists(PIECES).map("".join))
@example(" [outgoing]\n lanes = 1", "lanes = 1\n [x")
@example("= 1\n[a]\n= 2\n[a]]\n[[b]\n", ":")
def test_any_text_loads_or_is_found_wrong(write: Write, text: str, shared: str) -> None:
    stream = write(text.encode(errors="replace"), "a.ini")
    global_file = write(shared.encode(errors="replace"), "global.ini")
    findings = loaded(stream, global_file)
    assert all(finding.isprintable() for finding in findings)
    assert all(finding.startswith((f"{stream}:", f"{global_file}:")) for finding in findings)


def loaded(stream: Path, global_file: Path) -> tuple[str, ...]:
    try:
        assert isinstance(load(stream, global_file, {}), Settings)
    except ConfigError as error:
        return error.findings
    return ()


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_found_wrong(write: Write, data: bytes) -> None:
    with pytest.raises(ConfigError):
        load(write(GOOD.encode() + b"lans = " + data), environ={})


PLAIN = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40)
WORDS = PLAIN.filter(lambda text: not set(text) & set("/,$"))


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.fixed_dictionaries(
        {
            "lanes": st.integers(1, 32),
            "retry_interval": st.integers(0, 10**6).map(lambda number: number / 64),
            "create_target": st.booleans(),
            "target_dir": PLAIN.filter(lambda text: "$(" not in text).map("/target/{}".format).map(Path),
            "existing": st.sampled_from(["same-or-refuse", "replace"]),
        }
    ),
    name=st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=64),
    ignore=st.lists(WORDS, min_size=1).map(tuple),
    password=PLAIN,
)
def test_plain_values_come_back_as_they_were(
    write: Write, values: dict[str, object], name: str, ignore: tuple[str, ...], password: str
) -> None:
    name = name.lstrip(".") or "x"
    assume(name not in (*OWN_LOGS, *OWN_FILES, *OWN_PLACES))
    lines = [f"{option} = {_text(value)}" for option, value in values.items()]
    text = "[outgoing]\ntransfer_protocol = local\n" + "\n".join(lines)
    text += f"\n[data_stream]\ndirectory = /spool\nname = {name}\nignore = {' '.join(ignore)}\n"
    text += f"[sftp]\npassword = {password}\n"
    settings = load(write(text), environ={})
    assert {option: getattr(settings.outgoing, option) for option in values} == values
    assert settings.name == name
    assert settings.data_stream.ignore == ignore
    assert cast("SecretStr", settings.sftp.password).get_secret_value() == password


def _text(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


# What the options say of themselves


@pytest.mark.parametrize(
    ("file", "page"),
    [
        ("conf/global.ini", describe.sample_global),
        ("conf/stream.ini", describe.sample_stream),
        ("docs/configuration.rst", describe.reference),
    ],
)
def test_generated_files_are_up_to_date(file: str, page: Callable[[], str]) -> None:
    assert (ROOT / file).read_text() == page(), "run make docs"


def test_the_sample_of_a_global_file_sets_nothing(write: Write) -> None:
    path = write(describe.sample_global())
    assert not ini.read(path).entries
    assert load(write(GOOD), path, {}) == load(write(GOOD), None, {})


def test_the_sample_of_a_stream_file_loads(write: Write) -> None:
    settings = load(write(describe.sample_stream()), environ={})
    assert settings.outgoing.target_host == "archive.example.org"
    bare = SFTP.replace("/spool/images", "/data/outgoing").replace("/target/images", "/data/incoming")
    assert settings == load(write(bare), environ={})


def test_the_samples_show_every_option_with_its_default(write: Write) -> None:
    text = describe.sample_global() + describe.sample_stream()
    uncommented = "\n".join(
        line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ") and line[-1:] != "="
    )
    document = ini.read(write(uncommented))
    assert not document.findings
    shown = {entry.key for entry in document.entries}
    assert {key for key, info in options.OPTIONS.items() if info.examples or options.has_default(info)} == shown
    assert load(write(uncommented), environ={}) == load(write(describe.sample_stream()), environ={})


def test_every_option_says_what_it_does() -> None:
    page = describe.reference()
    for (section, option), info in options.OPTIONS.items():
        assert f"\n``{option}``\n" in page, (section, option)
        assert info.description
        assert info.description.endswith(".")
        assert max(map(len, page.splitlines())) < 200


def test_pages_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["config", "sample-stream"])
    describe.main()
    assert capsys.readouterr().out == describe.sample_stream()


# The service


@pytest.fixture
def several(write: Write, tmp_path: Path) -> Callable[[str], list[str]]:
    """The names of the stream files that a global file with these options means."""
    (tmp_path / "streams").mkdir()
    for name in ("b.ini", "ds_a.ini", "c.ini.new", ".hidden.ini", "old.ini~", "note"):
        write(GOOD, f"streams/{name}")
    (tmp_path / "streams" / "directory.ini").mkdir()
    os.mkfifo(tmp_path / "streams" / "fifo.ini")

    def _several(options: str) -> list[str]:
        settings = config.load_service(write(f"[global]\n{options}\n", "global.ini"), {})
        return [path.name for path in config.stream_files(settings)]

    return _several


def test_the_stream_files_of_the_service(several: Callable[[str], list[str]], tmp_path: Path) -> None:
    streams = tmp_path / "streams"
    assert several("") == ["b.ini", "ds_a.ini"]
    assert several(f"config_dir = {streams}") == ["b.ini", "ds_a.ini"]
    assert several("data_stream_list = a, gone b a") == ["ds_a.ini", "gone.ini", "b.ini"]
    assert several(f"data_stream_config_dir = {streams}") == ["b.ini", "c.ini.new", "ds_a.ini", "note"]
    assert several(f"config_dir = {tmp_path}") == [], "the global file is none"


def test_a_directory_of_stream_files_that_is_missing_is_said(write: Write, tmp_path: Path) -> None:
    settings = config.load_service(write("[global]\nconfig_dir = /nowhere\n", "global.ini"), {})
    with pytest.raises(ConfigError) as caught:
        config.stream_files(settings)
    assert caught.value.findings == (
        f"{tmp_path}/global.ini: [global] config_dir: '/nowhere': No such file or directory; "
        "make the directory, or give another",
    )


def test_a_directory_into_which_anybody_may_put_stream_files_is_refused(
    several: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "streams").chmod(0o1777)
    with pytest.raises(ConfigError) as caught:
        several(f"config_dir = {tmp_path}/streams")
    assert caught.value.findings == (
        f"{tmp_path}/global.ini: [global] config_dir: '{tmp_path}/streams': "
        f"anybody may put stream files there (mode 1777); chmod o-w {tmp_path}/streams",
    )


def test_what_a_global_file_holds_for_streams_does_not_concern_the_service(write: Write) -> None:
    path = write(
        "[global]\nmax_restarts = 7\n[outgoing]\nlanes = many\n[logging]\nlog_level = debug\n", "global.ini"
    )
    settings = config.load_service(path, {"CONFIG__global__hang_timeout": "5m"})
    assert (settings.global_.max_restarts, settings.global_.hang_timeout) == (7, 300)
    assert settings.logging.log_level == "DEBUG"
    with pytest.raises(ConfigError):
        config.load_service(write("[global]\nmax_restart = 7\n", "global.ini"), {})


def test_where_the_pid_file_lies(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("[global]\nstate_dir = /state\n", "global.ini")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.load_service(path, {}).global_.pid_file == Path("/run/mistamover/mistamover.pid")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert config.load_service(path, {}).global_.pid_file == Path("/state/mistamover.pid")

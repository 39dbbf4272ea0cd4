"""Configurations of version 0.1.0, as they are: what they do here, and what is told of what they do otherwise."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistamover import config, obsolete
from mistamover.differences import differences
from mistamover.errors import ConfigError
from mistamover.options import OPTIONS, Settings
from tests.ftpd import PASSWORD as FTP_PASSWORD
from tests.ftpd import USER as FTP_USER
from tests.ftpd import Proftpd
from tests.installed import until
from tests.program import Result, command, ended, environment
from tests.rsyncd import MODULE, PASSWORD, USER, Rsyncd
from tests.sshd import Sshd

OPTIONS_OF_0_1_0 = """
global: debug_on homedir top base_data_dir config_dir base_incoming_dir data_stream_list data_stream_config_dir
    general_poll_interval
data_stream: name priority status directory transfer_unit deletion_enabled completion_file
incoming: require_arrival_monitor directory control_file_extension receipt_file_extension thankyou_file_extension
    stop_file
outgoing: transfer_protocol transfer_mode target_host target_dir target_uses_arrival_monitor control_file_extension
    receipt_file_extension thankyou_file_extension retry_count receipt_file_poll_count receipt_file_poll_interval
    stop_file stop_file_poll_interval dir_size_limit always_zip quarantine_dir
rsync_ssh: cmd username transfer_mode use_checksum check_size
rsync_native: cmd username password transfer_mode use_checksum check_size
ftp: cmd username password
gridftp_myproxy: cmd port proxy username password
gridftp_certificate: cmd port proxy username password
logging: base_log_dir log_level port
email: from recipient subject smarthost threshold
disk_space_monitor: base_priority level_good level_low level_vlow poll_interval
"""

GLOBAL = """\
# what all streams share
[global]
debug_on = True
homedir =
top = {top}
base_data_dir = $(global:top)/data
config_dir = $(global:top)/conf
base_incoming_dir =
data_stream_list = {names}
general_poll_interval = 3

[incoming]
require_arrival_monitor = False
control_file_extension = stager-ctrl-bss
thankyou_file_extension = stager-thanks-bss
stop_file = .stop

[outgoing]
transfer_protocol = rsync_ssh
transfer_mode = move
control_file_extension = stager-ctrl-bss
receipt_file_extension = stager-rcpt-bss
thankyou_file_extension = stager-thanks-bss
target_uses_arrival_monitor = False
retry_count = 3
receipt_file_poll_count = 100
receipt_file_poll_interval = 5
always_zip = False
dir_size_limit = 1000.
stop_file = .stop
stop_file_poll_interval = 10

[logging]
base_log_dir = $(global:top)/log
log_level = WARN
port = 2000

[email]
from = mistamover@localhost
threshold = CRITICAL
recipient = me@localhost
subject = MiStaMover Error Report
smarthost = localhost

[rsync_ssh]
username =
transfer_mode = move
cmd = /usr/bin/rsync

[rsync_native]
username =
password =
transfer_mode = move
cmd = /usr/bin/rsync

[ftp]
cmd = /usr/bin/ftp
username =
password =

[gridftp_myproxy]
username = someone
cmd = /usr/bin/globus-url-copy
port = 2811
proxy =
username = someone
password =

[disk_space_monitor]
base_priority = 100
level_good = 1500
level_low = 1000
level_vlow = 500
poll_interval = 60
"""

STREAM = """\
[data_stream]
priority = 200
name = {name}
transfer_unit = file
status = RUNNING
deletion_enabled = False
directory =

[incoming]
require_arrival_monitor = False

[outgoing]
target_host = 127.0.0.1
transfer_protocol = {name}
target_uses_arrival_monitor = False
target_dir = {target}

[{name}]
{log_in}
"""


class Old:
    """An installation of 0.1.0: ``conf``, ``data`` and ``log`` in one directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for name in ("conf", "log", "state"):
            (top / name).mkdir()
        self.ini = top / "conf" / "global.ini"
        self.environ = {
            "CONFIG__global__state_dir": str(top / "state"),
            "CONFIG__global__pid_file": str(top / "state" / "pid"),
            "CONFIG__global__general_poll_interval": "0.2",
            "CONFIG__data_stream__settle_time": "0",
        }
        self.share()

    def share(self, names: str = "", **replaced: str) -> None:
        text = GLOBAL.format(top=self.top, names=names)
        for old, new in replaced.items():
            text = text.replace(old, new)
        self.ini.write_text(text)

    def add(self, name: str, log_in: str, module: str = "") -> Path:
        """A stream called as its protocol, with a file that was set aside long ago in its spool."""
        self.target(name).mkdir(parents=True)
        self.put(name, "quarantine/bad")
        path = self.ini.with_name(f"ds_{name}.ini")
        path.write_text(STREAM.format(name=name, log_in=log_in, target=f"{module}{self.target(name)}"))
        path.chmod(0o400)
        return path

    def put(self, name: str, path: str) -> None:
        file = self.top / "data" / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode() * 1000)

    def target(self, name: str) -> Path:
        return self.top / "target" / name

    def run(self, *arguments: str | Path, shared: bool = True) -> Result:
        by_global: list[str | Path] = ["--config", self.ini] if shared else []
        process = subprocess.Popen(
            command(*arguments, *by_global),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(self.top) | self.environ,
        )
        return ended(process)

    def settings(self, name: str) -> Settings:
        return config.load(self.ini.with_name(f"ds_{name}.ini"), self.ini, self.environ)


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Old]:
    one = Old(tmp_path)
    yield one
    one.run("stop")


def contents(directory: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".mistamover/")}


SENT = {name: name.encode() * 1000 for name in ("a.nc", "sub/b.nc")}
SET_ASIDE = {"quarantine/bad": b"quarantine/bad" * 1000}


def by_ssh(server: Sshd, more: str = "") -> str:
    """How 0.1.0's files say what ssh has to know."""
    words = f"-p {server.port} -i {server.key_file} -o UserKnownHostsFile={server.known_hosts}"
    return f"username = {server.username}\ncmd = /usr/bin/rsync -e 'ssh {words}'\n{more}"


# -- what they do ------------------------------------------------------------------------------------------


@pytest.mark.needs("rsync", "sshd", "ssh")
def test_a_move_by_rsync_over_ssh(old: Old, sshd: Sshd) -> None:
    path = old.add("rsync_ssh", by_ssh(sshd))
    for name in SENT:
        old.put("rsync_ssh", name)
    result = old.run("run", "--once", path)
    assert (result.code, result.out.split(",")[0]) == (0, "moved 2 files"), result.err
    assert contents(old.target("rsync_ssh")) == SENT
    assert contents(old.top / "data" / "rsync_ssh") == SET_ASIDE


@pytest.mark.needs("rsync", "sshd", "ssh")
@pytest.mark.parametrize("said_in", ["stream", "global"])
def test_a_mirror_keeps_its_sources(old: Old, sshd: Sshd, said_in: str) -> None:
    """Whether the protocol's section says so, as 0.1.0 looked there, or [outgoing] alone."""
    if said_in == "global":
        old.share(**{"stop_file_poll_interval = 10\n": "transfer_mode = mirror\n", "transfer_mode = move\n": ""})
    path = old.add("rsync_ssh", by_ssh(sshd, "transfer_mode = mirror\n" if said_in == "stream" else ""))
    for name in SENT:
        old.put("rsync_ssh", name)
    result = old.run("run", "--once", path)
    assert (result.code, result.out.split(",")[0]) == (0, "mirrored 2 files"), result.err
    assert contents(old.target("rsync_ssh")) == SENT
    assert contents(old.top / "data" / "rsync_ssh") == SENT | SET_ASIDE


@pytest.mark.needs("rsync", "root", "proftpd", "openssl")
def test_the_service_runs_its_streams(old: Old, rsyncd: Rsyncd, proftpd: Proftpd) -> None:
    old.environ |= {
        "CONFIG__rsync_native__port": str(rsyncd.port),
        "CONFIG__ftp__port": str(proftpd.port),
    }
    checks = "use_checksum = True\ncheck_size = True\ntransfer_mode = move\ncmd = /usr/bin/rsync"
    old.add("rsync_native", f"username = {USER}\npassword = {PASSWORD}\n{checks}", MODULE)
    old.add("ftp", f"username = {FTP_USER}\npassword = {FTP_PASSWORD}\ncmd = /usr/bin/ftp")
    old.add("rsync_ssh", "")  # not in the list
    old.share("rsync_native ftp")
    started = old.run("start")
    assert (started.code, started.out.split(", ")[1]) == (0, "2 of 2 streams up\n"), started.out + started.err
    assert started.out.startswith(f"{old.ini} was made for 0.1.0: mistamover check --config ")
    for stream in ("rsync_native", "ftp"):
        for name in SENT:
            old.put(stream, name)
    until(lambda: contents(old.target("rsync_native")) == SENT and contents(old.target("ftp")) == SENT)
    until(lambda: contents(old.top / "data" / "ftp") == SET_ASIDE)
    assert contents(old.target("rsync_ssh")) == {}


@pytest.mark.needs("rsync", "sshd", "ssh")
def test_every_file_of_data_stream_config_dir_is_a_stream(old: Old, sshd: Sshd) -> None:
    directory = old.top / "all"
    directory.mkdir()
    old.add("rsync_ssh", by_ssh(sshd)).rename(directory / "whatever")
    old.share(**{"data_stream_list =": f"data_stream_config_dir = {directory}\ndata_stream_list = nobody"})
    old.put("rsync_ssh", "a.nc")
    assert old.run("start").code == 0
    until(lambda: set(contents(old.target("rsync_ssh"))) == {"a.nc"})


@pytest.mark.needs("rsync", "sshd", "ssh")
def test_a_one_off_file_holds_everything(old: Old, sshd: Sshd) -> None:
    """It is named by its list, and its spool is where that name leads."""
    old.target("rsync_ssh").mkdir(parents=True)
    shared = "[rsync_ssh]\nusername =\ntransfer_mode = move\ncmd = /usr/bin/rsync\n"
    whole = old.top / "conf" / "global.oneshot.ini"
    whole.write_text(
        GLOBAL.format(top=old.top, names="rsync_ssh")
        .replace("[outgoing]\n", f"[outgoing]\ntarget_host = {sshd.host}\ntarget_dir = {old.target('rsync_ssh')}\n")
        .replace(shared, f"[rsync_ssh]\n{by_ssh(sshd)}")
        + "[data_stream]\npriority = 200\nstatus = RUNNING\n"
    )
    old.put("rsync_ssh", "a.nc")
    result = old.run("run", "--once", whole, shared=False)
    assert (result.code, set(contents(old.target("rsync_ssh")))) == (0, {"a.nc"}), result.err
    assert (old.top / "state" / "rsync_ssh" / "ledger.sqlite").exists()


ARRIVALS_ONLY = """\
[data_stream]
priority = 200
name = arrival_monitor
transfer_unit = file
status = RUNNING
deletion_enabled = False
directory = $(global:top)/received

[incoming]
require_arrival_monitor = True

[outgoing]
target_host = 127.0.0.1
transfer_protocol = none
"""


@pytest.mark.needs("root", "proftpd", "openssl")
def test_ftp_with_an_arrivals_monitor_to_a_host_with_arrivals_only(
    old: Old, tmp_path: Path, proftpd: Proftpd
) -> None:
    (tmp_path / "receiver").mkdir()
    receiver = Old(tmp_path / "receiver")
    receiver.share("arrival_monitor", **{"base_incoming_dir =": "base_incoming_dir = $(global:top)/incoming/"})
    (receiver.ini.with_name("ds_arrival_monitor.ini")).write_text(ARRIVALS_ONLY)
    incoming, received = receiver.top / "incoming" / "arrival_monitor", receiver.top / "received"
    incoming.mkdir(parents=True)
    received.mkdir()
    old.environ |= {
        "CONFIG__ftp__port": str(proftpd.port),
        "CONFIG__outgoing__receipt_file_poll_interval": "0.2",
    }
    path = old.add("ftp", f"username = {FTP_USER}\npassword = {FTP_PASSWORD}\ncmd = /usr/bin/ftp")
    path.chmod(0o600)
    text = path.read_text().replace("monitor = False\ntarget_dir", "monitor = True\ntarget_dir")
    path.write_text(text.replace(str(old.target("ftp")), str(incoming)))
    for name in ("a.nc", "b.nc"):
        old.put("ftp", name)
    try:
        assert receiver.run("start").code == 0
        result = old.run("run", "--once", path)
        assert (result.code, result.out.split(",")[0]) == (0, "moved 2 files"), result.err
        until(lambda: not contents(incoming))
    finally:
        receiver.run("stop")
    assert contents(received) == {name: name.encode() * 1000 for name in ("a.nc", "b.nc")}
    assert contents(old.top / "data" / "ftp") == SET_ASIDE


def test_what_differs_of_the_handshake(old: Old) -> None:
    sender = told(old, "ftp", **{"monitor = False\ntarget_dir": "monitor = True\ntarget_dir"})
    assert "status 0 that names this unit" in sender["receipts"]
    old.ini.with_name("ds_arrival_monitor.ini").write_text(
        ARRIVALS_ONLY.replace("= True", f"= True\ndirectory = {old.top}/incoming")
    )
    receiver = {one.what: one.now for one in differences(old.settings("arrival_monitor"))}
    assert "set aside in quarantine" in receiver["arrivals that are not as announced"]
    assert not {"proof", "another file of the name", "target_dir", "receipts"} & receiver.keys()


# -- what is told ------------------------------------------------------------------------------------------


def told(old: Old, name: str, log_in: str = "", **replaced: str) -> dict[str, str]:
    """What differs for a stream, by what it is."""
    path = old.add(name, log_in)
    path.chmod(0o600)
    for before, after in replaced.items():
        path.write_text(path.read_text().replace(before, after))
    return {one.what: one.now for one in differences(old.settings(name))}


def test_check_tells_in_a_table_what_differs(old: Old) -> None:
    path = old.add("rsync_ssh", "username = me\ncheck_size = True\ntransfer_mode = mirror")
    result = old.run("check", path)
    assert result.code == 0, result.err
    heads, *rows = result.out.partition("What differs from 0.1.0:\n\n")[2].split("\n\n")[0].splitlines()
    assert heads.split() == ["what", "in", "0.1.0", "now"]
    by_what = {row.split("  ")[0]: row for row in rows}
    assert "were removed" in by_what["sources of a mirror"]
    assert "keeps them" in by_what["sources of a mirror"]
    assert "is kept, unless this ledger has it" in by_what["another file of the name"]
    assert "proven by its digest" in by_what["[rsync_ssh] check_size"]
    assert "no log server" in by_what["[logging] port"]


def test_check_looks_at_all_streams_of_the_service(old: Old) -> None:
    old.add("rsync_ssh", "username = me")
    old.add("ftp", "usrname = me")
    old.share("ftp rsync_ssh")
    result = old.run("check")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "[ftp] usrname: unknown option; did you mean username?" in result.err
    told = result.out.partition("ds_rsync_ssh.ini:\n")[2]
    assert told.startswith("ok: stream rsync_ssh moves ")
    assert "What differs from 0.1.0:" in told


def test_only_what_concerns_the_stream_is_told(old: Old) -> None:
    of_ftp = told(old, "ftp", "username = me")
    assert {"another file of the name", "[ftp] cmd", "[logging] port"} <= of_ftp.keys()
    assert not {"sources of a mirror", "permissions, owners", "[gridftp_myproxy]"} & of_ftp.keys()
    assert "[outgoing] existing" in of_ftp["another file of the name"]
    of_rsync = told(
        old, "rsync_native", "preserve_mode = yes", **{"[rsync_native]": "create_target = yes\nexisting = replace"}
    )
    assert not {"[ftp] cmd", "permissions, owners", "another file of the name"} & of_rsync.keys()
    assert [what for what in of_rsync if what == "target_dir"] == ["target_dir"]


def test_nothing_is_told_of_new_files(tmp_path: Path) -> None:
    path = tmp_path / "ds_x.ini"
    path.write_text(
        "[data_stream]\ndirectory = /spool\n[outgoing]\ntransfer_protocol = local\ntransfer_mode = mirror\n"
        "target_dir = /target\n"
    )
    assert list(differences(config.load(path, None, {}))) == []


def test_a_run_says_where_the_differences_are_told(old: Old, sshd: Sshd) -> None:
    old.share(WARN="INFO")
    result = old.run("run", "--once", old.add("rsync_ssh", by_ssh(sshd)))
    assert "made for 0.1.0: mistamover check tells what differs" in result.err
    assert "made for 0.1.0: mistamover check" in (old.top / "log" / "rsync_ssh.log").read_text()


# -- how they are read -------------------------------------------------------------------------------------


def findings(old: Old, name: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        old.settings(name)
    return list(caught.value.findings)


@pytest.mark.parametrize("protocol", ["gridftp_myproxy", "gridftp_certificate"])
def test_gridftp_is_told_what_to_choose_instead(old: Old, protocol: str) -> None:
    path = old.add(protocol, "username = me\npassword = secret-77\nport = 2812\nproxy = myproxy.example.org")
    result = old.run("check", path)
    assert result.code == 2
    assert result.err.startswith(
        f"mistamover: {path}:14: [outgoing] transfer_protocol: '{protocol}': GridFTP is not"
    )
    assert "give sftp or rsync_ssh" in result.err
    assert result.err.count("\n") == 1
    assert "secret-77" not in result.out + result.err


def test_every_option_is_known_and_none_is_both_gone_and_there() -> None:
    keys: set[tuple[str, str]] = set()
    for part in re.split(r"\n(?=\w)", OPTIONS_OF_0_1_0.strip()):
        section, _, names = part.partition(":")
        keys |= {(section, name) for name in names.split()}
    gone = obsolete.OBSOLETE.keys()
    assert keys - OPTIONS.keys() - gone == set()
    assert gone & OPTIONS.keys() == set()


def test_what_was_always_zipped_is(old: Old) -> None:
    path = old.add("rsync_ssh", "")
    path.chmod(0o600)
    text = path.read_text().replace("transfer_unit = file", "transfer_unit = directory")
    for zips, package in (("True", "zip"), ("False", "none")):
        path.write_text(text.replace("[outgoing]", f"[outgoing]\nalways_zip = {zips}\ndir_size_limit = 1000"))
        settings = old.settings("rsync_ssh")
        assert (settings.data_stream.transfer_unit, settings.outgoing.package) == ("directory", package)


def test_a_placeholder_of_a_template_is_no_value(old: Old) -> None:
    old.add("rsync_ssh", "username = __MUST_DEFINE__")
    assert [line.partition(": ")[2] for line in findings(old, "rsync_ssh")] == [
        "[rsync_ssh] username: still says __MUST_DEFINE__; give the name of a user"
    ]


def test_an_option_without_a_value_is_not_given_where_nothing_else_would_hold(old: Old) -> None:
    path = old.add("rsync_ssh", "")
    settings = old.settings("rsync_ssh")
    assert settings.data_stream.directory == old.top / "data" / "rsync_ssh"
    assert settings.rsync_ssh.username is None
    path.chmod(0o600)
    path.write_text(path.read_text().replace("target_dir =", "target_dir =\nretry_count =\n#"))
    assert [line.rpartition("] ")[2] for line in findings(old, "rsync_ssh")] == [
        "target_dir: missing, but compulsory; give an absolute path",
        "retry_count: has no value; give one or remove it",
    ]


def test_top_leads_to_data_and_log(old: Old) -> None:
    old.share(**{"base_data_dir = $(global:top)/data\n": "", "base_log_dir = $(global:top)/log\n": ""})
    old.add("rsync_ssh", "")
    settings = old.settings("rsync_ssh")
    assert settings.data_stream.directory == old.top / "data" / "rsync_ssh"
    assert settings.logging.base_log_dir == old.top / "log"
    assert config.load_service(old.ini, old.environ).logging.base_log_dir == old.top / "log"


def test_an_obsolete_option_may_be_referred_to_and_an_old_secret_may_not(old: Old) -> None:
    old.share(**{"base_incoming_dir =": "base_incoming_dir = /in"})
    path = old.add("rsync_ssh", "")
    path.chmod(0o600)
    path.write_text(path.read_text().replace("directory =", "directory = $(global:base_incoming_dir)/x"))
    assert old.settings("rsync_ssh").data_stream.directory == Path("/in/x")
    path.write_text(path.read_text().replace("base_incoming_dir)", "top)/$(gridftp_myproxy:password)"))
    assert "is a secret" in findings(old, "rsync_ssh")[0]


@pytest.mark.parametrize(
    ("where", "ignored"), [("", "quarantine"), ("$(global:top)/data/ftp/my bad*", "my?bad?"), ("/elsewhere", None)]
)
def test_what_was_set_aside_is_no_unit(old: Old, where: str, ignored: str | None) -> None:
    path = old.add("ftp", "")
    path.chmod(0o600)
    path.write_text(path.read_text().replace("[outgoing]", f"[outgoing]\nquarantine_dir = {where}"))
    usual = OPTIONS["data_stream", "ignore"].default
    assert old.settings("ftp").data_stream.ignore == (*usual, *filter(None, [ignored]))


def test_an_empty_password_is_no_secret_and_a_real_one_is(old: Old) -> None:
    old.ini.chmod(0o644)
    old.add("ftp", "")
    old.settings("ftp")
    old.share(**{"password =\n\n[gridftp": "password = x\n\n[gridftp"})
    assert "chmod 600" in findings(old, "ftp")[0]
    os.chmod(old.ini, 0o400)
    old.settings("ftp")

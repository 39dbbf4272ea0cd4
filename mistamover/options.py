"""The options: every one declared once, with its section, name, type, unit, default and help.

Parsing (:mod:`mistamover.config`), the samples in ``conf/`` and the page in ``docs/``
(:mod:`mistamover.describe`) come from these declarations.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from mistamover import ini
from mistamover.ini import Key, Kind, from_text
from mistamover.unit import OWN_NAME
from mistamover.values import (
    LEVELS,
    AbsolutePath,
    Addresses,
    Checksum,
    Command,
    Count,
    FileName,
    Flag,
    HomePath,
    Host,
    Level,
    Line,
    LogLevel,
    Marker,
    Mode,
    Names,
    PathBelow,
    Patterns,
    Port,
    Protocol,
    QuietTime,
    RsyncCommand,
    RsyncOptions,
    Seconds,
    Secret,
    Sender,
    Size,
    Smarthost,
    StreamName,
    TargetPath,
    Threshold,
    User,
)

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


_MODEL = ConfigDict(
    frozen=True,
    extra="forbid",
    hide_input_in_errors=True,  # they may be secrets
    defer_build=True,  # else each section would be built twice, once for itself and once for Settings
)


class Section(BaseModel):
    """One section of the configuration; its fields are its options."""

    model_config = _MODEL

    @field_validator("*", mode="wrap")
    @classmethod
    def _note(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Note each good value, so that the checks on several options can go on where another is bad."""
        result = handler(value)
        if info.context is not None:
            info.context[cls, info.field_name] = result
        return result


class Global(Section):
    """What all streams of this host share."""

    state_dir: AbsolutePath = Field(
        description="Where each stream keeps its ledger, in a directory of its name.",
        json_schema_extra={
            "derived": "/var/lib/mistamover for root, else $XDG_STATE_HOME/mistamover or ~/.local/state/mistamover"
        },
    )
    homedir: AbsolutePath | None = Field(
        None, description="A directory that other options may refer to by $(global:homedir)."
    )
    top: AbsolutePath | None = Field(
        None,
        description="A directory that other options may refer to by $(global:top). Where it is given, spools are "
        "in data below it and logs in log below it, unless base_data_dir and base_log_dir are given as well.",
    )
    base_data_dir: AbsolutePath | None = Field(
        None, description="The directory in which streams without a directory of their own have their spools."
    )
    base_incoming_dir: AbsolutePath | None = Field(
        None, description="The same for the directories that arrivals monitors look after."
    )
    general_poll_interval: Seconds = Field(
        3.0,
        gt=0,
        description="How long run waits between two passes over a spool, at most; units may be found sooner.",
    )
    config_dir: AbsolutePath = Field(
        description="The directory of the service's stream files: NAME.ini or, as in 0.1.0, ds_NAME.ini.",
        json_schema_extra={"derived": "the directory streams beside the global file"},
    )
    data_stream_list: Names | None = Field(
        None, description="The names of the streams that the service runs; without it, all of config_dir."
    )
    data_stream_config_dir: AbsolutePath | None = Field(
        None,
        description="A directory of which every file is a stream file, whatever it is called; takes the place of "
        "config_dir and data_stream_list.",
    )
    pid_file: AbsolutePath = Field(
        description="The file with the process number of the service.",
        json_schema_extra={"derived": "/run/mistamover/mistamover.pid for root, else mistamover.pid in state_dir"},
    )
    max_restarts: Count = Field(
        5,
        description="How often a worker that dies is started again within ten minutes, before its stream rests "
        "until a reload.",
    )
    hang_timeout: Seconds = Field(
        1800.0,
        gt=0,
        description="A worker that gives no sign of life for so long is killed and replaced; longer than a slow "
        "disk takes to write out what the host holds in memory.",
    )


_READY_MARKER = (
    "A file is taken once one of this name lies beside it, where {name} is its own: a proof that says nothing of "
    "its bytes. For control = none."
)


class DataStream(Section):
    """What a stream moves."""

    name: StreamName = Field(
        description="The stream's name: in messages, and of its directories in state_dir and at the target.",
        json_schema_extra={"derived": "the stream file's name without .ini and without ds_ before it"},
    )
    directory: AbsolutePath = Field(
        description="The spool: the directory in which units appear.",
        examples=["/data/outgoing"],
        json_schema_extra={
            "derived": "$(global:base_data_dir)/$(data_stream:name) where that is set, else compulsory"
        },
    )
    transfer_unit: Literal["file", "directory"] = Field(
        "file",
        description="What is a unit: each file in the spool, or each directory at its top with all that is in it, "
        "which is sent as a whole or not at all.",
    )
    settle_time: Seconds = Field(5.0, description="A unit is taken when it has not changed for this long.")
    ignore: Patterns = Field(
        ("*.tmp", "*.part", "*.partial", "*.filepart", "*.swp", "*~"),
        description="Files and directories of such names are no units; dot-names never are. A lone comma: none.",
    )
    order: Literal["oldest", "newest", "smallest", "largest"] = Field(
        "oldest",
        description="Which of the settled units go first; beyond 100,000 units, among so many at a time.",
    )
    control: Literal["none", "sidecar", "manifest", "bagit"] = Field(
        "none",
        description="The proof that a unit waits for: none, a sidecar such as NAME.md5 beside it, a manifest such "
        "as SHA256SUMS in its directory or above, or the manifests of the bag that it is in.",
    )
    ready_marker: Marker | None = Field(None, description=_READY_MARKER)
    proof_files: Literal["follow", "stay"] = Field(
        "follow",
        description="Whether the files of control and ready_marker are sent too, after what they name, or stay.",
    )
    completion_file: PathBelow | None = Field(
        None,
        description="The last unit of a stream that has an end, as a path in the spool: once it was delivered and "
        "a pass leaves nothing to do, the stream is complete, and run ends.",
    )
    status: Annotated[Literal["running", "stopped", "complete"], from_text(str.lower)] = Field(
        "running", description="A stream that is stopped or complete is not started. In upper or lower case."
    )
    priority: Count | None = Field(
        None,
        description="How long the disk space monitor lets the stream run: up to base_priority it is stopped below "
        "level_low, with a higher one below level_vlow.",
        json_schema_extra={"derived": "[disk_space_monitor] base_priority"},
    )
    deletion_enabled: Flag = Field(
        False,
        description="Below level_vlow the disk space monitor may delete units from the spool, if the priority is "
        "not above base_priority: those that the target holds, as the ledger says.",
    )
    deletion_of_unsent: Flag = Field(
        False,
        description="With deletion_enabled, and where that is not enough, the monitor may also delete units that "
        "exist nowhere else: first those in quarantine, then the oldest. They are lost.",
    )


ControlExtension = Annotated[
    FileName, Field(description="How the names of control files end, by which a sender tells size and digest.")
]
ReceiptExtension = Annotated[
    FileName, Field(description="How the names of receipts end, by which a receiver tells what it found.")
]
ThankyouExtension = Annotated[
    FileName, Field(description="How the names of thank-yous end, by which a sender says that it read a receipt.")
]


class Incoming(Section):
    """What arrives from other hosts, and what may hold a stream on the near side."""

    stop_file: FileName = Field(
        ".stop",
        description="While a file of this name is in the spool, the stream is paused; while one is in directory, "
        "nothing is received, and senders wait.",
    )
    require_arrival_monitor: Flag = Field(
        False,
        description="Take files that others push into directory: each is proven by its control file, moved into "
        "the spool, and answered by a receipt.",
    )
    directory: AbsolutePath | None = Field(
        None,
        description="The directory into which others push; compulsory with require_arrival_monitor.",
        json_schema_extra={"derived": "$(global:base_incoming_dir)/$(data_stream:name) where that is set"},
    )
    control_file_extension: ControlExtension = "stager-ctrl-bss"
    receipt_file_extension: ReceiptExtension = "stager-rcpt-bss"
    thankyou_file_extension: ThankyouExtension = "stager-thanks-bss"
    control: Literal["stager", "sidecar", "manifest", "bagit", "none"] = Field(
        "stager",
        description="What proves a file in directory: stager is the control file of a handshake, sidecar a file "
        "such as NAME.md5, manifest one such as SHA256SUMS, bagit takes whole bags, none what has settled.",
    )
    ready_marker: Marker | None = Field(None, description=_READY_MARKER)
    proof_files: Literal["follow", "stay"] = Field(
        "follow",
        description="Whether sidecars and ready markers are moved into the spool too, after their files, or stay. "
        "Manifests stay.",
    )
    existing: Literal["same-or-wait", "replace"] = Field(
        "same-or-wait",
        description="What to do where the spool holds another file of the name: wait until that is gone, or "
        "replace it. Equal content counts as arrived.",
    )
    flatten: Flag = Field(
        False, description="Give files their directories back that a sender with flatten wrote into their names."
    )


class Outgoing(Section):
    """Where units go, how they are proven there, and what happens when that fails."""

    transfer_protocol: Protocol = Field(
        description="How the target is reached; packages that add transports add their names. With none the stream "
        "only receives.",
        examples=["sftp"],
    )
    transfer_mode: Literal["move", "mirror"] = Field(
        "move",
        description="move removes a source after its delivery; mirror keeps it and sends what changed.",
    )
    target_host: Host | None = Field(
        None,
        description="The host that receives the units; compulsory for all but local and none.",
        examples=["archive.example.org"],
    )
    target_dir: TargetPath | None = Field(
        None,
        description="The directory at the target under which the units get their final names; compulsory for all "
        "but none. On an rsync daemon its first part is the name of a module.",
        examples=["/data/incoming"],
    )
    package: Literal["none", "zip", "tar"] = Field(
        "none",
        description="Send an archive of each directory, NAME.zip or NAME.tar, in its place; for "
        "transfer_unit = directory.",
    )
    work_dir: AbsolutePath | None = Field(
        None,
        description="Where archives are made, in a directory of ours; without it, in the stream's directory in "
        "state_dir. Each lane needs room for one.",
    )
    create_target: Flag = Field(
        False,
        description="Make target_dir where it is missing. With no, an unmounted disk is not mistaken for it.",
    )
    retry_count: Count = Field(
        3, description="How often a unit may fail by its own fault until it is put in quarantine."
    )
    retry_interval: Seconds = Field(
        60.0, description="How long a failed unit waits for its next try; doubles with each failure."
    )
    existing: Literal["same-or-refuse", "replace"] = Field(
        "same-or-refuse",
        description="What to do with another file of the name at the target: keep it and refuse the unit, "
        "or replace it. Equal content counts as delivered. A mirror replaces what it delivered itself.",
    )
    verify: Literal["auto", "digest", "readback", "size", "none"] = Field(
        "auto",
        description="The proof that a unit arrived: digest is made at the far side, readback reads all bytes "
        "again; auto takes the stronger one there is, never less. size and none prove no content.",
    )
    checksum: Checksum = Field("sha256", description="The digest of the proof and of the ledger.")
    lanes: Count = Field(4, ge=1, le=32, description="How many connections to the target work at the same time.")
    preserve_mode: Flag = Field(False, description="Give files at the target the permissions of their sources.")
    stop_file: FileName = Field(
        ".stop", description="While a file of this name is in target_dir, the stream is paused."
    )
    stop_file_poll_interval: Seconds = Field(
        600.0, gt=0, description="How long a stream that the target paused waits until it looks again."
    )
    stop_timeout: Seconds = Field(30.0, description="How long a stop waits for units that are on their way.")
    target_uses_arrival_monitor: Flag = Field(
        False,
        description="An arrivals monitor takes what is pushed into target_dir: a unit counts as delivered once its "
        "receipt says that size and digest are right.",
    )
    control_file_extension: ControlExtension = "stager-ctrl-bss"
    receipt_file_extension: ReceiptExtension = "stager-rcpt-bss"
    thankyou_file_extension: ThankyouExtension = "stager-thanks-bss"
    receipt_checksum: Literal["md5", "sha256"] = Field(
        "md5",
        description="The digest that the receiver proves: md5 as since 0.1.0, or sha256 as well, which a receiver "
        "before 0.2.0 takes no notice of. sha256 needs checksum = sha256.",
    )
    write_manifest: Literal["none", "sha256", "sha512", "md5"] = Field(
        "none",
        description="Leave manifests in target_dir that list what was delivered, as sha256sum does: "
        "SHA256SUMS.NAME.TIME. The digest has to be that of checksum.",
    )
    receipt_file_poll_count: Count = Field(
        100, ge=1, description="For how many receipt_file_poll_intervals a receipt is waited for."
    )
    receipt_file_poll_interval: Seconds = Field(
        5.0, gt=0, description="How often receipts are looked for; the first looks come sooner."
    )
    flatten: Flag = Field(
        False,
        description="Write the directories of units into their names at the target, as NORTH%2FRADAR.DAT: a "
        "handshake knows none. Without it, such units are refused where an arrivals monitor is.",
    )


class LogIn(Section):
    """What all log-ins have."""

    port: Port | None = Field(None, description="The port of the server; without it, the protocol's own.")
    username: User | None = Field(None, description="The user to log in as.")
    connect_timeout: Seconds = Field(15.0, gt=0, description="How long a connection and log-in may take.")
    stall_timeout: Seconds = Field(
        60.0, gt=0, description="A connection on which nothing moves for this long is given up."
    )


class SshLogIn(LogIn):
    """What all log-ins over SSH have."""

    port: Port | None = Field(None, description="The port of the SSH server; without it, that of ssh.")
    username: User | None = Field(
        None, description="The user to log in as; without it, that of ssh's configuration or our own."
    )
    key_file: HomePath | None = Field(
        None, description="The private key to log in with; without it, the agent and ssh's usual keys."
    )
    known_hosts: HomePath | None = Field(
        None, description="The file of host keys that are trusted; without it, those of ssh."
    )


class PasswordLogIn(LogIn):
    """What log-ins by password have."""

    password: Secret | None = Field(
        None, description="The password to log in with. The file must be readable by its owner only."
    )
    password_file: HomePath | None = Field(
        None, description="A file with the password in its first line, readable by its owner only."
    )


class Sftp(SshLogIn, PasswordLogIn):
    """How to log in where transfer_protocol is sftp. Prefer keys to passwords."""

    connector: Literal["auto", "openssh", "paramiko"] = Field(
        "auto",
        description="What carries the connection: the installed ssh with its own configuration, or paramiko; "
        "auto takes ssh unless a password is set or there is no ssh.",
    )


class Rsync(LogIn):
    """What both ways to use rsync have."""

    bandwidth_limit: Size | None = Field(
        None, description="The most bytes that one lane sends in a second; without it, as many as can go."
    )
    compress: Flag = Field(False, description="Compress what is sent: for slow lines and text.")
    transfer_mode: Mode | None = Field(
        None,
        description="The same as [outgoing] transfer_mode, here for files of 0.1.0: mirror in either of the two "
        "makes the stream a mirror.",
    )
    extra_options: RsyncOptions = Field(
        (), description="More options for rsync; any that could break a promise is refused."
    )


class RsyncSsh(SshLogIn, Rsync):
    """How to run rsync over ssh where transfer_protocol is rsync_ssh."""

    cmd: RsyncCommand = Field(
        ("rsync",),
        description="The rsync program and its options; -e 'ssh ...' gives options of ssh.",
    )


class RsyncNative(PasswordLogIn, Rsync):
    """How to reach an rsync daemon where transfer_protocol is rsync_native; target_dir begins with the module."""

    cmd: RsyncCommand = Field(("rsync",), description="The rsync program and its options.")


class Ftp(PasswordLogIn):
    """How to log in where transfer_protocol is ftp. Password and data cross the network in the clear."""

    username: User | None = Field(None, description="The user to log in as; without it, anonymous.")
    staging_dir: FileName = Field(
        OWN_NAME,
        description="The directory below target_dir for what is not yet proven; for servers that hide or refuse "
        "names with a dot.",
    )


class Ftps(Ftp):
    """How to log in where transfer_protocol is ftps: FTP within TLS, with the server's certificate verified."""

    implicit: Flag = Field(False, description="Speak TLS from the first byte, usually on port 990.")
    ca_file: HomePath | None = Field(
        None, description="The certificates (PEM) that are trusted; without it, those of the system."
    )


class Logging(Section):
    """What is written down for people."""

    base_log_dir: AbsolutePath | None = Field(
        None, description="The directory for log files, which must exist; without it, none are written."
    )
    log_level: LogLevel = Field(
        "INFO", description="The least important messages that are written; in either case, and WARN for WARNING."
    )
    format: Literal["text", "json"] = Field(
        "text",
        description="text for people, or a JSON object on each line; a terminal always gets text.",
    )
    max_size: Size = Field(
        10 * 2**20,
        description="A log file that would become larger is renamed to NAME.log.1, and a new one begun. 0: never, "
        "for where logrotate does that.",
    )
    max_files: Count = Field(
        10, ge=1, le=1000, description="How many log files that were renamed by max_size are kept of each stream."
    )


class Email(Section):
    """Who is told when something is wrong, and how. A stream file may name others than the global file does."""

    recipient: Addresses = Field((), description="Who is told by mail; without any, nobody is.")
    from_: Sender | None = Field(
        None, alias="from", description="The sender of the mails; without it, our user at this host."
    )
    subject: Line = Field("[MiStaMover]", description="What each subject begins with.")
    smarthost: Smarthost = Field(
        "localhost",
        description="The host that takes mail by SMTP; sendmail: hands it to the program sendmail of this host.",
    )
    port: Port | None = Field(
        None,
        description="The port of the smarthost; without it, 25, or 587 with a username, or 465 with tls = "
        "implicit.",
    )
    tls: Literal["auto", "starttls", "implicit", "none"] = Field(
        "auto",
        description="starttls and implicit go on only within TLS, with the certificate verified. auto does so "
        "where the smarthost offers STARTTLS or a username is set, and speaks in the clear to this host itself "
        "and to a smarthost that offers nothing. none always speaks in the clear.",
    )
    ca_file: HomePath | None = Field(
        None, description="The certificates (PEM) that are trusted; without it, those of the system."
    )
    username: User | None = Field(None, description="The user to log in to the smarthost as; without it, nobody.")
    password_file: HomePath | None = Field(
        None, description="A file with the password in its first line, readable by its owner only."
    )
    timeout: Seconds = Field(
        30.0, gt=0, description="How long the smarthost may take for each answer, and a command for all it does."
    )
    threshold: Threshold = Field(
        None,
        description="Messages of the log from this level on are mailed too; without it, conditions alone.",
    )
    alert_oldest: Seconds | None = Field(
        86400.0, gt=0, description="A unit that waits in the spool for longer than this is told of."
    )
    alert_quiet: QuietTime | None = Field(
        None,
        description="It is told when nothing has arrived in the spool for so long: a time, then days and hours if "
        "only these count, such as 2h weekdays 06:00-20:00 or 1d mon-sat.",
    )
    alert_repeat: Seconds = Field(
        43200.0,
        ge=60,
        description="How long until what is still wrong is told again; doubles each time.",
    )
    alert_command: Command = Field(
        (),
        description="A program that gets the news on its standard input, a JSON object on each line: for pagers "
        "and chat.",
    )
    alert_apprise: HomePath | None = Field(
        None,
        description="A configuration file of Apprise, with the URLs of chat services that are told as well; "
        "readable by its owner only. It needs the Python package apprise.",
    )

    @property
    def tells_somebody(self) -> bool:
        """Whether anybody is told of anything."""
        return bool(self.recipient or self.alert_command or self.alert_apprise)

    @property
    def level(self) -> int | None:
        """From which level messages of the log are mailed, as numbers of ``logging``; None: none."""
        return None if self.threshold is None else LEVELS[self.threshold]

    def for_the_postman(self) -> dict[str, Any]:
        """What it takes to tell somebody, as members of a JSON object; there are no secrets among it."""
        return self.model_dump(mode="json", by_alias=True, exclude={"threshold", "alert_oldest", "alert_quiet"})


class DiskSpaceMonitor(Section):
    """How the service keeps file systems from running full; taken from the global file."""

    base_priority: Count = Field(
        100, description="Streams with a higher [data_stream] priority than this are stopped later."
    )
    level_good: Level = Field(
        ini.Limit(1500 * 2**20),
        description="Above this, all streams that the monitor has stopped go on. The three levels are all sizes or "
        "all shares. Sizes are of bytes alone; the levels of inodes are then 3%, 2% and 1%.",
    )
    level_low: Level = Field(
        ini.Limit(1000 * 2**20), description="Below this, streams with a priority up to base_priority are stopped."
    )
    level_vlow: Level = Field(
        ini.Limit(500 * 2**20),
        description="Below this, units of streams with deletion_enabled are deleted, and if that is not enough, "
        "all streams are stopped.",
    )
    poll_interval: Seconds = Field(
        60.0,
        gt=0,
        description="How long the monitor waits between two looks, at most; it looks sooner when space goes.",
    )


class Settings(BaseModel):
    """All options of one stream, with their effective values."""

    model_config = _MODEL

    path: Path
    global_: Global = Field(alias="global")
    data_stream: DataStream
    incoming: Incoming
    outgoing: Outgoing
    sftp: Sftp
    rsync_ssh: RsyncSsh
    rsync_native: RsyncNative
    ftp: Ftp
    ftps: Ftps
    logging: Logging
    email: Email
    disk_space_monitor: DiskSpaceMonitor
    obsolete: tuple[Key, ...] = ()
    """Options of 0.1.0 that were given and do nothing."""

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.data_stream.name

    @property
    def priority(self) -> int:
        """How long the disk space monitor lets it run."""
        given = self.data_stream.priority
        return self.disk_space_monitor.base_priority if given is None else given

    @property
    def log_in(self) -> LogIn | None:
        """The section of the stream's protocol; None where that has none."""
        section = getattr(self, self.outgoing.transfer_protocol, None)
        return section if isinstance(section, LogIn) else None


class ServiceSettings(BaseModel):
    """What the service needs besides the settings of its streams: the global file's own."""

    model_config = _MODEL

    path: Path
    global_: Global = Field(alias="global")
    logging: Logging
    email: Email
    disk_space_monitor: DiskSpaceMonitor
    obsolete: tuple[Key, ...] = ()
    """Options of 0.1.0 that were given and do nothing."""


SECTIONS: dict[str, type[Section]] = {
    info.alias or name: info.annotation
    for name, info in Settings.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}
PROTOCOLS = tuple(section for section, model in SECTIONS.items() if issubclass(model, LogIn))
"""The sections of protocols, which are named as these are."""
OPTIONS: dict[Key, FieldInfo] = {
    (section, info.alias or option): info
    for section, model in SECTIONS.items()
    for option, info in model.model_fields.items()
}


# What is told of an option


SECRETS = frozenset(key for key, info in OPTIONS.items() if "SecretStr" in repr(info.annotation))
_BOUNDS = (("gt", "above %g"), ("ge", "from %g"), ("le", "to %g"))


def kind(info: FieldInfo) -> Kind:
    """Return what an option's text may be, with the words or numbers it is bound to."""
    if get_origin(info.annotation) is Literal:
        choices = get_args(info.annotation)
        return Kind("one of", f"one of {', '.join(choices)}", choices)
    nested = [one for part in get_args(info.annotation) for one in getattr(part, "__metadata__", ())]
    found = next(one for one in (*info.metadata, *nested) if isinstance(one, Kind))
    bounds = [text % getattr(one, name) for name, text in _BOUNDS for one in info.metadata if hasattr(one, name)]
    return Kind(found.label, ", ".join(filter(None, [found.right, " ".join(bounds)])), found.choices)


def has_default(info: FieldInfo) -> bool:
    """Whether something holds where the option is not set."""
    return not info.is_required() and info.default not in (None, ())


def as_text(default: object) -> str:
    """Return a default as a person would write it."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, float):
        return f"{default:g}"
    return " ".join(default) if isinstance(default, tuple) else str(default)

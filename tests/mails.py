"""The mails that docs/alerts.rst shows, as the program makes them. ``python -m tests.mails`` puts them there."""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mistamover import config, letter
from mistamover.alert import Condition, Memory, Rules, Trouble, gate
from mistamover.board import Board
from mistamover.concerns import Concerns
from mistamover.disk import Held, Level, Space
from mistamover.errors import NoReceipt, NotVerified, TargetDown, TargetFull, TargetRefused
from mistamover.events import Event, Kind, Summary
from mistamover.heartbeat import State
from mistamover.letter import Sender
from mistamover.log import MainLog
from mistamover.monitor import FileSystem, Monitor
from mistamover.supervisor import Child, Supervisor

PAGE = Path(__file__).parents[1] / "docs/alerts.rst"
BEGIN, END = ".. begin of the mails\n", ".. end of the mails\n"
START = 1_795_602_600.0  # 2026-11-25 10:30 UTC
HOST = Sender("archive1", "mistamover")
STREAM = "/etc/mistamover/streams/images.ini"


class Scene:
    """A stream to which something happens, and what is told of it."""

    def __init__(self, top: Path) -> None:
        file = top / "images.ini"
        file.write_text(
            f"[global]\nstate_dir = {top}/state\n[data_stream]\ndirectory = /data/outgoing\n"
            "[outgoing]\ntransfer_protocol = sftp\ntarget_host = archive.example.org\ntarget_dir = /data/incoming\n"
            "[email]\nrecipient = ops@example.org\nfrom = mistamover@example.org\nthreshold = CRITICAL\n"
            "alert_quiet = 2h weekdays 06:00-20:00\n"
        )
        self.top = top
        self.now = START
        self.settings = config.load(file).model_copy(update={"path": Path(STREAM)})
        self.board = self.board_of("images")
        self.concerns = Concerns(self.board, self.settings, self.clock)
        self._memory = Memory()

    def clock(self) -> float:
        return self.now

    def board_of(self, stream: str) -> Board:
        return Board(self.top / "state" / (stream or "alerts"), stream, self.settings.email, self.clock)

    def turn(self, summary: Summary, quarantined: int = 0) -> None:
        self.concerns.turn(summary, quarantined)

    def tell(self, *boards: Board) -> str:
        """The mail that is due now."""
        conditions: list[Condition] = []
        for board in boards or (self.board,):
            conditions.extend(board.conditions)
        found, self._memory = gate(self._memory, conditions, self.now, Rules())
        assert found is not None
        mail = letter.mail(found, self.settings.email, HOST, self.now, f"{self.now:.0f}.0a1b2c3d")
        return mail.as_string().replace("\r\n", "\n")


def counted(summary: Summary, **counts: int) -> Summary:
    summary.counts.update({Kind[kind]: number for kind, number in counts.items()})
    return summary


def target(scene: Scene) -> Iterator[str]:
    down = Summary(error=TargetDown("sftp://archive.example.org: Connection refused"), waiting=812)
    down.newest = START + 43_200
    scene.board.hear(40, "sftp://archive.example.org: Connection refused")
    for _ in range(4):
        scene.turn(down)
        scene.now += 30
    yield scene.tell()
    scene.now += 43_200
    scene.turn(down)
    yield scene.tell()
    scene.now += 3600
    scene.turn(counted(Summary(), DELIVERED=812))
    scene.now += 60
    yield scene.tell()


def refused(scene: Scene) -> Iterator[str]:
    what = "archive.example.org: log-in refused for mover; does it know our key?"
    scene.turn(Summary(error=TargetRefused(what), waiting=3))
    scene.now += 60
    yield scene.tell()


def full(scene: Scene) -> Iterator[str]:
    scene.turn(Summary(error=TargetFull("no room for 2026/a.dat: No space left on device"), waiting=31))
    scene.now += 60
    yield scene.tell()


def units(scene: Scene) -> Iterator[str]:
    for number in range(24):
        scene.concerns.hear(Event(Kind.WAITING, f"2026/scan-{number:02}.dat", "cannot be read: Permission denied"))
    scene.turn(counted(Summary(), WAITING=24))
    scene.now += 60
    yield scene.tell()


def quarantine(scene: Scene) -> Iterator[str]:
    reason = "another file of this name is at the target"
    for name in ("2026/a.dat", "2026/wärme.dat"):
        scene.concerns.hear(Event(Kind.QUARANTINED, name, reason))
    scene.turn(counted(Summary(), QUARANTINED=2), 2)
    scene.now += 60
    yield scene.tell()


def verify(scene: Scene) -> Iterator[str]:
    error = NotVerified("the staged bytes have another digest than the source")
    scene.concerns.hear(Event(Kind.WAITING, "2026/a.dat", str(error), error=error))
    scene.turn(counted(Summary(), WAITING=1))
    scene.now += 60
    yield scene.tell()


def receipt(scene: Scene) -> Iterator[str]:
    error = NoReceipt("no receipt came from the target's arrivals monitor within 500 s; look whether it runs")
    scene.concerns.hear(Event(Kind.WAITING, "2026/a.dat", str(error), error=error))
    scene.turn(counted(Summary(), WAITING=1))
    scene.now += 60
    yield scene.tell()


def stuck(scene: Scene) -> Iterator[str]:
    scene.turn(Summary(waiting=17, waits_since=scene.now - 90_000, waits_longest="2026/a.dat"))
    scene.now += 60
    yield scene.tell()


def quiet(scene: Scene) -> Iterator[str]:
    scene.now += 3 * 3600
    scene.turn(Summary())
    scene.now += 60
    yield scene.tell()


def near(scene: Scene) -> Iterator[str]:
    scene.concerns.near("/data/outgoing: No such file or directory")
    scene.now += 60
    yield scene.tell()


def log(scene: Scene) -> Iterator[str]:
    scene.board.hear(20, "moved 3 files, 12 MiB in 0.4 s, each proven by digest")
    scene.board.hear(50, "something that only a message tells of")
    scene.now += 60
    yield scene.tell()


@contextmanager
def supervisor(scene: Scene) -> Iterator[tuple[Supervisor, Child]]:
    """One that has a stream, and no processes."""
    (scene.top / "global.ini").write_text(f"[global]\nstate_dir = {scene.top}/state\n")
    service = config.load_service(scene.top / "global.ini").model_copy(update={"email": scene.settings.email})
    with MainLog(service.logging, detached=True) as log:
        one = Supervisor(service, log, lambda *_: 0, now=scene.clock)
        child = one.children[Path(STREAM)] = Child(Path(STREAM), settings=scene.settings)
        yield one, child


def fatal(scene: Scene) -> Iterator[str]:
    with supervisor(scene) as (one, child):
        child.deaths.extend(range(6))
        child.stand(State.FATAL, "was ended by SIGSEGV, 6 times; mend it, then: mistamover reload")
        one.note_conditions()
        scene.now += 60
        yield scene.tell(*one.boards)


def hung(scene: Scene) -> Iterator[str]:
    with supervisor(scene) as (one, child):
        child.why = "its worker gave no sign of life"
        one.note_hung(child)
        scene.now += 60
        yield scene.tell(*one.boards)


def broken(scene: Scene) -> Iterator[str]:
    with supervisor(scene) as (one, child):
        child.findings = (f"{STREAM}:9: [outgoing] lans: unknown option; did you mean lanes?",)
        one.note_conditions()
        scene.now += 60
        yield scene.tell(*one.boards)


def disk(scene: Scene) -> Iterator[str]:
    board = scene.board_of("")
    monitor = Monitor(scene.top, scene.settings.disk_space_monitor, lambda *_: None, board=board)
    space = Space(812 * 2**20, 5_200_000, 931 * 2**30, 61_000_000)
    low = FileSystem("/data", 1, Path("/data"), space, [scene.settings], held=Held.LOWER, level=Level.LOW)
    monitor.note_conditions([low])
    scene.now += 60
    yield scene.tell(board)
    scene.now += 7200
    low.level, low.held = Level.GOOD, Held.NOBODY
    monitor.note_conditions([low])
    scene.now += 60
    yield scene.tell(board)


SCENES: dict[Trouble, Callable[[Scene], Iterator[str]]] = {
    Trouble.TARGET: target,
    Trouble.REFUSED: refused,
    Trouble.FULL: full,
    Trouble.UNITS: units,
    Trouble.QUARANTINE: quarantine,
    Trouble.VERIFY: verify,
    Trouble.RECEIPT: receipt,
    Trouble.STUCK: stuck,
    Trouble.QUIET: quiet,
    Trouble.NEAR: near,
    Trouble.FATAL: fatal,
    Trouble.HUNG: hung,
    Trouble.CONFIG: broken,
    Trouble.DISK: disk,
    Trouble.LOG: log,
}


def rendered() -> str:
    """The part of the page with the mails."""
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        return "\n".join(_section(trouble) for trouble in SCENES)
    finally:
        if zone is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = zone
        time.tzset()


def _section(trouble: Trouble) -> str:
    title = f"{trouble.value[0].upper()}{trouble.value[1:]}"
    with TemporaryDirectory() as top:
        mails = [_block(mail, is_whole=trouble is Trouble.TARGET) for mail in SCENES[trouble](Scene(Path(top)))]
    return "\n".join([title, "~" * len(title), "", *mails])


def _block(mail: str, *, is_whole: bool) -> str:
    head, _, body = mail.partition("\n\n")
    if "base64" in head or "quoted-printable" in head:
        body = _decoded(mail)
    if not is_whole:
        head = "\n".join(re.findall(r"^Subject:.*(?:\n .*)*", head, re.MULTILINE))
    body = body.rpartition("\n-- \n")[0] if is_whole else body.partition("\nWhat is open now:")[0]
    shown = textwrap.indent(f"{head}\n\n{body.strip()}", "    ")
    return f"::\n\n{shown}\n"


def _decoded(mail: str) -> str:
    from email import message_from_string
    from email.policy import default

    return str(message_from_string(mail, policy=default).get_content())


def main() -> None:
    """Put the mails into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{rendered()}\n{END}{after}")


if __name__ == "__main__":
    main()

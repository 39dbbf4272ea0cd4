"""The progress display on a terminal. Imported there only, and rich only once a run takes a while."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from mistamover.lines import duration, files, size
from mistamover.worker import Progress, Worker

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

APPEARS_AFTER = 0.3
"""Seconds: a run that is over sooner needs no display, nor the time to import rich."""
EVERY = 0.25
BAR = 20
"""Columns."""
RATE_OVER = 10.0
"""Seconds over which the rate is taken."""


class Display:
    """Draws how far a worker is, from a thread of its own; log lines come above the drawing."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._unit = worker.settings.data_stream.transfer_unit
        self._console = worker.log.console
        self._plain = self._console.write
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._rate = Rate()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def __enter__(self) -> Self:
        self._worker.tells_progress = False
        self._console.write = self._write
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._console.write = self._plain

    def _write(self, line: str) -> None:
        with self._lock:
            if self._live is None:
                self._plain(line)
            else:
                from rich.text import Text

                self._live.console.print(Text(line), soft_wrap=True)

    def _run(self) -> None:
        if self._done.wait(APPEARS_AFTER):
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        with Live(
            console=console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live:
            self._show(live)
            while not self._done.wait(EVERY):
                live.update(self._picture(), refresh=True)
            self._show(None)

    def _show(self, live: Live | None) -> None:
        with self._lock:
            self._live = live

    # -- the picture -------------------------------------------------------------------------------------

    def _picture(self) -> RenderableType:
        progress = self._worker.progress()
        if progress is None or not progress.all_files:
            return self._idle()
        return self._busy(progress)

    def _idle(self) -> RenderableType:
        from rich.text import Text

        total = self._worker.total
        so_far = f"; {files(sum(total.proofs.values()), self._unit)} delivered so far" if total.proofs else ""
        return Text(f"looks for units{so_far}", no_wrap=True, overflow="ellipsis")

    def _busy(self, progress: Progress) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rate = self._rate.of(progress.bytes, time.monotonic())
        first = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(progress.all_bytes, 1), completed=progress.bytes, width=BAR)
        first.add_row(bar, Text(self._numbers(progress, rate), no_wrap=True, overflow="ellipsis"))
        return Group(first, Text(self._lanes(progress), no_wrap=True, overflow="ellipsis", style="dim"))

    def _numbers(self, progress: Progress, rate: float) -> str:
        left = progress.all_bytes - progress.bytes
        parts = [
            f"{size(progress.bytes)} of {size(progress.all_bytes)}",
            f"{size(rate)}/s",
            f"{progress.files:,} of {files(progress.all_files, self._unit)}",
            f"{duration(left / rate)} left" if rate and left else "",
        ]
        return "  ".join(filter(None, parts))

    def _lanes(self, progress: Progress) -> str:
        if self._worker.stop.is_asked:
            return "stopping once what is on its way has ended; Ctrl-C again ends at once"
        stages = Counter(progress.stages)
        return "lanes: " + ", ".join(f"{count} {stage}" for stage, count in stages.items())


class Rate:
    """Bytes per second over the last while."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, amount: int, now: float) -> float:
        """The rate, now that ``amount`` bytes are done."""
        if self._seen and amount < self._seen[-1][1]:  # another pass
            self._seen.clear()
        self._seen.append((now, amount))
        while now - self._seen[0][0] > RATE_OVER:
            self._seen.popleft()
        began, first = self._seen[0]
        return (amount - first) / (now - began) if now > began else 0.0


def show_table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: str) -> None:
    """Print a table on standard output; the column called ``right`` is flush with the right.

    Where the terminal is too narrow for it, what is long gets lines of its own below each row.
    """
    from rich.cells import cell_len
    from rich.console import Console

    console = Console(highlight=False)
    cells = [heads, *rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    below = _too_long(heads, widths, console.width)
    flush = heads.index(right) if right in heads else None
    if below:
        for number, row in enumerate(cells):
            for line in _lines(row, widths, below, flush):
                console.print(line, style="" if number else "bold")
    else:
        console.print(_table(heads, cells[1:], right))


def _too_long(heads: Sequence[str], widths: Sequence[int], width: int) -> set[int]:
    """The columns that have to go for the others to be no wider than ``width``, as far as they may."""
    below: set[int] = set()
    for head in _LONG:
        if sum(widths) + GAP * (len(widths) - 1) - sum(widths[one] + GAP for one in below) <= width:
            break
        if head in heads:
            below.add(heads.index(head))
    return below


def _lines(
    cells: Sequence[str], widths: Sequence[int], below: set[int], right: int | None
) -> Iterator[RenderableType]:
    """A row: what is short in one line, then each of the others in lines of its own."""
    from rich.padding import Padding
    from rich.text import Text

    first = Text()
    for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        if number not in below:
            text = Text(cell, style=_STYLES.get(cell, ""))
            text.align("right" if number == right else "left", width)
            first.append_text(text).append(" " * GAP)
    first.rstrip()
    yield first
    for number in sorted(below):
        if cells[number]:
            yield Padding(Text(cells[number], overflow="fold"), (0, 0, 0, INDENT), expand=False)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for head in heads:
        table.add_column(
            head, justify="right" if head == right else "left", overflow="fold", no_wrap=head not in _FOLDED
        )
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


GAP = 2
"""Columns of the terminal between two of a table."""
INDENT = 4
_LONG = ("reason", "path", "digest", "proof", "size")
"""What gets a line of its own where a terminal is too narrow, in this order."""
_FOLDED = ("path", "reason", "what", "in 0.1.0", "now")
_STYLES = {"waiting": "yellow", "quarantined": "red", "delivered": "green", "removed": "green"}

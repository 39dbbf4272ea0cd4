"""A partner that behaves as MiStaMover 0.1.0 did, in either role: written from the description of its files."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

CONTROL, RECEIPT, THANKYOU = "stager-ctrl-bss", "stager-rcpt-bss", "stager-thanks-bss"


def put(path: Path, *lines: object) -> None:
    """Write a file of the handshake under another name, and rename it."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_bytes(b"".join(os.fsencode(str(line)) + b"\n" for line in lines))
    draft.rename(path)


def lines_of(path: Path, first: str, last: str) -> list[str]:
    lines = os.fsdecode(path.read_bytes()).split("\n")
    assert lines[-1] == "", f"{path.name} does not end in a newline"
    assert (lines[0], lines[-2]) == (first, last), lines
    return lines[1:-2]


@dataclass
class OldReceiver:
    """An arrivals monitor of 0.1.0 over one directory. Notes what it does, in order."""

    incoming: Path
    kept: Path
    diary: list[str] = field(default_factory=list)
    answer: Callable[[str, int, int, str], tuple[object, ...] | None] | None = None
    """Makes up (name, status, size, MD5) of receipts, from the true ones; None: no receipt."""
    thanks: Callable[[str], str] = lambda name: f".{name}.{time.time():.2f}.{THANKYOU}"
    """The name of the thank-you to ask for."""
    every: float = 0.05
    data_seen: list[bytes] = field(default_factory=list)
    """The data files as they were when their control files were read."""

    def step(self) -> None:
        """One poll."""
        for control in sorted(self.incoming.glob(f".*.{CONTROL}")):
            self._take(control)
        for thanks in sorted(self.incoming.glob(f".*.{THANKYOU}")):
            (receipt,) = lines_of(thanks, "_start_stager_thankyou_", "_end_stager_thankyou_")
            assert (self.incoming / receipt).exists(), f"{receipt} is thanked for, and not there"
            self.diary.append(f"thanked {receipt}")
            (self.incoming / receipt).unlink()
            thanks.unlink()

    def _take(self, control: Path) -> None:
        name, size, md5, receipt = lines_of(control, "_start_stager_ctrl_data_", "_end_stager_ctrl_data_")
        assert control.name == f".{name}.{CONTROL}"
        assert receipt.startswith(f".{name}."), receipt
        assert receipt.endswith(f".{RECEIPT}"), receipt
        self.diary.append(f"control {name}")
        data = self.incoming / name
        found = self._judge(data, int(size), md5)
        if found[0] == 0:
            data.rename(self.kept / name)
        else:
            data.unlink(missing_ok=True)
        control.unlink()
        told: tuple[object, ...] | None = (name, *found)
        if self.answer is not None:
            told = self.answer(name, *found)
        if told is not None:
            lines = *told, self.thanks(name)
            put(self.incoming / receipt, "_start_stager_receipt_data_", *lines, "_end_stager_receipt_data_")
            self.diary.append(f"receipt {name} {told[1]}")

    def _judge(self, data: Path, size: int, md5: str) -> tuple[int, int, str]:
        try:
            content = data.read_bytes()
        except FileNotFoundError:
            return 4, -1, ""
        self.data_seen.append(content)
        if len(content) != size:
            return 1, len(content), ""
        found = hashlib.md5(content).hexdigest()
        return (0 if found == md5 else 2), size, found

    # -- in a thread of its own ----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._ends = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._ends.wait(self.every):
            try:
                self.step()
            except BaseException as error:  # noqa: BLE001 - told of at the end of the block
                self._fault = error
                return

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        if self._fault is None:
            self.step()
        elif kind is None:
            raise self._fault


@dataclass
class OldSender:
    """A sender of 0.1.0, which pushes one file after the other into a directory; step by step."""

    incoming: Path

    def push(self, source: Path) -> str:
        """Push a file, then its control file; gives the name of the receipt that it asks for."""
        content = source.read_bytes()
        receipt = f".{source.name}.{time.time():.2f}.{RECEIPT}"
        (self.incoming / source.name).write_bytes(content)
        lines = source.name, len(content), hashlib.md5(content).hexdigest(), receipt
        control = self.incoming / f".{source.name}.{CONTROL}"
        put(control, "_start_stager_ctrl_data_", *lines, "_end_stager_ctrl_data_")
        return receipt

    def read(self, receipt: str) -> tuple[int, str] | None:
        """Status, and the name of the wanted thank-you; None where there is no receipt yet."""
        with suppress(FileNotFoundError):
            ends = "_start_stager_receipt_data_", "_end_stager_receipt_data_"
            _name, status, _size, _md5, thanks = lines_of(self.incoming / receipt, *ends)
            return int(status), thanks
        return None

    def thank(self, receipt: str, thanks: str) -> None:
        put(self.incoming / thanks, "_start_stager_thankyou_", receipt, "_end_stager_thankyou_")
